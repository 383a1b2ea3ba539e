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
