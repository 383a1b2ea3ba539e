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

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxloss._core.numerics import largest
from jaxloss._core.split import ClassAxis, broadcast_rows, largest_of, total


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


def finite_gap(x: Array, top: Array) -> Array:
    """`top - x`, of finite numbers for infinite ones but for a logit of -inf."""
    big = largest(x.dtype)
    return jnp.clip(top, -big, big) - jnp.minimum(x, big)


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
def softmax_and_complement(x: Array, axis: ClassAxis) -> tuple[Array, Array]:
    """Probabilities p, and 1 - p."""
    return softmax(x, axis).p, complement(x, axis)


@softmax_and_complement.defjvp
def _softmax_and_complement_rule(axis, primals, tangents):
    # d (1 - p) = -d p: the pieces' own rules would work it out twice, at three times the cost.
    (x,), (v,) = primals, tangents
    p, q = softmax_and_complement(x, axis)
    dp = p * centred(p, v, axis)
    return (p, q), (dp, -dp)


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
