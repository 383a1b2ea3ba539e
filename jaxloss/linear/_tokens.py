"""Sweeps over chunks of tokens: losses of `hidden @ weight` whose logits exist a chunk at a time.

A loss is a function `rows(logits, labels, shared)` of one chunk, where `logits` has one array
for each head and `shared` holds what all tokens share but the weights (biases, settings).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.numerics import clip_to_finite, compute_dtype, times
from jaxloss.linear._sharding import alike

Rows = Callable[[tuple[Array, ...], Array, Any], Any]


class Head(NamedTuple):
    """A linear layer and its inputs, or what belongs to them, such as their tangents."""

    hidden: Any  # [N, D]
    weight: Any  # [D, V], or [V, D] where the vocabulary comes first


@dataclass(frozen=True)
class Sweep:
    """What to compute, and how: hashable, so that it can be static."""

    rows: Rows
    chunk_size: int
    vocab_first: bool
    # In place of `total_and_gradients`, for what is not differentiated further.
    fast: Callable[..., Any] | None = None


class Wanted(NamedTuple):
    """Of the total, which gradients; in their place, the gradients."""

    hidden: tuple[Any, ...]
    weight: tuple[Any, ...]
    shared: Any
    coefficients: Any


def logits_of(head: Head, vocab_first: bool) -> Array:
    return _dot(head.hidden, 1, head.weight, 1 if vocab_first else 0)


def _logits_of_all(sweep: "Sweep", heads: Sequence[Head]) -> tuple[Array, ...]:
    return tuple(logits_of(head, sweep.vocab_first) for head in heads)


def _of_tokens(hidden: Sequence[Array], heads: Sequence[Head]) -> tuple[Head, ...]:
    """The layers, with some of their inputs."""
    return tuple(Head(h, head.weight) for h, head in zip(hidden, heads, strict=True))


def logits_dtype(*heads: Head) -> jnp.dtype:
    dtypes = (compute_dtype(x.dtype) for head in heads for x in head)
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def _dot(a: Array, of_a: int, b: Array, of_b: int) -> Array:
    """Contract one axis of each, accumulating in float32 (float64 for float64)."""
    dims = (((of_a,), (of_b,)), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=logits_dtype(Head(a, b)))


def _split(size: int, x: Array) -> Array:
    """Chunks along a new first axis, the last filled up with zeros.

    A chunk takes tokens at equal distances: where tokens are split over devices, each of them
    then has its part of each chunk.
    """
    count = max(-(-len(x) // size), 1)
    filled = jnp.pad(x, [(0, count * size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return filled.reshape(size, count, *x.shape[1:]).swapaxes(0, 1)


def _join(n: int, chunks: Array) -> Array:
    return chunks.swapaxes(0, 1).reshape(-1, *chunks.shape[2:])[:n]


def over_chunks(body: Callable[..., tuple[Any, Any]], size: int, tokens: Any) -> tuple[Any, Any]:
    """The sum over chunks of what `body` returns first; what it returns second, of each token."""
    n = len(jax.tree.leaves(tokens)[0])
    chunks = jax.tree.map(partial(_split, size), tokens)
    first = jax.tree.map(lambda x: x[0], chunks)

    def step(summed, chunk):
        more, each = body(chunk)
        return jax.tree.map(jnp.add, summed, more), each

    if n <= size:
        summed, each = body(first)
        return summed, jax.tree.map(lambda x: x[:n], each)
    types = jax.eval_shape(body, first)[0]
    start = jax.tree.map(lambda t: alike(jnp.zeros(t.shape, t.dtype), t), types)
    summed, each = lax.scan(step, start, chunks)
    return summed, jax.tree.map(partial(_join, n), each)


def total_and_gradients(
    sweep: Sweep,
    wanted: Wanted,
    heads: tuple[Head, ...],
    labels: Array,
    shared: Any,
    coefficients: Array,
) -> tuple[Array, Wanted]:
    """`sum(coefficients * losses)` and its gradients, from one look at each chunk's logits.

    For one head that is three matmuls of the size of the logits; a gradient that is not wanted
    costs none.
    """

    # Without this, reverse mode over reverse mode keeps the logits of all chunks.
    @partial(jax.checkpoint, prevent_cse=False)
    def chunk(tokens):
        hidden, labels, a = tokens
        some = _of_tokens(hidden, heads)
        logits = _logits_of_all(sweep, some)
        losses, pull = jax.vjp(lambda x, s: sweep.rows(x, labels, s), logits, shared)
        g_logits, g_shared = pull(alike(a, losses))
        matmuls = [
            head_gradients(head, g, sweep.vocab_first, *which)
            for head, g, *which in zip(some, g_logits, wanted.hidden, wanted.weight, strict=True)
        ]
        g_hidden, g_weight = zip(*matmuls, strict=True)
        g_hidden = in_dtypes(g_hidden, hidden)
        g_shared = jax.tree.map(lambda w, g: g if w else None, wanted.shared, g_shared)
        each = g_hidden, clip_to_finite(losses) if wanted.coefficients else None
        return (jnp.sum(times(a, losses)), g_weight, g_shared), each

    tokens = tuple(head.hidden for head in heads), labels, coefficients
    (total, g_weight, g_shared), (g_hidden, losses) = over_chunks(chunk, sweep.chunk_size, tokens)
    g_weight = in_dtypes(g_weight, [head.weight for head in heads])
    return total, Wanted(g_hidden, g_weight, g_shared, losses)


def in_dtypes(gradients: Sequence[Array | None], like: Sequence[Array]) -> tuple[Array | None, ...]:
    """The one rounding of gradients that were added up in float32."""
    pairs = zip(gradients, like, strict=True)
    return tuple(None if g is None else _rounded(g, x.dtype) for g, x in pairs)


def _rounded(g: Array, dtype: Any) -> Array:
    # Without the barrier XLA keeps the wide array instead, until the cotangent is known.
    return g if g.dtype == dtype else lax.optimization_barrier(g.astype(dtype))


def head_gradients(head: Head, g: Array, vocab_first: bool, hidden: bool, weight: bool):
    # In the dtype of the operands, as in the matmul that made the logits.
    if head.hidden.dtype == head.weight.dtype:
        g = g.astype(head.weight.dtype)
    g_hidden = g_weight = None
    if hidden:
        g_hidden = _dot(g, 1, head.weight, 0 if vocab_first else 1)
    if weight:
        g_weight = _dot(g, 0, head.hidden, 0) if vocab_first else _dot(head.hidden, 0, g, 0)
    return g_hidden, g_weight


def each_token(sweep: Sweep, heads: tuple[Head, ...], labels: Array, shared: Any) -> Any:
    """What `rows` returns, for each token."""

    def chunk(tokens):
        hidden, labels = tokens
        logits = _logits_of_all(sweep, _of_tokens(hidden, heads))
        return (), sweep.rows(logits, labels, shared)

    return over_chunks(chunk, sweep.chunk_size, (tuple(h.hidden for h in heads), labels))[1]


def tangents_of_each_token(
    sweep: Sweep,
    heads: tuple[Head, ...],
    labels: Array,
    shared: Any,
    d_heads: tuple[Head, ...],
    d_shared: Any,
) -> Any:
    """The derivative of `each_token` along a direction.

    A head's tangents are None where they are zero, and else in float32 or float64.
    """

    @partial(jax.checkpoint, prevent_cse=False)
    def chunk(tokens):
        hidden, d_hidden, labels = tokens
        some = _of_tokens(hidden, heads)
        logits, d_logits = _logits_of_all(sweep, some), []
        for x, head, dh, d_head in zip(logits, some, d_hidden, d_heads, strict=True):
            terms = [
                logits_of(moved, sweep.vocab_first)
                for moved in (Head(dh, head.weight), Head(head.hidden, d_head.weight))
                if moved.hidden is not None and moved.weight is not None
            ]
            d_logits.append(sum(terms, jnp.zeros_like(x)))
        return (), jax.jvp(
            lambda x, s: sweep.rows(x, labels, s),
            (logits, shared),
            (tuple(d_logits), d_shared),
        )[1]

    hidden, d_hidden = tuple(h.hidden for h in heads), tuple(d.hidden for d in d_heads)
    return over_chunks(chunk, sweep.chunk_size, (hidden, d_hidden, labels))[1]
