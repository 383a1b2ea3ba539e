"""Regression losses at kinks and extremes, peers' failures, printed values, identities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxloss
from tests.test_properties import close

f32 = lambda *v: jnp.array(v, jnp.float32)
number = st.floats(-1e4, 1e4, width=32)
ELEMENTWISE = [
    jaxloss.squared_error,
    jaxloss.l2_loss,
    jaxloss.absolute_error,
    jaxloss.huber_loss,
    jaxloss.log_cosh,
]


def second(fn, *args):
    return jax.grad(jax.grad(fn))(*args)


@pytest.mark.parametrize("fn", ELEMENTWISE)
def test_targets_default_to_zero(fn):
    x = f32(-2, 0, 3)
    np.testing.assert_array_equal(fn(x), fn(x, 0))
    np.testing.assert_array_equal(fn(x), fn(x, jnp.zeros(3)))


@pytest.mark.parametrize("fn", [*ELEMENTWISE, jaxloss.quantile_loss])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_gradient_of_an_exact_fit(fn, zero):  # Keras: MAE has -1
    assert jax.grad(fn)(zero, 0.0) == 0
    assert jax.jvp(lambda p: fn(p, 0.0), (zero,), (1.0,))[1] == 0


def test_wing_at_its_kinks():
    fn = jaxloss.wing_loss
    for fit in (0.0, -0.0):
        assert jax.grad(fn)(fit, 0.0) == 0
    options = {"width": 3.0, "curvature": 1.0}
    for p in (3.0, -3.0):  # Between 3 / (1 + 3) and 1.
        assert jax.grad(fn)(p, 0.0, **options) == np.sign(p) * 0.875
        by_width = jax.grad(lambda w, p=p: fn(p, 0.0, width=w, curvature=1.0))(3.0)
        np.testing.assert_allclose(by_width, math.log(4) - 0.125, rtol=1e-6)
    assert jax.grad(fn)(2.0, 0.0, **options) == 1 and jax.grad(fn)(4.0, 0.0, **options) == 1


def test_wing_by_its_settings():
    """Against differences, and at an infinite error finite."""

    def f(w, c, p):
        return jaxloss.wing_loss(p, 0.0, width=w, curvature=c)

    with jax.enable_x64(True):
        for p in (0.5, -2.0, 7.0, -20.0):
            for i in (0, 1):
                at, h = np.array([4.0, 1.5]), 1e-6 * np.eye(2)[i]
                want = (f(*(at + h), p) - f(*(at - h), p)) / 2e-6
                np.testing.assert_allclose(jax.grad(f, i)(*at, p), want, rtol=1e-7)
    for i in (0, 1):
        assert np.isfinite(jax.grad(f, i)(4.0, 1.5, np.inf))


def test_kinks_have_the_mean_of_their_sides():
    grad = jax.grad(jaxloss.quantile_loss)
    assert grad(2.0, 2.0, quantile=0.75) == -0.25  # Between -.75 and .25.
    assert jax.grad(jaxloss.absolute_percentage_error)(2.0, 2.0) == 0


def test_huber_at_delta():  # optax: second derivative .25
    for p in (1.0, -1.0):
        assert jax.grad(jaxloss.huber_loss)(p, 0.0) == p
        assert second(jaxloss.huber_loss, p, 0.0) == 1
    assert second(jaxloss.huber_loss, np.nextafter(np.float32(1), np.float32(2)), 0.0) == 0


def test_huber_by_delta():
    by_delta = jax.grad(lambda d, p: jaxloss.huber_loss(p, 0.0, delta=d))
    assert by_delta(1.5, 4.0) == 2.5 and by_delta(1.5, 1.0) == 0


@pytest.mark.parametrize("x", [np.inf, -np.inf])
def test_infinite_predictions(x):
    sign = np.sign(x)
    linear = (jaxloss.absolute_error, jaxloss.huber_loss, jaxloss.log_cosh, jaxloss.wing_loss)
    for fn in linear:
        assert fn(x, 0.0) == np.inf and jax.grad(fn)(x, 0.0) == sign
    slope = jax.grad(jaxloss.quantile_loss)(x, 0.0, quantile=0.75)
    assert jaxloss.quantile_loss(x, 0.0, quantile=0.75) == np.inf
    assert slope == (0.25 if x > 0 else -0.75)
    assert jaxloss.squared_error(x, 0.0) == np.inf


def test_nan_survives_a_reduction():
    """XLA's CPU reductions drop NaN in a maximum."""
    x = jnp.ones((64, 128)).at[3, 5].set(jnp.nan)
    others = (jaxloss.quantile_loss, jaxloss.absolute_percentage_error, jaxloss.wing_loss)
    for fn in (*ELEMENTWISE, *others):
        step = jax.jit(jax.value_and_grad(lambda x, fn=fn: jnp.mean(fn(x, jnp.zeros_like(x)))))
        loss, gradient = step(x)
        assert np.isnan(loss) and np.isnan(gradient[3, 5])
        assert np.isnan(gradient).sum() == 1


def test_log_cosh_of_a_small_error():  # optax, Keras: 0; Keras in float16: negative
    np.testing.assert_allclose(jaxloss.log_cosh(1e-4), 5e-9, rtol=2e-7)
    assert jaxloss.log_cosh(jnp.float16(1e-3)) > 0


def test_half_precision_does_not_overflow():  # optax: inf
    for dtype in (jnp.float16, jnp.bfloat16):
        p = jnp.asarray(1e4, dtype)
        assert jaxloss.squared_error(p, 0) == float(p) ** 2
        assert jaxloss.huber_loss(p, 0) == float(p) - 0.5


def test_shapes_do_not_spread():  # optax's Huber: silently (2, 2)
    for fn in ELEMENTWISE:
        with pytest.raises(ValueError, match=r"\(2, 1\).*\(2,\)"):
            fn(jnp.zeros((2, 1)), jnp.zeros(2))


def test_percentage_of_a_zero_target():
    """By the floor, Keras's by default; without one infinite, or 0 for an exact fit."""
    ape = jaxloss.absolute_percentage_error
    np.testing.assert_allclose(ape(f32(0, 1e-7), f32(0, 0)), [0, 100], rtol=1e-6)
    np.testing.assert_array_equal(ape(f32(0, 1), f32(0, 0), epsilon=0.0), [0, np.inf])
    np.testing.assert_allclose(jax.grad(ape)(1.0, 0.0), 1e9, rtol=1e-6)
    by_floor = jax.grad(lambda e: ape(1.0, 0.0, epsilon=e))(0.5)
    np.testing.assert_allclose(by_floor, -400, rtol=1e-6)
    # Keras, mean_absolute_percentage_error: 50 for these.
    np.testing.assert_allclose(np.mean(ape(f32(1, 3), f32(2, 2))), 50, rtol=1e-6)


def test_squared_log_error_outside_its_domain():
    for p, t in ((-1.5, 1.0), (1.0, -1.5), (-2.0, -3.0)):
        assert np.isnan(jaxloss.squared_log_error(p, t))
        assert np.isnan(jax.grad(jaxloss.squared_log_error)(p, t))
    assert jaxloss.squared_log_error(-1.0, 1.0) == np.inf


@given(number, number)
def test_relations(p, t):
    loss = {fn: float(fn(p, t)) for fn in ELEMENTWISE}
    close(2 * loss[jaxloss.l2_loss], loss[jaxloss.squared_error])
    close(2 * float(jaxloss.quantile_loss(p, t)), loss[jaxloss.absolute_error])
    # Both lie between the parabola and the absolute value less its offset.
    size = loss[jaxloss.absolute_error]
    for fn, offset in ((jaxloss.huber_loss, 0.5), (jaxloss.log_cosh, math.log(2))):
        assert size - offset - 1e-6 * (1 + size) <= loss[fn] <= loss[jaxloss.l2_loss] * (1 + 1e-6)
    for fn in ELEMENTWISE:
        close(loss[fn], fn(t, p))


@given(st.lists(number, min_size=3, max_size=9), st.sampled_from([0.125, 0.5, 0.75]))
def test_a_quantile_is_least_at_the_quantile(values, q):
    values = np.sort(np.float32(values))
    losses = [
        float(jnp.sum(jaxloss.quantile_loss(jnp.full(len(values), v), values, quantile=q)))
        for v in values
    ]
    best = losses[math.ceil(q * len(values)) - 1]
    assert best <= min(losses) + 1e-5 * (1 + abs(min(losses)))
