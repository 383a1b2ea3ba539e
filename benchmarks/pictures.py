"""The pictures of a report, each in light and in dark, as SVG."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.programs import LIMIT, TORCH
from benchmarks.speed import GROWN, best_peer
from benchmarks.works import NAIVE, OURS

Rows = list[dict[str, Any]]
Data = dict[str, Any]

# Okabe and Ito's colours, which differ for every kind of colour vision.
COLOURS = {
    OURS: "#0072B2",
    NAIVE: "#999999",
    "optax": "#E69F00",
    "keras": "#D55E00",
    "rax": "#CC79A7",
    "tokamax": "#009E73",
    TORCH: "#882255",
    LIMIT: "#56B4E9",
}
THEMES = {
    "light": {"page": "#ffffff", "ink": "#24292f", "faint": "#d0d7de"},
    "dark": {"page": "#0d1117", "ink": "#e6edf3", "faint": "#30363d"},
}
TIMES = "time of jaxloss / time of the fastest other JAX library"


@contextmanager
def _style(theme: str) -> Iterator[None]:
    page, ink, faint = (THEMES[theme][k] for k in ("page", "ink", "faint"))
    settings: dict[Any, Any] = {
        "figure.facecolor": page,
        "axes.facecolor": page,
        "savefig.facecolor": page,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": faint,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "font.size": 10,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "svg.hashsalt": "jaxloss",  # The same rows make the same file.
    }
    with mpl.rc_context(settings):
        yield


def draw(data: Data, folder: Path) -> dict[str, dict[str, Path]]:
    """Write what there are rows for; the files, by picture and theme."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Path]] = {}
    for name, (kinds, picture) in PICTURES.items():
        if not all(data.get(kind) for kind in kinds):
            continue
        for theme in THEMES:
            with _style(theme):
                figure = picture(*(data[kind] for kind in kinds))
                path = folder / f"{name}-{theme}.svg"
                figure.savefig(path, metadata={"Date": None})
                files.setdefault(name, {})[theme] = path
    return files


def _figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def of_mode(rows: Rows, mode: str) -> dict[str, Rows]:
    """Rows of that mode, at the size timed in full, by loss."""
    full = {row["loss"]: row["size"] for row in rows if row["mode"] != GROWN}
    by_loss: dict[str, Rows] = {}
    for row in rows:
        if row["mode"] == mode and row["size"] == full.get(row["loss"], row["size"]):
            by_loss.setdefault(row["loss"], []).append(row)
    return by_loss


def _row(rows: Rows, peer: str) -> dict[str, Any]:
    return next((r for r in rows if r["peer"] == peer), {})


def speed(rows: Rows) -> Figure:
    """Our time relative to the best JAX peer's, or to the naive formula's."""
    groups = of_mode(rows, "consumed")
    best = {loss: best_peer(of) for loss, of in groups.items()}
    ours = {loss: row["ours_by_theirs"] for loss, row in best.items() if row}
    naive = {loss: _row(of, NAIVE).get("ours_by_theirs", 0.0) for loss, of in groups.items()}
    order = sorted(ours, key=lambda loss: ours[loss])
    alone = sorted((n for n in groups if n not in ours and naive[n]), key=lambda n: naive[n])
    names = [*order, *alone]
    figure, axes = _figure(9, 1.4 + 0.21 * len(names))
    y = np.arange(len(names))
    peers = [row["peer"] for n in order if (row := best[n])]
    for peer in dict.fromkeys(peers):
        at = [i for i, p in enumerate(peers) if p == peer]
        values = [ours[order[i]] for i in at]
        axes.barh(at, np.array(values) - 1, left=1, color=COLOURS[peer], label=f"of {peer}'s")
    known = [(i, naive[n]) for i, n in enumerate(names) if naive[n]]
    axes.plot(
        [v for _, v in known],
        [i for i, _ in known],
        "o",
        ms=4,
        color=COLOURS[NAIVE],
        label="of the naive formula's",
    )
    _ratio_axis(axes, "x")
    axes.set_yticks(y, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("time of jaxloss as a fraction; left of 1 is faster (log scale)")
    mean = geometric_mean(list(ours.values()))
    figure.suptitle(
        f"Value and gradient, consumed in the same jit: geometric mean over the {len(order)}\n"
        f"losses that another JAX library has: {mean:.2f} of the fastest one's time",
        fontsize=11,
    )
    axes.legend(loc="lower left", fontsize=8)
    return figure


def geometric_mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else float("nan")


def _ratio_axis(axes: Axes, which: str) -> None:
    line, scale = (
        (axes.axvline, axes.set_xscale) if which == "x" else (axes.axhline, axes.set_yscale)
    )
    scale("log")
    line(1, color=mpl.rcParams["text.color"], lw=1.2)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def growth(rows: Rows) -> Figure:
    """Microseconds against the size of the batch."""
    rows = [r for r in rows if r["mode"] == GROWN]
    names = list(dict.fromkeys(r["loss"] for r in rows))
    columns = 6
    lines = -(-len(names) // columns)
    figure, grid = _figure(13, 1 + 1.55 * lines, nrows=lines, ncols=columns, squeeze=False)
    seen: dict[str, Any] = {}
    for axes, name in zip(grid.flat, names, strict=False):
        for peer in COLOURS:
            mine = sorted(
                (r["size"], r["seconds"])
                for r in rows
                if r["loss"] == name and r["peer"] == peer and r["equal"] and "seconds" in r
            )
            if mine:
                size, seconds = np.array(mine).T
                style = {"lw": 2.2, "zorder": 3} if peer == OURS else {"lw": 1.2}
                dashes = "--" if peer == LIMIT else "-"
                (seen[peer],) = axes.loglog(
                    size, 1e6 * seconds, dashes, color=COLOURS[peer], **style
                )
        axes.set_title(name, fontsize=7)
        axes.minorticks_off()
        axes.tick_params(labelsize=6)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("size of the batch, as the table of cases counts it", fontsize=9)
    figure.supylabel("microseconds, value and gradient consumed", fontsize=9)
    figure.legend(seen.values(), seen.keys(), loc="outside upper center", ncols=len(seen))
    return figure


def vocabulary(rows: Rows) -> Figure:
    """Temporary memory of a linear layer's loss against the classes."""
    figure, axes = _figure(8, 4.6)
    for peer, colour in COLOURS.items():
        mine = sorted(
            (r["vocabulary"], r["temporary"])
            for r in rows
            if r["peer"] == peer and "temporary" in r
        )
        if mine:
            classes, temporary = np.array(mine).T
            width = 2.5 if peer == OURS else 1.6
            # Lines of libraries may meet at their ends, where their numbers would be.
            name = f"{peer}: {temporary[-1] / 1e6:,.0f} MB for {classes[-1]:,.0f} classes"
            axes.loglog(classes, temporary / 1e6, "o-", color=colour, lw=width, ms=4, label=name)
    axes.set_xlabel("classes")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.set_xscale("log", base=2)
    axes.set_ylabel("temporary memory, MB (log scale)")
    axes.set_title(
        "Cross-entropy of a linear layer: 8,192 tokens x 2,048 features, bfloat16,\n"
        "value and both gradients, as compiled",
        loc="left",
        fontsize=11,
    )
    axes.legend()
    return figure


def memory(rows: Rows) -> Figure:
    """Temporary bytes of the compiled program, as multiples of what goes in and out."""
    rows = [r for r in rows if r["mode"] == "consumed" and "temporary" in r]
    names = list(dict.fromkeys(r["loss"] for r in rows))
    figure, axes = _figure(9, 1.2 + 0.21 * len(names))
    for peer, colour in COLOURS.items():
        at = [
            (r["temporary"] / r["argument"], names.index(r["loss"]))
            for r in rows
            if r["peer"] == peer
        ]
        if at:
            size = 7 if peer == OURS else 5
            x, y = np.array(at).T
            axes.plot(np.maximum(x, 1e-4), y, "o", ms=size, color=colour, label=peer, alpha=0.85)
    axes.set_xscale("log")
    axes.axvline(1, color=mpl.rcParams["text.color"], lw=1.2)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("temporary memory / size of the inputs (log scale; 0.0001 or less at the edge)")
    axes.set_title("Memory that value and consumed gradient need", loc="left", fontsize=11)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.9))
    return figure


def ulps(rows: Rows) -> Figure:
    """The worst error of each loss in value, gradient and second derivative."""
    quantities = ["value", "gradient", "hessian"]
    rows = [r for r in rows if r["dtype"] == "float32" and r.get("worst") is not None]
    peers = [p for p in COLOURS if any(r["peer"] == p for r in rows)]
    figure, grid = _figure(11, 4.4, ncols=3, sharey=True)
    rng = np.random.default_rng(0)
    for axes, quantity in zip(grid, quantities, strict=True):
        for i, peer in enumerate(peers):
            mine = [r for r in rows if r["peer"] == peer and r["quantity"] == quantity]
            worst = np.array([max(min(r["worst"], 1e9), 0.1) for r in mine])
            bad = np.array([bool(r["not_finite"]) for r in mine], bool)
            at = i + rng.uniform(-0.25, 0.25, len(mine))
            axes.plot(at[~bad], worst[~bad], "o", ms=4, alpha=0.7, color=COLOURS[peer])
            axes.plot(at[bad], np.full(bad.sum(), 3e9), "x", ms=5, color=COLOURS[peer])
        axes.axhline(8, color=mpl.rcParams["text.color"], lw=1.2)
        axes.set_yscale("log")
        axes.set_ylim(0.07, 1e10)
        axes.set_xticks(range(len(peers)), peers, rotation=30)
        axes.set_title({"hessian": "second derivative"}.get(quantity, quantity), fontsize=10)
    grid[0].set_ylabel("worst error of a loss, ulps of float32\n(crosses: NaN or infinite)")
    grid[0].annotate("8 ulps", (-0.45, 9), fontsize=8)
    figure.suptitle("Each dot is one loss at the exact points of the case table", fontsize=11)
    return figure


def compilation(rows: Rows) -> Figure:
    """Seconds to trace, lower and compile value and gradient."""
    rows = [r for r in rows if "trace" in r]
    total = {(r["loss"], r["peer"]): r["trace"] + r["lower"] + r["compile"] for r in rows}
    names = sorted({loss for loss, _ in total}, key=lambda loss: total.get((loss, OURS), 0))
    figure, axes = _figure(9, 1.2 + 0.21 * len(names))
    for peer, colour in COLOURS.items():
        at = [(total[n, peer], i) for i, n in enumerate(names) if (n, peer) in total]
        if at:
            x, y = np.array(at).T
            size = 7 if peer == OURS else 5
            axes.plot(x, y, "o", ms=size, color=colour, label=peer, alpha=0.85)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("seconds to trace, lower and compile (log scale)")
    axes.set_title("Compilation of value and gradient", loc="left", fontsize=11)
    axes.legend(fontsize=8)
    return figure


# By name: the kinds of rows that it needs, and what draws it.
PICTURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {
    "speed": (("speed",), speed),
    "growth": (("speed",), growth),
    "vocabulary": (("vocabulary",), vocabulary),
    "memory": (("memory",), memory),
    "ulps": (("exactness",), ulps),
    "compile": (("compile",), compilation),
}
