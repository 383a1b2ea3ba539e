"""How long value and gradient take, beside the naive formula, the peers and the limit.

The programs of a loss are compiled, then run in turn in one process: each timed run follows an
untimed one of the same program, because a program that frees large arrays slows down the
next. Times are medians; ratios are medians of the ratios within a turn, so that what else the
machine does falls on both. On an accelerator the runs of one turn are not waited for one by
one, as in training.
"""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks import programs
from benchmarks.programs import Run
from benchmarks.works import NAIVE, OURS, Work, on_cpu

# Of a gradient, by its largest entry: sums in another order differ by less.
EQUAL = 1e-3
SHORTEST = 2e-3  # seconds of one timed run, which repeats the program until then
LONG = 0.5  # seconds from which on a run needs no other before it
LONGEST = 5.0  # seconds from which on three turns are enough
# The mode whose results are compared, and the mode that is timed at every size.
CHECKED, GROWN = "returned", "consumed"


def rows(work: Work, *, repeats: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Every mode at one size, and the other sizes with the gradient consumed."""
    full = work.sizes[0] if quick else work.full
    sizes = [full] if quick else work.sizes
    settings = [(CHECKED, full), *((GROWN, size) for size in sizes)]
    if not quick:
        settings += [(mode, full) for mode in programs.MODES if mode not in (CHECKED, GROWN)]
    batches = {size: work.batch(size) for size in sizes}
    runs = runners(work, settings, batches)
    apart = programs.differences(runs[CHECKED, full])
    for mode, size in settings[1 if quick else 0 :]:
        yield from _timed(work, size, mode, batches[size], runs[mode, size], apart, repeats)


Setting = tuple[str, int]


def runners(
    work: Work, settings: list[Setting], batches: dict[int, tuple[Any, Any]]
) -> dict[Setting, dict[str, Run | Exception]]:
    """Each library's program of each mode and size, or why it has none; compiled side by side."""
    prepare = {
        (mode, size, peer): partial(programs.preparation, peer, loss, mode, batches[size])
        for mode, size in settings
        for peer, loss in work.losses.items()
    }
    runs = programs.side_by_side(prepare)
    return {setting: {peer: runs[*setting, peer] for peer in work.losses} for setting in settings}


def _timed(work, size, mode, batch, runs, apart, repeats) -> Iterator[dict[str, Any]]:
    runs = {peer: run for peer, run in runs.items() if not isinstance(run, Exception)}
    runs = {peer: run for peer, run in runs.items() if not isinstance(apart[peer], str)}
    runs[programs.LIMIT] = programs.limit(work, size, mode, batch)
    seconds = interleaved(runs, repeats)
    about = {"loss": work.name, "family": work.family, "mode": mode, "size": size}
    for peer in [*work.losses, programs.LIMIT]:
        difference = apart.get(peer, 0.0)
        row = {**about, "peer": peer, "difference": difference, "equal": equal(difference)}
        if peer in seconds:
            ratio = np.median(seconds[OURS] / seconds[peer])
            row |= {**quartiles(seconds[peer]), "ours_by_theirs": ratio}
        yield row


def quartiles(seconds: np.ndarray) -> dict[str, float]:
    """The median, and the spread around it."""
    names = "low", "seconds", "high"
    return dict(zip(names, np.quantile(seconds, [0.25, 0.5, 0.75]).tolist(), strict=True))


def equal(difference: float | str) -> bool:
    return not isinstance(difference, str) and difference <= EQUAL


def interleaved(runs: Mapping[str, Run], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of one run of each program, `repeats` times in turn, or three if that takes long."""
    once = {name: _once(run, 1) for name, run in runs.items()}
    times = {name: max(1, int(SHORTEST / each)) for name, each in once.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for turn in range(repeats):
        for name, run in runs.items():
            if once[name] < LONG:
                run()
            seconds[name].append(_once(run, times[name]))
        if turn >= 2 and time.perf_counter() - start > LONGEST:
            break
    return {name: np.array(s) for name, s in seconds.items()}


def _once(run: Run, times: int) -> float:
    alone, results = on_cpu(), None
    start = time.perf_counter()
    for _ in range(times):
        results = run.start()
        if alone:
            run.wait(results)
    run.wait(results)
    return (time.perf_counter() - start) / times


def best_peer(rows: list[dict[str, Any]], jax_only: bool = True) -> dict[str, Any] | None:
    """Of the rows of one loss, mode and size, the fastest of another library."""
    excluded = {OURS, NAIVE, programs.LIMIT} | ({programs.TORCH} if jax_only else set())
    others = [r for r in rows if r["peer"] not in excluded and r["equal"] and "seconds" in r]
    return min(others, key=lambda r: r["seconds"], default=None)
