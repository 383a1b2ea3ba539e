"""Robust regression: what the general loss contains, its extremes, kinks, asymmetric squares."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxloss
from tests.test_properties import close

robust = jaxloss.general_robust_loss
number = st.floats(-1e4, 1e4, width=32)
share = st.floats(0, 1, width=32)
both = jax.jit(jax.value_and_grad(lambda p, a: robust(p, 0.0, alpha=a, scale=1.0), (0, 1)))


def test_the_losses_it_contains():
    r = np.float32([-100, -3, -0.5, 0, 1e-3, 1, 7])
    z = np.float64(r) ** 2
    known = {
        2: z / 2,
        1: np.sqrt(z + 1) - 1,
        0: np.log1p(z / 2),
        -2: 2 * z / (z + 4),
        -np.inf: -np.expm1(-z / 2),
        4: z / 2 + z * z / 8,
        np.inf: np.expm1(z[-3:] / 2),
    }
    for alpha, want in known.items():
        x = r[-want.size :]
        np.testing.assert_allclose(robust(3 * x, 0, alpha=alpha, scale=3.0), want, 1e-5, 1e-9)


def test_infinite_and_huge_errors():
    for alpha, loss, slope in (
        (2.0, np.inf, 1e30), (1.0, 1e30, 1), (0.0, 2 * math.log(1e30) - math.log(2), 0),
        (-2.0, 2, 0), (-np.inf, 1, 0),
    ):  # fmt: skip
        value, (by_p, _) = both(1e30, alpha)
        np.testing.assert_allclose(value, loss, rtol=1e-5)
        np.testing.assert_allclose(by_p, slope, rtol=1e-5, atol=1e-12)
        at_infinity = robust(np.inf, 0.0, alpha=alpha, scale=1.0)
        np.testing.assert_allclose(at_infinity, np.inf if alpha >= 0 else loss)
    assert np.isnan(both(np.nan, 1.0)[0]) and np.isnan(both(np.nan, -np.inf)[1][0])


def test_derivative_by_alpha():
    assert both(3.0, 2.0)[1][1] == 0 and both(3.0, -np.inf)[1][1] == 0
    # To 0 it goes on from both sides, and to 2 it grows without a limit.
    by_alpha = lambda a: float(both(3.0, a)[1][1])
    np.testing.assert_allclose(by_alpha(0.0), (by_alpha(-1e-3) + by_alpha(1e-3)) / 2, rtol=1e-5)
    steps = [by_alpha(2 - 2.0**-k) - by_alpha(2 - 2.0 ** (4 - k)) for k in (14, 16, 18)]
    np.testing.assert_allclose(steps, math.log(16) * 9 / 4, rtol=1e-2)


def test_a_learned_shape_and_scale():
    """Gradient descent in both finds that half of the errors are outliers."""
    e = np.float32([0.1, -0.2, 0.1, 50, -80, 30])

    def objective(x):
        loss = robust(e, 0, alpha=2 * jax.nn.sigmoid(x[0]), scale=jnp.exp(x[1]))
        return jnp.mean(loss) + x[1]

    x = jnp.zeros(2)
    step = jax.jit(lambda x: x - 0.1 * jax.grad(objective)(x))
    for _ in range(200):
        x = step(x)
    assert objective(x) < objective(jnp.zeros(2)) and jax.nn.sigmoid(x[0]) < 0.2


def test_scale_must_be_positive():
    for bad in (0.0, -1.0):
        with pytest.raises(ValueError, match="scale must be in"):
            robust(1.0, 0.0, alpha=1.0, scale=bad)


@given(number, st.floats(-8, 4, width=32), st.floats(0, 4, width=32))
def test_it_grows_with_alpha_and_is_even(p, alpha, more):
    low, high = (robust(p, 0.0, alpha=a, scale=100.0) for a in (alpha, alpha + more))
    assert low <= high * (1 + 1e-5) + 1e-30
    assert low == robust(-p, 0.0, alpha=alpha, scale=100.0)


@given(number, st.floats(0.125, 100, width=32))
def test_smooth_l1_is_a_huber_loss(p, beta):
    want = jaxloss.huber_loss(p, 1.0, delta=beta) / beta
    close(jaxloss.smooth_l1_loss(p, 1.0, beta=beta), want, beta)


def test_smooth_l1_without_a_corner():
    """Also of a beta of 0: it is the absolute error."""
    run = jax.value_and_grad(lambda p, beta: jaxloss.smooth_l1_loss(p, 0.0, beta=beta), (0, 1))
    assert run(3.0, 0.0) == (3, (1, -0.5)) and run(-3.0, 0.0) == (3, (-1, -0.5))
    assert run(0.0, 0.0) == (0, (0, 0)) and run(0.0, 1.0) == (0, (0, 0))
    assert run(2.0, 2.0) == (1, (1, -0.5))
    second = jax.grad(jax.grad(jaxloss.smooth_l1_loss))
    assert second(1.0, 0.0) == second(-1.0, 0.0) == 1 and second(1.5, 0.0) == 0


def test_expectile_at_its_ends():
    loss = jaxloss.expectile_loss
    for q in (0.0, 0.25, 1.0):
        assert jax.grad(loss)(1.0, 1.0, expectile=q) == 0
        assert jax.grad(jax.grad(loss))(1.0, 1.0, expectile=q) == 1
    assert loss(2.0, 0.0, expectile=1.0) == 0 and loss(-2.0, 0.0, expectile=1.0) == 4
    grid = np.linspace(0, 9, 901, dtype=np.float32)[:, None]
    y = np.float32([0, 1, 8])
    for q in (0.5, 0.75, 0.9):
        # Newey and Powell: the weighted errors of both sides are equal there.
        best = float(grid[jnp.argmin(jnp.sum(loss(grid, y[None], expectile=q), 1)), 0])
        e = y - best
        np.testing.assert_allclose(q * e[e > 0].sum(), (q - 1) * e[e < 0].sum(), rtol=0.02)


@given(number, number)
def test_half_an_expectile_is_half_of_the_squared_error(p, t):
    close(jaxloss.expectile_loss(p, t), jaxloss.l2_loss(p, t))


@given(number, number, share)
def test_both_sides_of_an_expectile_are_the_squared_error(p, t, q):
    both = [jaxloss.expectile_loss(p, t, expectile=e) for e in (q, 1 - q)]
    close(sum(both), jaxloss.squared_error(p, t))
