"""Reductions over the classes of a row, which may be split over devices or come in groups.

All take the class axis as a non-negative int and keep it, with size one, in what they
reduce. Where the axis is a `Split`, each device holds some classes of every row, and what is
reduced is that of all devices. Where `groups` are given, which number the parts of a row that
are normalised on their own (integers in [0, n), along the last axis), what is reduced is kept
at full size.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core import passes
from jaxloss._core.mapped import automatic


@dataclass(frozen=True)
class Split:
    """The index of a class axis whose classes are split, evenly, over mapped devices."""

    axis: int
    axis_name: str | tuple[str, ...]

    def __index__(self) -> int:
        return self.axis


ClassAxis = int | Split


def class_shape(x: Array, axis: ClassAxis) -> tuple[int, ...]:
    """The shape of one value for each class, to broadcast to `x`."""
    return tuple(n if a == operator.index(axis) else 1 for a, n in enumerate(x.shape))


def class_index(x: Array, axis: ClassAxis) -> Array:
    """The number of each class on this device."""
    return lax.broadcasted_iota(jnp.int32, class_shape(x, axis), operator.index(axis))


def total_classes(n: int, axis: ClassAxis) -> int:
    """How many classes there are on all devices, if there are `n` on each."""
    return n * lax.axis_size(axis.axis_name) if isinstance(axis, Split) else n


def classes(x: Array, axis: ClassAxis) -> int:
    """How many classes a row has, on all devices."""
    return total_classes(x.shape[axis], axis)


def _of_groups(segment: Callable[..., Array], x: Array, groups: Array) -> Array:
    """Reduce each part of each row, for all of its entries."""

    def row(x, groups):
        return segment(x, groups, num_segments=x.size)[groups]

    return jnp.vectorize(row, signature="(n),(n)->(n)")(x, groups)


def _each(x: Array, axis: ClassAxis) -> Sequence[Array] | None:
    """The classes one by one, where XLA's CPU backend is much faster with them so.

    These are few along an axis that is not the last: then rows are computed side by side, as
    elementwise arithmetic, and fused with what is around them.
    """
    n, a = x.shape[axis], operator.index(axis)
    few = a < x.ndim - 1 and isinstance(n, int) and 0 < n <= 8  # Exported, it may be a symbol.
    return lax.split(x, (1,) * n, a) if few else None


def broadcast_rows(of_row: Array, x: Array, axis: ClassAxis) -> Array:
    """What is of a row for each class, as `x` has them. Its transpose is a `total`."""
    n, a = x.shape[axis], operator.index(axis)
    if of_row.shape[a] == n or _each(x, axis) is None:
        return of_row
    return lax.concatenate([of_row] * n, a)


def total(x: Array, axis: ClassAxis, groups: Array | None = None) -> Array:
    if groups is not None:
        return _of_groups(jax.ops.segment_sum, x, groups)
    each = _each(x, axis)
    if each:
        local = sum(each[1:], each[0])
    else:
        local = passes.settled(jnp.sum(x, operator.index(axis), keepdims=True))
    return lax.psum(local, axis.axis_name) if isinstance(axis, Split) else local


def sums(
    terms: Callable[..., Sequence[Array]], axis: ClassAxis, *operands: Array
) -> Sequence[Array]:
    """The total of each of `terms(*operands)`."""
    local = passes.sums(terms, operator.index(axis), *operands)
    return lax.psum(local, axis.axis_name) if isinstance(axis, Split) else local


def nan_beside_inf(x: Array, top: Array, axis: ClassAxis) -> Array:
    local = passes.nan_beside_inf(x, top, operator.index(axis))
    return lax.psum(local, axis.axis_name) if isinstance(axis, Split) else local


def largest_of(x: Array, axis: ClassAxis, groups: Array | None = None) -> Array:
    if groups is not None:
        return _of_groups(jax.ops.segment_max, x, groups)
    each = _each(x, axis)
    local = reduce(jnp.maximum, each) if each else jnp.max(x, operator.index(axis), keepdims=True)
    return lax.pmax(local, axis.axis_name) if isinstance(axis, Split) else local


def of_label(x: Array, labels: Array, axis: ClassAxis) -> Array:
    """The label's entry of each row, that of the nearest class where there is none."""
    n, a = x.shape[axis], operator.index(axis)
    index = jnp.clip(labels, 0, classes(x, axis) - 1)
    local = local_labels(index, n, axis)

    def gathered(x: Array, local: Array) -> Array:
        return jnp.take_along_axis(x, jnp.clip(local, 0, n - 1), a, mode="promise_in_bounds")

    def selected(x: Array, local: Array) -> Array:
        index = class_index(x, axis).astype(local.dtype)
        return jnp.sum(jnp.where(index == local, x, 0), a, keepdims=True)

    if x.size == n:  # One row, as of weights of classes, for all labels.
        entry = automatic(gathered, jax.typeof(local).sharding.spec, x, local)
    else:  # A TPU would write out all logits in float32 to gather from them.
        entry = lax.platform_dependent(x, local, tpu=selected, default=gathered)
    if not isinstance(axis, Split):
        return entry
    return lax.psum(jnp.where((local >= 0) & (local < n), entry, 0), axis.axis_name)


def local_labels(labels: Array, n: int, axis: ClassAxis) -> Array:
    """Labels, counted from the first of this device's `n` classes."""
    if not isinstance(axis, Split):
        return labels
    return labels - lax.axis_index(axis.axis_name).astype(labels.dtype) * n
