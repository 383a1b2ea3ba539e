"""Stable pieces over a row of logits, with their derivative rules.

All take the class axis as a non-negative int and keep it, with size one, in what they
reduce. A logit of -inf is a class that is excluded; in a row with one logit of +inf that
class has probability one. Log-probabilities and complements are exact in their tails
because the largest entry is left out of the sum of exponentials: `s = 1 + t`,
`log s = log1p(t)`, `1 - 1/s = t/s`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._numerics import largest, tangent_sum


def _total(x: Array, axis: int) -> Array:
    return jnp.sum(x, axis, keepdims=True)


class _Row(NamedTuple):
    gap: Array  # max - x, in [0, inf]
    tail: Array  # sum of exp(-gap) over all classes but one of the largest


def _row(x: Array, axis: int) -> _Row:
    # Selects, not minimum and maximum: some of XLA's CPU reductions drop NaN in those.
    big = largest(x.dtype)
    top = jnp.max(x, axis, keepdims=True)
    gap = jnp.clip(top, -big, big) - jnp.where(x > big, big, x)
    gap = jnp.where((top > big) & (gap > 0), jnp.inf, gap)
    # 1 at the maximum and at ties, else 0: what is summed up is exactly the tail.
    is_top = 1 - jnp.minimum(gap * 1e30, 1)
    tail = _total(jnp.exp(-gap) - is_top, axis) + (_total(is_top, axis) - 1)
    # A row without any class has no maximum to leave out.
    return _Row(gap, jnp.where(tail < 0, 0, tail))


def _dominant(p: Array) -> Array:
    """The class, if any, with more than half of the probability: at most one in a row."""
    return p > 0.5


def _centred(p: Array, v: Array, axis: int) -> Array:
    """`v - sum(p * v)`, the tangent of the log-probabilities.

    Both sides are taken relative to the dominant class's entry, if there is one, so that
    what remains is weighted by the small probabilities only. The mask makes the transpose,
    which reverse mode runs, as exact as this.
    """
    dominant = _dominant(p)
    u = jnp.where(dominant, 0, v - _total(jnp.where(dominant, v, 0), axis))
    return u - _total(p * u, axis)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: Array, axis: int) -> Array:
    row = _row(x, axis)
    return jnp.exp(-row.gap) / (1 + row.tail)


@softmax.defjvp
def _softmax_rule(axis, primals, tangents):
    (x,), (v,) = primals, tangents
    p = softmax(x, axis)
    return p, p * _centred(p, v, axis)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def complement(x: Array, axis: int) -> Array:
    """`1 - softmax(x)`."""
    row = _row(x, axis)
    p = jnp.exp(-row.gap) / (1 + row.tail)
    return jnp.where(_dominant(p), row.tail / (1 + row.tail), 1 - p)


@complement.defjvp
def _complement_rule(axis, primals, tangents):
    (x,), (v,) = primals, tangents
    p = softmax(x, axis)
    return complement(x, axis), -p * _centred(p, v, axis)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax(x: Array, axis: int) -> Array:
    row = _row(x, axis)
    return -(row.gap + jnp.log1p(row.tail))


@log_softmax.defjvp
def _log_softmax_rule(axis, primals, tangents):
    (x,), (v,) = primals, tangents
    return log_softmax(x, axis), _centred(softmax(x, axis), v, axis)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp(x: Array, axis: int) -> Array:
    return jnp.max(x, axis, keepdims=True) + jnp.log1p(_row(x, axis).tail)


@logsumexp.defjvp
def _logsumexp_rule(axis, primals, tangents):
    (x,), (v,) = primals, tangents
    return logsumexp(x, axis), _total(softmax(x, axis) * v, axis)


def _without_dominant(x: Array, axis: int) -> Array:
    return jnp.where(_dominant(softmax(x, axis)), -jnp.inf, x)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_complement(x: Array, axis: int) -> Array:
    """`log(1 - softmax(x))`, right where `1 - softmax(x)` underflows."""
    p = softmax(x, axis)
    others = logsumexp(_without_dominant(x, axis), axis)
    top = jnp.max(x, axis, keepdims=True)
    dominant = (others - top) - jnp.log1p(_row(x, axis).tail)
    return jnp.where(_dominant(p), dominant, jnp.log1p(-jnp.where(_dominant(p), 0, p)))


@log_complement.defjvp
def _log_complement_rule(axis, primals, tangents):
    # For the dominant class M, with r the softmax of the others:
    #   d log(1 - p_M) = p_M * sum over k of r_k (v_k - v_M).
    # Elsewhere d log(1 - p) = -dp / (1 - p), with 1 - p at least a half.
    (x,), (v,) = primals, tangents
    p = softmax(x, axis)
    dominant = _dominant(p)
    r = softmax(_without_dominant(x, axis), axis)
    u = jnp.where(dominant, 0, v - _total(jnp.where(dominant, v, 0), axis))
    small = jnp.where(dominant, 0, p)
    tangent = jnp.where(
        dominant, p * _total(r * u, axis), -small / (1 - small) * _centred(p, v, axis)
    )
    return log_complement(x, axis), tangent


class _LabelRow(NamedTuple):
    top: Array  # the largest logit, clipped to finite numbers
    tail: Array  # t: sum of exp(x - top) over all classes but the label
    total: Array  # t + exp(x_label - top)
    loss: Array  # -log p_label
    valid: Array  # whether the row has a loss


def _label_bump(x: Array, labels: Array, axis: int, unit: float) -> Array:
    """Zero at the label and at least `unit ** 2` elsewhere, by arithmetic alone.

    XLA's CPU backend computes a reduction over arithmetic in one pass, but writes out
    every comparison, select and shared subexpression at full size. So the label is told
    from the rest without a comparison, and value and gradient use different units.
    """
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    d = unit * lax.broadcasted_iota(x.dtype, shape, axis) - unit * labels.astype(x.dtype)
    return d * d


def _label_row(x: Array, labels: Array, axis: int) -> _LabelRow:
    n, big = x.shape[axis], largest(x.dtype)
    largest_logit = jnp.max(x, axis, keepdims=True)
    top = jnp.clip(largest_logit, -big, big)
    index = jnp.clip(labels, 0, n - 1).astype(jnp.int32)
    x_label = jnp.take_along_axis(x, index, axis, mode="promise_in_bounds")
    # exp(-4096) is zero at the label; elsewhere the bump is far above any x - top <= 0. A NaN
    # loses against it in some CPU reductions, and then makes the sum infinite.
    bump = _label_bump(x, labels, axis, 128.0) - 4096
    tail = _total(jnp.exp(jnp.minimum(x - top, bump)), axis)
    is_top = (x_label == largest_logit) & (x_label > -jnp.inf)
    gap = jnp.where(is_top, 0, largest_logit - x_label)
    gap = jnp.where(x_label == -jnp.inf, jnp.inf, gap)
    # The barrier has this computed once, not in each of its users.
    e_label = lax.optimization_barrier(jnp.exp(-gap))
    # Of total = 1 + rest, the rest: the tail of a label at the top, which counts for the one.
    rest = jnp.where(is_top, tail, jnp.maximum(tail - 1, 0) + e_label)
    loss = jnp.log1p(rest) + gap
    # The only sound infinite tail is that of a class of +inf other than the label.
    sound = jnp.isfinite(tail) | ((largest_logit == jnp.inf) & (x_label < jnp.inf))
    valid = (labels >= 0) & (labels < n) & sound & ~jnp.isnan(x_label)
    return _LabelRow(top, tail, tail + e_label, jnp.where(valid, loss, jnp.nan), valid)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def label_nll(x: Array, labels: Array, axis: int) -> Array:
    """`-log softmax(x)[label]`; NaN, with NaN derivatives, for a label out of range.

    `labels` are integers of size one along `axis`.
    """
    return _label_row(x, labels, axis).loss


@partial(label_nll.defjvp, symbolic_zeros=True)
def _label_nll_rule(axis, primals, tangents):
    (x, labels), (v, _) = primals, tangents
    loss = label_nll(x, labels, axis)
    return loss, tangent_sum(
        loss, (v, lambda: _total(_label_nll_gradient(x, labels, axis) * v, axis))
    )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _label_nll_gradient(x: Array, labels: Array, axis: int) -> Array:
    """`softmax(x) - one_hot(label)`, as `(exp(x - top) or -tail) / total`."""
    row = _label_row(x, labels, axis)
    # With no class at all the gradient is zero; with one of +inf it is that class's.
    scale = jnp.where(row.total > 0, 1 / row.total, 0)
    scale = jnp.where(jnp.isinf(row.total), 1, scale)
    scale = jnp.where(row.valid, scale, jnp.nan)
    tail = jnp.where(jnp.isinf(row.tail), 1, row.tail)
    # Compute these once a row, not once an element.
    top, scale, tail = lax.optimization_barrier((row.top, scale, tail))
    bump = _label_bump(x, labels, axis, _power_above(x.shape[axis])) - tail
    return scale * jnp.minimum(jnp.exp(jnp.minimum(x - top, 0)), bump)


def _power_above(n: int) -> float:
    """A power of two, other than 128, whose square exceeds one plus any tail of n classes."""
    return float(2 ** max(8, (n.bit_length() + 3) // 2))


@_label_nll_gradient.defjvp
def _label_nll_gradient_rule(axis, primals, tangents):
    (x, labels), (v, _) = primals, tangents
    p = softmax(x, axis)
    return _label_nll_gradient(x, labels, axis), p * _centred(p, v, axis)
