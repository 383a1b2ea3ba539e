"""Cosines of vectors of any scale, of zeros, and of vectors that are almost parallel."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

f32 = lambda *v: jnp.array(v, jnp.float32)
SCALES = [1.2e-38, 1e-30, 1e-25, 1e-9, 1, 1e9, 1e20, 1e30, 1e38]


@pytest.mark.parametrize("scale", SCALES[1:])
def test_cosine_of_any_scale(scale):  # optax: inf at 1e-25, 0 at 1e20
    a, b = f32(3, 4, 0) / 4 * scale, f32(4, 3, 0)
    np.testing.assert_allclose(jaxloss.cosine_similarity(a, b), 0.96, rtol=1e-6)
    np.testing.assert_allclose(jaxloss.cosine_similarity(b, a), 0.96, rtol=1e-6)
    np.testing.assert_allclose(jaxloss.cosine_distance(a, a * 2), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("fn", "sign"), [(jaxloss.cosine_similarity, 1), (jaxloss.cosine_distance, -1)]
)
@pytest.mark.parametrize("beside", [1, 0])  # Of a row of zeros the scale is never skipped.
@pytest.mark.parametrize("scale", SCALES)
def test_gradient_of_cosine_of_any_scale(scale, beside, fn, sign):
    """Also of rows beside those of another scale; and of targets of another scale."""
    p, t = np.tile([[1.5], [2], [-1]], 3).T, np.float32([[2, 2.5, -2], [1.5, 2, -1], [2, -1, 2]])
    a, b = p / math.sqrt(7.25), t / np.linalg.norm(t, axis=1, keepdims=True)
    cosine = np.sum(a * b, 1, keepdims=True)
    rows, last = (cosine, beside) if sign == 1 else (1 - cosine, 1 - beside)
    run = jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(fn(x, y))))
    for others in SCALES:
        x, y = (np.pad(v * s, [(0, 1), (0, 0)]) for v, s in ((p, scale), (t, others)))
        x[-1] = y[-1] = beside
        value, gradient = run(np.float32(x), np.float32(y))
        np.testing.assert_allclose(value, np.sum(rows) + last, rtol=1e-6)
        slope = np.float64(gradient[:-1]) * scale * math.sqrt(7.25)
        # What is less than the least number is none.
        least = 2e-38 * scale * math.sqrt(7.25)
        np.testing.assert_allclose(slope, sign * (b - a * cosine), atol=5e-7 + least)


def test_cosine_of_half_precision():  # optax: 0
    v = jnp.array([300, 300], jnp.float16)
    np.testing.assert_allclose(jaxloss.cosine_similarity(v, v), 1, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1e-14, 1e-6])
@pytest.mark.parametrize(
    ("fn", "value"), [(jaxloss.cosine_similarity, 0), (jaxloss.cosine_distance, 1)]
)
@pytest.mark.few(2)
def test_cosine_of_a_zero_vector(fn, value, epsilon):  # optax, and Keras's gradient: NaN
    zero, v = jnp.zeros(3), f32(1, 2, 2)
    fn = partial(fn, epsilon=epsilon)
    for p, t in ((zero, v), (v, zero), (zero, zero)):
        assert fn(p, t) == value
        for argnum in (0, 1):
            gradient = jax.grad(fn, argnum)
            if (p, t)[argnum] is zero:
                np.testing.assert_array_equal(gradient(p, t), 0)
                np.testing.assert_array_equal(jax.jacfwd(gradient)(zero, zero), 0)


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-6])
def test_almost_parallel_vectors(gap):
    """The distance is not lost beside the one; rounded unit vectors are off by eps / angle."""
    a, b = np.float32([3, 4]), np.float32([3, 4 + 4 * gap])
    (x, y), (u, v) = np.float64(a), np.float64(b)
    angle = math.asin((x * v - y * u) / (math.hypot(x, y) * math.hypot(u, v)))
    np.testing.assert_allclose(
        jaxloss.cosine_distance(a, b), 2 * math.sin(angle / 2) ** 2, rtol=1e-6 + 4e-7 / angle
    )
    slope = angle / 5 * np.array([4, -3]) / 5  # Of small angles.
    gradient = jax.grad(jaxloss.cosine_distance)(a, b)
    np.testing.assert_allclose(gradient, slope, rtol=angle + 4e-7 / angle)


def test_cosine_floor():
    """optax's epsilon is the smallest squared norm."""
    v = f32(3e-4, 4e-4)
    np.testing.assert_allclose(jaxloss.cosine_similarity(v, v, epsilon=1e-6), 0.25, rtol=1e-6)
    assert jaxloss.cosine_similarity(jnp.zeros(2), v, epsilon=1e-6) == 0
    # Below a floor, vectors of one direction are apart by what they are short of.
    for other, share in ((v, 0.78125), (2 * v, 0.78125**0.5)):
        got = jaxloss.cosine_distance(v, other, epsilon=3.2e-7)
        np.testing.assert_allclose(got, 1 - share, rtol=1e-6)
