"""`Loss(..., "class_weighted_mean")`: torch's mean, over the sum of the weights of the labels."""

import inspect

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import Loss
from tests import declared
from tests.devices import mesh

# Every function that weighs classes by their labels.
WEIGHING = [
    fn
    for fn in declared.FUNCTIONS
    if declared.takes(fn).has("labels") and "class_weights" in inspect.signature(fn).parameters
]
CE = jaxloss.softmax_cross_entropy_with_integer_labels
W = np.float32([0.5, 1, 4, 2, 0.25])
N = 8
each = pytest.mark.parametrize("fn", WEIGHING)


def batch(fn):
    return declared.arguments(fn, np.random.default_rng(0), N)


def test_which_functions_weigh_classes():
    assert {CE, jaxloss.linear_cross_entropy} <= set(WEIGHING)


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_is_the_mean_that_torch_documents(smoothing):
    """Of `CrossEntropyLoss(weight=w, label_smoothing=s)`, with targets that are ignored."""
    logits = np.float32([[1, 2, 0], [0, -1, 3], [2, 2, 1], [5, 0, 0]])
    labels, w = np.array([0, 1, 2, -100]), np.float32([0.5, 1, 4])
    nll = np.log(np.sum(np.exp(logits), 1, keepdims=True)) - logits
    total = sum(
        (1 - smoothing) * w[k] * row[k] + smoothing / 3 * np.sum(w * row)
        for row, k in zip(nll[:3], labels[:3], strict=True)
    )
    options = {"class_weights": w, "label_smoothing": smoothing, "ignore_index": -100}
    got = Loss(CE, "class_weighted_mean", **options)(logits, labels)
    np.testing.assert_allclose(got, total / np.sum(w[labels[:3]]), rtol=1e-6)


@each
def test_over_the_weights_of_the_labels(fn):
    arguments, where = batch(fn), np.arange(N) % 3 != 1
    weights = np.linspace(0, 2, N, dtype=np.float32)
    labels = arguments["labels"]
    losses = np.asarray(Loss(fn, "none", class_weights=W)(**arguments))
    for options in (
        {},
        {"weights": weights},
        {"where": where},
        {"weights": weights, "where": where},
    ):
        w, m = options.get("weights", 1), options.get("where", True)
        loss = Loss(fn, "class_weighted_mean", class_weights=W)
        want = np.sum(w * m * losses) / np.sum(w * m * W[labels])
        np.testing.assert_allclose(loss(**arguments, **options), want, rtol=1e-6)
        np.testing.assert_allclose(loss.parts(**arguments, **options).value, want, rtol=1e-6)
    ignoring = Loss(fn, "class_weighted_mean", class_weights=W, ignore_index=-1)
    ignored = arguments | {"labels": np.where(where, labels, -1)}
    got, slope = jax.value_and_grad(lambda loss: loss(**ignored))(ignoring)
    want = np.sum(where * losses) / np.sum(where * W[labels])
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # By the class weights too: a weight that all share cancels.
    np.testing.assert_allclose(np.sum(W * slope.options["class_weights"]), 0, atol=1e-6)
    assert ignoring(**arguments, where=np.zeros(N, bool)) == 0


@each
def test_over_devices(fn):
    arguments = batch(fn)
    loss = Loss(fn, "class_weighted_mean", class_weights=W)
    takes = declared.takes(fn).operands
    specs = {k: P() if takes[k].kind == "shared" else P("d") for k in arguments}
    share = loss.replace(axis_name="d")
    run = jax.shard_map(
        lambda a: jax.lax.psum(share(**a), "d"), mesh=mesh(d=8), in_specs=(specs,), out_specs=P()
    )
    np.testing.assert_allclose(jax.jit(run)(arguments), loss(**arguments), rtol=1e-6)
    explicit = mesh(AxisType.Explicit, d=8)
    rows = {k: NamedSharding(explicit, spec) for k, spec in specs.items()}
    with jax.set_mesh(explicit):
        got = jax.jit(lambda a: loss(**a))(jax.device_put(arguments, rows))
    np.testing.assert_allclose(got, loss(**arguments), rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match=r"class_weighted_mean.*give class_weights"):
        Loss(CE, "class_weighted_mean")(np.ones((2, 3)), np.zeros(2, int))
    with pytest.raises(ValueError, match="reduction must be one of"):
        jaxloss.Mean.of(np.ones(3), "class_weighted_mean")  # type: ignore
