"""Clipped probabilities: the value is Keras's, the derivative that of the formula at the clip."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import keras

EPS = 1e-7


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def bce(q, t):
    return -t * jnp.log(q) - (1 - t) * jnp.log1p(-q)


def focal(q, t):
    return (t * (1 - q) + (1 - t) * q) ** 0.5 * bce(q, t)


def nll(q, t):
    return -t * jnp.log(q)


def categorical_focal(q, t):
    return -0.25 * (1 - q) ** 0.5 * t * jnp.log(q)


def kl(q, t):
    t = jnp.clip(t, EPS, 1)
    return t * jnp.log(t / q)


def msle(q, t):
    return (jnp.log1p(q) - jnp.log1p(jnp.maximum(t, EPS))) ** 2


def elementwise(loss, **options):
    return lambda t, p: loss(t[:, None], p[:, None], **options)


def of_rows(loss, **options):
    """A row of the probability and what is left, of which the label is on the first."""

    def call(t, p):
        zero = jnp.zeros_like(t)
        return loss(jnp.stack([t, zero], 1), jnp.stack([p, 1 - p], 1), **options)

    return call


@partial(jax.jit, static_argnums=0)
def along_ones(f, x):
    """Of an elementwise function, its second derivatives."""
    return jax.jvp(jax.grad(f), (x,), (jnp.ones_like(x),))[1]


CASES = [
    ("binary", elementwise(keras.binary_crossentropy), bce, (EPS, 1 - EPS)),
    ("focal", elementwise(keras.binary_focal_crossentropy, gamma=0.5), focal, (EPS, 1 - EPS)),
    ("categorical", of_rows(keras.categorical_crossentropy), nll, (EPS, 1 - EPS)),
    (
        "categorical focal",
        of_rows(keras.categorical_focal_crossentropy, gamma=0.5),
        categorical_focal,
        (EPS, 1 - EPS),
    ),
    ("kl", elementwise(keras.kl_divergence), kl, (EPS, 1)),
    ("squared log", elementwise(keras.mean_squared_logarithmic_error), msle, (EPS, np.inf)),
]


@pytest.mark.parametrize(
    ("loss", "formula", "limits"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
@pytest.mark.few(2)
def test_derivatives_are_those_at_the_clip(loss, formula, limits):
    p = jnp.array([0.0, 1e-12, 1e-8, EPS, 2e-7, 0.3, 1 - 2e-7, 1 - EPS, 1 - 1e-8, 1.0])
    for t in (0.0, 0.25, 1.0):
        t = jnp.full(p.shape, t)
        q = jnp.clip(p, *limits)

        def ours(p, t=t):
            return jnp.sum(loss(t, p))

        def exact(q, t=t):
            return jnp.sum(formula(q, t))

        slopes = jax.jit(jax.grad(ours))(p), jax.jit(jax.grad(exact))(q)
        np.testing.assert_allclose(*slopes, 1e-7, 1e-12)
        second = [along_ones(ours, p), along_ones(exact, q)]
        np.testing.assert_allclose(*second, 1e-6, 1e-9)
        if formula is not focal:
            np.testing.assert_allclose(loss(t, p), formula(q, t), 1e-8, 1e-15)


def test_no_gradient_vanishes():
    loss = lambda p: jnp.sum(keras.binary_crossentropy(jnp.array([[1.0], [0.0]]), p))
    slope = jax.grad(loss)(jnp.array([[1e-9], [1.0]], jnp.float32))
    np.testing.assert_allclose(slope, [[-1e7], [2**23]], 1e-6)
    # From logits nothing is clipped, by any of them.
    x = jnp.array([[-40.0]], jnp.float32)
    for f in (keras.binary_crossentropy, keras.binary_focal_crossentropy):
        loss = lambda x: jnp.sum(f(jnp.ones((1, 1)), x, from_logits=True))  # noqa: B023
        value, slope = jax.jit(jax.value_and_grad(loss))(x)
        np.testing.assert_allclose((value, slope[0, 0]), (40, -1), 1e-6)
    row = jnp.array([[-40.0, 0.0]], jnp.float32)
    loss = lambda x: jnp.sum(
        keras.categorical_focal_crossentropy(jnp.array([[1.0, 0]]), x, from_logits=True)
    )
    np.testing.assert_allclose(jax.grad(loss)(row), [[-0.25, 0.25]], 1e-6)


def test_largest_values_in_float32():
    p = jnp.array([[0.0], [1.0]], jnp.float32)
    got = keras.binary_crossentropy(jnp.array([[1.0], [0.0]]), p)
    np.testing.assert_allclose(got, [16.118095, 15.942385], 1e-7)


def test_focal_value_of_a_perfect_prediction_is_zero():
    assert keras.binary_focal_crossentropy([[1.0, 0.0]], [[1.0, 0.0]]) == 0


@pytest.mark.parametrize(
    "gamma", [0.5, *(pytest.param(g, marks=pytest.mark.slow) for g in (0.0, 1.0, 2.0))]
)
def test_focal_derivatives_are_finite_at_perfect_predictions(gamma):
    for loss, t, p in (
        (keras.binary_focal_crossentropy, [[1.0, 0.0]], [[1.0, 0.0]]),
        (keras.categorical_focal_crossentropy, [[1.0, 0.0]], [[1.0, 0.0]]),
    ):
        f = lambda p: jnp.sum(loss(jnp.array(t), p, gamma=gamma))  # noqa: B023
        for derivative in (jax.grad(f), jax.hessian(f)):
            assert np.isfinite(jax.jit(derivative)(jnp.array(p))).all()


def test_bounded_cross_entropy_at_zero():
    def loss(p):
        return jnp.sum(keras.categorical_generalized_cross_entropy([0], p, 0.5))

    p = jnp.array([[0.0, 1.0]])
    assert loss(p) == 2
    np.testing.assert_allclose(jax.grad(loss)(p), [[-(EPS**-0.5), 0]], 1e-12)


def test_poisson_at_zero():
    assert keras.poisson([[0.0]], [[0.0]]) == 0
    slope = jax.grad(lambda p: jnp.sum(keras.poisson([[1.0]], p)))(jnp.zeros((1, 1)))
    np.testing.assert_allclose(slope, [[1 - 1e7]], 1e-12)
    value, slope = jax.value_and_grad(lambda p: jnp.sum(keras.poisson([[0.0]], p)))(
        jnp.full((1, 1), -1.0)
    )
    assert np.isnan(value) and np.isnan(slope)
