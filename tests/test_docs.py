"""The Python blocks of the documents run, in order, as one program."""

import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxloss
from website import catalog

pytest.importorskip("optax", reason="needs jaxloss[examples]")

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_blocks(page, names, start=0, end=None):
    """Execute the code of a page, or of a part of its text."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text, start, len(text) if end is None else end))
    assert blocks
    for block in blocks:
        # So that an error names the line of the document.
        before = "\n" * text.count("\n", 0, block.start(1))
        exec(compile(before + block[1], path, "exec"), names)


@pytest.mark.parametrize("name", ["docs/linear.md"])
def test_blocks_run(name):
    # JAX as users have it: optax itself needs implicit promotions.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run_blocks(name, {"__name__": name})


def test_readme(capsys):
    """The programs before the figures print what they say; the lines after them run."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    end = text.index("<!-- facts -->")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run_blocks("README.md", {"__name__": "readme"}, end=end)
        logits, hidden = np.ones((2, 3, 4), np.float32)
        names = {
            "jaxloss": jaxloss, "logits": logits, "bits": logits > 2, "weights": logits[:, 0],
            "mask": logits[:, 0] > 0, "hidden": hidden, "embeddings": hidden,
            "labels": np.arange(3),
        }  # fmt: skip
        run_blocks("README.md", names, end)
        assert np.isfinite(names["loss"])
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"^print\(.*\)  # (.*)$", text[:end], re.M)
    assert len(said) == len(printed) == 2
    np.testing.assert_allclose(numbers(printed[0]), numbers(said[0])[:1], rtol=2e-3)
    np.testing.assert_allclose(numbers(printed[1]), numbers(said[1]), rtol=2e-3)


def test_readme_lists_every_name_with_its_family():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## The losses") : text.index("Functions take predictions first")]
    rows = [set(re.findall(r"`(\w+)`", row)) for row in table.splitlines()]
    for family, entries in catalog.families().items():
        names = {entry.name for entry in entries}
        of_family = [row for row in rows if row & names]
        # The tools stand in several rows.
        assert names <= set().union(*of_family), family
        assert len(of_family) == 1 or family == catalog.TRAINING, family


def test_keras_page():
    y_pred = np.ones((2, 8, 256), np.float32)
    names = {
        "jnp": jax.numpy, "y_pred": y_pred, "y_true": np.zeros((2, 8), np.int32),
        "weights": np.ones(2, np.float32), "mask": np.ones((2, 8), bool),
        "config": {"class_name": "Cubic", "config": {"name": "cubic"}},
    }  # fmt: skip
    text = (ROOT / "docs/keras.md").read_text(encoding="utf-8")
    own = text.index("## Losses of your own")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run_blocks("docs/keras.md", names, end=own)
        run_blocks("docs/keras.md", names | {"y_true": y_pred, "mask": None}, own)


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e[-+]?\d+)?", text)]


@pytest.mark.slow
def test_training_steps(capsys):
    """What the steps print is what the page says, the wrong ways too."""
    pytest.importorskip("flax", reason="needs jaxloss[examples]")
    pytest.importorskip("equinox", reason="needs jaxloss[examples]")
    page, names = "docs/training.md", {"__name__": "training"}
    text = (ROOT / page).read_text(encoding="utf-8")
    end = text.index("## Keras: compile and fit")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run_blocks(page, names, end=end)
        wrong = jax.shard_map(names["wrong_mean"], **names["split"])
        wrong = wrong(names["params"], names["x"], names["y"])
    printed = capsys.readouterr().out.splitlines()
    code = "".join(block[1] for block in BLOCK.finditer(text, 0, end))
    # The comments behind the prints, or below them.
    said = re.findall(r"^print\(.*\)(?:  |\n)# (.*(?:\n#  .*)*)$", code, re.M)
    assert len(said) == len(printed)
    for line, comment in zip(printed, said, strict=True):
        memory = line.startswith("{1: ")
        np.testing.assert_allclose(numbers(line), numbers(comment), rtol=0.2 if memory else 0.02)
        if memory:
            whole, _, sixteenth = numbers(line)[1::2]
            assert sixteenth < whole / 10
    if jax.device_count() == 8:
        assert math.isclose(wrong, 2.5202, rel_tol=1e-4)
    whole = names["whole"]
    assert printed.count(f"{whole:.4f}") == 3
    for values in (names["nnx_values"], names["eqx_values"]):
        assert values[-1] < values[0] - 0.1
