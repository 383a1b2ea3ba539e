"""Regression losses: errors of one number.

At a kink every derivative is the mean of the one-sided ones: 0 for an exact fit.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.declare import takes
from jaxloss._core.numerics import absolute, heaviside, ratio, relu, tanh
from jaxloss._core.rules import jit_when_eager, tangent_sum


@takes(predictions="entries", targets="entries")
def squared_error(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Squared error, `(p - t)**2`, element by element.

    Args:
        predictions: p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1; 0 if absent.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in squared units of the targets, of the shape of both together, in float32
        (float64 for float64 predictions).

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    References:
        Bishop, Pattern Recognition and Machine Learning, 2006, section 1.5.5.

    >>> import jax, jaxloss
    >>> print(jaxloss.squared_error(jax.numpy.array([1.0, 3.0]), 1))
    [0. 4.]
    """
    return _squared(*_pair(predictions, targets, where))


@jit_when_eager
def _squared(p, t, where):
    return inputs.masked(where, _square(*inputs.mask(where, p, t)))


# Arithmetic, and nothing that value and gradient share, not even the error: see `binary`.


@jax.custom_jvp
def _square(p: Array, t: Array) -> Array:
    error = p - t
    return error * error


@partial(_square.defjvp, symbolic_zeros=True)
def _square_rule(primals, tangents):
    (p, t), (dp, dt) = primals, tangents
    out, slope = _square(p, t), -2 * (t - p)
    return out, tangent_sum(out, (dp, lambda: slope * dp), (dt, lambda: -slope * dt))


@takes(predictions="entries", targets="entries")
def l2_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Half of the squared error, `(p - t)**2 / 2`, whose derivative is the error itself.

    Args, returns and raises: see `squared_error`.

    References:
        Bishop, Pattern Recognition and Machine Learning, 2006, section 3.1.1.

    >>> import jax, jaxloss
    >>> print(jaxloss.l2_loss(jax.numpy.array([1.0, 3.0]), 1))
    [0. 2.]
    """
    return _half_squared(*_pair(predictions, targets, where))


@jit_when_eager
def _half_squared(p, t, where):
    return inputs.masked(where, 0.5 * _square(*inputs.mask(where, p, t)))


@takes(predictions="entries", targets="entries")
def absolute_error(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Absolute error, `|p - t|`, element by element.

    Args and raises: see `squared_error`.

    Returns:
        The loss in units of the targets, of the shape of both together, in float32 (float64
        for float64 predictions).

    The derivative is the sign of p - t, 0 for an exact fit.

    References:
        Koenker and Bassett, Regression Quantiles, 1978 (the median).

    >>> import jax, jaxloss
    >>> print(jaxloss.absolute_error(jax.numpy.array([1.0, 3.0]), 2))
    [1. 1.]
    >>> print(jax.grad(jaxloss.absolute_error)(2.0, 2.0))
    0.0
    """
    return _absolute(*_pair(predictions, targets, where))


@jit_when_eager
def _absolute(p, t, where):
    error = inputs.residual(p, t, where)
    return inputs.masked(where, absolute(error))


@takes(predictions="entries", targets="entries", delta=("entries", "positive"))
def huber_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    delta: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Huber loss: half the squared error near the target, linear beyond `delta`.

    With e = p - t:

        loss = e**2 / 2                          where |e| <= delta
        loss = delta**2 / 2 + delta * (|e| - delta)    elsewhere

    Args:
        predictions: p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1; 0 if absent.
        delta: error from which on the loss is linear, at least 0; shaped like `targets`.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in squared units of the targets, of the shape of both together, in float32
        (float64 for float64 predictions).

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `delta` is negative.

    The derivative is the error, clipped to [-delta, delta]; the second derivative at
    |e| = delta is that of the inside, 1.

    References:
        Huber, Robust Estimation of a Location Parameter, 1964.

    >>> import jax, jaxloss
    >>> print(jaxloss.huber_loss(jax.numpy.array([0.5, 3.0]), 0))
    [0.125 2.5  ]
    """
    p, t, where = _pair(predictions, targets, where)
    delta = checks.setting("delta", delta, "predictions", p, checks.NONNEGATIVE)
    return _huber(p, t, delta, where)


@jit_when_eager
def _huber(p, t, delta, where):
    p, t = inputs.mask(where, p, t)
    return inputs.masked(where, _huber_of(p, t, jnp.broadcast_to(delta, p.shape)))


@jax.custom_jvp
def _huber_of(p: Array, t: Array, delta: Array) -> Array:
    size = jnp.abs(p - t)
    bounded = jnp.minimum(size, delta)
    return bounded * (size - 0.5 * bounded)


@partial(_huber_of.defjvp, symbolic_zeros=True)
def _huber_rule(primals, tangents):
    (p, t, delta), (dp, dt, d_delta) = primals, tangents
    out, slope = _huber_of(p, t, delta), -_bounded(t - p, delta)
    return out, tangent_sum(
        out,
        (dp, lambda: slope * dp),
        (dt, lambda: -slope * dt),
        (d_delta, lambda: relu(absolute(p - t) - delta) * d_delta),
    )


@jax.custom_jvp
def _bounded(x: Array, limit: Array) -> Array:
    """`x` clipped to [-limit, limit], with a derivative of one at the ends."""
    return 0.25 * jnp.sign(x) * jnp.minimum(4 * jnp.abs(x), 4 * limit)


@partial(_bounded.defjvp, symbolic_zeros=True)
def _bounded_rule(primals, tangents):
    (x, limit), (dx, d_limit) = primals, tangents
    out, inside = _bounded(x, limit), (absolute(x) <= limit).astype(x.dtype)
    return out, tangent_sum(
        out, (dx, lambda: inside * dx), (d_limit, lambda: (1 - inside) * jnp.sign(x) * d_limit)
    )


@takes(
    predictions="entries",
    targets="entries",
    width=("entries", "positive"),
    curvature=("entries", "positive"),
)
def wing_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    width: ArrayLike = 10.0,
    curvature: ArrayLike = 2.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Wing loss: logarithmic near the target, so that small errors count, and linear beyond.

    With e = p - t, w the `width` and c the `curvature`:

        loss = w * log(1 + |e| / c)                    where |e| < w
        loss = |e| - w + w * log(1 + w / c)            elsewhere

    Args:
        predictions: p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1.
        width: error from which on the loss is linear, at least 0; shaped like `targets`.
        curvature: error from which on the logarithm bends, positive; shaped like `targets`.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in units of the targets, of the shape of both together, in float32 (float64
        for float64 predictions).

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, `width` is negative, or `curvature` is not positive.

    The derivative by p is `sign(e) * w / (c + |e|)` near the target and `sign(e)` beyond. There
    are two kinks, and their derivatives are the means of the sides: 0 for an exact fit, with
    w / c on either side, and `sign(e) * (w / (c + w) + 1) / 2` at |e| = w. The settings have
    derivatives too.

    References:
        Feng et al., Wing Loss for Robust Facial Landmark Localisation with Convolutional Neural
        Networks, 2018, arXiv:1711.06753.

    >>> import jax, jaxloss
    >>> print(jaxloss.wing_loss(jax.numpy.array([2.0, 12.0]), 0))
    [ 6.931472 19.917595]
    >>> print(jax.grad(jaxloss.wing_loss)(0.0, 0.0))
    0.0
    """
    p, t, where = _pair(predictions, targets, where)
    width = checks.setting("width", width, "predictions", p, checks.NONNEGATIVE)
    positive = checks.positive_range(p.dtype)
    curvature = checks.setting("curvature", curvature, "predictions", p, positive)
    return _wing(p, t, width, curvature, where)


@jit_when_eager
def _wing(p, t, width, curvature, where):
    p, t = inputs.mask(where, p, t)
    width, curvature = (jnp.broadcast_to(a, p.shape) for a in (width, curvature))
    return inputs.masked(where, _wing_of(p, t, width, curvature))


@jax.custom_jvp
def _wing_of(p: Array, t: Array, w: Array, c: Array) -> Array:
    size = jnp.abs(p - t)
    near = w * jnp.log1p(jnp.minimum(size, w) / c)
    return jnp.where(size > w, near + (size - w), near)


@partial(_wing_of.defjvp, symbolic_zeros=True)
def _wing_rule(primals, tangents):
    # With h = 0, 1/2 and 1 for an |e| below, at and beyond w, and n = min(|e|, w):
    #   d/d|e| = (1 - h) w / (c + |e|) + h
    #   d/dw = log(1 + n / c) - h c / (c + w)    d/dc = -w n / (c (c + n))
    (p, t, w, c), (dp, dt, dw, dc) = primals, tangents
    out, size = _wing_of(p, t, w, c), absolute(p - t)
    beyond, near = heaviside(size - w), jnp.minimum(size, w)
    slope = jnp.sign(p - t) * ((1 - beyond) * w / (c + size) + beyond)
    return out, tangent_sum(
        out,
        (dp, lambda: slope * dp),
        (dt, lambda: -slope * dt),
        (dw, lambda: (jnp.log1p(near / c) - beyond * c / (c + w)) * dw),
        (dc, lambda: -w / c * near / (c + near) * dc),
    )


@takes(predictions="entries", targets="entries")
def log_cosh(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Logarithm of the hyperbolic cosine of the error, `log(cosh(p - t))`.

    About half the squared error for small errors, the absolute error less log 2 for large
    ones; computed without cancellation in between and below.

    Args, raises: see `squared_error`.

    Returns:
        The loss, of the shape of both together, in float32 (float64 for float64 predictions).

    The derivative is `tanh(p - t)`.

    References:
        Chen et al., Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder, 2019.

    >>> import jax, jaxloss
    >>> print(jaxloss.log_cosh(jax.numpy.array([0.0001, 100.0]), 0))
    [5.0000e-09 9.9307e+01]
    """
    return _log_cosh(*_pair(predictions, targets, where))


@jit_when_eager
def _log_cosh(p, t, where):
    return inputs.masked(where, _log_cosh_of(*inputs.mask(where, p, t)))


@jax.custom_jvp
def _log_cosh_of(p: Array, t: Array) -> Array:
    # cosh(h) = 1 + (1 - r)**2 / (2 r)  with r = exp(-h), and from 16 on it doubles in exp(h).
    size = jnp.abs(p - t)
    near = jnp.minimum(size, 16)
    gap = jnp.expm1(-near)
    return (size - near) + jnp.log1p(0.5 * gap * gap * jnp.exp(near))


@partial(_log_cosh_of.defjvp, symbolic_zeros=True)
def _log_cosh_rule(primals, tangents):
    (p, t), (dp, dt) = primals, tangents
    out, slope = _log_cosh_of(p, t), -tanh(t - p)
    return out, tangent_sum(out, (dp, lambda: slope * dp), (dt, lambda: -slope * dt))


@takes(predictions="entries", targets="entries", quantile=("entries", "probability"))
def quantile_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    quantile: ArrayLike = 0.5,
    where: ArrayLike | None = None,
) -> Array:
    r"""Quantile (pinball) loss, which is least at the given quantile of the targets.

        loss = quantile * max(t - p, 0) + (1 - quantile) * max(p - t, 0)

    Args:
        predictions: p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1.
        quantile: in [0, 1], shaped like `targets`; 0.5 gives half of the absolute error. For
            several quantiles give predictions an axis for them.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in units of the targets, of the shape of both together, in float32 (float64
        for float64 predictions).

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `quantile` is outside [0, 1].

    The derivative by p is `-quantile` below the target, `1 - quantile` above, and their mean
    for an exact fit.

    References:
        Koenker and Bassett, Regression Quantiles, 1978.

    >>> import jax, jaxloss
    >>> print(jaxloss.quantile_loss(jax.numpy.array([0.0, 2.0]), 1, quantile=0.75))
    [0.75 0.25]
    """
    p, t, where = _pair(predictions, targets, where)
    quantile = checks.setting("quantile", quantile, "predictions", p, checks.SHARE)
    return _quantile(p, t, quantile, where)


@jit_when_eager
def _quantile(p, t, quantile, where):
    p, t = inputs.mask(where, p, t)
    return inputs.masked(where, _pinball(p, t, jnp.broadcast_to(quantile, p.shape)))


@jax.custom_jvp
def _pinball(p: Array, t: Array, q: Array) -> Array:
    return jnp.maximum((1 - q) * (p - t), -q * (p - t))


@partial(_pinball.defjvp, symbolic_zeros=True)
def _pinball_rule(primals, tangents):
    # d loss = slope * (dp - dt) + (t - p) * dq, with a slope of 1 - q, 1/2 - q or -q: above the
    # target, on it and below.
    (p, t, q), (dp, dt, dq) = primals, tangents
    out, slope = _pinball(p, t, q), heaviside(p - t) - q
    return out, tangent_sum(
        out, (dp, lambda: slope * dp), (dt, lambda: -slope * dt), (dq, lambda: (t - p) * dq)
    )


@takes(predictions="entries", targets=("entries", "positive"), epsilon=("entries", "positive"))
def absolute_percentage_error(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 1e-7,
    where: ArrayLike | None = None,
) -> Array:
    r"""Absolute error in percent of the target, `100 * |p - t| / max(|t|, epsilon)`.

    Args:
        predictions: p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1.
        epsilon: smallest size of a target that an error is divided by, at least 0. A target
            of zero so costs `100 * |p| / epsilon`; mask it, or choose epsilon by the scale of
            the data, if that is too much. With epsilon 0 it costs inf, or 0 for an exact fit.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in percent, of the shape of both together, in float32 (float64 for float64
        predictions).

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `epsilon` is negative.

    The derivative by p is 0 for an exact fit.

    References:
        Keras, `mean_absolute_percentage_error`; de Myttenaere et al., 2016,
        arXiv:1605.02541.

    >>> import jax, jaxloss
    >>> print(jaxloss.absolute_percentage_error(jax.numpy.array([1.5, 4.0]), 2))
    [ 25. 100.]
    """
    p, t, where = _pair(predictions, targets, where)
    epsilon = checks.setting("epsilon", epsilon, "predictions", p, checks.NONNEGATIVE)
    return _percentage(p, t, epsilon, where)


@jit_when_eager
def _percentage(p, t, epsilon, where):
    p, t = inputs.mask(where, p, t)
    epsilon = epsilon + jnp.zeros_like(p)  # Sharded as p.
    return inputs.masked(where, 100 * _relative_error(p, t, epsilon))


@jax.custom_jvp
@passes.own_pass
def _relative_error(p: Array, t: Array, epsilon: Array) -> Array:
    """`|p - t| / max(|t|, epsilon)`, with 0 / 0 = 0: where the error is 0, the divisor is not."""
    error, tiny = jnp.abs(p - t), float(jnp.finfo(p.dtype).tiny)
    return error / jnp.maximum(jnp.maximum(jnp.abs(t), epsilon), tiny - error)


@partial(_relative_error.defjvp, symbolic_zeros=True)
def _relative_error_rule(primals, tangents):
    # With sign and size of the error and the target:  sign / size * (dp - p / t * dt),  or by
    # the floor that stands for a smaller size.
    (p, t, epsilon), (dp, dt, d_epsilon) = primals, tangents
    out = _relative_error(p, t, epsilon)
    floored = absolute(t) < epsilon
    slope = ratio(jnp.sign(p - t), jnp.where(floored, epsilon, absolute(t)))
    by_target = jnp.where(floored, 1, p / jnp.where(t == 0, 1, t))
    return out, tangent_sum(
        out,
        (dp, lambda: slope * dp),
        (dt, lambda: -slope * by_target * dt),
        (d_epsilon, lambda: -jnp.where(floored, out / epsilon, 0) * d_epsilon),
    )


@takes(predictions=("entries", "positive"), targets=("entries", "positive"))
def squared_log_error(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Squared difference of logarithms, `(log1p(p) - log1p(t))**2`.

    Args:
        predictions: p, at least -1, any shape and floating dtype.
        targets: t, at least -1, of the shape of `predictions`, a scalar, or of the same rank
            with axes of size 1.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss, of the shape of both together, in float32 (float64 for float64 predictions);
        NaN for anything below -1.

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The difference is taken before the logarithm, so the loss keeps its digits where p and t
    are close.

    References:
        Keras, `mean_squared_logarithmic_error` (which clips p and t from below).

    >>> import jax, jaxloss
    >>> print(jaxloss.squared_log_error(jax.numpy.array([0.0, 3.0]), 1))
    [0.48045 0.48045]
    """
    p, t, where = _pair(predictions, targets, where)
    return _squared_log(p, t, where)


@jit_when_eager
def _squared_log(p, t, where):
    p, t = inputs.mask(where, p, t)
    return inputs.masked(where, _log_ratio(p, t) ** 2)


@jax.custom_jvp
def _log_ratio(p: Array, t: Array) -> Array:
    """`log((1 + p) / (1 + t))`, as that of the larger by the smaller, with its sign."""
    smaller = 1 + jnp.minimum(p, t)
    # The root is there for its NaN below zero.
    relative = jnp.abs(p - t) / smaller + 0 * jnp.sqrt(smaller)
    return jnp.sign(p - t) * jnp.log1p(relative)


@_log_ratio.defjvp
def _log_ratio_rule(primals, tangents):
    (p, t), (dp, dt) = primals, tangents
    return _log_ratio(p, t), dp / (1 + p) - dt / (1 + t)


def _pair(predictions, targets, where):
    targets = 0 if targets is None else targets
    return inputs.elementwise("predictions", predictions, "targets", targets, where)
