"""Unit vectors: of any length, of none, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.vectors import unit_vector
from tests.test_pairs import X, grad, hessian, jacfwd, jacrev


def test_unit():
    of = lambda x: unit_vector(x, 0)
    for scale in (1e-37, 1e-25, 1.0, 1e20, 1e37):
        x = np.float32([0.6, -0.8, 0]) * np.float32(scale)
        np.testing.assert_allclose(unit_vector(x, 0), [0.6, -0.8, 0], rtol=3e-7)
        projection = np.eye(3) - np.outer([0.6, -0.8, 0], [0.6, -0.8, 0])
        for jacobian in (jacfwd(of)(x), jacrev(of)(x)):
            np.testing.assert_allclose(np.float64(jacobian) * scale, projection, atol=1e-6)
    # XLA rewrites what it knows to be constant.
    constant = jax.jit(lambda: unit_vector(X * np.float32(1e-25), 1))()
    np.testing.assert_allclose(constant, unit_vector(X, 1), rtol=1e-6)
    zero = np.zeros(3, np.float32)
    for derivative in (of, jacfwd(of), jacrev(of), hessian(of)):
        np.testing.assert_array_equal(derivative(zero), 0)
    for bad in (np.nan, np.inf):
        assert np.isnan(np.sum(unit_vector(np.float32([bad, 1, 2]), 0)))
    with jax.enable_x64(True):
        x, v, w = np.float64(X[0]), np.float64(X[1]), np.float64(X[2])
        plain = lambda x: jnp.sum(x / jnp.sqrt(jnp.sum(x * x)) * w)
        ours = lambda x: jnp.sum(unit_vector(x, 0) * w)
        for _ in range(3):
            np.testing.assert_allclose(ours(x), plain(x), rtol=1e-12)
            np.testing.assert_allclose(grad(ours)(x), grad(plain)(x), rtol=1e-11)
            along = lambda f: lambda x: jax.jvp(f, (x,), (v,))[1]
            ours, plain = along(ours), along(plain)
