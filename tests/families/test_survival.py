"""Survival: printed values, ties, strata, masks and what is loud."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

cox = jaxloss.cox_loss
breslow = partial(cox, ties="breslow")
RNG = np.random.default_rng(0)
X = RNG.normal(size=12).astype(np.float32)
# Of few times, so that there are ties.
T = RNG.integers(0, 4, 12).astype(np.float32)
E = (RNG.uniform(size=12) < 0.6).astype(np.int32)
STRATA = np.int32([7, 7, -3, 7, -3, -3, 7, 7, -3, 7, -3, -3])
close = partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6)


def everything(loss):
    """Losses, and their gradient and its change, with a weight for each."""

    def total(x):
        losses = loss(x)
        return jnp.sum(losses * (1 + jnp.arange(losses.size, dtype=x.dtype) % 3)), losses

    gradient = jax.grad(total, has_aux=True)
    return jax.jit(lambda x: (*jax.jvp(lambda x: gradient(x)[0], (x,), (x,)), gradient(x)[1]))


# Therneau and Grambsch, Modeling Survival Data, 2000, appendix E.1, and the vignette "validate" of
# R's survival: by hand the partial likelihoods are 2 b - log(3 r + 3) - 2 log(r + 3) by Breslow,
# 2 b - log(3 r + 3) - log(r + 3) - log((r + 5) / 2) by Efron, of r = exp(b).
TIMES, STATUS = np.float32([1, 1, 6, 6, 8, 9]), np.int32([1, 0, 1, 1, 0, 1])
COVARIATE = np.float32([1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("ties", "at_zero", "estimate", "there"),
    [
        ("breslow", -4.564348, 1.475285, -3.824750),
        ("efron", -4.276666, 1.676857, -3.358979),
    ],
)
def test_printed_likelihoods(ties, at_zero, estimate, there):
    def likelihood(b):
        return -jnp.sum(cox(b * COVARIATE, TIMES, STATUS, ties=ties))

    close(likelihood(jnp.float32(0)), at_zero)
    value, slope = jax.value_and_grad(likelihood)(jnp.float32(estimate))
    close(value, there)
    close(slope, 0, atol=2e-6)


def test_both_ways_with_ties_agree_without():
    times = RNG.permutation(12).astype(np.float32)
    np.testing.assert_array_equal(cox(X, times, E), breslow(X, times, E))


def test_without_censoring_it_is_the_likelihood_of_an_order():
    """That of Plackett and Luce: who comes first is chosen first."""
    times = RNG.permutation(12).astype(np.float32)
    close(jnp.sum(cox(X, times, 1)), jaxloss.listmle_loss(X, -times))


def test_breslow_of_ties_is_that_of_each_alone():
    """Each event is against all who are at risk at its time."""
    losses = breslow(X, T, E)
    for i in range(12):
        alone = np.arange(12) == i
        close(losses[i], np.asarray(breslow(X, T, E * alone))[i])


def test_whole_likelihood_does_not_depend_on_the_order_given():
    want = jnp.sum(cox(X, T, E))
    for order in itertools.islice(itertools.permutations(range(12)), 1, 60000, 12345):
        order = np.array(order)
        close(jnp.sum(cox(X[order], T[order], E[order])), want)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_strata_are_cohorts_of_their_own(ties):
    loss = partial(cox, ties=ties)
    gradient, product, losses = everything(lambda x: loss(x, T, E, segments=STRATA))(X)
    for k in (7, -3):
        own = k == STRATA
        weights = np.float32(1 + np.arange(12) % 3)[own]
        total = lambda x, own=own, w=weights: jnp.sum(w * loss(x, T[own], E[own]))
        close(losses[own], loss(X[own], T[own], E[own]))
        close(gradient[own], jax.grad(total)(X[own]))
        close(product[own], jax.jvp(jax.grad(total), (X[own],), (X[own],))[1])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_masked_members_are_at_risk_no_more(poison):
    live = np.arange(12) % 4 != 1
    some = lambda x, t=T: cox(x, t, np.where(live, E, 9), where=live)
    bad = [np.where(live, a, np.float32(poison)) for a in (X, T)]
    gradient, product, losses = everything(lambda x: some(x, bad[1])[live])(bad[0])
    want = everything(lambda x: cox(x, T[live], E[live]))(X[live])
    for got, of_live in zip((gradient, product), want, strict=False):
        np.testing.assert_array_equal(got[~live], 0)
        close(got[live], of_live)
    close(losses, want[2])
    np.testing.assert_array_equal(some(*bad)[~live], 0)
    np.testing.assert_array_equal(cox(X, T, E, where=np.zeros(12, bool)), 0)


def test_members_of_a_loss():
    """Who is masked is not at risk; who has no weight is, so that a mean may be that of events."""
    live = np.arange(12) % 4 != 1
    mean = jaxloss.Loss(cox, "weighted_mean")
    losses = cox(X, T, E, segments=STRATA)
    close(mean(X, T, E, segments=STRATA, weights=E), jnp.sum(losses) / float(E.sum()))
    close(jaxloss.Loss(cox, "sum")(X, T, E, where=live), jnp.sum(cox(X[live], T[live], E[live])))
    # A cohort that has no weight may hold anything.
    both = np.stack([X, np.full_like(X, np.nan)])
    value, slope = jax.value_and_grad(lambda x: mean(x, T[None], E[None], weights=[1.0, 0.0]))(both)
    close(value, jnp.mean(cox(X, T, E)))
    np.testing.assert_array_equal(slope[1], 0)


@pytest.mark.parametrize("what", ["hazard", "time", "event"])
def test_what_is_undefined_is_loud_in_its_stratum(what):
    """Also of one who is censored: it may be at risk."""
    bad = np.arange(12) == np.argmin(E)
    x, t = (
        np.where(bad & (what == "hazard"), np.nan, X),
        np.where(bad & (what == "time"), np.nan, T),
    )
    e = np.where(bad & (what == "event"), 2, E)
    gradient, product, losses = everything(lambda x: cox(x, t, e, segments=STRATA))(x)
    own = STRATA[np.argmin(E)] == STRATA
    for a in (losses, gradient, product):
        np.testing.assert_array_equal(np.isnan(a), own)


def test_infinite_hazards():
    inf = np.inf
    times = np.float32([1, 2, 3])
    np.testing.assert_allclose(cox([inf, 0.0, -inf], times, 1), [0, 0, 0])
    np.testing.assert_allclose(cox([0.0, inf, inf], times, 1), [inf, np.log(2), 0], rtol=1e-6)
    np.testing.assert_allclose(
        cox([0.0, -inf, 1.0], times, [1, 0, 0])[0], np.log1p(np.e), rtol=1e-6
    )
    assert np.all(np.isfinite(jax.grad(lambda x: cox(x, times, 1)[1])(np.float32([0, inf, inf]))))


def test_tiny_losses_keep_their_digits():
    """Ours is log(1 + exp(-30)), where a cumulative sum of hazards gives 0."""
    np.testing.assert_allclose(cox([30.0, 0.0], [1.0, 2.0], [1, 0])[0], np.exp(-30.0), rtol=1e-6)


def test_times_are_compared_as_they_are():
    """Days that float32 would make one."""
    days = np.int32([2**24, 2**24 + 1])
    np.testing.assert_allclose(cox(np.zeros(2, np.float32), days, 1), [np.log(2), 0], rtol=1e-6)


def test_shapes():
    x = np.stack([X, 2 * X])
    want = np.stack([cox(X, T, E), cox(2 * X, T, E)])
    close(cox(x, T[None], E[None]), want)
    close(cox(x.astype(jnp.bfloat16), T[None], E[None] > 0), want, rtol=3e-2, atol=3e-2)


MESSAGES = {
    "shapes": (lambda: cox(X, T[1:], E), ValueError, r"\(12,\).*\(11,\)"),
    "no cohort": (lambda: cox(X[0], T[0], E[0]), ValueError, "no axis of members"),
    "ties": (lambda: cox(X, T, E, ties="exact"), ValueError, "efron.*exact"),
    "mask": (lambda: cox(X, T, E, where=E), TypeError, "boolean"),
    "strata": (lambda: cox(X, T, E, segments=T), TypeError, "segments must be integers"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_errors_name_what_came(name):
    call, error, match = MESSAGES[name]
    with pytest.raises(error, match=match):
        call()
