"""Rows of the categorical cross-entropies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
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


def _distributions(n: int) -> list[np.ndarray]:
    ramp = np.arange(1, n + 1) / (n * (n + 1) / 2)
    mostly = np.full(n, 0.001 / max(n - 1, 1))
    mostly[0] = 0.999
    return [*np.eye(n), ramp, np.full(n, 1 / n), mostly, np.ones(n), np.zeros(n)]


DENSE_POINTS = [(x, np.float32(y)) for x in LOGITS for y in _distributions(len(x))]
PROBABILITIES = [
    np.float32(row) for row in ([1.0], [1.0, 0.0], [0.25, 0.75], [0.1, 0.2, 0.7], [1e-15, 0.5, 0.5])
]


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


def _ce_value(x, y):
    _, _, _, nll = softmax_parts(x)
    return spread([a * b for a, b in zip(y, nll, strict=True)], _conditioned(x))


def _conditioned(x):
    """How much rounding of the differences of logits is amplified, in all of the sums.

    A class far behind contributes exp(-gap) * gap, which is less than one.
    """
    gap, p, _, _ = softmax_parts(x)
    tail = sum((b for a, b in zip(gap, p, strict=True) if a > 0), mpf(0))
    return 1 + sum((a * b for a, b in zip(gap, p, strict=True)), mpf(0)) / tail if tail else 1


def _ce_gradient(x, y, i):
    gap, p, q, _ = softmax_parts(x)
    others = sum(y[:i] + y[i + 1 :], mpf(0))
    by = max(amplify(gap[i]), _conditioned(x))
    return spread([p[i] * others, -q[i] * y[i]], by)


def _ce_hessian(x, y, i, j):
    gap, p, q, _ = softmax_parts(x)
    term = p[i] * q[i] if i == j else -p[i] * p[j]
    return spread([sum(y) * term], amplify(gap[i]) + amplify(gap[j]) + _conditioned(x))


def _one_hot(k, n):
    return [mpf(int(i == k)) for i in range(n)]


def _integer(terms):
    return lambda x, k, *ij: terms(x, _one_hot(k, len(x)), *ij)


def _naive_integer(x, k):
    return -jnp.log(jnp.take_along_axis(jax.nn.softmax(x), k[..., None], -1)[..., 0])


def _naive_dense(x, y):
    return -jnp.sum(y * jnp.log(jax.nn.softmax(x)), -1)


def _all_options_case() -> Case:
    s, z = 0.125, 0.25

    def weights(n):
        return [mpf(1 + i) / 2 for i in range(n)]

    def labels(k, n):
        hard = _one_hot(k, n)
        return [w * ((1 - s) * a + mpf(s) / n) for w, a in zip(weights(n), hard, strict=True)]

    def normaliser(x):
        """log-sum-exp as two terms of which the first may be negative."""
        _, _, _, nll = softmax_parts(x)
        top = max(x)
        return top + nll[x.index(top)], abs(top) + nll[x.index(top)]

    def value(x, k):
        lse, scale = normaliser(x)
        return [*_ce_value(x, labels(k, len(x))), *spread([z * lse**2], scale**2 / lse**2)]

    def gradient(x, k, i):
        gap, p, _, _ = softmax_parts(x)
        lse, scale = normaliser(x)
        squared = spread([2 * z * lse * p[i]], scale / abs(lse) * amplify(gap[i]))
        return [*_ce_gradient(x, labels(k, len(x)), i), *squared]

    def hessian(x, k, i, j):
        gap, p, q, _ = softmax_parts(x)
        lse, scale = normaliser(x)
        by = amplify(gap[i]) + amplify(gap[j])
        term = p[i] * q[i] if i == j else -p[i] * p[j]
        return [
            *_ce_hessian(x, labels(k, len(x)), i, j),
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
        return _naive_dense(x, y) + z * jax.nn.logsumexp(x, -1) ** 2

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


def _dense_case(name, fn, naive=_naive_dense, optax_fn=None) -> Case:
    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=_ce_value,
        gradient=_ce_gradient,
        hessian=_ce_hessian,
        target_gradient=lambda x, y, i: spread([softmax_parts(x)[3][i]], _conditioned(x)),
        predictions="logits",
        targets="distribution",
        points=DENSE_POINTS,
        optax=optax_fn,
    )


def _chain(x, y, slope, curvature, value):
    """Terms of sum_j y_j f(p_j) from terms of f'(p) p and of f''(p) p^2 + f'(p) p."""
    _, p, q, nll = softmax_parts(x)
    n = range(len(x))

    def step(j, i):  # d p_j / d x_i over p_j
        return q[i] if i == j else -p[i]

    def gradient(i):
        return [y[j] * t * step(j, i) for j in n for t in slope(p[j], q[j], nll[j])]

    def hessian(i, k):
        both = q[i] if i == k else -p[k]
        first = [
            y[j] * t * step(j, i) * step(j, k) for j in n for t in curvature(p[j], q[j], nll[j])
        ]
        second = [-y[j] * t * p[i] * both for j in n for t in slope(p[j], q[j], nll[j])]
        return [*first, *second]

    values = [y[j] * t for j in n for t in value(p[j], q[j], nll[j])]
    return values, gradient, hessian


def _chained_case(name, fn, naive, slope, curvature, value, amplification, optax_fn=None):
    def by(x, *ij):
        gap, _, q, _ = softmax_parts(x)
        extra = max(amplification * abs(mp.log(v)) for v in q) if len(x) > 1 else mpf(0)
        return _conditioned(x) + sum((amplify(gap[i]) for i in ij), extra)

    def chain(x, y):
        return _chain(x, y, slope, curvature, value)

    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda x, y: spread(chain(x, y)[0], by(x)),
        gradient=lambda x, y, i: spread(chain(x, y)[1](i), by(x, i)),
        hessian=lambda x, y, i, k: spread(chain(x, y)[2](i, k), by(x, i, k)),
        target_gradient=lambda x, y, i: spread(chain(x, _one_hot(i, len(x)))[0], by(x)),
        predictions="logits",
        targets="distribution",
        points=DENSE_POINTS,
        optax=optax_fn,
    )


def _power(q, g):
    return q**g if q else mpf(int(g == 0))


def _focal_case(power, **options) -> Case:
    g = mpf(power)
    return _chained_case(
        f"softmax_focal_loss(gamma={power:g})",
        partial(jaxloss.softmax_focal_loss, **options),
        lambda x, y: (
            -jnp.sum(y * (1 - jax.nn.softmax(x)) ** power * jnp.log(jax.nn.softmax(x)), -1)
        ),
        lambda p, q, nll: [
            -g * _power(q, g - 1) * p * nll if q else mpf(0),
            -_power(q, g),
        ],
        lambda p, q, nll: (
            [
                g * (g - 1) * _power(q, g - 2) * p**2 * nll,
                2 * g * _power(q, g - 1) * p,
                -g * _power(q, g - 1) * p * nll,
            ]
            if q
            else [mpf(0)]
        ),
        lambda p, q, nll: [_power(q, g) * nll],
        g,
    )


def _generalized_case(power) -> Case:
    g = mpf(power)

    def parts(x, k, *indices):
        """The label's p**g, and the amplification of it and of the gaps of some classes."""
        gap, p, q, nll = softmax_parts(x)
        by = amplify(g * nll[k]) + _conditioned(x) + sum((amplify(gap[i]) for i in indices), mpf(0))
        # Of p - one_hot(k), exactly.
        slope = [-q[i] if i == k else p[i] for i in range(len(x))]
        return mp.exp(-g * nll[k]), p, q, slope, by

    def value(x, k):
        nll = softmax_parts(x)[3][k]
        return spread([-mp.expm1(-g * nll) / g if g else nll], _conditioned(x))

    def gradient(x, k, i):
        weight, _, _, slope, by = parts(x, k, i)
        return spread([weight * slope[i]], by)

    def hessian(x, k, i, j):
        weight, p, q, slope, by = parts(x, k, i, j)
        curvature = p[i] * q[i] if i == j else -p[i] * p[j]
        return spread([weight * curvature, -g * weight * slope[i] * slope[j]], by)

    def naive(x, k):
        p = jnp.take_along_axis(jax.nn.softmax(x), k[..., None], -1)[..., 0]
        return (1 - p**power) / power if power else -jnp.log(p)

    return Case(
        name=f"generalized_cross_entropy(q={power:g})",
        fn=partial(jaxloss.generalized_cross_entropy, q=power),
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
        naive=_naive_integer,
        value=_integer(_ce_value),
        gradient=_integer(_ce_gradient),
        hessian=_integer(_ce_hessian),
        predictions="logits",
        targets="integer",
        points=INTEGER_POINTS,
        optax=optax.softmax_cross_entropy_with_integer_labels,
    ),
    _all_options_case(),
    _dense_case(
        "softmax_cross_entropy",
        jaxloss.softmax_cross_entropy,
        optax_fn=optax.softmax_cross_entropy,
    ),
    _dense_case(
        "safe_softmax_cross_entropy",
        jaxloss.safe_softmax_cross_entropy,
        optax_fn=optax.safe_softmax_cross_entropy,
    ),
    _focal_case(2.0),
    _focal_case(0.5, gamma=0.5),
    _focal_case(0.0, gamma=0.0),
    _chained_case(
        "poly_loss_cross_entropy",
        jaxloss.poly_loss_cross_entropy,
        lambda x, y: _naive_dense(x, y) + 2 * jnp.sum(y * (1 - jax.nn.softmax(x)), -1),
        lambda p, q, nll: [mpf(-1), -2 * p],
        lambda p, q, nll: [-2 * p],
        lambda p, q, nll: [nll, 2 * q],
        mpf(0),
        optax_fn=optax.losses.poly_loss_cross_entropy,
    ),
    _generalized_case(0.75),
    _generalized_case(0.0),
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
            (p, np.float32(y)) for p in PROBABILITIES for y in _distributions(len(p)) if all(p > 0)
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
