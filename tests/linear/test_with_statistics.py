"""`linear_cross_entropy(return_statistics=True)`: what a sweep says of each token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss.linear import _pallas_tpu
from tests.devices import mesh
from tests.linear.test_cross_entropy import assert_close, matmuls, operands, settings

N, D, V = 13, 5, 300
CE = jaxloss.linear_cross_entropy
SWEEPS = {
    "tokens": {"implementation": "tokens", "chunk_size": 4},
    "stored": {"implementation": "stored", "chunk_size": 4},
    "vocab": {"implementation": "vocab", "chunk_size": 70},
    "pallas_tpu": {"implementation": "pallas_tpu"},
    "dense": {"implementation": "dense"},
    "none": {"reduction": "none", "chunk_size": 4},
}
OPTIONS = {k: x for k, x in settings(v=V).items() if k != "weights"}
OF_LOGITS = {k: OPTIONS[k] for k in ("bias", "logit_softcap")}
each_sweep = pytest.mark.parametrize("sweep", SWEEPS)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    chip = _pallas_tpu.Chip(2**20, wins=True, interpret=True)
    monkeypatch.setattr(_pallas_tpu, "CHIP_FOR_TESTS", chip)


def with_gradients(loss):
    """The loss, what else comes with it, and gradients by hidden and weight, of one program."""

    def total(hidden, weight, labels):
        out = loss(hidden, weight, labels)
        value, aux = out if isinstance(out, tuple) else (out, None)
        return jnp.sum(value), aux

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))


def assert_statistics(got, want, tolerance=2e-6):
    assert_close(got[:3], want[:3], tolerance)
    for a, b in zip(got[3:5], want[3:5], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


MASKS = {
    "where": {"where": np.arange(N) % 3 != 1},
    "weights": {"weights": np.linspace(0, 2, N, dtype=np.float32)},
    "ignore_index": {"ignore_index": 3},
}


@pytest.mark.parametrize("mask", MASKS)
@each_sweep
@pytest.mark.few(7)
def test_the_loss_is_the_same_and_the_statistics_are_those_of_linear_statistics(sweep, mask):
    hidden, weight, labels = operands(n=N, d=D, v=V)
    labels[::4] = 3
    loss = partial(CE, **SWEEPS[sweep], **OPTIONS, **MASKS[mask])
    (value, none), gradients = with_gradients(loss)(hidden, weight, labels)
    assert none is None
    run = with_gradients(partial(loss, return_statistics=True))
    (same, stats), same_gradients = run(hidden, weight, labels)
    assert_close((same, same_gradients), (value, gradients), 3e-7)

    masks = {} if mask == "weights" else MASKS[mask]
    want = jaxloss.linear_statistics(hidden, weight, labels, **OF_LOGITS, **masks)
    assert_statistics(stats, want)
    assert want.z_loss is None and stats.z_loss.shape == ((N,) if sweep == "none" else ())
    without, _ = with_gradients(partial(loss, z_loss=0.0))(hidden, weight, labels)
    np.testing.assert_allclose(jnp.sum(stats.z_loss), value - without[0], rtol=1e-5)


@pytest.mark.parametrize("implementation", ["vocab", "pallas_tpu", "dense"])
def test_implementations_of_linear_statistics(implementation):
    hidden, weight, labels = operands(n=N, d=D, v=V)
    run = partial(jaxloss.linear_statistics, temperature=1.5, **OF_LOGITS)
    got = jax.jit(partial(run, implementation=implementation))(hidden, weight, labels)
    assert_statistics(got, run(hidden, weight, labels))


@each_sweep
def test_a_confident_token_keeps_its_digits_whatever_its_label(sweep):
    x = np.zeros((3, 24), np.float32)
    x[:, 1:] = -np.linspace(20, 30, 23)
    x[2] = 7  # All the same.
    labels = np.int32([0, 9, 20])
    static = SWEEPS[sweep] | ({"chunk_size": 5} if sweep == "vocab" else {})
    _, stats = CE(np.eye(3, dtype=np.float32), x, labels, return_statistics=True, **static)
    with jax.enable_x64(True):
        log_p = jax.nn.log_softmax(jnp.float64(x))
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
        np.testing.assert_allclose(stats.log_prob, log_p[np.arange(3), labels], rtol=3e-7)
        np.testing.assert_allclose(stats.entropy, entropy, rtol=1e-6)
        np.testing.assert_allclose(stats.logsumexp[2], 7 + np.log(24), rtol=3e-7)
    np.testing.assert_array_equal(stats.argmax, 0)
    np.testing.assert_array_equal(stats.correct, [True, False, False])


@each_sweep
def test_what_the_masked_hold_changes_nothing_and_a_bad_label_is_loud(sweep):
    hidden, weight, labels = operands(n=N, d=D, v=V)
    hidden[2], labels[2] = np.nan, -7
    labels[5] = V
    where = np.arange(N) != 2
    loss = partial(CE, where=where, return_statistics=True, **SWEEPS[sweep])
    _, stats = jax.jit(loss)(hidden, weight, labels)
    for column in stats[:5]:
        assert not np.asarray(column)[2]
    assert list(np.flatnonzero(np.isnan(stats.log_prob))) == [5]
    assert np.isfinite(stats.entropy).all() and np.isfinite(stats.logsumexp).all()


@pytest.mark.parametrize("sweep", ["tokens", "stored", "vocab", "none"])
def test_statistics_have_no_derivative(sweep):
    hidden, weight, labels = operands(n=5, d=2, v=7)
    loss = partial(CE, labels=labels, z_loss=0.1, **SWEEPS[sweep])
    run = partial(loss, return_statistics=True)

    def entropy(hidden, weight):
        value, stats = run(hidden, weight)
        return jnp.sum(value) * 0 + jnp.sum(stats.entropy + stats.log_prob) + jnp.sum(stats.z_loss)

    of_first, of_second = (
        jax.jit(lambda v, f=f: jax.jvp(jax.grad(lambda w: jnp.sum(f(w))), (weight,), (v,)))(weight)
        for f in (lambda w: run(hidden, w)[0], lambda w: loss(hidden, w))
    )
    assert_close(of_first, of_second, 1e-6)
    for gradient in jax.jit(jax.grad(entropy, (0, 1)))(hidden, weight):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("sweep", "number"), [("tokens", 3), ("stored", 3), ("vocab", 4)])
def test_there_is_one_sweep(sweep, number):
    hidden, weight, labels = operands(n=64, d=16, v=96)
    static = {"implementation": sweep, "chunk_size": 32 if sweep == "vocab" else 16}
    loss = lambda h, w: CE(h, w, labels, return_statistics=True, **static)
    assert matmuls(jax.value_and_grad(loss, (0, 1), has_aux=True), hidden, weight) == number


@pytest.mark.parametrize("sweep", ["tokens", "stored", "vocab"])
def test_vocabulary_over_devices(sweep):
    hidden, weight, labels = operands(n=16, d=D, v=80)
    weight[:, 70] = weight[:, 3]  # A tie, of classes on two devices.
    static = SWEEPS[sweep] | ({"chunk_size": 4} if sweep == "vocab" else {})
    loss = partial(CE, return_statistics=True, z_loss=0.1, **static)
    specs = P(), P(None, "v"), P()
    split = jax.shard_map(
        partial(loss, axis_name="v"), mesh=mesh(v=8), in_specs=specs, out_specs=P()
    )
    (value, stats), gradients = with_gradients(split)(hidden, weight, labels)
    (want, want_stats), want_gradients = with_gradients(loss)(hidden, weight, labels)
    assert_statistics(stats, want_stats)
    assert_close((value, stats.z_loss, gradients), (want, want_stats.z_loss, want_gradients), 5e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_tokens_over_devices(kind):
    hidden, weight, labels = operands(n=16, d=D, v=80)
    loss = partial(CE, return_statistics=True, chunk_size=2)
    m = mesh(kind, d=8)
    put = lambda x, spec: jax.device_put(x, NamedSharding(m, spec))
    with jax.set_mesh(m):
        args = put(hidden, P("d")), put(weight, P()), put(labels, P("d"))
        (_, got), _ = with_gradients(loss)(*args)
    assert_statistics(got, jaxloss.linear_statistics(hidden, weight, labels))


@pytest.mark.parametrize("sweep", ["tokens", "stored", "vocab", "pallas_tpu"])
def test_half_precision_is_computed_in_float32(sweep):
    hidden, weight, labels = operands(n=N, d=D, v=V)
    hidden, weight = jnp.bfloat16(hidden), jnp.bfloat16(weight)
    _, stats = jax.jit(partial(CE, return_statistics=True, **SWEEPS[sweep]))(hidden, weight, labels)
    assert {x.dtype for x in stats[:3]} == {jnp.dtype("float32")}
    wide = jnp.float32(hidden), jnp.float32(weight)
    assert_statistics(stats, jaxloss.linear_statistics(*wide, labels))


def test_parts_add_up():
    hidden, weight, labels = operands(n=12, d=D, v=V)
    labels[:5] = -1
    run = partial(CE, reduction="parts", ignore_index=-1, z_loss=0.1, return_statistics=True)
    whole, stats = run(hidden, weight, labels)
    parts = [run(hidden[i : i + 4], weight, labels[i : i + 4]) for i in (0, 4, 8)]
    for of in (lambda out: out[0], lambda out: out[1].z_loss):
        together = sum((of(out) for out in parts[1:]), of(parts[0]))
        np.testing.assert_allclose(together.value, of((whole, stats)).value, rtol=1e-6)
    metrics = jaxloss.classification_metrics(stats, labels, ignore_index=-1)
    of_labels = stats.correct.sum() / (labels >= 0).sum()
    np.testing.assert_allclose(metrics["accuracy"].value, of_labels)
