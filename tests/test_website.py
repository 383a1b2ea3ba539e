"""Formulas of docstrings as TeX, and what a page is made of."""

import json
import shutil
import subprocess

import pytest

import jaxloss

pytest.importorskip("optax", reason="needs jaxloss[docs]")
pytest.importorskip("matplotlib", reason="needs jaxloss[docs]")

from website import catalog, facts, pages, pictures, vendor
from website.check import WITHOUT_FORMULA
from website.formulas import tex

ENTRIES = {entry.name: entry for entry in catalog.entries()}


@pytest.mark.parametrize(
    ("typed", "set"),
    [
        ("a - b - c", r"& a - b - c"),
        ("a / b * c", r"& \frac{a}{b}\, c"),
        ("a * b / c", r"& \frac{a\, b}{c}"),
        ("a / (b * c)", r"& \frac{a}{b\, c}"),
        ("-x**2", r"& -{x}^{2}"),
        ("(-x)**2", r"& {\left(-x\right)}^{2}"),
        ("beta**n_k", r"& {\beta}^{n_{k}}"),
        ("loss = sum_j y_j * z_j", r"\mathrm{loss} &= \sum_{j} y_{j}\, z_{j}"),
        ("sum_j (a_j + b_j) + c", r"& \sum_{j} \left(a_{j} + b_{j}\right) + c"),
        ("|e| <= delta", r"\left|e\right| &\le \delta"),
        ("J_i - J_(i-1)", r"& J_{i} - {J}_{i - 1}"),
        ("log softmax(s)_i", r"& \log {\operatorname{softmax}\left(s\right)}_{i}"),
        ("sum over k in N(i) of s_ik", r"& \sum_{k \in N\left(i\right)} s_{ik}"),
        ("(1 if j != k else 0)", r"& \left[j \ne k\right]"),
        ("1e-7 * p[t, k_t]", r"& 10^{-7}\, p_{t,\  k_{t}}"),
        ("KL(t || p)", r"& \operatorname{KL}\left(t \,\|\, p\right)"),
    ],
)  # fmt: skip
def test_formulas(typed, set):
    assert tex("    " + typed) == set.replace("&", "")


def test_lines():
    both = tex("    loss = a        where x < 1\n    loss = b\n           + c  elsewhere\n")
    assert both is not None
    first, second = both.split("\n")[1:-1]
    assert first.startswith(r"\mathrm{loss} &= a && \quad \text{ where } x < 1")
    assert second == r"\mathrm{loss} &= b + c && \quad \text{ elsewhere }"


@pytest.mark.parametrize(
    "prose", ["a {b}", "f(x", "whether it is not among the others that are first"]
)
def test_prose_is_no_formula(prose):
    assert tex("    " + prose) is None


def test_every_formula_can_be_set():
    typed = {e.name: e.formulas for e in ENTRIES.values() if e.name not in WITHOUT_FORMULA}
    shown = {name: [tex(block) for block in blocks] for name, blocks in typed.items()}
    assert {name for name, blocks in shown.items() if None in blocks} == set()
    assert {n for n, blocks in shown.items() if not blocks and not ENTRIES[n].inline} == set()


def test_katex_knows_every_formula():
    if shutil.which("node") is None or not vendor.KATEX.exists():
        pytest.skip("needs node, and python -m website.vendor")
    blocks = [tex(block) for entry in ENTRIES.values() for block in entry.formulas]
    shown = [block for block in blocks if block] + [e.inline for e in ENTRIES.values() if e.inline]
    program = (
        "const katex = require(process.argv[1]);"
        "for (const block of JSON.parse(require('fs').readFileSync(0, 'utf8')))"
        "katex.renderToString(block, { displayMode: true, throwOnError: true, strict: 'error' });"
    )
    script = str(vendor.KATEX / "package/dist/katex.js")
    command = ["node", "-e", program, script]
    done = subprocess.run(command, input=json.dumps(shown), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_name_is_of_a_family():
    assert set(ENTRIES) == set(jaxloss.__all__)
    assert ENTRIES["huber_loss"].family == "regression"
    assert all(catalog.title(family)[0].isupper() for family in catalog.families())


@pytest.mark.few(3)
@pytest.mark.parametrize("name", sorted(n for n, e in ENTRIES.items() if e.declared))
def test_pictures(name):
    values, slopes = pictures.curves(pictures.line(ENTRIES[name]))
    assert ((values == values) & (slopes == slopes)).mean() > 0.5
    assert values.max() > values.min()


def test_table_names_what_there_is():
    assert set(facts.table()) <= set(ENTRIES)
    assert all(
        said <= {"use", "avoid", *facts.LIBRARIES} for said in map(set, facts.table().values())
    )


def test_facts():
    assert facts.elsewhere("huber_loss")["keras"] == "Huber"
    assert facts.elsewhere("huber_loss")["optax"] == "optax.losses.huber_loss"
    wrong = facts.wrong("softmax_cross_entropy_with_integer_labels")
    assert any("optax" in dict(row["others"]) for row in wrong)
    assert {row["who"] for row in facts.costs("huber_loss")} >= {"jaxloss", "optax"}


def test_page():
    text = pages.page(ENTRIES["huber_loss"], picture=True)
    for part in (
        "# huber_loss",
        "huber_loss.svg",
        "**Use it**",
        "## Names elsewhere",
        "## What it costs",
    ):
        assert part in text
