"""Classes of unequal frequency: weights and a bias, against mpmath, and what they are for."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import jaxloss
from jaxloss import class_weights_from_counts, logit_adjustment

COUNTS = np.array([900_000, 90, 1, 0, 10_007])


def close(got, want, ulps=4):
    want = np.array([float(w) for w in want])
    np.testing.assert_allclose(got, want, rtol=ulps * np.finfo(got.dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_values(wrap, dtype):
    with jax.enable_x64(dtype == np.float64), mpmath.workdps(40):
        counts, n = jnp.asarray(COUNTS.astype(dtype)), int(COUNTS.sum())
        wide = jnp.float64 if dtype == np.float64 else jnp.float32
        got = wrap(class_weights_from_counts)(counts)
        assert got.dtype == wide
        close(got, [mpmath.mpf(n) / (4 * int(k)) if k else 0 for k in COUNTS])
        for beta in (0.0, 0.9, 0.999, 1 - 1e-7):
            effective = lambda c, beta=beta: class_weights_from_counts(
                c, method="effective_number", beta=beta
            )
            b = mpmath.mpf(beta)
            each = [(1 - b) / (1 - b ** int(k)) if k else mpmath.mpf(0) for k in COUNTS]
            got = wrap(effective)(counts)
            assert got.dtype == wide
            close(got, [4 * e / sum(each) for e in each], 8)
        got = wrap(logit_adjustment)(counts)
        assert got.dtype == wide
        close(got, [mpmath.log(mpmath.mpf(int(k)) / n) if k else -mpmath.inf for k in COUNTS])


def test_what_they_say():
    counts = jnp.array([900, 90, 10])
    weights = class_weights_from_counts(counts)
    np.testing.assert_allclose(weights * counts.astype(jnp.float32), 1000 / 3, rtol=1e-6)
    few = class_weights_from_counts(counts, method="effective_number", beta=0.0)
    np.testing.assert_array_equal(few, np.ones(3))
    np.testing.assert_array_equal(logit_adjustment(jnp.array([2, 0]), 0.0), [0, 0])
    np.testing.assert_allclose(logit_adjustment(counts, 2), 2 * np.log([0.9, 0.09, 0.01]), 1e-6)
    for bad in (class_weights_from_counts, logit_adjustment):
        assert jnp.isnan(bad(jnp.array([1.0, -1.0]))).all()


def test_as_options_of_losses():
    """A class that never occurs has weight zero, or a logit of minus infinity."""
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("f")
    y, counts = np.array([0, 2, 2, 0, 0]), np.array([3, 0, 2])
    ce = jaxloss.softmax_cross_entropy_with_integer_labels
    bias = logit_adjustment(counts)

    def adjusted(x):
        return jaxloss.Loss(ce)(x + jnp.broadcast_to(bias, x.shape), y)

    value, gradient = jax.value_and_grad(adjusted)(x)
    other = np.array([0, 2])
    want = jaxloss.Loss(ce)(x[:, other] + np.log(counts[other] / 5).astype("f"), y // 2)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_array_equal(gradient[:, 1], 0)
    linear = jaxloss.linear_cross_entropy(x, np.eye(3, dtype="f"), y, bias=bias)
    np.testing.assert_allclose(linear, want, rtol=1e-6)
    weights = class_weights_from_counts(counts)
    weighed = jaxloss.linear_cross_entropy(x, np.eye(3, dtype="f"), y, class_weights=weights)
    each = ce(x, y) * np.array([5 / 6, 0, 5 / 4], "f")[y]
    np.testing.assert_allclose(weighed, np.mean(each), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: class_weights_from_counts(3), ValueError, r"shape \(\) must have one axis"),
        (lambda: logit_adjustment(np.ones((2, 2))), ValueError, r"shape \(2, 2\).*bincount"),
        (lambda: class_weights_from_counts([1j]), TypeError, "counts must be real"),
        (lambda: class_weights_from_counts([1], method="rare"), ValueError, "method must be"),
        (lambda: class_weights_from_counts([1], beta=1.0), ValueError, r"beta must be in \[0, 1\)"),
        (lambda: logit_adjustment([1], np.ones(2)), ValueError, r"tau of shape \(2,\)"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
