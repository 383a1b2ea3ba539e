"""What peers get wrong: the "Binary and categorical" rows observed on optax, Keras, torch,
AXLearn, T5X and others, as cases of this library. Expected numbers are arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

inf, nan = np.inf, np.nan
bce = jaxloss.sigmoid_binary_cross_entropy
focal = jaxloss.sigmoid_focal_loss
dense = jaxloss.softmax_cross_entropy
sparse = jaxloss.softmax_cross_entropy_with_integer_labels


def f32(*values):
    return jnp.array(values, jnp.float32)


@pytest.mark.parametrize("z, slope", [(0.0, 0.5), (0.5, 0.0), (1.0, -0.5)])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_gradient_at_zero_logits(z, slope, zero):  # AXLearn: 0, -.5, -1
    assert jax.grad(bce)(zero, z) == slope
    assert jax.jvp(lambda x: bce(x, z), (zero,), (1.0,))[1] == slope


def test_focal_gradient_at_zero_logits():  # AXLearn: [.1378, -.1343]
    def fl(x):
        return jnp.sum(focal(x, f32(0, 1), alpha=0.25))

    # (1 - alpha_t) of q**2 * (-log q), with q = 1/2: 3/4 and 1/4 of (log 2 / 4 + 1 / 8).
    slope = np.log(2) / 4 + 1 / 8
    got = jax.grad(fl)(f32(0, 0))
    np.testing.assert_allclose(got, [0.75 * slope, -0.25 * slope], rtol=1e-6)
    # The row's own figures have gamma and alpha of AXLearn's call: the ratio is that of alpha.
    np.testing.assert_allclose(got[0] / -got[1], 3, rtol=1e-6)


def test_soft_labels_keep_their_digits():  # max(x, 0) - x z + ... cancels
    x, z = np.float32(1e4), np.float32(0.999999)
    exact = float(x) * (1 - float(z))
    assert abs(float(bce(x, z)) - exact) < 1e-6 * exact


@pytest.mark.parametrize("x, z, loss, slope", [(inf, 1, 0, 0), (-inf, 0, 0, 0), (inf, 0, inf, 1)])
@pytest.mark.parametrize("fn", [bce, focal])
def test_infinite_logits(fn, x, z, loss, slope):  # optax: NaN
    assert fn(x, z) == loss
    assert jax.grad(fn)(x, float(z)) == slope
    assert jax.jvp(lambda v: fn(v, float(z)), (x,), (1.0,))[1] == slope


def test_focal_gradient_at_huge_half_precision_logits():  # optax: NaN
    x = jnp.array([6e4, -6e4], jnp.float16)
    slopes = jax.grad(lambda v: jnp.sum(focal(v, f32(0, 1))))(x)
    np.testing.assert_array_equal(slopes, [1, -1])


def test_focal_label_gradient():  # optax: +.146, newer NaN
    def exact(z):
        p = 1 / (1 + np.exp(-0.3))
        q = (1 - z) * p + z * (1 - p)
        return q**2 * (-z * np.log(p) - (1 - z) * np.log(1 - p))

    central = (exact(1 + 1e-6) - exact(1 - 1e-6)) / 2e-6
    got = float(jax.grad(focal, 1)(np.float32(0.3), np.float32(1)))
    assert abs(got - central) < 1e-6 and abs(got + 0.1246) < 1e-4


def test_excluded_class():  # optax and Keras: NaN for the second
    x = f32(1, 2, -inf)
    np.testing.assert_allclose(sparse(x, 1), np.log1p(np.exp(-1)), rtol=1e-6)
    for fn in (dense, jaxloss.safe_softmax_cross_entropy):
        np.testing.assert_allclose(fn(x, f32(0, 1, 0)), 0.313262, rtol=1e-6)


def test_safe_softmax_forward_mode_with_excluded_class():  # optax: NaN in jvp, jacfwd, linearize
    def fn(x):
        return jaxloss.safe_softmax_cross_entropy(x, f32(0, 1, 0))

    x, slope = f32(1, 2, -inf), 1 / (1 + np.exp(1))
    np.testing.assert_allclose(jax.jvp(fn, (x,), (f32(1, 0, 0),))[1], slope, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(fn)(x), [slope, -slope, 0], rtol=1e-6)
    np.testing.assert_allclose(jax.linearize(fn, x)[1](f32(1, 0, 0)), 0.268941, rtol=1e-5)
    assert np.all(np.isfinite(jax.hessian(fn)(x)))


def test_all_classes_excluded():  # NaN everywhere; here the label has probability 0
    x = f32(-inf, -inf)
    for fn in (lambda v: sparse(v, 0), lambda v: dense(v, f32(1, 0))):
        assert fn(x) == inf
    np.testing.assert_array_equal(jax.grad(lambda v: sparse(v, 0))(x), [0, 0])


@pytest.mark.parametrize("label", [-1, 3, -100])
def test_bad_labels_are_loud(label):  # optax: another class; NaN with a finite gradient
    x = f32(0.5, 1, 2)
    assert np.isnan(sparse(x, label))
    assert np.all(np.isnan(jax.grad(sparse)(x, label)))
    assert sparse(x, label, ignore_index=label) == 0
    grad = jax.grad(lambda v: sparse(v, label, ignore_index=label))(x)
    np.testing.assert_array_equal(grad, [0, 0, 0])


def test_label_of_a_masked_class_is_not_negative():  # optax: -.687
    assert sparse(f32(0.5, 1, 2), 2, where=jnp.array([True, True, False])) == inf


def test_large_offset():  # optax: 0
    np.testing.assert_allclose(sparse(f32(1e7, 1e7 - 2), 0), 0.126928, rtol=1e-5)


@pytest.mark.parametrize("y", [0, f32(1, 0)], ids=["integer", "dense"])
def test_confident_prediction(y):  # optax: 0 with gradient 0
    fn = sparse if isinstance(y, int) else dense
    np.testing.assert_array_max_ulp(fn(f32(20, 0), y), np.float32(2.0611537e-09), 1)
    tail = 1 / (1 + np.exp(20.0))
    np.testing.assert_allclose(jax.grad(fn)(f32(20, 0), y), [-tail, tail], rtol=1e-6)


def test_many_classes_in_half_precision():  # optax: inf in float16, off by .058 in bfloat16
    for dtype in (jnp.float16, jnp.bfloat16):
        np.testing.assert_allclose(sparse(jnp.zeros(128256, dtype), 5), 11.7618, atol=5e-5)
    x = jax.random.normal(jax.random.key(0), (128256,), jnp.bfloat16)
    assert sparse(x, 7) == sparse(x.astype(jnp.float32), 7)


@pytest.mark.parametrize("p", [0.99, 0.999])
def test_half_precision_target_gradient(p):  # torch on the CPU: 22.6 % and 100 % off
    p = jnp.asarray(p, jnp.bfloat16)
    if p == 1:  # .999 is 1 in bfloat16, and the derivative infinite: a huge number stands for it.
        assert jax.grad(jaxloss.binary_cross_entropy, 1)(p, 0.5) < -1e37
        return
    exact = np.log1p(-float(p)) - np.log(float(p))
    got = jax.grad(jaxloss.binary_cross_entropy, 1)(p, jnp.asarray(0.5, jnp.bfloat16))
    assert abs(float(got) - exact) <= 2.0**-7 * abs(exact)


def test_targets_that_are_no_distribution():  # T5X, MaxText: softmax, and a wrong gradient
    grad = jax.grad(dense)
    np.testing.assert_array_equal(grad(f32(1, 2, 3), f32(0, 0, 0)), [0, 0, 0])
    np.testing.assert_allclose(grad(f32(1, 2, 3), f32(1, 1, 0)), [-0.820, -0.511, 1.330], atol=6e-4)


def test_z_loss_has_gradients():  # T5X, MaxText, AXLearn: a silent 0, and no forward mode
    x, c = f32(1, 2, 3), 0.5

    def z_part(v):
        return sparse(v, 0, z_loss=c) - sparse(v, 0)

    p = np.exp([1, 2, 3]) / np.sum(np.exp([1, 2, 3]))
    slope = 2 * c * np.log(np.sum(np.exp([1, 2, 3]))) * p
    np.testing.assert_allclose(jax.grad(z_part)(x), slope, rtol=1e-5)
    np.testing.assert_allclose(jax.jacfwd(z_part)(x), slope, rtol=1e-5)
    by_targets = jax.grad(dense, 1)(x, f32(0.2, 0.3, 0.5))
    np.testing.assert_allclose(by_targets, -np.log(p), rtol=1e-6)


def test_saturated_sigmoid():  # Keras: gradient 0 by the logit
    def through_probability(x):
        return jaxloss.binary_cross_entropy(jax.nn.sigmoid(x), 0.0)

    # 1 - p has lost its digits in float32, but not the gradient.
    assert abs(jax.grad(through_probability)(15.0) - 1) < 0.1
    assert jax.grad(bce)(17.0, 0.0) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("x", [88.0, -88.0])
def test_focal_gradient_with_small_gamma(gamma, x):  # Keras: NaN
    z = float(x > 0)
    assert abs(jax.grad(focal)(x, z, gamma=gamma)) < 1e-16
    logits, labels = f32(x, 0), f32(z, 1 - z)
    grad = jax.grad(jaxloss.softmax_focal_loss)(logits, labels, gamma=gamma)
    assert np.all(np.abs(grad) < 1e-16)


def test_perfect_prediction_in_bfloat16():  # Keras: inf or NaN
    one = jnp.asarray(1, jnp.bfloat16)
    assert jaxloss.binary_cross_entropy(one, 1) == 0
    assert jax.grad(jaxloss.binary_cross_entropy)(one, 1.0) == -1


def test_labels_keep_their_integers():  # Keras in bfloat16 reads class 1000 for 1001
    x = jnp.zeros(2000, jnp.bfloat16).at[1001].set(10)
    assert sparse(x, 1001) < 0.1 < sparse(x, 1000)


def test_zero_weight_masks_nan():  # Keras: NaN
    loss = jaxloss.Loss(bce)
    x, y, w = f32(0, nan), f32(1, 1), f32(1, 0)
    np.testing.assert_allclose(loss(x, y, weights=w), np.log(2) / 2, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda v: loss(v, y, weights=w))(x), [-0.25, 0])


def test_large_logit_of_the_positive_class():  # flax's VAE example: NaN
    assert 0 <= bce(100.0, 1) < 1e-37
    assert bce(-100.0, 1) == 100


def test_empty_batch():  # a mean of nothing: NaN
    assert jaxloss.Loss(bce)(jnp.zeros((0, 3)), jnp.zeros((0, 3))) == 0


def test_rank_mismatch():  # optax: silently (2, 2)
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2,\)"):
        bce(jnp.zeros((2, 1)), jnp.zeros(2))


def test_smooth_labels_without_classes():  # optax: inf
    np.testing.assert_array_equal(
        jaxloss.smooth_labels(f32(1, 0), 0.1, where=jnp.array([False, False])), [0, 0]
    )
