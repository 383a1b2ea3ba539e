"""One row of numbers for each compiled program."""

from collections import Counter
from typing import Any

from aot import hlo, targets
from aot.programs import Case, Program
from aot.targets import Target

Row = dict[str, Any]


def row(target: Target, case: Case, program: Program) -> Row:
    """Compile, and read off what the program costs."""
    mesh = targets.mesh(target, sizes=(case.devices,))
    about = identity(target, case, program)
    step, shapes = case.step(program, mesh), case.shapes(mesh)
    try:
        compiled = targets.compile_for(mesh, step, shapes)
    except targets.DoesNotFit as error:
        return about | {"fits": False, "temporary_bytes": error.needed}
    return about | {"fits": True} | figures(target, compiled)


def identity(target: Target, case: Case, program: Program) -> Row:
    return {
        "target": target.name,
        "case": case.name,
        "program": program.name,
        "devices": case.devices,
    }


def figures(target: Target, compiled: Any) -> Row:
    memory = compiled.memory_analysis()
    temporary, output = memory.temp_size_in_bytes, memory.output_size_in_bytes
    operands, aliased = memory.argument_size_in_bytes, memory.alias_size_in_bytes
    program = hlo.Program(compiled.as_text())
    seen = not program.opaque
    loops = any(kernel.runs > 1 for kernel in program.kernels)
    # XLA's own estimate counts the body of a loop once.
    estimate = None if loops or not seen else (compiled.cost_analysis() or {})
    collectives = Counter[str]()
    for one in program.collectives:
        collectives[one.kind] += one.runs
    return {
        "temporary_bytes": temporary,
        "output_bytes": output,
        "total_bytes": temporary + output + operands - aliased,
        "flops": program.total(lambda k: k.flops) if seen else None,
        "matmul_flops": program.total(lambda k: sum(k.matmuls)) if seen else None,
        "transcendentals": program.total(lambda k: k.transcendentals) if seen else None,
        "moved_bytes": program.total(lambda k: k.bytes) if seen else None,
        "roofline_seconds": roofline(target, program) if seen else None,
        "compiler_seconds": compiler_seconds(target, program),
        "xla_optimal_seconds": None if estimate is None else estimate.get("optimal_seconds"),
        "kernels": len(program.kernels),
        "launches": int(program.total(lambda k: 1)),
        "collectives": ", ".join(f"{n} {kind}" for kind, n in sorted(collectives.items())),
        "collective_bytes": sum(one.runs * one.bytes for one in program.collectives),
    }


def roofline(target: Target, program: hlo.Program) -> float:
    """Seconds if each kernel were limited by its matmuls or by its traffic alone; an estimate."""

    def seconds(kernel: hlo.Kernel) -> float:
        matmuls = sum(kernel.matmuls) / target.peak(kernel.dtype)
        return max(matmuls, kernel.bytes / target.bandwidth)

    return program.total(seconds)


def compiler_seconds(target: Target, program: hlo.Program) -> float | None:
    """What the TPU compiler's own model of cycles gives for the kernels that it has chosen.

    It knows nothing of those that somebody else wrote.
    """
    written = any(kernel.opaque or kernel.said is not None for kernel in program.kernels)
    if target.clock is None or written:
        return None
    return program.total(lambda kernel: kernel.cycles) / target.clock
