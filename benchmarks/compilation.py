"""How long value and gradient take to trace, lower and compile, and how large the program is."""

import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import programs
from benchmarks.memory import shape_of
from benchmarks.works import TORCH, Work

# An instruction of HLO text: `name = type opcode(operands)`, in any computation.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = \S.*? ([a-z\-]+)\(", re.MULTILINE)
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


def rows(work: Work, *, repeats: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    size = work.sizes[0] if quick else work.full
    batch = jax.tree.map(shape_of, work.batch(size))
    losses = {peer: f for peer, f in work.losses.items() if peer != TORCH}
    seconds: dict[str, list[tuple[float, ...]]] = {peer: [] for peer in losses}
    counts: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for peer, loss in losses.items():
            try:
                stages, text = _stages(loss, batch)
            except Exception as error:  # A peer that fails is a result too.
                counts[peer] = {"error": f"{type(error).__name__}: {error}"[:200]}
                continue
            seconds[peer].append(stages)
            counts[peer] = counted(text)
    for peer in losses:
        about = {"loss": work.name, "size": str(size), "mode": "returned"}
        stages = dict(zip(("trace", "lower", "compile"), _medians(seconds[peer]), strict=False))
        yield {**about, "peer": peer, **stages, **counts[peer]}


def _medians(stages: list[tuple[float, ...]]) -> list[float]:
    return [float(s) for s in np.median(stages, axis=0)] if stages else []


def _stages(loss: Any, batch: Any) -> tuple[tuple[float, ...], str]:
    """As in a fresh process, but for what was imported."""
    jax.clear_caches()
    start = time.perf_counter()
    traced = jax.jit(programs.returned(loss)).trace(*batch)
    at_trace = time.perf_counter()
    lowered = traced.lower()
    at_lower = time.perf_counter()
    compiled = lowered.compile()
    at_end = time.perf_counter()
    return (at_trace - start, at_lower - at_trace, at_end - at_lower), compiled.as_text() or ""


def counted(text: str) -> dict[str, int]:
    """Instructions of optimised HLO that compute something, and the fusions among them."""
    opcodes = [code for code in _INSTRUCTION.findall(text) if code not in _FREE]
    return {"instructions": len(opcodes), "fusions": opcodes.count("fusion")}
