"""The temporary memory of the large heads, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from aot.measure import Row
from benchmarks.pictures import COLOURS, _figure, save

# What is drawn, and how; programs of one library in shades of its colour.
PANELS = {
    "gemma2_2b": "Gemma-2 2B: 8192 x 2304 x 256,000",
    "llama3_8b": "Llama-3 8B: 8192 x 4096 x 128,256",
}
PROGRAMS = {
    "jaxloss tokens": (COLOURS["jaxloss"], 1.0),
    "jaxloss vocab": (COLOURS["jaxloss"], 0.65),
    "jaxloss pallas_tpu": (COLOURS["jaxloss"], 0.35),
    "tokamax XLA": (COLOURS["tokamax"], 1.0),
    "tokamax Pallas": (COLOURS["tokamax"], 0.5),
    "optax": (COLOURS["optax"], 1.0),
    "naive": (COLOURS["naive"], 1.0),
}
# Nothing at all, on an axis of logarithms.
LEAST = 1e6


def memory(rows: Sequence[Row]) -> Figure:
    """Grouped bars for each target; the number over a bar is in GB."""
    by_case = {case: [r for r in rows if r["case"] == case] for case in PANELS}
    by_case = {case: some for case, some in by_case.items() if some}
    figure, panels = _figure(11, 1.2 + 2.9 * len(by_case), nrows=len(by_case), squeeze=False)
    for axes, (case, some) in zip(panels[:, 0], by_case.items(), strict=True):
        _panel(axes, some)
        axes.set_title(PANELS[case], loc="left", fontsize=10)
    handles = {h.get_label(): h for axes in panels[:, 0] for h in axes.containers}
    names = [name for name in PROGRAMS if name in handles]
    figure.legend(
        [handles[n] for n in names], names, loc="outside upper center", ncols=4, fontsize=9
    )
    return figure


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    targets = list(dict.fromkeys(row["target"] for row in rows))
    sizes = {(r["target"], r["program"]): r.get("temporary_bytes") for r in rows}
    known = [p for p in PROGRAMS if any(sizes.get((t, p)) is not None for t in targets)]
    width = 0.85 / max(len(known), 1)
    for n, program in enumerate(known):
        colour, alpha = PROGRAMS[program]
        at = [i for i, t in enumerate(targets) if sizes.get((t, program)) is not None]
        values = np.array([sizes[targets[i], program] for i in at])
        x = np.array(at) + (n - (len(known) - 1) / 2) * width
        bars = axes.bar(
            x, np.maximum(values, LEAST), width * 0.9, color=colour, alpha=alpha, label=program
        )
        shown = [f"{v / 1e9:.{1 if v >= 1e9 else 2}f}" if v >= LEAST else "0" for v in values]
        axes.bar_label(bars, shown, fontsize=7.5, padding=2)
    axes.set_yscale("log")
    axes.set_ylim(LEAST, 6e10)
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1e9:g}"))
    axes.set_ylabel("temporary memory, GB")
    axes.set_xticks(range(len(targets)), targets)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")


def draw(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(memory, rows, path)
