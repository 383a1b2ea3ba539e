"""All pairs of two sets of embeddings, a block of rows at a time.

The rows of a block meet all columns in one matrix product; no array is larger than that
product. A sweep over blocks keeps one of them at a time, in every mode of differentiation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from jaxloss._core import checks, inputs
from jaxloss._core.vectors import unit_vector

AxisName = str | tuple[str, ...] | None


class Side(NamedTuple):
    """One of the two sets: its rows, or the columns that these meet."""

    vectors: Array  # [n, features]
    place: Array  # [n], the places in the whole batch
    labels: Array | None  # [n]
    live: Array | None  # [n]


def vectors(name: str, x: ArrayLike, dtype: DTypeLike | None = None) -> Array:
    """Check and convert a batch of embeddings; with `dtype`, one that goes with another."""
    out = checks.predictions(name, x) if dtype is None else checks.numeric(name, x, dtype)
    if out.ndim != 2:
        raise ValueError(
            f"{name} of shape {out.shape} must have the shape (batch, features); "
            f"use jax.vmap over further axes"
        )
    return out


def towers(x_name: str, x: ArrayLike, y_name: str, y: ArrayLike) -> tuple[Array, Array]:
    """Two batches of embeddings, the rows of one paired with those of the other."""
    x = vectors(x_name, x)
    y = vectors(y_name, y, x.dtype)
    if x.shape != y.shape:
        raise ValueError(
            f"{x_name} of shape {x.shape} and {y_name} of shape {y.shape} must have the same "
            f"shape: row i of one goes with row i of the other"
        )
    return x, y


def labels(name: str, given: ArrayLike, x_name: str, x: Array) -> Array:
    """Check the integer labels of a batch of embeddings."""
    out = checks.integers(name, given, f"rows of equal labels are alike; cast {name} to int32")
    return _of_each_row(name, out, x_name, x)


def mask(where: ArrayLike | None, x_name: str, x: Array) -> Array | None:
    if where is None:
        return None
    return _of_each_row("where", checks.boolean("where", where), x_name, x)


def same_features(x_name: str, x: Array, y_name: str, y: Array) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{x_name} of shape {x.shape} and {y_name} of shape {y.shape} must have the same "
            f"number of features"
        )


def comparable(x: Array, y: Array, x_labels: Array, y_labels: Array) -> None:
    same_features("embeddings", x, "reference_embeddings", y)
    if x_labels.dtype != y_labels.dtype:
        raise TypeError(
            f"labels of dtype {x_labels.dtype} and reference_labels of dtype {y_labels.dtype} "
            f"must have the same; cast one of them"
        )


def _of_each_row(name: str, a: Array, x_name: str, x: Array) -> Array:
    if a.shape != x.shape[:1]:
        raise ValueError(
            f"{name} of shape {a.shape} do not match {x_name} of shape {x.shape}: expected "
            f"{name} of shape {x.shape[:1]}"
        )
    return a


def side(
    x: Array, labels: Array | None, live: Array | None, normalize: bool, axis_name: AxisName
) -> Side:
    """This device's rows; those that are masked get harmless contents."""
    (x,) = inputs.mask(None if live is None else live[:, None], x)
    place = jnp.arange(x.shape[0])
    if axis_name is not None:
        place += lax.axis_index(axis_name) * x.shape[0]
    return Side(unit_vector(x, 1) if normalize else x, place, labels, live)


def columns(rows: Side, axis_name: AxisName) -> Side:
    """The rows of all devices, in their order."""
    if axis_name is None:
        return rows
    return jax.tree.map(lambda a: lax.all_gather(a, axis_name, tiled=True), rows)


def extended(others: Side, more: Side) -> Side:
    """Further columns, in places below 0 and so none of the batch's; their labels say nothing."""
    joined = jnp.concatenate([others.vectors, more.vectors])
    place = jnp.concatenate([others.place, -1 - more.place])
    labels, live = others.labels, others.live
    if labels is not None:
        labels = jnp.concatenate([labels, jnp.zeros(more.place.shape, labels.dtype)])
    if live is not None:
        live = jnp.concatenate([live, jnp.ones(more.place.shape, bool)])
    return Side(joined, place, labels, live)


def blocks(x: Array, size: int, axis: int) -> Array:
    """Parts of that size along a new first axis, the last of them filled up with zeros."""
    x = jnp.pad(x, [(0, -n % size if a == axis else 0) for a, n in enumerate(x.shape)])
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    return jnp.moveaxis(x.reshape(*before, x.shape[axis] // size, size, *after), axis, 0)


def sweep(block: Callable[..., Any], rows: Side, others: Side, size: int | None, *settings: Array):
    """`block(rows, others, *settings)`, results for each row, from blocks of `size` rows."""
    n = rows.vectors.shape[0]
    if size is None or size >= n:
        return block(rows, others, *settings)
    # A loop keeps the blocks apart by itself.
    block = partial(jax.checkpoint, prevent_cse=False)(block)
    split = jax.tree.map(lambda a: blocks(a, size, 0), rows)
    results = lax.map(lambda some: block(some, others, *settings), split)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], results)


def products(rows: Side, others: Side) -> Array:
    """Inner products of the vectors."""
    return matmul(rows.vectors, others.vectors.T)


def matmul(x: Array, y: Array) -> Array:
    """Inner products, as `precision` says."""
    return jnp.matmul(x, y, precision=precision())


def precision() -> lax.Precision | None:
    """Full precision for inner products, also where the platform multiplies in less by default.

    Unless a user has said how to multiply: an error of 2**-9 counts for a temperature of 1/100.
    """
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return lax.Precision.HIGHEST if asked is None else None


def same_place(rows: Side, others: Side) -> Array:
    return rows.place[:, None] == others.place[None, :]


def present(others: Side) -> Array | None:
    return None if others.live is None else others.live[None, :]


def kinds(rows: Side, others: Side) -> tuple[Array, Array]:
    """Which pairs are positive, of one label but not of one place, and which negative."""
    assert rows.labels is not None and others.labels is not None
    alike = rows.labels[:, None] == others.labels[None, :]
    live = present(others)
    positive, negative = alike & ~same_place(rows, others), ~alike
    return (positive, negative) if live is None else (positive & live, negative & live)
