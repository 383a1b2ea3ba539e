"""Preference losses: masks, and log-probabilities of 0 and -inf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

FOUR = [jaxloss.dpo_loss, jaxloss.robust_dpo_loss, jaxloss.ipo_loss, jaxloss.dpo_hinge_loss]
TWO = [jaxloss.cpo_loss, jaxloss.simpo_loss, jaxloss.bradley_terry_loss, jaxloss.orpo_loss]
X = -np.abs(np.random.default_rng(0).normal(size=(4, 6))).astype(np.float32)
WHERE = np.array([True, False, True, False, True, False])
DESIRABLE = np.array([True, True, False, False, True, False])


def every_loss(x, where=WHERE):
    """The losses of all functions."""
    return [
        *(fn(*x, where=where) for fn in FOUR),
        *(fn(*x[:2], where=where) for fn in TWO),
        jaxloss.kto_loss(*x[:2], DESIRABLE, where=where),
    ]


def test_what_is_masked_harms_nothing():
    @jax.jit
    def run(x):
        def total(x):
            return sum(jnp.sum(loss) for loss in every_loss(x))

        return every_loss(x), jax.grad(total)(x), jax.jvp(jax.grad(total), (x,), (x * 0 + 1,))[1]

    losses, *derivatives = clean = run(X)
    for loss in losses:
        np.testing.assert_array_equal(loss[~WHERE], 0)
        assert np.all(np.isfinite(loss)) and np.all(loss[WHERE] != 0)
    for derivative in derivatives:
        np.testing.assert_array_equal(derivative[:, ~WHERE], 0)
        assert np.all(np.isfinite(derivative))
    for poison in (-np.inf, np.inf, np.nan, 1e30):
        jax.tree.map(
            np.testing.assert_array_equal, run(np.where(WHERE, X, np.float32(poison))), clean
        )


@pytest.mark.parametrize(
    ("chosen", "rejected", "loss", "by_chosen", "by_rejected"),
    [
        (0.0, -1.0, 0.0, -1 / np.expm1(1), 0.0),
        (-1e-30, -1.0, 1e-30 / np.expm1(1), -1 / np.expm1(1), 1e-30 / np.expm1(1) / -np.expm1(-1)),
        (-1.0, 0.0, np.inf, 1 / np.expm1(-1), np.inf),
        (0.0, 0.0, np.log(2), -np.inf, np.inf),
        (-np.inf, -1.0, np.inf, -1.0, -1 / np.expm1(-1)),
        (-1.0, -np.inf, 0.0, 0.0, 0.0),
        (1e-6, -1.0, np.nan, np.nan, np.nan),
        (-1.0, 1e-6, np.nan, np.nan, np.nan),
    ],
)
def test_odds_at_the_ends(chosen, rejected, loss, by_chosen, by_rejected):
    """A huge number stands for an infinite derivative."""
    run = jax.jit(jax.value_and_grad(jaxloss.orpo_loss, (0, 1)))
    value, gradients = run(np.float32(chosen), np.float32(rejected))
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    for got, want in zip(gradients, (by_chosen, by_rejected), strict=True):
        infinite = abs(got) > 1e37
        np.testing.assert_allclose(np.sign(got) * np.inf if infinite else got, want, rtol=1e-6)


def test_infinite_leads_cost_their_limits():
    x = np.float32([np.inf, -np.inf])

    def losses(x, beta):
        return [
            fn(x, 0.0, 0.0, 0.0, beta=beta) for fn in (jaxloss.dpo_loss, jaxloss.dpo_hinge_loss)
        ]

    for loss in losses(x, 0.1):
        np.testing.assert_array_equal(loss, [0, np.inf])
    right = lambda x, beta: sum(loss[0] for loss in losses(x, beta))
    by_x, by_beta = jax.jit(jax.grad(right, (0, 1)))(x, np.float32(0.1))
    np.testing.assert_array_equal(by_x, 0)
    assert by_beta == 0


def test_robust_loss_has_the_mean_of_the_loss():
    """With labels that are wrong as often as it is told."""
    zeros, s = np.zeros(6, np.float32), 0.125
    right, wrong = (
        jaxloss.robust_dpo_loss(d, zeros, zeros, zeros, label_smoothing=s) for d in (X[0], -X[0])
    )
    want = jaxloss.cpo_loss(X[0], zeros)
    np.testing.assert_allclose((1 - s) * right + s * wrong, want, rtol=1e-6)


def test_the_reference_of_kto_moves_no_one():
    by_kl = jax.grad(lambda kl: jnp.sum(jaxloss.kto_loss(X[0], X[1], DESIRABLE, kl=kl)))
    assert by_kl(np.float32(0.5)) == 0
    mixed = jaxloss.kto_loss(X[0], X[1], np.float32(0.25))
    pure = [jaxloss.kto_loss(X[0], X[1], z) for z in (1, 0)]
    np.testing.assert_allclose(mixed, 0.25 * pure[0] + 0.75 * pure[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jaxloss.dpo_loss(X[0], X[1, :3], X[2], X[3]), r"rejected of shape \(3,\)"),
        (lambda: jaxloss.dpo_loss(X[0], X[1], X, X[3]), r"reference_chosen of shape \(4, 6\)"),
        (lambda: jaxloss.robust_dpo_loss(*X, label_smoothing=0.5), r"must be in \[0, 0.5\)"),
        (lambda: jaxloss.dpo_loss(*X, beta=-0.1), r"beta must be in \[0, inf\]"),
        (lambda: jaxloss.ipo_loss(*X, beta=0.0), "beta must be in"),
    ],
)
def test_errors_name_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
