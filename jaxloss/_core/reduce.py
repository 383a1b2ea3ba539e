"""Weights, masks and reductions: the only division by a count in the library."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import callers, checks
from jaxloss._core.numerics import times

Reduction = Literal["none", "sum", "mean", "weighted_mean"]
SequenceReduction = Literal["sequence_mean", "sequence_sum"]
ClassReduction = Literal["class_weighted_mean"]


def check_reduction(reduction: str, *, sequences: bool = False, classes: bool = False) -> None:
    known = get_args(Reduction)
    known += (get_args(SequenceReduction) if sequences else ()) + (
        get_args(ClassReduction) if classes else ()
    )
    if reduction not in known:
        names = ", ".join(repr(name) for name in known)
        raise ValueError(f"reduction must be one of {names}, got {reduction!r}")


def per_example(name: str, x: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast weights or a mask, given for the leading axes, to per-example losses."""
    leading = shape[: x.ndim]
    if x.ndim > len(shape) or any(a not in (b, 1) for a, b in zip(x.shape, leading, strict=True)):
        raise ValueError(
            f"{name} of shape {x.shape} do not fit losses of shape {shape}: give a scalar, or "
            f"the shape of the leading axes, with axes of size 1 where they repeat"
        )
    return jnp.broadcast_to(jnp.expand_dims(x, tuple(range(x.ndim, len(shape)))), shape)


def segments_of(segments: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """Check and broadcast the numbers of sequences, of losses of `shape`."""
    if segments is None:
        return None
    segments = checks.integers("segments", segments, "number the sequences of a row")
    checks.fits("segments", segments, "losses", shape)
    return jnp.broadcast_to(segments, shape)


def reduce_losses(
    losses: Array,
    reduction: Reduction | SequenceReduction | ClassReduction,
    *,
    weights: Array | None = None,
    where: Array | None = None,
    segments: Array | None = None,
    of_labels: Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    """Weigh, mask and reduce per-example losses.

    Args:
        losses: any shape, floating.
        reduction: "none", "sum", "mean" (the sum over the number of examples in `where`) or
            "weighted_mean" (the sum over the sum of their weights); "sequence_mean" and
            "sequence_sum" are the mean over sequences of the mean, or sum, over their tokens;
            "class_weighted_mean" is the sum over the sum of `of_labels`, weighted.
        weights, where: floats and booleans of the shape of `losses`. An example that is
            masked, or has weight zero, adds nothing, whatever its loss.
        segments: integers of the shape of `losses`, for the last two. Tokens of one row, along the
            last axis, with the same number are a sequence; by default all tokens of a row are.
        of_labels: the weights of the classes that are the labels, by which the losses are already
            multiplied.
        axis_name: mapped axes over which the count, or the sum of weights, is taken. The
            result is then this device's share: their sum over the axes is the whole mean.

    An empty or fully masked batch reduces to 0, with derivatives of 0.
    """
    callers.refuse_keras()
    if reduction in ("none", "sum"):
        _check_segments(reduction, segments)
        weighed = _weighed(losses, weights, where)
        return weighed if reduction == "none" else jnp.sum(weighed)
    of_losses = {"weights": weights, "where": where, "segments": segments, "of_labels": of_labels}
    total, size = total_and_size(losses, reduction, **of_losses)
    if axis_name is not None:
        size = lax.psum(size, axis_name)
    return per_size(total, size)


def total_and_size(
    losses: Array,
    reduction: Reduction | SequenceReduction | ClassReduction,
    *,
    weights: Array | None = None,
    where: Array | None = None,
    segments: Array | None = None,
    of_labels: Array | None = None,
) -> tuple[Array, Array]:
    """What a mean divides, and by what; arguments as those of `reduce_losses`."""
    if reduction in ("none", "sum"):
        raise ValueError(
            f"reduction={reduction!r} is no mean, so it has no size; choose another reduction, or "
            f"divide by a size of your own: jaxloss.Mean(total, size)"
        )
    weighed = _weighed(losses, weights, where)
    if reduction == "sequence_mean" or reduction == "sequence_sum":
        of_own, size = _sequences(losses, where, segments)
        weighed = weighed if reduction == "sequence_sum" else per_size(weighed, of_own)
        return jnp.sum(weighed), size
    _check_segments(reduction, segments)
    if reduction == "class_weighted_mean":
        assert of_labels is not None
        return jnp.sum(weighed), jnp.sum(_weighed(of_labels, weights, where))
    return jnp.sum(weighed), _size(losses, reduction, weights, where)


def _check_segments(reduction: str, segments: Array | None) -> None:
    if segments is not None:
        raise ValueError(
            f"segments say what is a sequence, for the reductions 'sequence_mean' and "
            f"'sequence_sum', but reduction={reduction!r}"
        )


def _sequences(losses: Array, where: Array | None, segments: Array | None) -> tuple[Array, Array]:
    """How many tokens the sequence of each token has, and how many sequences have any."""
    if not losses.ndim:
        raise ValueError("a reduction of sequences needs losses of tokens, [..., T], got a scalar")
    live = jnp.ones(losses.shape, bool) if where is None else where
    if segments is None:
        counts = of_own = jnp.sum(live, -1, keepdims=True, dtype=jnp.int32)
    else:
        counts, of_own = _counts_of_segments(live, segments)
    number = count(jax.ShapeDtypeStruct(counts.shape, losses.dtype), counts > 0)
    return jnp.broadcast_to(of_own, losses.shape).astype(losses.dtype), number


def _counts_of_segments(live: Array, segments: Array) -> tuple[Array, Array]:
    """How many of each sequence count: one number a sequence (0 elsewhere), and one a token."""
    # By sorting, as neither scatters nor gathers are fast, or split over devices, everywhere.
    axis = live.ndim - 1
    each = live.astype(jnp.int32) + jnp.zeros_like(segments, dtype=jnp.int32)
    # With sharded operands all need one type.
    place = lax.broadcasted_iota(jnp.int32, live.shape, axis) + jnp.zeros_like(each)
    segments += jnp.zeros_like(each, dtype=segments.dtype)
    segments, old_place, each = lax.sort((segments, place, each), dimension=axis, num_keys=1)
    first = (place == 0) | (segments != jnp.roll(segments, 1, axis))
    last = (place == live.shape[axis] - 1) | (segments != jnp.roll(segments, -1, axis))
    upto = lax.cumsum(each, axis)
    start = lax.cummax(jnp.where(first, upto - each, 0), axis)
    end = lax.cummin(jnp.where(last, upto, live.shape[axis]), axis, reverse=True)
    counts = end - start
    _, of_own = lax.sort((old_place, counts), dimension=axis, num_keys=1)
    return jnp.where(first, counts, 0), of_own


def _weighed(losses: Array, weights: Array | None, where: Array | None) -> Array:
    if where is not None:
        losses = jnp.where(where, losses, 0)
        weights = None if weights is None else jnp.where(where, weights, 0)
    return losses if weights is None else times(weights, losses)


def coefficients(
    losses: Array, reduction: Reduction, *, weights: Array | None, where: Array | None
) -> Array:
    """By what each of `losses` (anything of their shape) is multiplied in the reduced one."""
    each = jnp.ones_like(losses) if weights is None else weights
    each = each if where is None else jnp.where(where, each, 0)
    if reduction == "sum":
        return each
    return per_size(each, _size(losses, reduction, weights, where))


def _size(losses: Array, reduction: Reduction, weights: Array | None, where: Array | None) -> Array:
    """What a mean divides by."""
    if reduction == "weighted_mean" and weights is not None:
        return jnp.sum(weights if where is None else jnp.where(where, weights, 0))
    return count(losses, where)


def per_size(total: Array, size: Array) -> Array:
    """`total / size`, zero where there is nothing to be counted."""
    return jnp.where(size == 0, 0, total / jnp.where(size == 0, 1, size))


def row_mean(losses: Array, axis: tuple[int, ...]) -> Array:
    """The mean over some axes, 0 where they are empty."""
    return jnp.sum(losses, axis) / max(math.prod(losses.shape[a] for a in axis), 1)


def count(losses: Array | jax.ShapeDtypeStruct, where: Array | None) -> Array:
    """How many of `losses` are not masked, in their dtype."""
    if where is None:
        return jnp.asarray(losses.size, losses.dtype)
    # Exact below 2**31 a row and not wrapping around in total.
    rows = jnp.sum(where, -1, dtype=jnp.int32) if where.ndim else where
    return jnp.sum(rows.astype(losses.dtype))
