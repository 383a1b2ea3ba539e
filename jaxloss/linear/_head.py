"""A linear layer whose outputs are logits: its matmuls, forward and backward."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxloss._core.numerics import compute_dtype


class Head(NamedTuple):
    """A linear layer and its inputs, or one thing for each of them, such as their tangents."""

    hidden: Any  # [N, D]
    weight: Any  # [D, V], or [V, D] with `vocab_first`


def vocab_size(head: Head, vocab_first: bool) -> int:
    """The number of classes on this device."""
    return head.weight.shape[0 if vocab_first else 1]


def logits_of(head: Head, vocab_first: bool, precision: lax.Precision | None = None) -> Array:
    return _dot(head.hidden, (1,), head.weight, (1 if vocab_first else 0,), precision)


def logits_dtype(*heads: Head) -> jnp.dtype:
    dtypes = (compute_dtype(x.dtype) for head in heads for x in head)
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def head_gradients(
    head: Head, g: Array, vocab_first: bool, hidden: bool, weight: bool
) -> tuple[Array | None, Array | None]:
    """Backpropagate the gradient `g` of the logits to `hidden`, `weight` or both."""
    return gradients_of_rounded(head, *for_matmuls(g, head), vocab_first, hidden, weight)


def gradients_of_rounded(
    head: Head, g: Array, unit: Array | None, vocab_first: bool, hidden: bool, weight: bool
) -> tuple[Array | None, Array | None]:
    """The same from what `for_matmuls` returned; tokens may have several axes."""
    tokens = tuple(range(g.ndim - 1))
    g_hidden = g_weight = None
    if hidden:
        g_hidden = _dot(g, (g.ndim - 1,), head.weight, (0 if vocab_first else 1,))
    if weight:
        operands = (g, head.hidden) if vocab_first else (head.hidden, g)
        g_weight = _dot(operands[0], tokens, operands[1], tokens)
    return _times(unit, g_hidden), _times(unit, g_weight)


def for_matmuls(g: Array, head: Head) -> tuple[Array, Array | None]:
    """In the dtype of the operands, like the matmul that made the logits; and its unit, if any."""
    unit, same = None, head.hidden.dtype == head.weight.dtype
    if same and _is_short(head.weight.dtype):
        g, unit = _in_units(g)
    return (g.astype(head.weight.dtype) if same else g), unit


def in_one_unit(g: Array, units: Array | None) -> tuple[Array, Array | None]:
    """Gradients of several chunks, along the first axis, in the largest of their units."""
    if units is None:
        return g, None
    unit = jnp.max(units)

    def scale(i: Any, g: Array) -> Array:  # In place.
        part = g[i].astype(units.dtype) * (units[i] / unit)
        return lax.dynamic_update_index_in_dim(g, part.astype(g.dtype), i, 0)

    return lax.fori_loop(0, g.shape[0], scale, g), unit


def _times(unit: Array | None, x: Array | None) -> Array | None:
    return x if unit is None or x is None else unit * x


def _is_short(dtype: DTypeLike) -> bool:
    """Whether the range of a dtype is that of float16, too short for a mean over many tokens."""
    return jnp.finfo(dtype).minexp > jnp.finfo(jnp.float32).minexp


def _in_units(g: Array) -> tuple[Array, Array]:
    """`g` by a power of two, so that its largest entry is near the largest float16; and that."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(lax.stop_gradient(g))))
    unit = jnp.ldexp(jnp.ones((), g.dtype), jnp.clip(exponent - 15, -100, 100))
    return g / unit, unit


def _dot(
    a: Array,
    axes_a: tuple[int, ...],
    b: Array,
    axes_b: tuple[int, ...],
    precision: lax.Precision | None = None,
) -> Array:
    """Contract some axes of each, accumulating in float32 (float64 for float64)."""
    dims, wide = ((axes_a, axes_b), ((), ())), logits_dtype(Head(a, b))
    return lax.dot_general(a, b, dims, precision, preferred_element_type=wide)


def in_dtypes(gradients: Sequence[Array | None], like: Sequence[Array]) -> tuple[Array | None, ...]:
    """Round gradients, accumulated in float32, to the dtypes that keep them."""
    pairs = zip(gradients, like, strict=True)
    return tuple(None if g is None else _rounded(g, kept_dtype(x.dtype)) for g, x in pairs)


def kept_dtype(dtype: DTypeLike) -> jnp.dtype:
    """In which the gradient by an operand is kept until its cotangent is known.

    float16 would lose what 1 / N makes small, before a loss scale makes it large again.
    """
    return compute_dtype(dtype) if _is_short(dtype) else jnp.dtype(dtype)


def _rounded(g: Array, dtype: Any) -> Array:
    # Without the barrier XLA keeps the float32 array until the cotangent is known.
    return g if g.dtype == dtype else lax.optimization_barrier(g.astype(dtype))
