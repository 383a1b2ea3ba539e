"""Policy losses: kinks, ratios that overflow, sequences and their masks; group advantages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import Loss

surrogate = jaxloss.clipped_surrogate_loss
RNG = np.random.default_rng(0)
X, OLD = -np.abs(RNG.normal(size=(2, 3, 4))).astype(np.float32)
A = np.float32([1, -0.5, 2])
WHERE = np.array([[True, True, False, True], [True, False, False, False], [False] * 4])


def value_and_slope(d, a, **options):
    """Of ratios exp(d)."""
    d, a = np.float32(d), np.float32(a)

    def losses(d):
        return surrogate(d, jnp.zeros_like(d), a, **options)

    return jax.jit(lambda d: (losses(d), jax.grad(lambda d: jnp.sum(losses(d)))(d)))(d)


def test_half_of_the_slope_at_a_clip():
    """A ratio of exactly one is at a clip of zero."""
    loss, slope = value_and_slope([0, 0, 0], [2, -2, 0], clip_low=0.0, clip_high=0.0)
    np.testing.assert_array_equal(loss, [-2, 2, 0])
    np.testing.assert_array_equal(slope, [-1, 1, 0])
    _, slope = value_and_slope([0, 0], [2, -2], clip_low=0.5, dual_clip=1.0)
    np.testing.assert_array_equal(slope, [-2, 1])


def test_ratios_that_overflow():
    d, a = [1e30, np.inf, 1e30, 100], [1, 1, 0, 0]
    loss, slope = value_and_slope(d, a)
    np.testing.assert_allclose(loss, [-1.2, -1.2, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(slope, 0)
    loss, _ = value_and_slope([100, 1e30], [-1, -1])
    np.testing.assert_array_equal(loss, np.inf)
    loss, slope = value_and_slope([100, 1e30, np.inf], [-1, -2, 0], dual_clip=3.0)
    np.testing.assert_array_equal(loss, [3, 6, 0])
    np.testing.assert_array_equal(slope, 0)
    # What vanished altogether.
    loss, slope = value_and_slope([-np.inf, -np.inf], [1, -1])
    np.testing.assert_allclose(loss, [0, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(slope, 0)


def test_nan_is_loud_beside_an_advantage_of_zero_and_as_one():
    loss, slope = value_and_slope([np.nan, 0.0, 5.0], [0, np.nan, np.nan])
    assert np.all(np.isnan(loss)) and np.all(np.isnan(slope))


def every_loss(x, old, a, where=WHERE):
    each = {"where": where}
    return [
        surrogate(x, old, a, dual_clip=3.0, **each),
        surrogate(x, old, a, level="sequence", **each),
        jaxloss.cispo_loss(x, old, a, clip_low=0.2, **each),
        jaxloss.policy_gradient_loss(x, a, **each),
        *(jaxloss.kl_estimate(x, old, kind=kind, **each) for kind in ("k1", "k2", "k3")),
        jaxloss.clipped_value_loss(x, old, a[:, None], **each),
    ]


def test_what_is_masked_harms_nothing():
    @jax.jit
    def run(x, old, a):
        def total(x, old):
            return sum(jnp.sum(loss) for loss in every_loss(x, old, a))

        return every_loss(x, old, a), jax.grad(total, (0, 1))(x, old)

    losses, gradients = clean = run(X, OLD, A)
    for loss in losses:
        live = WHERE if loss.ndim == 2 else WHERE.any(1)
        np.testing.assert_array_equal(loss[~live], 0)
        assert np.all(np.isfinite(loss)) and np.all(loss[live] != 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[~WHERE], 0)
    for poison in map(np.float32, (-np.inf, np.inf, np.nan, 1e30, -1e30)):
        x, old = (np.where(WHERE, p, poison) for p in (X, OLD))
        jax.tree.map(np.testing.assert_array_equal, run(x, old, A), clean)
        # Of a sequence without a token, the advantage too.
        a = np.where(WHERE.any(1), A, poison)
        jax.tree.map(np.testing.assert_array_equal, run(X, OLD, a), clean)


def test_a_sequence_has_one_ratio_and_is_one_example():
    difference = [np.mean((np.float64(X[i]) - OLD[i])[WHERE[i]]) for i in range(2)]
    ratio = np.exp(difference)
    want = -np.minimum(ratio * A[:2], np.clip(ratio, 0.8, 1.2) * A[:2])
    loss = Loss(partial(surrogate, level="sequence"), "none")
    np.testing.assert_allclose(loss(X, OLD, A, where=WHERE), [*want, 0], rtol=1e-6)
    mean = Loss(surrogate, level="sequence")
    poisoned = np.where(WHERE, X, -np.inf)
    run = jax.jit(jax.value_and_grad(lambda x: mean(x, OLD, A, where=WHERE)))
    value, gradient = run(poisoned)
    np.testing.assert_allclose(value, want.mean(), rtol=1e-6)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~WHERE])
    assert mean.parts(X, OLD, A, where=WHERE).size == 2
    # A mask of sequences.
    some = mean(X, OLD, A, where=np.array([True, True, False]))
    np.testing.assert_allclose(some, surrogate(X, OLD, A, level="sequence")[:2].mean(), rtol=1e-6)


def test_advantages_of_tokens_or_of_sequences():
    for fn in (
        lambda a: surrogate(X, OLD, a),
        lambda a: jaxloss.cispo_loss(X, OLD, a),
        lambda a: jaxloss.policy_gradient_loss(X, a),
    ):
        want = fn(np.repeat(A[:, None], 4, 1))
        np.testing.assert_array_equal(fn(A), want)
        np.testing.assert_array_equal(fn(A[:, None]), want)
        np.testing.assert_array_equal(fn(1.0), fn(np.ones(3, np.float32)))
        with pytest.raises(ValueError, match=r"advantages of shape \(4,\) do not fit sequences"):
            fn(np.ones(4, np.float32))
    with pytest.raises(ValueError, match=r"advantages of shape \(3, 1\) do not fit sequences"):
        surrogate(X, OLD, A[:, None], level="sequence")
    with pytest.raises(ValueError, match="level must be 'token' or 'sequence', got 'row'"):
        surrogate(X, OLD, A, level="row")
    with pytest.raises(ValueError, match="kind must be 'k1', 'k2' or 'k3', got 'k4'"):
        jaxloss.kl_estimate(X, OLD, kind="k4")


def test_advantages_have_no_derivative():
    live = {"where": WHERE}

    def total(a):
        losses = surrogate(X, OLD, a, **live), surrogate(X, OLD, a, level="sequence", **live)
        others = jaxloss.cispo_loss(X, OLD, a), jaxloss.policy_gradient_loss(X, a)
        return sum(jnp.sum(loss) for loss in (*losses, *others))

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(A), 0)


def test_infinite_log_probabilities_without_a_weight():
    x = np.float32([-np.inf, -np.inf, -1])
    for fn, weights in (
        (jaxloss.policy_gradient_loss, [0, 1, 2]),
        (lambda x, a: jaxloss.cispo_loss(x, -1.0, a), [1, -1, 0]),
    ):
        a = np.float32(weights)
        value, slope = fn(x, a), jax.grad(lambda x, fn=fn, a=a: jnp.sum(fn(x, a)))(x)
        zero = [True, False, False] if fn is jaxloss.policy_gradient_loss else [True, True, True]
        np.testing.assert_array_equal(np.asarray(value)[zero], 0)
        np.testing.assert_array_equal(np.asarray(slope)[zero], 0)
    assert jaxloss.policy_gradient_loss(x, np.float32([0, 1, 2]))[1] == np.inf


@pytest.mark.parametrize(
    ("v", "old", "r", "loss", "slopes"),
    [
        (1.0, 0.5, 3.0, 2 * 2 / 2, (-1, -1)),  # At the clip, where it stops.
        (1.0, 0.5, -1.0, 2 * 2 / 2, (2, 0)),  # At the clip, and goes on.
        (1.5, 0.5, 1.25, 0.25**2 / 2, (0.125, -0.125)),  # Errors of equal size.
        (2.0, 0.5, 3.0, 2 * 2 / 2, (0, -2)),
        (0.5, 0.5, 0.5, 0, (0, 0)),
    ],
)
def test_clipped_value_at_kinks(v, old, r, loss, slopes):
    fn = lambda v, old: jaxloss.clipped_value_loss(v, old, r, clip=0.5)
    got, gradients = jax.jit(jax.value_and_grad(fn, (0, 1)))(v, old)
    assert got == loss and gradients == slopes


def test_group_advantages():
    rewards = RNG.normal(size=(5, 8)).astype(np.float32)
    exact = np.float64(rewards)
    centred = exact - exact.mean(1, keepdims=True)
    run = jax.jit(jaxloss.group_advantages, static_argnames=("axis", "normalize"))
    want = centred / exact.std(1, keepdims=True)
    for scale in (1, 1e-30, 1e30):
        np.testing.assert_allclose(run(np.float32(scale) * rewards), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(rewards.T, axis=0), want.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(rewards, normalize=False), centred, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda r: jnp.sum(jaxloss.group_advantages(r) ** 3))(rewards)
    np.testing.assert_array_equal(slope, 0)


def test_equal_rewards_have_no_advantage():
    np.testing.assert_array_equal(jaxloss.group_advantages(np.full((2, 7), 0.1, np.float32)), 0)
    np.testing.assert_array_equal(jaxloss.group_advantages(np.ones((2, 3), np.int32)), 0)
    np.testing.assert_array_equal(jaxloss.group_advantages(np.float32([[0.1, 1e8]]), axis=0), 0)


def test_masked_rewards_are_nobodys():
    rewards = np.float32([[1, np.nan, 3, np.inf], [np.nan] * 4, [0.1, 0.1, np.nan, 0.1]])
    live = np.isfinite(rewards)
    got = jaxloss.group_advantages(rewards, where=live)
    np.testing.assert_allclose(got, [[-1, 0, 1, 0], [0] * 4, [0] * 4], rtol=1e-6)
    loud = jaxloss.group_advantages(rewards)
    assert np.all(np.isnan(loud))


def test_aggregations():
    """GRPO, Dr. GRPO and DAPO are the surrogate with another mean."""
    each = np.where(WHERE, surrogate(X, OLD, A), 0)
    counts = WHERE.sum(1)
    grpo = Loss(surrogate, "sequence_mean")(X, OLD, A, where=WHERE)
    np.testing.assert_allclose(grpo, (each.sum(1)[:2] / counts[:2]).mean(), rtol=1e-6)
    dapo = Loss(surrogate, clip_high=0.2)(X, OLD, A, where=WHERE)
    np.testing.assert_allclose(dapo, each.sum() / counts.sum(), rtol=1e-6)
    dr_grpo = Loss(surrogate, "sequence_sum")(X, OLD, A, where=WHERE)
    np.testing.assert_allclose(dr_grpo, each.sum() / 2, rtol=1e-6)
