"""Arguments of any loss, by what it is declared to take."""

import inspect
from typing import Any

import numpy as np

import jaxloss
from jaxloss._core.declare import Declaration, declaration
from tests.cases._case import SAMPLES

# Every public function that says what it takes.
FUNCTIONS = [
    fn for name in jaxloss.__all__ if declaration(fn := getattr(jaxloss, name)) is not None
]
CLASSES = 5
# What one example has of each kind.
SHAPES: dict[str, tuple[int, ...]] = {
    "entries": (3,),
    "row": (CLASSES,),
    "number": (),
    "labels": (),
    "list": (CLASSES,),
    "pixels": (4, 2, CLASSES),
    "embeddings": (CLASSES,),
    "members": (CLASSES,),
    "sequence": (8, CLASSES),
    "shared": (CLASSES, CLASSES),
}
# Of the sequences, those that are shorter, or have no classes or those of each frame and label.
OF_SEQUENCES = {
    "logit_paddings": (8,), "labels": (3,), "label_paddings": (3,),
    "predictor": (4, CLASSES), "rnnt_loss.logits": (8, 4, CLASSES),
}  # fmt: skip


def takes(fn: Any) -> Declaration:
    found = declaration(fn)
    assert found is not None
    return found


def arguments(fn: Any, rng: np.random.Generator, n: int, *, every: bool = False) -> dict[str, Any]:
    """A well-behaved batch of n examples; `every` argument, or those without a default."""
    defaults = {k: p.default is not p.empty for k, p in inspect.signature(fn).parameters.items()}
    chosen = {k: v for k, v in takes(fn).operands.items() if every or not defaults[k]}
    return {name: _sample(fn, name, operand, rng, n) for name, operand in chosen.items()}


def _sample(fn, name, operand, rng, n):
    of_pixels = operand.kind == "labels" and takes(fn).has("pixels")
    shape = SHAPES["pixels"][:-1] if of_pixels else SHAPES[operand.kind]
    if operand.kind == "sequence":
        shape = OF_SEQUENCES.get(f"{fn.__name__}.{name}", OF_SEQUENCES.get(name, shape))
    shape = (4,) if operand.of == "box" else shape
    batch = () if operand.kind == "shared" else (n,)
    if operand.of == "integer":
        # Of a sequence, 0 is the blank.
        low = 1 if operand.kind == "sequence" else 0
        return rng.integers(low, CLASSES, (*batch, *shape)).astype(np.int32)
    if operand.of == "padding":
        return np.zeros((*batch, *shape), np.float32)
    return SAMPLES[operand.of](rng, (*batch, *shape)).astype(np.float32)
