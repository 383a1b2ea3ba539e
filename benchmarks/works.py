"""What is timed: each function of the case table at the size of a model, and who else has it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import layers
from benchmarks.layers import DRAWN
from benchmarks.peers import peers as known_peers
from tests.cases import FAMILIES, FIRST_ROWS, angular, linear
from tests.cases._case import Case


@dataclass(frozen=True)
class Size:
    """Of a batch: rows of so many columns, or what the row of a `Model` counts."""

    name: str
    rows: int
    columns: int | None = None

    def __str__(self) -> str:
        return str(self.rows) if self.columns is None else f"{self.rows} x {self.columns}"


SMALL, MIDDLE, LARGE = "small", "middle", "large"
# The large one is timed in full. It has more than 32 MB, as logits have: glibc maps such an array
# anew each time. Smaller ones it may keep or not, which makes a program that writes them two to
# three times as fast.
SIZES = Size(SMALL, 128, 128), Size(MIDDLE, 1024, 1024), Size(LARGE, 9216, 1024)
OF_ROWS = Size("1000 classes", 4096, 1000), Size("few classes", 65536, 10)
ELEMENTWISE = (Size("few classes", 131072, 8),)
# Of a model, its middle batch is the one that is timed in full.
OF_MODELS = SMALL, LARGE, "largest"
# An accelerator takes so much more at a time: less would fit its cache, or time its launches.
LARGER = 16
OURS, NAIVE, TORCH = "jaxloss", "naive", "torch"


@dataclass(frozen=True)
class Work:
    """One function, ours and others', on batches of some sizes."""

    name: str
    case: Case
    # By who wrote it: (predictions, targets) -> losses, or their mean.
    losses: dict[str, Callable[..., Any]]
    sample: Callable[[np.random.Generator, Size], tuple[Any, Any]]
    sizes: Sequence[Size]
    full: Size
    matmuls: Callable[[int], Sequence[tuple[int, int, int]]] | None

    def __str__(self) -> str:
        return self.name

    @property
    def layered(self) -> bool:
        """Whether the mode "layer" puts one below the loss. Some losses have their own: of them it
        is the value and the gradient of what they take."""
        return self.case not in (*linear.CASES, *angular.CASES)

    def loss(self, peer: str, mode: str) -> Callable[..., Any]:
        loss = self.losses[peer]
        if mode != "layer" or not self.layered:
            return loss
        return layers.over(loss, self.case.predictions, torch=peer == TORCH)

    def batch(self, size: Size, mode: str = "") -> tuple[Any, Any]:
        drawn = self.sample(np.random.default_rng(0), size)
        if mode == "layer" and self.layered:
            drawn = layers.batch(drawn, self.case.predictions)
        return jax.tree.map(jnp.asarray, drawn)


def works(losses: Sequence[str] = (), peers: Sequence[str] = ()) -> list[Work]:
    """One for each function of the table; of these losses and peers, if any are named."""
    all_of_them = [
        _work(case, peers) for family in FAMILIES for case in family.CASES if case in FIRST_ROWS
    ]
    unknown = set(losses) - {work.name for work in all_of_them}
    if unknown:
        raise SystemExit(f"no such loss: {', '.join(sorted(unknown))}")
    return [work for work in all_of_them if not losses or work.name in losses]


def _work(case: Case, chosen: Sequence[str]) -> Work:
    others = {"optax": case.optax} if case.optax and not case.model else {}
    others |= known_peers().get(case.function, {})
    others = {name: f for name, f in others.items() if not chosen or name in chosen}
    if m := case.model:
        ours, naive, matmuls = m.fn, m.naive, m.matmuls
        sizes = [Size(name, rows) for name, rows in zip(OF_MODELS, m.sizes, strict=True)]
    else:
        ours, matmuls = case.fn, None
        naive = case.naive if case.elementwise else jax.vmap(case.naive)
        sizes = [*SIZES, *(ELEMENTWISE if case.elementwise else OF_ROWS)]
    if not on_cpu():
        sizes = [Size(size.name, LARGER * size.rows, size.columns) for size in sizes]
    (full,) = (size for size in sizes if size.name == LARGE)
    losses = {OURS: ours, NAIVE: naive, **others}
    return Work(case.function, case, losses, _sample(case), sizes, full, matmuls)


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _sample(case: Case):
    def sample(rng, size):
        if case.model:
            return case.model.sample(rng, size.rows)
        times = max(1, size.rows * size.columns // DRAWN)
        rows = size.rows // times
        if case.elementwise:
            drawn = case.random(rng, rows, size.columns)
        else:
            drawn = case.random(rng, rows, size=size.columns)
        return jax.tree.map(lambda a: np.tile(a, (times,) + (1,) * (a.ndim - 1)), drawn)

    return sample
