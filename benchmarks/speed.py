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
LONG = 0.5  # seconds from which on a run needs no other before it
LONGEST = 5.0  # seconds from which on three turns are enough
# The mode whose results are compared, and the mode that is timed at every size.
CHECKED, GROWN = "returned", "consumed"


def rows(work: Work, *, repeats: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Every mode at one size, and the other sizes with the gradient consumed."""
    size = work.sizes[0] if quick else work.full
    batch = work.batch(size)
    compared = runners(work, CHECKED, batch)
    apart = programs.differences(compared)
    for mode in [GROWN] if quick else programs.MODES:
        runs = compared if mode == CHECKED else runners(work, mode, batch, apart)
        yield from _timed(work, size, mode, batch, runs, apart, repeats)
    for size in work.sizes:
        if size != work.full and not quick:
            batch = work.batch(size)
            runs = runners(work, GROWN, batch, apart)
            yield from _timed(work, size, GROWN, batch, runs, apart, repeats)


def runners(
    work: Work, mode: str, batch: tuple[Any, Any], apart: dict[str, float | str] | None = None
) -> dict[str, programs.Run | Exception]:
    """Each library's program, or why it has none; not of those that failed before."""
    out: dict[str, programs.Run | Exception] = {}
    for peer, loss in work.losses.items():
        if apart is None or not isinstance(apart[peer], str):
            try:
                out[peer] = programs.runner(peer, loss, mode, batch)
            except Exception as error:  # A peer that fails is a result too.
                out[peer] = error
    return out


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
            low, middle, high = np.quantile(seconds[peer], [0.25, 0.5, 0.75])
            ratio = np.median(seconds[OURS] / seconds[peer])
            row |= {"seconds": middle, "low": low, "high": high, "ours_by_theirs": ratio}
        yield row


def equal(difference: float | str) -> bool:
    return not isinstance(difference, str) and difference <= EQUAL


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
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
