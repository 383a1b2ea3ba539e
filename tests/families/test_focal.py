"""The generalised cross-entropy and its derivatives by q; limits of the asymmetric loss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

import jaxloss
from jaxloss._families.focal import bounded_nll
from tests.cases._exact import ulps
from tests.test_transforms import close, rng

gce = jaxloss.generalized_cross_entropy
ce = jaxloss.softmax_cross_entropy_with_integer_labels
X = rng().normal(size=(6, 5)).astype(np.float32) * 3
Y = np.array([0, 1, 2, 3, 4, 0])


def moment(n, q, k):
    """The integral over u from 0 to n of u**k exp(-q u), which is (-d/dq)**k of the loss."""
    if q == 0:
        return mpf(n) ** (k + 1) / (k + 1)
    return mp.gammainc(k + 1, 0, mpf(q) * mpf(n)) / mpf(q) ** (k + 1)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_derivatives_by_q(order, x64):
    dtype = np.float64 if x64 else np.float32
    nll = np.geomspace(1e-6, 80, 17).astype(np.float32)
    q = np.float32([0, 1e-30, 1e-6, 0.01, 0.25, 0.7, 0.99, 1])
    grid = [a.ravel() for a in np.meshgrid(nll, q)]
    with jax.enable_x64(x64):
        fn = bounded_nll
        for _ in range(order):
            fn = jax.grad(fn, 1)
        got = jax.jit(jax.vmap(fn))(*(a.astype(dtype) for a in grid))
    for n, p, value in zip(*grid, np.asarray(got), strict=True):
        exact = (-1) ** order * moment(float(n), float(p), order)
        # exp(-q n) amplifies the rounding of its argument.
        assert ulps(float(value), exact, abs(exact) * (1 + float(p * n)), dtype) <= 8, (n, p)


def test_limits():
    run = jax.jit(lambda q: (gce(X, Y, q=q), jax.grad(lambda x: gce(x, Y, q=q).sum())(X)))
    want = jax.value_and_grad(lambda x: ce(x, Y).sum())(X)[1]
    for q in (0.0, 1e-30, 1e-9):
        close(run(q), (ce(X, Y), want), 1e-6, 1e-7)
    p = jax.nn.softmax(X)
    close(run(1.0)[0], 1 - p[np.arange(6), Y], 1e-5, 1e-6)


def test_confident_and_wrong_to_the_last_digit():
    np.testing.assert_allclose(gce(np.float32([20, 0]), 0), np.exp(-20), rtol=1e-6)
    np.testing.assert_allclose(gce(np.float32([0, 200]), 0), 1 / 0.7, rtol=1e-6)
    slope = jax.grad(gce)(np.float32([20, 0]), 0)
    np.testing.assert_allclose(slope, [-np.exp(-20), np.exp(-20)], rtol=1e-6)


def test_decreases_in_q_and_in_the_label_logit():
    q = np.linspace(0, 1, 11, dtype=np.float32)
    losses = np.stack([gce(X, Y, q=v) for v in q])
    assert np.all(np.diff(losses, axis=0) < 0)
    ramp = np.linspace(-20, 20, 41, dtype=np.float32)
    row = np.stack([ramp, 0 * ramp], -1)
    assert np.all(np.diff(gce(row, np.zeros(41, int))) < 0)


def test_an_impossible_label():
    """Bounded, without a gradient; of its limit, the cross-entropy, the value is infinite."""
    x = np.float32([-np.inf, 0, 1])
    fn = lambda x, q: gce(x, 0, q=q)
    for q in (0.25, 1.0):
        np.testing.assert_allclose(fn(x, q), 1 / q)
        np.testing.assert_array_equal(jax.grad(fn)(x, q), 0)
        np.testing.assert_array_equal(jax.hessian(fn)(x, q), 0)
        np.testing.assert_allclose(jax.grad(fn, 1)(x, q), -1 / q**2, rtol=1e-6)
        np.testing.assert_allclose(jax.grad(jax.grad(fn, 1), 1)(x, q), 2 / q**3, rtol=1e-6)
    assert fn(x, 0.0) == np.inf
    np.testing.assert_array_equal(jax.grad(fn)(x, 0.0), jax.grad(ce)(x, 0))


def test_q_may_be_an_option_of_a_loss_and_traced():
    loss = jaxloss.Loss(gce, q=0.5, ignore_index=-1)
    y = np.where(Y == 4, -1, Y)
    slope = jax.jit(jax.grad(lambda loss: loss(X, y)))(loss)
    want = jax.grad(lambda q: gce(X, y, q=q, ignore_index=-1).sum() / 5)(0.5)
    close(slope.options["q"], want)


@pytest.mark.parametrize("q", [-0.1, 1.5, np.float32(2), float("nan")])
def test_q_out_of_range(q):
    with pytest.raises(ValueError, match="q must be in"):
        gce(X, Y, q=q)


def test_q_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"q of shape \(6,\)"):
        gce(X, Y, q=np.full(6, 0.5))
    with pytest.raises(TypeError, match="labels must be integers"):
        gce(X, Y.astype(float))


def test_bad_labels():
    loss, slope = jax.vmap(jax.value_and_grad(partial(gce, ignore_index=-100)))(
        jnp.zeros((3, 5)), jnp.array([5, -1, -100])
    )
    assert np.all(np.isnan(loss[:2])) and np.all(np.isnan(slope[:2]))
    assert loss[2] == 0 and np.all(slope[2] == 0)


asl = jaxloss.asymmetric_loss
LOGITS = np.float32([-np.inf, -100, -8, -2.9, -0.5, 0, 0.7, 9, 100, np.inf])


def test_asymmetric_is_focal_without_clipping():
    for g in (0.0, 0.5, 2.0):
        for z in (0, 1):
            want = jaxloss.sigmoid_focal_loss(LOGITS, z, gamma=g)
            for clip in (0.0, jnp.float32(0)):
                got = asl(LOGITS, z, gamma_negative=g, gamma_positive=g, clip=clip)
                close(np.minimum(got, 1e30), np.minimum(want, 1e30))


def test_asymmetric_in_its_tails():
    """What is found for certain costs nothing; what is not, as much as clipping leaves."""
    loss, pull = jax.vjp(lambda x: asl(x, 0), LOGITS)
    close(loss[-2:], np.full(2, -(0.95**4) * np.log(0.05)))
    np.testing.assert_array_equal(loss[:3], 0)
    (slope,) = pull(jnp.ones_like(loss))
    assert np.all(np.isfinite(slope)) and np.all(slope >= 0)
    np.testing.assert_array_equal(slope[:3], 0)
    loss, pull = jax.vjp(lambda x: asl(x, 1), LOGITS)
    np.testing.assert_array_equal(np.asarray(loss)[[0, -1]], [np.inf, 0])
    (slope,) = pull(jnp.ones_like(loss))
    close(np.asarray(slope)[[0, -1]], np.float32([-1, 0]))


def test_settings_of_each_label():
    x, z = X, np.int32(X > 1)
    gammas, clips = np.float32([0, 1, 2, 3, 4]), np.float32([0, 0.05, 0.1, 0, 0.3])
    got = asl(x, z, gamma_negative=gammas, clip=clips)
    for c in range(5):
        close(got[:, c], asl(x[:, c], z[:, c], gamma_negative=gammas[c], clip=float(clips[c])))
    with pytest.raises(ValueError, match=r"clip must be in \[0, 1\)"):
        asl(x, z, clip=1.0)


def test_at_the_edge_of_what_costs():
    at = np.float32(0)  # Of which the sigmoid is 1/2.
    for gamma in (0.0, 0.5, 4.0):
        fn = lambda x, g=gamma: asl(x, 0, gamma_negative=g, clip=0.5)
        assert fn(at) == 0 and jax.grad(fn)(at) == 0 and jax.grad(jax.grad(fn))(at) == 0
