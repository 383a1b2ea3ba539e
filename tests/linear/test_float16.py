"""float16: neither the 1 / N of a mean nor a loss scale is rounded in before the other arrives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from tests import declared

# Every linear loss, by the weight that its rows share.
LINEAR = [fn for fn in declared.FUNCTIONS if "weight" in declared.takes(fn).operands]
SWEEPS = [
    pytest.param(fn, settings, id=f"{fn.__name__}-{'-'.join(map(str, settings.values()))}")
    for fn in LINEAR
    for settings in (
        {"chunk_size": 300},
        {"reduction": "none"},
        *(
            {"implementation": sweep}
            for sweep in ("tokens", "stored", "vocab", "dense")
            if fn is jaxloss.linear_cross_entropy
        ),
    )
]
N, D, V, SCALE = 1024, 4, 300, 2.0**14


@pytest.mark.parametrize("implementation", ["tokens", "stored", "vocab"])
@pytest.mark.few(2)
def test_a_scale_reaches_a_class_of_a_large_vocabulary(implementation):
    hidden, weight = jnp.ones((1024, 2), jnp.float16), jnp.zeros((2, 65536), jnp.float16)

    def scaled(weight):
        loss = partial(jaxloss.linear_cross_entropy, implementation=implementation)
        return 2.0**15 * loss(hidden, weight, jnp.zeros(1024, jnp.int32))

    gradient = jax.jit(jax.grad(scaled))(weight)
    assert gradient.dtype == jnp.float16
    np.testing.assert_array_equal(gradient[0, 1:], 0.5)


def operands(fn, dtype):
    rng = np.random.default_rng(0)
    kinds = {k: o.kind for k, o in declared.takes(fn).operands.items()}
    shapes = {"row": (N, D), "shared": (D, V)}
    floats = {
        k: jnp.asarray(rng.normal(size=shapes[kind]).astype(np.float16), dtype)
        for k, kind in kinds.items()
        if kind in shapes
    }
    # Most classes have small gradients only.
    labels = jnp.asarray(rng.integers(0, 10, N).astype(np.int32))
    return floats, {k: labels for k, kind in kinds.items() if kind == "labels"}


def scaled_gradients(fn, floats, others, **settings):
    def scaled(floats):
        losses = fn(**floats, **others, **settings)
        return SCALE * jnp.sum(losses) / (N if losses.ndim else 1)

    return jax.jit(jax.grad(scaled))(floats)


@pytest.mark.parametrize(("fn", "settings"), SWEEPS)
def test_scaled_gradients(fn, settings):
    check_scaled_gradients(fn, settings)


def test_chunks_are_stored_in_one_unit():
    # Each chunk has every other token.
    weights = np.tile(np.float32([1, 2**-9]), N // 2)
    check_scaled_gradients(
        jaxloss.linear_cross_entropy,
        {"implementation": "stored", "chunk_size": N // 2},
        weights=weights,
    )


def check_scaled_gradients(fn, settings, **given):
    got = scaled_gradients(fn, *operands(fn, jnp.float16), **settings, **given)
    want = scaled_gradients(fn, *operands(fn, jnp.float32), **given)
    for name, g in got.items():
        assert g.dtype == jnp.float16
        g = np.asarray(g, np.float32)
        # The gradients of the logits are rounded once, the results once more. Of a token, and of
        # a class, the largest entry says what is small.
        eps = float(jnp.finfo(jnp.float16).eps)
        top = np.max(np.abs(want[name]), 0 if "weight" in name else 1, keepdims=True)
        assert np.max(np.abs(g - want[name]) / top) < 2 * eps
