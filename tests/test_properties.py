"""Identities between losses of several families, on random inputs."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxloss

bce = jaxloss.sigmoid_binary_cross_entropy
sparse = jaxloss.softmax_cross_entropy_with_integer_labels
dense = jaxloss.softmax_cross_entropy
logit = st.floats(-60, 60, width=32)
label = st.floats(0, 1, width=32)
rows = hnp.arrays(np.float32, 5, elements=st.floats(-40, 40, width=32))


def close(a, b, scale=1.0):
    np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-6 * scale)


@given(logit, label)
def test_focal_with_gamma_zero_is_cross_entropy(x, z):
    close(jaxloss.sigmoid_focal_loss(x, z, gamma=0), bce(x, z))


@given(logit, st.integers(0, 1))
def test_binary_is_two_class_softmax(x, z):
    close(bce(x, z), sparse(jnp.array([0, x], jnp.float32), z))


@given(rows, st.integers(0, 4))
def test_poly_and_focal_reduce_to_cross_entropy(x, k):
    y = np.eye(5, dtype=np.float32)[k]
    close(jaxloss.poly_loss_cross_entropy(x, y, epsilon=0.0), dense(x, y))
    close(jaxloss.softmax_focal_loss(x, y, gamma=0.0), dense(x, y))
