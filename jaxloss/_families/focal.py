"""Cross-entropies that weigh easy and hard examples differently."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.nll import Weights, soft_row, softmax_residual
from jaxloss._core.numerics import clip_to_finite, largest, sigmoid, softplus, times
from jaxloss._core.rows import complement, finite_gap, log_complement, softmax
from jaxloss._core.rules import jit_when_eager, tangent_sum, with_fast_gradient
from jaxloss._core.split import class_shape, sums, total
from jaxloss._families.binary import bce, bce_slope
from jaxloss._families.categorical import softmax_cross_entropy_with_integer_labels


@takes(
    logits=("entries", "logits"),
    labels=("entries", "bit"),
    alpha=("entries", "probability"),
    gamma=("entries", "positive"),
)
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
    x, z, where = inputs.elementwise("logits", logits, "labels", labels, where)
    if alpha is not None:
        alpha = checks.setting("alpha", alpha, "logits", x, checks.SHARE)
    gamma = checks.setting("gamma", gamma, "logits", x, checks.NONNEGATIVE)
    return _sigmoid_focal(x, z, alpha, gamma, where)


@jit_when_eager
def _sigmoid_focal(x, z, alpha, gamma, where):
    x, z = inputs.mask(where, x, z)
    gamma = jnp.broadcast_to(gamma, x.shape)
    loss = with_fast_gradient(_binary_focal, _binary_focal_and_slope, ())(x, z, gamma)
    if alpha is not None:
        loss *= alpha * z + (1 - alpha) * (1 - z)
    return inputs.masked(where, loss)


def _binary_focal(x, z, gamma):
    x = clip_to_finite(x)
    return _wrong_power(x, z, gamma, 0, 0) * bce(x, z)


def _binary_focal_and_slope(x, z, gamma):
    return _binary_focal_value(x, z, gamma), _binary_focal_slope(x, z, gamma)


# With s = exp(-|x|), v and u = 1 - v the weights of the likely and the unlikely side of x:
#   q = (v + u s) / (1 + s)      loss = q**g * (log(1 + s) + v |x|)
#   d loss / dx = q**g * ((1 - z) sigmoid(x) - z sigmoid(-x)) + g * (1 - 2 z) * r * loss
# with the r = sigmoid(x) sigmoid(-x) / q = s / (v + u s) / (1 + s).


class _Focal(NamedTuple):
    s: Array
    likely: Array  # v
    mix: Array  # v + u s
    easy: Array  # q**g


def _focal_terms(x: Array, z: Array, gamma: Array) -> _Focal:
    s, up = jnp.exp(-jnp.abs(x)), passes.step(jnp.maximum(x, 0))
    likely = up * (1 - z) + (1 - up) * z
    mix = likely + (1 - likely) * s
    # Where that underflows, the power multiplies a loss that is zero.
    log_mix = jnp.maximum(jnp.log(mix), -200)
    return _Focal(s, likely, mix, jnp.exp(gamma * (log_mix - jnp.log1p(s))))


@passes.own_pass
def _binary_focal_value(x, z, gamma):
    of = _focal_terms(x, z, gamma)
    return of.easy * (jnp.log1p(of.s) + passes.times(of.likely, jnp.abs(x)))


def _binary_focal_slope(x, z, gamma):
    of = _focal_terms(x, z, gamma)
    info = jnp.finfo(x.dtype)
    loss = jnp.log1p(of.s) + jnp.minimum(jnp.abs(x), float(info.max) / 2) * of.likely
    r = of.s / jnp.maximum(of.mix, float(info.tiny)) / (1 + of.s)
    return of.easy * (bce_slope(x, z) + gamma * ((1 - z) - z) * r * loss)


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


@takes(logits=("entries", "logits"), labels=("entries", "bit"))
def asymmetric_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma_negative: ArrayLike = 4.0,
    gamma_positive: ArrayLike = 1.0,
    clip: ArrayLike = 0.05,
    where: ArrayLike | None = None,
) -> Array:
    r"""Asymmetric loss of many labels: easy negatives count less than positives, or not at all.

    With p = sigmoid(x), z the label, and `r = max(0, p - clip)`:

        loss = -z * (1 - p) ** gamma_positive * log(p) - (1 - z) * r ** gamma_negative * log(1 - r)

    Args:
        logits: log-odds of each label, any shape and floating dtype.
        labels: whether it is there, in [0, 1]: bool, integer or floating, of the shape of
            `logits`, a scalar, or of the same rank with axes of size 1.
        gamma_negative, gamma_positive: exponents, at least 0.
        clip: by how much the probabilities of negatives are lowered, in [0, 1). Like the
            exponents a scalar, or of a shape that broadcasts along the trailing axes.
        where: booleans shaped like `labels`; elsewhere the loss is 0.

    Returns:
        The loss in nats of each entry, of the shape of `logits` and `labels` together, in float32
        (float64 for float64 logits).

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or a setting is out of its range.

    The weights are differentiated too, where the paper's code can hold them constant. Where p is at
    most `clip` a negative costs nothing, and all of its derivatives are 0. With exponents that are
    alike, and without clipping, this is `sigmoid_focal_loss` for labels of 0 and 1.

    References:
        Ben-Baruch et al., Asymmetric Loss For Multi-Label Classification, 2020, arXiv:2009.14119.

    >>> import jax, jaxloss
    >>> logits, labels = jax.numpy.array([0.0, 0.0, -3.0]), jax.numpy.array([1, 0, 0])
    >>> print(jaxloss.asymmetric_loss(logits, labels))
    [0.3465736  0.02451505 0.        ]
    """
    x, z, where = inputs.elementwise("logits", logits, "labels", labels, where)
    exponents = (
        checks.setting(name, gamma, "logits", x, checks.NONNEGATIVE)
        for name, gamma in (("gamma_positive", gamma_positive), ("gamma_negative", gamma_negative))
    )
    below_one = checks.Range(0.0, 1.0, closed=False)
    lowered = checks.optional("clip", clip, checks.setting, "logits", x, below_one)
    return _asymmetric(x, z, *exponents, lowered, where)


@jit_when_eager
def _asymmetric(x, z, gamma_positive, gamma_negative, clip, where):
    x, z = inputs.mask(where, x, z)

    def focal(x, gamma):
        loss = with_fast_gradient(_binary_focal, _binary_focal_and_slope, ())
        return loss(x, jnp.ones_like(x), jnp.broadcast_to(gamma, x.shape))

    negative = focal(-x, gamma_negative) if clip is None else _clipped(x, gamma_negative, clip)
    loss = times(z, focal(x, gamma_positive)) + times(1 - z, negative)
    return inputs.masked(where, loss)


def _clipped(x, gamma, clip):
    """`-r**gamma * log(1 - r)`, by the r below 1/2, else by the `1 - r = sigmoid(-x) + clip`."""
    x = clip_to_finite(x)
    p = sigmoid(x)
    free = p <= clip
    r = jnp.where(free, 0.25, p - clip)
    small = r < 0.5
    rest = jnp.where(small | (clip == 0), 1, sigmoid(-x) + clip)
    large = jnp.where(clip == 0, softplus(x), -jnp.log(rest))
    nll = jnp.where(small, -jnp.log1p(-jnp.where(small, r, 0.25)), large)
    return jnp.where(free, 0, jnp.exp(gamma * jnp.log(r)) * nll)


@takes(logits=("row", "logits"), labels=("row", "distribution"))
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
    x, y, axis, live = inputs.dense("logits", logits, "labels", labels, axis, where)
    gamma = checks.scalar("gamma", gamma, x.dtype, checks.NONNEGATIVE)
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
    exact, fast = partial(_focal, axis=axis), partial(_focal_and_gradient, axis=axis)
    loss = with_fast_gradient(exact, fast, axis)(x, y, gamma)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


def _focal(x, y, gamma, *, axis):
    easy = jnp.exp(times(jnp.broadcast_to(gamma, x.shape), log_complement(x, axis)))
    return total(y * easy * clip_to_finite(softmax(x, axis).nll), axis)


# A loss sum(y * f(p)) has the gradient p * sum(w) - w, with w = -y * p * f'(p), not negative.


def _focal_and_gradient(x, y, gamma, *, axis):
    # f(p) = -(1-p)**g * log p    -p f'(p) = (1-p)**g * (1 + g * r), r = -p log(p) / (1-p)
    # At a sole largest class 1 - p is t / (1 + t), with the tail t; r is one where p is.
    row, tiny = soft_row(x, y, axis), float(jnp.finfo(x.dtype).tiny)
    tail, scale = jnp.maximum(row.tail, tiny), row.scale
    top, sole, tail, scale, log_all = jax.lax.optimization_barrier(
        (row.top, row.sole, tail, scale, jnp.log1p(row.tail))
    )
    gap = finite_gap(x, top)
    other = finite_gap(x, sole) > 0
    e, nll = jnp.exp(-gap), gap + log_all
    rest = jnp.where(other, jnp.maximum(tail + (1 - e), tiny), tail)  # (1 - p) * (1 + t)
    easy = jnp.exp(gamma * (jnp.log(rest) - log_all))
    r = e * jnp.minimum(nll, 200) / rest
    w = y * easy * (1 + gamma * r)

    def terms(y_easy, nll, w, x, sole):
        return passes.times(y_easy, nll), w, w * passes.step(finite_gap(x, sole))

    loss, *of_weights = sums(terms, axis, y * easy, nll, w, x, sole)
    loss = jnp.where((top == jnp.inf) & (loss > 0), jnp.inf, loss)
    # The row is 0 without any class, and NaN with a NaN, where its gradient is.
    loss = jnp.where(scale == 0, 0 * row.of_labels.whole, loss) + 0 * scale
    return loss, softmax_residual(x, w, row, Weights(*of_weights))


@takes(logits=("row", "logits"), labels=("row", "distribution"))
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

    fast = partial(_poly_and_gradient, axis=axis)
    loss = with_fast_gradient(exact, fast, axis)(x, y, epsilon)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


def _poly_and_gradient(x, y, epsilon, *, axis):
    # f(p) = -log p + epsilon * (1-p)    -p f'(p) = 1 + epsilon * p
    # with p = e / (1 + t) and 1 - p = (t + (1 - e)) / (1 + t)
    row = soft_row(x, y, axis)

    def terms(x, y, top, sole, tail):
        e = jnp.exp(-finite_gap(x, top))
        other = passes.step(finite_gap(x, sole))
        return y * (tail + (1 - e)), y * e, y * e * other

    missing, whole, others = sums(terms, axis, x, y, row.top, row.sole, row.tail)
    factor = epsilon * row.scale
    of = row.of_labels
    of = Weights(of.whole + factor * whole, of.others + factor * others)
    top, factor_once = jax.lax.optimization_barrier((row.top, factor))
    w = y * (1 + factor_once * jnp.exp(-finite_gap(x, top)))
    return row.loss + factor * missing, softmax_residual(x, w, row, of)


@takes(logits=("row", "logits"), labels="labels")
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
    nll = softmax_cross_entropy_with_integer_labels(
        logits, labels, axis, where, ignore_index=ignore_index
    )
    return bounded_nll(nll, checks.scalar("q", q, nll.dtype, checks.SHARE))


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
