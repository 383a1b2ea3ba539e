"""Logits of many classes, their exact softmax, and the terms of its cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

from tests.cases._case import Case, amplify, spread

LOGITS = [
    np.float32(row)
    for row in (
        [3.0],
        [20.0, 0.0],
        [0.0, -0.0],
        [1e7, 1e7 - 2],
        [-60.0, 40.0],
        [20.0, 0.0, -1.0],
        [0.0, 0.0, 0.0],
        [3.0, 3.0, 0.5],
        [1.0, 2.0, 3.0],
        [1e-4, 0.0, -1e-30],
        [0.0, 60.0, 2.0],
        [100.0, 99.0, 40.0],
        [0.0, -20.0, -20.0],
        [1.5, -0.3, 2.25, 0.7, -4.0],
        [9.0, 0.0, 0.0, 8.5, -30.0],
    )
]
INTEGER_POINTS = [(x, k) for x in LOGITS for k in range(len(x))]


def distributions(n: int) -> list[np.ndarray]:
    ramp = np.arange(1, n + 1) / (n * (n + 1) / 2)
    mostly = np.full(n, 0.001 / max(n - 1, 1))
    mostly[0] = 0.999
    return [*np.eye(n), ramp, np.full(n, 1 / n), mostly, np.ones(n), np.zeros(n)]


DENSE_POINTS = [(x, np.float32(y)) for x in LOGITS for y in distributions(len(x))]


def softmax_parts(x):
    """gap = max - x, p, 1 - p and -log p of every class, without cancellation."""
    top = max(x)
    e = [mp.exp(v - top) for v in x]
    total = sum(e)
    p = [v / total for v in e]
    q = [sum(e[:i] + e[i + 1 :], mpf(0)) / total for i in range(len(x))]
    m = x.index(top)
    tail = mp.log1p(sum(e[:m] + e[m + 1 :], mpf(0)))
    return [top - v for v in x], p, q, [top - v + tail for v in x]


def ce_value(x, y):
    _, _, _, nll = softmax_parts(x)
    return spread([a * b for a, b in zip(y, nll, strict=True)], conditioned(x))


def conditioned(x):
    """How much rounding of the differences of logits is amplified, in all of the sums.

    A class far behind contributes exp(-gap) * gap, which is less than one.
    """
    gap, p, _, _ = softmax_parts(x)
    tail = sum((b for a, b in zip(gap, p, strict=True) if a > 0), mpf(0))
    return 1 + sum((a * b for a, b in zip(gap, p, strict=True)), mpf(0)) / tail if tail else 1


def ce_gradient(x, y, i):
    gap, p, q, _ = softmax_parts(x)
    others = sum(y[:i] + y[i + 1 :], mpf(0))
    by = max(amplify(gap[i]), conditioned(x))
    return spread([p[i] * others, -q[i] * y[i]], by)


def ce_hessian(x, y, i, j):
    gap, p, q, _ = softmax_parts(x)
    term = p[i] * q[i] if i == j else -p[i] * p[j]
    return spread([sum(y) * term], amplify(gap[i]) + amplify(gap[j]) + conditioned(x))


def one_hot(k, n):
    return [mpf(int(i == k)) for i in range(n)]


def naive_dense(x, y):
    return -jnp.sum(y * jnp.log(jax.nn.softmax(x)), -1)


def dense_case(name, fn, naive=naive_dense, optax_fn=None) -> Case:
    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=ce_value,
        gradient=ce_gradient,
        hessian=ce_hessian,
        target_gradient=lambda x, y, i: spread([softmax_parts(x)[3][i]], conditioned(x)),
        predictions="logits",
        targets="distribution",
        points=DENSE_POINTS,
        optax=optax_fn,
    )
