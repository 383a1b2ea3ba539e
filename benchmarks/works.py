"""What is timed: each function of the case table at the size of a model, and who else has it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import peers as known_peers
from tests.cases import FAMILIES, FIRST_ROWS
from tests.cases._case import Case

CLASSES = 1000
# Numbers in the predictions; the last one is timed in full, and of a model's batches the middle.
# The last has more than 32 MB, as logits have: glibc maps such an array anew each time. Smaller
# ones it may keep or not, which makes a program that writes them two to three times as fast.
SIZES = (2**14, 2**20, 9 * 2**20)
# An accelerator takes so much more at a time: less would fit its cache, or time its launches.
LARGER = 16
# As many numbers are drawn; more repeat them.
DRAWN = 2**20
OURS, NAIVE = "jaxloss", "naive"


@dataclass(frozen=True)
class Work:
    """One function, ours and others', on batches of some sizes."""

    name: str
    family: str
    case: Case
    # By who wrote it: (predictions, targets) -> losses, or their mean.
    losses: dict[str, Callable[..., Any]]
    sample: Callable[[np.random.Generator, int], tuple[Any, Any]]
    sizes: Sequence[int]
    full: int
    matmuls: Callable[[int], Sequence[tuple[int, int, int]]] | None

    def __str__(self) -> str:
        return self.name

    def batch(self, size: int) -> tuple[Any, Any]:
        return jax.tree.map(jnp.asarray, self.sample(np.random.default_rng(0), size))


def works(losses: Sequence[str] = (), peers: Sequence[str] = ()) -> list[Work]:
    """One for each function of the table; of these losses and peers, if any are named."""
    all_of_them = [
        _work(case, family.__name__.split(".")[-1], peers)
        for family in FAMILIES
        for case in family.CASES
        if case in FIRST_ROWS
    ]
    unknown = set(losses) - {work.name for work in all_of_them}
    if unknown:
        raise SystemExit(f"no such loss: {', '.join(sorted(unknown))}")
    return [work for work in all_of_them if not losses or work.name in losses]


def _work(case: Case, family: str, chosen: Sequence[str]) -> Work:
    others = {"optax": case.optax} if case.optax and not case.model else {}
    others |= known_peers().get(case.function, {})
    others = {name: f for name, f in others.items() if not chosen or name in chosen}
    if case.model:
        m = case.model
        ours, naive, sample, sizes, matmuls = m.fn, m.naive, m.sample, m.sizes, m.matmuls
    else:
        ours, sample, matmuls = case.fn, _sample(case), None
        naive = case.naive if case.elementwise else jax.vmap(case.naive)
        sizes = SIZES
    sizes = [size if on_cpu() else LARGER * size for size in sizes]
    full = sizes[1] if case.model else sizes[-1]
    losses = {OURS: ours, NAIVE: naive, **others}
    return Work(case.function, family, case, losses, sample, sizes, full, matmuls)


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _sample(case: Case):
    def sample(rng, size):
        times = max(1, size // DRAWN)
        if case.elementwise:
            drawn = case.random(rng, size // times)
        else:
            drawn = case.random(rng, size // times // CLASSES, size=CLASSES)
        return jax.tree.map(lambda a: np.tile(a, (times,) + (1,) * (a.ndim - 1)), drawn)

    return sample
