"""Keras's losses of class probabilities or logits, over the library's of the same.

Probabilities are clipped to [1e-7, 1 - 1e-7] as in Keras; derivatives are those of the formula
at the clipped probability, so they do not vanish. Logits are never clipped. Shapes, dtypes and
errors are those of the regression losses; `y_true` may be of any real dtype. Shared arguments:

- `from_logits`: whether `y_pred` are logits. What contradicts it gives a `LogitsWarning`.
- `label_smoothing`: in [0, 1], the share of a uniform distribution mixed into the labels.
- `axis`: the class axis, or for binary losses the axis to average over.
"""

import warnings
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

import jaxloss
from jaxloss._core import checks
from jaxloss._core.numerics import (
    clip_straight_through,
    nonnegative,
    one_or_nan,
    straight_through,
    xlogy,
)
from jaxloss._core.reduce import row_mean
from jaxloss._core.rules import jit_when_eager
from jaxloss._families.focal import bounded_nll, class_weights
from jaxloss.keras import _confusion
from jaxloss.keras._inputs import EPSILON, class_axis, labelled, mean, pair


def binary_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> Array:
    """Mean over `axis` of `jaxloss.binary_cross_entropy`, or of that of the sigmoid of logits.

    >>> print(binary_crossentropy([[0.0, 1.0], [0.0, 0.0]], [[0.6, 0.4], [0.4, 0.6]]))
    [0.91629076 0.7135582 ]
    """
    t, p = pair(y_true, y_pred)
    p = _confusion.checked(p, from_logits)
    t = _smooth_binary(t, label_smoothing)
    if from_logits:
        return mean(jaxloss.sigmoid_binary_cross_entropy(p, t), axis)
    return mean(jaxloss.binary_cross_entropy(_clip(p), t), axis)


def binary_focal_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    apply_class_balancing: bool = False,
    alpha: ArrayLike = 0.25,
    gamma: ArrayLike = 2.0,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> Array:
    """Mean over `axis` of `jaxloss.sigmoid_focal_loss`, or of the same of probabilities.

    Args:
        apply_class_balancing: whether to weigh positives by `alpha`, negatives by 1 - alpha.
        alpha, gamma: the weight, in [0, 1], and the exponent, at least 0, of the probability of
            the wrong class; numbers, or of shapes that broadcast along the trailing axes, as is
            `label_smoothing`.

    >>> print(binary_focal_crossentropy([[0.0, 1.0]], [[0.5, 0.75]]))
    [0.095634]
    """
    t, p = pair(y_true, y_pred)
    p = _confusion.checked(p, from_logits)
    t = _smooth_binary(t, label_smoothing)
    weight = alpha if apply_class_balancing else None
    if from_logits:
        return mean(jaxloss.sigmoid_focal_loss(p, t, alpha=weight, gamma=gamma), axis)
    gamma = checks.setting("gamma", gamma, "y_pred", p, checks.NONNEGATIVE)
    losses = _binary_focal(p, t, gamma)
    if weight is not None:
        weight = checks.setting("alpha", alpha, "y_pred", p, checks.SHARE)
        losses *= t * weight + (1 - t) * (1 - weight)
    return mean(losses, axis)


@jit_when_eager
def _binary_focal(p, t, gamma):
    # Keras clips the cross-entropy, but not the probability of the wrong class before it.
    ce = jaxloss.binary_cross_entropy(_clip(p), t)
    unclipped = _wrong(jnp.clip(p, 0, 1), t) ** gamma * ce
    return straight_through(lax.stop_gradient(unclipped), _wrong(_clip(p), t) ** gamma * ce)


def _wrong(p, t):
    return t * (1 - p) + (1 - t) * p


def categorical_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> Array:
    """`jaxloss.softmax_cross_entropy`, or `jaxloss.categorical_cross_entropy`.

    Probabilities are divided by their sum first. NaN for a row whose sum is negative.

    >>> print(categorical_crossentropy([[0.0, 1.0]], [[0.25, 0.75]]))
    [0.287682]
    """
    t, p, axis = _categorical(y_true, y_pred, from_logits, label_smoothing, axis)
    if from_logits:
        return jaxloss.softmax_cross_entropy(p, t, axis)
    return jaxloss.categorical_cross_entropy(_clip(_normalised(p, axis)), t, axis)


def categorical_focal_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    alpha: ArrayLike = 0.25,
    gamma: ArrayLike = 2.0,
    from_logits: bool = False,
    label_smoothing: ArrayLike = 0.0,
    axis: int = -1,
) -> Array:
    """`jaxloss.softmax_focal_loss`, or the same of probabilities.

    Args:
        alpha: weight of the loss, a number or one for each class.
        gamma: exponent, at least 0, of the probability of the other classes.

    >>> print(categorical_focal_crossentropy([[0.0, 1.0]], [[0.25, 0.75]]))
    [0.004495]
    """
    t, p, axis = _categorical(y_true, y_pred, from_logits, label_smoothing, axis)
    if from_logits:
        return jaxloss.softmax_focal_loss(p, t, axis, alpha=jnp.asarray(alpha), gamma=gamma)
    gamma = checks.scalar("gamma", gamma, p.dtype, checks.NONNEGATIVE)
    return _focal(p, t, class_weights(alpha, p, axis), gamma, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _focal(p, t, alpha, gamma, *, axis):
    q = _clip(_normalised(p, axis))
    return 0 - jnp.sum(alpha * (1 - q) ** gamma * xlogy(t, q), axis)


def sparse_categorical_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
    label_smoothing: ArrayLike = 0.0,
) -> Array:
    """`categorical_crossentropy` of integer labels, without their one-hot.

    Args:
        y_true: whole numbers, integers or floats, of the shape of `y_pred` without `axis`, or
            with an axis of size 1 there. Any other makes its row NaN, in value and gradient.
        ignore_class: rows with this label cost 0.
        label_smoothing: as in Keras from 3.16 on.

    >>> print(sparse_categorical_crossentropy([1, 0], [[0.25, 0.75], [0.5, 0.5]]))
    [0.287682 0.693147]
    """
    labels, p, axis = labelled(y_true, y_pred, axis)
    _warn_of_one_class(p, axis)
    p = _confusion.checked(p, from_logits, axis)
    ignored = None if ignore_class is None else int(ignore_class)
    if from_logits:
        return jaxloss.softmax_cross_entropy_with_integer_labels(
            p, labels, axis, label_smoothing=label_smoothing, ignore_index=ignored
        )
    s = checks.optional("label_smoothing", label_smoothing, checks.scalar, p.dtype, checks.SHARE)
    if ignored is not None:
        p = jnp.where(jnp.expand_dims(labels == ignored, axis), 0.5, p)
    q = _clip(_normalised(p, axis))
    losses = jaxloss.categorical_cross_entropy_with_integer_labels(
        q, labels, axis, ignore_index=ignored
    )
    if s is None:
        return losses
    of_all = 0 - row_mean(jnp.log(q), (axis,))
    if ignored is not None:
        of_all = jnp.where(labels == ignored, 0, of_all)
    return (1 - s) * losses + s * of_all


def categorical_generalized_cross_entropy(
    y_true: ArrayLike, y_pred: ArrayLike, q: ArrayLike
) -> Array:
    """`(1 - p_k ** q) / q` of probabilities and integer labels: a bounded cross-entropy.

    Args:
        y_true: see `sparse_categorical_crossentropy`.
        y_pred: probabilities. They are not normalised nor clipped, but the derivative, which is
            infinite at 0, is that at 1e-7 below.
        q: in [0, 1]; see `jaxloss.generalized_cross_entropy`, which is this from logits.

    >>> print(categorical_generalized_cross_entropy([0, 1], [[1.0, 0.0], [0.75, 0.25]], 0.5))
    [0. 1.]
    """
    labels, p, axis = labelled(y_true, y_pred, -1)
    q = checks.scalar("q", q, p.dtype, checks.SHARE)
    p = _confusion.checked(p, False, axis)
    return _bounded(nonnegative(p), labels, q)


@jit_when_eager
def _bounded(p, labels, q):
    def loss(p):
        nll = jaxloss.categorical_cross_entropy_with_integer_labels(p, labels)
        return bounded_nll(nll, q)

    return straight_through(
        lax.stop_gradient(loss(p)), loss(clip_straight_through(p, EPSILON, float("inf")))
    )


def kl_divergence(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.kl_divergence` of two distributions along the last axis, clipped to [1e-7, 1].

    >>> print(kl_divergence([[0.5, 0.5]], [[0.25, 0.75]]))
    [0.143841]
    """
    t, p = pair(y_true, y_pred)
    return jaxloss.kl_divergence(
        jnp.log(clip_straight_through(p, EPSILON, 1)), clip_straight_through(t, EPSILON, 1)
    )


def _clip(p: Array) -> Array:
    return clip_straight_through(p, EPSILON, 1 - EPSILON)


def _smooth_binary(t: Array, smoothing: ArrayLike) -> Array:
    s = checks.optional("label_smoothing", smoothing, checks.setting, "y_true", t, checks.SHARE)
    return t if s is None else t * (1 - s) + 0.5 * s


def _categorical(y_true, y_pred, from_logits, smoothing, axis):
    t, p = pair(y_true, y_pred, "; integer class labels are for the sparse losses")
    axis = class_axis(axis, p.ndim)
    _warn_of_one_class(p, axis)
    p = _confusion.checked(p, from_logits, axis)
    s = checks.optional("label_smoothing", smoothing, checks.scalar, p.dtype, checks.SHARE)
    return t if s is None else jaxloss.smooth_labels(t, s, axis=axis), p, axis


def _warn_of_one_class(p: Array, axis: int) -> None:
    if p.shape[axis] == 1:
        warnings.warn(
            f"y_pred of shape {p.shape} has one class, whose loss is constant; use "
            f"binary_crossentropy for two classes in one number",
            SyntaxWarning,
            stacklevel=_confusion.caller(),
        )


def _normalised(p: Array, axis: int) -> Array:
    """Divided by their sum; NaN where that is negative, zero for a row of zeros."""
    total = jnp.sum(p, axis, keepdims=True)
    nothing = jnp.all(p == 0, axis, keepdims=True)
    p = p * one_or_nan(nothing | ~(total <= 0), p.dtype)
    return p / jnp.where(nothing, 1, total)
