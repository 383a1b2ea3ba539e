"""The sweep that stores the gradient of the logits: three matmuls, in a third of the memory.

As in the token sweep, logits exist for one chunk of tokens at a time. But the gradients of all
chunks' logits, rounded to the dtype of the operands, go into one array, and the gradients of hidden
and weight are one matmul each: none is accumulated in memory from chunk to chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.mapped import unpartitioned
from jaxloss.linear._head import (
    Head,
    for_matmuls,
    gradients_of_rounded,
    in_dtypes,
    in_one_unit,
)
from jaxloss.linear._sweep import Gradients, Need
from jaxloss.linear._tokens import (
    TokenSweep,
    fold_chunks,
    join_chunks,
    over_chunks,
    split_in_chunks,
)


@dataclass(frozen=True)
class StoredSweep:
    """For one head."""

    tokens: TokenSweep
    chunk_size: int
    # How many tokens' gradients are stored at once. With more tokens there are several groups,
    # and the gradient of the weight is accumulated over them in float32.
    group_size: int

    def total_and_gradients(
        self,
        need: Need,
        heads: tuple[Head, ...],
        labels: Any,
        shared: Any,
        coefficients: Array,
    ) -> tuple[Array, Gradients]:
        if not need.weight[0]:  # The gradient of hidden needs that of one chunk only.
            return self.tokens.total_and_gradients(need, heads, labels, shared, coefficients)
        (head,) = heads
        group = partial(self._group, need, head.weight, shared)
        tokens = head.hidden, labels, coefficients
        sums, (g_hidden, each) = over_chunks(group, self.group_size, tokens)
        total, g_weight, g_shared = sums
        g_weight = in_dtypes([g_weight], [head.weight])
        return total, Gradients((g_hidden,), g_weight, g_shared, *each)

    def _group(self, need: Need, weight: Array, shared: Any, tokens: Any) -> tuple[Any, Any]:
        """Of some tokens: the sums of total and gradients, and what there is for each token."""

        def chunk(tokens: Any) -> tuple[Any, Any]:
            hidden, labels, a = tokens
            head = Head(hidden, weight)
            total, (g,), g_shared, each = self.tokens.backward(need, (head,), labels, shared, a)
            return (total, g_shared), (*for_matmuls(g, head), each)

        chunks = jax.tree.map(partial(split_in_chunks, self.chunk_size), tokens)
        (total, g_shared), (g, units, each) = _store(chunk, chunks)
        hidden, whole = chunks[0], in_one_unit(g, units)
        g_hidden, g_weight = gradients_of_rounded(
            Head(hidden, weight), *whole, self.tokens.vocab_first, need.hidden[0], True
        )
        (g_hidden,) = in_dtypes([g_hidden], [hidden])
        each = jax.tree.map(partial(join_chunks, tokens[0].shape[0]), (g_hidden, each))
        return (total, g_weight, g_shared), each


def _store(body: Callable[..., tuple[Any, Any]], chunks: Any) -> tuple[Any, Any]:
    """Sum what `body` returns first; put what it returns second into arrays of all chunks."""

    def on_chip(chunk: Any) -> tuple[Any, Any]:
        # Behind the barrier a TPU has the chunk on the chip, and does not slice as it multiplies.
        return body(lax.optimization_barrier(chunk))

    # XLA cannot partition an array that is not filled: each device would hold all of it.
    new = lax.empty if unpartitioned() else jnp.zeros
    return fold_chunks(on_chip, chunks, jax.tree.leaves(chunks)[0].shape[0], new)
