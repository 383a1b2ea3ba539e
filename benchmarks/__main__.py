"""`python -m benchmarks`: measure everything, and write the report."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import (
    compare,
    compilation,
    exactness,
    failures,
    memory,
    models,
    report,
    results,
    speed,
)
from benchmarks.works import Work, on_cpu, works

# Losses whose training step's peak is measured, each library in a process of its own.
PEAKS = (
    "softmax_cross_entropy_with_integer_labels",
    "siglip_loss",
    "pairwise_logistic_loss",
    "linear_cross_entropy",
)
CURVE = "linear_cross_entropy"

Measure = Callable[[Work, argparse.Namespace], Iterable[results.Row]]


def _only(names: Sequence[str], measure: Measure) -> Measure:
    return lambda work, args: measure(work, args) if work.name in names else ()


# The kinds of rows of each command, and what yields them for one loss.
MEASURES: dict[str, dict[str, Measure]] = {
    "speed": {"speed": lambda w, a: speed.rows(w, repeats=a.repeats, quick=a.quick)},
    "memory": {
        "memory": lambda w, a: memory.rows(w, quick=a.quick),
        "vocabulary": _only([CURVE], lambda w, a: memory.vocabulary(w, quick=a.quick)),
        "peaks": _only(PEAKS, lambda w, a: () if a.quick else memory.peaks(w)),
    },
    "exactness": {"exactness": lambda w, a: exactness.rows(w, quick=a.quick)},
    "compile": {
        "compile": lambda w, a: compilation.rows(w, repeats=1 if a.quick else 3, quick=a.quick)
    },
}
ABOUT = {
    "speed": "time a last layer's step at every size, and the other modes; about 20 minutes",
    "memory": "what the compiled programs need, and the peaks of running ones",
    "exactness": "errors in ulps of the exact results, and what peers get wrong",
    "compile": "time tracing, lowering and compiling",
}
REPEATS = 9
# Enough to see that all of it works.
QUICK = (
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "linear_cross_entropy",
)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    add = options.add_argument
    add("--quick", action="store_true", help="small sizes of a few losses, under a minute")
    add("--loss", action="append", default=[], help="only this one; may be repeated")
    add("--peer", action="append", default=[], help="only this one beside ours; may be repeated")
    add("--repeats", type=int, default=REPEATS, help=f"timed runs of each program; {REPEATS}")
    add("--readme", action="store_true", help="put the report's facts into README.md")
    add("--output", type=Path, default=None, help="the file of results, and its folder's name")

    out = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="benchmarks/results keeps a file and a report for each kind of device. What "
        "measures only a part (--quick, --loss, --peer, fewer --repeats) writes to its folder "
        "partial.",
    )
    commands = out.add_subparsers(dest="command", title="commands", required=True)
    commands.add_parser("all", parents=[options], help="each of these; the default")
    for name, about in ABOUT.items():
        commands.add_parser(name, parents=[options], help=about)
    commands.add_parser(
        "models", parents=[options], help="time models' own sizes, on an accelerator"
    )
    commands.add_parser("report", parents=[options], help="pictures and pages of the results")
    both = commands.add_parser("compare", help="what got slower from one file to another")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    return out


def is_partial(args: argparse.Namespace) -> bool:
    return bool(args.quick or args.loss or args.peer or args.repeats < REPEATS)


def path_of(args: argparse.Namespace) -> Path:
    """Of the results; never of the kept ones where only a part of them is measured."""
    partial = is_partial(args)
    path = args.output or results.default_path(partial)
    if partial and path.resolve().parent == results.KEPT.resolve():
        raise SystemExit(f"{path} keeps whole results: name another file for a part of them")
    if partial and args.readme:
        raise SystemExit("README.md has the facts of a whole run")
    return path


def measure(args: argparse.Namespace, name: str, path: Path, console: Console) -> None:
    chosen = works(args.loss or (QUICK if args.quick else ()), args.peer)
    rows: dict[str, list[results.Row]] = {kind: [] for kind in MEASURES[name]}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(name, total=len(chosen))
        for work in chosen:
            progress.update(task, description=f"{name}: {work.name}")
            for kind, of in MEASURES[name].items():
                rows[kind] += of(work, args)
            progress.advance(task)
    if name == "exactness":
        rows["failures"] = failures.rows(failures.FAILURES[::8] if args.quick else None)
    save(args, name, rows, path, console)


def measure_models(args: argparse.Namespace, path: Path, console: Console) -> None:
    with Progress(console=console, transient=True) as progress:
        cases = progress.track(models.cases(args.loss), description="models")
        rows = [row for case in cases for row in models.rows(case, repeats=args.repeats)]
    save(args, "models", {"models": rows}, path, console)


def save(
    args: argparse.Namespace,
    name: str,
    rows: dict[str, list[results.Row]],
    path: Path,
    console: Console,
) -> None:
    settings = {"quick": args.quick, "repeats": args.repeats, "loss": args.loss, "peer": args.peer}
    for kind, of in rows.items():
        results.save(path, kind, of, settings)
    console.print(f"{name}: {sum(map(len, rows.values()))} rows to {path}")


def show_changes(before: Path, after: Path, console: Console) -> int:
    """Print what changed; 1 if something got worse, or is missing."""
    shown = Table("", "what", "loss", "mode", "size", "before", "after", "change", "noise")
    rows = compare.changes(before, after)
    for r in rows:
        if r["is"] != "same":
            numbers = f"{r['before']:.3g}", f"{r['after']:.3g}", f"{r['change']:+.0%}"
            shown.add_row(
                r["is"],
                r["what"],
                r["loss"],
                r["mode"],
                str(r["size"]),
                *numbers,
                f"{r['noise']:.0%}",
            )
    gone = compare.missing(before, after)
    console.print(shown if shown.rows else f"{len(rows)} programs, none changed beyond the noise")
    for name in gone:
        console.print(f"no longer measured: {name}")
    return int(bool(gone) or any(r["is"] == "worse" for r in rows))


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    named = bool(argv) and (not argv[0].startswith("-") or argv[0] in ("-h", "--help"))
    args, console = parser().parse_args([*([] if named else ["all"]), *argv]), Console()
    if args.command == "compare":
        return show_changes(args.before, args.after, console)
    path = path_of(args)
    everything = args.command == "all"
    # Peers run, and warn, as they do by default.
    with (
        warnings.catch_warnings(action="ignore"),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for name in MEASURES:
            if everything or name == args.command:
                measure(args, name, path, console)
        if args.command == "models" or (everything and not on_cpu() and not args.quick):
            measure_models(args, path, console)
    if everything or args.command == "report":
        data, folder = results.load(path), path.with_suffix("")
        console.print(f"report: {report.write(data, folder)}")
        if args.readme:
            report.write_readme(data, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
