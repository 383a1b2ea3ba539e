"""The rows as tables: on the terminal, and in the docs."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aot import picture
from aot.measure import Row

PAGE = Path(__file__).parents[1] / "docs" / "accelerators.md"
MARKS = "<!-- aot -->\n", "<!-- /aot -->"


def _scaled(unit: float, digits: int = 0) -> Callable[[Any], str]:
    return lambda x: f"{x / unit:,.{digits}f}"


def _seconds(x: float) -> str:
    return f"{1e3 * x:,.1f}" if x >= 1e-3 else f"{1e3 * x:,.3f}"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "temporary_bytes": ("temporary MB", lambda x: _scaled(1e6, 0 if x > 1e7 else 2)(x)),
    "output_bytes": ("output MB", _scaled(1e6)),
    "total_bytes": ("total MB", _scaled(1e6)),
    "flops": ("Gflop", lambda x: _scaled(1e9, 0 if x > 1e11 else 2)(x)),
    "moved_bytes": ("moved GB", _scaled(1e9, 2)),
    "transcendentals": ("transcend. M", _scaled(1e6)),
    "roofline_seconds": ("roofline ms", _seconds),
    "compiler_seconds": ("compiler ms", _seconds),
    "kernels": ("kernels", str),
    "launches": ("runs", _scaled(1)),
    "collectives": ("collectives", str),
    "collective_bytes": ("collective MB", _scaled(1e6)),
}


def cells(row: Row, columns: Sequence[str]) -> list[str]:
    shown = [_cell(row, name) for name in columns]
    if not row.get("fits", True):
        shown[0] = f"{shown[0]}, does not fit"
    if "error" in row:
        shown[0] = "does not compile"
    return shown


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None or value == "" else COLUMNS[name][1](value)


# What a terminal has room for.
SHORT = "temporary_bytes", "output_bytes", "moved_bytes", "roofline_seconds", "kernels"


def _columns(rows: Sequence[Row], short: bool = False) -> list[str]:
    """Those of collectives only where there are any."""
    split = any(row["devices"] > 1 for row in rows)
    names = [*SHORT, "collectives"] if short else COLUMNS
    return [name for name in names if split or not name.startswith("collective")]


def by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    return cases


def show(rows: Sequence[Row]) -> None:
    for case, some in by_case(rows).items():
        columns = _columns(some, short=True)
        table = Table("target", "program", *(COLUMNS[c][0] for c in columns), title=case)
        for row in some:
            table.add_row(row["target"], row["program"], *cells(row, columns))
        Console().print(table)


def markdown(rows: Sequence[Row], versions: dict[str, str]) -> str:
    """A table for each case, with the programs of a target under one another."""
    text = "Compiled by `python -m aot --write`, with "
    text += ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n"
    for case, some in by_case(rows).items():
        columns = _columns(some)
        head = ["target", "program", *(COLUMNS[c][0] for c in columns)]
        text += f"\n### {case}\n\n| {' | '.join(head)} |\n|{'---|' * 2}{'---:|' * len(columns)}\n"
        for row in some:
            line = [row["target"], row["program"], *cells(row, columns)]
            text += f"| {' | '.join(line)} |\n"
    return text


def write(rows: Sequence[Row], versions: dict[str, str]) -> None:
    """Put the tables and the picture into the docs."""
    picture.draw(rows, PAGE.parent / "images" / "accelerators.svg")
    start, end = MARKS
    body = re.escape(start) + ".*" + re.escape(end)
    text = start + markdown(rows, versions) + end
    PAGE.write_text(re.sub(body, lambda _: text, PAGE.read_text(), flags=re.DOTALL))
