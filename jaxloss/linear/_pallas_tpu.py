"""The sweep by TPU kernels: two passes over blocks of classes, whose logits never leave the chip.

The first pass loops over tokens outside and classes inside, and streams the weight past each block
of tokens. The second loops over classes outside and tokens inside; it computes the logits again and
from them both gradients. A block of the weight's gradient is accumulated on the chip and written
once; the gradient of `hidden` is accumulated in main memory, in float32, by transfers that overlap
with the matmuls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloss._core.mapped import alike, unpartitioned
from jaxloss.linear import _tpu_kernels, _two_pass
from jaxloss.linear._formulas import Settings
from jaxloss.linear._head import Head
from jaxloss.linear._sweep import Gradients, Need
from jaxloss.linear._tokens import TokenSweep
from jaxloss.linear._tpu_kernels import Operands, Results, Scratch, Static
from jaxloss.linear._two_pass import BlockStats, Slopes, Vocabulary, no_classes


class _Tile(NamedTuple):
    """The size of a block."""

    tokens: int
    classes: int


# Candidates, best first. With this many classes the second pass is limited by its matmuls, not by
# the memory in which it accumulates the gradient of `hidden`.
_FIRST = _Tile(1024, 512), _Tile(512, 512), _Tile(256, 256), _Tile(128, 128)
_SECOND = _Tile(256, 1024), _Tile(256, 512), _Tile(128, 256), _Tile(128, 128)


class Chip(NamedTuple):
    """The TPU that the kernels run on."""

    vmem: int  # its on-chip memory, in bytes
    wins: bool  # whether the kernels beat the other sweeps there, for a large vocabulary
    interpret: Any = False  # as in `pallas_call`

    @property
    def room(self) -> int:
        # A quarter is left for what the compiler keeps between matmuls.
        return self.vmem * 3 // 4


# Tests set this, to be used in place of the chip of this process.
CHIP_FOR_TESTS: Chip | None = None


def _current_chip() -> Chip | None:
    """The TPU that the program is being traced for: that of the mesh, or of this process."""
    if CHIP_FOR_TESTS is not None:
        return CHIP_FOR_TESTS
    try:
        info = pltpu.get_tpu_info()
    except ValueError:
        return None
    # The second pass uses only one of a chip's cores.
    return Chip(info.vmem_capacity_bytes, info.is_lite and info.generation >= 5)


def required_chip(head: Head, chunk_size: int | None) -> Chip:
    """The TPU, for a caller who asks for the kernels."""
    chip = _current_chip()
    if chip is None:
        raise ValueError(
            f"implementation='pallas_tpu' is for a TPU, and this program for "
            f"{jax.default_backend()}; leave implementation out"
        )
    if not _supported(head):
        raise TypeError(
            f"implementation='pallas_tpu' takes hidden and weight of float32 or bfloat16, got "
            f"{head.hidden.dtype} and {head.weight.dtype}; leave implementation out"
        )
    if chunk_size is not None:
        raise ValueError("implementation='pallas_tpu' chooses its blocks, so it has no chunk_size")
    return chip


def preferred_chip(head: Head) -> Chip | None:
    """The TPU, if the kernels are better there than a sweep over short chunks of tokens.

    They take four matmuls and that sweep three. But each of its chunks reads and writes the
    gradient of the weight, and a short chunk waits for that.
    """
    # XLA cannot partition a kernel.
    chip = _current_chip() if _supported(head) and unpartitioned() else None
    if chip is None or not chip.wins or _second_bytes(_SECOND[0], head) > chip.room:
        return None
    return chip


def _supported(head: Head) -> bool:
    return all(x.dtype in (jnp.float32, jnp.bfloat16) for x in head)


def _first_bytes(tile: _Tile, head: Head) -> int:
    (hidden, weight), features = (x.dtype.itemsize for x in head), head.hidden.shape[-1]
    streams = tile.tokens * hidden + tile.classes * weight
    rows = min(tile.tokens, _tpu_kernels.STRIP)
    return 2 * features * streams + 32 * tile.classes * rows


def _second_bytes(tile: _Tile, head: Head) -> int:
    (hidden, weight), features = (x.dtype.itemsize for x in head), head.hidden.shape[-1]
    streams = tile.tokens * hidden + 2 * tile.classes * weight
    sums = 4 * (tile.classes + 3 * tile.tokens)
    return features * (2 * streams + sums) + 32 * tile.classes * tile.tokens


@dataclass(frozen=True)
class TpuSweep:
    tokens: TokenSweep
    chip: Chip

    def each_token(
        self, heads: tuple[Head, ...], labels: Array, shared: Settings
    ) -> tuple[Any, Any]:
        """Their statistics. A loss of each token it has none."""
        vocabulary = _two_pass.vocabulary(self.tokens, heads, labels, shared, True)
        of = passes(vocabulary, self.chip)
        return _two_pass.each_token(of, self.tokens, heads, labels), None

    def total_and_gradients(
        self,
        need: Need,
        heads: tuple[Head, ...],
        labels: Array,
        shared: Settings,
        coefficients: Array,
    ) -> tuple[Array, Gradients]:
        collects = self.tokens.statistics_of_logits is not None
        vocabulary = _two_pass.vocabulary(self.tokens, heads, labels, shared, collects)
        return _two_pass.total_and_gradients(
            passes(vocabulary, self.chip), self.tokens, need, heads, labels, shared, coefficients
        )


def passes(vocabulary: Vocabulary, chip: Chip) -> "TpuPasses":
    """With the weight in the order in which a TPU stores it, to save a copy."""
    whole = vocabulary.whole
    first, last = whole.head.weight.shape
    transposed = first % 128 == 0 and last % 128 > 0
    if transposed:
        vocabulary = vocabulary._replace(
            whole=whole._replace(head=Head(whole.head.hidden, whole.head.weight.T)),
            vocab_first=not vocabulary.vocab_first,
        )
    return TpuPasses(vocabulary, chip, transposed)


class TpuPasses(NamedTuple):
    vocabulary: Vocabulary
    chip: Chip
    transposed: bool  # whether the weight is the transpose of the given one

    @property
    def _head(self) -> Head:
        return self.vocabulary.whole.head

    @property
    def _static(self) -> Static:
        v = self.vocabulary
        return Static(len(self._head.hidden), v.local_vocab, v.vocab_first, v.collects)

    def statistics(self, like: Array) -> BlockStats:
        static, (hidden, weight) = self._static, self._head
        tile = self._tile(_FIRST, _first_bytes)
        operands = self._operands(tile, None)
        n, columns = len(operands.labels), no_classes(like, static.collects)
        count = len(jax.tree.leaves(columns))
        out = self._call(
            partial(_tpu_kernels.statistics, static=static),
            operands,
            jax.ShapeDtypeStruct((n, count), like.dtype),
            "parallel",
            grid=(n // tile.tokens, pl.cdiv(static.local_vocab, tile.classes)),
            in_specs=[self._specs(tile, operands, True)],
            out_specs=[pl.BlockSpec((tile.tokens, count), lambda i, j: (i, 0))],
            cost_estimate=self._cost(1, hidden.nbytes + n // tile.tokens * weight.nbytes),
        )
        out = jnp.split(out[: static.tokens], count, 1)
        return jax.tree.unflatten(jax.tree.structure(columns), out)

    def gradients(self, need: Need, slopes: Slopes) -> Gradients:
        static, (hidden, weight) = self._static, self._head
        needed = Results(
            need.hidden[0],
            need.weight[0],
            need.shared.bias,
            need.shared.softcap,
            need.shared.class_weights,
        )
        if not any(needed):
            return Gradients((None,), (None,), Settings(), None)
        tile = self._tile(_SECOND, _second_bytes)
        given = {name: x for name, x in slopes._asdict().items() if x is not None}
        operands = self._operands(tile, jnp.concatenate(list(given.values()), 1))
        specs = self._specs(tile, operands, False)
        grid = pl.cdiv(static.local_vocab, tile.classes), len(operands.labels) // tile.tokens
        shapes, out_specs, scratch = self._results(tile, grid, specs.weight, slopes.top.dtype)
        traffic = 2 * weight.nbytes + grid[0] * (hidden.nbytes + 8 * hidden.size)
        out = self._call(
            partial(_tpu_kernels.gradients, static=static, given=tuple(given)),
            operands,
            _only(shapes, needed),
            "arbitrary",
            grid=grid,
            in_specs=[specs],
            out_specs=[_only(out_specs, needed)],
            scratch_shapes=[_only(scratch, (needed.weight, *[needed.hidden] * 3))],
            cost_estimate=self._cost(1 + bool(needed.hidden) + bool(needed.weight), traffic),
        )

        def cut(x: Array | None) -> Any:
            return None if x is None else x[0, : static.local_vocab]

        bias, cap, class_weights = map(cut, out[2:])
        g_hidden = None if out.hidden is None else out.hidden[: static.tokens]
        cap = None if cap is None else jnp.sum(cap)
        g_weight = out.weight.T if out.weight is not None and self.transposed else out.weight
        return Gradients((g_hidden,), (g_weight,), Settings(bias, cap, class_weights), None)

    def _block_of_weight(self, tile: _Tile) -> tuple[int, int]:
        features, static = self._head.hidden.shape[1], self._static
        return (tile.classes, features) if static.vocab_first else (features, tile.classes)

    def _results(
        self, tile: _Tile, grid: tuple[int, int], of_weight: pl.BlockSpec, dtype: Any
    ) -> tuple[Results, Results, Scratch]:
        """The shapes and blocks of the second pass's results, and its accumulators."""
        (hidden, weight), shape = self._head, jax.ShapeDtypeStruct
        each = shape((1, grid[0] * tile.classes), dtype)
        total = shape((grid[1] * tile.tokens, hidden.shape[1]), dtype)
        shapes = Results(total, shape(weight.shape, weight.dtype), each, each, each)
        each = pl.BlockSpec((1, tile.classes), lambda j, i: (0, j))
        blocks = Results(pl.BlockSpec(memory_space=pl.ANY), of_weight, each, each, each)
        semaphores = pltpu.SemaphoreType.DMA((2,))
        buffers = pltpu.VMEM((2, tile.tokens, hidden.shape[1]), dtype)
        whole = pltpu.VMEM(self._block_of_weight(tile), dtype)
        return shapes, blocks, Scratch(whole, buffers, semaphores, semaphores)

    def _tile(self, sizes: Sequence[_Tile], needs: Callable[[_Tile, Head], int]) -> _Tile:
        """The first of the sizes that fits on the chip, no larger than the operands."""
        static, head = self._static, self._head
        most = _Tile(-(-static.tokens // 16) * 16, -(-static.local_vocab // 128) * 128)
        for size in sizes:
            tile = _Tile(*map(min, size, most))
            if needs(tile, head) <= self.chip.room:
                return tile
        raise ValueError(
            f"implementation='pallas_tpu' holds whole rows of hidden on the chip, and those of "
            f"hidden of shape {head.hidden.shape} are too long; leave implementation out"
        )

    def _operands(self, tile: _Tile, slopes: Array | None) -> Operands:
        whole, local_vocab = self.vocabulary.whole, self._static.local_vocab
        bias, settings = whole.bias, self.vocabulary.settings
        if bias is None and local_vocab % tile.classes:
            bias = jnp.zeros(local_vocab, jnp.float32)

        def of_tokens(x: Array | None) -> Array | None:
            return None if x is None else _padded(x, 0, tile.tokens, 0)

        def of_classes(x: Array | None, fill: float) -> Array | None:
            return None if x is None else _padded(x[None], 1, tile.classes, fill)

        operands = Operands(
            of_tokens(whole.labels),
            of_tokens(slopes),
            *whole.head,
            of_classes(bias, -jnp.inf),
            of_classes(whole.smooth_weights, 0),
            *(
                of_classes(None if x is None else jnp.full(local_vocab, x), 1)
                for x in (settings.softcap, settings.temperature)
            ),
        )
        return _varying_alike(operands, operands)

    def _specs(self, tile: _Tile, operands: Operands, tokens_first: bool) -> Operands:
        """The operands' blocks of one step, in a grid with tokens or with classes outside."""
        features = operands.hidden.shape[1]

        def spec(shape: tuple[int, int], axis: int, of_tokens: bool) -> pl.BlockSpec:
            def index(*step: Any) -> tuple[Any, Any]:
                i = step[0 if of_tokens == tokens_first else 1]
                return (i, 0) if axis == 0 else (0, i)

            return pl.BlockSpec(shape, index)

        columns = 0 if operands.slopes is None else operands.slopes.shape[1]
        of_classes = spec((1, tile.classes), 1, False)
        specs = Operands(
            spec((tile.tokens, 1), 0, True),
            spec((tile.tokens, columns), 0, True),
            spec((tile.tokens, features), 0, True),
            spec(self._block_of_weight(tile), self._static.vocab_axis, False),
            of_classes, of_classes, of_classes, of_classes,
        )  # fmt: skip
        return _only(specs, operands)

    def _cost(self, matmuls: int, traffic: int) -> pl.CostEstimate:
        static, features = self._static, self._head.hidden.shape[1]
        logits = static.tokens * static.local_vocab
        return pl.CostEstimate(2 * matmuls * logits * features, logits, traffic)

    def _call(
        self, kernel: partial[None], operands: Operands, shapes: Any, tokens: str, **options: Any
    ) -> Any:
        """`pallas_call`, with one argument and one result that may be trees.

        Blocks of tokens are "parallel", to be shared among cores, or "arbitrary".
        """

        def results():
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return _varying_alike(zeros, operands)

        call = pl.pallas_call(
            kernel,
            [jax.eval_shape(results)],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=(tokens, "arbitrary"),  # type: ignore
                vmem_limit_bytes=self.chip.vmem * 15 // 16,
            ),
            interpret=self.chip.interpret,
            name=f"linear_cross_entropy_{kernel.func.__name__}",
            **options,
        )
        # A batch runs one by one: the second pass has accumulators for one.
        return jax.custom_batching.sequential_vmap(call)(operands)[0]


def _varying_alike(tree: Any, like: Any) -> Any:
    """`tree`, with the types of arrays that vary over all devices over which any of `like` does."""
    return jax.tree.map(lambda x: alike(x, *jax.tree.leaves(like)), tree)


def _only(some: Any, where: Any) -> Any:
    """A named tuple with only those entries that another one has."""
    have = (x is not None and x is not False for x in where)
    return type(some)(*(x if h else None for x, h in zip(some, have, strict=True)))


def _padded(x: Array, axis: int, multiple: int, fill: float) -> Array:
    """To a multiple of the size of blocks."""
    pad = [(0, 0), (0, 0)]
    pad[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, pad, constant_values=fill)
