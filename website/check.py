"""Check pages that were built: nothing is asked of the network, every name has its page.

python -m website.check site
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from website import catalog, pictures

# What a browser loads by itself; links that a reader may follow are not.
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(https?:)?//|"
    r"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=[\"']?(https?:)?//"
)
# Tools.
WITHOUT_FORMULA = {"Loss", "takes", "classification_metrics"}


def problems(site: Path) -> list[str]:
    out = []
    for path in sorted(site.rglob("*.html")):
        if LOADED.search(path.read_text(encoding="utf-8")):
            out.append(f"{path.relative_to(site)} loads something from the network")
    for path in sorted(site.rglob("*.css")):
        if re.search(r"url\([\"']?(?:https?:)?//", path.read_text(encoding="utf-8")):
            out.append(f"{path.relative_to(site)} loads something from the network")
    for entry in catalog.entries():
        page = site / entry.path.replace(".md", ".html")
        if not page.exists():
            out.append(f"{entry.name} has no page")
            continue
        text = page.read_text(encoding="utf-8")
        if pictures.drawn(entry) and f"pictures/{entry.name}.svg" not in text:
            out.append(f"{entry.name} has no picture")
        if entry.name not in WITHOUT_FORMULA and 'class="arithmatex"' not in text:
            out.append(f"{entry.name} has no formula that could be set as one")
    return out


def main(argv: Sequence[str] | None = None) -> None:
    (site,) = sys.argv[1:] if argv is None else argv
    found = problems(Path(site))
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
