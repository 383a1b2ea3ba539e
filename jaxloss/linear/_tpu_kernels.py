"""The bodies of the TPU kernels: what one step does with a block of tokens and a block of classes.

The formulas are those of `_blocks.py`; here are the blocks, what is beyond the last of them, and
what is added up from step to step.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloss.linear._blocks import Block, Part, Slopes, gradient, logits, merged, nothing, part
from jaxloss.linear._tokens import Head, head_gradients

# Rows whose statistics the chip forms while it multiplies the next ones.
ROWS = 256


class Operands(NamedTuple):
    """Of a kernel, as arrays, blocks of them, or references to blocks. None where not used."""

    labels: Any  # [N, 1]
    rows: Any  # numbers of each token, side by side
    hidden: Any
    weight: Any
    bias: Any  # [1, V], as what follows; it excludes the columns beyond the vocabulary
    k: Any
    softcap: Any


class Results(NamedTuple):
    """Of the second look; None where not wanted."""

    hidden: Any
    weight: Any
    bias: Any  # [1, V], as what follows
    softcap: Any
    class_weights: Any


class Scratch(NamedTuple):
    """Of the second look. None where not wanted."""

    weight: Any  # a block of the gradient, in float32
    hidden: Any  # two blocks of the gradient, on their ways from and to memory
    fetching: Any
    sending: Any


class Static(NamedTuple):
    """What a kernel knows when it is compiled."""

    tokens: int
    size: int  # classes on this device
    classes: int  # on all devices
    vocab_first: bool

    @property
    def along(self) -> int:
        return 0 if self.vocab_first else 1


def statistics(refs: Operands, out: Any, *, static: Static) -> None:
    """The first look, with classes in the inner loop: adds a block to the rows' statistics."""
    j = pl.program_id(1)
    _clear(refs.weight, static.along, j, static.size)
    tokens, count = out.shape

    def write(rows: Any, whole: Part) -> None:
        for c, x in enumerate(whole):
            out[rows, c : c + 1] = x

    @pl.when(j == 0)
    def _():
        write(slice(None), nothing(jnp.zeros((tokens, 1), out.dtype)))

    for first in range(0, tokens, ROWS):
        rows = pl.ds(first, min(ROWS, tokens - first))
        block, x, _ = _block(refs, rows, j, static)
        is_label = lax.broadcasted_iota(jnp.int32, x.shape, 1) == block.labels
        label = jnp.sum(jnp.where(is_label, x, 0), 1, keepdims=True)
        write(rows, merged(Part(*_columns(out, rows, count)), part(x, block, label)))


def gradients(
    refs: Operands, out: Results, scratch: Scratch, *, static: Static, given: tuple[str, ...]
) -> None:
    """The second look, with tokens in the inner loop. `given` names what `rows` has."""
    j, i, everything = pl.program_id(0), pl.program_id(1), slice(None)
    _clear(refs.weight, static.along, j, static.size)
    _clear(refs.hidden, 0, i, static.tokens)
    sums = scratch.weight, out.bias, out.softcap, out.class_weights

    @pl.when(i == 0)
    def _():
        for ref in sums:
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)

    block, x, pull = _block(refs, everything, j, static)
    found = dict(zip(given, _columns(refs.rows, everything, len(given)), strict=True))
    slopes = Slopes._make(map(found.get, Slopes._fields))
    g, g_class = gradient(x, block, slopes, static.classes)
    g, g_bias, g_softcap = pull(g)
    by_head = partial(head_gradients, block.head, g, static.vocab_first)
    terms = by_head(False, out.weight is not None)[1], g_bias, g_softcap, g_class
    for ref, term in zip(sums, terms, strict=True):
        if ref is not None and term is not None:
            ref[...] += term.reshape(ref.shape)
    if out.hidden is not None:
        blocks = pl.cdiv(static.tokens, refs.hidden.shape[0])
        _RoundTrip(out.hidden, scratch, blocks).add(lambda: by_head(True, False)[0])
    if out.weight is not None:

        @pl.when(i == pl.num_programs(1) - 1)
        def _():
            out.weight[...] = scratch.weight[...].astype(out.weight.dtype)


class _RoundTrip:
    """Of a block of the gradient of `hidden`, from memory and back, for each block of classes.

    There are two buffers, and a step ends by sending its block and fetching that of the next: both
    overlap with the matmuls of the next step. (What a step begins by fetching, the compiler
    would fetch no sooner than it is waited for.) A block that is alone stays on the chip.
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
        here = self.scratch.hidden.at[self.slot]

        @pl.when(self.j == 0)
        def _():
            here[...] = jnp.zeros(here.shape, here.dtype)

        if self.blocks > 1:
            pl.when(self.j > 0)(lambda: self._fetch(self.slot, self.i).wait())
        here[...] += term()
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


def _clear(ref: Any, axis: int, block: Array, size: int) -> None:
    """Zero what the last block has beyond `size`, which may hold anything."""
    full, rest = divmod(size, ref.shape[axis])
    if rest == 0:
        return

    @pl.when(block == full)
    def _():
        inside = lax.broadcasted_iota(jnp.int32, ref.shape, axis) < rest
        ref[...] = jnp.where(inside, ref[...], 0)


def _block(refs: Operands, rows: Any, j: Array, static: Static) -> tuple[Block, Array, Any]:
    """A block of classes of some rows, its logits and the pullback of those."""

    def row(ref: Any) -> Any:
        return None if ref is None else ref[0]

    width = refs.weight.shape[static.along]
    head = Head(refs.hidden[rows], refs.weight[...])
    block = Block(head, row(refs.bias), row(refs.k), refs.labels[rows] - j * width)
    cap = None if refs.softcap is None else refs.softcap[...]
    return block, *logits(block, cap, static.vocab_first)


def _columns(ref: Any, rows: Any, count: int) -> Iterator[Array]:
    return (ref[rows, c : c + 1] for c in range(count))
