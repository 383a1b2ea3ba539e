"""Categorical cross-entropies: probabilities that are none, and identities on random rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxloss
from tests.test_properties import close, dense, rows, sparse


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_negative_probability_with_labels_made_in_the_same_jit(wrap):
    p = jnp.array([[0.5, -0.25, 0.75]])
    f = lambda p: jaxloss.categorical_cross_entropy(p, jax.nn.one_hot(jnp.array([0]), 3))
    assert np.isnan(wrap(f)(p)).all()


def test_integer_probability_row_with_negative_entry():
    p = jnp.array([[0.5, -0.25, 0.75]])
    assert np.isnan(jaxloss.categorical_cross_entropy_with_integer_labels(p, jnp.array([0]))).all()


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
