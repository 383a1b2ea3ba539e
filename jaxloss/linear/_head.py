"""A linear layer whose outputs are logits: its matmuls, forward and backward."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.numerics import compute_dtype


class Head(NamedTuple):
    """A linear layer and its inputs, or one thing for each of them, such as their tangents."""

    hidden: Any  # [N, D]
    weight: Any  # [D, V], or [V, D] with `vocab_first`


def vocab_size(head: Head, vocab_first: bool) -> int:
    """The number of classes on this device."""
    return head.weight.shape[0 if vocab_first else 1]


def logits_of(head: Head, vocab_first: bool) -> Array:
    return _dot(head.hidden, (1,), head.weight, (1 if vocab_first else 0,))


def logits_dtype(*heads: Head) -> jnp.dtype:
    dtypes = (compute_dtype(x.dtype) for head in heads for x in head)
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def head_gradients(
    head: Head, g: Array, vocab_first: bool, hidden: bool, weight: bool
) -> tuple[Array | None, Array | None]:
    """Backpropagate the gradient `g` of the logits to `hidden`, `weight` or both.

    Tokens may have several axes.
    """
    g, tokens = for_matmuls(g, head), tuple(range(g.ndim - 1))
    g_hidden = g_weight = None
    if hidden:
        g_hidden = _dot(g, (g.ndim - 1,), head.weight, (0 if vocab_first else 1,))
    if weight:
        operands = (g, head.hidden) if vocab_first else (head.hidden, g)
        g_weight = _dot(operands[0], tokens, operands[1], tokens)
    return g_hidden, g_weight


def for_matmuls(g: Array, head: Head) -> Array:
    """Round to the dtype of the operands, in which the logits were multiplied too."""
    return g.astype(head.weight.dtype) if head.hidden.dtype == head.weight.dtype else g


def _dot(a: Array, axes_a: tuple[int, ...], b: Array, axes_b: tuple[int, ...]) -> Array:
    """Contract some axes of each, accumulating in float32 (float64 for float64)."""
    dims = ((axes_a, axes_b), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=logits_dtype(Head(a, b)))


def in_dtypes(gradients: Sequence[Array | None], like: Sequence[Array]) -> tuple[Array | None, ...]:
    """Round gradients, accumulated in float32, to the dtypes of their operands."""
    pairs = zip(gradients, like, strict=True)
    return tuple(None if g is None else _rounded(g, x.dtype) for g, x in pairs)


def _rounded(g: Array, dtype: Any) -> Array:
    # Without the barrier XLA keeps the float32 array until the cotangent is known.
    return g if g.dtype == dtype else lax.optimization_barrier(g.astype(dtype))
