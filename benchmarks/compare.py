"""What got slower, or larger, from one file of results to another, beyond their noise.

Times of two runs differ with what else the machine did. So ours are compared as multiples of
the limit, which each run measures between them, and a change counts if it exceeds the spread
of both.
"""

from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.programs import LIMIT
from benchmarks.works import OURS

# A change smaller than this is none, whatever the spread.
LEAST = 0.10
PAGE = 4096  # bytes, of which one more or less is no change


def changes(before: Path, after: Path) -> list[dict[str, Any]]:
    """One row for each of our programs in both files, the worst first."""
    old, new = results.load(before), results.load(after)
    rows = [*_times(old, new), *_sizes(old, new)]
    return sorted(rows, key=lambda r: r["change"], reverse=True)


def missing(before: Path, after: Path) -> list[str]:
    """What was measured before, and is not any more."""
    old, new = results.load(before), results.load(after)
    kinds = [kind for kind in ("speed", "memory") if kind in old and kind in new]
    return [
        f"{kind}: {' '.join(str(k) for k in key)}"
        for kind in kinds
        for key in _ours(old[kind]).keys() - _ours(new[kind]).keys()
    ]


def _key(row: dict[str, Any]) -> tuple:
    return row["loss"], row["mode"], row["size"]


def _ours(rows: list[dict[str, Any]], peer: str = OURS) -> dict[tuple, dict[str, Any]]:
    return {_key(r): r for r in rows if r["peer"] == peer}


def _times(old: dict[str, Any], new: dict[str, Any]):
    a, b = _relative(old.get("speed", [])), _relative(new.get("speed", []))
    for key in a.keys() & b.keys():
        (before, noise_a), (after, noise_b) = a[key], b[key]
        change, noise = after / before - 1, noise_a + noise_b
        yield _change("time / limit", key, before, after, change, noise)


def _relative(rows: list[dict[str, Any]]) -> dict[tuple, tuple[float, float]]:
    """Our time in multiples of the limit's, and the relative spread of both."""
    limits, out = _ours(rows, LIMIT), {}
    for key, row in _ours(rows).items():
        limit = limits[key]
        spreads = [r["spread"] / r["seconds"] for r in (row, limit)]
        out[key] = row["seconds"] / limit["seconds"], sum(spreads)
    return out


def _sizes(old: dict[str, Any], new: dict[str, Any]):
    a, b = _ours(old.get("memory", [])), _ours(new.get("memory", []))
    for key in a.keys() & b.keys():
        before, after = a[key]["temporary"], b[key]["temporary"]
        change = max(after, PAGE) / max(before, PAGE) - 1
        yield _change("temporary bytes", key, before, after, change, 0.0)


def _change(what: str, key: tuple, before: float, after: float, change: float, noise: float):
    loss, mode, size = key
    about = {"what": what, "loss": loss, "mode": mode, "size": size}
    worse = change > max(noise, LEAST)
    better = -change > max(noise, LEAST)
    verdict = "worse" if worse else "better" if better else "same"
    return {
        **about,
        "before": before,
        "after": after,
        "change": change,
        "noise": noise,
        "is": verdict,
    }
