"""Binary cross-entropies: probabilities that are none, symmetry, the minimum, weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxloss
from tests.test_properties import bce, close, label, logit


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
@pytest.mark.parametrize("p,z", [(-0.5, False), (1.5, True)])
def test_probability_out_of_the_domain(wrap, p, z):
    p, z = jnp.array([p]), jnp.array([z])
    assert np.isnan(wrap(jaxloss.binary_cross_entropy)(p, z)).all()


@given(logit, label)
def test_symmetry_of_the_two_classes(x, z):
    close(bce(x, z), bce(-x, np.float32(1) - np.float32(z)), abs(x))


@given(logit, label)
def test_minimum_is_at_the_label(x, z):
    entropy = jaxloss.binary_cross_entropy(z, z)
    assert bce(x, z) >= entropy * (1 - 1e-5) - 1e-6


@given(logit, label, st.floats(0.25, 8, width=32))
def test_pos_weight_is_linear(x, z, w):
    one, two = bce(x, z), bce(x, z, pos_weight=2.0)
    close(bce(x, z, pos_weight=w), one + (w - 1) * (two - one), 8 * (1 + abs(x)))


@pytest.mark.parametrize("outer", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("inner", [jax.grad, jax.jacfwd])
def test_the_second_derivative_adds_weights_before_it_underflows(outer, inner):
    """(a + b) * sigmoid(x) * sigmoid(-x), of which b's part alone is flushed to zero."""
    second = jax.jit(outer(inner(jaxloss.sigmoid_binary_cross_entropy)))
    np.testing.assert_allclose(second(85.47307, 0.15494637), 7.5773634e-38, rtol=1e-6)


def test_smoothing_keeps_a_label_s_digits():
    """1 - z of a smoothed label near one is the small number that it is."""
    x, s = jnp.float32(50), 2.0**-20
    loss = jaxloss.sigmoid_binary_cross_entropy(x, 1.0, label_smoothing=s)
    np.testing.assert_allclose(loss, 50 * s / 2, rtol=1e-6)
