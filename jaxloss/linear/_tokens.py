"""The sweep over chunks of tokens: logits exist for one chunk at a time.

It takes any loss of the logits, has derivatives of every order in both modes, and is what the other
sweeps are differentiated by.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.mapped import alike, unpartitioned
from jaxloss._core.numerics import clip_to_finite, times
from jaxloss._core.split import ClassAxis
from jaxloss.linear._head import Head, head_gradients, in_dtypes, logits_of
from jaxloss.linear._sweep import Gradients, Need
from jaxloss.linear._targets import weights_of, with_weights

# `(logits, labels, shared, class_axis)` of one chunk, where `logits` has one array for each head:
# what is returned has one entry, or several arrays with one entry, for each token.
LossOfLogits = Callable[[tuple[Array, ...], Any, Any, ClassAxis], Any]


@dataclass(frozen=True)
class TokenSweep:
    """For one head, value and both gradients take three matmuls of the size of the logits.

    A gradient that is not needed costs no matmul.
    """

    loss_of_logits: LossOfLogits
    class_axis: ClassAxis
    chunk_size: int
    vocab_first: bool
    # Of the matmuls of `each_token` and its derivatives.
    precision: lax.Precision | None = None
    # What else to collect of each token, without a derivative.
    statistics_of_logits: LossOfLogits | None = None

    @property
    def tokens(self) -> "TokenSweep":
        return self

    def losses(self, logits: tuple[Array, ...], labels: Any, shared: Any) -> Any:
        return self.loss_of_logits(logits, labels, shared, self.class_axis)

    def statistics(self, logits: tuple[Array, ...], labels: Any, shared: Any) -> Any:
        if self.statistics_of_logits is None:
            return None
        logits, labels, shared = jax.tree.map(lax.stop_gradient, (logits, labels, shared))
        return self.statistics_of_logits(logits, labels, shared, self.class_axis)

    def logits(self, heads: Sequence[Head]) -> tuple[Array, ...]:
        return tuple(logits_of(head, self.vocab_first, self.precision) for head in heads)

    def total_and_gradients(
        self,
        need: Need,
        heads: tuple[Head, ...],
        labels: Any,
        shared: Any,
        coefficients: Array,
        live: Array | None = None,
    ) -> tuple[Array, Gradients]:
        """See `Sweep`. With `live`, the others follow the first `live` tokens, and are left out."""

        # Without the checkpoint, reverse mode over reverse mode keeps the logits of all chunks.
        @partial(jax.checkpoint, prevent_cse=False)
        def chunk(tokens):
            hidden, labels, a = tokens
            some = with_hidden(heads, hidden)
            total, g_logits, g_shared, each = self.backward(need, some, labels, shared, a)
            matmuls = [
                head_gradients(head, g, self.vocab_first, *which)
                for head, g, *which in zip(some, g_logits, need.hidden, need.weight, strict=True)
            ]
            g_hidden, g_weight = zip(*matmuls, strict=True)
            return (total, g_weight, g_shared), (in_dtypes(g_hidden, hidden), each)

        tokens = tuple(head.hidden for head in heads), labels, coefficients
        sums, (g_hidden, each) = over_chunks(chunk, self.chunk_size, tokens, live)
        total, g_weight, g_shared = sums
        g_weight = in_dtypes(g_weight, [head.weight for head in heads])
        return total, Gradients(g_hidden, g_weight, g_shared, *each)

    def backward(
        self,
        need: Need,
        heads: tuple[Head, ...],
        labels: Any,
        shared: Any,
        coefficients: Array,
    ) -> tuple[Array, tuple[Array, ...], Any, tuple[Array | None, Array | None, Any]]:
        """The total of a chunk, its gradients by the logits and `shared`, and what each token has.

        That is, in the order of `Gradients`: its loss, the gradient by its labels' weights, and its
        statistics.
        """
        logits = self.logits(heads)
        losses, pull = jax.vjp(
            lambda x, s, w: self.losses(x, with_weights(labels, w), s),
            logits, shared, weights_of(labels),
        )  # fmt: skip
        g_logits, g_shared, g_targets = pull(alike(coefficients, losses))
        total = jnp.sum(times(coefficients, losses))
        g_shared = jax.tree.map(lambda n, g: g if n else None, need.shared, g_shared)
        each = (
            clip_to_finite(losses) if need.coefficients else None,
            g_targets if need.targets else None,
            self.statistics(logits, labels, shared),
        )
        return total, g_logits, g_shared, each

    def each_token(self, heads: tuple[Head, ...], labels: Any, shared: Any) -> tuple[Any, Any]:
        """What `loss_of_logits` returns, for each token; and its statistics."""

        def chunk(tokens):
            hidden, labels = tokens
            logits = self.logits(with_hidden(heads, hidden))
            losses = self.losses(logits, labels, shared)
            return (), (losses, self.statistics(logits, labels, shared))

        tokens = tuple(head.hidden for head in heads), labels
        return over_chunks(chunk, self.chunk_size, tokens)[1]

    def tangents_of_each_token(
        self,
        heads: tuple[Head, ...],
        labels: Any,
        shared: Any,
        d_heads: tuple[Head, ...],
        d_shared: Any,
        d_targets: Array | None,
    ) -> Any:
        """The derivative of the losses of `each_token` along a direction.

        Tangents of a head are None where they are zero, and otherwise float32 or float64.
        """

        @partial(jax.checkpoint, prevent_cse=False)
        def chunk(tokens):
            hidden, d_hidden, labels, d_targets = tokens
            some = with_hidden(heads, hidden)
            logits, d_logits = self.logits(some), []
            for x, head, dh, d_head in zip(logits, some, d_hidden, d_heads, strict=True):
                terms = [
                    logits_of(moved, self.vocab_first, self.precision)
                    for moved in (Head(dh, head.weight), Head(head.hidden, d_head.weight))
                    if moved.hidden is not None and moved.weight is not None
                ]
                d_logits.append(sum(terms, jnp.zeros_like(x)))
            return (), jax.jvp(
                lambda x, s, w: self.losses(x, with_weights(labels, w), s),
                (logits, shared, weights_of(labels)),
                (tuple(d_logits), d_shared, d_targets),
            )[1]

        hidden, d_hidden = tuple(h.hidden for h in heads), tuple(d.hidden for d in d_heads)
        return over_chunks(chunk, self.chunk_size, (hidden, d_hidden, labels, d_targets))[1]


def with_hidden(heads: Sequence[Head], hidden: Sequence[Array]) -> tuple[Head, ...]:
    """The same layers with other inputs, such as those of one chunk."""
    return tuple(Head(h, head.weight) for h, head in zip(hidden, heads, strict=True))


def over_chunks(
    body: Callable[..., tuple[Any, Any]], size: int, tokens: Any, live: Array | None = None
) -> tuple[Any, Any]:
    """Sum over chunks what `body` returns first; join what it returns second, one per token.

    With `live`, chunks beyond the first `live` tokens are left out, and leave zeros; reverse mode
    does not go through them.
    """
    n = jax.tree.leaves(tokens)[0].shape[0]
    if live is not None:
        return _over_the_first(live, body, size, tokens)
    chunks = jax.tree.map(partial(split_in_chunks, size), tokens)
    first = jax.tree.map(lambda x: x[0], chunks)

    def step(sums, chunk):
        more, each = body(chunk)
        return jax.tree.map(jnp.add, sums, more), each

    if isinstance(n, int) and n <= size:  # Exported, it may be a symbol.
        sums, each = body(first)
        return sums, jax.tree.map(lambda x: x[:n], each)
    types = jax.eval_shape(body, first)[0]
    zeros = jax.tree.map(lambda t: alike(jnp.zeros(t.shape, t.dtype), t), types)
    sums, each = lax.scan(step, zeros, chunks)
    return sums, jax.tree.map(partial(join_chunks, n), each)


def _over_the_first(
    live: Array, body: Callable[..., tuple[Any, Any]], size: int, tokens: Any
) -> tuple[Any, Any]:
    n = jax.tree.leaves(tokens)[0].shape[0]

    def neighbours(x):
        padded = jnp.pad(x, [(0, -n % size)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, size, *x.shape[1:])

    count = (live + size - 1) // size
    sums, each = fold_chunks(body, jax.tree.map(neighbours, tokens), count, jnp.zeros)
    return sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], each)


def fold_chunks(
    body: Callable[..., tuple[Any, Any]], chunks: Any, count: Any, new: Callable[..., Array]
) -> tuple[Any, Any]:
    """Of the first `count` chunks, sum what `body` returns first; put what is second in place.

    `new` makes the arrays for that, of all chunks. Reverse mode does not go through the loop.
    """
    length = jax.tree.leaves(chunks)[0].shape[0]
    sums, each = jax.eval_shape(body, jax.tree.map(lambda x: x[0], chunks))

    def step(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        more, some = body(jax.tree.map(lambda x: x[i], chunks))
        put = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
        return jax.tree.map(jnp.add, carry[0], more), jax.tree.map(put, carry[1], some)

    start = (
        jax.tree.map(lambda t: alike(jnp.zeros(t.shape, t.dtype), t), sums),
        jax.tree.map(lambda t: alike(new((length, *t.shape), t.dtype), t), each),
    )
    return lax.fori_loop(0, count, step, start)


def split_in_chunks(size: int, x: Array) -> Array:
    """Chunks along a new first axis, the last one padded with zeros.

    Where XLA may split tokens over devices, those of a chunk are equally spaced, so that each
    device holds its part of every chunk. Elsewhere they are neighbours, which costs no copy.
    """
    count = max(-(-x.shape[0] // size), 1)
    padded = jnp.pad(x, [(0, count * size - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    if unpartitioned():
        return padded.reshape(count, size, *x.shape[1:])
    return padded.reshape(size, count, *x.shape[1:]).swapaxes(0, 1)


def join_chunks(n: int, chunks: Array) -> Array:
    in_order = chunks if unpartitioned() else chunks.swapaxes(0, 1)
    return in_order.reshape(-1, *chunks.shape[2:])[:n]
