"""How long a TPU kernel takes, by its static schedule: `python -m benchmarks.aot.schedule`.

The compiler writes down the bundles of a kernel, one a cycle, and which of them start a matmul.
From that, the grid and the bytes that the kernel moves follow estimates, for a TPU v5e:

- An instruction multiplies 16 rows of bfloat16, or 8 of float32, by the 128 x 128 numbers that one
  of four MXUs holds: as many cycles of that MXU. Between the first and the last matmul of a stretch
  of bundles pass as many cycles as it has bundles, or as its MXUs need; outside, as many as there
  are bundles.
- A stretch under a condition counts as often as the condition is met in the kernel's grid.
- Transfers overlap with all of this, but for those that the kernel waits for at once.

These are estimates: nothing has run.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction as F
from pathlib import Path

_MXUS = 4
_ROWS = {"bf16": 16, "f32": 8}
# A condition with fewer bundles, such as a transfer's, is taken for a part of what is around it.
_SMALL = 64

Grid = tuple[int, ...]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Kernel:
    """Of a program; by its grid and the shape of the head, N x D x V."""

    name: str
    # Of each condition, in the order of their bundles, which part of the steps meets it.
    met: Callable[..., Sequence[F | int]]
    traffic: Callable[[Grid, Shape], int]  # bytes
    waited: Callable[[Grid, Shape], int] = lambda grid, shape: 0  # bytes, of the traffic


def _ours_second(grid: Grid, shape: Shape) -> int:
    (classes, _), (n, d, v) = grid, shape
    return 4 * d * v + classes * (2 + 8) * n * d


def _tokamax_logits(grid: Grid, shape: Shape) -> int:
    (b, v, *_), (tokens, d, classes) = grid, shape
    return 2 * d * (v * tokens + b * classes)


def _tokamax_gradients(grid: Grid, shape: Shape) -> int:
    (b, v, *_), (tokens, d, classes) = grid, shape
    sums = 4 * d * ((2 * v - 1) * tokens + (2 * b - 1) * classes)
    return 2 * _tokamax_logits(grid, shape) + sums


def _met_in_tokamax_gradients(b: int, v: int, _: int, h: int) -> list[F | int]:
    half, last = F(1, 2), F(1, 2 * h)
    logits = [half, last, last, half - last]
    first_w, first_x = [half / b, 0], [half / v, 0]
    more_w, more_x = [half - half / b, half / b], [half - half / v, half / v]
    return [1, *logits, half, last, *first_w, *first_x, *more_w, *more_x]


KERNELS = {
    "jaxloss pallas_tpu": (
        Kernel(
            "linear_cross_entropy_statistics",
            lambda tokens, classes: [1, F(1, classes)],
            lambda grid, shape: 2 * shape[1] * (shape[0] + grid[0] * shape[2]),
        ),
        Kernel(
            "linear_cross_entropy_gradients",
            lambda classes, tokens: [1, F(1, tokens), F(1, classes), F(1, tokens)],
            _ours_second,
        ),
    ),
    # tokamax 0.0.12: its blocks of the gradients are added up in memory, and a step waits until
    # that of x, which it sends last, has arrived.
    "tokamax Pallas": (
        Kernel(
            "loss_fwd_pallas_mosaic_tpu",
            lambda b, v, h: [1, F(1, h), F(1, h), 1 - F(1, h), F(1, h)],
            _tokamax_logits,
        ),
        Kernel(
            "loss_bwd_pallas_mosaic_tpu",
            _met_in_tokamax_gradients,
            _tokamax_gradients,
            lambda grid, shape: 4 * grid[1] * shape[0] * shape[1],
        ),
    ),
}


@dataclass
class Stretch:
    """Bundles that run one after the other: how many rows each of them begins to multiply."""

    rows: list[int] = field(default_factory=list)

    @property
    def mxu_cycles(self) -> int:
        return sum(self.rows) // _MXUS

    @property
    def cycles(self) -> int:
        busy = [at for at, rows in enumerate(self.rows) if rows]
        span = busy[-1] - busy[0] + 1 if busy else 0
        return len(self.rows) - span + max(span, self.mxu_cycles)


@dataclass
class Region:
    """What runs under one condition, without what runs under further ones."""

    name: str = ""
    stretches: list[Stretch] = field(default_factory=lambda: [Stretch()])

    @property
    def cycles(self) -> int:
        return sum(stretch.cycles for stretch in self.stretches)

    @property
    def mxu_cycles(self) -> int:
        return sum(stretch.mxu_cycles for stretch in self.stretches)

    @property
    def bundles(self) -> int:
        return sum(len(stretch.rows) for stretch in self.stretches)


def regions(bundles: str) -> list[Region]:
    """The conditions of a kernel, each before those within it, as they stand in its bundles."""
    lines = [
        line for line in bundles.splitlines() if re.match(r"\s*(0x)?[0-9a-f]+\s.*: .*\{", line)
    ]
    ends = {name for line in lines for name in _ended(line)}
    outside = Region()
    found, around = [outside], [outside]
    for line in lines:
        for name in _ended(line):
            while any(region.name == name for region in around):
                _close(found, around)
        matmuls = re.findall(r"vmatmul\.(?:msk\.)?(\w+)", line)
        around[-1].stretches[-1].rows.append(sum(_ROWS[dtype] for dtype in matmuls))
        branch = re.search(r"sbr\.rel \(!?%\w+\) target = \$region(\d+)", line)
        if branch and branch[1] in ends - {region.name for region in around}:
            around.append(Region(branch[1]))
            found.append(around[-1])
    return found[1:]


def _ended(line: str) -> list[str]:
    return re.findall(r"Start/End empty region (\d+)", line)


def _close(found: list[Region], around: list[Region]) -> None:
    inner = around.pop()
    if inner.bundles >= _SMALL or len(inner.stretches) > 1:
        around[-1].stretches.append(Stretch())
    else:
        around[-1].stretches[-1].rows += inner.stretches[0].rows
        found.remove(inner)


@dataclass(frozen=True)
class Estimate:
    """Of one kernel, in seconds."""

    kernel: str
    grid: Grid
    matmuls: float  # if the MXUs never waited
    schedule: float  # by the bundles, with the transfers that are waited for
    memory: float  # of all transfers

    @property
    def seconds(self) -> float:
        return max(self.schedule, self.memory)


def estimate(program: str, case: str = "gemma2_2b") -> Iterator[Estimate]:
    """Compile a program of `KERNELS` for a case's shapes, and read its schedule."""
    from benchmarks.aot.programs import CASES
    from benchmarks.aot.targets import TARGETS, mesh

    target = TARGETS["v5e"]
    hidden, weight, _ = CASES[case].shapes(mesh(target))
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = [sys.executable, "-m", "benchmarks.aot.schedule", "--compile", program, case]
        subprocess.run(
            command, env=os.environ | {"LIBTPU_INIT_ARGS": flags}, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for kernel in KERNELS[program]:
            (path,) = Path(folder).glob(f"*{kernel.name}*[0-9]-final_bundles.txt")
            shape = *hidden.shape, weight.shape[1]
            yield read(kernel, path.read_text(), shape, target.clock or 1.0, target.bandwidth)


def read(kernel: Kernel, bundles: str, shape: Shape, clock: float, bandwidth: float) -> Estimate:
    """From a kernel's bundles, as the compiler writes them down."""
    (bounds,) = set(re.findall(r"iteration_bounds: \(([\d, ]+)\)", bundles))
    grid = tuple(map(int, bounds.split(",")))
    steps, found, met = math.prod(grid), regions(bundles), kernel.met(*grid)
    if len(found) != len(met):
        raise ValueError(
            f"{kernel.name} has {len(found)} conditions, of "
            f"{[region.bundles for region in found]} bundles; expected {len(met)}"
        )

    def total(cycles: Callable[[Region], int]) -> float:
        pairs = zip(found, met, strict=True)
        return steps * float(sum(often * cycles(region) for region, often in pairs)) / clock

    waited = kernel.waited(grid, shape) / bandwidth
    return Estimate(
        kernel.name,
        grid,
        total(lambda region: region.mxu_cycles),
        total(lambda region: region.cycles) + waited,
        kernel.traffic(grid, shape) / bandwidth,
    )


def _compile(program: str, case: str) -> None:
    from benchmarks.aot.programs import CASES
    from benchmarks.aot.targets import TARGETS, compile_for, mesh

    on, chosen = mesh(TARGETS["v5e"]), CASES[case]
    (step,) = (chosen.step(p, on) for p in chosen.programs if p.name == program)
    compile_for(on, step, chosen.shapes(on))


def main() -> None:
    parser = argparse.ArgumentParser(description="estimates of the TPU kernels, in ms")
    parser.add_argument("--case", default="gemma2_2b")
    parser.add_argument("--compile", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        return _compile(*args.compile)
    print(f"{args.case}, TPU v5e, in ms    matmuls  schedule    memory  estimate")
    for program in KERNELS:
        kernels = list(estimate(program, args.case))
        for of in kernels:
            numbers = of.matmuls, of.schedule, of.memory, of.seconds
            print(f"{of.kernel[-26:]:26}", *(f"{1e3 * x:9.1f}" for x in numbers), f" {of.grid}")
        print(f"{program:26} {1e3 * sum(of.seconds for of in kernels):39.1f}")
    return None


if __name__ == "__main__":
    main()
