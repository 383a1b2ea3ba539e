"""Every class of Keras's losses that takes logits, with a symbolic batch."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxloss.keras

OF_LOGITS = [
    cls
    for name in jaxloss.keras.__all__
    if isinstance(cls := getattr(jaxloss.keras, name), type)
    and issubclass(cls, jaxloss.keras.Loss)
    and "from_logits" in inspect.signature(cls).parameters
]


@pytest.mark.parametrize("cls", OF_LOGITS)
def test_a_symbolic_batch_of_logits(cls):
    loss = cls(from_logits=True)
    sparse = cls is jaxloss.keras.SparseCategoricalCrossentropy
    run = jax.jit(jax.value_and_grad(lambda x, y: loss(y, x)))
    (b,) = export.symbolic_shape("b")
    labels = ((b,), jnp.int32) if sparse else ((b, 3), jnp.float32)
    shapes = jax.ShapeDtypeStruct((b, 3), jnp.float32), jax.ShapeDtypeStruct(*labels)
    again = export.export(run)(*shapes)
    for n in (1, 6):
        x = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
        k = np.arange(n, dtype=np.int32) % 3
        y = k if sparse else np.eye(3, dtype=np.float32)[k]
        for got, want in zip(again.call(x, y), run(x, y), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
