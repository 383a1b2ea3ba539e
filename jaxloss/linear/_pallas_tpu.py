"""The two looks at blocks of classes as TPU kernels, whose logits never leave the chip.

The first, tokens outside and classes inside, streams the weight past each block of tokens. The
second, classes outside and tokens inside, computes the logits again and from them both gradients:
a block of the weight's is added up on the chip and written once; that of `hidden` is added up in
memory, in float32, by transfers that overlap with the matmuls.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType

from jaxloss.linear import _tpu_kernels
from jaxloss.linear._blocks import Block, Part, Slopes
from jaxloss.linear._rows import Settings
from jaxloss.linear._sharding import alike
from jaxloss.linear._tokens import Head, Sweep, Wanted, total_and_gradients
from jaxloss.linear._tpu_kernels import Operands, Results, Scratch, Static


class _Tile(NamedTuple):
    """The size of a block."""

    tokens: int
    classes: int


# To try. With as many classes as these, the second look waits for the matmuls, and not for the
# memory in which it adds up the gradient of `hidden`.
_FIRST = _Tile(1024, 512), _Tile(512, 512), _Tile(256, 256), _Tile(128, 128)
_SECOND = _Tile(256, 1024), _Tile(256, 512), _Tile(128, 256), _Tile(128, 128)


class Chip(NamedTuple):
    """Where the kernels run."""

    vmem: int  # its memory, in bytes
    wins: bool  # over the sweep over tokens, where the vocabulary is large
    interpret: Any = False  # as `pallas_call` has it

    @property
    def room(self) -> int:
        # A quarter is for what the compiler keeps between matmuls.
        return self.vmem * 3 // 4


# In place of the chip of this process, for tests.
ELSEWHERE: Chip | None = None


def _chip() -> Chip | None:
    """The TPU for which a program is traced now: that of the mesh, or of this process."""
    if ELSEWHERE is not None:
        return ELSEWHERE
    try:
        info = pltpu.get_tpu_info()
    except ValueError:
        return None
    # Of a chip with two cores, the second look keeps one busy.
    return Chip(info.vmem_capacity_bytes, info.is_lite and info.generation >= 5)


def required(head: Head, chunk_size: int | None) -> Chip:
    """Where the kernels run, which were asked for."""
    chip = _chip()
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


def preferred(head: Head) -> Chip | None:
    """Where the kernels run, if that is better than the sweep over tokens in short chunks.

    They do four matmuls and that sweep three. But each chunk reads and writes the gradient of the
    weight, and waits for that if it is short.
    """
    chip = _chip() if _supported(head) and _alone() else None
    if chip is None or not chip.wins or _second_bytes(_SECOND[0], head) > chip.room:
        return None
    return chip


def _supported(head: Head) -> bool:
    return all(x.dtype in (jnp.float32, jnp.bfloat16) for x in head)


def _alone() -> bool:
    """Whether operands are surely not split over devices, which XLA cannot do to a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    kinds = zip(mesh.axis_types, mesh.axis_sizes, strict=True)
    return all(kind == AxisType.Manual or size == 1 for kind, size in kinds)


def on_tpu(
    kernels: Callable[..., Any], sweep: Sweep, wanted: Wanted, *operands: Any
) -> tuple[Array, Wanted]:
    """By the kernels, and by the sweep over tokens where this is compiled for something else."""
    return lax.platform_dependent(
        *operands,
        tpu=partial(kernels, sweep, wanted),
        default=partial(total_and_gradients, sweep, wanted),
    )


def _first_bytes(tile: _Tile, head: Head) -> int:
    (hidden, weight), features = (x.dtype.itemsize for x in head), head.hidden.shape[-1]
    streams = tile.tokens * hidden + tile.classes * weight
    rows = min(tile.tokens, _tpu_kernels.ROWS)
    return 2 * features * streams + 32 * tile.classes * rows


def _second_bytes(tile: _Tile, head: Head) -> int:
    (hidden, weight), features = (x.dtype.itemsize for x in head), head.hidden.shape[-1]
    streams = tile.tokens * hidden + 2 * tile.classes * weight
    sums = 4 * (tile.classes + 3 * tile.tokens)
    return features * (2 * streams + sums) + 32 * tile.classes * tile.tokens


def kernels(
    whole: Block, softcap: Array | None, vocab_first: bool, classes: int, *, chip: Chip
) -> "Kernels":
    """For a weight in the order in which a TPU keeps it, which else would be copied."""
    first, last = whole.head.weight.shape
    turned = first % 128 == 0 and last % 128 > 0
    if turned:
        whole = whole._replace(head=Head(whole.head.hidden, whole.head.weight.T))
    return Kernels(whole, softcap, vocab_first != turned, classes, chip, turned)


class Kernels(NamedTuple):
    """All classes of this device."""

    whole: Block
    softcap: Array | None
    vocab_first: bool
    classes: int  # on all devices
    chip: Chip
    turned: bool  # whether the weight is the transpose of what it was

    @property
    def static(self) -> Static:
        head = self.whole.head
        size = head.weight.shape[0 if self.vocab_first else 1]
        return Static(len(head.hidden), size, self.classes, self.vocab_first)

    def statistics(self, like: Array) -> Part:
        static, (hidden, weight) = self.static, self.whole.head
        tile = self._tile(_FIRST, _first_bytes)
        operands = self._operands(tile, None)
        n, count = len(operands.labels), len(Part._fields)
        out = self._call(
            partial(_tpu_kernels.statistics, static=static),
            operands,
            jax.ShapeDtypeStruct((n, count), like.dtype),
            "parallel",
            grid=(n // tile.tokens, pl.cdiv(static.size, tile.classes)),
            in_specs=[self._specs(tile, operands, True)],
            out_specs=[pl.BlockSpec((tile.tokens, count), lambda i, j: (i, 0))],
            cost_estimate=self._cost(1, hidden.nbytes + n // tile.tokens * weight.nbytes),
        )
        return Part(*jnp.split(out[: static.tokens], count, 1))

    def gradients(self, wanted: Wanted, slopes: Slopes, settings: Settings) -> Wanted:
        static, (hidden, weight), w = self.static, self.whole.head, wanted.shared
        want = Results(wanted.hidden[0], wanted.weight[0], w.bias, w.softcap, w.class_weights)
        if not any(want):
            return Wanted((None,), (None,), Settings(), None)
        tile = self._tile(_SECOND, _second_bytes)
        given = tuple(name for name, x in slopes._asdict().items() if x is not None)
        operands = self._operands(tile, jnp.concatenate([x for x in slopes if x is not None], 1))
        specs = self._specs(tile, operands, False)
        grid = pl.cdiv(static.size, tile.classes), len(operands.labels) // tile.tokens
        shapes, out_specs, scratch = self._results(tile, grid, specs.weight, slopes.top.dtype)
        traffic = 2 * weight.nbytes + grid[0] * (hidden.nbytes + 8 * hidden.size)
        out = self._call(
            partial(_tpu_kernels.gradients, static=static, given=given),
            operands,
            _only(shapes, want),
            "arbitrary",
            grid=grid,
            in_specs=[specs],
            out_specs=[_only(out_specs, want)],
            scratch_shapes=[_only(scratch, (want.weight, *[want.hidden] * 3))],
            cost_estimate=self._cost(1 + bool(want.hidden) + bool(want.weight), traffic),
        )

        def cut(x: Array | None) -> Any:
            return None if x is None else x[0, : static.size]

        bias, cap, class_weights = map(cut, out[2:])
        g_hidden = None if out.hidden is None else out.hidden[: static.tokens]
        cap = None if cap is None else jnp.sum(cap)
        g_weight = out.weight.T if out.weight is not None and self.turned else out.weight
        return Wanted((g_hidden,), (g_weight,), Settings(bias, cap, class_weights), None)

    def _of_weight(self, tile: _Tile) -> tuple[int, int]:
        """The shape of a block."""
        features = self.whole.head.hidden.shape[1]
        return (tile.classes, features) if self.vocab_first else (features, tile.classes)

    def _results(
        self, tile: _Tile, grid: tuple[int, int], of_weight: pl.BlockSpec, dtype: Any
    ) -> tuple[Results, Results, Scratch]:
        """Of the second look, their shapes and blocks; and where they add up."""
        (hidden, weight), shape = self.whole.head, jax.ShapeDtypeStruct
        each = shape((1, grid[0] * tile.classes), dtype)
        total = shape((grid[1] * tile.tokens, hidden.shape[1]), dtype)
        shapes = Results(total, shape(weight.shape, weight.dtype), each, each, each)
        each = pl.BlockSpec((1, tile.classes), lambda j, i: (0, j))
        blocks = Results(pl.BlockSpec(memory_space=pl.ANY), of_weight, each, each, each)
        semaphores = pltpu.SemaphoreType.DMA((2,))
        buffers = pltpu.VMEM((2, tile.tokens, hidden.shape[1]), dtype)
        whole = pltpu.VMEM(self._of_weight(tile), dtype)
        return shapes, blocks, Scratch(whole, buffers, semaphores, semaphores)

    def _tile(self, sizes: Sequence[_Tile], needs: Callable[[_Tile, Head], int]) -> _Tile:
        """The first of the sizes, cut to what there is, for which there is room."""
        static, head = self.static, self.whole.head
        most = _Tile(-(-static.tokens // 16) * 16, -(-static.size // 128) * 128)
        for size in sizes:
            tile = _Tile(*map(min, size, most))
            if needs(tile, head) <= self.chip.room:
                return tile
        raise ValueError(
            f"implementation='pallas_tpu' holds whole rows of hidden on the chip, and those of "
            f"hidden of shape {head.hidden.shape} are too long; leave implementation out"
        )

    def _operands(self, tile: _Tile, rows: Array | None) -> Operands:
        size, bias, cap = self.static.size, self.whole.bias, self.softcap
        if bias is None and size % tile.classes:
            bias = jnp.zeros(size, jnp.float32)

        def of_tokens(x: Array | None) -> Array | None:
            return None if x is None else _filled(x, 0, tile.tokens, 0)

        def of_classes(x: Array | None, fill: float) -> Array | None:
            return None if x is None else _filled(x[None], 1, tile.classes, fill)

        operands = Operands(
            of_tokens(self.whole.labels),
            of_tokens(rows),
            *self.whole.head,
            of_classes(bias, -jnp.inf),
            of_classes(self.whole.k, 0),
            of_classes(None if cap is None else jnp.full(size, cap), 1),
        )
        return jax.tree.map(partial(_differing, operands), operands)

    def _specs(self, tile: _Tile, operands: Operands, tokens_first: bool) -> Operands:
        """The blocks of a step, in a grid with tokens first or classes first."""
        features = operands.hidden.shape[1]

        def spec(shape: tuple[int, int], axis: int, of_tokens: bool) -> pl.BlockSpec:
            def index(*at: Any) -> tuple[Any, Any]:
                here = at[0 if of_tokens == tokens_first else 1]
                return (here, 0) if axis == 0 else (0, here)

            return pl.BlockSpec(shape, index)

        width = 0 if operands.rows is None else operands.rows.shape[1]
        each = spec((1, tile.classes), 1, False)
        specs = Operands(
            spec((tile.tokens, 1), 0, True),
            spec((tile.tokens, width), 0, True),
            spec((tile.tokens, features), 0, True),
            spec(self._of_weight(tile), self.static.along, False),
            each, each, each,
        )  # fmt: skip
        return _only(specs, operands)

    def _cost(self, matmuls: int, traffic: int) -> pl.CostEstimate:
        static, features = self.static, self.whole.head.hidden.shape[1]
        logits = static.tokens * static.size
        return pl.CostEstimate(2 * matmuls * logits * features, logits, traffic)

    def _call(
        self, kernel: partial[None], operands: Operands, shapes: Any, tokens: str, **options: Any
    ) -> Any:
        """`pallas_call`, of one argument and one result that may be trees.

        Blocks of tokens are "parallel", which several cores may share, or "arbitrary".
        """

        def results():
            empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            return jax.tree.map(partial(_differing, operands), empty)

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
        # A batch goes one by one: the memory in which the second look adds up is for one.
        return jax.custom_batching.sequential_vmap(call)(operands)[0]


def _differing(like: Any, x: Array) -> Array:
    """`x`, made to differ over all devices over which some of a tree does."""
    for leaf in jax.tree.leaves(like):
        x = alike(x, leaf)
    return x


def _only(some: Any, where: Any) -> Any:
    """Of a named tuple, the entries where another has some."""
    have = (x is not None and x is not False for x in where)
    return type(some)(*(x if h else None for x, h in zip(some, have, strict=True)))


def _filled(x: Array, axis: int, multiple: int, fill: float) -> Array:
    """Up to a multiple of the size of blocks."""
    pad = [(0, 0), (0, 0)]
    pad[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, pad, constant_values=fill)
