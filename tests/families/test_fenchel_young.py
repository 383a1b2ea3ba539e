"""Fenchel-Young losses: sparsemax of two classes, small losses, any other's agreement with optax.

What the sparsemax loss has in common with the margin losses is tested in `tests/test_scores.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxloss
from tests.test_properties import close

f32 = lambda *v: jnp.array(v, jnp.float32)
score = st.floats(-50, 50, width=32)


def test_smooth_corners():
    for x, second in ((-1.0, 0.25), (0.0, 0.5), (1.0, 0.25), (3.0, 0.0)):
        assert jax.grad(jax.grad(jaxloss.sparsemax_loss))(x, 0.0) == second


def test_sparsemax_paper():
    """Martins and Astudillo: two classes give a Huber-like loss of their difference."""
    for x in np.float32([-2, -1, -0.5, 0, 0.75, 1, 3]):
        two = jaxloss.multiclass_sparsemax_loss(f32(x, 0), 0)
        want = 0 if x >= 1 else -x if x <= -1 else (x - 1) ** 2 / 4
        np.testing.assert_allclose(two, want, rtol=1e-6)


def test_sparsemax_keeps_small_losses():
    x = f32(0.9999, 0, 0)
    p = (1 - float(x[0])) / 3  # Of either of the others.
    loss, gradient = jax.value_and_grad(jaxloss.multiclass_sparsemax_loss)(x, 0)
    np.testing.assert_allclose(loss, 3 * p**2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-2 * p, p, p], rtol=1e-6)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_fenchel_young_loss_agrees_with_optax(batch):
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(2, *batch, 5)).astype(np.float32)
    ours = jaxloss.make_fenchel_young_loss(jax.nn.logsumexp)
    theirs = optax.losses.make_fenchel_young_loss(jax.nn.logsumexp)
    np.testing.assert_allclose(ours(scores, targets), theirs(scores, targets), rtol=1e-5)
    smooth = jaxloss.make_fenchel_young_loss(lambda s, t: t * jax.nn.logsumexp(s / t))
    np.testing.assert_allclose(smooth(scores, targets, 1.0), ours(scores, targets), rtol=1e-5)
    with pytest.raises(ValueError, match="scalars"):
        ours(1.0, 1.0)


@given(score, st.integers(0, 1))
def test_binary_sparsemax_is_two_classes(x, z):
    close(jaxloss.sparsemax_loss(x, z), jaxloss.multiclass_sparsemax_loss(f32(0, x), z), 50)


rows = hnp.arrays(np.float32, 5, elements=st.floats(-8, 8, width=16))
entmax = jaxloss.entmax_loss


@given(rows, st.integers(0, 4))
def test_entmax_is_between_softmax_and_sparsemax(x, k):
    close(entmax(x, k, alpha=1.0), jaxloss.softmax_cross_entropy_with_integer_labels(x, k), 10)
    close(entmax(x, k, alpha=1.5), jaxloss.entmax15_loss(x, k), 10)
    close(entmax(x, k, alpha=2.0), jaxloss.multiclass_sparsemax_loss(x, k), 10)
    losses = [float(entmax(x, k, alpha=a)) for a in (1.0, 1.25, 1.5, 1.75, 2.0)]
    assert np.all(np.diff(losses) <= 1e-5)  # The entropy falls.


def test_entmax_of_two_classes():
    """Of which the probabilities are squares, so that a quadratic equation gives them."""
    for x in (-3.0, -1.0, 0.0, 0.5, 1.9, 2.0, 5.0):
        t = min(max(x / 2, -1), 1)
        p = (t / 2 + np.sqrt(1 / 2 - t * t / 4)) ** 2
        loss, gradient = jax.value_and_grad(jaxloss.entmax15_loss)(f32(x, 0), 0)
        np.testing.assert_allclose(gradient, [p - 1, 1 - p], atol=1e-6)
        want = p * x - x + (1 - p**1.5 - (1 - p) ** 1.5) * 4 / 3
        np.testing.assert_allclose(loss, want, atol=1e-6)


def test_entmax_leads_and_small_losses():
    for alpha in (1.25, 1.5, 2.0):
        fn = lambda x, a=alpha: entmax(x, 0, alpha=a)
        far = 1 / (alpha - 1)
        assert fn(f32(far, 0, -1)) == 0 and not np.any(jax.grad(fn)(f32(far, 0, -1)))
        assert fn(f32(0.99 * far, 0, -1)) > 0
        assert fn(f32(0, 100, 0)) > 99
    x = f32(1.99, 0)  # Close to the lead of two, p of the other is (0.01 / 2)**2 / (1 + ...).
    with jax.enable_x64(True):
        want = jax.value_and_grad(lambda x: jaxloss.entmax15_loss(x, 0))(np.float64(x))
    got = jax.value_and_grad(jaxloss.entmax15_loss)(x, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, want)


def test_entmax_by_alpha():
    """Against differences, also at the ends, and mixed."""
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=5)
        value = lambda a: entmax(x, 1, alpha=a)
        slope = lambda a: jax.grad(lambda x: entmax(x, 1, alpha=a))(x)
        run = jax.jit(lambda a: (jax.grad(value)(a), jax.jacfwd(slope)(a), value(a), slope(a)))
        for alpha in (1.0, 1.3, 2.0):
            by_alpha, mixed, *_ = run(alpha)
            low, high = max(alpha - 1e-6, 1.0), min(alpha + 1e-6, 2.0)
            (*_, v, s), (*_, w, t) = run(low), run(high)
            np.testing.assert_allclose(by_alpha, (w - v) / (high - low), rtol=1e-4)
            np.testing.assert_allclose(mixed, (t - s) / (high - low), rtol=1e-4, atol=1e-5)


def test_entmax_without_a_number():
    for fn in (jaxloss.entmax15_loss, lambda x, k: entmax(x, k, alpha=1.25)):
        x = f32([1, 2, 3], [np.nan, 0, 0], [1, 2, 3], [1, -np.inf, 0])
        loss, gradient = jax.vmap(jax.value_and_grad(fn))(x, np.array([0, 0, 3, 0]))
        np.testing.assert_array_equal(np.isnan(loss), [False, True, True, False])
        np.testing.assert_array_equal(np.isnan(gradient), np.tile(np.isnan(loss), (3, 1)).T)
        assert gradient[3, 1] == 0
        np.testing.assert_allclose(fn(x[3], 0), fn(x[3, ::2], 0), rtol=1e-6)
        assert fn(x[3], 1) == np.inf
    for bad in (0.5, 2.5):
        with pytest.raises(ValueError, match=r"alpha must be in \[1, 2\]"):
            entmax(f32(0, 1), 0, alpha=bad)
