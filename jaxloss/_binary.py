"""Binary cross-entropies: one probability an element."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss import _checks, _inputs
from jaxloss._numerics import (
    clipped,
    finite,
    largest,
    one_program,
    sigmoid,
    softplus,
    tangent_sum,
    times,
    with_gradient,
    xlog1my,
    xlogy,
    zero_or_nan,
)


def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: ArrayLike = 0.0,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy of `sigmoid(logits)` against labels in [0, 1], element by element.

    With x a logit, z its label and w its `pos_weight` (1 if absent):

        loss = (1 - z) * softplus(x) + w * z * softplus(-x)

    computed as `|x| * ((1 - z) if x >= 0 else w z) + ((1 - z) + w z) * log1p(exp(-|x|))`.

    Args:
        logits: log-odds of the positive class, any shape and floating dtype.
        labels: probability of the positive class, in [0, 1]: bool, integer or floating, of
            the shape of `logits`, a scalar, or of the same rank with axes of size 1.
        label_smoothing: s in [0, 1]; replaces z by `z * (1 - s) + s / 2`.
        pos_weight: weight of the positive class, to balance classes; shaped like `labels`.
        where: booleans shaped like `labels`; elsewhere the loss is 0, whatever the logits.

    Returns:
        The loss in nats, of the shape of `logits` and `labels` together, in float32
        (float64 for float64 logits). Correct infinite logits cost 0, wrong ones inf.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match; `label_smoothing` is outside [0, 1].

    The derivative by the logits is `(1 - z) * sigmoid(x) - w * z * sigmoid(-x)`, exact to the
    last digits in both tails; at x = 0, z = 0 it is 1/2. Labels and `pos_weight` have
    derivatives too.

    References:
        TensorFlow, `sigmoid_cross_entropy_with_logits`,
        `weighted_cross_entropy_with_logits`.

    >>> import jax, jaxloss
    >>> print(jaxloss.sigmoid_binary_cross_entropy(jax.numpy.array([0.0, -30.0]), 1))
    [ 0.6931472 30.       ]
    >>> print(jax.grad(jaxloss.sigmoid_binary_cross_entropy)(0.0, 0.0))
    0.5
    """
    _checks.option("label_smoothing", label_smoothing, 0, 1)
    x, z, where = _inputs.elementwise("logits", logits, "labels", labels, where)
    if pos_weight is not None:
        pos_weight = _checks.setting("pos_weight", pos_weight, "logits", x)
    smoothing = _checks.given("label_smoothing", label_smoothing, x.dtype, x.shape)
    return _sigmoid_bce(x, z, smoothing, pos_weight, where)


@one_program
def _sigmoid_bce(x, z, smoothing, pos_weight, where):
    if pos_weight is not None:
        pos_weight = jnp.broadcast_to(pos_weight, x.shape)
    x, z = _inputs.mask(where, x, z)
    loss = _bce(x, z, pos_weight)
    if smoothing is not None:
        # The loss is linear in the label, and the label is (1 - s) z + s / 2.
        loss = (1 - smoothing) * loss + smoothing * _bce(x, jnp.full_like(x, 0.5), pos_weight)
    return _inputs.masked(where, loss)


@jax.custom_jvp
def _bce(x: Array, z: Array, w: Array | None) -> Array:
    # A reduction over arithmetic runs as one pass on XLA's CPU backend; a select, or a
    # subexpression or constant shared with the derivative, costs a pass of its own. Hence
    # minimum and maximum, and z - 1 here against 1 - z there. A power of two takes
    # infinities to finite numbers and back, so that an infinite logit times zero is zero.
    eps, big = float(jnp.finfo(x.dtype).eps), largest(x.dtype)
    wz = z if w is None else w * z
    weight = 1 if w is None else (1 - z) + wz
    wrong = jnp.minimum(jnp.maximum(x, 0) * eps, big) * (z - 1)
    wrong += jnp.maximum(jnp.minimum(x, 0) * eps, -big) * wz
    return weight * jnp.log1p(jnp.exp(-jnp.abs(x))) - wrong / eps


@partial(_bce.defjvp, symbolic_zeros=True)
def _bce_rule(primals, tangents):
    # d/dx = (1 - z) sigmoid(x) - w z sigmoid(-x)
    # d/dz = w softplus(-x) - softplus(x), which is -x for w = 1;  d/dw = z softplus(-x)
    x, z, w = primals
    dx, dz, dw = tangents
    wz = z if w is None else w * z
    out = _bce(x, z, w)
    terms = [
        (dx, lambda: ((1 - z) * sigmoid(x) - wz * sigmoid(-x)) * dx),
        (dz, lambda: (-x if w is None else w * softplus(-x) - softplus(x)) * dz),
    ]
    if w is not None:
        terms.append((dw, lambda: z * softplus(-x) * dw))
    return out, tangent_sum(out, *terms)


def binary_cross_entropy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy of probabilities against labels in [0, 1], element by element.

    With p a probability and z its label, and `0 * log 0 = 0`:

        loss = -z * log(p) - (1 - z) * log1p(-p)

    Nothing is clipped. Where a model has logits, `sigmoid_binary_cross_entropy` of those is
    more accurate: a p near 1 has lost the digits of 1 - p.

    Args:
        probabilities: of the positive class, any shape and floating dtype.
        labels: probability of the positive class, in [0, 1]: bool, integer or floating, of
            the shape of `probabilities`, a scalar, or of the same rank with axes of size 1.
        where: booleans shaped like `labels`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64
        probabilities); NaN for a p outside [0, 1].

    Raises:
        TypeError: probabilities are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by p is `(1 - z) / (1 - p) - z / p`, a term of weight zero being zero: at
    p = z = 0 it is 1, at p = z = 1 it is -1. By the label it is `log1p(-p) - log(p)`; where that
    is infinite, a huge number stands for it, so that a tangent of zero stays zero.

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.

    >>> import jax, jaxloss
    >>> print(jaxloss.binary_cross_entropy(jax.numpy.array([0.75, 1.0]), 1))
    [0.2876821 0.       ]
    """
    p, z, where = _inputs.elementwise("probabilities", probabilities, "labels", labels, where)
    return _probability_bce(p, z, where)


@one_program
def _probability_bce(p, z, where):
    p, z = _inputs.mask(where, p, z)
    return _inputs.masked(where, 0 - (xlogy(z, p) + xlog1my(1 - z, p)))


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Focal loss of `sigmoid(logits)`: cross-entropy that plays down easy examples.

    With p = sigmoid(x), z the label and `q = (1 - z) * p + z * (1 - p)`, the probability
    of the wrong class:

        loss = alpha_t * q ** gamma * sigmoid_binary_cross_entropy(x, z)

    where `alpha_t = alpha * z + (1 - alpha) * (1 - z)`, or 1 without `alpha`.

    Args:
        logits: log-odds of the positive class, any shape and floating dtype.
        labels: probability of the positive class, in [0, 1]: bool, integer or floating, of
            the shape of `logits`, a scalar, or of the same rank with axes of size 1.
        alpha: weight of the positive class against 1 - alpha of the negative one, in [0, 1].
        gamma: exponent, at least 0; with 0 this is the (weighted) cross-entropy.
        where: booleans shaped like `labels`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of `logits` and `labels` together, in float32
        (float64 for float64 logits).

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match; `alpha` or `gamma` is out of its range.

    Derivatives are finite for every gamma >= 0, also where q underflows: at infinite
    logits they are 0 on the right side and +-1 on the wrong side (times alpha_t).

    References:
        Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002.

    >>> import jax, jaxloss
    >>> print(jaxloss.sigmoid_focal_loss(jax.numpy.array([0.0, 4.0]), 1))
    [1.732868e-01 5.871571e-06]
    """
    _checks.option("gamma", gamma, 0, float("inf"))
    x, z, where = _inputs.elementwise("logits", logits, "labels", labels, where)
    if alpha is not None:
        _checks.option("alpha", alpha, 0, 1)
        alpha = _checks.setting("alpha", alpha, "logits", x)
    gamma = _checks.setting("gamma", gamma, "logits", x)
    return _sigmoid_focal(x, z, alpha, gamma, where)


@one_program
def _sigmoid_focal(x, z, alpha, gamma, where):
    x, z = _inputs.mask(where, x, z)
    loss = with_gradient(_focal, _focal_with_gradient, ())(x, z, gamma)
    if alpha is not None:
        loss *= alpha * z + (1 - alpha) * (1 - z)
    return _inputs.masked(where, loss)


def _focal(x, z, gamma):
    x = finite(x)
    return _wrong_power(x, z, jnp.broadcast_to(gamma, x.shape), 0, 0) * _bce(x, z, None)


# For training, value and gradient are arithmetic alone, each with constants of its own: see
# `_bce`. With s = exp(-|x|), v and u the weights of the likely and the unlikely side of x:
#   q = (v + u s) / (1 + s)      loss = q ** g * (log(1 + s) + v |x|)
#   d loss / dx = q ** g * ((1 - z) sigmoid(x) - z sigmoid(-x)) + g * (1 - 2 z) * r * loss
# with the r from below.


def _focal_with_gradient(x, z, gamma):
    # A power of two takes an infinite logit to a finite number and back.
    big, eps = largest(x.dtype), 2.0**-60
    of = _focal_terms(x, z, gamma, 1)
    easy = jnp.exp(gamma * (of.log_mix - of.log1p))
    value = easy * (of.log1p + jnp.minimum(eps * of.size, big) * of.likely / eps)
    of = _focal_terms(x, z, gamma, 4)
    easy = jnp.exp(-gamma * (of.log1p - of.log_mix))  # The value has gamma, this minus gamma.
    bce = of.log1p + jnp.minimum(of.size, big / 2) * of.likely
    return value, easy * (of.slope + of.easy_slope * bce)


class _Focal(NamedTuple):
    size: Array  # |x|
    log_mix: Array  # log(v + u s)
    log1p: Array  # log(1 + s)
    likely: Array  # v
    slope: Array  # (1 - z) sigmoid(x) - z sigmoid(-x)
    easy_slope: Array  # g * (1 - 2 * z) * r


def _focal_terms(x: Array, z: Array, gamma: Array, use: int) -> _Focal:
    one, tiny = 2.0**use, float(jnp.finfo(x.dtype).tiny) * (1 + use / 64)
    size = jnp.abs(x / one) * one
    s = jnp.exp(-size)
    # Near zero, where s is 1, the sides may have parts of each.
    limit = 2.0**-100 * one**2
    up = one + clipped(x, limit, one / limit)
    down, yes, no = 2 * one - up, one * z, one - one * z
    likely, unlikely = (up * no + down * yes) / (2 * one**2), (up * yes + down * no) / (2 * one**2)
    mix, log1p = likely + unlikely * s, jnp.log1p(s)
    # The log of 0, where s underflows; what is as small multiplies a loss that is zero.
    log_mix = jnp.log(mix)
    log_mix = jnp.maximum(log_mix, -200 - use) + zero_or_nan(
        log_mix, one, 0.0 if use == 1 else -0.0
    )
    per = one + one * s
    slope = (no * (up + down * s) - yes * (down + up * s)) / (2 * one) / per
    r = one * s / jnp.maximum(mix, tiny) / per
    return _Focal(size, log_mix, log1p, likely, slope, one * gamma * (no - yes) * r / one**2)


# With a = 1 - z and b = z, the probability of the wrong class is
#   q = a sigmoid(x) + b sigmoid(-x)
#   d log q = (a - b) r dx + (sigmoid(x) da + sigmoid(-x) db) / q
# with r = sigmoid(x) sigmoid(-x) / q, so the functions
#   q ** g * sigmoid(x) ** i * sigmoid(-x) ** j
# are closed under differentiation, and every order of derivative stays bounded where q,
# on the right side of a confident prediction, underflows.


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _wrong_power(x: Array, z: Array, g: Array, i: int, j: int) -> Array:
    exponent = times(g, _log_wrong(x, z)) - i * softplus(-x) - j * softplus(x)
    # What is larger multiplies a loss that is zero.
    limit = 0.9 * math.log(largest(x.dtype))
    return jnp.exp(jnp.where(exponent > limit, limit, exponent))


@partial(_wrong_power.defjvp, symbolic_zeros=True)
def _wrong_power_rule(i, j, primals, tangents):
    x, z, g = primals
    dx, dz, dg = tangents
    out = _wrong_power(x, z, g, i, j)

    def by_x():
        return out * (g * (1 - 2 * z) * _wrong_slope(x, z) + i * sigmoid(-x) - j * sigmoid(x)) * dx

    def by_z():
        down, up = _wrong_power(x, z, g - 1, i, j + 1), _wrong_power(x, z, g - 1, i + 1, j)
        return g * (down - up) * dz

    return out, tangent_sum(
        out, (dx, by_x), (dz, by_z), (dg, lambda: times(out, _log_wrong(x, z)) * dg)
    )


def _sides(x: Array, z: Array) -> tuple[Array, Array, Array]:
    """exp(-|x|), and the weights of the likely and the unlikely side of x in q."""
    return jnp.exp(-jnp.abs(x)), jnp.where(x >= 0, 1 - z, z), jnp.where(x >= 0, z, 1 - z)


def _log_wrong(x: Array, z: Array) -> Array:
    """log q, also where q underflows."""
    s, likely, unlikely = _sides(x, z)
    mixed = jnp.log(jnp.where(likely == 0, 1, likely + unlikely * s))
    return jnp.where(likely == 0, jnp.log(unlikely) - jnp.abs(x), mixed) - jnp.log1p(s)


@jax.custom_jvp
def _wrong_slope(x: Array, z: Array) -> Array:
    """r = sigmoid(x) * sigmoid(-x) / q."""
    s, likely, unlikely = _sides(x, z)
    mixed = s / jnp.where(likely == 0, 1, likely + unlikely * s)
    return jnp.where(likely == 0, 1 / jnp.where(likely == 0, unlikely, 1), mixed) / (1 + s)


@partial(_wrong_slope.defjvp, symbolic_zeros=True)
def _wrong_slope_rule(primals, tangents):
    (x, z), (dx, dz) = primals, tangents
    r = _wrong_slope(x, z)
    minus_one = -jnp.ones_like(x)

    def by_x():
        return r * (sigmoid(-x) - sigmoid(x) - (1 - 2 * z) * r) * dx

    def by_z():
        up, down = _wrong_power(x, z, minus_one, 1, 0), _wrong_power(x, z, minus_one, 0, 1)
        return r * (up - down) * dz

    return r, tangent_sum(r, (dx, by_x), (dz, by_z))
