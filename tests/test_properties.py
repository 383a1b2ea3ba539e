"""Identities between losses, limits, symmetries and optima, on random inputs."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxloss

settings.register_profile("jaxloss", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("jaxloss")

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


@given(logit, label)
def test_symmetry_of_the_two_classes(x, z):
    close(bce(x, z), bce(-x, np.float32(1) - np.float32(z)), abs(x))


@given(logit, label)
def test_minimum_is_at_the_label(x, z):
    entropy = jaxloss.binary_cross_entropy(z, z)
    assert bce(x, z) >= entropy * (1 - 1e-5) - 1e-6


@given(rows, st.integers(0, 4))
def test_integer_is_one_hot(x, k):
    one_hot = np.eye(5, dtype=np.float32)[k]
    close(sparse(x, k), dense(x, one_hot))
    close(jax.grad(sparse)(x, k), jax.grad(dense)(x, one_hot))


@given(rows, st.integers(0, 4), st.sampled_from([-1000.0, 64.0, 4096.0]))
def test_common_offset_changes_nothing(x, k, offset):
    x = np.round(x)  # So that adding the offset is exact.
    close(sparse(x, k), sparse(x + np.float32(offset), k))


@given(rows, st.integers(0, 4), st.permutations(range(5)))
def test_order_of_classes_does_not_matter(x, k, order):
    close(sparse(x, k), sparse(x[np.array(order)], order.index(k)))


@given(rows, st.integers(0, 4))
def test_gradient_sums_to_zero(x, k):
    close(jnp.sum(jax.grad(sparse)(x, k)), 0)


@given(rows, st.integers(0, 4), st.floats(0, 1, width=32))
def test_smoothing_is_smoothed_labels(x, k, s):
    y = jaxloss.smooth_labels(np.eye(5, dtype=np.float32)[k], s)
    close(sparse(x, k, label_smoothing=s), dense(x, y), 80)


@given(rows, st.integers(0, 4), rows, rows)
def test_hessian_is_positive_semidefinite(x, k, u, _):
    curvature = jnp.vdot(u, jax.jvp(lambda v: jax.grad(sparse)(v, k), (x,), (u,))[1])
    assert curvature >= -1e-4 * np.vdot(u, u)


@given(rows, st.integers(0, 4))
def test_poly_and_focal_reduce_to_cross_entropy(x, k):
    y = np.eye(5, dtype=np.float32)[k]
    close(jaxloss.poly_loss_cross_entropy(x, y, epsilon=0.0), dense(x, y))
    close(jaxloss.softmax_focal_loss(x, y, gamma=0.0), dense(x, y))


@given(logit, label, st.floats(0.25, 8, width=32))
def test_pos_weight_is_linear(x, z, w):
    one, two = bce(x, z), bce(x, z, pos_weight=2.0)
    close(bce(x, z, pos_weight=w), one + (w - 1) * (two - one), 8 * (1 + abs(x)))
