"""Rows of the Fenchel-Young losses. Their points are not at kinks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mpf

import jaxloss
from tests.cases._case import Case
from tests.cases._scores import INTEGER_POINTS, SCORES, hinged, one_hot


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
]
