"""Losses of scores, margin and Fenchel-Young: infinities, ties, excluded classes, relations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxloss
from tests.test_properties import close

f32 = lambda *v: jnp.array(v, jnp.float32)
score = st.floats(-50, 50, width=32)
rows = hnp.arrays(np.float32, 5, elements=st.floats(-8, 8, width=16))
MULTICLASS = [
    jaxloss.multiclass_hinge_loss,
    jaxloss.multiclass_perceptron_loss,
    jaxloss.multiclass_sparsemax_loss,
]


@pytest.mark.parametrize("t", [1.0, -1.0])
def test_infinite_scores(t):
    x = t * np.inf
    binary = (jaxloss.hinge_loss, jaxloss.squared_hinge_loss, jaxloss.perceptron_loss)
    for fn in (*binary, lambda x, t: jaxloss.sparsemax_loss(x, t > 0)):
        assert fn(x, t) == 0 and fn(-x, t) == np.inf
    assert jax.grad(jaxloss.hinge_loss)(x, t) == 0
    assert jax.grad(jaxloss.hinge_loss)(-x, t) == -t


def test_nan_survives_a_reduction():
    x = jnp.ones((64, 128)).at[3, 5].set(jnp.nan)
    for fn in (jaxloss.hinge_loss, jaxloss.squared_hinge_loss, jaxloss.perceptron_loss):
        loss, gradient = jax.jit(jax.value_and_grad(lambda x, fn=fn: jnp.mean(fn(x, -1))))(x)
        assert np.isnan(loss) and np.isnan(gradient).sum() == 1
    for fn in MULTICLASS:
        step = jax.jit(jax.value_and_grad(lambda x, fn=fn: jnp.mean(fn(x, jnp.zeros(64, int)))))
        loss, gradient = step(x)
        assert np.isnan(loss) and np.all(np.isnan(gradient[3])) and np.isnan(gradient).sum() == 128


@pytest.mark.parametrize("fn", MULTICLASS)
def test_ties_share_the_gradient(fn):
    gradient = jax.grad(fn)(f32(2, 2, 0), 2)
    assert gradient[0] == gradient[1] == 0.5
    np.testing.assert_array_equal(gradient, jax.jacfwd(fn)(f32(2, 2, 0), 2))


@pytest.mark.parametrize("fn", MULTICLASS)
def test_excluded_classes(fn):
    assert fn(f32(1, -np.inf, -np.inf), 0) == 0
    assert fn(f32(1, 0, -np.inf), 2) == np.inf
    assert fn(f32(1, 0, -np.inf), 0) == fn(f32(1, 0), 0)
    for label in range(3):
        assert np.all(np.isfinite(jax.grad(fn)(f32(1, 0, -np.inf), label)))


def test_one_class_costs_nothing():
    for fn in MULTICLASS:
        assert fn(f32(3), 0) == 0 and jax.grad(fn)(f32(3), 0) == 0


@given(score, st.sampled_from([-1.0, 1.0]))
def test_order_of_the_hinges(x, t):
    hinge, perceptron = jaxloss.hinge_loss(x, t), jaxloss.perceptron_loss(x, t)
    sparse = jaxloss.sparsemax_loss(x, (t + 1) / 2)
    close(jaxloss.squared_hinge_loss(x, t), hinge**2, 3e3)
    assert perceptron <= sparse <= hinge
    close(jaxloss.hinge_loss(x, t), jaxloss.hinge_loss(-x, -t))


@given(rows, st.integers(0, 4))
def test_multiclass(s, k):
    hinge, perceptron, sparse = (fn(s, k) for fn in MULTICLASS)
    assert 0 <= perceptron <= hinge <= perceptron + 1
    assert perceptron <= sparse + 1e-6
    for fn in MULTICLASS:
        close(fn(s + 32, k), fn(s, k), 30)
        gradient = jax.grad(fn)(s, k)
        close(jnp.sum(gradient), 0)
        assert gradient[k] <= 0
    lead = np.max(np.delete(s, k)) - s[k]
    assert (lead <= -1) == (hinge == 0)


@given(rows, rows, st.integers(0, 4), st.floats(0, 1, width=16))
def test_convexity(a, b, k, w):
    for fn in MULTICLASS:
        middle = fn(w * a + (1 - w) * b, k)
        assert middle <= w * fn(a, k) + (1 - w) * fn(b, k) + 1e-4
