"""Rows of the losses of mixtures of experts."""

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

import jaxloss
from tests.cases._case import Model
from tests.cases._jets import Jet, constant, exp, jets_case, log1p

# Two of three experts of each of two tokens.
TAKEN = np.int32(
    [[[0, 1], [0, 1]], [[0, 1], [1, 2]], [[0, 2], [1, 0]], [[2, 1], [2, 0]], [[0, 0], [0, 0]]]
)
TOKENS = [
    np.float32(row)
    for row in (
        [0, 0, 0, 0, 0, 0],
        [1.5, -0.25, 0.5, -1, 2, 0.125],
        [20, 0, -1, 0, 30, 0],
        [1e4, 0, 1, -50, 50, 49],
        [0.25, 0.25, -80, 1e-4, -1e-4, 1e-30],
    )
]
ROWS = [
    np.float32(row)
    for row in (
        [0, 0],
        [2, -1],
        [-30, 2e-4],
        [1e4, 0],
        [0.5, 1, -2, 1, 0.25],
        [-8, -9, -9.5, -1e4, -8],
    )
]


def _total(terms):
    return sum(terms, constant(0))


def _softmax(x: list[Jet]) -> list[Jet]:
    return [1 / _total(exp(b - a) for b in x) for a in x]


def _balance(x, k):
    p = [_softmax(x[:3]), _softmax(x[3:])]
    share = np.bincount(TAKEN[k].ravel(), minlength=3) / 4
    return 3 * _total(float(f) * (a + b) / 2 for f, a, b in zip(share, *p, strict=True))


def _of_tokens(loss):
    def one(x, k):
        return loss(jnp.reshape(x, (2, 3)), jnp.asarray(TAKEN)[k])

    return jnp.vectorize(one, signature="(n),()->()")


def _naive_balance(x, taken):
    experts = x.shape[-1]
    share = jnp.mean(jax.nn.one_hot(taken, experts), range(taken.ndim))
    return experts * jnp.sum(share * jnp.mean(jax.nn.softmax(x), range(x.ndim - 1)))


def _square_of_lse(x, _):
    top = max(range(len(x)), key=lambda i: x[i].value)
    tail = _total(exp(x[i] - x[top]) for i in range(len(x)) if i != top)
    lse = x[top] + log1p(tail)
    return lse * lse


def _routed(rng, n):
    x = rng.normal(size=(n, 64)).astype(np.float32)
    return x, np.argsort(x, -1)[:, -2:].astype(np.int32)


def _model(loss, naive) -> Model:
    return Model(fn=loss, naive=naive, sample=_routed, sizes=(512, 16384, 65536))


CASES = [
    jets_case(
        "load_balancing_loss",
        _of_tokens(jaxloss.load_balancing_loss),
        _of_tokens(_naive_balance),
        _balance,
        [(TOKENS[1], k) for k in range(len(TAKEN))] + [(x, 1) for x in TOKENS],
        predictions="logits",
        targets="integer",
        size=6,
        model=_model(jaxloss.load_balancing_loss, _naive_balance),
    ),
    jets_case(
        "router_z_loss",
        lambda x, _: jaxloss.router_z_loss(x),
        lambda x, _: jax.nn.logsumexp(x) ** 2,
        _square_of_lse,
        [(x, 0 * x) for x in ROWS],
        predictions="logits",
        targets="real",
        target_gradient=lambda *_: [mp.mpf(0)],
        model=_model(
            lambda x, _: jaxloss.router_z_loss(x),
            lambda x, _: jax.nn.logsumexp(x, -1) ** 2,
        ),
    ),
]
