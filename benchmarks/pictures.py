"""The pictures of a report as SVG, dark where the page is that shows them."""

import io
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.programs import HEADLINE, LIMIT, MODES
from benchmarks.speed import best_peer
from benchmarks.works import LARGE, NAIVE, OURS, TORCH

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
TITLES = {
    "layer": "Value, and gradient by the weight of a last layer",
    "consumed": "Value and gradient, consumed in the same jit",
    "returned": "Value and gradient",
    "step": "A step of optax",
    "forward": "Value",
}
LIGHT = {"page": "#ffffff", "ink": "#24292f", "faint": "#d0d7de"}
DARK = {"page": "#0d1117", "ink": "#e6edf3", "faint": "#30363d"}
STYLE: dict[Any, Any] = {
    "figure.facecolor": LIGHT["page"],
    "axes.facecolor": LIGHT["page"],
    "savefig.facecolor": LIGHT["page"],
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["faint"],
    "xtick.color": LIGHT["ink"],
    "ytick.color": LIGHT["ink"],
    "grid.color": LIGHT["faint"],
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
# How the sizes are drawn.
MARKS = {
    "small": ("o", "#56B4E9"),
    "few classes": ("v", "#E69F00"),
    "middle": ("s", "#009E73"),
    "1000 classes": ("D", "#D55E00"),
    LARGE: ("o", "#0072B2"),
    "largest": ("^", "#CC79A7"),
}


def draw(data: Data, folder: Path) -> dict[str, Path]:
    """Write what there are rows for; the files, by picture."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name, (kind, picture) in PICTURES.items():
        if data.get(kind):
            files[name] = folder / f"{name}.svg"
            save(picture, data[kind], files[name])
    return files


def save(picture: Callable[..., Figure], rows: Any, path: Path) -> None:
    with mpl.rc_context(STYLE):
        text = io.StringIO()
        picture(rows).savefig(text, format="svg", metadata={"Date": None})
    path.write_text(dark_too(smaller(text.getvalue())))


def smaller(svg: str) -> str:
    """Without digits that cannot be seen, indents, and a style of its own for each dot."""

    def with_one_style(dots: re.Match[str]) -> str:
        styles = set(re.findall(r' style="[^"]*"', dots[2]))
        style = styles.pop()
        return dots[0] if styles else f"{dots[1]}{style}>{dots[2].replace(style, '')}"

    def rounded(tag: re.Match[str]) -> str:
        return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", tag[0])

    svg = re.sub(r"\n +", "\n", re.sub(r"<[^>]*>", rounded, svg))
    return re.sub(r'(<g clip-path="[^"]*")>((?:\s*<use [^>]*>)+)', with_one_style, svg)


def dark_too(svg: str) -> str:
    """With the other theme's colours for a dark page."""
    rules = (
        f'[style*="{of}: {LIGHT[name]}"] {{ {of}: {DARK[name]} !important }}'
        for name in LIGHT
        for of in ("fill", "stroke")
    )
    style = "\n".join(("<style>@media (prefers-color-scheme: dark) {", *rules, "}</style>"))
    return svg.replace("<defs>", f"{style}\n<defs>", 1)


def _figure(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def headline(rows: Rows) -> str:
    """The first mode of `MODES` that the rows have: those of before have no layer."""
    return next((m for m in MODES if any(r["mode"] == m for r in rows)), HEADLINE)


def full(rows: Rows) -> str:
    """The size that is timed in full, which is the large one but in a quick run."""
    return LARGE if any(r["at"] == LARGE for r in rows) else rows[0]["at"]


def of_mode(rows: Rows, mode: str, at: str) -> dict[str, Rows]:
    """Rows of that mode and size, by loss."""
    by_loss: dict[str, Rows] = {}
    for row in rows:
        if row["mode"] == mode and row["at"] == at:
            by_loss.setdefault(row["loss"], []).append(row)
    return by_loss


def ratios(rows: Rows, mode: str, at: str) -> dict[str, float]:
    """Of each loss that another JAX library has, our time by the fastest one's."""
    best = {loss: best_peer(of) for loss, of in of_mode(rows, mode, at).items()}
    return {loss: row["ours_by_theirs"] for loss, row in best.items() if row}


def _of_naive(rows: Rows, mode: str, at: str) -> dict[str, float]:
    return {
        loss: row["ours_by_theirs"]
        for loss, of in of_mode(rows, mode, at).items()
        for row in of
        if row["peer"] == NAIVE and "ours_by_theirs" in row
    }


def speed(rows: Rows) -> Figure:
    """Our time relative to the best JAX peer's at every size, or to the naive formula's."""
    mode, most = headline(rows), full(rows)
    at_sizes = {at: ratios(rows, mode, at) for at in MARKS}
    ours, naive = at_sizes[most], _of_naive(rows, mode, most)
    order = sorted(ours, key=lambda loss: ours[loss])
    names = [*order, *sorted(naive.keys() - ours.keys(), key=lambda loss: naive[loss])]
    figure, axes = _figure(9, 1.4 + 0.21 * len(names))
    for at, (mark, colour) in MARKS.items():
        known = [(of, names.index(loss)) for loss, of in at_sizes[at].items() if loss in names]
        if known:
            x, y = np.array(known).T
            size = 7 if at == most else 5
            axes.plot(x, y, mark, ms=size, color=colour, label=at)
    known = [(naive[loss], i) for i, loss in enumerate(names) if loss in naive]
    if known:
        x, y = np.array(known).T
        label = f"of the naive formula, {most}"
        axes.plot(x, y, "|", ms=8, mew=1.6, color=COLOURS[NAIVE], label=label)
    axes.axvline(1, color=mpl.rcParams["text.color"], lw=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("time of jaxloss as a fraction; left of 1 is faster (log scale)")
    figure.suptitle(
        f"{TITLES[mode]}: geometric mean over the {len(order)} losses that another\n"
        f"JAX library has: {geometric_mean(ours.values()):.2f} of the fastest one's time, {most}",
        fontsize=11,
    )
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def geometric_mean(ratios: Iterable[float]) -> float:
    logs = np.log(list(ratios))
    return float(np.exp(np.mean(logs))) if logs.size else float("nan")


def vocabulary(rows: Rows) -> Figure:
    """Temporary memory of a linear layer's loss against the classes."""
    figure, axes = _figure(8, 4.6)
    for peer, colour in COLOURS.items():
        mine = sorted(
            (int(r["vocabulary"]), r["temporary"])
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
    """Temporary bytes of the compiled program, as multiples of the predictions."""
    mode = headline(rows)
    rows = [r for r in rows if r["mode"] == mode and "temporary" in r]
    names = list(dict.fromkeys(r["loss"] for r in rows))
    figure, axes = _figure(9, 1.2 + 0.21 * len(names))
    for peer, colour in COLOURS.items():
        at = [
            (r["temporary"] / r["predictions"], names.index(r["loss"]))
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
    axes.set_xlabel("temporary memory / predictions (log scale; 0.0001 or less at the edge)")
    axes.set_title(f"{TITLES[mode]}: memory", loc="left", fontsize=11)
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


# By name: the kind of rows that it needs, and what draws it.
PICTURES: dict[str, tuple[str, Callable[..., Figure]]] = {
    "speed": ("speed", speed),
    "vocabulary": ("vocabulary", vocabulary),
    "memory": ("memory", memory),
    "ulps": ("exactness", ulps),
    "compile": ("compile", compilation),
}
