"""Losses of metric learning: Keras's circle loss and its weights; triplets of any degree, at kinks.

What the circle loss has in common with other losses of pairs is tested in `tests/test_pairs.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxloss
from tests.programs import as_users
from tests.test_pairs import EYE, LABELS, B, X, Y, cosines, grad, hessian, jacfwd


def keras_circle(x, y, references, labels, diagonal, gamma=80, margin=0.4):
    """What `keras.losses.circle` computes, in float64."""
    d = np.maximum(1 - np.float64(x) @ np.float64(references).T, 0)
    out = np.zeros(len(x))
    for i, row in enumerate(d):
        alike = labels == y[i]
        keep = np.ones(len(row), bool)
        if diagonal and i < len(row):
            keep[i] = False
        p, q = row[alike & keep], row[~alike]
        pull = -gamma * np.maximum(margin + p, 0) * (margin - p)
        push = gamma * np.maximum(1 + margin - q, 0) * (1 - margin - q)
        if len(p) and len(q):
            exponent = np.logaddexp.reduce(pull) + np.logaddexp.reduce(push)
            out[i] = np.logaddexp(0, exponent)
    return out


def test_circle_loss_of_keras():
    loss = functools.partial(jaxloss.circle_loss, normalize=False, detach_weights=False)
    x, y = X / 4, Y[: B - 4] / 4
    labels = LABELS[4:]
    np.testing.assert_allclose(loss(x, LABELS), keras_circle(x, LABELS, x, LABELS, True), rtol=2e-5)
    for diagonal in (True, False):
        got = loss(
            x,
            LABELS,
            reference_embeddings=y,
            reference_labels=labels,
            remove_diagonal=diagonal,
            chunk_size=9,
        )
        want = keras_circle(x, LABELS, y, labels, diagonal)
        np.testing.assert_allclose(got, want, rtol=2e-5)
    # Without a word about the diagonal, references are another set.
    plain = loss(x, LABELS, reference_embeddings=y, reference_labels=labels)
    np.testing.assert_allclose(plain, got, rtol=1e-6)
    whole = loss(x, LABELS, reference_embeddings=x, reference_labels=LABELS)
    np.testing.assert_allclose(whole, loss(x, LABELS, remove_diagonal=False), rtol=1e-6)


def test_circle_loss_detaches_its_weights():
    """Its derivative is that with the weights written in as numbers."""
    with jax.enable_x64(True):
        x = np.float64(X)
        s = cosines(X, X)
        pull, push = np.maximum(1.4 - s, 0), np.maximum(s + 0.4, 0)
        alike = LABELS[:, None] == LABELS[None, :]

        def held(x):
            u = x / np.linalg.norm(x, axis=1)[:, None]
            s = u @ u.T
            e = np.exp(-8 * pull * (s - 0.6)), np.exp(8 * push * (s - 0.4))
            attraction = np.where(alike & ~EYE, e[0], 0).sum(1)
            return np.log1p(attraction * np.where(alike, 0, e[1]).sum(1)).sum()

        loss = lambda x: jnp.sum(jaxloss.circle_loss(x, LABELS, gamma=8.0))
        v = np.float64(Y)
        difference = (held(x + 1e-6 * v) - held(x - 1e-6 * v)) / 2e-6
        np.testing.assert_allclose(loss(x), held(x), rtol=1e-12)
        np.testing.assert_allclose(jax.jvp(loss, (x,), (v,))[1], difference, rtol=1e-7)
        np.testing.assert_allclose(np.sum(grad(loss)(x) * v), difference, rtol=1e-7)


A = np.float32([[0.5, -1, 2], [1, 1, 1], [0, 3, 0]])
POS, NEG = A + np.float32([0.5, -0.25, 1]), A - np.float32([0.25, 0, 2])


@pytest.mark.parametrize("degree", [1, 1.5, 2, 3, 4, 7.25])
def test_triplet_degrees(degree):  # optax at 1, 1.5, 3: 8.0, NaN, NaN
    def distance(a, b):
        return (np.sum(np.abs(np.float64(a) - b) ** degree, -1) + 1e-6) ** (1 / degree)

    want = np.maximum(distance(A, POS) - distance(A, NEG) + 3, 0)
    loss = jaxloss.triplet_margin_loss
    np.testing.assert_allclose(loss(A, POS, NEG, -1, degree, 3.0), want, rtol=1e-6)
    np.testing.assert_allclose(loss(A, POS, NEG, -1, jnp.float32(degree), 3.0), want, rtol=1e-6)
    with jax.enable_x64(True):
        f = lambda a: jnp.sum(loss(a, np.float64(POS), np.float64(NEG), -1, degree, 3.0))
        at, v = np.float64(A), np.random.default_rng(0).normal(size=A.shape)
        gradient = grad(f)
        # Not along the axis where anchor and negative are equal, a kink at degree 1.
        v[:, 1] = 0
        difference = (f(at + 1e-6 * v) - f(at - 1e-6 * v)) / 2e-6
        np.testing.assert_allclose(np.sum(gradient(at) * v), difference, rtol=1e-6)
        change = (gradient(at + 1e-6 * v) - gradient(at - 1e-6 * v)) / 2e-6
        curvature = jax.jvp(gradient, (at,), (v,))[1]
        np.testing.assert_allclose(curvature, change, rtol=1e-5, atol=1e-6)
    if degree in (2, 4):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            theirs = optax.losses.triplet_margin_loss(A, POS, NEG, -1, degree, 3.0)
        np.testing.assert_allclose(loss(A, POS, NEG, -1, degree, 3.0), theirs, rtol=1e-5)


@pytest.mark.parametrize("degree", [1, 1.5, 2, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_triplet_at_a_distance_of_zero(degree, eps):
    f = lambda a: jaxloss.triplet_margin_loss(a, A[0], NEG[0], -1, degree, 3.0, eps)
    distance = lambda a: jaxloss.triplet_margin_loss(a, A[0], a, -1, degree, 1.0, eps)
    np.testing.assert_array_equal(grad(distance)(A[0]), [0, 0, 0])
    for derivative in (grad(f), jacfwd(f), hessian(f)):
        assert np.all(np.isfinite(derivative(A[0])))
    if degree == 2 and eps:
        second = hessian(distance)(A[0])
        np.testing.assert_allclose(second, np.eye(3) / np.sqrt(1e-6), rtol=1e-5)


def test_triplet_at_its_margin():
    f = lambda a: jaxloss.triplet_margin_loss(a, np.float32([2, 0]), np.float32([-1, 0]), eps=0.0)
    # 2 - 1 = margin less two, then at it: (2 - a) - (a + 1) + 1 = 0 at a = 1.
    assert f(np.float32([1, 0])) == 0
    np.testing.assert_array_equal(grad(f)(np.float32([1, 0])), [-1, 0])
    np.testing.assert_array_equal(grad(f)(np.float32([0.5, 0])), [-2, 0])


def test_triplet_shapes_and_mask():
    loss = functools.partial(jaxloss.triplet_margin_loss, margin=3.0)
    want = loss(A, POS, NEG)
    np.testing.assert_allclose(loss(A.T, POS.T, NEG.T, axis=0), want, rtol=1e-6)
    np.testing.assert_allclose(loss(A[:1], POS, NEG), loss(np.repeat(A[:1], 3, 0), POS, NEG))
    live = np.array([True, False, True])
    poisoned = np.where(live[:, None], A, np.float32(np.nan))
    np.testing.assert_allclose(loss(poisoned, POS, NEG, where=live), np.where(live, want, 0))
    f = lambda a: jnp.sum(loss(a, POS, NEG, where=live))
    assert np.all(np.isfinite(grad(f)(poisoned)))
    assert np.all(np.isfinite(hessian(f)(poisoned)))


def test_triplet_degree_has_a_derivative():
    f = lambda q: jnp.sum(jaxloss.triplet_margin_loss(A, POS, NEG, -1, q, 3.0))
    difference = (f(np.float32(2.55)) - f(np.float32(2.45))) / 0.1
    np.testing.assert_allclose(grad(f)(np.float32(2.5)), difference, rtol=1e-2)


def test_triplets_with_nan_survive_a_reduction():
    """XLA's CPU reductions drop a NaN in a maximum."""
    a, p, n = np.random.default_rng(0).normal(size=(3, 4096, 8)).astype(np.float32)
    a[5, 3] = np.nan

    def mean(a):
        return jnp.mean(jaxloss.triplet_margin_loss(a, p, n))

    assert np.isnan(jax.jit(mean)(a))
    gradient = jax.jit(jax.grad(mean))(a)
    assert np.all(np.isnan(gradient[5])) and np.isnan(gradient).sum() == 8


batch_hard = jaxloss.batch_hard_triplet_loss


def test_batch_hard_far_from_the_origin():
    """Of distances by products there no digit would be left: the hardest, too, would be others."""
    at = X + np.float32(2**14)
    near = np.float64(at) - 2**14  # As it was rounded.
    np.testing.assert_allclose(batch_hard(at, LABELS), batch_hard(np.float32(near), LABELS), 1e-6)
    for scale in (1e-25, 1e25):
        got = batch_hard(np.float32(scale) * X, LABELS, margin=scale)
        np.testing.assert_allclose(np.float64(got) / scale, batch_hard(X, LABELS), rtol=1e-5)


def test_batch_hard_at_its_kinks():
    """Distances 2 and 2 at a margin of 0; rows at one place; two that are equally far."""
    hinge = np.float32([[0, 0], [2, 0], [0, 2]])
    loss = lambda x, **options: batch_hard(x, np.array([0, 0, 1]), **options)[0]
    np.testing.assert_allclose(grad(functools.partial(loss, margin=0.0))(hinge)[1], [0.5, 0])
    np.testing.assert_allclose(loss(hinge, soft=True), np.log(2), rtol=1e-6)
    together = hinge * np.float32([[1], [0], [1]])
    gradient = grad(functools.partial(loss, margin=3.0))(together)
    np.testing.assert_allclose(gradient, [[0, 1], [0, 0], [0, -1]])
    assert np.all(np.isfinite(hessian(functools.partial(loss, margin=3.0))(together)))
    equal = np.float32([[0, 0], [1, 0], [-1, 0], [0, 5]])
    of_first = grad(lambda x: batch_hard(x, np.array([0, 0, 0, 1]), margin=9.0)[0])(equal)
    np.testing.assert_allclose(of_first[1:3], [[1, 0], [0, 0]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_batch_hard_of_a_row_that_is_not_finite(value):
    """It may be the nearest of every other row, or the farthest; masked it is none."""
    x, labels = X.copy(), LABELS.copy()
    x[3, 0], labels[0] = value, 77
    losses, pull = jax.vjp(lambda x: batch_hard(x, labels), x)
    has_positive = np.sum(labels[:, None] == labels, 1) > 1
    np.testing.assert_array_equal(np.isnan(losses), has_positive)
    assert np.all(np.isnan(pull(jnp.ones_like(losses))[0][has_positive]))
    live = np.arange(len(x)) != 3
    got = batch_hard(x, labels, where=live)
    np.testing.assert_allclose(got[live], batch_hard(X[live], labels[live]), rtol=1e-6)


def test_batch_hard_of_nothing():
    loss = lambda x: batch_hard(x, np.zeros(0, int))
    assert loss(X[:0]).shape == (0,) and grad(lambda x: jnp.sum(loss(x)))(X[:0]).shape == (0, 8)


def test_batch_hard_compares_without_an_array_of_differences():
    """Nor, in blocks, with one of all pairs."""
    x = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    labels = jax.ShapeDtypeStruct((4096,), jnp.int32)
    for size, most in ((None, 3 * 4096**2), (128, 4096**2 // 8)):
        run = jax.value_and_grad(lambda x, y, n=size: jnp.sum(batch_hard(x, y, chunk_size=n)))
        program = as_users(run).lower(x, labels).compile()
        assert program.memory_analysis().temp_size_in_bytes < 4 * most


MESSAGES = {
    "margin": (lambda: jaxloss.circle_loss(X, LABELS, margin=1.5), ValueError, "margin"),
    "references": (
        lambda: jaxloss.circle_loss(X, LABELS, reference_embeddings=Y),
        ValueError,
        "reference_labels",
    ),
    "features": (
        lambda: jaxloss.circle_loss(
            X, LABELS, reference_embeddings=Y[:, 1:], reference_labels=LABELS
        ),
        ValueError,
        r"\(24, 8\).*\(24, 7\)",
    ),
    "degree": (lambda: jaxloss.triplet_margin_loss(A, POS, NEG, -1, 0.5), ValueError, "degree"),
    "triplets": (lambda: jaxloss.triplet_margin_loss(A, POS[:2], NEG), ValueError, r"\(2, 3\)"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_errors_name_what_came(name):
    call, error, match = MESSAGES[name]
    with pytest.raises(error, match=match):
        call()
