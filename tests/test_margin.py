"""Margin and Fenchel-Young losses: kinks, ties, excluded classes, printed values, identities."""

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
rows = hnp.arrays(np.float32, 5, elements=st.floats(-8, 8, width=16))
MULTICLASS = [
    jaxloss.multiclass_hinge_loss,
    jaxloss.multiclass_perceptron_loss,
    jaxloss.multiclass_sparsemax_loss,
]


@pytest.mark.parametrize(
    ("fn", "kink", "slope"), [(jaxloss.hinge_loss, 1.0, -0.5), (jaxloss.perceptron_loss, 0.0, -0.5)]
)
def test_kinks_have_the_mean_of_their_sides(fn, kink, slope):
    for t in (1.0, -1.0):
        assert jax.grad(fn)(t * kink, t) == t * slope
        assert jax.jvp(lambda x, t=t: fn(x, t), (t * kink,), (1.0,))[1] == t * slope
        assert fn(t * kink, t) == 0


def test_smooth_corners():
    for x, second in ((1.0, 1.0), (0.5, 2.0), (1.5, 0.0)):
        assert jax.grad(jax.grad(jaxloss.squared_hinge_loss))(x, 1.0) == second
    for x, second in ((-1.0, 0.25), (0.0, 0.5), (1.0, 0.25), (3.0, 0.0)):
        assert jax.grad(jax.grad(jaxloss.sparsemax_loss))(x, 0.0) == second


@pytest.mark.parametrize("t", [1.0, -1.0])
def test_infinite_scores(t):
    x = t * np.inf
    binary = (jaxloss.hinge_loss, jaxloss.squared_hinge_loss, jaxloss.perceptron_loss)
    for fn in (*binary, lambda x, t: jaxloss.sparsemax_loss(x, t > 0)):
        assert fn(x, t) == 0 and fn(-x, t) == np.inf
    assert jax.grad(jaxloss.hinge_loss)(x, t) == 0
    assert jax.grad(jaxloss.hinge_loss)(-x, t) == -t


def test_nan_survives_a_reduction():
    x = jnp.ones((64, 128)).at[3, 5].set(jnp.nan)
    for fn in (jaxloss.hinge_loss, jaxloss.squared_hinge_loss, jaxloss.perceptron_loss):
        loss, gradient = jax.jit(jax.value_and_grad(lambda x, fn=fn: jnp.mean(fn(x, -1))))(x)
        assert np.isnan(loss) and np.isnan(gradient).sum() == 1
    for fn in MULTICLASS:
        step = jax.jit(jax.value_and_grad(lambda x, fn=fn: jnp.mean(fn(x, jnp.zeros(64, int)))))
        loss, gradient = step(x)
        assert np.isnan(loss) and np.all(np.isnan(gradient[3])) and np.isnan(gradient).sum() == 128


def test_shapes_do_not_spread():  # optax: silently (2, 2)
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2,\)"):
        jaxloss.hinge_loss(jnp.zeros((2, 1)), jnp.ones(2))


@pytest.mark.parametrize("fn", MULTICLASS)
def test_ties_share_the_gradient(fn):
    gradient = jax.grad(fn)(f32(2, 2, 0), 2)
    assert gradient[0] == gradient[1] == 0.5
    np.testing.assert_array_equal(gradient, jax.jacfwd(fn)(f32(2, 2, 0), 2))


@pytest.mark.parametrize("fn", MULTICLASS)
def test_excluded_classes(fn):
    assert fn(f32(1, -np.inf, -np.inf), 0) == 0
    assert fn(f32(1, 0, -np.inf), 2) == np.inf
    assert fn(f32(1, 0, -np.inf), 0) == fn(f32(1, 0), 0)
    for label in range(3):
        assert np.all(np.isfinite(jax.grad(fn)(f32(1, 0, -np.inf), label)))


def test_one_class_costs_nothing():
    for fn in MULTICLASS:
        assert fn(f32(3), 0) == 0 and jax.grad(fn)(f32(3), 0) == 0


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


def test_categorical_hinge_of_keras():
    """Its documentation: 1.2 and 1.6 for these, a mean of 1.4."""
    y, p = f32(0, 1, 0, 0).reshape(2, 2), f32(0.6, 0.4, 0.4, 0.6).reshape(2, 2)
    np.testing.assert_allclose(jaxloss.categorical_hinge_loss(p, y), [1.2, 1.6], rtol=1e-6)
    # And where all scores are negative: 2.0, by the zero in the label's place.
    assert jaxloss.categorical_hinge_loss(f32(-1, -3), f32(1, 0)) == 2


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


@given(score, st.sampled_from([-1.0, 1.0]))
def test_order_of_the_hinges(x, t):
    hinge, perceptron = jaxloss.hinge_loss(x, t), jaxloss.perceptron_loss(x, t)
    sparse = jaxloss.sparsemax_loss(x, (t + 1) / 2)
    close(jaxloss.squared_hinge_loss(x, t), hinge**2, 3e3)
    assert perceptron <= sparse <= hinge
    close(jaxloss.hinge_loss(x, t), jaxloss.hinge_loss(-x, -t))


@given(rows, st.integers(0, 4))
def test_multiclass(s, k):
    hinge, perceptron, sparse = (fn(s, k) for fn in MULTICLASS)
    assert 0 <= perceptron <= hinge <= perceptron + 1
    assert perceptron <= sparse + 1e-6
    for fn in MULTICLASS:
        close(fn(s + 32, k), fn(s, k), 30)
        gradient = jax.grad(fn)(s, k)
        close(jnp.sum(gradient), 0)
        assert gradient[k] <= 0
    lead = np.max(np.delete(s, k)) - s[k]
    assert (lead <= -1) == (hinge == 0)


@given(rows, rows, st.integers(0, 4), st.floats(0, 1, width=16))
def test_convexity(a, b, k, w):
    for fn in MULTICLASS:
        middle = fn(w * a + (1 - w) * b, k)
        assert middle <= w * fn(a, k) + (1 - w) * fn(b, k) + 1e-4


@given(score, st.integers(0, 1))
def test_binary_sparsemax_is_two_classes(x, z):
    close(jaxloss.sparsemax_loss(x, z), jaxloss.multiclass_sparsemax_loss(f32(0, x), z), 50)
