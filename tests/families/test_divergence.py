"""Divergences: zeros, tails, peers' failures, identities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp, mpf

import jaxloss
from tests.test_properties import close

f32 = lambda *v: jnp.array(v, jnp.float32)
rows = hnp.arrays(np.float32, 5, elements=st.floats(-20, 20, width=32))
KL = [jaxloss.kl_divergence, jaxloss.generalized_kl_divergence, jaxloss.js_divergence]


def test_zero_target_under_a_prediction_of_minus_infinity():  # optax: NaN
    log_p, t = jnp.log(f32(0.25, 0.75, 0)), f32(0.5, 0.5, 0)
    want = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    np.testing.assert_allclose(jaxloss.kl_divergence(log_p, t), want, rtol=1e-6)
    np.testing.assert_allclose(
        jaxloss.kl_divergence_with_log_targets(log_p, jnp.log(t)), want, rtol=1e-6
    )
    for fn in KL:
        for derivative in (jax.grad(fn), jax.jacfwd(fn), jax.hessian(fn)):
            assert np.all(np.isfinite(derivative(log_p, t)))
    by_log_target = jax.grad(jaxloss.kl_divergence_with_log_targets, 1)
    assert by_log_target(log_p, jnp.log(t))[2] == 0


def test_gradient_by_a_zero_target():  # optax: NaN; the limit is -inf
    for fn in KL:
        gradient = jax.grad(fn, 1)(jnp.log(f32(0.5, 0.5)), f32(1, 0))
        assert np.isfinite(gradient[0]) and gradient[1] < -1e37
        # A tangent of zero stays zero beside it.
        tangent = jax.jvp(
            lambda t, fn=fn: fn(jnp.log(f32(0.5, 0.5)), t), (f32(1, 0),), (f32(1, 0),)
        )
        np.testing.assert_allclose(tangent[1], gradient[0], rtol=1e-6)


def test_impossible_predictions():
    log_p, t = f32(0, -np.inf), f32(0.5, 0.5)
    assert jaxloss.kl_divergence(log_p, t) == np.inf
    assert jaxloss.generalized_kl_divergence(log_p, t) == np.inf
    # 1/4 of 3 log 4/3 + log 2 each half: by hand.
    js = 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2) + math.log(4 / 3))
    np.testing.assert_allclose(jaxloss.js_divergence(log_p, t), js, rtol=1e-6)


def test_negative_targets_are_nan():
    for fn in KL:
        loss, gradient = jax.value_and_grad(fn)(f32(-1, -1), f32(0.5, -0.5))
        assert np.isnan(loss) and np.any(np.isnan(gradient))


@pytest.mark.parametrize("n", [10, 1000])
@pytest.mark.parametrize("bad", [-0.5, -1e-30, np.nan])
@pytest.mark.parametrize("fn", KL)
def test_a_bad_target_is_loud_in_its_own_row(fn, bad, n):
    """Also in a long row, whose sum of a CPU drops NaN in minima and maxima."""
    t = jax.nn.softmax(jax.random.normal(jax.random.key(0), (64, n)))
    log_p = jnp.log(t)
    t = t.at[5, 1].set(bad)
    run = jax.jit(jax.vmap(jax.value_and_grad(fn)))
    for batched in (run, jax.jit(lambda x, t: (fn(x, t), jax.grad(lambda x: fn(x, t).sum())(x)))):
        loss, gradient = batched(log_p, t)
        np.testing.assert_array_equal(np.isnan(loss), np.arange(64) == 5)
        np.testing.assert_array_equal(np.any(np.isnan(gradient), 1), np.arange(64) == 5)


@pytest.mark.parametrize("gap", [1e-2, 1e-4])
def test_close_distributions_keep_their_digits(gap):
    """JS is the square of the difference, which p log p terms of order one would drown."""
    # One term, of p = 1: of any other p, rounding its exponential is what remains.
    t = np.float32(1 - gap)
    a, b = mpf(1), mpf(float(t))
    exact = (a * mp.log(2 * a / (a + b)) + b * mp.log(2 * b / (a + b))) / 2
    np.testing.assert_allclose(jaxloss.js_divergence(f32(0), t[None]), float(exact), rtol=1e-6)


def test_distillation_of_a_sure_teacher_and_student():
    student, teacher = f32(30, 0), f32(20, 0)
    loss, gradient = jax.value_and_grad(jaxloss.distillation_loss)(student, teacher)
    q, p = 1 / (1 + np.exp(20.0)), 1 / (1 + np.exp(30.0))
    kl = q * np.log(q / p) + (1 - q) * (np.log1p(-q) - np.log1p(-p))
    np.testing.assert_allclose(loss, kl, rtol=1e-5)
    np.testing.assert_allclose(gradient, [q - p, p - q], rtol=1e-5)


@pytest.mark.parametrize("n", [3, 1000])
def test_distillation_of_students_that_almost_agree(n):
    """The square of the difference, not lost beside the entropies."""
    y, d = np.random.default_rng(0).normal(size=(2, n)).astype(np.float32)
    x = np.float32(y + 1e-3 * d)
    p, q = (np.exp(a - a.max()) for a in (np.float64(x), np.float64(y)))
    p, q = p / p.sum(), q / q.sum()
    exact = np.sum(q * np.log(q / p))
    np.testing.assert_allclose(jax.jit(jaxloss.distillation_loss)(x, y), exact, rtol=1e-3)


def test_distillation_of_excluded_classes():
    x, y = f32(1, 2, -np.inf), f32(0, 1, -np.inf)
    loss = jaxloss.distillation_loss
    np.testing.assert_allclose(loss(x, y), loss(x[:2], y[:2]), rtol=1e-6)
    for argnum in (0, 1):
        gradient = jax.grad(loss, argnum)(x, y)
        np.testing.assert_allclose(
            gradient[:2], jax.grad(loss, argnum)(x[:2], y[:2]), rtol=1e-5, atol=1e-7
        )
        assert gradient[2] == 0 and np.all(np.isfinite(jax.hessian(loss, argnum)(x, y)))
    assert loss(x, f32(0, 1, 0)) == np.inf


def test_distillation_by_the_temperature():
    x, y = f32(1, 0, -2), f32(0, 3, 1)
    loss = lambda t: jaxloss.distillation_loss(x, y, temperature=t)
    central = (loss(2.01) - loss(1.99)) / 0.02
    np.testing.assert_allclose(jax.grad(loss)(2.0), central, rtol=1e-3)
    # Hot, it is half the squared distance of the centred logits, by the number of classes.
    centred = (x - x.mean()) - (y - y.mean())
    np.testing.assert_allclose(loss(1e3), jnp.sum(centred**2) / 6, rtol=1e-2)


@given(rows, rows)
def test_divergences_vanish_only_at_equality(a, b):
    p, t = jax.nn.log_softmax(a), jax.nn.softmax(b)
    for fn in KL:
        assert fn(p, t) >= -1e-6
        close(fn(jnp.log(t), t), 0)
    close(jaxloss.distillation_loss(a, a), 0)
    assert jaxloss.js_divergence(p, t) <= math.log(2) * (1 + 1e-6)


@given(rows, rows)
def test_relations(a, b):
    p, t = jax.nn.log_softmax(a), jax.nn.softmax(b)
    close(jaxloss.js_divergence(p, t), jaxloss.js_divergence(jnp.log(t), jnp.exp(p)))
    entropy = jaxloss.softmax_cross_entropy(b, t)
    close(jaxloss.kl_divergence(p, t), jaxloss.softmax_cross_entropy(a, t) - entropy, 80)
    close(jaxloss.distillation_loss(a, b), jaxloss.kl_divergence(p, t), 80)
    m = 2.0 * t
    close(jaxloss.generalized_kl_divergence(p, m), jaxloss.kl_divergence(p, m) - 1, 80)
    np.testing.assert_array_equal(
        jaxloss.convex_kl_divergence(p, m), jaxloss.generalized_kl_divergence(p, m)
    )


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0])
def test_a_temperature_that_is_not_positive(temperature):
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="temperature must be in"):
        jaxloss.distillation_loss(x, x, temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be in"):
        jaxloss.linear_distillation(x, x.T, x, x.T, temperature=temperature)
