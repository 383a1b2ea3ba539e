"""Rows of the categorical cross-entropies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, amplify, spread
from tests.cases._softmax import (
    INTEGER_POINTS,
    ce_gradient,
    ce_hessian,
    ce_value,
    dense_case,
    distributions,
    naive_dense,
    one_hot,
    softmax_parts,
)

PROBABILITIES = [
    np.float32(row) for row in ([1.0], [1.0, 0.0], [0.25, 0.75], [0.1, 0.2, 0.7], [1e-15, 0.5, 0.5])
]


def _integer(terms):
    return lambda x, k, *ij: terms(x, one_hot(k, len(x)), *ij)


def naive_integer(x, k):
    return -jnp.log(jnp.take_along_axis(jax.nn.softmax(x), k[..., None], -1)[..., 0])


def _all_options_case() -> Case:
    s, z = 0.125, 0.25

    def weights(n):
        return [mpf(1 + i) / 2 for i in range(n)]

    def labels(k, n):
        hard = one_hot(k, n)
        return [w * ((1 - s) * a + mpf(s) / n) for w, a in zip(weights(n), hard, strict=True)]

    def normaliser(x):
        """log-sum-exp as two terms of which the first may be negative."""
        _, _, _, nll = softmax_parts(x)
        top = max(x)
        return top + nll[x.index(top)], abs(top) + nll[x.index(top)]

    def value(x, k):
        lse, scale = normaliser(x)
        return [*ce_value(x, labels(k, len(x))), *spread([z * lse**2], scale**2 / lse**2)]

    def gradient(x, k, i):
        gap, p, _, _ = softmax_parts(x)
        lse, scale = normaliser(x)
        squared = spread([2 * z * lse * p[i]], scale / abs(lse) * amplify(gap[i]))
        return [*ce_gradient(x, labels(k, len(x)), i), *squared]

    def hessian(x, k, i, j):
        gap, p, q, _ = softmax_parts(x)
        lse, scale = normaliser(x)
        by = amplify(gap[i]) + amplify(gap[j])
        term = p[i] * q[i] if i == j else -p[i] * p[j]
        return [
            *ce_hessian(x, labels(k, len(x)), i, j),
            *spread([2 * z * p[i] * p[j]], by),
            *spread([2 * z * lse * term], scale / abs(lse) * by),
        ]

    def fn(x, k):
        w = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype) / 2
        return jaxloss.softmax_cross_entropy_with_integer_labels(
            x, k, label_smoothing=s, class_weights=w, z_loss=z, ignore_index=-100
        )

    def naive(x, k):
        n = x.shape[-1]
        w = jnp.arange(1, n + 1, dtype=x.dtype) / 2
        y = w * (jax.nn.one_hot(k, n) * (1 - s) + s / n)
        return naive_dense(x, y) + z * jax.nn.logsumexp(x, -1) ** 2

    return Case(
        name="softmax_cross_entropy_with_integer_labels(all options)",
        fn=fn,
        naive=naive,
        value=value,
        gradient=gradient,
        hessian=hessian,
        predictions="logits",
        targets="integer",
        points=INTEGER_POINTS,
    )


CASES = [
    Case(
        name="softmax_cross_entropy_with_integer_labels",
        fn=jaxloss.softmax_cross_entropy_with_integer_labels,
        naive=naive_integer,
        value=_integer(ce_value),
        gradient=_integer(ce_gradient),
        hessian=_integer(ce_hessian),
        predictions="logits",
        targets="integer",
        points=INTEGER_POINTS,
        optax=optax.softmax_cross_entropy_with_integer_labels,
    ),
    _all_options_case(),
    dense_case(
        "softmax_cross_entropy",
        jaxloss.softmax_cross_entropy,
        optax_fn=optax.softmax_cross_entropy,
    ),
    dense_case(
        "safe_softmax_cross_entropy",
        jaxloss.safe_softmax_cross_entropy,
        optax_fn=optax.safe_softmax_cross_entropy,
    ).variant_of("softmax_cross_entropy"),
    Case(
        name="categorical_cross_entropy",
        fn=jaxloss.categorical_cross_entropy,
        naive=lambda p, y: -jnp.sum(y * jnp.log(p), -1),
        value=lambda p, y: [-a * mp.log(b) for a, b in zip(y, p, strict=True) if a],
        gradient=lambda p, y, i: [-y[i] / p[i] if y[i] else mpf(0)],
        hessian=lambda p, y, i, j: [y[i] / p[i] ** 2 if y[i] and i == j else mpf(0)],
        target_gradient=lambda p, y, i: [-mp.log(p[i]) if p[i] else mpf("inf")],
        predictions="distribution",
        targets="distribution",
        points=[
            (p, np.float32(y)) for p in PROBABILITIES for y in distributions(len(p)) if all(p > 0)
        ]
        + [(np.float32([1, 0]), np.float32([1, 0])), (np.float32([0, 1]), np.float32([0, 1]))],
    ),
    Case(
        name="categorical_cross_entropy_with_integer_labels",
        fn=jaxloss.categorical_cross_entropy_with_integer_labels,
        naive=lambda p, k: -jnp.log(jnp.take_along_axis(p, k[..., None], -1)[..., 0]),
        value=lambda p, k: [-mp.log(p[k])],
        gradient=lambda p, k, i: [-1 / p[k] if i == k else mpf(0)],
        hessian=lambda p, k, i, j: [1 / p[k] ** 2 if i == j == k else mpf(0)],
        predictions="distribution",
        targets="integer",
        points=[(p, k) for p in PROBABILITIES for k in range(len(p)) if p[k] > 0],
    ),
]
