"""Likelihoods: densities that add up to one, edges, where they are least."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import jaxloss


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
    assert rate(np.inf, 0) == np.inf and rate(np.inf, 2) == np.inf
    assert jaxloss.poisson_nll(-np.inf, 0) == 0 and jaxloss.poisson_nll(-np.inf, 2) == np.inf
    assert jaxloss.poisson_nll(np.inf, 2) == np.inf


def test_poisson_overflows_where_the_loss_does():
    both = jax.value_and_grad(jaxloss.poisson_nll)
    for f in (jaxloss.poisson_nll, lambda x, t: both(x, t)[0]):
        assert f(100.0, 1e37) == np.inf
        np.testing.assert_allclose(f(89.0, 3e36), math.exp(89) - 3e36 * 89, rtol=1e-6)


def test_gaussian_density_integrates_to_one():
    grid = jnp.linspace(-40, 40, 4001)
    nll = jaxloss.gaussian_nll(jnp.zeros(4001), grid, 9.0, full=True)
    np.testing.assert_allclose(jnp.sum(jnp.exp(-nll)) * 0.02, 1, rtol=1e-5)


def test_gaussian_variance():
    nll = lambda v, e: jaxloss.gaussian_nll(e, 0.0, v)
    np.testing.assert_allclose(nll(1e30, 1e20), math.log(1e30) / 2 + 5e9, rtol=1e-6)
    assert np.isnan(nll(-1.0, 1.0)) and np.isnan(jax.grad(nll)(-1.0, 1.0))
    assert jax.grad(nll)(4.0, 2.0) == 0  # Least where it is the squared error.
    # The limits.
    assert jax.value_and_grad(nll, (0, 1))(0.0, 2.0) == (np.inf, (-np.inf, np.inf))
    assert jax.value_and_grad(nll)(0.0, 0.0) == (-np.inf, np.inf)
    assert nll(np.inf, 1.0) == np.inf


@given(st.floats(-5, 5, width=32), st.floats(0.125, 20, width=32))
def test_likelihoods_are_least_at_the_truth(x, t):
    at_truth = jaxloss.poisson_nll(math.log(t), t)
    assert jaxloss.poisson_nll(x, t) >= at_truth - 1e-5 * (1 + abs(at_truth))
    assert jaxloss.gaussian_nll(x, 0.0, t) >= jaxloss.gaussian_nll(0.0, 0.0, t)
