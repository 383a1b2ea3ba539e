"""The Python blocks of the documents run, in order, as one program."""

import re
from pathlib import Path

import jax
import pytest

pytest.importorskip("optax", reason="needs jaxloss[examples]")

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["docs/linear.md"])
def test_blocks_run(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert blocks
    names = {"__name__": name}
    # JAX as users have it: optax itself needs implicit promotions.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            # So that an error names the line of the document.
            before = "\n" * text.count("\n", 0, block.start(1))
            exec(compile(before + block[1], ROOT / name, "exec"), names)
