"""Negative log-likelihoods: regression with a predicted distribution."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.declare import takes
from jaxloss._core.logs import LOG_2PI, half_log, half_step_log
from jaxloss._core.numerics import absolute, clip_to_finite, largest, one_or_nan, ratio, xlogy
from jaxloss._core.rules import jit_when_eager, tangent_sum


@takes(predictions="entries", targets=("entries", "positive"))
def poisson_nll(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    log_input: bool = True,
    full: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""Negative log-likelihood of counts under a Poisson distribution.

    With x the logarithm of the rate, or r the rate, and t the count:

        loss = exp(x) - t * x        log_input=True
        loss = r - t * log(r)        log_input=False, with 0 * log 0 = 0

    plus `log(t!)`, which does not depend on the prediction, with `full=True`.

    Args:
        predictions: log-rates, or rates, any shape and floating dtype.
        targets: counts, at least 0 (not necessarily whole), of the shape of `predictions`, a
            scalar, or of the same rank with axes of size 1.
        log_input: whether predictions are logarithms.
        full: whether to add the constant.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64
        predictions); NaN for a negative rate.

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    References:
        Cameron and Trivedi, Regression Analysis of Count Data, 2013, section 3.2; PyTorch,
        `poisson_nll_loss`, TensorFlow, `log_poisson_loss` (whose `full` uses Stirling's
        approximation; this one is exact).

    >>> import jax, jaxloss
    >>> print(jaxloss.poisson_nll(jax.numpy.array([0.0, 1.0]), jax.numpy.array([1, 2])))
    [1.        0.7182817]
    """
    x, t, where = inputs.elementwise("predictions", predictions, "targets", targets, where)
    return _poisson(x, t, where, log_input=log_input, full=full)


@partial(jit_when_eager, static_argnames=("log_input", "full"))
def _poisson(x, t, where, *, log_input, full):
    x, t = inputs.mask(where, x, t)
    loss = _log_rate_nll(x, t) if log_input else rate_nll(x, t, 0)
    if full:
        loss += gammaln(t + 1)
    return inputs.masked(where, loss)


@jax.custom_jvp
def _log_rate_nll(x: Array, t: Array) -> Array:
    """`exp(x) - t * x`, as `h * (h - t / h * x)` with h = exp(x / 2) for a positive x.

    The exponential alone may overflow where the difference does not.
    """
    root = jnp.exp(jnp.minimum(x, x / 2))
    h = jnp.maximum(root, 1)
    # Of an infinite x the exponential decides.
    return h * (root + passes.times(t / h, -jnp.minimum(x, largest(x.dtype))))


@partial(_log_rate_nll.defjvp, symbolic_zeros=True)
def _log_rate_rule(primals, tangents):
    (x, t), (dx, dt) = primals, tangents
    out = _log_rate_nll(x, t)
    return out, tangent_sum(
        out, (dx, lambda: (jnp.exp(x) - t) * dx), (dt, lambda: -clip_to_finite(x) * dt)
    )


def rate_nll(rate, t, floor):
    """`rate - t * log(rate + floor)`."""
    return rate - xlogy(t, jnp.minimum(rate + floor, largest(rate.dtype)))


@takes(predictions="entries", targets="entries", variance=("entries", "positive"))
def gaussian_nll(
    predictions: ArrayLike,
    targets: ArrayLike,
    variance: ArrayLike,
    *,
    full: bool = False,
    beta: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Negative log-likelihood under a Gaussian whose mean and variance are predicted.

        loss = (log(v) + (p - t)**2 / v) / 2

    plus `log(2 pi) / 2` with `full=True`, and times `stop_gradient(v**beta)`.

    Args:
        predictions: means p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1.
        variance: v, positive, shaped like `targets`.
        full: whether to add the constant.
        beta: in [0, 1], one number, or a shape that broadcasts along the trailing axes. With 1 the
            derivative by the mean is the error, as of a squared error, so that examples of large
            variance are not neglected; 1/2 is what the paper recommends.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64
        predictions); NaN for a negative variance, inf (the limit) for an error of variance 0.

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `beta` is outside [0, 1].

    The variance has no floor: add one, e.g. to a softplus, where a model may collapse.

    References:
        Nix and Weigend, Estimating the Mean and Variance of the Target Probability
        Distribution, 1994; PyTorch, `gaussian_nll_loss`; beta: Seitzer et al., On the Pitfalls of
        Heteroscedastic Uncertainty Estimation, 2022, arXiv:2203.09168.

    >>> import jax, jaxloss
    >>> print(jaxloss.gaussian_nll(jax.numpy.array([1.0, 3.0]), 1, 4.0))
    [0.6931472 1.1931472]
    """
    p, t, where = inputs.elementwise("predictions", predictions, "targets", targets, where)
    variance = checks.setting("variance", variance, "predictions", p)
    allowed = "predictions", p, checks.SHARE
    beta = checks.optional("beta", beta, checks.setting, *allowed)  # type: ignore[assignment]
    return _gaussian(p, t, variance, beta, where, full=full)


@partial(jit_when_eager, static_argnames="full")
def _gaussian(p, t, variance, beta, where, *, full):
    (variance,) = inputs.mask(where, jnp.broadcast_to(variance, p.shape))
    loss = _normal_nll(inputs.residual(p, t, where), variance)
    loss = loss + 0.5 * LOG_2PI if full else loss
    if beta is not None:
        loss *= lax.stop_gradient(variance**beta)
    return inputs.masked(where, loss)


@jax.custom_jvp
def _normal_nll(e: Array, v: Array) -> Array:
    """`(log(v) + e**2 / v) / 2`; at v = 0 its limit, which is -inf only without an error."""
    # Not the square over the variance, which may overflow.
    loss = 0.5 * (jnp.log(v) + e * ratio(e, v))
    return jnp.where((v == 0) & (e != 0), jnp.inf, loss)


@partial(_normal_nll.defjvp, symbolic_zeros=True)
def _normal_rule(primals, tangents):
    # With r = e / v:  d nll = r * de + (1 / v - r**2) / 2 * dv
    (e, v), (de, dv) = primals, tangents
    out, r = _normal_nll(e, v), ratio(e, v)

    def by_v():
        return jnp.where((v == 0) & (e != 0), -jnp.inf, 0.5 * (ratio(jnp.ones_like(v), v) - r * r))

    return out, tangent_sum(out, (de, lambda: r * de), (dv, lambda: by_v() * dv))


@takes(location="entries", targets="entries", scale=("entries", "positive"))
def laplace_nll(
    location: ArrayLike,
    targets: ArrayLike,
    scale: ArrayLike,
    *,
    full: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""Negative log-likelihood under a Laplace distribution: an absolute error with its scale.

        loss = log(scale) + |location - t| / scale

    plus `log(2)` with `full=True`.

    Args:
        location: the median, any shape and floating dtype.
        targets: t, of the shape of `location`, a scalar, or of the same rank with axes of size 1.
        scale: positive, shaped like `targets`; the mean absolute deviation.
        full: whether to add the constant.
        where: booleans shaped like `location`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64
        locations); NaN for a negative scale, inf (the limit) for an error of scale 0.

    Raises:
        TypeError: `location` is not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by the location is 0 for an exact fit.

    References:
        Kotz, Kozubowski and Podgorski, The Laplace Distribution and Generalizations, 2001.

    >>> import jax, jaxloss
    >>> print(jaxloss.laplace_nll(jax.numpy.array([1.0, 3.0]), 1, 2.0))
    [0.6931472 1.6931472]
    """
    p, t, where = inputs.elementwise("location", location, "targets", targets, where)
    scale = checks.setting("scale", scale, "location", p)
    return _laplace(p, t, scale, where, full=full)


@partial(jit_when_eager, static_argnames="full")
def _laplace(p, t, scale, where, *, full):
    (scale,) = inputs.mask(where, jnp.broadcast_to(scale, p.shape))
    loss = _double_exponential(absolute(inputs.residual(p, t, where)), scale)
    return inputs.masked(where, loss + math.log(2) if full else loss)


@jax.custom_jvp
def _double_exponential(size: Array, scale: Array) -> Array:
    """`log(scale) + size / scale`; at a scale of 0 its limit, -inf only without an error."""
    loss = jnp.log(scale) + ratio(size, scale)
    return jnp.where((scale == 0) & (size != 0), jnp.inf, loss)


@partial(_double_exponential.defjvp, symbolic_zeros=True)
def _double_exponential_rule(primals, tangents):
    # d nll = d size / scale + (1 - size / scale) / scale * d scale
    (size, scale), (d_size, d_scale) = primals, tangents
    out, one = _double_exponential(size, scale), jnp.ones_like(scale)

    def by_scale():
        return ratio(one - ratio(size, scale), scale)

    return out, tangent_sum(
        out, (d_size, lambda: ratio(one, scale) * d_size), (d_scale, lambda: by_scale() * d_scale)
    )


@takes(
    location="entries",
    targets="entries",
    scale=("entries", "positive"),
    df=("entries", "positive"),
)
def student_t_nll(
    location: ArrayLike,
    targets: ArrayLike,
    scale: ArrayLike,
    df: ArrayLike,
    *,
    full: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""Negative log-likelihood under a Student t distribution, which expects outliers.

    With r = (location - t) / scale and n the degrees of freedom `df`:

        loss = log(scale) + (n + 1) / 2 * log(1 + r**2 / n) + c(n)
        c(n) = lgamma(n / 2) - lgamma((n + 1) / 2) + log(n / 2) / 2

    plus `log(2 pi) / 2` with `full=True`. As n goes to infinity c goes to 0, and the loss to
    `gaussian_nll` of the variance `scale**2`; `df=inf` is that.

    Args:
        location: the median, any shape and floating dtype.
        targets: t, of the shape of `location`, a scalar, or of the same rank with axes of size 1.
        scale: positive, shaped like `targets`.
        df: n, positive, inf included, shaped like `targets`; it may be learned.
        full: whether to add the constant.
        where: booleans shaped like `location`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64
        locations); NaN for a negative scale, or for degrees of freedom that are not positive; inf
        for an error of scale 0.

    Raises:
        TypeError: `location` is not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    Large n keep their digits: nothing is a difference of two gamma functions.

    References:
        Lange, Little and Taylor, Robust Statistical Modeling Using the t Distribution, 1989.

    >>> import jax, jaxloss
    >>> print(jaxloss.student_t_nll(jax.numpy.array([0.0, 3.0]), 0, 1.0, 1.0, full=True))
    [1.1447299 3.4473152]
    """
    p, t, where = inputs.elementwise("location", location, "targets", targets, where)
    scale = checks.setting("scale", scale, "location", p)
    df = checks.setting("df", df, "location", p)
    return _student_t(p, t, scale, df, where, full=full)


@partial(jit_when_eager, static_argnames="full")
def _student_t(p, t, scale, df, where, *, full):
    (scale,) = inputs.mask(where, jnp.broadcast_to(scale, p.shape))
    df = inputs.masked_setting(where, df)
    df *= one_or_nan(df > 0, df.dtype)
    e = inputs.residual(p, t, where)
    tail = half_log(ratio(e, scale), jnp.broadcast_to(df, p.shape))
    loss = jnp.log(scale) + (tail + tail / df + half_step_log(2 / df))
    loss = jnp.where((scale == 0) & (e != 0), jnp.inf, loss)
    return inputs.masked(where, loss + 0.5 * LOG_2PI if full else loss)
