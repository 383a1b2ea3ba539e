"""The public names, by family: read from the package, so that a new loss needs no entry here."""

import functools
import importlib
import inspect
import re
from dataclasses import dataclass
from typing import Any

import jaxloss
from jaxloss._core.declare import Declaration, declaration
from website.formulas import tex

# Modules that are not a family of losses; what they have is about training.
TRAINING = "training"
TITLES = {
    "fenchel_young": "Fenchel-Young",
    "angular": "Angular margins",
    "metric": "Metric learning",
    "experts": "Mixtures of experts",
    "linear": "Linear: of a last layer",
    TRAINING: "Training steps and wrappers",
}
SECTION = re.compile(r"^(?:Args|Returns|Raises|References|Calling it)\b[^:\n]*:", re.M)
BLOCK = re.compile(r"(?:^    .*\n?)+", re.M)


@dataclass(frozen=True)
class Entry:
    name: str
    public: Any
    family: str

    @property
    def path(self) -> str:
        """Of its page, in the site."""
        return f"losses/{self.name}.md"

    @property
    def picture(self) -> str:
        return f"losses/pictures/{self.name}.svg"

    @property
    def declared(self) -> Declaration | None:
        return declaration(self.public)

    @property
    def docstring(self) -> str:
        return inspect.getdoc(self.public) or ""

    @property
    def summary(self) -> str:
        """The first sentence, as one line."""
        first = " ".join(self.docstring.split("\n\n")[0].split())
        return re.split(r"(?<=\.)\s", first)[0]

    @property
    def formulas(self) -> list[str]:
        """As they stand in the docstring, before its sections."""
        blocks = (block.rstrip() for block in BLOCK.findall(head(self.docstring)))
        return [block for block in blocks if block]

    @property
    def inline(self) -> str | None:
        """The first formula within a sentence, for names that have no other."""
        for code in re.findall(r"`([^`]+)`", head(self.docstring)):
            if re.search(r" [-+*/] |\w\(|\*\*|\|", code) and (found := tex(code)):
                return found
        return None


def head(docstring: str) -> str:
    return SECTION.split(docstring)[0].split("\n>>> ")[0]


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All public names, in the order of the families in the package."""
    order = {name: i for i, name in enumerate(_in_order())}
    found = [_entry(name) for name in jaxloss.__all__]
    return tuple(sorted(found, key=lambda e: order.get(e.name, len(order))))


def families() -> dict[str, list[Entry]]:
    out: dict[str, list[Entry]] = {}
    for entry in entries():
        out.setdefault(entry.family, []).append(entry)
    if TRAINING in out:
        out[TRAINING] = out.pop(TRAINING)
    return out


def title(family: str) -> str:
    return TITLES.get(family, family.replace("_", " ").capitalize())


def _entry(name: str) -> Entry:
    public = getattr(jaxloss, name)
    parts = public.__module__.split(".")
    family = {"_families": parts[-1], "linear": "linear"}.get(parts[1], TRAINING)
    return Entry(name, public, family)


def _in_order() -> list[str]:
    """Names as the package imports them: by family, each in its own order."""
    out: list[str] = []
    families = re.findall(r"from (jaxloss\.[\w.]+) import", inspect.getsource(jaxloss))
    for module in families:
        source = inspect.getsource(importlib.import_module(module))
        out += re.findall(r"^(?:def|class) (\w+)", source, re.M)
    return [name for name in out if name in jaxloss.__all__]
