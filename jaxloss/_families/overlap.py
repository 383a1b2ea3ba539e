"""Losses of the overlap of two segmentations: Dice, Tversky, Jaccard and generalised Dice.

All are one function of three sums over the pixels of a class: what was found, what was
found but is not there, and what was missed.
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.numerics import one_or_nan, ratio, sigmoid
from jaxloss._core.reduce import reduce_losses
from jaxloss._core.reports import report
from jaxloss._core.rows import centred, row, softmax_and_complement
from jaxloss._core.rules import jit_when_eager, tangent_sum
from jaxloss._core.split import class_shape

ClassReduction = Literal["mean", "sum", "none"]
Activation = Literal["softmax", "sigmoid"] | None


@takes(predictions=("pixels", "logits"), targets=("pixels", "distribution"))
def dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    apply_softmax: bool = True,
    reduction: ClassReduction = "mean",
    ignore_background: bool = False,
    axis: Axis = None,
    activation: Activation = "softmax",
    class_axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""One minus the Dice coefficient of predicted and true regions, averaged over classes.

    With p the probability and t the target of a pixel for one class, s = `smooth`, and sums
    over pixels TP = sum p t, FP = sum p (1 - t), FN = sum (1 - p) t, the class costs

        loss = 1 - (TP + s) / (TP + alpha * FP + beta * FN + s)

    computed as `(alpha * FP + beta * FN) / (TP + alpha * FP + beta * FN + s)`, where 0 / 0 is 0.

    Args:
        predictions: logits, floating, shaped (batch, pixels ..., classes); a logit of -inf
            excludes its class.
        targets: one-hot, or any numbers in [0, 1]: bool, integer or floating, of the shape of
            `predictions`. Either may lack the class axis if there is one class.
        class_weights: one weight for each class; they multiply its loss and do not normalise it.
        smooth: s, at least 0.
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.
        apply_softmax: False if predictions are probabilities, as `activation=None` says too.
        reduction: "mean", "sum" or "none", over classes.
        ignore_background: leave out the first class, if there are several.
        axis: the axes to sum over; by default all but the class axis and the first other one.
            Those of a volume, or also that of the batch, but not the class axis.
        activation: what makes probabilities of the logits. "softmax" if one class excludes the
            others; of a single class it is the sigmoid. "sigmoid" if classes may overlap. With None
            predictions are taken as they are; if the targets of every pixel sum to one, so should
            they, and if not, `jax.experimental.checkify` reports it.
        class_axis: the axis of the classes, the last or any other.
        where: booleans; without the class axis to leave out pixels, or of the shape of
            `predictions` to leave out classes of pixels, as a logit of -inf would.

    Returns:
        Losses in [0, 1) (times weights), of the shape of `predictions` without `axis` and classes
        (for "none" with classes, as the last axis), in float32 (float64 for float64 predictions);
        NaN for a probability outside [0, 1]. A class without targets and predictions costs 0.

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match; a setting is out of its range; `axis` names the class
            axis, or one that predictions do not have; an unknown reduction or activation, or a
            sigmoid of what are probabilities by `apply_softmax`.

    A near-perfect prediction costs, and has as its gradient, the small number that it should,
    to the last digits. Where `0 / 0` is 0 (`smooth` is 0, nothing is there and nothing is
    found), all derivatives are 0.

    References:
        Milletari et al., V-Net, 2016, arXiv:1606.04797; Salehi et al., 2017,
        arXiv:1706.05721 (alpha and beta).

    >>> import jax, jaxloss
    >>> logits, targets = jax.numpy.array([[9.0, -9.0, 0.0]]), jax.numpy.array([[1, 0, 1]])
    >>> print(jaxloss.dice_loss(logits[..., None], targets[..., None]))
    [0.09096]
    """
    options = apply_softmax, activation, reduction, ignore_background, axis, class_axis, where
    return _dice(predictions, targets, alpha, beta, None, smooth, class_weights, *options)


@takes(predictions=("pixels", "logits"), targets=("pixels", "distribution"))
def tversky_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    gamma: ArrayLike = 1.0,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    reduction: ClassReduction = "mean",
    ignore_background: bool = False,
    axis: Axis = None,
    activation: Activation = "softmax",
    class_axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""One minus the Tversky index, which weighs false positives and false negatives.

        loss = (1 - (TP + s) / (TP + alpha * FP + beta * FN + s)) ** (1 / gamma)

    At alpha = beta = 1/2 this is the Dice loss, at 1 the Jaccard loss; with gamma > 1, the focal
    Tversky loss, small losses become larger, and classes that are found well keep their gradient.

    Args:
        predictions, targets: logits and targets, shaped (batch, pixels ..., classes).
        alpha: weight of false positives, at least 0.
        beta: weight of false negatives, at least 0.
        gamma: positive, in the paper between 1 and 3; may be traced, and has a derivative.
        class_weights, smooth, apply_softmax, reduction, ignore_background, axis, activation,
            class_axis, where: see `dice_loss`, as for TP, FP and FN.

    Returns, raises and derivatives: see `dice_loss`, which this is, by its name, if gamma is 1.
    Else all derivatives are 0 for a perfect prediction, near which that of a root grows without
    bound.

    References:
        Salehi et al., Tversky loss function for image segmentation, 2017, arXiv:1706.05721.
        Abraham and Khan, A Novel Focal Tversky loss function, 2018, arXiv:1810.07842 (gamma).

    >>> import jax, jaxloss
    >>> p, t = jax.numpy.array([[1.0, 0.0, 0.0, 0.0]]), jax.numpy.array([[1, 1, 0, 0]])
    >>> options = dict(alpha=0.25, beta=0.75, smooth=0.0, apply_softmax=False)
    >>> print(jaxloss.tversky_loss(p[..., None], t[..., None], **options))
    [0.428571]
    """
    options = apply_softmax, activation, reduction, ignore_background, axis, class_axis, where
    return _dice(predictions, targets, alpha, beta, gamma, smooth, class_weights, *options)


@takes(predictions=("pixels", "logits"), targets=("pixels", "distribution"))
def jaccard_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    reduction: ClassReduction = "mean",
    ignore_background: bool = False,
    axis: Axis = None,
    activation: Activation = "softmax",
    class_axis: int = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""One minus the Jaccard index, the intersection over the union.

        loss = 1 - (TP + s) / (TP + FP + FN + s)

    Args:
        predictions, targets: logits and targets, shaped (batch, pixels ..., classes).
        class_weights, smooth, apply_softmax, reduction, ignore_background, axis, activation,
            class_axis, where: see `dice_loss`, as for TP, FP and FN.

    Returns, raises and derivatives: see `dice_loss`.

    References:
        Rahman and Wang, Optimizing intersection-over-union in deep neural networks, 2016.

    >>> import jax, jaxloss
    >>> p, t = jax.numpy.array([[1.0, 1.0, 0.0, 0.0]]), jax.numpy.array([[1, 0, 1, 0]])
    >>> options = dict(smooth=0.0, apply_softmax=False)
    >>> print(jaxloss.jaccard_loss(p[..., None], t[..., None], **options))
    [0.666667]
    """
    options = apply_softmax, activation, reduction, ignore_background, axis, class_axis, where
    return _dice(predictions, targets, 1.0, 1.0, None, smooth, class_weights, *options)


@takes(predictions=("pixels", "logits"), targets=("pixels", "bit"))
def binary_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_sigmoid: bool = True,
    where: ArrayLike | None = None,
) -> Array:
    r"""`dice_loss` of one class, whose axis may be left out.

    With p the probabilities, t the targets, sums over the pixels, and s `smooth`:

        loss = 1 - (sum_i p_i * t_i + s) / ((sum_i p_i + sum_i t_i) / 2 + s)

    Args:
        predictions: logits, floating, shaped (batch, pixels ...) or (batch, pixels ..., 1). A
            last axis of size 1 is the class axis, so (n, 1) is n examples of a pixel.
        targets: numbers in [0, 1], likewise.
        smooth: added to the numerator and denominator, at least 0.
        apply_sigmoid: False if predictions are probabilities.
        where: booleans to leave out pixels, likewise.

    Returns:
        Losses in [0, 1), one for each entry of the first axis, in float32 (float64 for float64
        predictions); NaN for a probability outside [0, 1].

    Raises and derivatives: see `dice_loss`.

    References:
        Milletari et al., V-Net, 2016, arXiv:1606.04797.

    >>> import jax, jaxloss
    >>> logits, targets = jax.numpy.array([[9.0, -9.0, 0.0]]), jax.numpy.array([[1, 0, 1]])
    >>> print(jaxloss.binary_dice_loss(logits, targets))
    [0.09096]
    """
    x, t = jnp.asarray(predictions), jnp.asarray(targets)
    if x.ndim == t.ndim and x.shape[-1:] != (1,):
        x, t = x[..., None], t[..., None]
    return dice_loss(x, t, smooth=smooth, apply_softmax=apply_sigmoid, where=where)


@takes(predictions=("pixels", "logits"), targets=("pixels", "distribution"))
def multiclass_generalized_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    r"""Dice loss in which rare classes weigh more; a mean over classes and the batch.

    With F_c the sum of the targets of class c over batch and pixels, C classes and dice_c
    the Dice loss of an example:

        loss = mean over batch and c of w_c * dice_c,    w_c = C * v_c / sum_k v_k,
        v_c = 1 / (F_c ** 2 + 1e-7)

    The mean is over the examples that have a pixel in `where`.

    A class that is nowhere in the batch has nearly all of the weight.

    Args:
        predictions: logits, floating, shaped (batch, pixels ..., classes).
        targets: one-hot, or any numbers in [0, 1], of the shape of `predictions`.
        smooth: added to the numerator and denominator of each class, at least 0.
        apply_softmax: False if predictions are probabilities; see `dice_loss`.
        ignore_background: leave out the first class, if there are several, after weighing.
        where: booleans to leave out pixels; see `dice_loss`.

    Returns:
        A scalar, in float32 (float64 for float64 predictions); 0 for an empty batch.

    Raises and derivatives: see `dice_loss`; those by targets include the weights'.

    References:
        Sudre et al., Generalised Dice overlap, 2017, arXiv:1707.03237.

    >>> import jax, jaxloss
    >>> targets = jax.nn.one_hot(jax.numpy.array([[0, 0, 0, 1]]), 2)
    >>> print(jaxloss.multiclass_generalized_dice_loss(2 * targets, targets))
    0.107391
    """
    pixels, axis = _pixels(predictions, targets, None, -1, where)
    return _generalized(
        pixels,
        checks.scalar("smooth", smooth, pixels.x.dtype, checks.NONNEGATIVE),
        axis=axis,
        activation="softmax" if apply_softmax else None,
        tolerance=_tolerance(predictions),
        ignore_background=ignore_background,
    )


def _activation(activation: Activation, apply_softmax: bool) -> Activation:
    if activation not in ("softmax", "sigmoid", None):
        raise ValueError(f"activation must be 'softmax', 'sigmoid' or None, got {activation!r}")
    if activation == "sigmoid" and not apply_softmax:
        raise ValueError(
            "apply_softmax=False says that predictions are probabilities: leave it out, or give "
            "activation=None"
        )
    return activation if apply_softmax else None


def _dice(predictions, targets, alpha, beta, gamma, smooth, class_weights, *options):
    apply_softmax, activation, reduction, ignore_background, axis, class_axis, where = options
    activation = _activation(activation, apply_softmax)
    if reduction not in get_args(ClassReduction):
        names = ", ".join(repr(name) for name in get_args(ClassReduction))
        raise ValueError(f"reduction must be one of {names}, got {reduction!r}")
    pixels, axis = _pixels(predictions, targets, axis, class_axis, where)
    shape, dtype = pixels.x.shape, pixels.x.dtype
    class_weights = checks.of_classes(
        "class_weights", class_weights, f"predictions of shape {shape}", shape[-1], dtype
    )
    settings = {"alpha": alpha, "beta": beta, "smooth": smooth}
    if gamma is not None:
        plain = isinstance(gamma, (int, float)) and gamma == 1
        gamma = None if plain else checks.positive("gamma", gamma, dtype)
    return _class_average(
        pixels,
        class_weights,
        *(
            checks.scalar(name, value, dtype, checks.NONNEGATIVE)
            for name, value in settings.items()
        ),
        gamma,
        axis=axis,
        activation=activation,
        tolerance=_tolerance(predictions),
        ignore_background=ignore_background,
        reduction=reduction,
    )


class _Pixels(NamedTuple):
    x: Array  # logits or probabilities, classes last
    t: Array
    live: Array | None


def _pixels(predictions, targets, axis, class_axis, where) -> tuple[_Pixels, tuple[int, ...]]:
    """With the classes as the last axis; and the axes to sum over."""
    x = checks.predictions("predictions", predictions)
    t = checks.numeric("targets", targets, x.dtype)
    given = f"predictions of shape {x.shape} and targets of shape {t.shape}"
    if abs(x.ndim - t.ndim) == 1:
        least = min(x.ndim, t.ndim)
        x, t = (jnp.expand_dims(a, class_axis) if a.ndim == least else a for a in (x, t))
    if x.shape != t.shape:
        raise ValueError(
            f"{given} do not match: give the same shape; of integer class labels make "
            f"jax.nn.one_hot(targets, classes)"
        )
    x, of_classes, live = inputs.rows("predictions", x, class_axis, where)
    pixels = jax.tree.map(lambda a: jnp.moveaxis(a, of_classes, -1), _Pixels(x, t, live))
    return pixels, _pixel_axes(axis, x.ndim, of_classes)


def _pixel_axes(axis, ndim, of_classes) -> tuple[int, ...]:
    """Those given, or all but the first, as they are without the axis of the classes."""
    if axis is None or axis == ():
        return tuple(range(1, ndim - 1)) if axis is None else ()
    axes = checks.axes(axis, ndim)
    if of_classes in axes:
        raise ValueError(f"axis {axis} names the class axis of predictions of rank {ndim}")
    return tuple(a - (a > of_classes) for a in axes)


def _tolerance(probabilities) -> float:
    """How far from one a sum of probabilities may be, by rounding in the dtype they came in."""
    return 1e-5 + float(jnp.finfo(jnp.asarray(probabilities).dtype).eps)


_STATIC = "axis", "activation", "tolerance", "ignore_background"


@partial(jit_when_eager, static_argnames=(*_STATIC, "reduction"))
def _class_average(
    pixels, class_weights, alpha, beta, smooth, gamma, *, ignore_background, reduction, **static
):
    losses = tversky(_outcomes(pixels, **static), alpha, beta, smooth)
    if gamma is not None:
        losses = _focal(losses, gamma)
    losses = _weighed(losses, class_weights, ignore_background)
    if reduction == "none":
        return losses
    total = jnp.sum(losses, -1)
    return total if reduction == "sum" else total / losses.shape[-1]


@partial(jit_when_eager, static_argnames=_STATIC)
def _generalized(pixels, smooth, *, ignore_background, **static):
    losses = tversky(_outcomes(pixels, **static), 0.5, 0.5, smooth)
    targets = inputs.exclude(pixels.live, pixels.t, 0)
    frequency = jnp.sum(targets, tuple(range(targets.ndim - 1)))
    weights = frequency.size * _rarity(frequency)
    losses = _weighed(losses, weights, ignore_background)
    if pixels.live is None:
        return reduce_losses(losses, "mean")
    images = jnp.any(pixels.live, tuple(range(1, pixels.live.ndim)))[:, None]
    return reduce_losses(losses, "mean", where=jnp.broadcast_to(images, losses.shape))


def _weighed(losses, class_weights, ignore_background):
    if class_weights is not None:
        losses *= class_weights.reshape(class_shape(losses, losses.ndim - 1))
    return losses[..., 1:] if ignore_background and losses.shape[-1] > 1 else losses


class Outcomes(NamedTuple):
    """Sums over pixels. What is left out of the sums adds nothing to any of them."""

    true_positives: Array
    false_positives: Array
    false_negatives: Array


def outcomes(p: Array, one_minus_p: Array, t: Array, axis: tuple[int, ...]) -> Outcomes:
    return Outcomes(
        jnp.sum(p * t, axis), jnp.sum(p * (1 - t), axis), jnp.sum(one_minus_p * t, axis)
    )


def tversky(of: Outcomes, alpha, beta, smooth) -> Array:
    return share(alpha * of.false_positives + beta * of.false_negatives, of.true_positives + smooth)


def _focal(losses: Array, gamma: Array) -> Array:
    """`losses ** (1 / gamma)`, but with derivatives of 0 at 0, unless gamma is 1."""
    none = losses == 0
    root = jnp.where(none, 1, losses) ** (1 / gamma)
    return jnp.where(none, jnp.where(gamma == 1, losses, 0), root)


def _outcomes(pixels: _Pixels, axis, activation, tolerance) -> Outcomes:
    x, t, live = pixels
    t = inputs.exclude(live, t, 0)
    if activation is not None:
        # Classes first: each is then a plane of pixels, and a sum over those one of rows.
        x, t = (jnp.moveaxis(a, -1, 0) for a in (inputs.exclude(live, x, -jnp.inf), t))
        of = _of_log_odds if activation == "sigmoid" or x.shape[0] == 1 else _of_logits
        return Outcomes(*(jnp.moveaxis(a, 0, -1) for a in of(x, t, tuple(a + 1 for a in axis))))
    x = inputs.exclude(live, x, 0)
    if x.shape[-1] > 1:
        x = _reported_sums(x, t, live, tolerance)
    p = x * one_or_nan(inputs.are_probabilities(x, axis), x.dtype)
    return outcomes(p, 1 - p, t, axis)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _of_log_odds(x: Array, t: Array, axis: tuple[int, ...]) -> Array:
    """`outcomes` of the sigmoid, as one array."""

    def terms(x, t):
        p, one_minus_p = 1 / (1 + jnp.exp(-x)), 1 / (1 + jnp.exp(x))
        return p * t, p * (1 - t), one_minus_p * t

    return jnp.stack([jnp.squeeze(a, axis) for a in passes.sums(terms, axis, x, t)])


@partial(_of_log_odds.defjvp, symbolic_zeros=True)
def _of_log_odds_rule(axis, primals, tangents):
    (x, t), (dx, dt) = primals, tangents
    p, q = sigmoid(x), sigmoid(-x)
    out = _of_log_odds(x, t, axis)
    return out, _tangent(out, p, q, t, axis, (dx, lambda: p * (q * dx)), dt)


def _tangent(out, p, q, t, axis, by_x, dt):
    """Of TP, FP and FN, from the tangent of each p (that of q is less it) and of the targets."""
    dx, tangent_of_p = by_x

    def of_p():
        dp = tangent_of_p()
        tp = jnp.sum(dp * t, axis)
        return jnp.stack([tp, jnp.sum(dp * (1 - t), axis), -tp])

    def of_t():
        tp = jnp.sum(p * dt, axis)
        return jnp.stack([tp, -tp, jnp.sum(q * dt, axis)])

    return tangent_sum(out, (dx, of_p), (dt, of_t))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _of_logits(x: Array, t: Array, axis: tuple[int, ...]) -> Array:
    """`outcomes` of the softmax over the first axis, as one array."""
    # With e = exp(x - top), p = e / (1 + tail); at the largest logit 1 - e is exactly zero.
    _, gap, tail = row(x, 0)

    def terms(e, t, tail, scale):
        return e * (t * scale), e * ((1 - t) * scale), (tail + (1 - e)) * (t * scale)

    sums = passes.sums(terms, axis, jnp.exp(-gap), t, tail, 1 / (1 + tail))
    return jnp.stack([jnp.squeeze(a, axis) for a in sums])


@partial(_of_logits.defjvp, symbolic_zeros=True)
def _of_logits_rule(axis, primals, tangents):
    (x, t), (dx, dt) = primals, tangents
    out = _of_logits(x, t, axis)
    p, q = softmax_and_complement(x, 0)
    return out, _tangent(out, p, q, t, axis, (dx, lambda: p * centred(p, dx, 0)), dt)


def _reported_sums(p, t, live, tolerance):
    """The probabilities; `checkify` finds those of a pixel that do not sum to one.

    Where a softmax is meant: classes that overlap, or leave pixels to none, have no such sum.
    """
    whole = True if live is None else jnp.all(live, -1)  # Nor has a part of the classes.

    def sums(x):
        return jnp.where(whole, jnp.sum(jax.lax.stop_gradient(x), -1), 1)

    exclusive = jnp.all(jnp.abs(sums(t) - 1) <= tolerance)
    of_pixels = sums(p)
    return report(
        p,
        jnp.all(jnp.abs(of_pixels - 1) <= tolerance) | ~exclusive,
        "the probabilities of a pixel must sum to one, as its targets do, but sums reach from "
        "{low} to {high}",
        low=jnp.min(of_pixels, initial=1),
        high=jnp.max(of_pixels, initial=1),
    )


@jax.custom_jvp
def share(part: Array, rest: Array) -> Array:
    """`part / (part + rest)`, with 0 / 0 = 0, of amounts that are not negative."""
    return ratio(part, _whole(part, rest))


@partial(share.defjvp, symbolic_zeros=True)
def _share_rule(primals, tangents):
    # d share = (rest * d part - part * d rest) / whole**2, where autodiff would subtract
    # part / whole from 1; written with the shares, so that nothing is squared.
    (part, rest), (d_part, d_rest) = primals, tangents
    out, whole = share(part, rest), _whole(part, rest)
    return out, tangent_sum(
        out,
        (d_part, lambda: ratio(share(rest, part), whole) * d_part),
        (d_rest, lambda: -ratio(out, whole) * d_rest),
    )


def _whole(part, rest):
    whole = part + rest
    return jnp.where(jnp.abs(whole) < float(jnp.finfo(whole.dtype).tiny), 1, whole)


@jax.custom_jvp
def _rarity(frequency: Array) -> Array:
    """Weights `1 / (frequency**2 + 1e-7)`, made to sum to one."""
    weights = 1 / (frequency**2 + 1e-7)
    return weights / jnp.sum(weights)


@_rarity.defjvp
def _rarity_rule(primals, tangents):
    # With r the result, d r = r * (d log w - sum(r * d log w)), exact for a class of nearly
    # all weight, and d log w = -2 f df / (f**2 + 1e-7).
    (f,), (df,) = primals, tangents
    r = _rarity(f)
    return r, r * centred(r, -2 * f / (f**2 + 1e-7) * df, 0)
