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


def test_laplace_and_student_densities_integrate_to_one():
    grid = jnp.linspace(-60, 60, 12001)
    for nll in (
        jaxloss.laplace_nll(jnp.zeros(12001), grid, 1.5, full=True),
        jaxloss.student_t_nll(jnp.zeros(12001), grid, 1.5, 5.0, full=True),
    ):
        np.testing.assert_allclose(jnp.sum(jnp.exp(-nll)) * 0.01, 1, rtol=1e-4)


def test_student_printed_values():
    """Of the table of critical values: two degrees of freedom, and one, which is Cauchy's."""
    x = np.float32([0, 1, 3])
    cauchy = np.log(math.pi * (1 + np.float64(x) ** 2))
    np.testing.assert_allclose(jaxloss.student_t_nll(x, 0, 1.0, 1.0, full=True), cauchy, 1e-6)
    two = 1.5 * np.log(2 + np.float64(x) ** 2)  # The density is (2 + x**2)**(-3/2).
    np.testing.assert_allclose(jaxloss.student_t_nll(x, 0, 1.0, 2.0, full=True), two, 1e-6)


@given(st.floats(-100, 100, width=32), st.floats(0.125, 20, width=32))
def test_student_of_many_degrees_is_gaussian(e, s):
    gaussian = jaxloss.gaussian_nll(e, 0.0, s * s)
    scale = 1 + abs(gaussian)
    np.testing.assert_allclose(jaxloss.student_t_nll(e, 0, s, np.inf), gaussian, atol=2e-6 * scale)
    near = jaxloss.student_t_nll(e, 0, s, 1e30)
    np.testing.assert_allclose(near, gaussian, atol=2e-6 * scale)


def test_student_where_the_square_of_the_error_overflows():
    """The value grows by the logarithm, so the derivative is (df + 1) / e."""
    by = jax.jit(jax.grad(jaxloss.student_t_nll, (0, 2, 3)))(1e25, 0.0, 1.0, 3.0)
    np.testing.assert_allclose(by[:2], [4e-25, -3], rtol=1e-6)
    more, less = (jaxloss.student_t_nll(1e25, 0.0, 1.0, df) for df in (3.25, 2.75))
    np.testing.assert_allclose(by[2], (more - less) / 0.5, rtol=1e-3)
    infinite = jax.grad(jaxloss.student_t_nll)(jnp.inf, 0.0, 1.0, 3.0)
    np.testing.assert_array_equal(infinite, 0)


def test_student_by_infinite_degrees():
    by_df = jax.grad(jaxloss.student_t_nll, 3)
    assert by_df(1.0, 0.0, 1.0, np.inf) == 0
    for df in (0.0, -1.0, np.nan):
        assert np.isnan(by_df(1.0, 0.0, 1.0, df))


def test_scales_without_a_density():
    for nll in (jaxloss.laplace_nll, lambda p, t, s: jaxloss.student_t_nll(p, t, s, 3.0)):
        assert np.isnan(nll(1.0, 0.0, -1.0)) and np.isnan(jax.grad(nll)(1.0, 0.0, -1.0))
        assert nll(1.0, 0.0, 0.0) == np.inf and nll(1.0, 1.0, 0.0) == -np.inf
        assert jax.grad(nll)(1.0, 1.0, 2.0) == 0
    assert jax.grad(jaxloss.laplace_nll, 2)(1.0, 0.0, 0.0) == -np.inf


def test_beta_is_the_variance_to_its_power_without_a_derivative():
    p, t, v = np.float32([1, 2]), np.float32([0.5, 4]), np.float32([0.25, 9])
    plain = lambda p, v, **options: jaxloss.gaussian_nll(p, t, v, **options)
    for beta in (0.5, 1.0):
        for full in (False, True):
            got = plain(p, v, beta=beta, full=full)
            np.testing.assert_allclose(got, v**beta * plain(p, v, full=full), rtol=1e-6)
        for i in (0, 1):
            slope = [
                jax.grad(lambda *a, o=o: jnp.sum(plain(*a, **o)), i)(p, v)
                for o in ({}, {"beta": beta})
            ]
            np.testing.assert_allclose(slope[1], v**beta * slope[0], rtol=1e-6)
    by_mean = jax.grad(lambda p: jnp.sum(plain(p, v, beta=1.0)))(p)
    np.testing.assert_allclose(by_mean, p - t, rtol=1e-6)
