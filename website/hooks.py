"""What MkDocs calls while it builds the site; `mkdocs.yml` names this file."""

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.programs import QUICK  # noqa: E402

# Pictures are compiled once and run once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()

from website import catalog, pages, pictures, vendor  # noqa: E402

# Files of the repository that are pages of the site, and where; of `docs` and `examples` all are.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/results/cpu/README.md": "report.md",
    "benchmarks/results/nvidia-h100-80gb-hbm3/README.md": "report-h100.md",
}
WORKER = "https://unpkg.com/iframe-worker/shim"
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Put the names of the package into the navigation."""
    nav: list[Any] = [{"All names": "losses/index.md"}]
    for family, entries in catalog.families().items():
        nav.append({catalog.title(family): [{e.name: e.path} for e in entries]})
    guides = [{_title(path): _page_of(path)} for path in _examples()]
    for part in config.nav:
        if "Losses" in part:
            part["Losses"] = nav
        if "Guides" in part:
            part["Guides"] = [*guides, *part["Guides"]]
    return config


def on_files(files: Files, *, config: Any) -> Files:
    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    for path, content in vendor.assets().items():
        add(f"assets/{path}", content)
    for path in (ROOT / "website/assets").iterdir():
        add(f"assets/{path.name}", path.read_bytes())
    for source, page in PAGES.items():
        add(page, _relinked((ROOT / source).read_text(encoding="utf-8"), source, page))
    for picture in [*(ROOT / "benchmarks/results").glob("*/*.svg")]:
        add(str(picture.relative_to(ROOT)), picture.read_bytes())
    for example in _examples():
        add(_page_of(example), _guide(example))
    for entry in catalog.entries():
        drawn = pictures.kept(entry)
        if drawn is not None:
            add(entry.picture, drawn)
        add(entry.path, pages.page(entry, drawn is not None))
    add("losses/index.md", pages.overview())
    add("names.md", pages.names())
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links of documents to files of the repository lead to their pages."""
    here = page.file.src_uri
    return _relinked(markdown, f"docs/{here}", here) if not page.file.generated_by else markdown


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """The theme would ask a server for the worker of the search."""
    return output.replace(WORKER, f"{'../' * page.url.count('/')}assets/iframe-worker.js")


def on_post_template(output: str, **_: Any) -> str:
    """Pages without a place of their own, such as that of an error."""
    return output.replace(WORKER, "/assets/iframe-worker.js")


def _relinked(text: str, source: str, page: str) -> str:
    """The text of a file, with its links as they are from its page."""

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        if ":" in target:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = _site_path(path)
        if there is None:  # No page: the words are left.
            return label.strip("![]")
        relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{label}({relative}{anchor})"

    return LINK.sub(link, text)


def _site_path(path: str) -> str | None:
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("examples/"):
        return _page_of(Path(path))
    return path if path.endswith(".svg") else None


def _examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*.py"))


def _page_of(example: Path) -> str:
    return f"guides/{example.stem}.md"


def _parts(example: Path) -> tuple[str, str]:
    """The docstring of a program, and the rest of it."""
    _, docstring, code = example.read_text(encoding="utf-8").split('"""', 2)
    return docstring.strip(), code.strip()


def _title(example: Path) -> str:
    return example.stem.replace("_", " ").replace("lm", "language model").capitalize()


def _guide(example: Path) -> str:
    """A page of a program: what it says of itself, its picture, and the program."""
    docstring, code = _parts(example)
    summary, _, rest = docstring.partition("\n\n")
    rest = re.sub(r"^    (python .*)$", r"```sh\n\1\n```", rest, flags=re.M)
    picture = ROOT / f"docs/images/{example.stem}.png"
    shown = f"![What it draws](../images/{picture.name})\n\n" if picture.exists() else ""
    return f"# {_title(example)}\n\n{summary}\n\n{rest}\n\n{shown}```python\n{code}\n```\n"
