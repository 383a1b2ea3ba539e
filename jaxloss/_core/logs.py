"""Combinations of `log(1 + w)` that are small where their terms are not, and of gamma functions.

All are sums of terms of one sign, or series, of which every derivative is as exact.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxloss._core.numerics import largest
from jaxloss._core.rules import tangent_sum


def terms(x: Array, single: int) -> int:
    """How many terms a series needs that needs so many in float32."""
    return single if x.dtype == jnp.float32 else 2 * single


def polynomial(x: Array, coefficients: list[float]) -> Array:
    out = jnp.zeros_like(x)
    for c in reversed(coefficients):
        out = out * x + c
    return out


def _odd(x: Array) -> Array:
    """`(atanh(x) - x) / x**3`, up to 1/3."""
    return polynomial(x * x, [1 / (2 * k + 3) for k in range(terms(x, 8))])


def log1p(w: Array) -> Array:
    """`jnp.log1p`, which on a CPU loses two digits of float64 around -0.4 (jaxlib 0.10)."""
    return jnp.where(w < -0.25, jnp.log(1 + w), jnp.log1p(w))


def curvature(w: Array) -> Array:
    """`(log(1 + w) - w / (1 + w)) / w**2`, 1/2 at 0, for a w above -1."""
    near = (w >= -0.5) & (w <= 1)
    x = jnp.where(near, w, 0) / (2 + jnp.where(near, w, 0))
    series = 0.5 * (1 - x) * (1 - x) * (1 / (1 + x) + x * _odd(x))
    far = jnp.where(near, 1, w)
    return jnp.where(near, series, (log1p(far) - far / (1 + far)) / far / far)


@jax.custom_jvp
def bend(w: Array) -> Array:
    """`log(1 + w) - w / (1 + w)`, which is never negative."""
    near = (w >= -0.5) & (w <= 1)
    small = jnp.where(near, w, 0)
    return jnp.where(near, small * small * curvature(small), log1p(w) - w / (1 + w))


@bend.defjvp
def _bend_rule(primals, tangents):
    (w,), (dw,) = primals, tangents
    return bend(w), w / (1 + w) / (1 + w) * dw


@jax.custom_jvp
def log1p_per(a: Array, x: Array) -> Array:
    """`log(1 + a * x) / a`, x where a is 0."""
    w = a * x
    return jnp.where(w == 0, x, x * (log1p(w) / jnp.where(w == 0, 1, w)))


@partial(log1p_per.defjvp, symbolic_zeros=True)
def _log1p_per_rule(primals, tangents):
    (a, x), (da, dx) = primals, tangents
    out = log1p_per(a, x)
    return out, tangent_sum(
        out, (dx, lambda: dx / (1 + a * x)), (da, lambda: -x * x * curvature(a * x) * da)
    )


@jax.custom_jvp
def half_log(r: Array, b: Array) -> Array:
    """`b * log(1 + r**2 / b) / 2`: 0 where b is 0, and `r**2 / 2` where it is infinite."""
    w = relative_square(r, b)
    near = 0.5 * r * r * jnp.where(w == 0, 1, jnp.log1p(w) / w)
    # The square may overflow.
    far = b * (jnp.log(jnp.abs(r)) - 0.5 * jnp.log(b)) + 0.5 * b * jnp.log1p(1 / w)
    return jnp.where(b == 0, 0, jnp.where(w > 1, far, near))


@partial(half_log.defjvp, symbolic_zeros=True)
def _half_log_rule(primals, tangents):
    # With w = r**2 / b:  d half_log = r / (1 + w) * dr + bend(w) / 2 * db
    # By b it is infinite at 0, which is taken as 0.
    (r, b), (dr, db) = primals, tangents
    out, w = half_log(r, b), relative_square(r, b)

    # The square may overflow, and r be infinite.
    def by_r():
        far = (w > 1) & (b != 0)
        big = jnp.where(far, r, 1)
        return jnp.where(far, 1 / (1 / big + big / jnp.where(far, b, 1)), r / (1 + w))

    def by_b():
        beyond = jnp.isinf(w) & (b != 0)
        w_near = jnp.where((b == 0) | beyond, 0, w)
        return jnp.where(beyond, out / jnp.where(beyond, b, 1) - 0.5, 0.5 * bend(w_near))

    return out, tangent_sum(
        out,
        (dr, lambda: by_r() * dr),
        (db, lambda: by_b() * db),
    )


def relative_square(r: Array, b: Array) -> Array:
    """`r**2 / b`, infinite where b is 0."""
    big = largest(r.dtype)
    root = jnp.clip(r, -big, big) / jnp.sqrt(jnp.where(b == 0, 1, b))
    return jnp.where(b == 0, jnp.inf, root * root)


def stirling_rest(z: Array) -> Array:
    """`log gamma(z) - (z - 1/2) * log z + z - log(2 pi) / 2`, of a positive z: about 1 / (12 z)."""
    steps = _steps(z)
    low = z < steps
    out = _series_of_rest(1 / jnp.where(low, z + steps, z))
    for j in range(steps):
        out += jnp.where(low, _step_of_rest(jnp.where(low, z + j, 1)), 0)
    return out


def _steps(x: Array) -> int:
    """From where on the series is exact."""
    return 4 if x.dtype == jnp.float32 else 16


def _series_of_rest(inverse: Array) -> Array:
    numbers = [1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156]
    return inverse * polynomial(inverse * inverse, numbers)


def _step_of_rest(z: Array) -> Array:
    """By how much it falls from z to z + 1, `(z + 1/2) * log(1 + 1 / z) - 1`."""
    near = z >= 1
    x = 1 / (2 * jnp.where(near, z, 1) + 1)
    far = jnp.where(near, 1, z)
    return jnp.where(near, x * x * _odd(x), (far + 0.5) * jnp.log1p(1 / far) - 1)


def rising_log(y: Array, a: Array) -> Array:
    """`log gamma(y + 1 / a) - log gamma(1 / a) + y * log a`, 0 where a is 0.

    Of a whole y it is the sum of `log(1 + j * a)` over j < y.
    """
    steps = _steps(a)
    low = a * steps > 1
    start = jnp.where(low, a / (1 + steps * jnp.where(low, a, 0)), a)
    w = start * y
    # By Stirling's formula from 1 / start on, and by steps up to there.
    rest = _series_of_rest(start / (1 + w)) - _series_of_rest(start)
    out = y * (1 + w) * (w * curvature(w)) - 0.5 * jnp.log1p(w) + rest
    more = jnp.where(low, a, 0)
    return (
        out
        + y * jnp.log1p(steps * more)
        - sum(jnp.log1p(y * (more / (1 + j * more))) for j in range(steps))
    )


def half_step_log(a: Array) -> Array:
    """`log gamma(x) - log gamma(x + 1/2) + log(x) / 2` of x = 1 / a, 0 where a is 0."""
    steps = _steps(a)
    low = a * steps > 1
    more = jnp.where(low, a, 0)
    start = jnp.where(low, a / (1 + steps * more), a)
    numbers = [1 / 8, -1 / 192, 1 / 640, -17 / 14336, 31 / 18432, -691 / 180224, 5461 / 425984]
    out = start * polynomial(start * start, numbers)
    for j in range(steps):
        out += 0.5 * jnp.log1p(0.25 * (more / (1 + j * more)) * (more / (1 + (j + 1) * more)))
    return out


LOG_2PI = math.log(2 * math.pi)
