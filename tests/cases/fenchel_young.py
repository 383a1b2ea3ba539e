"""Rows of the Fenchel-Young losses. Their points are not at kinks."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, spread
from tests.cases._scores import INTEGER_POINTS, SCORES, hinged, one_hot
from tests.cases._softmax import INTEGER_POINTS as LOGIT_POINTS


def _sparse_plus(x):
    return x if x >= 1 else (x + 1) ** 2 / 4 if x > -1 else mpf(0)


def _naive_sparse(x, z):
    return (1 - z) * jax.nn.sparse_plus(x) + z * jax.nn.sparse_plus(-x)


def _simplex(s):
    """The sparsemax of a row, and its threshold."""
    in_order = sorted(s, reverse=True)
    tau = max((sum(in_order[:n]) - 1) / n for n in range(1, len(s) + 1))
    return [hinged(v - tau) for v in s], tau


def _sparsemax_terms(s, k):
    p, tau = _simplex(s)
    missing = [int(i == k) - v for i, v in enumerate(p)]
    return [*(v**2 / 2 for v in missing), hinged(tau - s[k])]


def _sparsemax_hessian(s, k, i, j):
    support = [m for m, v in enumerate(_simplex(s)[0]) if v > 0]
    if j not in support:
        return [mpf(0)]
    # At the label it is minus the sum of the others.
    rows = [(m, -1) for m in support if m != k] if i == k else [(i, 1)] if i in support else []
    return [sign * v for m, sign in rows for v in (mpf(int(m == j)), -mpf(1) / len(support))]


def _naive_sparsemax(s, k):
    sizes = jnp.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    tau = jnp.max((jnp.cumsum(jnp.sort(s, descending=True), -1) - 1) / sizes, -1, keepdims=True)
    p = jnp.maximum(s - tau, 0)
    return jnp.sum((p - one_hot(s, k)) * s, -1) + 0.5 * (1 - jnp.sum(p * p, -1))


def _one_batch(loss):
    """For a loss that takes a batch of one axis."""

    def of(s, k):
        return jnp.reshape(loss(jnp.reshape(s, (-1, s.shape[-1])), jnp.ravel(k)), k.shape)

    return of


@cache
def _entmax_parts(x, alpha, bits):
    """d, as in the library, p, the weights p**(2 - alpha), and how p magnifies an error of d.

    The results are kept, so `bits` has to say how precise they are.
    """
    e = mpf(alpha) - 1
    gap = [max(x) - v for v in x]

    def power(d, n):
        if e == 0:
            return mp.exp(-d)
        base = 1 - e * d
        return base ** (1 / e - n) if base > 0 else mpf(0)

    excess = mpf(0)
    for _ in range(200):  # Newton's method, from below.
        d = [g + excess for g in gap]
        step = (sum(power(v, 0) for v in d) - 1) / sum(power(v, 1) for v in d)
        excess += step
        if abs(step) < 2**8 * mp.eps * (1 + excess):
            break
    d = [g + excess for g in gap]
    amplified = [1 + (v / (1 - e * v) if e * v < 1 else 0) for v in d]
    return d, [power(v, 0) for v in d], [power(v, 1) for v in d], amplified


def _entmax_value(x, k, alpha):
    d, p, _, by = _entmax_parts(tuple(x), alpha, mp.prec)
    a = mpf(alpha)
    own = d[k] - (1 - p[k] ** a) / a
    others = (spread([v**a / a], b) for i, (v, b) in enumerate(zip(p, by, strict=True)) if i != k)
    return [own, *(term for terms in others for term in terms)]


def _entmax_gradient(x, k, i, alpha):
    _, p, _, by = _entmax_parts(tuple(x), alpha, mp.prec)
    if i != k:
        return spread([p[i]], by[i])
    return [t for j in range(len(p)) if j != k for t in spread([-p[j]], by[j])]


def _entmax_hessian(x, k, i, j, alpha):
    _, _, w, by = _entmax_parts(tuple(x), alpha, mp.prec)
    rows = [(m, -1) for m in range(len(w)) if m != k] if i == k else [(i, 1)]
    each = [
        spread([sign * w[m] * int(m == j), -sign * w[m] * w[j] / sum(w)], by[m] * by[j])
        for m, sign in rows
    ]
    return [term for terms in each for term in terms]


def _naive_entmax(x, k, alpha):
    """Its authors' bisection."""
    e = alpha - 1
    top = jnp.max(e * x, -1, keepdims=True)
    low, high = top - 1, top - x.shape[-1] ** -e
    for _ in range(60):
        tau = (low + high) / 2
        enough = jnp.sum(jnp.maximum(e * x - tau, 0) ** (1 / e), -1, keepdims=True) >= 1
        low, high = jnp.where(enough, tau, low), jnp.where(enough, high, tau)
    p = lax.stop_gradient(jnp.maximum(e * x - low, 0) ** (1 / e))
    entropy = jnp.sum(p - p**alpha, -1) / (alpha * e)
    return jnp.sum((p - one_hot(x, k)) * x, -1) + entropy


def _entmax_case(name, fn, alpha) -> Case:
    return Case(
        name=name,
        fn=fn,
        naive=_naive_integer if alpha == 1 else partial(_naive_entmax, alpha=alpha),
        value=partial(_entmax_value, alpha=alpha),
        gradient=partial(_entmax_gradient, alpha=alpha),
        hessian=partial(_entmax_hessian, alpha=alpha),
        predictions="logits",
        targets="integer",
        points=INTEGER_POINTS + LOGIT_POINTS,
    )


def _naive_integer(x, k):
    return -jnp.sum(jax.nn.log_softmax(x) * one_hot(x, k), -1)


CASES = [
    Case(
        name="sparsemax_loss",
        fn=jaxloss.sparsemax_loss,
        naive=_naive_sparse,
        value=lambda x, z: [(1 - z[0]) * _sparse_plus(x[0]), z[0] * _sparse_plus(-x[0])],
        predictions="real",
        targets="bit",
        points=[(x, z) for x in SCORES for z in np.float32([0, 1, 0.25])],
        size=None,
        optax=optax.losses.sparsemax_loss,
    ),
    Case(
        name="multiclass_sparsemax_loss",
        fn=jaxloss.multiclass_sparsemax_loss,
        naive=_naive_sparsemax,
        value=_sparsemax_terms,
        hessian=_sparsemax_hessian,
        predictions="logits",
        targets="integer",
        points=INTEGER_POINTS,
        optax=_one_batch(optax.losses.multiclass_sparsemax_loss),
    ),
    _entmax_case("entmax15_loss", jaxloss.entmax15_loss, 1.5),
    *(
        _entmax_case(f"entmax_loss(alpha={a})", partial(jaxloss.entmax_loss, alpha=a), a)
        for a in (1.25, 1.0, 1.75, 2.0)
    ),
]
