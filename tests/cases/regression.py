"""Rows of the regression losses, of numbers, distributions and directions."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import gammaln
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case

ERRORS = [1e-30, 1e-4, 0.01, 0.3, 0.75, 1.25, 3.0, 30.0, 1e4]
# Around zero, where an error is exact, and between numbers that are close or far apart.
POINTS = [(np.float32(s * x), np.float32(0)) for x in ERRORS for s in (1, -1)]
POINTS += [
    (np.float32(p), np.float32(t)) for p, t in ((1.5, 1.4), (-2, 7), (1e4, 9998), (3, 3.001))
]
POSITIVE = np.float32([1e-20, 1e-3, 0.4, 1.0, 2.5, 1e3])
COUNTS = np.float32([0, 1, 2.5, 40])
VECTORS = [np.float32(row) for row in ([1, 2, -3, 0.5], [0.25, -1, 4, 2], [1e-15, 3e-15, 0, 1e-15])]


def _row(name, fn, naive, value, points=POINTS, **fields) -> Case:
    fields = {"predictions": "real", "targets": "real", "size": None} | fields
    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda p, t: value(p[0], t[0]),
        points=points,
        **fields,
    )


def _huber(error, delta):
    size = abs(error)
    return error**2 / 2 if size <= delta else delta * (size - delta / 2)


def _quantile_case(q) -> Case:
    return _row(
        f"quantile_loss({q})",
        partial(jaxloss.quantile_loss, quantile=q),
        lambda p, t: jnp.maximum(q * (t - p), (q - 1) * (t - p)),
        lambda p, t: [mpf(q) * (t - p) if t > p else (1 - mpf(q)) * (p - t)],
    )


def _percentage_slope(p, t, _):
    sign = mp.sign(p[0] - t[0])
    return [-100 * sign * p[0] / (t[0] * abs(t[0]))]


def _log_ratio(p, t):
    return mp.log((1 + p) / (1 + t))


def _cosine_terms(p, t):
    sizes = mp.sqrt(sum(a * a for a in p)) * mp.sqrt(sum(b * b for b in t))
    return [a * b / sizes for a, b in zip(p, t, strict=True)]


def _naive_cosine(p, t):
    sizes = jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(t, axis=-1)
    return jnp.sum(p * t, -1) / sizes


def _poisson_case(suffix="", log_input=True, full=False) -> Case:
    def value(x, t):
        terms = [mp.exp(x), -t * x] if log_input else [x, -t * mp.log(x)]
        return [*terms, mp.loggamma(t + 1)] if full else terms

    def naive(x, t):
        loss = jnp.exp(x) - t * x if log_input else x - t * jnp.log(x)
        return loss + gammaln(t + 1) if full else loss

    rates = [np.float32(x) for x in (-30, -1.5, 0, 0.75, 4, 20)] if log_input else POSITIVE
    return _row(
        f"poisson_nll{suffix}",
        partial(jaxloss.poisson_nll, log_input=log_input, full=full),
        naive,
        value,
        [(x, t) for x in rates for t in COUNTS if not full or t],
        predictions="real" if log_input else "positive",
        targets="positive",
        ulps=16 if full else 8,  # Of the derivative by counts, JAX's digamma.
    )


CASES = [
    _row(
        "squared_error",
        jaxloss.squared_error,
        lambda p, t: (p - t) ** 2,
        lambda p, t: [(p - t) ** 2],
        optax=optax.losses.squared_error,
    ),
    _row(
        "l2_loss",
        jaxloss.l2_loss,
        lambda p, t: 0.5 * (p - t) ** 2,
        lambda p, t: [(p - t) ** 2 / 2],
        optax=optax.losses.l2_loss,
    ),
    _row(
        "absolute_error",
        jaxloss.absolute_error,
        lambda p, t: jnp.abs(p - t),
        lambda p, t: [abs(p - t)],
    ),
    _row(
        "huber_loss",
        jaxloss.huber_loss,
        lambda p, t: jnp.where(jnp.abs(p - t) < 1, 0.5 * (p - t) ** 2, jnp.abs(p - t) - 0.5),
        lambda p, t: [_huber(p - t, 1)],
        optax=optax.losses.huber_loss,
    ),
    _row(
        "huber_loss(delta=2.5)",
        partial(jaxloss.huber_loss, delta=2.5),
        lambda p, t: optax.losses.huber_loss(p, t, delta=2.5),
        lambda p, t: [_huber(p - t, mpf(2.5))],
        optax=partial(optax.losses.huber_loss, delta=2.5),
    ),
    _row(
        "log_cosh",
        jaxloss.log_cosh,
        lambda p, t: jnp.logaddexp(p - t, t - p) - jnp.log(2.0).astype(p.dtype),
        lambda p, t: [mp.log1p(2 * mp.sinh((p - t) / 2) ** 2)],
        optax=optax.losses.log_cosh,
    ),
    _quantile_case(0.5),
    _quantile_case(0.875),
    _row(
        "absolute_percentage_error",
        jaxloss.absolute_percentage_error,
        lambda p, t: 100 * jnp.abs((p - t) / jnp.maximum(jnp.abs(t), 1e-7)),
        lambda p, t: [100 * abs(p - t) / max(abs(t), mpf(1e-7))],
        [(np.float32(p), np.float32(t)) for p in (-2, 0.5, 30) for t in (-0.01, 2, 1e4)],
        target_gradient=_percentage_slope,
    ),
    _row(
        "squared_log_error",
        jaxloss.squared_log_error,
        lambda p, t: (jnp.log1p(p) - jnp.log1p(t)) ** 2,
        lambda p, t: [_log_ratio(p, t) ** 2],
        [(p, t) for p in POSITIVE for t in POSITIVE if p != t]
        + [(np.float32(-0.999), np.float32(2)), (np.float32(5), np.float32(5.001))],
        hessian=lambda p, t, *_: [
            2 / (1 + p[0]) ** 2,
            -2 * _log_ratio(p[0], t[0]) / (1 + p[0]) ** 2,
        ],
        predictions="positive",
        targets="positive",
    ),
    _poisson_case(),
    _poisson_case("(full)", full=True),
    _poisson_case("(log_input=False)", log_input=False),
    _row(
        "gaussian_nll",
        partial(jaxloss.gaussian_nll, variance=2.5),
        lambda p, t: 0.5 * (jnp.log(2.5) + (p - t) ** 2 / 2.5),
        lambda p, t: [mp.log(mpf(2.5)) / 2, (p - t) ** 2 / 5],
    ),
    _row(
        "gaussian_nll(by the variance)",
        lambda v, t: jaxloss.gaussian_nll(jnp.zeros_like(v), t, v, full=True),
        lambda v, t: 0.5 * (jnp.log(v) + t**2 / v + np.log(2 * np.pi)),
        lambda v, t: [mp.log(v) / 2, t**2 / (2 * v), mp.log(2 * mp.pi) / 2],
        [(v, t) for v in POSITIVE[1:] for t in np.float32([-2, 1e-5, 0.5, 7])],
        predictions="positive",
    ),
    Case(
        name="cosine_similarity",
        fn=jaxloss.cosine_similarity,
        naive=_naive_cosine,
        value=_cosine_terms,
        predictions="real",
        targets="real",
        points=[(a, b) for a in VECTORS for b in VECTORS[:2] if a is not b],
        sizes=(7, 129, 1000),  # Of one entry the derivative, which is 0, is all rounding.
        ulps=16,  # Of the norms, which every entry has a part in.
        optax=optax.losses.cosine_similarity,
    ),
    Case(
        name="cosine_distance",
        fn=jaxloss.cosine_distance,
        naive=lambda p, t: 1 - _naive_cosine(p, t),
        value=lambda p, t: [mpf(1), *(-term for term in _cosine_terms(p, t))],
        predictions="real",
        targets="real",
        points=[(a, b) for a in VECTORS for b in VECTORS[:2] if a is not b],
        sizes=(7, 129, 1000),
        ulps=16,
        optax=optax.losses.cosine_distance,
    ),
]
