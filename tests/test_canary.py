"""The naive formulas still go wrong under plain autodiff, so the rules are still needed."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests.cases._sigmoid import naive_sigmoid
from tests.cases.categorical import naive_integer


def test_naive_sigmoid_at_zero():
    """abs'(0) = 1 and maximum'(0) = 1/2 add up to a gradient of 0; the truth is 1/2."""
    assert jax.grad(naive_sigmoid)(0.0, 0.0) == 0
    assert jax.grad(jaxloss.sigmoid_binary_cross_entropy)(0.0, 0.0) == 0.5


def test_naive_probability_tail():
    """p * (1 - p) is 0 in float32 from x = 17 on; the truth is sigmoid(x) * sigmoid(-x)."""

    def naive(x):
        return -jnp.log(jax.nn.sigmoid(x))

    assert jax.grad(jax.grad(naive))(30.0) == 0
    exact = jax.grad(jax.grad(jaxloss.sigmoid_binary_cross_entropy))(30.0, 1.0)
    np.testing.assert_allclose(exact, 9.3576e-14, rtol=1e-4)


def test_naive_softmax_overflows():
    x = jnp.array([100.0, 0.0, -10.0])
    assert np.isinf(naive_integer(x, jnp.array(2)))
    assert jaxloss.softmax_cross_entropy_with_integer_labels(x, 2) == 110


def test_log_softmax_loses_the_tail():
    x = jnp.array([20.0, 0.0])
    assert -jax.nn.log_softmax(x)[0] == 0
    assert jaxloss.softmax_cross_entropy_with_integer_labels(x, 0) > 0
