"""Cross-entropies of a linear layer, without its logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from benchmarks.failures._failure import Failure, compared
from benchmarks.peers import module
from benchmarks.works import OURS

tokamax: Any = module("tokamax")


def _tokamax(h, w, k):
    return tokamax.linear_softmax_cross_entropy_loss(h, k, w, reduction="mean")


def _tokamax_pallas(h, w, k):
    from jax.experimental.pallas import tpu

    with tpu.force_tpu_interpret_mode():
        return tokamax.linear_softmax_cross_entropy_loss(
            h, k, w, reduction="mean", implementation="mosaic_tpu"
        )


LOSSES = {
    OURS: jaxloss.linear_cross_entropy,
    "tokamax": _tokamax,
    "tokamax, Pallas TPU interpreted": _tokamax_pallas,
}
rng = np.random.default_rng(0)
H, W = rng.normal(size=(2, 128, 128)).astype(np.float32) / 8
K = np.arange(128, dtype=np.int32)

FAILURES: list[Failure] = [
    compared(
        "linear cross-entropy of a layer that is all 0, 300 classes",
        np.log(300),
        lambda f: f(jnp.ones((128, 128)), jnp.zeros((128, 300)), K),
        LOSSES,
    ),
]
