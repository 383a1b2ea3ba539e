"""Losses at the sizes that models have, run and timed on the accelerator that is here.

The programs are those that `aot` compiles for accelerators that are not.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from aot.programs import CASES, Case, Program, installed
from benchmarks import programs, speed
from benchmarks.programs import Run


def cases(names: Sequence[str] = ()) -> list[Case]:
    """Those of one device; of these names, if any are given."""
    return [c for c in CASES.values() if c.devices == 1 and (not names or c.name in names)]


def rows(case: Case, *, repeats: int) -> Iterator[dict[str, Any]]:
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    batch = operands(case, mesh)
    wanted = [p for p in case.programs if installed(p) and p.only in (None, jax.default_backend())]
    about: dict[str, dict[str, Any]] = {
        name: {"case": case.name, "program": name}
        for name in [*(p.name for p in wanted), programs.LIMIT]
    }
    runs: dict[str, Run] = {}
    expected = None
    prepare = {p.name: partial(_compiling, case, p, mesh, batch) for p in wanted}
    for name, compiled in programs.side_by_side(prepare).items():
        of = about[name]
        try:
            if isinstance(compiled, Exception):
                raise compiled
            memory = compiled.memory_analysis()
            of["temporary"] = memory.temp_size_in_bytes
            of["output"] = memory.output_size_in_bytes
            run = Run(partial(compiled, *batch))
            got = jax.tree.leaves(run())
            expected = expected or got
            of["difference"] = max(map(programs.difference, expected, got))
            runs[name] = run
        except Exception as error:  # Such as: there is not enough memory.
            of["error"] = programs.brief(error)
        got = None
    expected = None
    seconds = speed.interleaved(runs, repeats)
    # Alone: its operands, some as large as the logits, would be in the others' way.
    seconds |= speed.interleaved({programs.LIMIT: _limit(case, batch)}, repeats)
    for name, of in seconds.items():
        about[name] |= speed.middle(of)
    yield from about.values()


def _compiling(case: Case, program: Program, mesh: Mesh, batch: Any) -> Callable[[], Any]:
    return jax.jit(case.step(program, mesh)).lower(*batch).compile


def operands(case: Case, mesh: Mesh) -> tuple[jax.Array, ...]:
    """Random ones; logits of about one, whatever there are features."""

    def one(i, shape):
        key = jax.random.key(i)
        if i in case.paddings:
            return jnp.zeros(shape.shape, shape.dtype)
        if jnp.issubdtype(shape.dtype, jnp.integer):
            return jax.random.randint(key, shape.shape, 1, case.classes, shape.dtype)
        drawn = jax.random.normal(key, shape.shape, shape.dtype)
        return drawn * shape.shape[0] ** -0.5 if i and case.matmuls else drawn

    return tuple(one(i, shape) for i, shape in enumerate(case.shapes(mesh)))


def _limit(case: Case, batch: Any) -> Run:
    if case.matmuls:
        return programs.matmuls(case.matmuls, batch[0].dtype)
    floating = [a for a in batch if jnp.issubdtype(a.dtype, jnp.floating)]
    return programs.stream(floating, len(case.differentiated))
