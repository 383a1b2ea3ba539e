"""Results as JSON: rows of each kind of measurement, and the machine that they are from.

In memory a row says everything that it is about. A file has them as tables of tables, by what names
a row, with the numbers as lists: a hundred bytes for what a row with all of its keys takes a line
of each for.
"""

import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

Row = dict[str, Any]
# One file for each kind of device is kept; what was measured in part goes beside them.
KEPT = Path(__file__).parent / "results"
PARTIAL = KEPT / "partial"
PACKAGES = ("jax", "jaxlib", "numpy", "optax", "keras", "rax", "tokamax", "torch")
# Digits of a number, and of one that only says how exact another is.
DIGITS, FEWER = 4, ("spread", "difference")
# Of each kind of rows, what names one, from the outermost table to the innermost; and what it says.
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "speed": (
        ("loss", "at", "size", "mode", "peer"),
        ("seconds", "spread", "ours_by_theirs", "difference"),
    ),
    "models": (
        ("case", "program"),
        ("seconds", "spread", "difference", "temporary", "output", "error"),
    ),
    "memory": (("loss", "size", "mode", "peer"), ("temporary", "predictions", "error")),
    "vocabulary": (("loss", "peer", "vocabulary"), ("temporary", "error")),
    "peaks": (("loss", "size", "peer"), ("peak", "error")),
    "exactness": (
        ("loss", "dtype", "quantity", "peer"),
        ("count", "not_finite", "worst", "median", "error"),
    ),
    "failures": (("what", "expected", "who"), ("got", "right")),
    "compile": (
        ("loss", "size", "mode", "peer"),
        ("trace", "lower", "compile", "instructions", "fusions", "error"),
    ),
}


def machine() -> Row:
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def default_path(partial: bool = False) -> Path:
    name = jax.devices()[0].device_kind.lower().replace(" ", "-")
    return (PARTIAL if partial else KEPT) / f"{name}.json"


def load(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text())
    return {k: list(_rows(k, v)) if k in COLUMNS else v for k, v in data.items()}


def save(path: Path, kind: str, rows: list[Row], settings: Row) -> None:
    """Put the rows in place of those of their kind; of another machine, nothing is kept."""
    here = machine()
    old = json.loads(path.read_text()) if path.exists() else {}
    kept = old if old.get("machine") == here else {}
    settings = {**kept.get("settings", {}), kind: settings}
    write(path, {**kept, "machine": here, "settings": settings, kind: _table(kind, rows)})


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(data) + "\n")


def _table(kind: str, rows: list[Row]) -> dict[str, Any]:
    names, columns = COLUMNS[kind]
    table: dict[str, Any] = {}
    for row in rows:
        inner = table
        for name in names[:-1]:
            inner = inner.setdefault(str(row[name]), {})
        values = [_plain(row.get(c), 2 if c in FEWER else DIGITS) for c in columns]
        while values and values[-1] is None:
            values.pop()
        inner[str(row[names[-1]])] = values
    return table


def _rows(kind: str, table: dict[str, Any]) -> Iterator[Row]:
    names, columns = COLUMNS[kind]

    def inside(inner: Any, path: tuple[str, ...]) -> Iterator[Row]:
        if len(path) < len(names):
            for name, value in inner.items():
                yield from inside(value, (*path, name))
        else:
            said = zip(columns, inner, strict=False)
            yield dict(zip(names, path, strict=True)) | {k: v for k, v in said if v is not None}

    return inside(table, ())


def _plain(x: Any, digits: int) -> Any:
    """As JSON has it, with no more digits than are any good."""
    if isinstance(x, np.generic):
        x = x.item()
    return float(f"{x:.{digits}g}") if isinstance(x, float) else x


def _text(data: Any) -> str:
    """JSON with a line for each innermost table."""
    if isinstance(data, dict) and any(isinstance(v, dict) for v in data.values()):
        lines = (f"{json.dumps(k)}:{_text(v)}" for k, v in data.items())
        return "{\n" + ",\n".join(lines) + "\n}"
    return json.dumps(data, separators=(",", ":"))
