"""Weights, masks and reductions: the only division by a count in the library."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.numerics import times

Reduction = Literal["none", "sum", "mean", "weighted_mean"]


def check_reduction(reduction: str) -> None:
    if reduction not in get_args(Reduction):
        names = ", ".join(repr(name) for name in get_args(Reduction))
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


def reduce_losses(
    losses: Array,
    reduction: Reduction,
    *,
    weights: Array | None = None,
    where: Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array:
    """Weigh, mask and reduce per-example losses.

    Args:
        losses: any shape, floating.
        reduction: "none", "sum", "mean" (the sum over the number of examples in `where`) or
            "weighted_mean" (the sum over the sum of their weights).
        weights, where: floats and booleans of the shape of `losses`. An example that is
            masked, or has weight zero, adds nothing, whatever its loss.
        axis_name: mapped axes over which the count, or the sum of weights, is taken. The
            result is then this device's share: their sum over the axes is the whole mean.

    An empty or fully masked batch reduces to 0, with derivatives of 0.
    """
    if reduction == "none":
        return _weighed(losses, weights, where)
    if reduction == "sum":
        return jnp.sum(_weighed(losses, weights, where))
    total, size = total_and_size(losses, reduction, weights=weights, where=where)
    if axis_name is not None:
        size = lax.psum(size, axis_name)
    return per_size(total, size)


def total_and_size(
    losses: Array,
    reduction: Reduction,
    *,
    weights: Array | None = None,
    where: Array | None = None,
) -> tuple[Array, Array]:
    """What a mean divides, and by what; arguments as those of `reduce_losses`."""
    if reduction in ("none", "sum"):
        raise ValueError(
            f"reduction={reduction!r} is no mean, so it has no size; choose another reduction, or "
            f"divide by a size of your own: jaxloss.Mean(total, size)"
        )
    total = jnp.sum(_weighed(losses, weights, where))
    return total, _size(losses, reduction, weights, where)


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
