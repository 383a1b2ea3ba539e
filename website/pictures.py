"""A picture of each loss: its value and its derivative along a line, computed by the loss itself.

What the line is follows from what the loss is declared to take: a logit under each label, a class
among three, an angle between embeddings, ... A kind that is not known here is moved along the
first entry of its first operand, so that every loss has a picture.
"""

import functools
import hashlib
import inspect
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import jaxloss
from tests import declared as samples
from website.catalog import Entry

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "pictures"
# Read on white and on black.
GREY, COLOURS = "#808080", ("#2f7fc1", "#e0762f", "#3f9b5f")
POINTS = 161
RANGES: dict[str, tuple[float, float]] = {
    "logits": (-6, 6), "real": (-4, 4), "probability": (0.01, 0.99), "positive": (0.05, 5),
    "distribution": (0.01, 0.99), "log distribution": (0.01, 0.99),
}  # fmt: skip
# Losses that are interesting elsewhere, or are not defined there.
OTHER_RANGES = {
    "wing_loss": (-20, 20), "absolute_percentage_error": (-1, 5), "squared_log_error": (-0.5, 6),
    "hinge_loss": (-3, 3), "squared_hinge_loss": (-3, 3), "perceptron_loss": (-3, 3),
    "bradley_terry_loss": (-6, 6), "clipped_value_loss": (-2, 2), "poisson_nll": (-3, 3),
    "sparsemax_loss": (-3, 3),
}  # fmt: skip
OTHER_TARGETS = {"absolute_percentage_error": 2.0, "squared_log_error": 1.0}


@dataclass(frozen=True)
class Line:
    """A function of one number for each curve, and what that number is."""

    along: str
    start: float
    stop: float
    # (position, what distinguishes the curves) -> loss.
    loss: Callable[[Any, Any], Any]
    curves: dict[str, Any]


def drawn(entry: Entry) -> bool:
    """Whether there is a picture: of every loss, but not of every tool."""
    return entry.name in SPECIAL or entry.declared is not None


def svg(entry: Entry) -> str | None:
    """The picture as SVG, if there is one."""
    if not drawn(entry):
        return None
    special = SPECIAL.get(entry.name)
    return _text(special() if special else _value_and_derivative(line(entry)))


def kept(entry: Entry) -> str | None:
    """The picture, from a folder of those that were drawn by the same code, if it is there."""
    path = CACHE / _version() / f"{entry.name}.svg"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg(entry) or "", encoding="utf-8")
    return path.read_text(encoding="utf-8") or None


@functools.cache
def _version() -> str:
    sources = [*(ROOT / "jaxloss").rglob("*.py"), Path(__file__)]
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(sources))).hexdigest()[:16]


def line(entry: Entry) -> Line:
    assert entry.declared is not None
    operands = list(entry.declared.operands.values())
    by_kind = {
        "entries": _entries,
        "row": _row,
        "list": _list,
        "embeddings": _embeddings,
        "pixels": _pixels,
    }
    make = _boxes if operands[0].of == "box" else by_kind.get(operands[0].kind, _any)
    make = _turned if "prototypes" in entry.declared.operands else make
    try:
        out = make(entry)
        if out is not None and np.isfinite(curves(out)[0]).mean() > 0.5:
            return out
    except Exception:  # Of a kind, but with other operands than is usual for it.
        if make is _any:
            raise
    return _any(entry)


def curves(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Values and derivatives, of shape (curves, points)."""
    at = jnp.linspace(line.start, line.stop, POINTS)
    settings = jax.tree.map(
        lambda *s: jnp.stack([jnp.asarray(x) for x in s]), *line.curves.values()
    )
    both = jax.value_and_grad(lambda u, s: jnp.sum(line.loss(u, s)))
    over_line = jax.vmap(both, (0, None))
    value, slope = jax.jit(jax.vmap(over_line, (None, 0)))(at, settings)
    return np.asarray(value), np.asarray(slope)


def _required(entry: Entry) -> list[str]:
    known = inspect.signature(entry.public).parameters
    assert entry.declared is not None
    return [n for n in entry.declared.operands if known[n].default is inspect.Parameter.empty]


def _spoken(name: str) -> str:
    singular = {"logits": "logit", "predictions": "prediction", "scores": "score"}
    singular |= {"probabilities": "probability", "predictor_outputs": "score"}
    return singular.get(name, name.replace("_", " "))


def _entries(entry: Entry) -> Line:
    names = _required(entry)
    assert entry.declared is not None
    of = {name: entry.declared.operands[name].of for name in names}
    first, *others = names
    start, stop = OTHER_RANGES.get(entry.name, RANGES.get(of[first], (-4.0, 4.0)))
    fixed: dict[str, float] = {}
    if any("log_prob" in n or n in ("chosen", "rejected") for n in names):
        start, stop = -4.0, -0.05
        fixed = dict.fromkeys(others, -1.0)
    for name in others:
        default = {"positive": 1.0, "probability": 0.5, "sign": 1.0, "bit": 1.0}.get(of[name], 0.0)
        fixed.setdefault(name, OTHER_TARGETS.get(entry.name, default))
    varied = next((n for n in others if of[n] in ("bit", "sign") or n == "advantages"), None)
    if varied is None and "targets" in others and of["targets"] == "positive":
        varied, choices = "targets", (1.0, 3.0)
    else:
        choices = (1.0, -1.0) if varied and of[varied] != "bit" else (1.0, 0.0)
    along = {n: jnp.array(v, np.float32) for n, v in fixed.items() if n != varied}

    def loss(u, setting):
        given = {**along, **({varied: setting} if varied else {})}
        return entry.public(**{first: u}, **given)

    if not varied:
        return Line(_spoken(first), start, stop, loss, {"": jnp.float32(0)})
    called = _spoken(varied).removesuffix("s")
    return Line(
        _spoken(first), start, stop, loss, {f"{called} {c:g}": jnp.float32(c) for c in choices}
    )


def _row(entry: Entry) -> Line:
    names = _required(entry)
    assert entry.declared is not None
    operands = [entry.declared.operands[name] for name in names]
    if operands[0].of == "real":
        return _angle(entry, names)
    first, others = names[0], names[1:]
    probabilities = "distribution" in operands[0].of
    start, stop = RANGES[operands[0].of]

    def row(u):
        if not probabilities:
            return jnp.stack([u, jnp.float32(0.5), jnp.float32(-0.5)])
        p = jnp.stack([u, 0.6 * (1 - u), 0.4 * (1 - u)])
        return jnp.log(p) if operands[0].of == "log distribution" else p

    if not others:
        return Line(
            "logit of one of three classes",
            start,
            stop,
            lambda u, _: entry.public(row(u)),
            {"": 0.0},
        )
    along = "logit" if operands[0].of == "logits" else "probability"
    if operands[1].of == "integer":
        targets = {"this class is the label": 0, "another is": 1}
    else:
        exact = {
            "all of the target": (1.0, 0.0, 0.0),
            "60% of it": (0.6, 0.3, 0.1),
            "none of it": (0.0, 0.7, 0.3),
        }
        targets = {k: np.array(v, np.float32) for k, v in exact.items()}
        if operands[1].of in ("log distribution", "logits"):
            targets = {k: np.log(np.maximum(v, 0.02)) for k, v in targets.items()}
    loss = lambda u, target: entry.public(**{first: row(u)}, **{others[0]: target})  # noqa: E731
    return Line(f"{along} of one of three classes", start, stop, loss, targets)


def _angle(entry: Entry, names: list[str]) -> Line:
    def loss(u, _):
        turned = jnp.stack([jnp.cos(jnp.deg2rad(u)), jnp.sin(jnp.deg2rad(u))])
        fixed = [jnp.array([1.0, 0.0]), jnp.array([-1.0, 0.5])][: len(names) - 1]
        return entry.public(turned, *fixed)

    return Line("angle between the two, in degrees", -180, 180, loss, {"": 0.0})


def _boxes(entry: Entry) -> Line:
    def loss(u, size):
        box = jnp.stack([u - size, -size, u + size, size])
        return entry.public(box, jnp.array([-1.0, -1.0, 1.0, 1.0]))

    sizes = {"a box of the true size": jnp.float32(1), "one half as wide": jnp.float32(0.5)}
    return Line("offset from a true box of width 2", -4, 4, loss, sizes)


def _list(entry: Entry) -> Line:
    scores = jnp.array([0.5, 0.0, -0.5])
    relevant = {
        "the item is the relevant one": (1.0, 0.0, 0.0, 0.0),
        "another item is": (0.0, 1.0, 0.0, 0.0),
    }
    loss = lambda u, y: entry.public(jnp.concatenate([u[None], scores]), y)  # noqa: E731
    return Line(
        "score of one of four items",
        -4,
        4,
        loss,
        {k: np.array(v, np.float32) for k, v in relevant.items()},
    )


def _embeddings(entry: Entry) -> Line | None:
    names = _required(entry)
    assert entry.declared is not None
    if any(entry.declared.operands[n].of not in ("real", "integer") for n in names):
        return None
    circle = jnp.deg2rad(jnp.array([0.0, 120.0, 150.0]))
    rest = jnp.stack([jnp.cos(circle), jnp.sin(circle)], -1)

    def loss(u, _):
        turned = jnp.stack([jnp.cos(jnp.deg2rad(u)), jnp.sin(jnp.deg2rad(u))])
        x = jnp.concatenate([turned[None], rest])
        integer = entry.declared.operands[names[1]].of == "integer"  # type: ignore[union-attr]
        second = (
            jnp.array([0, 0, 1, 1]) if integer else rest[jnp.array([0, 0, 1, 2])].at[1].set(rest[1])
        )
        return entry.public(x[: len(second)], second)

    return Line("angle between a row and its partner, in degrees", -180, 180, loss, {"": 0.0})


def _turned(entry: Entry) -> Line:
    prototypes = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

    def loss(u, margin):
        turned = jnp.stack([jnp.cos(jnp.deg2rad(u)), jnp.sin(jnp.deg2rad(u)), 0])
        return entry.public(turned, prototypes, jnp.array(0), scale=8.0, margin=margin)

    default = inspect.signature(entry.public).parameters["margin"].default
    return Line(
        "angle to the label's prototype, in degrees",
        0,
        180,
        loss,
        {f"margin {m:g}": m for m in (0.0, default)},
    )


def _pixels(entry: Entry) -> Line:
    assert entry.declared is not None
    name = _required(entry)[1]
    binary = entry.declared.operands[name].of == "bit"
    there = jnp.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    target = there[None] if binary else jnp.stack([there, 1 - there], -1)[None]

    def loss(u, _):
        return entry.public(u * (2 * target - 1), target)

    return Line("logit of what is right, in all pixels", -6, 6, loss, {"": 0.0})


def _any(entry: Entry) -> Line:
    """Along the first entry of the first operand that has a derivative."""
    given = samples.arguments(entry.public, np.random.default_rng(0), 3)
    assert entry.declared is not None
    options = dict(entry.declared.unreduced)
    moved = next(n for n, x in given.items() if np.issubdtype(np.asarray(x).dtype, np.floating))
    base = jnp.asarray(given[moved])

    def loss(u, _):
        return entry.public(**{**given, moved: base.at[(0,) * base.ndim].add(u)}, **options)

    return Line(f"change of one entry of {moved}", -3, 3, loss, {"": 0.0})


def _value_and_derivative(line: Line) -> Figure:
    values, slopes = curves(line)
    at = np.linspace(line.start, line.stop, POINTS)
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    for axes, rows, what in zip(
        figure.subplots(1, 2), (values, slopes), ("value", "derivative"), strict=True
    ):
        for row, name, colour in zip(rows, line.curves, COLOURS, strict=False):
            axes.plot(at, np.where(np.isfinite(row), row, np.nan), color=colour, label=name, lw=1.8)
        _plain(axes, line.along, what)
        _limit(axes, rows)
        if len(line.curves) > 1 and what == "value":
            axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return figure


def _limit(axes: Any, rows: np.ndarray) -> None:
    """Cut off where a curve goes to infinity, so that the rest can be seen."""
    finite = rows[np.isfinite(rows)]
    low, high = np.percentile(finite, [2, 98])
    room = 0.6 * max(high - low, 1e-6)
    if finite.max() > high + room or finite.min() < low - room:
        axes.set_ylim(max(finite.min(), low - room), min(finite.max(), high + room))


def _plain(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=GREY, fontsize=9)
    axes.set_ylabel(y, color=GREY, fontsize=9)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.grid(color=GREY, alpha=0.25, lw=0.6)
    axes.ticklabel_format(useOffset=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _one(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.subplots()
    _plain(axes, x, y)
    return figure, axes


def _mean() -> Figure:
    figure, axes = _one("tokens in the second half of a batch", "mean of the loss")
    sizes = np.arange(1, 33)
    halves = [(jaxloss.Mean(16 * 2.0, 16), jaxloss.Mean(n * 1.0, n)) for n in sizes.tolist()]
    axes.plot(
        sizes, [float((a + b).value) for a, b in halves], color=COLOURS[0], label="(a + b).value"
    )
    naive = [float(a.value + b.value) / 2 for a, b in halves]
    axes.plot(sizes, naive, color=COLOURS[1], label="mean of the two means")
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return figure


def _smoothed() -> Figure:
    figure, axes = _one("class", "label")
    labels = jaxloss.smooth_labels(jnp.array([0.0, 1.0, 0.0, 0.0]), 0.2)
    axes.bar(range(4), np.asarray(labels), color=COLOURS[0], width=0.6)
    return figure


def _weights() -> Figure:
    figure, axes = _one("examples of the class, of 1000", "weight")
    counts = np.arange(20, 981, 20)
    both = [np.stack([counts, 1000 - counts], -1)]
    weights = [float(jaxloss.class_weights_from_counts(row)[0]) for row in both[0]]
    axes.plot(counts, weights, color=COLOURS[0], lw=1.8)
    return figure


def _adjustment() -> Figure:
    figure, axes = _one("examples of the class, of 1000", "what is added to its logit")
    counts = np.arange(20, 981, 20)
    added = [float(jaxloss.logit_adjustment(np.array([n, 1000 - n]))[0]) for n in counts]
    axes.plot(counts, added, color=COLOURS[0], lw=1.8)
    return figure


def _uncertainty() -> Figure:
    figure, axes = _one("log-variance", "weighted loss")
    for size, colour in zip((0.25, 1.0, 4.0), COLOURS, strict=True):
        at = np.linspace(-3, 3, 61)
        terms = {"task": jaxloss.Mean(size, 1)}
        values = [
            float(jaxloss.uncertainty_weighting(terms, {"task": s})["task"].value) for s in at
        ]
        axes.plot(at, values, color=colour, label=f"loss {size:g}")
    axes.set_ylim(-1, 8)
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return figure


def _advantages() -> Figure:
    figure, axes = _one("response of a group of 4, by its reward", "advantage")
    rewards = jnp.array([[0.0, 0.0, 1.0, 2.0]])
    for i, (normalize, name) in enumerate(((True, "GRPO"), (False, "Dr. GRPO"))):
        heights = np.asarray(jaxloss.group_advantages(rewards, normalize=normalize))[0]
        axes.bar(np.arange(4) + 0.35 * i, heights, 0.35, color=COLOURS[i], label=name)
    axes.set_xticks(np.arange(4) + 0.17, ["0", "0", "1", "2"])
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return figure


def _reductions() -> Figure:
    figure, axes = _one("examples that are masked, of 16", "loss")
    errors = jnp.linspace(0.5, 2.0, 16)
    masked = np.arange(16)
    for name, colour in zip(("mean", "sum"), COLOURS, strict=False):
        loss = jax.jit(jaxloss.Loss(jaxloss.squared_error, name).__call__)
        values = [float(loss(errors, jnp.zeros(16), where=jnp.arange(16) >= n)) for n in masked]
        axes.plot(masked, values, "o-", color=colour, label=name, ms=3)
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return figure


def _vocabulary() -> Figure:
    figure, axes = _one("classes of the last layer", "temporary memory, GB")
    kept = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    for (who, of), colour in zip(
        kept["vocabulary"]["linear_cross_entropy"].items(), COLOURS, strict=False
    ):
        sizes = [int(v) for v, row in of.items() if row[0]]
        axes.loglog(
            sizes, [of[str(v)][0] / 1e9 for v in sizes], "o-", color=colour, label=who, ms=3
        )
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8)
    return figure


SPECIAL: dict[str, Callable[[], Figure]] = {
    "Mean": _mean, "smooth_labels": _smoothed, "class_weights_from_counts": _weights,
    "logit_adjustment": _adjustment, "uncertainty_weighting": _uncertainty,
    "group_advantages": _advantages, "Loss": _reductions, "linear_cross_entropy": _vocabulary,
}  # fmt: skip


def _text(figure: Figure) -> str:
    out = io.StringIO()
    settings: dict[Any, Any] = {
        "svg.hashsalt": "jaxloss",
        "svg.fonttype": "path",
        "path.simplify_threshold": 0.5,
    }
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue()
