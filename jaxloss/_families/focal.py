"""Cross-entropies that weigh easy and hard examples differently."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.checks import Axis
from jaxloss._core.numerics import (
    clip_to_finite,
    clipped,
    largest,
    sigmoid,
    softplus,
    times,
    zero_or_nan,
)
from jaxloss._core.rows import (
    SoftRow,
    complement,
    elsewhere,
    entry,
    gap_to,
    log_complement,
    soft_row,
    softmax,
    weighted_gradient,
)
from jaxloss._core.rules import jit_when_eager, tangent_sum, with_fast_gradient
from jaxloss._core.split import class_shape, total
from jaxloss._families.binary import _bce
from jaxloss._families.categorical import softmax_cross_entropy_with_integer_labels


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
    checks.option("gamma", gamma, 0, float("inf"))
    x, z, where = inputs.elementwise("logits", logits, "labels", labels, where)
    if alpha is not None:
        checks.option("alpha", alpha, 0, 1)
        alpha = checks.setting("alpha", alpha, "logits", x)
    gamma = checks.setting("gamma", gamma, "logits", x)
    return _sigmoid_focal(x, z, alpha, gamma, where)


@jit_when_eager
def _sigmoid_focal(x, z, alpha, gamma, where):
    x, z = inputs.mask(where, x, z)
    loss = with_fast_gradient(_binary_focal, _binary_focal_with_gradient, ())(x, z, gamma)
    if alpha is not None:
        loss *= alpha * z + (1 - alpha) * (1 - z)
    return inputs.masked(where, loss)


def _binary_focal(x, z, gamma):
    x = clip_to_finite(x)
    return _wrong_power(x, z, jnp.broadcast_to(gamma, x.shape), 0, 0) * _bce(x, z, None)


# For training, value and gradient are arithmetic alone, each with constants of its own: see
# `binary._bce`. With s = exp(-|x|), v and u the weights of the likely and the unlikely side of x:
#   q = (v + u s) / (1 + s)      loss = q ** g * (log(1 + s) + v |x|)
#   d loss / dx = q ** g * ((1 - z) sigmoid(x) - z sigmoid(-x)) + g * (1 - 2 z) * r * loss
# with the r from below.


def _binary_focal_with_gradient(x, z, gamma):
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


def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Array:
    r"""Focal loss of `softmax(logits)`: cross-entropy that plays down easy examples.

    With x the logits, y the labels and p the softmax of one row:

        loss = -sum_j alpha_j * y_j * (1 - p_j)**gamma * log(p_j)

    Args:
        logits: unnormalised log-probabilities, floating, classes along `axis`. A logit of
            -inf excludes its class.
        labels: non-negative weights of the classes, usually a distribution: bool, integer or
            floating, of the shape of `logits` or of the same rank with axes of size 1.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `logits` to exclude classes (what their labels say is
            then ignored), or without the class axes to exclude rows.
        alpha: weight of the loss, a scalar or one for each class.
        gamma: exponent, at least 0; with 0 this is the (weighted) cross-entropy.

    Returns:
        The loss in nats, of the shape of `logits` without `axis`, in float32 (float64 for
        float64 logits); 0 where `where` leaves no class.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, `gamma` is negative, or `axis` is not one of the
            logits.

    `1 - p` and its logarithm are exact where p is close to one, so every derivative is finite
    for every gamma >= 0.

    References:
        Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002.

    >>> import jax, jaxloss
    >>> logits, labels = jax.numpy.array([20.0, 0.0]), jax.numpy.array([1.0, 0.0])
    >>> print(jaxloss.softmax_focal_loss(logits, labels, gamma=1.0))
    4.2483e-18
    """
    checks.option("gamma", gamma, 0, float("inf"))
    x, y, axis, live = inputs.dense("logits", logits, "labels", labels, axis, where)
    gamma = checks.scalar("gamma", gamma, x.dtype)
    if alpha is not None:
        alpha = class_weights(alpha, x, axis)
    return _softmax_focal(x, y, live, alpha, gamma, axis=axis)


def class_weights(alpha: ArrayLike, x: Array, axis: int) -> Array:
    """The weight of the loss, or one for each class, so that it multiplies `x`."""
    alpha = checks.numeric("alpha", alpha, x.dtype)
    if alpha.shape not in ((), (x.shape[axis],)):
        raise ValueError(
            f"alpha of shape {alpha.shape} is neither a scalar nor one weight for each of the "
            f"{x.shape[axis]} classes of {x.shape}"
        )
    return alpha.reshape(class_shape(x, axis)) if alpha.ndim else alpha


@partial(jit_when_eager, static_argnames="axis")
def _softmax_focal(x, y, live, alpha, gamma, *, axis):
    x, y = inputs.exclude(live, x, -jnp.inf), inputs.exclude(live, y, 0)
    if alpha is not None:
        y *= alpha
    exact, fast = partial(_focal, axis=axis), partial(_focal_with_gradient, axis=axis)
    loss = with_fast_gradient(exact, fast, axis)(x, y, gamma)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


def _focal(x, y, gamma, *, axis):
    easy = jnp.exp(times(jnp.broadcast_to(gamma, x.shape), log_complement(x, axis)))
    return total(y * easy * clip_to_finite(softmax(x, axis).nll), axis)


# The losses sum(y * f(p)) have the gradient p * sum(w) - w, with w = -y * p * f'(p), which is
# not negative. For training their value and gradient are written as arithmetic, anew in each
# pass over the row, and with constants of its own: see `rows`.


def _focal_with_gradient(x, y, gamma, *, axis):
    # f(p) = -(1-p)**gamma * log p  and  -p f'(p) = (1-p)**gamma * (1 + gamma * r),
    # with r = -p * log(p) / (1-p), which is one where p is.
    info, row = jnp.finfo(x.dtype), soft_row(x, y, axis)
    eps, tiny, big = float(info.eps), float(info.tiny), float(info.max)
    log_all = jnp.log1p(row.tail)
    at_top = jnp.where(row.tail < tiny, 1, log_all / jnp.maximum(row.tail, tiny))
    tail, log_all, log_tail, at_top = jax.lax.optimization_barrier(
        (row.tail, log_all, _log_tail(x, row, axis), at_top)
    )

    # Too much arithmetic for a pass of a reduction: the weights are written out, once.
    of = entry(x, row, 0)
    rest = jnp.maximum(tail + (1 - of.e), tiny)
    log_q = of.others * jnp.log(rest) + (1 - of.others) * log_tail - log_all
    easy = jnp.exp(gamma * log_q)
    r = of.others * (of.e * (jnp.minimum(of.gap, 200) + log_all) / rest)
    w = y * easy * (1 + gamma * (r + (1 - of.others) * at_top))

    behind = total(jnp.minimum((of.gap + log_all) * eps, big) * (y * easy), axis) / eps
    behind = jnp.where((row.top == jnp.inf) & (behind > 0), jnp.inf, behind)
    # The row is 0 without any class, and NaN with a NaN, where its gradient is.
    loss = jnp.where(row.scale == 0, 0 * total(y, axis), behind) + 0 * row.scale
    return loss, weighted_gradient(x, lambda _: w, row, axis)


def _log_tail(x: Array, row: SoftRow, axis: int) -> Array:
    """The logarithm of the sum of exp(-gap) over all but a sole largest class."""
    alone, top = jax.lax.optimization_barrier((row.alone, row.top))
    others = elsewhere(gap_to(x, alone, 40), 9)
    second = jnp.min(gap_to(x, top, 41) + 1e30 * (512 - others), axis, keepdims=True)
    second = jax.lax.optimization_barrier(jnp.minimum(second, 1e30))
    others = elsewhere(gap_to(x, alone, 42), 10)
    rest = total(jnp.exp(jnp.minimum(second - gap_to(x, top, 43), 0)) * others, axis)
    return jnp.maximum(jnp.log(rest / 1024), -1e30) - second


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""PolyLoss: cross-entropy of `softmax(logits)` with its first polynomial term changed.

    With x the logits, y the labels and p the softmax of one row:

        loss = sum_j y_j * (-log(p_j) + epsilon * (1 - p_j))

    Args:
        logits: unnormalised log-probabilities, floating, classes along `axis`. A logit of
            -inf excludes its class.
        labels: non-negative weights of the classes, usually a distribution: bool, integer or
            floating, of the shape of `logits` or of the same rank with axes of size 1.
        epsilon: coefficient of the first term; the paper suggests 2 for image
            classification, -1 for detection.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `logits` to exclude classes (what their labels say is
            then ignored), or without the class axes to exclude rows.

    Returns:
        The loss in nats, of the shape of `logits` without `axis`, in float32 (float64 for
        float64 logits); 0 where `where` leaves no class.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `axis` is not one of the logits.

    `1 - p`, like the cross-entropy, is exact where p is close to one.

    References:
        Leng et al., PolyLoss, 2022, arXiv:2204.12511.

    >>> import jax, jaxloss
    >>> logits, labels = jax.numpy.array([20.0, 0.0]), jax.numpy.array([1.0, 0.0])
    >>> print(jaxloss.poly_loss_cross_entropy(logits, labels))
    6.1834e-09
    """
    x, y, axis, live = inputs.dense("logits", logits, "labels", labels, axis, where)
    return _poly(x, y, live, checks.scalar("epsilon", epsilon, x.dtype), axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _poly(x, y, live, epsilon, *, axis):
    x, y = inputs.exclude(live, x, -jnp.inf), inputs.exclude(live, y, 0)

    def exact(x, y, epsilon):
        terms = epsilon * complement(x, axis) + softmax(x, axis).nll
        return total(times(y, terms), axis)

    fast = partial(_poly_with_gradient, axis=axis)
    loss = with_fast_gradient(exact, fast, axis)(x, y, epsilon)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


def _poly_with_gradient(x, y, epsilon, *, axis):
    # f(p) = -log p + epsilon * (1-p)  and  -p f'(p) = 1 + epsilon * p
    row = soft_row(x, y, axis)
    top, tail, scale = jax.lax.optimization_barrier((row.top, row.tail, row.scale))
    missing = total(y * (tail + (1 - jnp.exp(-gap_to(x, top, 11)))), axis)

    def weights(of):
        return y + y * ((epsilon * scale) * of.e)

    loss = row.loss + epsilon * scale * missing
    return loss, weighted_gradient(x, weights, row, axis)


def generalized_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    q: ArrayLike = 0.7,
    ignore_index: int | None = None,
) -> Array:
    r"""Bounded cross-entropy of `softmax(logits)`, for integer labels some of which are wrong.

    With x the logits of one row, k its label and p = softmax(x):

        loss = (1 - p_k**q) / q

    the cross-entropy in the limit of q = 0, and 1 - p_k, the probability of an error, at q = 1.

    Args:
        logits: unnormalised log-probabilities, floating, classes along `axis`. A logit of
            -inf excludes its class.
        labels: integers in [0, C), of the shape of `logits` without `axis`, or of that rank
            with axes of size 1. Any other label makes the loss and the gradient of its row
            NaN; under `jax.experimental.checkify` it is reported.
        axis: the class axis; for a tuple (None: all) the label is the flat index into them.
        where: booleans, shaped like `logits` to exclude classes, or without the class axes
            to exclude rows.
        q: from 0, trusting every label, to 1; a scalar, which may be traced.
        ignore_index: rows with this label cost 0 and have gradient 0, whatever their logits.

    Returns:
        The loss, in [0, 1 / q], of the shape of `labels`, in float32 (float64 for float64
        logits); 0 where `where` leaves no class, 1 / q where the label's class is excluded.

    Raises:
        TypeError: logits are not floating point, labels not integers, `where` not boolean.
        ValueError: shapes do not match, `q` is outside [0, 1], or `axis` is not one of the
            logits.

    The derivative by the logits is `p_k**q * (p - one_hot(k))`. It, and that by q, is exact
    also where p_k is close to one and where q is close or equal to zero.

    References:
        Zhang and Sabuncu, Generalized cross entropy loss for training deep neural networks
        with noisy labels, 2018, arXiv:1805.07836.

    >>> import jax, jaxloss
    >>> logits = jax.numpy.array([[20.0, 0.0], [0.0, 20.0]])
    >>> print(jaxloss.generalized_cross_entropy(logits, jax.numpy.array([0, 0])))
    [2.0612e-09 1.42857]
    """
    checks.option("q", q, 0, 1)
    nll = softmax_cross_entropy_with_integer_labels(
        logits, labels, axis, where, ignore_index=ignore_index
    )
    return bounded_nll(nll, checks.scalar("q", q, nll.dtype))


@jit_when_eager
def bounded_nll(nll, q):
    """`(1 - exp(-q * nll)) / q`, for a `nll` of inf too."""
    loss = _moment(clip_to_finite(nll), q, 0)
    return loss + jax.lax.stop_gradient(jnp.where(jnp.isinf(nll) & (q == 0), jnp.inf, 0))


# The functions
#   m_k = integral over u from 0 to n of u**k exp(-q u)
# are closed under differentiation: d m_k / dn = n**k exp(-q n), d m_k / dq = -m_(k+1).


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _moment(n: Array, q: Array, k: int) -> Array:
    y, safe_q = q * n, jnp.where(q == 0, 1, q)
    if k == 0:
        return jnp.where(y == 0, n, -jnp.expm1(-y) / safe_q)
    # By parts; for small y, where that cancels, a series of which all terms are positive:
    #   n**(k+1) / (k+1) * exp(-y) * (1 + y / (k+2) * (1 + y / (k+3) * ...)).
    by_parts = (k * _moment(n, q, k - 1) - _damped(n, q, k)) / safe_q
    small = jnp.where(y < k + 1, y, 0)
    series = jnp.ones_like(small)
    for j in range(30, 0, -1):
        series = 1 + small / (k + 1 + j) * series
    return jnp.where(y < k + 1, _damped(n, q, k) * n / (k + 1) * series, by_parts)


def _damped(n, q, k):
    """`n**k * exp(-q n)`, not as infinity times zero."""
    return (n * jnp.exp(-q * n / k)) ** k if k else jnp.exp(-q * n)


@partial(_moment.defjvp, symbolic_zeros=True)
def _moment_rule(k, primals, tangents):
    (n, q), (dn, dq) = primals, tangents
    out = _moment(n, q, k)
    return out, tangent_sum(
        out,
        (dn, lambda: _damped(n, q, k) * dn),
        (dq, lambda: -_moment(n, q, k + 1) * dq),
    )
