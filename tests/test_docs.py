"""The Python blocks of the documents run, in order, as one program."""

import re
from pathlib import Path

import jax
import pytest

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
