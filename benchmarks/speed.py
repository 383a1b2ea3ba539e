"""How long value and gradient take, beside the naive formula, the peers and the limit.

The programs of a loss are compiled, then run in turn in one process: each timed run follows an
untimed one of the same program, because a program that frees large arrays slows down the
next. Times are medians; ratios are medians of the ratios within a turn, so that what else the
machine does falls on both.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import programs
from benchmarks.works import NAIVE, OURS, Work

# Of a gradient, by its largest entry: sums in another order differ by less.
EQUAL = 1e-3
SHORTEST = 2e-3  # seconds of one timed run, which repeats the program until then


def rows(work: Work, *, repeats: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    size = work.sizes[0] if quick else work.full
    modes = ["consumed"] if quick else list(programs.MODES)
    batch = work.batch(size)
    apart = programs.differences(work, batch)
    for mode in modes:
        yield from _timed(work, size, mode, batch, apart, repeats)


def growth(work: Work, *, repeats: int) -> Iterator[dict[str, Any]]:
    """The other sizes, with the gradient consumed."""
    for size in work.sizes:
        if size != work.full:
            batch = work.batch(size)
            apart = programs.differences(work, batch)
            yield from _timed(work, size, "consumed", batch, apart, repeats)


def _timed(work, size, mode, batch, apart, repeats) -> Iterator[dict[str, Any]]:
    runs: dict[str, Callable[[], Any]] = {}
    for peer, loss in work.losses.items():
        if not isinstance(apart[peer], str):
            runs[peer] = programs.runner(peer, loss, mode, batch)
    runs[programs.LIMIT] = programs.limit(work, size, mode, batch)
    seconds = interleaved(runs, repeats)
    about = {"loss": work.name, "family": work.family, "mode": mode, "size": size}
    for peer in [*work.losses, programs.LIMIT]:
        difference = apart.get(peer, 0.0)
        row = {**about, "peer": peer, "difference": difference, "equal": equal(difference)}
        if peer in seconds:
            low, middle, high = np.quantile(seconds[peer], [0.25, 0.5, 0.75])
            ratio = np.median(seconds[OURS] / seconds[peer])
            row |= {"seconds": middle, "low": low, "high": high, "ours_by_theirs": ratio}
        yield row


def equal(difference: float | str) -> bool:
    return not isinstance(difference, str) and difference <= EQUAL


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of one run of each program, `repeats` times in turn."""
    times = {name: max(1, int(SHORTEST / _once(run, 1))) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            run()
            seconds[name].append(_once(run, times[name]))
    return {name: np.array(s) for name, s in seconds.items()}


def _once(run: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def best_peer(rows: list[dict[str, Any]], jax_only: bool = True) -> dict[str, Any] | None:
    """Of the rows of one loss, mode and size, the fastest of another library."""
    excluded = {OURS, NAIVE, programs.LIMIT} | ({programs.TORCH} if jax_only else set())
    others = [r for r in rows if r["peer"] not in excluded and r["equal"] and "seconds" in r]
    return min(others, key=lambda r: r["seconds"], default=None)
