"""The page of a public name, and the pages of tables, as Markdown."""

import inspect

from website import catalog, facts
from website.catalog import Entry


def page(entry: Entry, picture: bool) -> str:
    parts = [f"---\nsearch:\n  boost: 2\n---\n\n# {entry.name}"]
    if not entry.formulas and (inline := entry.inline):
        parts.append(f"$$\n{inline}\n$$")
    if picture:
        what = "Value and derivative" if entry.declared else "A picture"
        parts.append(f"![{what} of {entry.name}](pictures/{entry.name}.svg){{ .picture }}")
    parts += _advice(entry)
    parts.append(f"```python\n{_signature(entry)}\n```")
    parts.append(f"::: jaxloss.{entry.name}")
    parts += [*_elsewhere(entry), *_wrong(entry), *_costs(entry)]
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    """All names, by family."""
    parts = ["# All names", "Every public name of `jaxloss`, by family."]
    for family, entries in catalog.families().items():
        rows = [(f"[`{e.name}`]({e.name}.md)", e.summary) for e in entries]
        parts += [f"## {catalog.title(family)}", _table(("name", "what it is"), rows)]
    return "\n\n".join(parts) + "\n"


def names() -> str:
    """The names of other libraries, and ours."""
    parts = [
        "# Names in other libraries",
        "Find the name that you know, and what to call here. Where values or conventions differ,"
        " [From optax and torch](migration.md) and [From Keras](keras.md) say how.",
    ]
    for library, title in facts.LIBRARIES.items():
        rows = [
            (f"`{there}`", f"[`{e.name}`](losses/{e.name}.md)")
            for e in catalog.entries()
            if (there := facts.elsewhere(e.name).get(library))
        ]
        parts += [
            f"## {title}",
            _table((title, "jaxloss"), sorted(rows, key=lambda r: r[0].lower())),
        ]
    return "\n\n".join(parts) + "\n"


def _signature(entry: Entry) -> str:
    """How it is called, with the defaults; types are said below."""
    signature = inspect.signature(entry.public)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    shown = str(inspect.Signature(plain))
    call = f"jaxloss.{entry.name}{shown}"
    if len(call) <= 80:
        return call
    return f"jaxloss.{entry.name}(\n    " + shown[1:-1].replace(", ", ",\n    ") + ",\n)"


def _advice(entry: Entry) -> list[str]:
    said = facts.table().get(entry.name, {})
    out = []
    if "use" in said:
        out.append(f"**Use it** {said['use']}")
    if "avoid" in said:
        out.append(f"**Not** {said['avoid']}")
    return out


def _elsewhere(entry: Entry) -> list[str]:
    there = facts.elsewhere(entry.name)
    if not there:
        return []
    rows = [(facts.LIBRARIES[library], f"`{name}`") for library, name in there.items()]
    more = (
        "What differs is on the pages for those who come from [optax or torch](../migration.md)"
        " or [Keras](../keras.md)."
    )
    return ["## Names elsewhere", _table(("library", "name"), rows), more]


def _wrong(entry: Entry) -> list[str]:
    rows = [
        (
            f["what"],
            f["expected"],
            f["ours"],
            "<br>".join(f"{who}: **{got}**" for who, got in f["others"]),
        )
        for f in facts.wrong(entry.name)
    ]
    if not rows:
        return []
    return [
        "## What others get wrong",
        _table(("call", "right", "jaxloss", "others"), rows),
        _measured(),
    ]


def _costs(entry: Entry) -> list[str]:
    found = facts.costs(entry.name)
    if not found:
        return []
    rows = [
        (
            c["who"],
            _ms(c.get("seconds")),
            _mb(c.get("memory")),
            _ulps(c.get("value")),
            _ulps(c.get("gradient")),
        )
        for c in found
    ]
    head = (
        "",
        "milliseconds",
        "temporary memory, MB",
        "worst error of the value",
        "of the gradient",
    )
    said = (
        f"Value and gradient of a batch of {int(found[0]['size']):,} numbers (for losses of whole"
        " models, rows), the gradient written to a new array. Errors are in units in the last"
        " place (ulps) of float32, on the scale of the formula's terms; 10 million or more means"
        " that no digit is right."
    )
    return ["## What it costs", said, _table(head, rows), _measured()]


def _measured() -> str:
    machine = facts.kept()["machine"]
    packages = machine["packages"]
    of = ", ".join(
        f"{name} {packages[name]}"
        for name in ("jax", "optax", "keras", "torch")
        if name in packages
    )
    on = f"Measured on a CPU with {machine['cores']} cores, {of}"
    return f"*{on}: the [report](../report.md) has all of it.*"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def _mb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.4g}"


def _ulps(ulps: float | None) -> str:
    if ulps is None:
        return ""
    return f"{ulps:.2g}" if ulps < 1000 else f"{ulps:,.0f}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [
        head,
        tuple("---" for _ in head),
        *(tuple(c.replace("|", r"\|") for c in row) for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
