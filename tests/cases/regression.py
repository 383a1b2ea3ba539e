"""Rows of the regression losses."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case
from tests.cases._numbers import POSITIVE, row


def _huber(error, delta):
    size = abs(error)
    return error**2 / 2 if size <= delta else delta * (size - delta / 2)


def _wing(error, width, curvature):
    size = abs(error)
    if size < width:
        return [width * mp.log1p(size / curvature)]
    return [size, -width, width * mp.log1p(width / curvature)]


def _naive_wing(error, width, curvature):
    size = jnp.abs(error)
    beyond = size - (width - width * np.log1p(width / curvature))
    return jnp.where(size < width, width * jnp.log1p(size / curvature), beyond)


def _quantile_case(q) -> Case:
    return row(
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


CASES = [
    row(
        "squared_error",
        jaxloss.squared_error,
        lambda p, t: (p - t) ** 2,
        lambda p, t: [(p - t) ** 2],
        optax=optax.losses.squared_error,
    ),
    row(
        "l2_loss",
        jaxloss.l2_loss,
        lambda p, t: 0.5 * (p - t) ** 2,
        lambda p, t: [(p - t) ** 2 / 2],
        optax=optax.losses.l2_loss,
    ),
    row(
        "absolute_error",
        jaxloss.absolute_error,
        lambda p, t: jnp.abs(p - t),
        lambda p, t: [abs(p - t)],
    ),
    row(
        "huber_loss",
        jaxloss.huber_loss,
        lambda p, t: jnp.where(jnp.abs(p - t) < 1, 0.5 * (p - t) ** 2, jnp.abs(p - t) - 0.5),
        lambda p, t: [_huber(p - t, 1)],
        optax=optax.losses.huber_loss,
    ),
    row(
        "huber_loss(delta=2.5)",
        partial(jaxloss.huber_loss, delta=2.5),
        lambda p, t: optax.losses.huber_loss(p, t, delta=2.5),
        lambda p, t: [_huber(p - t, mpf(2.5))],
        optax=partial(optax.losses.huber_loss, delta=2.5),
    ),
    row(
        "wing_loss",
        jaxloss.wing_loss,
        lambda p, t: _naive_wing(p - t, 10.0, 2.0),
        lambda p, t: _wing(p - t, mpf(10), mpf(2)),
    ),
    row(
        "wing_loss(width=0.5, curvature=0.125)",
        partial(jaxloss.wing_loss, width=0.5, curvature=0.125),
        lambda p, t: _naive_wing(p - t, 0.5, 0.125),
        lambda p, t: _wing(p - t, mpf(0.5), mpf(0.125)),
    ),
    row(
        "log_cosh",
        jaxloss.log_cosh,
        lambda p, t: jnp.logaddexp(p - t, t - p) - jnp.log(2.0).astype(p.dtype),
        lambda p, t: [mp.log1p(2 * mp.sinh((p - t) / 2) ** 2)],
        optax=optax.losses.log_cosh,
        ulps=8,  # A logarithm of a product of four rounded factors, one of them a square.
    ),
    _quantile_case(0.5),
    _quantile_case(0.875),
    row(
        "absolute_percentage_error",
        jaxloss.absolute_percentage_error,
        lambda p, t: 100 * jnp.abs((p - t) / jnp.maximum(jnp.abs(t), 1e-7)),
        lambda p, t: [100 * abs(p - t) / max(abs(t), mpf(1e-7))],
        [(np.float32(p), np.float32(t)) for p in (-2, 0.5, 30) for t in (-0.01, 2, 1e4)],
        target_gradient=_percentage_slope,
    ),
    row(
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
]
