"""Rows of the margin and Fenchel-Young losses. Their points are not at kinks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mpf

import jaxloss
from tests.cases._case import Case

SCORES = np.float32([0.0, 1e-30, 0.25, 0.999, 1.5, 40.0, -0.5, -3.0, -1e4])
POINTS = [(x, t) for x in SCORES for t in np.float32([1, -1])]
ROWS = [
    np.float32(row)
    for row in ([3.0], [0.5, 2.0], [1.0, -0.25, 2.5], [0.25, 0.5, 0.125, -9.0], [7.0, 0.5, -8.0])
]
INTEGER_POINTS = [(s, k) for s in ROWS for k in range(len(s))]


def _hinged(x):
    return x if x > 0 else mpf(0)


def _binary(name, fn, naive, margin, power=1, optax_fn=None) -> Case:
    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda x, t: [_hinged(margin - t[0] * x[0]) ** power],
        predictions="real",
        targets="sign",
        points=[(x, t) for x, t in POINTS if x * t != margin],
        size=None,
        optax=optax_fn,
    )


def _sparse_plus(x):
    return x if x >= 1 else (x + 1) ** 2 / 4 if x > -1 else mpf(0)


def _naive_sparse(x, z):
    return (1 - z) * jax.nn.sparse_plus(x) + z * jax.nn.sparse_plus(-x)


def _best(s, k, margin):
    """The terms of the largest lead over the label, which is at least 0."""
    leads = [(v - s[k] + margin, [v, -s[k], mpf(margin)]) for i, v in enumerate(s) if i != k]
    value, terms = max(leads, default=(mpf(0), []), key=lambda lead: lead[0])
    return terms if value > 0 else [0 * t for t in s]


def _multiclass(name, fn, naive, margin, optax_fn) -> Case:
    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda s, k: _best(s, k, margin),
        predictions="logits",
        targets="integer",
        points=INTEGER_POINTS,
        optax=optax_fn,
    )


def _simplex(s):
    """The sparsemax of a row, and its threshold."""
    in_order = sorted(s, reverse=True)
    tau = max((sum(in_order[:n]) - 1) / n for n in range(1, len(s) + 1))
    return [_hinged(v - tau) for v in s], tau


def _sparsemax_terms(s, k):
    p, tau = _simplex(s)
    missing = [int(i == k) - v for i, v in enumerate(p)]
    return [*(v**2 / 2 for v in missing), _hinged(tau - s[k])]


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
    return jnp.sum((p - _one_hot(s, k)) * s, -1) + 0.5 * (1 - jnp.sum(p * p, -1))


def _one_hot(s, k):
    return jax.nn.one_hot(k, s.shape[-1], dtype=s.dtype)


def _one_batch(loss):
    """For a loss that takes a batch of one axis."""

    def of(s, k):
        return jnp.reshape(loss(jnp.reshape(s, (-1, s.shape[-1])), jnp.ravel(k)), k.shape)

    return of


def _categorical_terms(s, y):
    wrong = max((1 - b) * a for a, b in zip(s, y, strict=True))
    right = [b * a for a, b in zip(s, y, strict=True)]
    return [mpf(1), wrong, *(-v for v in right)] if 1 + wrong > sum(right) else [mpf(0)]


CASES = [
    _binary(
        "hinge_loss",
        jaxloss.hinge_loss,
        lambda x, t: jnp.maximum(0, 1 - t * x),
        1,
        optax_fn=optax.losses.hinge_loss,
    ),
    _binary(
        "squared_hinge_loss",
        jaxloss.squared_hinge_loss,
        lambda x, t: jnp.maximum(0, 1 - t * x) ** 2,
        1,
        2,
    ),
    _binary(
        "perceptron_loss",
        jaxloss.perceptron_loss,
        lambda x, t: jnp.maximum(0, -t * x),
        0,
        optax_fn=optax.losses.perceptron_loss,
    ),
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
    _multiclass(
        "multiclass_hinge_loss",
        jaxloss.multiclass_hinge_loss,
        lambda s, k: (
            jnp.max(s + 1 - _one_hot(s, k), -1) - jnp.take_along_axis(s, k[..., None], -1)[..., 0]
        ),
        1,
        optax.losses.multiclass_hinge_loss,
    ),
    _multiclass(
        "multiclass_perceptron_loss",
        jaxloss.multiclass_perceptron_loss,
        lambda s, k: jnp.max(s, -1) - jnp.take_along_axis(s, k[..., None], -1)[..., 0],
        0,
        optax.losses.multiclass_perceptron_loss,
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
    Case(
        name="categorical_hinge_loss",
        fn=jaxloss.categorical_hinge_loss,
        naive=lambda s, y: jnp.maximum(0, jnp.max((1 - y) * s, -1) - jnp.sum(y * s, -1) + 1),
        value=_categorical_terms,
        predictions="real",
        targets="distribution",
        points=[
            (s, np.float32(y))
            for s in ROWS[1:]
            for y in (*np.eye(len(s))[:2], np.arange(1, len(s) + 1) / 8)
        ],
    ),
]
