"""A report of a file of results: Markdown, one self-contained page of HTML, and the pictures."""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from benchmarks import pictures, programs
from benchmarks.pictures import Data, Rows, geometric_mean, of_mode
from benchmarks.speed import EQUAL, GROWN, best_peer
from benchmarks.works import OURS

README = Path(__file__).parents[1] / "README.md"
MARKS = "<!-- facts -->\n", "<!-- /facts -->"
# Slower than this, and a loss is listed as lost.
LOST = 1.05

# Of what peers get wrong, what the README shows.
SHOWN = (
    "softmax cross-entropy of logits 20, 0, label 0; gradient",
    "softmax cross-entropy of float16 zeros, 128,256 classes",
    "softmax cross-entropy of three classes, label -1; gradient",
    "sigmoid cross-entropy of logits inf, -inf, labels 1, 0",
    "log_cosh of 1e-4",
    "cosine similarity of parallel vectors of length 1e-25, 5",
    "KL divergence, gradient by a target that is 0",
    "ntxent of 1024 x 512, MB that value and gradient need",
)

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color-scheme: light dark; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #8884; padding: 0.2rem 0.6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }"""

ABOUT = {
    "speed": "Bars end at our time relative to the fastest other JAX library of equal result; the "
    "line at 1 is that library. Losses that no other has have the naive formula's dot only. On a "
    "CPU the arrays are larger than the 32 MB up to which glibc may keep memory from run to run. "
    "Programs that write arrays, as most of the peers' do, take two to three times as long for it: "
    "at smaller sizes, where it is kept, they are closer to ours, or faster.",
    "growth": "The dashed line is the limit: to read the inputs once, or the bare matmuls.",
    "vocabulary": "Compiled from shapes alone.",
    "memory": "What the compiled program needs beside its inputs and outputs.",
    "ulps": "Errors at the exact points of the case table, against mpmath, on the condition "
    "scale that CONTRIBUTING.md defines.",
    "compile": "Of value and gradient, with cold caches.",
}


def write(data: Data, folder: Path) -> Path:
    """All of it into the folder; the Markdown's path."""
    files = pictures.draw(data, folder)
    text = "\n\n".join(part for part in _parts(data, files) if part) + "\n"
    path = folder / "README.md"
    path.write_text(text)
    (folder / "report.html").write_text(_html(text, folder))
    return path


def _parts(data: Data, files: dict[str, dict[str, Path]]) -> Iterable[str]:
    yield f"# Benchmarks on a {data['machine']['device'].upper()}"
    yield _machine(data)
    if data.get("speed"):
        yield "## Speed\n\n" + "\n\n".join(_geometric(data["speed"]))
        yield _picture(files, "speed")
        yield _lost(data["speed"])
        yield _unequal(data["speed"])
    yield _picture(files, "growth")
    if data.get("models"):
        yield "## Sizes of models\n\n" + _models(data["models"])
    if data.get("memory"):
        yield "## Memory"
        yield _picture(files, "vocabulary")
        yield _picture(files, "memory")
        yield _peaks(data.get("peaks", []))
    if data.get("exactness"):
        yield "## Exactness"
        yield _picture(files, "ulps")
    if data.get("failures"):
        yield "## What peers get wrong, run live\n\n" + _failures(data["failures"])
    if data.get("compile"):
        yield "## Compilation"
        yield _picture(files, "compile")
        yield _sizes_of_programs(data["compile"])
    if data.get("speed"):
        yield "## All times\n\n" + "\n\n".join(_times(data["speed"]))


def write_readme(data: Data, folder: Path) -> None:
    """The README's section of facts: machine, picture, ratios, and some of peers' errors."""
    here = folder.resolve().relative_to(README.parent).as_posix()
    files = {"speed": {theme: Path(f"{here}/speed-{theme}.svg") for theme in pictures.THEMES}}
    m, versions = data["machine"], data["machine"]["packages"]
    parts = [
        f"On a {m['device'].upper()} ({m['cores']} cores), jax {versions['jax']}, by `python -m "
        f"benchmarks`. The [report]({here}/README.md) has every loss, size and library, memory, "
        f"compilation, and where we lose; "
        f"[docs/accelerators.md](docs/accelerators.md) has TPUs, by their compilers, and an H100, "
        f"by its compiler and measured.",
        _picture(files, "speed", folder=f"{here}/"),
        *_geometric(data["speed"]),
        _some_failures(data["failures"]),
    ]
    start, end = MARKS
    body = re.escape(start) + ".*" + re.escape(end)
    text = start + "\n\n".join(parts) + "\n" + end
    README.write_text(re.sub(body, lambda _: text, README.read_text(), flags=re.DOTALL))


def _some_failures(rows: Rows) -> str:
    libraries = (OURS, "optax", "keras")
    by = {(r["what"], r["who"]): r for r in rows}

    def cell(what: str, who: str) -> str:
        row = by.get((what, who))
        return "" if row is None else row["got"] if row["right"] else f"**{row['got']}**"

    lines = [
        [what, by[what, OURS]["expected"], *(cell(what, who) for who in libraries)]
        for what in SHOWN
        if (what, OURS) in by
    ]
    return table(["call (wrong results in bold)", "right", *libraries], lines)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _machine(data: Data) -> str:
    m = data["machine"]
    packages = ", ".join(f"{k} {v}" for k, v in m["packages"].items())
    return (
        f"{m['processor'] or m['device']}, {m['devices']} device(s), {m['cores']} cores; "
        f"Python {m['python']}; {packages}. Times are medians of runs taken in turn in one "
        f"process, and ratios are medians of the ratios within a turn; equal work was checked: "
        f"values and gradients within {EQUAL:g} of the largest entry."
    )


def _picture(files: dict[str, dict[str, Path]], name: str, folder: str = "") -> str:
    if name not in files:
        return ""
    light, dark = (folder + files[name][theme].name for theme in ("light", "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{name}" src="{light}"></picture>\n\n{ABOUT[name]}'
    )


def ratios(rows: Rows, mode: str) -> dict[str, float]:
    """Of each loss that another JAX library has, our time by the fastest one's."""
    best = {loss: best_peer(of) for loss, of in of_mode(rows, mode).items()}
    return {loss: row["ours_by_theirs"] for loss, row in best.items() if row}


def _geometric(rows: Rows) -> Iterable[str]:
    lines = []
    settings = {mode: ratios(rows, mode) for mode in programs.MODES}
    for size in _sizes(rows)[:-1]:
        at_size = [r for r in rows if r["mode"] == GROWN and r["size"] == size]
        settings[f"{GROWN}, of {size:,} numbers"] = ratios(at_size, GROWN)
    for name, of in settings.items():
        if of:
            faster = sum(r <= 1 for r in of.values())
            worst = max(of, key=lambda loss: of[loss])
            lines.append(
                (name, len(of), f"{geometric_mean(list(of.values())):.2f}", faster,
                 f"{of[worst]:.2f} ({worst})")
            )  # fmt: skip
    yield table(
        ("gradient", "losses", "geometric mean of our time / best JAX peer's", "faster", "worst"),
        lines,
    )


def _sizes(rows: Rows) -> list[int]:
    """The sizes that most losses are timed at."""
    counted = Counter(r["size"] for r in rows if r["mode"] == GROWN and r["peer"] == OURS)
    return sorted(size for size, n in counted.items() if 2 * n > max(counted.values()))


def _lost(rows: Rows) -> str:
    """Where another library, or the naive formula, is faster."""
    lines = []
    for mode in programs.MODES:
        for loss, of in of_mode(rows, mode).items():
            for row in of:
                slower = row.get("ours_by_theirs", 0) > LOST and row["equal"]
                if slower and row["peer"] not in (OURS, programs.LIMIT):
                    lines.append((loss, mode, row["peer"], f"{row['ours_by_theirs']:.2f}"))
    if not lines:
        return f"Nothing else is faster by more than {LOST - 1:.0%}."
    lines.sort(key=lambda line: -float(line[-1]))
    return "### Where we lose\n\n" + table(("loss", "gradient", "to", "our time / theirs"), lines)


def _unequal(rows: Rows) -> str:
    """Results of peers that differ from ours, or that failed: not counted."""
    lines = {(r["loss"], r["peer"], _difference(r["difference"])) for r in rows if not r["equal"]}
    if not lines:
        return ""
    return "### Not counted, because the results differ from ours\n\n" + table(
        ("loss", "library", "largest difference, relative"), sorted(lines)
    )


def _difference(difference: float | str) -> str:
    text = difference if isinstance(difference, str) else f"{difference:.2g}"
    return text.replace("|", "/")


def _times(rows: Rows) -> Iterable[str]:
    peers = [p for p in pictures.COLOURS if any(r["peer"] == p for r in rows)]
    for mode in programs.MODES:
        groups = of_mode(rows, mode)
        if groups:
            lines = []
            for loss, of in groups.items():
                by_peer = {r["peer"]: r for r in of}
                lines.append([loss, of[0]["size"], *(_time(by_peer.get(p)) for p in peers)])
            yield (
                f"### Gradient {mode}, milliseconds"
                if mode != "forward"
                else ("### Value alone, milliseconds")
            )
            yield table(["loss", "size", *peers], lines)


def _time(row: dict[str, Any] | None) -> str:
    if row is None or "seconds" not in row:
        return "" if row is None else "failed"
    half = (row["high"] - row["low"]) / 2
    mark = "" if row["equal"] else " (differs)"
    return f"{1e3 * row['seconds']:.3g} ± {1e3 * half:.1g}{mark}"


def _models(rows: Rows) -> str:
    """Measured times of what `aot` compiles, beside bare matmuls or streams."""
    limits = {r["case"]: r["seconds"] for r in rows if r["program"] == programs.LIMIT}

    def line(r: dict[str, Any]) -> list[str]:
        if "seconds" not in r:
            return [r["case"], r["program"], r["error"].replace("|", "/"), "", "", "", ""]
        numbers = (f"{r[k] / 1e6:,.0f}" if k in r else "" for k in ("temporary", "output"))
        apart = f"{r['difference']:.1g}" if "difference" in r else ""
        of_limit = f"{r['seconds'] / limits[r['case']]:.2f}"
        return [r["case"], r["program"], _time({**r, "equal": True}), of_limit, *numbers, apart]

    headers = ("case", "program", "ms", "of the limit", "temporary MB", "output MB", "difference")
    about = (
        "Value and gradients. The limit is the bare matmuls, or to read the operands once and "
        "write the gradients, in kernels of their own, so that a fused program can be below it; "
        "the difference is the largest from the first program's, relative "
        "to the largest entry."
    )
    return about + "\n\n" + table(headers, map(line, rows))


def _peaks(rows: Rows) -> str:
    if not rows:
        return ""
    losses = list(dict.fromkeys(r["loss"] for r in rows))
    peers = [p for p in pictures.COLOURS if any(r["peer"] == p for r in rows)]
    by = {(r["loss"], r["peer"]): r for r in rows}

    def cell(loss: str, peer: str) -> str:
        row = by.get((loss, peer))
        return "" if row is None else f"{row['peak'] / 1e6:,.0f}" if "peak" in row else "failed"

    lines = [[loss, *(cell(loss, p) for p in peers)] for loss in losses]
    return "### Peak of a training step above what was there before it, MB\n\n" + table(
        ["loss", *peers], lines
    )


def _failures(rows: Rows) -> str:
    lines = [
        (r["what"], r["expected"], r["who"], r["got"], "right" if r["right"] else "**wrong**")
        for r in rows
    ]
    return table(("call", "right", "library", "got", ""), lines)


def _sizes_of_programs(rows: Rows) -> str:
    losses = list(dict.fromkeys(r["loss"] for r in rows))
    peers = [p for p in pictures.COLOURS if any(r["peer"] == p for r in rows)]
    by = {(r["loss"], r["peer"]): r for r in rows if "instructions" in r}

    def cell(loss: str, peer: str) -> str:
        row = by.get((loss, peer))
        return f"{row['instructions']} / {row['fusions']}" if row else ""

    lines = [[loss, *(cell(loss, p) for p in peers)] for loss in losses]
    return "### Instructions of optimised HLO / fusions\n\n" + table(["loss", *peers], lines)


def _html(text: str, folder: Path) -> str:
    def inlined(match: re.Match[str]) -> str:
        image = base64.b64encode((folder / match[2]).read_bytes()).decode()
        return f'{match[1]}="data:image/svg+xml;base64,{image}"'

    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    body = re.sub(r'(src|srcset)="([\w-]+\.svg)"', inlined, body)
    title = text.splitlines()[0].lstrip("# ")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )
