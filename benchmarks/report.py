"""A report of a file of results: Markdown, one self-contained page of HTML, and the pictures."""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from benchmarks import pictures, programs
from benchmarks.pictures import Data, Rows, geometric_mean, of_mode, ratios
from benchmarks.speed import EQUAL, best_peer, equal
from benchmarks.works import NAIVE, OURS

README = Path(__file__).parents[1] / "README.md"
MARKS = "<!-- facts -->\n", "<!-- /facts -->"
# Slower than this, by the best JAX peer's time and by the naive formula's, and a loss has lost.
LOST, LOST_TO_NAIVE = 1.1, 1.5

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

MODES = (
    "`layer` is what a training step does: the value, and the gradient by the weight of a last "
    "layer `h @ W` of 32 features, whose outputs the loss takes; the linear losses have their own "
    "layer. `returned` gives the gradient by the predictions as a fresh array, `step` what one of "
    "optax's steps makes of them, `forward` the value alone. `consumed` adds up the squares of "
    "the gradient, which flatters us: our programs need not write it then, while a layer's matmul "
    "would have to read it from memory."
)
ABOUT = {
    "speed": "Left of the line at 1 we are faster than the fastest other JAX library of equal "
    "result. Losses that no other has have the naive formula's mark only. Programs that write "
    "arrays, as most of the peers' do, take two to three times as long for those of more than "
    "32 MB, as the large ones are: glibc may keep smaller ones from run to run.",
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


def _parts(data: Data, files: dict[str, Path]) -> Iterable[str]:
    yield f"# Benchmarks on a {data['machine']['device'].upper()}"
    yield _machine(data)
    if data.get("speed"):
        yield "## Speed"
        yield MODES
        yield from _summary(data["speed"])
        yield _picture(files, "speed")
        yield _lost(data["speed"])
        yield _unequal(data["speed"])
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
    """The README's section of facts: some of peers' errors, and a picture."""
    here = folder.resolve().relative_to(README.parent).as_posix()
    versions = data["machine"]["packages"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("jax", "optax", "keras"))
    parts = [
        _some_failures(data["failures"]),
        f"Run with {named}; the [report]({here}/README.md) has more of them, and speed, memory and "
        "exactness for every loss, with where we lose.",
        f"![Memory by the size of the vocabulary]({here}/vocabulary.svg)",
        "Memory of the value and gradient of a language model's last layer, by the size of its "
        "vocabulary, read off\nthe compiled programs.",
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


def _picture(files: dict[str, Path], name: str, folder: str = "") -> str:
    if name not in files:
        return ""
    return f"![{name}]({folder}{files[name].name})\n\n{ABOUT[name]}"


def sizes(rows: Rows) -> list[str]:
    """Their names, in the order of the pictures."""
    return [at for at in pictures.MARKS if any(r["at"] == at for r in rows)]


def _summary(rows: Rows) -> Iterable[str]:
    """Of each mode and size, how we stand with the other JAX libraries."""
    lines = []
    for mode in programs.MODES:
        for at in sizes(rows):
            if of := ratios(rows, mode, at):
                worst = max(of, key=lambda loss: of[loss])
                above = sum(ratio > LOST for ratio in of.values())
                mean, last = f"{geometric_mean(of.values()):.2f}", f"{of[worst]:.2f} ({worst})"
                lines.append((mode, at, len(of), mean, above, last))
    headers = "mode", "size", "losses", "geometric mean", f"above {LOST}", "worst"
    yield table(headers, lines)
    yield "Our time by that of the fastest other JAX library. " + _about_sizes(rows)


def _about_sizes(rows: Rows) -> str:
    """Of each, what many losses have there; those of whole models have batches of their own."""
    ours = {(r["loss"], r["at"], r["size"]) for r in rows if r["peer"] == OURS}
    many = len({loss for loss, _, _ in ours}) / 5
    seen = Counter((at, size) for _, at, size in ours)
    of = {at: [size for (a, size), n in seen.items() if a == at and n > many] for at in sizes(rows)}
    shapes = "; ".join(f"{at} {' or '.join(sorted(of[at]))}" for at in of if of[at])
    return f"Sizes: {shapes}. Losses of whole models have batches of their own."


def _lost(rows: Rows) -> str:
    """Where another library, or the naive formula, is faster."""
    lines = []
    for mode in programs.MODES:
        for at in sizes(rows):
            for loss, of in of_mode(rows, mode, at).items():
                for row in _ahead(of):
                    ratio = f"{row['ours_by_theirs']:.2f}"
                    lines.append((loss, mode, at, row["size"], row["peer"], ratio))
    limits = f"{LOST} of the best JAX peer's time, or above {LOST_TO_NAIVE} of the naive formula's"
    if not lines:
        return f"Nowhere are we above {limits}."
    lines.sort(key=lambda line: -float(line[-1]))
    headers = "loss", "mode", "size", "", "to", "our time / theirs"
    return f"### Where we lose\n\nAbove {limits}.\n\n" + table(headers, lines)


def _ahead(rows: Rows) -> Iterable[dict[str, Any]]:
    """Of one loss, mode and size, the rows of those who are faster by so much."""
    best = best_peer(rows)
    naive = [r for r in rows if r["peer"] == NAIVE and equal(r)]
    for row, limit in ((best, LOST), *((r, LOST_TO_NAIVE) for r in naive)):
        if row and row.get("ours_by_theirs", 0) > limit:
            yield row


def _unequal(rows: Rows) -> str:
    """Results of peers that differ from ours, or that failed: not counted."""
    lines = {(r["loss"], r["peer"], _difference(r["difference"])) for r in rows if not equal(r)}
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
        for at in sizes(rows):
            lines = []
            for loss, of in of_mode(rows, mode, at).items():
                by_peer = {r["peer"]: r for r in of}
                lines.append([loss, of[0]["size"], *(_time(by_peer.get(p)) for p in peers)])
            if lines:
                yield f"### {mode.capitalize()}, {at}, milliseconds"
                yield table(["loss", "size", *peers], lines)


def _time(row: dict[str, Any] | None) -> str:
    if row is None or "seconds" not in row:
        return "" if row is None else "failed"
    mark = "" if equal(row) else " (differs)"
    return f"{1e3 * row['seconds']:.3g} ± {1e3 * row['spread'] / 2:.1g}{mark}"


def _models(rows: Rows) -> str:
    """Measured times of what `aot` compiles, beside bare matmuls or streams."""
    limits = {r["case"]: r["seconds"] for r in rows if r["program"] == programs.LIMIT}

    def line(r: dict[str, Any]) -> list[str]:
        if "seconds" not in r:
            return [r["case"], r["program"], r["error"].replace("|", "/"), "", "", "", ""]
        numbers = (f"{r[k] / 1e6:,.0f}" if k in r else "" for k in ("temporary", "output"))
        apart = f"{r['difference']:.1g}" if "difference" in r else ""
        of_limit = f"{r['seconds'] / limits[r['case']]:.2f}"
        return [r["case"], r["program"], _time({**r, "difference": 0.0}), of_limit, *numbers, apart]

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
        image = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/svg+xml;base64,{image}"'

    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    body = re.sub(r'src="([\w-]+\.svg)"', inlined, body)
    title = text.splitlines()[0].lstrip("# ")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )
