"""Classes that a bias of -inf, a logit of -inf or `class_where` excludes are as if not there."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss.linear import _pallas_tpu
from tests import declared
from tests.devices import mesh
from tests.linear.test_cross_entropy import (
    assert_close,
    operands,
    settings,
    value_and_gradients,
    written_out,
)

CE = jaxloss.linear_cross_entropy
SWEEPS = {
    "tokens": {"chunk_size": 4},
    "vocab": {"chunk_size": 7},
    "dense": {},
    "pallas_tpu": {},
}
V, LEFT = 24, 10  # Of all classes, so many are left.
LIVE = np.arange(V) < LEFT


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    chip = _pallas_tpu.Chip(2**20, wins=True, interpret=True)
    monkeypatch.setattr(_pallas_tpu, "CHIP_FOR_TESTS", chip)


def of_sweep(name, **more):
    return partial(CE, implementation=name, **SWEEPS[name], **more)


each_sweep = pytest.mark.parametrize("sweep", SWEEPS)
OPTIONS = settings(v=V) | {"label_smoothing": np.float32(0.25)}


@each_sweep
def test_smoothing_is_shared_by_the_classes_that_are_left(sweep):
    bias = np.float32([0, 0, -np.inf])
    fused = of_sweep(sweep, label_smoothing=0.1)
    run = jax.value_and_grad(
        lambda b: fused(np.zeros((1, 1), np.float32), np.zeros((1, 3), np.float32), [0], bias=b)
    )
    value, gradient = run(bias)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [-0.45, 0.45, 0], atol=1e-7)


@pytest.mark.parametrize("how", ["bias", "class_where"])
@each_sweep
def test_as_if_not_there(sweep, how):
    hidden, weight, labels = operands(v=V)
    labels %= LEFT
    given = dict(OPTIONS)
    extra = {"class_where": LIVE} if how == "class_where" else {}
    if how == "bias":
        given["bias"] = np.where(LIVE, given["bias"], -np.inf).astype(np.float32)
    got = value_and_gradients(of_sweep(sweep), labels, **extra)(hidden, weight, given)
    with jax.enable_x64(True):
        few = {
            k: np.float64(x[:LEFT] if k in ("bias", "class_weights") else x)
            for k, x in given.items()
        }
        want = value_and_gradients(written_out, labels)(
            np.float64(hidden), np.float64(weight[:, :LEFT]), few
        )
    value, (dh, dw, ds) = got
    of_others = dw[:, LEFT:], ds["bias"][LEFT:], ds["class_weights"][LEFT:]
    assert not any(np.any(x) for x in of_others)
    ds |= {k: ds[k][:LEFT] for k in ("bias", "class_weights")}
    assert_close((value, (dh, dw[:, :LEFT], ds)), want, 2e-5)


@each_sweep
def test_a_logit_of_minus_infinity(sweep):
    hidden, weight, labels = operands(v=V)
    hidden, labels = np.abs(hidden), labels % LEFT
    out = np.where(LIVE, weight, -np.inf).astype(np.float32)
    run = jax.jit(
        partial(of_sweep(sweep), label_smoothing=0.25, class_weights=OPTIONS["class_weights"])
    )
    got = run(hidden, out, labels)
    few = partial(CE, label_smoothing=0.25, class_weights=OPTIONS["class_weights"][:LEFT])
    np.testing.assert_allclose(got, few(hidden, weight[:, :LEFT], labels), rtol=2e-6)


SMOOTHED = [
    fn
    for fn in declared.FUNCTIONS
    if declared.takes(fn).has("row") and "label_smoothing" in inspect.signature(fn).parameters
]


def test_which_functions_smooth():
    assert {fn.__name__ for fn in SMOOTHED} == {
        "softmax_cross_entropy_with_integer_labels",
        "linear_cross_entropy",
    }


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.few(3)
def test_logits_of_minus_infinity_in_the_plain_loss(axis, weighted):
    """In value and derivatives, as `where`, and as the loss of the other classes."""
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(6, V)).astype(np.float32), np.arange(6) % LEFT
    weights = rng.uniform(size=V).astype(np.float32) if weighted else None
    fn = partial(jaxloss.softmax_cross_entropy_with_integer_labels, label_smoothing=0.25, axis=axis)
    excluded = np.where(LIVE, logits, -np.inf).astype(np.float32)

    @jax.jit
    def run(x, live=None, weights=weights):
        def loss(x):
            x, mask = (x, live) if axis else (x.T, None if live is None else live.T)
            return fn(x, labels, where=mask, class_weights=weights)

        return (
            loss(x),
            jax.grad(lambda x: jnp.sum(loss(x)))(x),
            jax.jvp(jax.grad(lambda x: jnp.sum(loss(x))), (x,), (np.cos(logits[:, : x.shape[1]]),))[
                1
            ],
        )

    got, by_where = run(excluded), run(logits, np.broadcast_to(LIVE, logits.shape))
    few = run(logits[:, :LEFT], weights=None if weights is None else weights[:LEFT])
    for a, b, c in zip(got, by_where, few, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        a = a[:, :LEFT] if a.ndim == 2 else a
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)


LINEAR = {
    "statistics": lambda h, w, y, **s: (
        jaxloss.linear_statistics(h, w, y, chunk_size=4, **s).entropy
        - jaxloss.linear_statistics(h, w, y, chunk_size=4, **s).log_prob
    ),
    "kl": lambda h, w, y, **s: jaxloss.linear_distillation(h, w, 2 * h, -w, chunk_size=4, **s),
    "js": lambda h, w, y, **s: jaxloss.linear_distillation(
        h, w, 2 * h, -w, divergence="js", chunk_size=4, **s
    ),
    "none": lambda h, w, y, **s: CE(
        h, w, y, reduction="none", label_smoothing=0.5, chunk_size=4, **s
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_class_where_of_the_other_linear_losses(name):
    hidden, weight, labels = operands(v=V)
    labels %= LEFT

    def run(weight, **s):
        by = np.arange(1, len(labels) + 1, dtype=np.float32)
        fn = lambda h, w: jnp.sum(by * LINEAR[name](h, w, labels, **s))
        return jax.jit(jax.value_and_grad(fn, (0, 1)))(hidden, weight)

    value, (dh, dw) = run(weight, class_where=LIVE)
    assert not np.any(dw[:, LEFT:])
    assert_close((value, (dh, dw[:, :LEFT])), run(weight[:, :LEFT]), 5e-6)


@pytest.mark.parametrize("sweep", ["tokens", "vocab"])
def test_class_where_with_the_vocabulary_over_devices(sweep):
    hidden, weight, labels = operands(v=V)
    labels %= LEFT

    def local(h, w, live):
        return of_sweep(sweep, label_smoothing=0.25, axis_name="v")(h, w, labels, class_where=live)

    split = jax.shard_map(
        local, mesh=mesh(v=8), in_specs=(P(), P(None, "v"), P("v")), out_specs=P()
    )
    got = jax.jit(jax.value_and_grad(split, (0, 1)))(hidden, weight, LIVE)
    few = jax.value_and_grad(partial(CE, label_smoothing=0.25), (0, 1))
    value, (dh, dw) = few(hidden, weight[:, :LEFT], labels)
    assert_close(got, (value, (dh, np.pad(dw, ((0, 0), (0, V - LEFT))))), 5e-6)


def test_class_where_in_a_loss():
    hidden, weight, labels = operands(v=V)
    labels %= LEFT
    loss = jaxloss.Loss(CE, label_smoothing=0.25)
    got = loss(hidden, weight, labels, class_where=LIVE)
    np.testing.assert_allclose(got, loss(hidden, weight[:, :LEFT], labels), rtol=1e-6)


def test_a_label_of_an_excluded_class_is_infinite():
    hidden, weight, labels = operands(v=V)
    losses = CE(hidden, weight, labels * 0 + LEFT, class_where=LIVE, reduction="none")
    assert np.all(losses == np.inf)


def test_errors():
    hidden, weight, labels = operands(v=V)
    with pytest.raises(
        ValueError, match=r"class_where of shape \(3,\) do not match weight with 24"
    ):
        CE(hidden, weight, labels, class_where=np.ones(3, bool))
    with pytest.raises(TypeError, match="class_where must be boolean"):
        CE(hidden, weight, labels, class_where=np.ones(V))
