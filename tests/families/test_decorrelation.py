"""Two views of a batch: what changes nothing, masks, devices, corners."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from tests.devices import mesh

N, D = 24, 5
RNG = np.random.default_rng(0)
A = RNG.normal(size=(N, D)).astype(np.float32)
B = A + RNG.normal(size=(N, D)).astype(np.float32) / 2
MASK = RNG.uniform(size=N) < 0.7
barlow, vicreg = jaxloss.barlow_twins_loss, jaxloss.vicreg_loss
EACH = pytest.mark.parametrize("loss", [barlow, vicreg], ids=lambda f: f.__name__)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)


def value_and_gradients(loss):
    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def test_definition_of_barlow_twins():
    c = np.corrcoef(np.float64(A), np.float64(B), rowvar=False)[:D, D:]
    off = c - np.diag(np.diag(c))
    close(barlow(A, B), np.sum((1 - np.diag(c)) ** 2) + 5e-3 * np.sum(off**2))
    close(barlow(A, B, off_diagonal_weight=0.0), np.sum((1 - np.diag(c)) ** 2))


def test_definition_of_vicreg():
    terms = np.zeros(3)
    terms[0] = np.mean((np.float64(A) - B) ** 2)
    for x in (A, B):
        v = np.cov(np.float64(x), rowvar=False)
        terms[1] += np.mean(np.maximum(1 - np.sqrt(np.diag(v) + 1e-4), 0)) / 2
        terms[2] += (np.sum(v**2) - np.sum(np.diag(v) ** 2)) / D
    for weights in ((25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 3.0)):
        close(vicreg(A, B, weights=weights), np.dot(weights, terms))


def test_scale_and_offset_do_not_matter_to_correlations():
    scale, offset = np.float32([1e-20, 2, -64, 1e15, 1]), np.float32([0, 3e3, 0, 0, -100])
    sign = np.sign(scale)
    want, (by_a, _) = value_and_gradients(barlow)(A * sign, B)
    got, (gradient, _) = value_and_gradients(barlow)(A * scale + offset, B)
    np.testing.assert_allclose(got, want, rtol=2e-3)
    np.testing.assert_allclose(np.float64(gradient) * np.abs(scale), by_a, rtol=2e-2, atol=1e-3)
    np.testing.assert_allclose(barlow(A, A, off_diagonal_weight=0.0), 0, atol=1e-12)


def test_far_from_zero():
    """As far as the mean of the features themselves would have no digits of their deviation."""
    far = A + np.float32(1e6)
    near = [np.float32(np.float64(x) - 1e6) for x in (far, B + np.float32(1e6))]
    for loss in (barlow, vicreg):
        close(loss(far, B + np.float32(1e6)), loss(*near))
    huge = np.float32([[3e38], [2e38], [-3e38]])
    np.testing.assert_allclose(barlow(huge, -huge), 4, rtol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1e4, 0.0])
def test_a_feature_without_variance(value):
    """Correlates 0, whatever its mean is rounded to."""
    a = A.copy()
    a[:, 2] = value
    loss, (by_a, by_b) = value_and_gradients(barlow)(a, B)
    c = np.corrcoef(np.float64(np.delete(a, 2, 1)), np.float64(B), rowvar=False)[: D - 1, D - 1 :]
    own = c[np.arange(D - 1), [0, 1, 3, 4]]
    close(loss, 1 + np.sum((1 - own) ** 2) + 5e-3 * (np.sum(c**2) - np.sum(own**2)))
    np.testing.assert_array_equal(by_a[:, 2], 0)
    assert np.all(np.isfinite(by_b)) and np.all(np.isfinite(by_a))
    # Here it has a standard deviation of 0.01, at the foot of the root.
    only = functools.partial(vicreg, weights=(0.0, 2.0, 0.0))
    np.testing.assert_allclose(only(a[:, 2:3], a[:, 2:3]), 2 * 0.99, rtol=1e-6)
    # Which is round there: that of one view is 1 - sqrt((x - y)**2 / 2 + 1e-4).
    curved = jax.hessian(lambda x: only(x[:, None], a[:2, 2:3]))(jnp.full(2, value, jnp.float32))
    np.testing.assert_allclose(curved, 50 * np.array([[-1, 1], [1, -1]]), rtol=1e-4)


def test_vicreg_on_both_sides_of_a_deviation_of_one():
    only = functools.partial(vicreg, weights=(0.0, 2.0, 0.0))
    x = jnp.float32([[1.0], [-1.0]]) * np.float32(np.sqrt(0.5))
    slope = jax.grad(lambda s: only(s * x, s * x))
    np.testing.assert_allclose([slope(jnp.float32(s)) for s in (0.99, 1.01)], [-2, 0], rtol=1e-3)


@EACH
@pytest.mark.parametrize("poison", [0.5, np.nan, np.inf])
def test_masked_rows_do_not_exist(loss, poison):
    bad = [np.where(MASK[:, None], x, np.float32(poison)) for x in (A, B)]
    run = value_and_gradients(functools.partial(loss, where=MASK))
    value, gradients = run(*bad)
    want, expected = value_and_gradients(loss)(A[MASK], B[MASK])
    close(value, want)
    for got, gradient in zip(gradients, expected, strict=True):
        close(got[MASK], gradient)
        np.testing.assert_array_equal(np.asarray(got)[~MASK], 0)


@EACH
def test_without_rows_and_with_one(loss):
    nothing = functools.partial(loss, where=np.zeros(N, bool))
    for x in jax.tree.leaves(value_and_gradients(nothing)(A, B)):
        np.testing.assert_array_equal(x, 0)
    value, gradients = value_and_gradients(loss)(A[:1], B[:1])
    one = D if loss is barlow else 25 * np.mean((A[0] - B[0]) ** 2) + 25 * 0.99
    close(value, one)
    assert all(np.all(np.isfinite(g)) for g in gradients)


@EACH
def test_a_batch_over_devices(loss):
    """Each has the whole loss, and its rows of the whole gradient."""

    def on_each(a, b, where):
        return loss(a, b, where=where, axis_name="i")

    split = jax.shard_map(on_each, mesh=mesh(i=8), in_specs=P("i"), out_specs=P())
    got = value_and_gradients(lambda a, b: split(a, b, MASK))(A, B)
    want = value_and_gradients(functools.partial(loss, where=MASK))(A, B)
    jax.tree.map(close, got, want)


@EACH
def test_nan_is_loud(loss):
    bad = np.where(np.arange(N)[:, None] == 3, np.float32(np.nan), A)
    value, (gradient, _) = value_and_gradients(loss)(bad, B)
    assert np.isnan(value) and np.all(np.isnan(gradient[3]))


def test_settings_have_derivatives():
    weights = jnp.float32([25.0, 25.0, 1.0])
    by_weights = jax.grad(lambda w: vicreg(A, B, weights=w))(weights)
    close(jnp.sum(by_weights * weights), vicreg(A, B))
    slope = jax.grad(lambda w: barlow(A, B, off_diagonal_weight=w))(jnp.float32(1.0))
    close(slope, barlow(A, B, off_diagonal_weight=1.0) - barlow(A, B, off_diagonal_weight=0.0))


MESSAGES = {
    "shapes": (lambda: barlow(A, B[:3]), ValueError, r"\(24, 5\).*\(3, 5\)"),
    "rank": (lambda: vicreg(A[0], B[0]), ValueError, r"\(batch, features\)"),
    "three weights": (lambda: vicreg(A, B, weights=(1.0, 2.0)), ValueError, "got 2"),
    "one weight": (lambda: vicreg(A, B, weights=2.0), ValueError, "got 1"),
    "weights": (lambda: vicreg(A, B, weights=(1.0, -2.0, 1.0)), ValueError, "weights.*-2"),
    "weight": (lambda: barlow(A, B, off_diagonal_weight=-1.0), ValueError, "off_diagonal_weight"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_errors_name_what_came(name):
    call, error, match = MESSAGES[name]
    with pytest.raises(error, match=match):
        call()
