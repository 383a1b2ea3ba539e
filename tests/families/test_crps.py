"""Ranked probability scores: the integral they are, tails, ties, one member, fairness."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxloss
from jaxloss import Loss

gaussian, ensemble = jaxloss.gaussian_crps, jaxloss.ensemble_crps
number = st.floats(-100, 100, width=16)
ensembles = hnp.arrays(np.float32, st.integers(1, 6), elements=st.integers(-3, 3).map(float))


def by_pairs(x, t, fair):
    m = len(x)
    pairs = np.abs(x[:, None] - x[None]).sum()
    return np.abs(x - t).mean() - (pairs / (2 * m * (m - 1 if fair else m)) if m > 1 else 0)


def test_gaussian_is_the_integral():
    grid = np.linspace(-40, 40, 80001)
    normal = np.array([0.5 * math.erfc(-x / 3 / math.sqrt(2)) for x in grid])
    for t in (0.0, -2.0, 7.5):
        want = np.sum((normal - (grid >= t)) ** 2) * 1e-3
        np.testing.assert_allclose(gaussian(0.0, t, 3.0), want, rtol=1e-3)


def test_gaussian_without_a_scale_and_far_out():
    run = jax.value_and_grad(gaussian, (0, 2))
    assert run(3.0, 1.0, 0.0)[0] == 2 and run(3.0, 1.0, 0.0)[1][0] == 1
    assert run(1.0, 1.0, 0.0)[0] == 0 and run(1.0, 1.0, 0.0)[1][0] == 0
    assert run(1e30, 0.0, 1.0)[0] == np.float32(1e30)
    np.testing.assert_allclose(gaussian(9.0, 0.0, 1.0), 9 - 1 / math.sqrt(math.pi), rtol=1e-7)
    assert np.isnan(run(1.0, 0.0, -1.0)[0]) and np.isnan(run(1.0, 0.0, -1.0)[1][0])


def test_a_proper_score_is_least_at_the_truth():
    t = np.random.default_rng(0).normal(size=20000).astype(np.float32)
    slopes = jax.grad(lambda m, s: jnp.mean(gaussian(jnp.full(20000, m), t, s)), (0, 1))(0.0, 1.0)
    np.testing.assert_allclose(slopes, 0, atol=0.02)


@given(number, number, st.floats(0.0078125, 50, width=16))
def test_gaussian_is_at_most_the_absolute_error_and_scales(m, t, s):
    loss = gaussian(m, t, s)
    assert 0 <= loss <= abs(m - t) + 0.25 * s
    np.testing.assert_allclose(gaussian(4 * m, 4 * t, 4 * s), 4 * loss, rtol=1e-6)


@given(ensembles, st.integers(-4, 4).map(float))
def test_ensemble_is_the_sum_over_all_pairs(x, t):
    """Also of ties; derivatives by these are the means of the sides, so are those of the pairs."""
    for fair in (True, False):
        want = by_pairs(np.float64(x), t, fair)
        np.testing.assert_allclose(ensemble(x, t, fair=fair), want, rtol=1e-5, atol=1e-6)
        by_members, by_target = jax.grad(ensemble, (0, 1))(x, t, fair=fair)
        for i, slope in enumerate(by_members):
            step = 1e-3 * np.eye(len(x))[i]
            sides = by_pairs(x + step, t, fair) - by_pairs(x - step, t, fair)
            np.testing.assert_allclose(slope, sides / 2e-3, atol=1e-5)
        sides = by_pairs(np.float64(x), t + 1e-3, fair) - by_pairs(np.float64(x), t - 1e-3, fair)
        np.testing.assert_allclose(by_target, sides / 2e-3, atol=1e-5)


def test_one_member_is_the_absolute_error():
    x, t = np.float32([[1], [2], [-3]]), np.float32([3, 2, 4])
    for fair in (True, False):
        np.testing.assert_array_equal(ensemble(x, t, fair=fair), [2, 0, 7])
        slope = jax.grad(lambda x, fair=fair: jnp.sum(ensemble(x, t, fair=fair)))(x)
        np.testing.assert_array_equal(slope, [[-1], [0], [-1]])


def test_fair_is_without_bias():
    """On average the score of the distribution itself, of any number of members."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=20000).astype(np.float32)
    want = float(jnp.mean(gaussian(jnp.zeros(20000), t, 1.0)))
    for m in (2, 5):
        x = rng.normal(size=(20000, m)).astype(np.float32)
        np.testing.assert_allclose(jnp.mean(ensemble(x, t)), want, rtol=0.02)
        biased = want * (1 + 1 / m)
        np.testing.assert_allclose(jnp.mean(ensemble(x, t, fair=False)), biased, rtol=0.02)


def test_members_far_from_zero_keep_their_digits():
    x = np.float32([16384, 16384.25, 16385])
    assert ensemble(x, 16384.5) == ensemble(x - 16384, 0.5)


def test_masks_and_what_is_not_a_number():
    x, t = (
        np.float32([[0, 1, 4], [np.nan] * 3, [0, np.nan, 1], [0, 1, 2]]),
        np.float32([2, 0, 1, np.nan]),
    )
    losses, slope = ensemble(x, t), jax.grad(lambda x: jnp.sum(ensemble(x, t)))(x)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True, True])
    np.testing.assert_array_equal(np.isnan(slope).any(1), [False, True, True, True])
    live = np.array([True, False, False, False])
    loss = lambda x: Loss(ensemble)(x, t, where=live)
    value, gradient = jax.value_and_grad(loss)(x)
    assert value == losses[0] and not gradient[1:].any()
    np.testing.assert_array_equal(ensemble(x, t, where=live), [losses[0], 0, 0, 0])


def test_wrong_shapes():
    for members, targets in (((2, 3), (3,)), ((), ()), ((2, 0), (2,)), ((2, 3), (2, 1))):
        with pytest.raises(ValueError, match=r"members of shape .* and targets of shape"):
            ensemble(jnp.zeros(members), jnp.zeros(targets))
