"""Linear losses with a symbolic number of tokens: one program for all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxloss

CE = jaxloss.linear_cross_entropy
D, V = 5, 7
LOSSES = {
    "default": CE,
    "tokens": partial(CE, implementation="tokens", chunk_size=3),
    "vocab": partial(CE, implementation="vocab", chunk_size=3),
    "dense": partial(CE, implementation="dense"),
    "none": partial(CE, reduction="none", chunk_size=3),
    "parts": lambda *a: CE(*a, reduction="parts", ignore_index=0, chunk_size=3).value,
    "statistics": lambda *a: jaxloss.linear_statistics(*a, chunk_size=3).log_prob,
    "distillation": lambda h, w, y: jaxloss.linear_distillation(h, w, 2 * h, w, chunk_size=3),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.few(4)
def test_a_symbolic_batch_of_sequences(name):
    def total(h, w, y):
        return jnp.sum(LOSSES[name](h, w, y))

    run = jax.jit(jax.value_and_grad(total, (0, 1)))
    (b,) = export.symbolic_shape("b")
    of = jax.ShapeDtypeStruct
    shapes = of((b, 2, D), jnp.float32), of((D, V), jnp.float32), of((b, 2), jnp.int32)
    again = export.export(run)(*shapes)
    for n in (1, 4):
        rng = np.random.default_rng(n)
        hidden, weight = rng.normal(size=(n, 2, D)), rng.normal(size=(D, V))
        operands = np.float32(hidden), np.float32(weight), rng.integers(0, V, (n, 2), np.int32)
        got, want = again.call(*operands), run(*operands)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)
