"""Stable pieces over a row of logits, with their derivative rules.

All take the class axis as a non-negative int and keep it, with size one, in what they
reduce. A logit of -inf is a class that is excluded; in a row with one logit of +inf that
class has probability one. Log-probabilities and complements are exact in their tails
because the largest entry is left out of the sum of exponentials: `s = 1 + t`,
`log s = log1p(t)`, `1 - 1/s = t/s`.

Where `groups` are given, which number the parts of a row that are normalised on their own
(integers in [0, n), along the last axis), what is reduced is kept at full size. Where the
axis is a `Split`, each device holds some classes of every row, and what is reduced is that
of all devices.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.numerics import clip_to_finite, largest, nan_unless
from jaxloss._core.rules import tangent_sum
from jaxloss._core.split import (
    ClassAxis,
    broadcast_rows,
    class_shape,
    classes,
    largest_of,
    local_labels,
    of_label,
    total,
)


class Row(NamedTuple):
    top: Array  # the largest logit
    gap: Array  # max - x, in [0, inf]
    tail: Array  # sum of exp(-gap) over all classes but one of the largest


def row(x: Array, axis: ClassAxis, groups: Array | None = None) -> Row:
    top = largest_of(x, axis, groups)
    gap = gap_below(x, top)
    # 1 at the maximum and at ties, else 0: what is summed up is exactly the tail.
    is_top = 1 - jnp.minimum(gap * 1e30, 1)
    tail = total(jnp.exp(-gap) - is_top, axis, groups) + (total(is_top, axis, groups) - 1)
    # A row without any class has no maximum to leave out.
    return Row(top, gap, jnp.where(tail < 0, 0, tail))


def gap_below(x: Array, top: Array) -> Array:
    """`top - x`, in [0, inf]; zero at a logit of +inf, infinite beside it."""
    # Selects, not minimum and maximum: some of XLA's CPU reductions drop NaN in those.
    big = largest(x.dtype)
    gap = jnp.clip(top, -big, big) - jnp.where(x > big, big, x)
    return jnp.where((top > big) & (gap > 0), jnp.inf, gap)


def _dominant(p: Array) -> Array:
    """The class, if any, with more than half of the probability: at most one in a row."""
    return p > 0.5


def _relative(p: Array, v: Array, axis: ClassAxis, groups: Array | None = None) -> Array:
    """`v` less the dominant class's entry, if there is one; exactly zero there.

    By a mask, so that the transpose, which reverse mode runs, is as exact as this.
    """
    dominant = _dominant(p)
    own = total(jnp.where(dominant, v, 0), axis, groups)
    return jnp.where(dominant, 0, v - broadcast_rows(own, v, axis))


def centred(p: Array, v: Array, axis: ClassAxis, groups: Array | None = None) -> Array:
    """`v - sum(p * v)`, the tangent of the log-probabilities.

    What remains relative to the dominant class is weighted by small probabilities only.
    """
    u = _relative(p, v, axis, groups)
    return u - broadcast_rows(total(p * u, axis, groups), u, axis)


def _residual(p: Array, w: Array, axis: ClassAxis) -> Array:
    """`p * sum(w) - w`, minus the transpose of `centred`; it sums to zero."""
    others = jnp.where(_dominant(p), 0, p * total(w, axis) - w)
    return jnp.where(_dominant(p), -total(others, axis), others)


class Softmax(NamedTuple):
    p: Array
    nll: Array  # -log p


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: Array, axis: ClassAxis, groups: Array | None = None) -> Softmax:
    _, gap, tail = row(x, axis, groups)
    return Softmax(jnp.exp(-gap) / (1 + tail), gap + jnp.log1p(tail))


@softmax.defjvp
def _softmax_rule(axis, primals, tangents):
    (x, groups), (v, _) = primals, tangents
    out = softmax(x, axis, groups)
    c = centred(out.p, v, axis, groups)
    return out, Softmax(out.p * c, -c)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def complement(x: Array, axis: ClassAxis) -> Array:
    """`1 - softmax(x)`."""
    p, tail = softmax(x, axis).p, row(x, axis).tail
    return jnp.where(_dominant(p), tail / (1 + tail), 1 - p)


@complement.defjvp
def _complement_rule(axis, primals, tangents):
    (x,), (v,) = primals, tangents
    p = softmax(x, axis).p
    return complement(x, axis), -p * centred(p, v, axis)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp(x: Array, axis: ClassAxis) -> Array:
    return largest_of(x, axis) + jnp.log1p(row(x, axis).tail)


@logsumexp.defjvp
def _logsumexp_rule(axis, primals, tangents):
    (x,), (v,) = primals, tangents
    return logsumexp(x, axis), total(softmax(x, axis).p * v, axis)


def _without_dominant(x: Array, axis: ClassAxis) -> Array:
    return jnp.where(_dominant(softmax(x, axis).p), -jnp.inf, x)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_complement(x: Array, axis: ClassAxis) -> Array:
    """`log(1 - softmax(x))`, right where `1 - softmax(x)` underflows."""
    p = softmax(x, axis).p
    others = logsumexp(_without_dominant(x, axis), axis)
    top = largest_of(x, axis)
    dominant = (others - top) - jnp.log1p(row(x, axis).tail)
    return jnp.where(_dominant(p), dominant, jnp.log1p(-jnp.where(_dominant(p), 0, p)))


@log_complement.defjvp
def _log_complement_rule(axis, primals, tangents):
    # For the dominant class M, with r the softmax of the others:
    #   d log(1 - p_M) = p_M * sum over k of r_k (v_k - v_M).
    # Elsewhere d log(1 - p) = -dp / (1 - p), with 1 - p at least a half.
    (x,), (v,) = primals, tangents
    p = softmax(x, axis).p
    dominant = _dominant(p)
    r = softmax(_without_dominant(x, axis), axis).p
    among_others = total(r * _relative(p, v, axis), axis)
    small = jnp.where(dominant, 0, p)
    tangent = jnp.where(dominant, p * among_others, -small / (1 - small) * centred(p, v, axis))
    return log_complement(x, axis), tangent


# The cross-entropies themselves. XLA's CPU backend computes a reduction over arithmetic in one
# pass, but writes out comparisons and selects at full size, and whatever several passes share.
# So these rules tell the label, or the largest logit, from the rest by arithmetic alone, and
# the same formula has a constant of its own in each pass. `minimum` may drop a NaN in such a
# reduction; the sums of exponentials are then infinite, and the row is made NaN.


def gap_to(x: Array, largest_logit: Array, use: int) -> Array:
    """`largest_logit - x`, in [0, inf]; zero at a logit of +inf."""
    return _clipped(largest_logit, use) - jnp.minimum(x, _big(x, use))


def _big(x: Array, use: int) -> float:
    return largest(x.dtype) * (1 - use / 64)


def _clipped(largest_logit: Array, use: int) -> Array:
    return jnp.clip(largest_logit, -_big(largest_logit, use), _big(largest_logit, use))


def elsewhere(gap: Array, use: int) -> Array:
    """Zero at the largest logits, `2 ** use` elsewhere."""
    return jnp.minimum(gap * 2.0 ** (100 + use), 2.0**use)


class SoftRow(NamedTuple):
    top: Array  # the largest logit
    tail: Array  # sum of exp(-gap) over all classes but one of the largest
    alone: Array  # the largest logit, or something larger if it is not the only one
    scale: Array  # 1 / (1 + tail), 0 without any class, NaN for a row with a NaN
    loss: Array


def soft_row(x: Array, y: Array, axis: ClassAxis) -> SoftRow:
    eps, big = float(jnp.finfo(x.dtype).eps), largest(x.dtype)
    top = largest_of(x, axis)
    gap = gap_to(x, top, 1)
    rest = total(jnp.exp(-gap) * elsewhere(gap, 1), axis) / 2
    count = classes(x, axis) - total(elsewhere(gap_to(x, top, 2), 2), axis) / 4
    tail = rest + jnp.maximum(count - 1, 0)
    # A power of two takes an infinite gap to a finite number and back: times zero, it is zero.
    behind = total(jnp.minimum(gap_to(x, top, 3) * eps, big) * y, axis) / eps
    behind = jnp.where((top == jnp.inf) & (behind > 0), jnp.inf, behind)
    sound = rest < jnp.inf
    scale = nan_unless(sound, jnp.where(count > 0, 1 / (1 + tail), 0))
    loss = nan_unless(sound, behind + total(y, axis) * jnp.log1p(tail))
    alone = jnp.where(count > 1, top + jnp.maximum(jnp.abs(top), 1), top)
    return SoftRow(top, tail, alone, scale, loss)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def soft_nll(x: Array, y: Array, axis: ClassAxis) -> Array:
    """`-sum(y * log softmax(x))`, for labels `y` that need not sum to one."""
    return soft_row(x, y, axis).loss


@partial(soft_nll.defjvp, symbolic_zeros=True)
def _soft_nll_rule(axis, primals, tangents):
    (x, y), (v, dy) = primals, tangents
    loss, gradient = _soft_nll_and_gradient(x, y, axis)
    return loss, tangent_sum(
        loss,
        (v, lambda: total(gradient * v, axis)),
        (dy, lambda: total(clip_to_finite(softmax(x, axis).nll) * dy, axis)),
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _soft_nll_and_gradient(x: Array, y: Array, axis: ClassAxis) -> tuple[Array, Array]:
    row = soft_row(x, y, axis)
    return row.loss, _soft_gradient(x, y, row, axis)


def _soft_gradient(x: Array, y: Array, row: SoftRow, axis: ClassAxis) -> Array:
    """`softmax(x) * sum(y) - y`, linear in `y`."""
    return weighted_gradient(x, lambda _: y, row, axis)


class Entry(NamedTuple):
    """Of each class, what a pass over a row of softmax may need."""

    gap: Array  # to the largest logit
    e: Array  # exp(-gap)
    others: Array  # zero at a sole largest class, `2 ** use` elsewhere


def entry(x: Array, row: SoftRow, use: int) -> Entry:
    gap = gap_to(x, row.top, use)
    e = jnp.exp(jnp.minimum(x, _big(x, use)) - _clipped(row.top, use))
    return Entry(gap, e, elsewhere(gap_to(x, row.alone, use), use))


def weighted_gradient(
    x: Array, weights: Callable[[Entry], Array], row: SoftRow, axis: ClassAxis
) -> Array:
    """`p * sum(w) - w`, with the softmax p, and weights w that are computed anew in each pass.

    At a sole largest class this is p * (sum of the other weights) - w * (1 - p), with the
    1 - p that is tail / (1 + tail).
    """
    # Compute these once a row, not once an element.
    row = SoftRow(*lax.optimization_barrier(row))
    each = entry(x, row, 4)
    others = total(weights(each) * each.others, axis) / 16
    sole = total(weights(entry(x, row, 6)), axis) - others
    others, sole = lax.optimization_barrier((32 * others, sole))
    each = entry(x, row, 5)
    of_all = each.e * (others + each.others * sole)
    return row.scale / 32 * (of_all - weights(each) * (32 * row.tail + each.others))


@partial(_soft_nll_and_gradient.defjvp, symbolic_zeros=True)
def _soft_nll_and_gradient_rule(axis, primals, tangents):
    (x, y), (v, dy) = primals, tangents
    loss, gradient = _soft_nll_and_gradient(x, y, axis)
    all_of = softmax(x, axis)
    d_loss = tangent_sum(
        loss,
        (v, lambda: total(gradient * v, axis)),
        (dy, lambda: total(clip_to_finite(all_of.nll) * dy, axis)),
    )
    d_gradient = tangent_sum(
        gradient,
        (v, lambda: total(y, axis) * all_of.p * centred(all_of.p, v, axis)),
        (dy, lambda: _residual(all_of.p, dy, axis)),
    )
    return (loss, gradient), (d_loss, d_gradient)


def label_bump(x: Array, labels: Array, axis: ClassAxis, unit: float) -> Array:
    """Zero at the label and at least `unit ** 2` elsewhere. Each use has a unit of its own."""
    index = lax.broadcasted_iota(jnp.int32, class_shape(x, axis), operator.index(axis)).astype(
        x.dtype
    )
    d = unit * index - unit * local_labels(labels, x.shape[axis], axis).astype(x.dtype)
    return d * d


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def label_nll(x: Array, labels: Array, axis: ClassAxis) -> Array:
    """`-log softmax(x)[label]`; NaN, with NaN derivatives, for a label out of range.

    `labels` are integers of size one along `axis`.
    """
    return _label_row(x, labels, axis).loss


@partial(label_nll.defjvp, symbolic_zeros=True)
def _label_nll_rule(axis, primals, tangents):
    (x, labels), (v, _) = primals, tangents
    loss, gradient = _label_nll_and_gradient(x, labels, axis)
    return loss, tangent_sum(loss, (v, lambda: total(gradient * v, axis)))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _label_nll_and_gradient(x: Array, labels: Array, axis: ClassAxis) -> tuple[Array, Array]:
    """Also `softmax(x) - one_hot(label)`, as `(exp(x - top) or -tail) / total`."""
    row = _label_row(x, labels, axis)
    # Beside a class of +inf the others do not count; without any class nothing does.
    tail = jnp.where(row.tail == jnp.inf, 1, row.tail)
    total = jnp.maximum(tail + row.e_label, float(jnp.finfo(x.dtype).tiny))
    scale = nan_unless(~jnp.isnan(row.loss), 1 / total)
    # Compute these once a row, not once an element.
    top, scale, tail = lax.optimization_barrier((row.top, scale, tail))
    return row.loss, scale * others_and_label(x, labels, top, tail, axis, classes(x, axis))


def others_and_label(
    x: Array, labels: Array, top: Array, tail: Array, axis: ClassAxis, n: int
) -> Array:
    """`exp(x - top)`, but `-tail` at the label, for rows of `n` classes in all."""
    # A power of two, other than 128, whose square exceeds one plus any tail.
    unit = float(2 ** max(8, (n.bit_length() + 3) // 2))
    bump = label_bump(x, labels, axis, unit) - tail
    return jnp.minimum(jnp.exp(jnp.minimum(x - top, 0)), bump)


@partial(_label_nll_and_gradient.defjvp, symbolic_zeros=True)
def _label_nll_and_gradient_rule(axis, primals, tangents):
    (x, labels), (v, _) = primals, tangents
    loss, gradient = _label_nll_and_gradient(x, labels, axis)
    if isinstance(v, SymbolicZero):
        return (loss, gradient), (jnp.zeros_like(loss), jnp.zeros_like(gradient))
    p = softmax(x, axis).p
    return (loss, gradient), (total(gradient * v, axis), p * centred(p, v, axis))


class _LabelRow(NamedTuple):
    top: Array  # the largest logit, clipped to finite numbers
    tail: Array  # sum of exp(x - top) over all classes but the label
    e_label: Array  # exp(x_label - top)
    loss: Array  # -log p_label, or NaN


def _label_row(x: Array, labels: Array, axis: ClassAxis) -> _LabelRow:
    # Two looks. With one reduction for both, of two exponentials a class, value and gradient of
    # 4096 x 1000 took an H100 0.14 ms, and 0.06 ms with the two of optax.
    largest_logit, big = largest_of(x, axis), largest(x.dtype)
    top = jnp.clip(largest_logit, -big, big)
    tail = tail_of_others(x, labels, top, axis)
    x_label = of_label(x, labels, axis)
    gap = jnp.maximum(top - x_label, 0)
    e_label = jnp.exp(-gap)
    rest = beyond_one(tail, e_label)
    # The only sound infinite tail is that of a class of +inf other than the label.
    sound = (tail < jnp.inf) | ((largest_logit == jnp.inf) & (x_label < jnp.inf))
    valid = (labels >= 0) & (labels < classes(x, axis)) & sound
    loss = nan_unless(valid, jnp.log1p(rest) + gap)
    # The barrier has these computed once, not in each of their users.
    return _LabelRow(*lax.optimization_barrier((top, tail, e_label, loss)))


def tail_of_others(x: Array, labels: Array, top: Array, axis: ClassAxis) -> Array:
    """The sum of `exp(x - top)` over all classes but the label; infinite or NaN with a NaN."""
    # exp(-4096) is zero at the label; elsewhere the bump is far above any x - top <= 0.
    bump = label_bump(x, labels, axis, 128.0) - 4096
    return total(jnp.exp(jnp.minimum(x - top, bump)), axis)


def beyond_one(tail: Array, e_label: Array) -> Array:
    """`tail + e_label - 1`, by leaving out a term that is one, the largest logit's."""
    return jnp.where(e_label == 1, tail, jnp.maximum(tail - 1, 0) + e_label)
