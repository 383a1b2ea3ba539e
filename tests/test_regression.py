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
    for fn in (jaxloss.absolute_error, jaxloss.huber_loss, jaxloss.log_cosh):
        assert fn(x, 0.0) == np.inf and jax.grad(fn)(x, 0.0) == sign
    slope = jax.grad(jaxloss.quantile_loss)(x, 0.0, quantile=0.75)
    assert jaxloss.quantile_loss(x, 0.0, quantile=0.75) == np.inf
    assert slope == (0.25 if x > 0 else -0.75)
    assert jaxloss.squared_error(x, 0.0) == np.inf


def test_nan_survives_a_reduction():
    """XLA's CPU reductions drop NaN in a maximum."""
    x = jnp.ones((64, 128)).at[3, 5].set(jnp.nan)
    for fn in (*ELEMENTWISE, jaxloss.quantile_loss, jaxloss.absolute_percentage_error):
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


def test_poisson_printed_values():
    """The likelihood itself: exp(-loss) sums to one over the counts."""
    counts = jnp.arange(60)
    for log_input, x in ((True, math.log(7.5)), (False, 7.5)):
        loss = jaxloss.poisson_nll(jnp.full(60, x), counts, log_input=log_input, full=True)
        np.testing.assert_allclose(jnp.sum(jnp.exp(-loss)), 1, rtol=1e-5)
    # TensorFlow, log_poisson_loss: exp(c) - z * c.
    np.testing.assert_allclose(jaxloss.poisson_nll(1.0, 2), math.e - 2, rtol=1e-6)


def test_poisson_at_the_edges():
    rate = lambda r, t: jaxloss.poisson_nll(r, t, log_input=False)
    assert rate(0.0, 0) == 0 and rate(0.0, 1) == np.inf
    assert jax.grad(rate)(0.0, 0.0) == 1
    assert np.isnan(rate(-1.0, 0)) and np.isnan(jax.grad(rate)(-1.0, 0.0))
    assert jaxloss.poisson_nll(-np.inf, 0) == 0 and jaxloss.poisson_nll(-np.inf, 2) == np.inf


def test_gaussian_density_integrates_to_one():
    grid = jnp.linspace(-40, 40, 4001)
    nll = jaxloss.gaussian_nll(jnp.zeros(4001), grid, 9.0, full=True)
    np.testing.assert_allclose(jnp.sum(jnp.exp(-nll)) * 0.02, 1, rtol=1e-5)


def test_gaussian_variance():
    nll = lambda v, e: jaxloss.gaussian_nll(e, 0.0, v)
    np.testing.assert_allclose(nll(1e30, 1e20), math.log(1e30) / 2 + 5e9, rtol=1e-6)
    assert np.isnan(nll(-1.0, 1.0)) and np.isnan(jax.grad(nll)(-1.0, 1.0))
    assert jax.grad(nll)(4.0, 2.0) == 0  # Least where it is the squared error.


SCALES = [1.2e-38, 1e-30, 1e-25, 1e-9, 1, 1e9, 1e20, 1e30, 1e38]


@pytest.mark.parametrize("scale", SCALES[1:])
def test_cosine_of_any_scale(scale):  # optax: inf at 1e-25, 0 at 1e20
    a, b = f32(3, 4, 0) / 4 * scale, f32(4, 3, 0)
    np.testing.assert_allclose(jaxloss.cosine_similarity(a, b), 0.96, rtol=1e-6)
    np.testing.assert_allclose(jaxloss.cosine_similarity(b, a), 0.96, rtol=1e-6)
    np.testing.assert_allclose(jaxloss.cosine_distance(a, a * 2), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("fn", "sign"), [(jaxloss.cosine_similarity, 1), (jaxloss.cosine_distance, -1)]
)
@pytest.mark.parametrize("beside", [1, 0])  # A row of zeros is what no shortcut does for.
@pytest.mark.parametrize("scale", SCALES)
def test_gradient_of_cosine_of_any_scale(scale, beside, fn, sign):
    """Also of rows beside those of another scale; and of targets of another scale."""
    p, t = np.tile([[1.5], [2], [-1]], 3).T, np.float32([[2, 2.5, -2], [1.5, 2, -1], [2, -1, 2]])
    a, b = p / math.sqrt(7.25), t / np.linalg.norm(t, axis=1, keepdims=True)
    cosine = np.sum(a * b, 1, keepdims=True)
    rows, last = (cosine, beside) if sign == 1 else (1 - cosine, 1 - beside)
    run = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(fn(x, y))))
    for others in SCALES:
        x, y = (np.pad(v * s, [(0, 1), (0, 0)]) for v, s in ((p, scale), (t, others)))
        x[-1] = y[-1] = beside
        value, gradient = run(np.float32(x), np.float32(y))
        np.testing.assert_allclose(value, np.sum(rows) + last, rtol=1e-6)
        slope = np.float64(gradient[:-1]) * scale * math.sqrt(7.25)
        # What is less than the least number is none.
        least = 2e-38 * scale * math.sqrt(7.25)
        np.testing.assert_allclose(slope, sign * (b - a * cosine), atol=5e-7 + least)


def test_cosine_of_half_precision():  # optax: 0
    v = jnp.array([300, 300], jnp.float16)
    np.testing.assert_allclose(jaxloss.cosine_similarity(v, v), 1, rtol=1e-6)


def test_cosine_of_a_zero_vector():  # optax, and Keras's gradient: NaN
    zero, v = jnp.zeros(3), f32(1, 2, 2)
    assert jaxloss.cosine_similarity(zero, v) == 0 and jaxloss.cosine_distance(zero, v) == 1
    for argnum in (0, 1):
        gradient = jax.grad(jaxloss.cosine_similarity, argnum)
        np.testing.assert_array_equal(gradient(zero, zero), 0)
        np.testing.assert_array_equal(jax.jacfwd(gradient)(zero, zero), 0)
    np.testing.assert_array_equal(jax.grad(jaxloss.cosine_similarity)(zero, v), 0)


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-6])
def test_almost_parallel_vectors(gap):
    """The distance is not lost beside the one; rounded unit vectors are off by eps / angle."""
    a, b = np.float32([3, 4]), np.float32([3, 4 + 4 * gap])
    (x, y), (u, v) = np.float64(a), np.float64(b)
    angle = math.asin((x * v - y * u) / (math.hypot(x, y) * math.hypot(u, v)))
    np.testing.assert_allclose(
        jaxloss.cosine_distance(a, b), 2 * math.sin(angle / 2) ** 2, rtol=1e-6 + 4e-7 / angle
    )
    slope = angle / 5 * np.array([4, -3]) / 5  # Of small angles.
    gradient = jax.grad(jaxloss.cosine_distance)(a, b)
    np.testing.assert_allclose(gradient, slope, rtol=angle + 4e-7 / angle)


def test_cosine_floor():
    """optax's epsilon is the smallest squared norm."""
    v = f32(3e-4, 4e-4)
    np.testing.assert_allclose(jaxloss.cosine_similarity(v, v, epsilon=1e-6), 0.25, rtol=1e-6)
    assert jaxloss.cosine_similarity(jnp.zeros(2), v, epsilon=1e-6) == 0


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


@given(st.floats(-5, 5, width=32), st.floats(0.125, 20, width=32))
def test_likelihoods_are_least_at_the_truth(x, t):
    at_truth = jaxloss.poisson_nll(math.log(t), t)
    assert jaxloss.poisson_nll(x, t) >= at_truth - 1e-5 * (1 + abs(at_truth))
    assert jaxloss.gaussian_nll(x, 0.0, t) >= jaxloss.gaussian_nll(0.0, 0.0, t)
