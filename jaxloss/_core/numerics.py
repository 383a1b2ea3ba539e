"""Stable elementwise pieces with their derivative rules; the losses are built from these.

Each piece is a `jax.custom_jvp` whose rule calls the pieces again, so every order
of derivative is as accurate as the value. Nothing here subtracts two large numbers
to get a small one, and no rule multiplies a zero by an infinity.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxloss._core import passes
from jaxloss._core.rules import tangent_sum, with_fast_value


def compute_dtype(dtype: DTypeLike) -> jnp.dtype:
    """The dtype a loss is computed and returned in: float32, or float64 if given that."""
    return jnp.dtype(jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32)


def largest(dtype: DTypeLike) -> float:
    return float(jnp.finfo(dtype).max)


def nan_unless(valid: Array, x: Array) -> Array:
    """`x` where valid, else NaN: as 0 / 0, so that `jax_debug_nans` sees no NaN before its time."""
    one = valid.astype(x.dtype)
    return jnp.where(valid, x, one / one)


def one_or_nan(valid: Array, dtype: DTypeLike) -> Array:
    """1 where valid, else NaN: as a factor it makes the value NaN, and its derivatives too."""
    return nan_unless(valid, jnp.ones_like(valid, dtype))


def defined(x: Array) -> Array:
    """`x`, with a derivative of NaN where it is NaN, for a loss that is linear in it."""
    return x * one_or_nan(~jnp.isnan(x), x.dtype)


def nonnegative(x: Array) -> Array:
    """`x`, with NaN, in value and derivative, for what is below zero."""
    return x * one_or_nan(~(x < 0), x.dtype)


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))`."""
    return jax.lax.logistic(x)


@sigmoid.defjvp
def _sigmoid_rule(primals, tangents):
    # The usual rule, s * (1 - s), is zero once s rounds to one.
    (x,), (dx,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * dx


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """`log(1 + exp(x))`, which is `-log sigmoid(-x)`."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_rule(primals, tangents):
    (x,), (dx,) = primals, tangents
    return softplus(x), sigmoid(x) * dx


@jax.custom_jvp
def expm1(x: Array) -> Array:
    """`exp(x) - 1`."""
    return jnp.expm1(x)


@expm1.defjvp
def _expm1_rule(primals, tangents):
    # The usual rule, expm1(x) + 1, has lost the digits of a small exponential.
    (x,), (dx,) = primals, tangents
    return expm1(x), jnp.exp(x) * dx


def relu(x: Array) -> Array:
    """`max(x, 0)`, with derivative 1/2 at zero: the mean of the sides."""
    return with_fast_value(_relu, lambda x: jnp.maximum(x, passes.nan_of(x)))(x)


@jax.custom_jvp
def _relu(x: Array) -> Array:
    return jnp.where(x < 0, 0, x)


@_relu.defjvp
def _relu_rule(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _relu(x), heaviside(x) * dx


def heaviside(x: Array) -> Array:
    """0 below zero, 1 above, and 1/2 at zero: the mean of the sides. Its derivative is 0."""
    x = lax.stop_gradient(x)
    return jnp.where(x < 0, 0, jnp.where(x > 0, 1, 0.5 + x))  # Or NaN, where that is x.


@jax.custom_jvp
def absolute(x: Array) -> Array:
    """`|x|`, with derivative 0 at zero."""
    return jnp.abs(x)


@absolute.defjvp
def _absolute_rule(primals, tangents):
    (x,), (dx,) = primals, tangents
    return absolute(x), jnp.sign(x) * dx


@jax.custom_jvp
def tanh(x: Array) -> Array:
    return jnp.tanh(x)


@tanh.defjvp
def _tanh_rule(primals, tangents):
    # 1 - tanh(x)**2 is zero once tanh(x) rounds to one.
    (x,), (dx,) = primals, tangents
    return tanh(x), 4 * sigmoid(2 * x) * sigmoid(-2 * x) * dx


@jax.custom_jvp
def clip_to_finite(x: Array) -> Array:
    """`x`, with infinities replaced by a huge number; its derivative is one there too.

    For a factor of what may be zero: a term that does not exist must not become NaN.
    """
    # An eighth of the largest number leaves room for a few to be added up.
    limit = largest(x.dtype) / 8
    return jnp.where(x > limit, limit, jnp.where(x < -limit, -limit, x))


@clip_to_finite.defjvp
def _finite_rule(primals, tangents):
    (x,), (dx,) = primals, tangents
    return clip_to_finite(x), dx


@jax.custom_jvp
def straight_through(value: Array, x: Array) -> Array:
    """`value`, with every derivative of `x`."""
    return value


@straight_through.defjvp
def _straight_through_rule(primals, tangents):
    return straight_through(*primals), tangents[1]


def clip_straight_through(x: Array, low: float, high: float) -> Array:
    """`x` clipped to [low, high], but with a derivative of one outside too: none vanishes there."""
    return straight_through(lax.stop_gradient(jnp.clip(x, low, high)), x)


@jax.custom_jvp
def times(w: Array, x: Array) -> Array:
    """`w * x`, where a weight of zero wins over an infinite or undefined `x`."""
    return jnp.where(w == 0, 0, w * x)


@partial(times.defjvp, symbolic_zeros=True)
def _times_rule(primals, tangents):
    (w, x), (dw, dx) = primals, tangents
    out = times(w, x)
    return out, tangent_sum(out, (dw, lambda: dw * clip_to_finite(x)), (dx, lambda: w * dx))


@jax.custom_jvp
def ratio(w: Array, p: Array) -> Array:
    """`w / p` with `0 / 0 = 0`: the derivative of `w log p`, NaN for a negative `p`."""
    missing = (w == 0) & (p == 0)
    return nan_unless(~(p < 0), jnp.where(missing, 0, w / jnp.where(missing, 1, p)))


@partial(ratio.defjvp, symbolic_zeros=True)
def _ratio_rule(primals, tangents):
    # Not w / p**2, which overflows, and is 0 * inf where there is no term.
    (w, p), (dw, dp) = primals, tangents
    out = ratio(w, p)
    return out, tangent_sum(out, (dw, lambda: dw / p), (dp, lambda: -ratio(out, p) * dp))


@jax.custom_jvp
def xlogy(w: Array, p: Array) -> Array:
    """`w * log(p)` with `0 * log 0 = 0`; NaN for a negative `p`, whatever the weight."""
    # No selects, for a sum on a CPU: see `passes`. The root is NaN even where a compiler knows
    # that the weight is 0 and makes the product 0.
    beyond_zero = jnp.maximum(float(jnp.finfo(p.dtype).tiny) - jnp.abs(w), 0)
    return w * jnp.log(p + beyond_zero) + 0 * jnp.sqrt(p)


@partial(xlogy.defjvp, symbolic_zeros=True)
def _xlogy_rule(primals, tangents):
    (w, p), (dw, dp) = primals, tangents
    out = xlogy(w, p)
    return out, tangent_sum(
        out, (dw, lambda: dw * clip_to_finite(jnp.log(p))), (dp, lambda: ratio(w, p) * dp)
    )


@jax.custom_jvp
def xlog1my(w: Array, p: Array) -> Array:
    """`w * log(1 - p)` with `0 * log 0 = 0`; NaN for a `p` above one, whatever the weight.

    The weight is 0, or at least the step of numbers below one, as `1 - z` is.
    """
    below_one = jnp.maximum(float(jnp.finfo(p.dtype).epsneg) - jnp.abs(w), 0)
    return w * jnp.log1p(below_one - p) + 0 * jnp.sqrt(1 - p)


@partial(xlog1my.defjvp, symbolic_zeros=True)
def _xlog1my_rule(primals, tangents):
    (w, p), (dw, dp) = primals, tangents
    out = xlog1my(w, p)
    return out, tangent_sum(
        out, (dw, lambda: dw * clip_to_finite(jnp.log1p(-p))), (dp, lambda: -ratio(w, 1 - p) * dp)
    )
