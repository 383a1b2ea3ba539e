"""`linear_cross_entropy` of several labels a token, against all logits in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from tests.devices import mesh
from tests.linear.test_cross_entropy import assert_close

N, D, V, K = 9, 4, 16, 3
CE = jaxloss.linear_cross_entropy
RESTS = pytest.mark.parametrize("rest", ["none", "uniform", "proportional"])


def operands(dtype=np.float64):
    draw = np.random.default_rng(0)
    hidden, weight, bias = (2 * draw.normal(size=s) for s in ((N, D), (D, V), (V,)))
    labels = np.stack([draw.permutation(V)[:K] for _ in range(N)]).astype(np.int32)
    weights = draw.uniform(0, 1 / K, (N, K))
    return *(jnp.asarray(x, dtype) for x in (hidden, weight, bias, weights)), labels


SETTINGS = {
    "logit_softcap": 4.0,
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "weights": np.linspace(0, 2, N),
    "where": np.arange(N) % 4 != 1,
    "class_weights": np.linspace(0.5, 2, V),
}


def written_out(hidden, weight, bias, q, labels, *, rest="none", ignored=None, **s):
    x = hidden @ weight + bias[None]
    if "logit_softcap" in s:
        x = s["logit_softcap"] * jnp.tanh(x / s["logit_softcap"])
    nll = -jax.nn.log_softmax(x)
    q = q if ignored is None else jnp.where(ignored, 0, q)
    one_hot = jax.nn.one_hot(labels, V, dtype=x.dtype)
    one_hot = one_hot if ignored is None else jnp.where(ignored[..., None], 0, one_hot)
    given, lacking = jnp.any(one_hot > 0, 1), 1 - jnp.sum(q, 1)
    y = jnp.sum(q[..., None] * one_hot, 1)
    if rest == "uniform":
        y += jnp.where(given, 0, (lacking / jnp.sum(~given, 1).astype(x.dtype))[:, None])
    w = jnp.asarray(s.get("class_weights", np.ones(V)))[None]
    loss = jnp.sum(w * y * nll, 1)
    if rest == "proportional":
        loss -= lacking * jnp.log1p(-jnp.sum(jnp.where(given, jnp.exp(-nll), 0), 1))
    smooth = s.get("label_smoothing", 0.0)
    loss = (1 - smooth) * loss + smooth * jnp.mean(w * nll, 1)
    loss += s.get("z_loss", 0.0) * jax.nn.logsumexp(x, 1) ** 2
    live = jnp.asarray(s.get("where", np.ones(N, bool)))
    loss = jnp.where(live, jnp.asarray(s.get("weights", np.ones(N))) * loss, 0)
    return jnp.sum(loss) / jnp.sum(live.astype(loss.dtype))


def fused(hidden, weight, bias, q, labels, *, rest="none", **s):
    return CE(hidden, weight, labels, bias=bias, label_weights=q, label_rest=rest, **s)


def orders(f, args, labels):
    """Value, gradient by all, and the Hessian times a direction."""
    f = partial(f, labels=labels)
    v = tuple(jnp.cos(3 * x) for x in args)
    every = tuple(range(len(args)))
    both = lambda *a: (jax.value_and_grad(f, every)(*a), jax.jvp(jax.grad(f, every), a, v)[1])
    return jax.jit(both)(*args)


@pytest.mark.parametrize("sweep", ["tokens", "stored", "dense", "none"])
@RESTS
@pytest.mark.few(6)
def test_all_options(rest, sweep):
    with jax.enable_x64(True):
        *args, labels = operands()
        names = [k for k in SETTINGS if not (k == "class_weights" and rest == "proportional")]
        chosen = {k: SETTINGS[k] for k in names}
        static = {"implementation": sweep, "chunk_size": None if sweep == "dense" else 4}
        loss = partial(fused, rest=rest, **chosen, **static)
        if sweep == "none":
            each = partial(fused, rest=rest, **chosen | {"reduction": "none", "chunk_size": 4})
            loss = lambda *a, **k: jnp.sum(each(*a, **k)) / float(np.sum(SETTINGS["where"]))
        want = orders(partial(written_out, rest=rest, **chosen), args, labels)
        assert_close(orders(loss, args, labels), want, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
@RESTS
def test_each_option_alone(rest, name):
    if rest == "proportional" and name == "class_weights":
        pytest.skip("raises, as test_errors shows")
    with jax.enable_x64(True):
        *args, labels = operands()
        one = {name: SETTINGS[name], "rest": rest}
        got = orders(partial(fused, chunk_size=4, **one), args, labels)
        assert_close(got, orders(partial(written_out, **one), args, labels), 1e-12)


@RESTS
def test_ignored_labels_are_not_there(rest):
    with jax.enable_x64(True):
        *args, labels = operands()
        ignored = np.arange(N * K).reshape(N, K) % 4 == 1
        ignored[2] = True  # A token without any label.
        padded = np.where(ignored, -1, labels)
        got = orders(partial(fused, rest=rest, ignore_index=-1, chunk_size=4), args, padded)
        live = np.arange(N) != 2
        want = partial(written_out, rest=rest, ignored=jnp.asarray(ignored), where=live)
        assert_close(got, orders(want, args, labels), 1e-12)
        np.testing.assert_array_equal(got[0][1][3][ignored], 0)
        mean = fused(*args, padded, ignore_index=-1, reduction="parts")
        assert mean.size == N - 1


@pytest.mark.parametrize("sweep", ["tokens", "stored"])
def test_one_label_of_weight_one_is_that_label(sweep):
    hidden, weight, _, _, labels = operands(np.float32)
    run = partial(CE, implementation=sweep, chunk_size=4)
    of = lambda f: jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, weight)
    one = np.ones((N, 1), np.float32)
    got = of(lambda h, w: run(h, w, labels[:, :1], label_weights=one))
    assert_close(got, of(lambda h, w: run(h, w, labels[:, 0])), 1e-6)


def test_mixed_labels_may_be_the_same():
    *args, labels = operands(np.float32)
    twice = np.stack([labels[:, 0]] * 2, 1)
    half = np.full((N, 2), 0.5, np.float32)
    got = fused(*args[:3], half, twice)
    np.testing.assert_allclose(got, CE(*args[:2], labels[:, 0], bias=args[2]), rtol=1e-6)


@RESTS
def test_bad_labels_and_weights_are_loud_in_their_own_row(rest):
    *args, labels = operands(np.float32)
    labels = labels.copy()
    labels[3, 1], q = V, args[3].at[5, 0].set(-0.1)
    run = lambda h: fused(h, *args[1:3], q, labels, rest=rest, reduction="none")
    value, pull = jax.vjp(run, args[0])
    assert list(np.flatnonzero(np.isnan(value))) == [3, 5]
    (gradient,) = pull(jnp.ones(N))
    assert list(np.flatnonzero(np.isnan(gradient).any(1))) == [3, 5]
    live = np.isfinite(value)
    masked = fused(*args[:3], q, labels, rest=rest, where=live)
    np.testing.assert_allclose(masked, np.mean(value[live]), rtol=1e-6)


def test_the_rest_of_a_confident_student_keeps_its_digits():
    """With P the label's probability, log(1 - P) of a P that rounds to one."""
    x, q = np.float32([[30.0, 0.0, 0.0]]), np.float32([[0.75]])
    run = lambda w: CE(
        np.ones((1, 1), np.float32), w, np.int32([[0]]), label_weights=q, label_rest="proportional"
    )
    value, gradient = jax.jit(jax.value_and_grad(run))(x)
    tail = 2 * np.exp(-30.0)
    np.testing.assert_allclose(value, 0.75 * tail - 0.25 * np.log(tail), rtol=3e-7)
    np.testing.assert_allclose(gradient, [[0.25, -0.125, -0.125]], rtol=1e-6)


def test_uniform_is_over_the_classes_that_are_left():
    x, q = np.zeros((1, 4), np.float32), np.float32([[0.5]])
    loss = CE(
        np.ones((1, 1), np.float32), x, np.int32([[0]]), label_weights=q, label_rest="uniform",
        class_where=np.array([True, True, True, False]),
    )  # fmt: skip
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)


@pytest.mark.parametrize("sweep", ["tokens", "stored"])
@RESTS
@pytest.mark.few(3)
def test_vocabulary_over_devices(rest, sweep):
    *args, labels = operands(np.float32)
    run = partial(
        fused, labels=labels, rest=rest, implementation=sweep, chunk_size=4, return_statistics=True
    )
    specs = P(), P(None, "v"), P("v"), P()
    split = jax.shard_map(
        partial(run, axis_name="v"), mesh=mesh(v=8), in_specs=specs, out_specs=P()
    )
    of = lambda f: jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))(*args)
    got, want = of(split), of(run)
    assert_close((got[0][0], got[0][1][:3], got[1]), (want[0][0], want[0][1][:3], want[1]), 5e-6)


@RESTS
def test_half_precision(rest):
    hidden, weight, bias, q, labels = operands(np.float32)
    low = jnp.bfloat16(hidden), jnp.bfloat16(weight)
    run = lambda h, w: fused(h, w, bias, q, labels, rest=rest, chunk_size=4)
    value, gradients = jax.jit(jax.value_and_grad(run, (0, 1)))(*low)
    assert value.dtype == jnp.float32 and {g.dtype for g in gradients} == {jnp.dtype("bfloat16")}
    want = jax.jit(jax.value_and_grad(run, (0, 1)))(*map(jnp.float32, low))
    np.testing.assert_allclose(value, want[0], rtol=1e-6)
    assert_close(jax.tree.map(jnp.float32, gradients), want[1], float(jnp.finfo("bfloat16").eps))


def test_statistics_of_several_labels():
    hidden, weight, bias, q, labels = operands(np.float32)
    _, stats = fused(hidden, weight, bias, q, labels, return_statistics=True, chunk_size=4)
    log_p = jax.nn.log_softmax(hidden @ weight + bias[None])
    of_labels = np.take_along_axis(np.asarray(log_p), labels, 1)
    np.testing.assert_allclose(stats.log_prob, np.sum(q * of_labels, 1), rtol=1e-5)
    best = labels[np.arange(N), np.argmax(q, 1)]
    np.testing.assert_array_equal(stats.correct, np.argmax(log_p, 1) == best)


def test_errors():
    hidden, weight, _, q, labels = operands(np.float32)
    with pytest.raises(ValueError, match=r"both of shape \(9, 'K'\)"):
        CE(hidden, weight, labels[:, 0], label_weights=q)
    with pytest.raises(ValueError, match="'vocab' is for one label a token"):
        CE(hidden, weight, labels, label_weights=q, implementation="vocab")
    with pytest.raises(ValueError, match="give those"):
        CE(hidden, weight, labels[:, 0], label_rest="uniform")
    with pytest.raises(ValueError, match=r"label_rest must be one of \('none', 'uniform'"):
        CE(hidden, weight, labels, label_weights=q, label_rest="rest")
    with pytest.raises(ValueError, match="have no class_weights"):
        CE(
            hidden, weight, labels, label_weights=q, label_rest="proportional",
            class_weights=np.ones(V, np.float32),
        )  # fmt: skip
