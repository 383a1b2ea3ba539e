"""Likelihoods of counts and of positive numbers whose variance grows with the mean."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.logs import (
    LOG_2PI,
    bend,
    log1p_per,
    polynomial,
    rising_log,
    stirling_rest,
    terms,
)
from jaxloss._core.numerics import expm1, one_or_nan, xlogy
from jaxloss._core.rules import jit_when_eager, tangent_sum


@takes(
    mean=("entries", "positive"),
    targets=("entries", "positive"),
    dispersion=("entries", "positive"),
)
def negative_binomial_nll(
    mean: ArrayLike,
    targets: ArrayLike,
    dispersion: ArrayLike,
    *,
    full: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""Negative log-likelihood of counts whose variance is `mean + dispersion * mean**2`.

    With m the mean, t the count and a the dispersion, of which 1 / a is the number of successes:

        loss = (t + 1 / a) * log(1 + a * m) - t * log(m) - s(t, a)
        s(t, a) = lgamma(t + 1 / a) - lgamma(1 / a) + t * log(a)

    plus `log(t!)` with `full=True`. s is the sum of `log(1 + j * a)` over the whole j below t. A
    dispersion of 0 is the limit, `poisson_nll(m, t, log_input=False)`, and small ones lose no
    digits.

    Args:
        mean: m, at least 0, any shape and floating dtype.
        targets: counts t, at least 0 (not necessarily whole), of the shape of `mean`, a scalar, or
            of the same rank with axes of size 1.
        dispersion: a, at least 0, shaped like `targets`; it may be learned.
        full: whether to add the constant.
        where: booleans shaped like `mean`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64 means); NaN
        for anything negative, inf for a count of a mean of 0.

    Raises:
        TypeError: `mean` is not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by a dispersion of 0 is its limit, `(t - (t - m)**2) / 2`.

    References:
        Cameron and Trivedi, Regression Analysis of Count Data, 2013, section 3.3 (NB2).

    >>> import jax, jaxloss
    >>> print(jaxloss.negative_binomial_nll(jax.numpy.array([1.0, 4.0]), 2, 0.5))
    [1.2163954 1.2163954]
    """
    m, t, where = inputs.elementwise("mean", mean, "targets", targets, where)
    dispersion = checks.setting("dispersion", dispersion, "mean", m)
    return _negative_binomial(m, t, dispersion, where, full=full)


@partial(jit_when_eager, static_argnames="full")
def _negative_binomial(m, t, a, where, *, full):
    m, t, a = inputs.mask(where, m, t, jnp.broadcast_to(a, m.shape))
    loss = log1p_per(a, m) + t * jnp.log1p(a * m) - xlogy(t, m) - rising_log(t, a)
    if full:
        loss += gammaln(t + 1)
    loss *= one_or_nan((m >= 0) & (t >= 0) & (a >= 0), m.dtype)
    return inputs.masked(where, loss)


@takes(
    mean=("entries", "positive"),
    targets=("entries", "positive"),
    shape=("entries", "positive"),
)
def gamma_nll(
    mean: ArrayLike,
    targets: ArrayLike,
    shape: ArrayLike,
    *,
    full: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""Negative log-likelihood of positive numbers whose deviation is `mean / sqrt(shape)`.

    With m the mean, t the target and k the shape of the gamma distribution:

        loss = k * (t / m - log(t / m)) - k * log(k) + lgamma(k)

    plus `log(t)` with `full=True`. It is computed by `t / m - 1 - log(t / m)`, the deviance, and
    the rest of Stirling's formula, so that good fits and large shapes keep their digits.

    Args:
        mean: m, positive, any shape and floating dtype.
        targets: t, positive, of the shape of `mean`, a scalar, or of the same rank with axes of
            size 1.
        shape: k, positive, shaped like `targets`; it may be learned. 1 is exponential.
        full: whether to add what depends on the target only.
        where: booleans shaped like `mean`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64 means); NaN
        for anything negative and for a shape of 0, inf for a target or a mean of 0.

    Raises:
        TypeError: `mean` is not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    References:
        McCullagh and Nelder, Generalized Linear Models, 1989, chapter 8.

    >>> import jax, jaxloss
    >>> print(jaxloss.gamma_nll(jax.numpy.array([1.0, 4.0]), 2, 1.0))
    [1.3068528 1.1931472]
    """
    m, t, where = inputs.elementwise("mean", mean, "targets", targets, where)
    shape = checks.setting("shape", shape, "mean", m)
    return _gamma(m, t, shape, where, full=full)


@partial(jit_when_eager, static_argnames="full")
def _gamma(m, t, k, where, *, full):
    m, t = inputs.mask(where, m, t)
    k = inputs.masked_setting(where, k)
    rest = 0.5 * LOG_2PI - 0.5 * jnp.log(k) + stirling_rest(k)
    loss = k * _gamma_deviance(m, t) + rest
    if full:
        loss += jnp.log(t)
    loss *= one_or_nan((m >= 0) & (t >= 0) & (k > 0), m.dtype)
    return inputs.masked(where, loss)


@jax.custom_jvp
def _gamma_deviance(m: Array, t: Array) -> Array:
    """`t / m - 1 - log(t / m)`."""
    some = jnp.where(t > 0, t, 1)
    near = bend((m - some) / some)
    far = t / m - 1 - jnp.log(t / m)
    loss = jnp.where(abs(m - t) < 0.5 * t, near, far)
    return jnp.where((m == 0) | (t == 0), jnp.inf, loss)


@partial(_gamma_deviance.defjvp, symbolic_zeros=True)
def _gamma_deviance_rule(primals, tangents):
    # d deviance = (m - t) / m**2 * dm + (1 / m - 1 / t) * dt
    (m, t), (dm, dt) = primals, tangents
    out = _gamma_deviance(m, t)
    return out, tangent_sum(
        out, (dm, lambda: (m - t) / m / m * dm), (dt, lambda: _difference_of_inverses(m, t) * dt)
    )


@jax.custom_jvp
def _difference_of_inverses(m: Array, t: Array) -> Array:
    """`1 / m - 1 / t`."""
    return (t - m) / m / t


@_difference_of_inverses.defjvp
def _difference_of_inverses_rule(primals, tangents):
    (m, t), (dm, dt) = primals, tangents
    return _difference_of_inverses(m, t), dt / t / t - dm / m / m


@takes(mean=("entries", "positive"), targets=("entries", "positive"))
def tweedie_loss(
    mean: ArrayLike,
    targets: ArrayLike,
    *,
    power: ArrayLike = 1.5,
    where: ArrayLike | None = None,
) -> Array:
    r"""Half of Tweedie's unit deviance: of numbers that are often 0, whose variance is mean**power.

    With m the mean, t the target and p the power:

        loss = t**(2 - p) / ((1 - p) * (2 - p)) - t * m**(1 - p) / (1 - p) + m**(2 - p) / (2 - p)

    and its limits: `t * log(t / m) - t + m` at p = 1 (Poisson), `t / m - 1 - log(t / m)` at p = 2
    (gamma). It is the integral of `(t - s) / s**p` over s from m to t, and 0 where t = m.

    Args:
        mean: m, at least 0, any shape and floating dtype.
        targets: t, at least 0, of the shape of `mean`, a scalar, or of the same rank with axes of
            size 1.
        power: p, in [1, 2], one number, or a shape that broadcasts along the trailing axes. Between
            1 and 2 it is of sums of a Poisson number of gamma variables, as rain, or the claims of
            a year.
        where: booleans shaped like `mean`; elsewhere the loss is 0.

    Returns:
        The loss, of the shape of both together, in float32 (float64 for float64 means), at least 0;
        NaN for anything negative, inf for a target of a mean of 0, or for a target of 0 at p = 2.

    Raises:
        TypeError: `mean` is not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or the power is outside [1, 2].

    The derivative by the mean is `(m - t) / m**p`. Good fits keep their digits.

    References:
        Jorgensen, The Theory of Dispersion Models, 1997, chapter 4.

    >>> import jax, jaxloss
    >>> print(jaxloss.tweedie_loss(jax.numpy.array([1.0, 4.0]), 1.5))
    [0.10102051 0.6010205 ]
    """
    m, t, where = inputs.elementwise("mean", mean, "targets", targets, where)
    power = checks.setting("power", power, "mean", m, checks.Range(1.0, 2.0))
    return _tweedie(m, t, power, where)


@jit_when_eager
def _tweedie(m, t, p, where):
    m, t, p = inputs.mask(where, m, t, jnp.broadcast_to(p, m.shape))
    loss = _half_deviance(m, t, p) * one_or_nan((m >= 0) & (t >= 0), m.dtype)
    return inputs.masked(where, loss)


@jax.custom_jvp
def _half_deviance(m: Array, t: Array, p: Array) -> Array:
    return _deviance_by_logs(m, t, p)


@partial(_half_deviance.defjvp, symbolic_zeros=True)
def _half_deviance_rule(primals, tangents):
    # d loss = (m - t) / m**p * dm + (integral of 1 / s**p from m to t) * dt
    (m, t, p), (dm, dt, dp) = primals, tangents
    out = _half_deviance(m, t, p)

    def by_mean():
        return jnp.where(t == 0, m ** (1 - p), (m - t) * m**-p)

    def by_power():
        return jax.jvp(partial(_deviance_by_logs, m, t), (p,), (dp,))[1]

    return out, tangent_sum(
        out,
        (dm, lambda: by_mean() * dm),
        (dt, lambda: _power_integral(m, t, p) * dt),
        (dp, by_power),
    )


@jax.custom_jvp
def _power_integral(m: Array, t: Array, p: Array) -> Array:
    return _power_integral_by_logs(m, t, p)


def _power_integral_by_logs(m: Array, t: Array, p: Array) -> Array:
    return m ** (1 - p) * _power_log(_log_ratio(m, t), 1 - p)


@partial(_power_integral.defjvp, symbolic_zeros=True)
def _power_integral_rule(primals, tangents):
    (m, t, p), (dm, dt, dp) = primals, tangents
    out = _power_integral(m, t, p)

    def by_power():
        return jax.jvp(partial(_power_integral_by_logs, m, t), (p,), (dp,))[1]

    return out, tangent_sum(
        out, (dm, lambda: -(m**-p) * dm), (dt, lambda: t**-p * dt), (dp, by_power)
    )


def _deviance_by_logs(m: Array, t: Array, p: Array) -> Array:
    """With x = log(t / m): `m**(2 - p) * x**2 * exp[0, x, (2 - p) * x]`, a divided difference."""
    usual = (t > 0) & (m > 0)
    mean, target = jnp.where(usual, m, 1), jnp.where(usual, t, 1)
    x = _log_ratio(mean, target)
    near, c = jnp.abs(x) < 1.5, 2 - p
    small, large = jnp.where(near, x, 0), jnp.where(near, 1, x)
    # Sum over n of (1 + c + ... + c**n) * x**n / (n + 2)!
    series, power_sum, factor = jnp.zeros_like(x), jnp.zeros_like(x), 0.5 * jnp.ones_like(x)
    for n in range(terms(x, 14)):
        power_sum = 1 + c * power_sum
        series += power_sum * factor
        factor *= small / (n + 3)
    far = target / mean * _power_log(large, 1 - p) - _power_log(large, c)
    of_ratio = jnp.where(near, small * small * series, far)
    # Of a target or a mean of 0.
    alone = jnp.where(t == 0, m, 0)
    at_zero = jnp.where(alone > 0, jnp.where(alone > 0, alone, 1) ** c / jnp.where(c == 0, 1, c), 0)
    never = ((t > 0) & (m == 0)) | ((t == 0) & (m > 0) & (c == 0))
    return jnp.where(never, jnp.inf, jnp.where(usual, mean**c * of_ratio, at_zero))


def _power_log(x: Array, k: Array) -> Array:
    """`(exp(k * x) - 1) / k`, x where k is 0."""
    u = k * x
    small = jnp.abs(u) < 1
    coefficients = [1 / math.factorial(n + 1) for n in range(terms(x, 11))]
    far = jnp.where(small, 1, u)
    return x * jnp.where(small, polynomial(jnp.where(small, u, 0), coefficients), expm1(far) / far)


@jax.custom_jvp
def _log_ratio(m: Array, t: Array) -> Array:
    """`log(t / m)`."""
    return jnp.sign(t - m) * jnp.log1p(jnp.abs(t - m) / jnp.minimum(m, t))


@_log_ratio.defjvp
def _log_ratio_rule(primals, tangents):
    (m, t), (dm, dt) = primals, tangents
    return _log_ratio(m, t), dt / t - dm / m
