"""The bodies of the TPU kernels: one step, with a block of tokens and a block of classes.

The formulas are those of `_two_pass.py`. What is here loads blocks, clears the padding of the last
one, and accumulates from step to step.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloss.linear._head import Head, head_gradients
from jaxloss.linear._two_pass import (
    Block,
    BlockStats,
    Slopes,
    block_gradient,
    block_spread,
    block_stats,
    logits,
    merged,
    no_classes,
)

# The first pass takes so many tokens at once: while one strip is reduced, the next is multiplied.
STRIP = 256


class Operands(NamedTuple):
    """A kernel's operands, as arrays, blocks of them, or references; None where not used."""

    labels: Any  # [N, 1]
    slopes: Any  # those of `Slopes` that are given, as columns
    hidden: Any
    weight: Any
    bias: Any  # [1, V], like what follows; -inf excludes the padding of the vocabulary
    smooth_weights: Any
    softcap: Any
    temperature: Any


class Results(NamedTuple):
    """Gradients, from the second pass; None where not needed."""

    hidden: Any
    weight: Any
    bias: Any  # [1, V], like the next two
    softcap: Any
    class_weights: Any


class Scratch(NamedTuple):
    """Memory of the second pass on the chip; None where not needed."""

    weight: Any  # the gradient of a block, in float32
    hidden: Any  # the gradients of two blocks, on their way from and to main memory
    fetching: Any  # semaphores
    sending: Any


class Static(NamedTuple):
    """What is known when a kernel is compiled."""

    tokens: int
    local_vocab: int
    vocab_first: bool
    collects: bool  # whether statistics of each token are wanted

    @property
    def vocab_axis(self) -> int:
        """Of the weight."""
        return 0 if self.vocab_first else 1


def statistics(refs: Operands, out: Any, *, static: Static) -> None:
    """The first pass, with classes in the inner loop: merges a block into the statistics."""
    j = pl.program_id(1)
    _clear_padding(refs.weight, static.vocab_axis, j, static.local_vocab)
    tokens, count = out.shape
    none = no_classes(jnp.zeros((tokens, 1), out.dtype), static.collects)

    def write(rows: Any, stats: BlockStats) -> None:
        for c, x in enumerate(jax.tree.leaves(stats)):
            out[rows, c : c + 1] = x

    pl.when(j == 0)(lambda: write(slice(None), none))

    for first in range(0, tokens, STRIP):
        rows = pl.ds(first, min(STRIP, tokens - first))
        block, x, _ = _block(refs, rows, j, static)
        is_label = lax.broadcasted_iota(jnp.int32, x.shape, 1) == block.labels
        label = jnp.sum(jnp.where(is_label, x, 0), 1, keepdims=True)
        before = jax.tree.unflatten(jax.tree.structure(none), _columns(out, rows, count))
        spread = block_spread(x, j * x.shape[1]) if static.collects else None
        write(rows, merged(before, block_stats(x, block, label, spread)))


def gradients(
    refs: Operands, out: Results, scratch: Scratch, *, static: Static, given: tuple[str, ...]
) -> None:
    """The second pass, with tokens in the inner loop. `given` names the columns of the slopes."""
    j, i, all_rows = pl.program_id(0), pl.program_id(1), slice(None)
    _clear_padding(refs.weight, static.vocab_axis, j, static.local_vocab)
    _clear_padding(refs.hidden, 0, i, static.tokens)
    sums = scratch.weight, out.bias, out.softcap, out.class_weights

    @pl.when(i == 0)
    def _():
        for ref in sums:
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    block, x, pull = _block(refs, all_rows, j, static)
    columns = dict(zip(given, _columns(refs.slopes, all_rows, len(given)), strict=True))
    slopes = Slopes._make(map(columns.get, Slopes._fields))
    g, g_class = block_gradient(x, block, slopes)
    g, g_bias, g_softcap = pull(g)
    by_head = partial(head_gradients, block.head, g, static.vocab_first)
    terms = by_head(False, out.weight is not None)[1], g_bias, g_softcap, g_class
    for ref, term in zip(sums, terms, strict=True):
        if ref is not None and term is not None:
            ref[...] += term.reshape(ref.shape)
    if out.hidden is not None:
        blocks = pl.cdiv(static.tokens, refs.hidden.shape[0])
        _Accumulator(out.hidden, scratch, blocks).add(lambda: by_head(True, False)[0])
    if out.weight is not None:

        @pl.when(i == pl.num_programs(1) - 1)
        def _():
            out.weight[...] = scratch.weight[...].astype(out.weight.dtype)


class _Accumulator:
    """Adds to the gradient of `hidden`, which is in main memory, a block of it in each step.

    There are two buffers on the chip. A step ends by sending its block to main memory and fetching
    that of the next step; both transfers overlap with the next step's matmuls. (A fetch that a step
    started itself would only be scheduled when it is waited for.) If there is only one block, it
    stays on the chip until the end.
    """

    def __init__(self, whole: Any, scratch: Scratch, blocks: int):
        self.whole, self.scratch, self.blocks = whole, scratch, blocks
        self.j, self.i = pl.program_id(0), pl.program_id(1)
        self.step = self.j * blocks + self.i
        self.last = self.step == pl.num_programs(0) * blocks - 1
        self.slot = 0 if blocks == 1 else lax.rem(self.step, 2)

    def _send(self, slot: Any) -> Any:
        buffer, whole = self._ends(slot, self.i)
        return pltpu.make_async_copy(buffer, whole, self.scratch.sending.at[slot])

    def _fetch(self, slot: Any, i: Any) -> Any:
        buffer, whole = self._ends(slot, i)
        return pltpu.make_async_copy(whole, buffer, self.scratch.fetching.at[slot])

    def _ends(self, slot: Any, i: Any) -> tuple[Any, Any]:
        buffer, tokens = self.scratch.hidden.at[slot], self.scratch.hidden.shape[1]
        return buffer, self.whole.at[pl.ds(i * tokens, tokens)]

    def add(self, term: Callable[[], Any]) -> None:
        buffer = self.scratch.hidden.at[self.slot]

        @pl.when(self.j == 0)
        def _():
            buffer[...] = jnp.zeros(buffer.shape, buffer.dtype)

        if self.blocks > 1:
            pl.when(self.j > 0)(lambda: self._fetch(self.slot, self.i).wait())
        buffer[...] += term()
        if self.blocks > 1:
            self._send(self.slot).start()
            self._fetch_next()
        else:
            pl.when(self.last)(lambda: self._send(self.slot).start())
        pl.when(self.last)(lambda: self._send(self.slot).wait())

    def _fetch_next(self) -> None:
        other, i = 1 - self.slot, lax.rem(self.i + 1, self.blocks)
        pl.when(self.step > 0)(lambda: self._send(other).wait())
        again = (self.step >= self.blocks - 1) & ~self.last
        pl.when(again)(lambda: self._fetch(other, i).start())


def _clear_padding(ref: Any, axis: int, block: Array, size: int) -> None:
    """Zero what the last block has beyond `size`, which is undefined."""
    full, rest = divmod(size, ref.shape[axis])
    if rest == 0:
        return

    @pl.when(block == full)
    def _():
        inside = lax.broadcasted_iota(jnp.int32, ref.shape, axis) < rest
        ref[...] = jnp.where(inside, ref[...], 0)


def _block(refs: Operands, rows: Any, j: Array, static: Static) -> tuple[Block, Array, Any]:
    """The j-th block of classes for some rows, its logits and the pullback of those."""

    def of_classes(ref: Any) -> Any:
        return None if ref is None else ref[0]

    width = refs.weight.shape[static.vocab_axis]
    head = Head(refs.hidden[rows], refs.weight[...])
    labels = refs.labels[rows] - j * width
    block = Block(head, of_classes(refs.bias), of_classes(refs.smooth_weights), labels)
    cap, temperature = (x if x is None else x[...] for x in (refs.softcap, refs.temperature))
    return block, *logits(block, cap, temperature, static.vocab_first)


def _columns(ref: Any, rows: Any, count: int) -> Iterator[Array]:
    return (ref[rows, c : c + 1] for c in range(count))
