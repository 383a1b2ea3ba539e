"""Trace-time checks of dtypes, shapes and axes: an error names what came and the fix."""

import difflib
import math
import operator
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxloss._core import callers
from jaxloss._core.numerics import compute_dtype

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


def option(name: str, value: ArrayLike, low: float, high: float, *, closed: bool = True) -> None:
    """The range of a numeric setting, as far as it is known at trace time."""
    if isinstance(value, (int, float, np.number)) and not (
        low <= value and (value <= high if closed else value < high)
    ):
        raise ValueError(f"{name} must be in [{low}, {high}{']' if closed else ')'}, got {value}")


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


def setting(name: str, value: ArrayLike, to_name: str, like: Array) -> Array:
    """A numeric setting of each entry, or of all: of the dtype of `like`, fitting its shape."""
    x = numeric(name, value, like.dtype)
    fits(name, x, to_name, like.shape)
    return x


def scalar(
    name: str,
    value: ArrayLike,
    dtype: DTypeLike,
    low: float | None = None,
    high: float = float("inf"),
) -> Array:
    """A numeric setting of the whole loss, in [low, high] as far as that is known."""
    if low is not None:
        option(name, value, low, high)
    x = numeric(name, value, dtype)
    fits(name, x, "a scalar", ())
    return x


def positive(name: str, value: ArrayLike, dtype: DTypeLike) -> Array:
    """A setting of the whole loss that may not be zero."""
    return scalar(name, value, dtype, float(jnp.finfo(dtype).tiny))


def of_classes(
    name: str, x: ArrayLike | None, to_name: str, size: int, dtype: DTypeLike
) -> Array | None:
    """A numeric setting of each class."""
    if x is None:
        return None
    x = numeric(name, x, dtype)
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


def optional_operand(
    name: str, value: ArrayLike, dtype: DTypeLike, shape: tuple[int, ...]
) -> Array | None:
    """A numeric setting as an operand; None, which costs nothing, if it is plainly zero."""
    if isinstance(value, (int, float)) and value == 0:
        return None
    x = numeric(name, value, dtype)
    fits(name, x, "logits" if shape else "one loss", shape)
    return x


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
