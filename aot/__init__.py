"""Compiling the losses for accelerators that are not here: `python -m aot`.

Programs of models' shapes are lowered from shapes alone and compiled by the targets' real
compilers; memory, traffic, arithmetic, kernels and collectives are read off what they give.
"""

import argparse
import importlib.metadata
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# What XLA logs of machines that are not there says nothing.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from rich.console import Console
from rich.progress import track

from aot import measure, targets
from aot.measure import Row
from aot.programs import CASES, Case, Program, installed
from aot.targets import TARGETS, Target

__all__ = ["add_arguments", "main", "run", "versions"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = partial(parser.add_argument, nargs="+", metavar="NAME")
    add("--targets", choices=TARGETS, default=list(TARGETS), help=f"of {', '.join(TARGETS)}")
    add("--cases", choices=CASES, default=list(CASES), help=f"of {'; '.join(CASES)}")
    add("--programs", help="only programs whose name has one of these")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--write", action="store_true", help="put tables and picture into the docs")


def run(args: argparse.Namespace) -> list[Row]:
    """Compile what the arguments name; a row of numbers for each program and target."""
    console = Console(stderr=True)
    chosen = [TARGETS[name] for name in args.targets]
    for target in chosen:
        if (message := targets.missing(target)) is not None:
            raise targets.Missing(message)
    todo = [
        (target, CASES[name], program)
        for target in chosen
        for name in args.cases
        for program in CASES[name].programs
        if _wanted(target, program, args.programs)
    ]
    return [
        _row(console, *which) for which in track(todo, description="compiling", console=console)
    ]


def _wanted(target: Target, program: Program, names: Sequence[str] | None) -> bool:
    runs = program.only != "tpu" or not target.is_gpu
    return runs and installed(program) and (not names or any(n in program.name for n in names))


def _row(console: Console, target: Target, case: Case, program: Program) -> Row:
    try:
        return measure.row(target, case, program)
    # Other libraries' programs may not compile; that is a result too.
    except Exception as error:
        console.print(f"{target.name}, {case.name}, {program.name}: {error}"[:500], markup=False)
        return measure.identity(target, case, program) | {"error": str(error)[:500]}


def versions() -> dict[str, str]:
    """Of what was compiled, and by what."""
    names = "jax", "libtpu", "jax-cuda12-pjrt", "optax", "tokamax"
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(prog="python -m aot", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # The compilers run on the host.
    try:
        rows = run(args)
    except targets.Missing as error:
        parser.exit(2, f"{error}\n")
    from aot import report

    report.show(rows)
    if args.json is not None:
        args.json.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")
    if args.write:
        report.write(rows, versions())
    return rows
