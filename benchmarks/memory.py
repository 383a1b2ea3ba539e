"""What value and gradient need in memory: as compiled, and the peak of a running training step.

Sizes that would not fit are compiled from shapes alone; nothing is allocated for them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import programs
from benchmarks.works import TORCH, Work, works

MODES = (programs.HEADLINE, "consumed", "returned")
# Of a linear layer: the tokens, features and vocabularies of the curve.
TOKENS, FEATURES, VOCABULARIES = 8192, 2048, (2**13, 2**14, 2**15, 2**16, 2**17, 2**18)


def rows(work: Work, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Compiled bytes of each library's program."""
    size = work.sizes[0] if quick else work.full
    predictions = sum(a.nbytes for a in jax.tree.leaves(work.batch(size)[0]))
    for mode in MODES:
        batch = jax.tree.map(shape_of, work.batch(size, mode))
        about = {"loss": work.name, "size": str(size), "mode": mode}
        for peer in work.losses:
            if peer != TORCH:
                compiled = _compiled(work.loss(peer, mode), mode, batch)
                yield {**about, "peer": peer, "predictions": predictions, **compiled}


def shape_of(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _compiled(loss: Any, mode: str, batch: Any) -> dict[str, Any]:
    try:
        memory = programs.lowered(loss, mode, batch).compile().memory_analysis()
    except Exception as error:  # A peer that fails is a result too.
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    if memory is None:
        return {"error": "the compiler does not say"}
    return {"temporary": memory.temp_size_in_bytes}


def vocabulary(work: Work, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Temporary bytes of a linear layer's loss against its number of classes, in bfloat16."""
    for classes in VOCABULARIES[: 2 if quick else None]:
        hidden = jax.ShapeDtypeStruct((TOKENS, FEATURES), jnp.bfloat16)
        weight = jax.ShapeDtypeStruct((FEATURES, classes), jnp.bfloat16)
        batch = (hidden, weight), jax.ShapeDtypeStruct((TOKENS,), jnp.int32)
        for peer, loss in work.losses.items():
            if peer != TORCH:
                about = {"loss": work.name, "peer": peer, "vocabulary": classes}
                yield {**about, **_compiled(loss, "returned", batch)}


def peaks(work: Work, *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """The peak of a training step, each in a process of its own, above what the inputs take."""
    size = work.sizes[0] if quick else work.full
    for peer in work.losses:
        command = [sys.executable, "-m", "benchmarks.memory", work.name, peer, size.name]
        root = Path(__file__).parents[1]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
        about = {"loss": work.name, "size": str(size), "peer": peer}
        if ran.returncode:
            yield {**about, "error": ran.stderr.strip().splitlines()[-1][:200]}
        else:
            yield {**about, **json.loads(ran.stdout.splitlines()[-1])}


def _device_peak() -> int | None:
    stats = jax.devices()[0].memory_stats()
    return stats.get("peak_bytes_in_use") if stats else None


def process_peak() -> int:
    """Bytes of memory that this process has had at most."""
    status = Path("/proc/self/status")
    if status.exists():  # What `getrusage` says includes the process that started this one.
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _peak_of(name: str, peer: str, size: str) -> dict[str, int]:
    """Run one step in this process: of the device if it counts, else of the process."""

    def peak() -> int:
        return _device_peak() or process_peak()

    (work,) = works([name])
    (of_size,) = (of for of in work.sizes if of.name == size)
    small, batch = work.batch(work.sizes[0]), work.batch(of_size)
    loss = work.losses[peer]
    # What the libraries themselves load and compile is there before.
    programs.runner(peer, loss, "step", small)()
    run = programs.runner(peer, loss, "step", batch)
    before = peak()
    run()
    return {"peak": peak() - before}


if __name__ == "__main__":
    print(json.dumps(_peak_of(*sys.argv[1:])))
