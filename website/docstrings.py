"""Docstrings as mkdocstrings is to read them: formulas as TeX, doctests as blocks of code."""

import re
from typing import Any

import griffe

from website.catalog import BLOCK, SECTION
from website.formulas import tex

DOCTEST = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.M | re.S)

# Sections that only refer to those of another function.
SEE = re.compile(r"^((?:Args|Raises|Returns)[^:\n]*):(?= )", re.M)
RAISES = re.compile(r"^Raises:((?: .*)?\n(?:    .*\n?)*)", re.M)


class Docstrings(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    found = SECTION.search(docstring)
    end = found.start() if found else len(docstring)
    head, rest = docstring[:end], docstring[end:]
    head = BLOCK.sub(lambda block: _displayed(block[0]), head)
    rest = re.sub(r"^(References):\n((?:    .*\n?|\n(?=    ))+)", _references, rest, flags=re.M)
    rest = RAISES.sub(_raises, rest)
    rest = SEE.sub(r"**\1:**", rest)
    rest = re.sub(r"^(    [\w, ]+,)\n    (?=[\w, ]+:)", r"\1 ", rest, flags=re.M)
    return DOCTEST.sub(lambda code: f"```pycon\n{code[0].rstrip()}\n```", head + rest)


def _displayed(block: str) -> str:
    if block.lstrip().startswith(">>>"):
        return block
    shown = tex(block)
    return block if shown is None else f"\n$$\n{shown}\n$$\n\n"


def _references(found: re.Match[str]) -> str:
    lines = re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", found[2])
    text = " ".join(line.strip() for line in lines.splitlines())
    return f"**{found[1]}:** {text}\n\n"


def _raises(found: re.Match[str]) -> str:
    """Each exception on a line of its own."""
    text = " ".join(found[1].split())
    errors = re.split(r"(?<=[.;])\s+(?=[A-Z]\w*Error: )", text)
    if not re.match(r"[A-Z]\w*Error: ", text):
        return f"**Raises:** {text}\n"
    return "Raises:\n" + "".join(f"    {error}\n" for error in errors)
