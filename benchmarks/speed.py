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
from benchmarks.programs import HEADLINE, Run
from benchmarks.works import NAIVE, OURS, TORCH, Size, Work, on_cpu

# Of a gradient, by its largest entry: sums in another order differ by less.
EQUAL = 1e-3
SHORTEST = 5e-3  # seconds of one timed run, which repeats the program until then
LONG = 0.5  # seconds from which on a run needs no other before it
# Seconds from which on three turns are enough, of the headline and of other modes: with these all
# losses take about 20 minutes on two quiet cores.
LONGEST, BRIEFER = 4.0, 1.5
# Besides the headline, the mode whose results are compared.
CHECKED = "returned"

Row = dict[str, Any]


def rows(work: Work, *, repeats: int, quick: bool = False) -> Iterator[Row]:
    """Every mode at one size, the headline at all of them."""
    full = work.sizes[0] if quick else work.full
    sizes = [full] if quick else [full, *(size for size in work.sizes if size != full)]
    apart: dict[str, float | str] = {}
    for size in sizes:
        modes = [HEADLINE] if quick else modes_at(work, size)
        compared = [HEADLINE, CHECKED] if size == full else []
        batches = {HEADLINE: work.batch(size, HEADLINE)}
        if others := {*modes, *compared} - {HEADLINE}:
            batches |= dict.fromkeys(others, work.batch(size))
        runs = runners(work, batches)
        for mode in compared:
            apart = programs.further(apart, programs.differences(runs[mode]))
        for mode in modes:
            yield from _timed(work, size, mode, batches[mode], runs[mode], apart, repeats)


def modes_at(work: Work, size: Size) -> list[str]:
    """All where the loss is timed in full; the value alone at the two larger of its three sizes."""
    if size == work.full:
        return list(programs.MODES)
    return [HEADLINE, "forward"] if size in work.sizes[1:3] else [HEADLINE]


def runners(
    work: Work, batches: Mapping[str, tuple[Any, Any]]
) -> dict[str, dict[str, Run | Exception]]:
    """By mode, each library's program, or why it has none; compiled side by side."""
    prepare = {
        (mode, peer): partial(programs.preparation, peer, work.loss(peer, mode), mode, batch)
        for mode, batch in batches.items()
        for peer in work.losses
    }
    runs = programs.side_by_side(prepare)
    return {mode: {peer: runs[mode, peer] for peer in work.losses} for mode in batches}


def _timed(work, size, mode, batch, runs, apart, repeats) -> Iterator[Row]:
    runs = {peer: run for peer, run in runs.items() if not isinstance(run, Exception)}
    runs = {peer: run for peer, run in runs.items() if not isinstance(apart[peer], str)}
    runs[programs.LIMIT] = programs.limit(work, size, mode, batch)
    seconds = interleaved(runs, repeats, LONGEST if mode == HEADLINE else BRIEFER)
    about = {"loss": work.name, "at": size.name, "size": str(size), "mode": mode}
    for peer in [*work.losses, programs.LIMIT]:
        row = {**about, "peer": peer, "difference": apart.get(peer, 0.0)}
        if peer in seconds:
            ratio = np.median(seconds[OURS] / seconds[peer])
            row |= {**middle(seconds[peer]), "ours_by_theirs": ratio}
        yield row


def middle(seconds: np.ndarray) -> dict[str, float]:
    """The median, and the distance of the quartiles around it."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return {"seconds": median, "spread": high - low}


def equal(row: Row) -> bool:
    """Whether it computes what we do."""
    return not isinstance(row["difference"], str) and row["difference"] <= EQUAL


def interleaved(
    runs: Mapping[str, Run], repeats: int, longest: float = LONGEST
) -> dict[str, np.ndarray]:
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
        if turn >= 2 and time.perf_counter() - start > longest:
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


def best_peer(rows: list[Row]) -> Row | None:
    """Of the rows of one loss, mode and size, the fastest of another JAX library."""
    excluded = OURS, NAIVE, TORCH, programs.LIMIT
    others = [r for r in rows if r["peer"] not in excluded and equal(r) and "seconds" in r]
    return min(others, key=lambda r: r["seconds"], default=None)
