"""Metrics as Means: their definitions in NumPy, and that parts of a batch add up."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import Mean, classification_metrics, value_and_grad

RNG = np.random.default_rng(0)
N, C = 24, 7
X = RNG.normal(size=(N, C)).astype("f") * 2
Y = RNG.integers(-1, C, N)
SIZES = RNG.integers(1, 9, N)
X[3] = 1.5  # A tie of all: the first of them is predicted.
BAD = np.where((Y < 0)[:, None], np.nan, X).astype("f")
metrics = partial(classification_metrics, ignore_index=-1, top_k=3, bytes_per_token=SIZES, bins=10)


def close(got, want, rtol=2e-6):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-7)


def written_out(x, y, sizes):
    x, sizes, y = x[y >= 0].astype("d"), sizes[y >= 0], y[y >= 0]
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    nll = -np.log(p[np.arange(len(y)), y])
    order = np.argsort(-x, -1, kind="stable")
    right, confidence = order[:, 0] == y, p.max(-1)
    edges = np.linspace(0, 1, 11)
    error = 0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(confidence[inside].mean() - right[inside].mean())
            error += inside.mean() * gap
    return {
        "loss": nll.mean(),
        "perplexity": np.exp(nll.mean()),
        "accuracy": right.mean(),
        "bits_per_byte": nll.sum() / np.log(2) / sizes.sum(),
        "top_3_accuracy": (order[:, :3] == y[:, None]).any(-1).mean(),
        "brier_score": ((p - np.eye(C)[y]) ** 2).sum(-1).mean(),
        "calibration_error": error,
    }


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("shape", [(N,), (4, 6)])
@pytest.mark.parametrize("x", [X, BAD], ids=["", "nan"])
@pytest.mark.few(3)
def test_values(x, shape, wrap):
    call = lambda x, y, sizes: metrics(x, y, bytes_per_token=sizes)
    got = wrap(call)(x.reshape(*shape, C), Y.reshape(shape), SIZES.reshape(shape))
    want = written_out(X, Y, SIZES)
    assert set(got) == set(want) and all(isinstance(m, Mean) for m in got.values())
    for name, metric in got.items():
        assert metric.value.shape == () and metric.value.dtype == jnp.float32
        close(metric.value, want[name])
    first = jnp.moveaxis(x.reshape(*shape, C), -1, 0)
    by_axis = call.__globals__["metrics"](first, Y.reshape(shape), axis=0,
                                          bytes_per_token=SIZES.reshape(shape))  # fmt: skip
    close(by_axis["brier_score"].value, want["brier_score"])
    masked = metrics(x, np.abs(Y), where=Y >= 0)
    close(masked["loss"].value, want["loss"])


def test_parts_add_up():
    cuts = (slice(0, 5), slice(5, 6), slice(6, N))
    is_mean = lambda x: isinstance(x, Mean)

    @jax.jit
    def of_parts():
        parts = [metrics(X[i], Y[i], bytes_per_token=SIZES[i]) for i in cuts]
        return jax.tree.map(lambda *m: sum(m), *parts, is_leaf=is_mean)

    added = of_parts()
    for name, want in written_out(X, Y, SIZES).items():
        close(added[name].value, want)
    with pytest.raises(TypeError):
        added["loss"] + added["perplexity"]


@pytest.mark.parametrize("microbatches", [None, 3])
def test_in_a_training_step(microbatches):
    def objective(scale, x, y, sizes):
        loss = jaxloss.Loss(jaxloss.softmax_cross_entropy_with_integer_labels, ignore_index=-1)
        return loss.parts(scale * x, y), metrics(scale * x, y, bytes_per_token=sizes)

    step = jax.jit(value_and_grad(objective, microbatches=microbatches, has_aux=True))
    (value, (_, got)), gradient = step(jnp.float32(1), X, Y, SIZES)
    for name, want in written_out(X, Y, SIZES).items():
        close(got[name].value, want)
    close(value, got["loss"].value)
    assert gradient != 0
    assert jax.grad(lambda s: objective(s, X, Y, SIZES)[1]["brier_score"].value)(1.0) == 0
    with pytest.raises(TypeError, match="must return its terms"):
        value_and_grad(lambda s, x, y: metrics(s * x, y)["perplexity"])(1.0, X, Y)


def test_of_linear_statistics():
    hidden, weight = RNG.normal(size=(N, 3)).astype("f"), RNG.normal(size=(3, C)).astype("f")
    stats = jaxloss.linear_statistics(hidden, weight, Y, where=Y >= 0)
    got = classification_metrics(stats, Y, ignore_index=-1, bytes_per_token=SIZES)
    assert list(got) == ["loss", "perplexity", "accuracy", "bits_per_byte"]
    want = written_out(hidden @ weight, Y, SIZES)
    for name, metric in got.items():
        close(metric.value, want[name], 1e-5)


def test_bad_labels_are_loud_and_nothing_is_nothing():
    bad = classification_metrics(X, np.where(np.arange(N) == 5, C, 0), top_k=2)
    assert all(jnp.isnan(m.value) for m in bad.values())
    none = metrics(X, np.full(N, -1))
    assert none.pop("perplexity").value == 1
    assert all(m.value == 0 for m in none.values())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics(X, Y.astype("f")), TypeError, "labels must be integers"),
        (lambda: metrics(X, Y[:3]), ValueError, r"labels of shape \(3,\).*\(24, 7\)"),
        (lambda: metrics(X, Y, bins=0), ValueError, "bins must be at least 1"),
        (lambda: metrics(X, Y, top_k=0), ValueError, "top_k must be at least 1"),
        (lambda: metrics(X, Y, bytes_per_token=3), ValueError, r"bytes_per_token of shape \(\)"),
        (lambda: metrics(X, Y, where=np.ones(3, bool)), ValueError, r"where of shape \(3,\)"),
        (
            lambda: metrics(jaxloss.linear_statistics(X, np.eye(C, dtype="f"), Y), Y),
            ValueError,
            "top_k needs logits",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
