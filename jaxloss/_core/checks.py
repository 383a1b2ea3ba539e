"""Trace-time checks of dtypes, shapes and axes: an error names what came and the fix."""

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from jaxloss._core import callers
from jaxloss._core.numerics import compute_dtype
from jaxloss._core.reports import report

Axis = int | Sequence[int] | None


def floating(name: str, x: ArrayLike) -> Array:
    callers.refuse_keras()
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name} must be floating point, got {x.dtype} of shape {x.shape}; "
            f"cast with {name}.astype(jnp.float32)"
        )
    return x


def predictions(name: str, x: ArrayLike) -> Array:
    """A floating-point array, in the dtype that the loss is computed in."""
    x = floating(name, x)
    return x.astype(compute_dtype(x.dtype))


def numeric(name: str, x: ArrayLike, dtype: DTypeLike) -> Array:
    """A real array (bool, integer or floating) cast to `dtype`."""
    x = jnp.asarray(x)
    real = jnp.issubdtype(x.dtype, jnp.number) and not jnp.issubdtype(x.dtype, jnp.complexfloating)
    if not (real or x.dtype == jnp.bool_):
        raise TypeError(f"{name} must be real numbers, got {x.dtype} of shape {x.shape}")
    return x.astype(dtype)


def boolean(name: str, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if x.dtype != jnp.bool_:
        raise TypeError(
            f"{name} must be boolean, got {x.dtype} of shape {x.shape}; write {name} != 0"
        )
    return x


def integers(name: str, x: ArrayLike, instead: str) -> Array:
    """An integer array of at least 32 bits, so that comparing it with a size cannot wrap."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {x.dtype} of shape {x.shape}; {instead}")
    return x.astype(jnp.int32) if x.dtype.itemsize < 4 else x


def fits(name: str, x: Array, to_name: str, shape: tuple[int, ...]) -> None:
    """A scalar, or the same rank with each size equal or one; never a new leading axis."""
    if x.ndim and not (
        x.ndim == len(shape) and all(a in (b, 1) for a, b in zip(x.shape, shape, strict=True))
    ):
        raise ValueError(
            f"{name} of shape {x.shape} do not fit {to_name} of shape {shape}: give the same "
            f"shape, a scalar, or the same rank with axes of size 1"
        )


def common_shape(a_name: str, a: Array, b_name: str, b: Array) -> tuple[int, ...]:
    """The shape of two arrays together: equal ranks, sizes equal or one, or a scalar."""
    if a.ndim and b.ndim and a.ndim != b.ndim:
        raise ValueError(
            f"{a_name} of shape {a.shape} and {b_name} of shape {b.shape} differ in rank; "
            f"reshape one of them, e.g. {b_name}.reshape({a_name}.shape)"
        )
    try:
        return jnp.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(
            f"{a_name} of shape {a.shape} and {b_name} of shape {b.shape} do not match"
        ) from None


@dataclass(frozen=True)
class Range:
    """Where a numeric setting may be."""

    low: float
    high: float = math.inf
    closed: bool = True

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{']' if self.closed else ')'}"

    def holds(self, x: Any) -> Any:
        above = x <= self.high if self.closed else x < self.high
        return (self.low <= x) & above


NONNEGATIVE, SHARE = Range(0.0), Range(0.0, 1.0)


def _within(name: str, value: ArrayLike, x: Array, allowed: Range | None) -> Array:
    """`x`, made of the setting `value`; a setting known while tracing is checked at once."""
    if allowed is None:
        return x
    if isinstance(value, Tracer) or not getattr(value, "is_fully_addressable", True):
        # Of a NaN nothing is said: it is loud by itself.
        message = f"{name} must be in {allowed}, but reaches from {{low}} to {{high}}"
        ok = jnp.all(allowed.holds(x) | jnp.isnan(x))
        low, high = jnp.min(x, initial=math.inf), jnp.max(x, initial=-math.inf)
        return report(x, ok, message, low=low, high=high)
    known = np.asarray(value, np.float64)
    if not np.all(allowed.holds(known) | (np.isnan(known) & (known.ndim > 0))):
        raise ValueError(f"{name} must be in {allowed}, got {value}")
    return x


def axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The class axes, each in [0, ndim); None means all."""
    if axis is None:
        return tuple(range(ndim))
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    out = tuple(operator.index(a) + ndim * (a < 0) for a in given)
    if not given or len(set(out)) < len(out) or not all(0 <= a < ndim for a in out):
        raise ValueError(f"axis {axis} does not name distinct axes of an array of rank {ndim}")
    return out


def without(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for a, n in enumerate(shape) if a not in axis)


def classes_last(x: Array, axis: tuple[int, ...]) -> Array:
    """Move several class axes to the end, in the order given, and make them one."""
    batch = without(x.shape, axis)
    order = tuple(a for a in range(x.ndim) if a not in axis) + axis
    return x.transpose(order).reshape(*batch, math.prod(x.shape[a] for a in axis))


def setting(
    name: str, value: ArrayLike, to_name: str, like: Array, allowed: Range | None = None
) -> Array:
    """A numeric setting of all entries, of each, or of those of the trailing axes.

    It has the dtype and, unless it is a scalar, the shape of `like`.
    """
    x = numeric(name, value, like.dtype)
    padded = (1,) * (like.ndim - x.ndim) + x.shape
    if len(padded) > like.ndim or any(
        a not in (b, 1) for a, b in zip(padded, like.shape, strict=True)
    ):
        raise ValueError(
            f"{name} of shape {x.shape} do not fit {to_name} of shape {like.shape}: give a "
            f"scalar, or a shape that broadcasts along the trailing axes"
        )
    x = _within(name, value, x, allowed)
    return jnp.broadcast_to(x, like.shape) if x.ndim else x


def scalar(name: str, value: ArrayLike, dtype: DTypeLike, allowed: Range | None = None) -> Array:
    """A numeric setting of the whole loss."""
    x = numeric(name, value, dtype)
    fits(name, x, "a scalar", ())
    return _within(name, value, x, allowed)


def positive_range(dtype: DTypeLike) -> Range:
    return Range(float(jnp.finfo(dtype).tiny))


def positive(name: str, value: ArrayLike, dtype: DTypeLike) -> Array:
    """A setting of the whole loss that may not be zero."""
    return scalar(name, value, dtype, positive_range(dtype))


def of_classes(
    name: str, x: ArrayLike | None, to_name: str, size: int, dtype: DTypeLike
) -> Array | None:
    """A setting of each class, numeric or boolean."""
    if x is None:
        return None
    x = boolean(name, x) if dtype == jnp.bool_ else numeric(name, x, dtype)
    if x.shape != (size,):
        raise ValueError(
            f"{name} of shape {x.shape} do not match {to_name} with {size} classes: expected "
            f"{name} of shape {(size,)}"
        )
    return x


def chunk_size(size: int | None) -> int | None:
    if size is None:
        return None
    if (size := operator.index(size)) < 1:
        raise ValueError(f"chunk_size must be at least 1, or None, got {size}")
    return size


def optional(name: str, value: ArrayLike, of: Callable[..., Array], *rest: Any) -> Array | None:
    """`of(name, value, *rest)`, an operand; None, which costs nothing, if it is plainly zero."""
    if isinstance(value, (int, float)) and value == 0:
        return None
    return of(name, value, *rest)


def closest(name: str, known: Iterable[str]) -> str | None:
    """What was meant by a name that is not known."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def check_keywords(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Keywords that a function, or a constructor, takes."""
    for name in given:
        if name not in known:
            meant = closest(name, known)
            hint = f"did you mean {meant!r}?" if meant else f"it takes {', '.join(known) or 'none'}"
            raise TypeError(f"{owner} has no option {name!r}; {hint}")
