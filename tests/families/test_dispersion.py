"""Counts and positive numbers: densities, limits, edges, learned settings, small dispersions."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxloss

counts_nll, gamma, tweedie = jaxloss.negative_binomial_nll, jaxloss.gamma_nll, jaxloss.tweedie_loss
positive = st.floats(0.125, 50, width=32)
poisson = partial(jaxloss.poisson_nll, log_input=False)


def close(got, want, scale=1.0):
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=3e-6 * scale)


@pytest.mark.parametrize("dispersion", [0.0, 1e-4, 0.5, 3.0])
def test_negative_binomial_probabilities_add_up_to_one(dispersion):
    """With the mean and the variance that the docstring says."""
    counts = np.arange(4000, dtype=np.float32)
    p = np.exp(-np.float64(counts_nll(jnp.full(4000, 7.5), counts, dispersion, full=True)))
    np.testing.assert_allclose(p.sum(), 1, rtol=2e-5)
    np.testing.assert_allclose((p * counts).sum(), 7.5, rtol=1e-4)
    variance = (p * (counts - 7.5) ** 2).sum()
    np.testing.assert_allclose(variance, 7.5 + dispersion * 7.5**2, rtol=1e-3)


@given(positive, st.integers(0, 40))
def test_without_dispersion_it_is_poisson(m, t):
    for full in (False, True):
        want = poisson(m, t, full=full)
        for a in (0.0, 1e-30):
            close(counts_nll(m, t, a, full=full), want, 1 + abs(t * math.log(m)) + m)
    slope = jax.grad(counts_nll, 2)(m, float(t), 0.0)
    close(slope, (t - (t - m) ** 2) / 2, 1 + t * t + m * m)


def test_negative_binomial_at_the_edges():
    close(counts_nll(0.0, 0, 0.5), 0)
    assert counts_nll(0.0, 1, 0.5) == np.inf
    assert jax.grad(counts_nll)(0.0, 0.0, 0.5) == 1
    for bad in ((-1.0, 0.0, 0.5), (1.0, -1.0, 0.5), (1.0, 0.0, -0.5), (np.nan, 0.0, 0.5)):
        assert np.isnan(counts_nll(*bad))
        assert all(np.isnan(jax.grad(counts_nll, (0, 1, 2))(*bad)))
    # One count: geometric for a dispersion of 1, of which s is 0.
    close(counts_nll(3.0, 1, 1.0), 2 * math.log(4) - math.log(3))


def test_settings_are_learned():
    """By gradient descent to what the samples were drawn with."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2, 5 / 2, 4000)).astype(np.float32)
    amounts = rng.gamma(4, 3 / 4, 4000).astype(np.float32)
    for nll, data, mean, setting in ((counts_nll, counts, 5, 0.5), (gamma, amounts, 3, 4)):
        objective = lambda x, nll=nll, data=data: jnp.mean(
            nll(jnp.full(4000, jnp.exp(x[0])), data, jnp.exp(x[1]))
        )
        x, step = jnp.zeros(2), jax.jit(lambda x, f=objective: x - 0.3 * jax.grad(f)(x))
        for _ in range(200):
            x = step(x)
        np.testing.assert_allclose(jnp.exp(x), [mean, setting], rtol=0.1)


def test_gamma_densities_integrate_to_one():
    grid = np.linspace(0.005, 60, 6000, dtype=np.float32)
    for shape in (1.0, 2.5, 40.0):
        p = np.exp(-np.float64(gamma(jnp.full(6000, 3.0), grid, shape, full=True)))
        np.testing.assert_allclose(p.sum() * 0.01, 1, rtol=5e-3)
    exponential = grid / 3 + math.log(3)
    close(gamma(jnp.full(6000, 3.0), grid, 1.0) + np.log(grid), exponential, 5)


def test_gamma_at_the_edges():
    assert gamma(1.0, 0.0, 2.0) == np.inf and gamma(0.0, 1.0, 2.0) == np.inf
    for bad in ((-1.0, 1.0, 2.0), (1.0, -1.0, 2.0), (1.0, 1.0, 0.0), (np.nan, 1.0, 2.0)):
        assert np.isnan(gamma(*bad)) and all(np.isnan(jax.grad(gamma, (0, 1, 2))(*bad)))


@given(positive, positive, st.floats(1, 2, width=32))
def test_tweedie_is_least_at_the_mean(m, t, power):
    assert tweedie(t, t, power=power) == 0 and jax.grad(tweedie)(t, t, power=power) == 0
    assert tweedie(m, t, power=power) >= 0
    close(tweedie(m, t, power=1.0), poisson(m, t) - poisson(t, t), 1 + t * abs(math.log(m)) + t)
    close(tweedie(m, t, power=2.0), gamma(m, t, 1.0) - gamma(t, t, 1.0), 5)


def test_tweedie_by_its_power():
    """Against differences, also at its ends and close to the mean, and of a target of 0."""
    with jax.enable_x64(True):
        for m, t in ((1.0, 1.001), (2.0, 30.0), (5.0, 1e-3), (3.0, 0.0)):
            for p in (1.0, 1.5, 1.9):
                by_power = jax.grad(lambda p, m=m, t=t: tweedie(m, t, power=p))(p)
                low, high = max(p - 1e-6, 1.0), p + 1e-6
                step = (tweedie(m, t, power=high) - tweedie(m, t, power=low)) / (high - low)
                np.testing.assert_allclose(by_power, step, rtol=1e-4)


def test_tweedie_at_the_edges():
    run = lambda m, t, p: jax.value_and_grad(tweedie)(m, t, power=p)
    for p in (1.0, 1.5, 1.75):
        value, slope = run(3.0, 0.0, p)
        close(value, 3 ** (2 - p) / (2 - p))
        close(slope, 3 ** (1 - p))
        assert tweedie(0.0, 0.0, power=p) == 0 and tweedie(0.0, 1.0, power=p) == np.inf
        assert np.isnan(run(-1.0, 1.0, p)).all() and np.isnan(run(1.0, -1.0, p)).all()
    assert tweedie(3.0, 0.0, power=2.0) == np.inf
    # Close to the mean, half of the squared error by the variance.
    np.testing.assert_allclose(tweedie(4.0, 4.004, power=1.5), 0.004**2 / 16, rtol=2e-3)
    for bad in (0.5, 2.5):
        with pytest.raises(ValueError, match=r"power must be in \[1, 2\]"):
            tweedie(1.0, 1.0, power=bad)
