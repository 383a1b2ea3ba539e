"""The code of `docs/training.md` runs, and does what the page says."""

import re

import jax
import numpy as np
import pytest

import jaxloss.keras
from tests.test_docs import ROOT, run_blocks

pytestmark = [
    pytest.mark.usefixtures("implicit_promotions"),
    # Of Keras's variables, when a model is saved.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

PAGE = "docs/training.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")


def run(heading, names):
    """Execute the code under a heading."""
    start = re.search(rf"^#+ {re.escape(heading)}\n", TEXT, re.M).end()
    end = re.compile(r"^#+ ", re.M).search(TEXT, start)
    run_blocks(PAGE, names, start, end.start() if end else None)
    return names


def test_keras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("Keras: compile and fit", {})
    losses = names["history"].history["loss"]
    assert losses[-1] < losses[0]
    loaded, x, y = names["loaded"], names["x"], names["y"]
    of = [m.evaluate(x, y, verbose=0, return_dict=True)["loss"] for m in (loaded, names["model"])]
    assert of[0] == of[1]

    losses = run("Keras: add_loss", names)["history"].history["loss"]
    assert losses[-1] < losses[0]
    for _ in range(2):
        names["model"](x)
        assert len(names["model"].losses) == 1


@pytest.mark.parametrize("framework", ["flax linen", "flax nnx", "equinox"])
def test_penalties(framework):
    names = run(framework, run("Penalties elsewhere: `total_loss`", {}))
    assert np.isfinite(names["value"])
    leaves = jax.tree.leaves(names["gradient"])
    assert {leaf.shape for leaf in leaves} >= {(3,), (16,)}
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


def test_names_on_the_page_exist():
    for name in re.findall(r"`jaxloss\.([a-z_A-Z]+)", TEXT):
        assert hasattr(jaxloss, name)
