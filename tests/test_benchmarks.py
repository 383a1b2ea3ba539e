"""The facts script runs, compares equal work, and reports every case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import facts


@pytest.fixture(autouse=True)
def defaults():
    """optax does not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_facts(capsys):
    rows = facts.main(["--scale", "1024", "--repeats", "1"])
    assert len(rows) == 7 + 8
    assert "jaxloss" in capsys.readouterr().out


@pytest.mark.parametrize("losses, classes", [(facts.BINARY, None), (facts.SOFTMAX, 10)])
def test_the_programs_compute_the_same(losses, classes):
    x = jax.random.normal(jax.random.key(0), (64,) if classes is None else (64, classes))
    y = jnp.arange(64) % (classes or 2)
    y = y if classes else y.astype(jnp.float32)
    value, gradient = facts.returned(losses["jaxloss"])(x, y)
    for f in losses.values():
        np.testing.assert_allclose(facts.returned(f)(x, y)[0], value, rtol=1e-6)
        np.testing.assert_allclose(facts.returned(f)(x, y)[1], gradient, rtol=1e-4, atol=1e-8)
        squares = facts.consumed(f)(x, y)[1]
        np.testing.assert_allclose(squares, np.sum(np.square(gradient)), rtol=1e-5)
