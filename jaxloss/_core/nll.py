"""The cross-entropies of a softmax: value and gradient by the logits, for a training step.

Each formula stands once, in `fast`; what is differentiated further is `exact`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core import passes
from jaxloss._core.numerics import largest, nan_unless, one_or_nan, times
from jaxloss._core.rows import finite_gap, softmax
from jaxloss._core.rules import with_fast_gradient
from jaxloss._core.split import (
    ClassAxis,
    class_index,
    classes,
    largest_of,
    local_labels,
    nan_beside_inf,
    of_label,
    sums,
    total,
)


def soft_nll(x: Array, y: Array, axis: ClassAxis) -> Array:
    """`-sum(y * log softmax(x))`, for labels `y` that need not sum to one."""

    def exact(x, y):
        return total(times(y, softmax(x, axis).nll), axis)

    def fast(x, y):
        row = soft_row(x, y, axis)
        return row.loss, softmax_residual(x, y, row, row.of_labels)

    return with_fast_gradient(exact, fast, axis)(x, y)


def smoothed_nll(x: Array, w: Array, axis: ClassAxis) -> Array:
    """The mean of `-w * log softmax(x)` over the classes that no logit of -inf excludes."""

    def exact(x, w):
        live = x > -jnp.inf
        of_live = jnp.where(live, times(w, softmax(x, axis).nll), 0)
        return total(of_live, axis) / _at_least_one(total(live.astype(x.dtype), axis))

    def fast(x, w):
        # A CPU adds up plain products one after the other: 25 ulps off at 32,000 classes.
        row = soft_row(x, w, axis, lambda x, w: passes.times(w, _live_class(x)))
        share = 1 / _at_least_one(sums(lambda x: (_live_class(x),), axis, x)[0])
        gradient = softmax_residual(x, jnp.where(x > -jnp.inf, w, 0), row, row.of_labels)
        return share * row.loss, share * gradient

    return with_fast_gradient(exact, fast, axis)(x, w)


def _at_least_one(count: Array) -> Array:
    return jnp.maximum(count, 1)


def _live_class(x: Array) -> Array:
    """1, but 0 for a logit of -inf: by arithmetic, see `passes`."""
    return 1 - jnp.minimum(jnp.maximum(-largest(x.dtype) - x, 0), 1)


class Weights(NamedTuple):
    """Sums of the weights of the classes of a row."""

    whole: Array
    others: Array  # of all classes but those of the largest logit


class SoftRow(NamedTuple):
    top: Array  # the largest logit
    tail: Array  # sum of exp(x - top) over all classes but one of the largest
    sole: Array  # the largest logit, inf if several classes have it
    scale: Array  # 1 / (1 + tail), 0 without any class, NaN for a row with a NaN
    of_labels: Weights
    loss: Array


def soft_row(
    x: Array, y: Array, axis: ClassAxis, of: Callable[[Array, Array], Array] = lambda x, y: y
) -> SoftRow:
    """With g = top - x and t the tail: `loss = sum(y * g) + sum(y) * log1p(t)`.

    `of(x, y)` are the weights y, where they are not `y`.
    """

    def terms(x, y, top):
        gap, y = finite_gap(x, top), of(x, y)
        other = passes.step(gap)  # 0 at the largest logit
        return jnp.exp(-gap) * other, 1 - other, passes.times(y, gap), y, y * other

    top = largest_of(x, axis)
    rest, ties, behind, whole, others = sums(terms, axis, x, y, top)
    tail = rest + jnp.maximum(ties - 1, 0)
    behind = jnp.where((top == jnp.inf) & (behind > 0), jnp.inf, behind)
    # A NaN that a minimum drops makes its exponential infinite.
    valid = (rest < jnp.inf) & ~jnp.isnan(nan_beside_inf(x, top, axis))
    scale = nan_unless(valid, jnp.where(ties > 0, 1 / (1 + tail), 0))
    loss = nan_unless(valid, behind + whole * jnp.log1p(tail))
    sole = jnp.where(ties > 1, jnp.inf, top)
    return SoftRow(top, tail, sole, scale, Weights(whole, others), loss)


def softmax_residual(x: Array, w: Array, row: SoftRow, of: Weights) -> Array:
    """`p * sum(w) - w`, with the softmax p.

    At a sole largest class it is `p * (sum of the other weights) - w * (1 - p)`, with the 1 - p
    that is t / (1 + t).
    """
    others = jnp.where(row.sole == jnp.inf, of.whole, of.others)
    rows = (row.top, row.sole, others, of.whole - others, row.tail, jnp.ones_like(row.tail))
    # Once a row, not once an element.
    top, sole, others, more, tail, scale = lax.optimization_barrier(
        (*rows[:2], *(row.scale * a for a in rows[2:]))
    )
    other = passes.step(finite_gap(x, sole))
    return jnp.exp(-finite_gap(x, top)) * (others + other * more) - w * (tail + other * scale)


def label_nll(x: Array, labels: Array, axis: ClassAxis) -> Array:
    """`-log softmax(x)[label]`; NaN, with NaN derivatives, for a label out of range.

    `labels` are integers of size one along `axis`.
    """

    def exact(x, labels):
        valid = (labels >= 0) & (labels < classes(x, axis))
        return of_label(softmax(x, axis).nll, labels, axis) * one_or_nan(valid, x.dtype)

    def fast(x, labels):
        row = label_row(x, labels, axis)
        # Once a row, not once an element.
        of_label, scale = lax.optimization_barrier((row.scale * row.tail, row.scale))
        return row.loss, jnp.where(is_label(labels, x, axis), -of_label, scale * row.e)

    return with_fast_gradient(exact, fast, axis)(x, labels)


class LabelRow(NamedTuple):
    e: Array  # exp(x - top), of each class
    tail: Array  # its sum over all classes but the label
    scale: Array  # 1 / its sum over all, NaN for a row without a loss
    loss: Array  # -log p_label, or NaN


def label_row(x: Array, labels: Array, axis: ClassAxis) -> LabelRow:
    """With g = top - x_label and t the tail: `loss = g + log(t + exp(-g))`."""
    largest_logit = largest_of(x, axis)
    top = jnp.clip(largest_logit, -largest(x.dtype), largest(x.dtype))
    e = jnp.exp(-finite_gap(x, top))
    tail = total(passes.zero_at(class_index(x, axis), _local(labels, x, axis), e), axis)
    valid = (labels >= 0) & (labels < classes(x, axis)) & (tail < jnp.inf)
    valid &= ~jnp.isnan(nan_beside_inf(x, largest_logit, axis))
    x_label = of_label(x, labels, axis)
    # No maximum: on a CPU that may drop a NaN.
    gap = jnp.where(x_label > top, 0, top - x_label)
    e_label = jnp.exp(-gap)
    loss = jnp.log1p(beyond_one(tail, e_label)) + gap
    loss = jnp.where((largest_logit == jnp.inf) & (x_label < jnp.inf), jnp.inf, loss)
    # Without any class nothing counts.
    weight, tiny = tail + e_label, float(jnp.finfo(x.dtype).tiny)
    scale = 1 / jnp.where(weight < tiny, tiny, weight)
    # Last of all: what is computed of a constant NaN may be anything on a CPU.
    return LabelRow(e, tail, nan_unless(valid, scale), nan_unless(valid, loss))


class Terms(NamedTuple):
    """What the cross-entropy of an integer label is combined from, one of each for each row."""

    nll: Array  # -log p of the label
    smooth: Array | None  # the mean of w * -log p over the live classes, for label smoothing
    lse: Array | None  # log-sum-exp of the logits, for the z-loss


def combined(
    terms: Terms,
    labels: Array,
    class_weights: Array | None,
    smoothing: Array | None,
    z_loss: Array | None,
    axis: ClassAxis,
) -> Array:
    """`(1 - smoothing) * w_label * nll + smoothing * smooth + z_loss * lse**2`.

    A setting that is None leaves its factor or its term out. `class_weights` have the number of
    dimensions of the logits.
    """
    loss = terms.nll
    if class_weights is not None:
        loss = times(of_label(class_weights, labels, axis), loss)
    if smoothing is not None and terms.smooth is not None:
        loss = (1 - smoothing) * loss + smoothing * terms.smooth
    if z_loss is not None and terms.lse is not None:
        loss = loss + z_loss * terms.lse**2
    return loss


def beyond_one(tail: Array, e_label: Array) -> Array:
    """`tail + e_label - 1`, by leaving out a term that is one, the largest logit's."""
    return jnp.where(e_label == 1, tail, jnp.maximum(tail - 1, 0) + e_label)


def is_label(labels: Array, x: Array, axis: ClassAxis) -> Array:
    return class_index(x, axis) == _local(labels, x, axis)


def _local(labels: Array, x: Array, axis: ClassAxis) -> Array:
    n = classes(x, axis)
    label = jnp.where((labels >= 0) & (labels < n), labels, n).astype(jnp.int32)
    return local_labels(label, x.shape[axis], axis)


def other_class(labels: Array, x: Array, axis: ClassAxis) -> Array:
    """1 for all classes but the label, 0 for that: by arithmetic, see `passes`."""
    index = class_index(x, axis)
    label = local_labels(labels, x.shape[axis], axis).astype(x.dtype)
    return jnp.minimum(jnp.abs(index.astype(x.dtype) - label), 1)
