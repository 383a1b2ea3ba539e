"""`linear_cross_entropy` against the loss of the logits, written out, and its own promises."""

import inspect
import itertools
import typing
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from jaxloss._core.reduce import Reduction
from jaxloss.linear import LinearStatistics, _operands
from tests.programs import as_users

SWEEPS = ["tokens", "stored", "vocab"]
N, D, V = 13, 5, 23
CHUNK = {"tokens": 4, "stored": 4, "vocab": 7}


def operands(dtype=np.float32, n=N, d=D, v=V):
    rng = np.random.default_rng(0)
    hidden, weight = rng.normal(size=(n, d)) * 3, rng.normal(size=(d, v))
    return hidden.astype(dtype), weight.astype(dtype), rng.integers(0, v, n).astype(np.int32)


def settings(dtype=np.float32, n=N, v=V):
    rng = np.random.default_rng(1)
    return {
        "bias": rng.normal(size=v).astype(dtype),
        "class_weights": rng.uniform(0.5, 2, v).astype(dtype),
        "weights": rng.uniform(0, 2, n).astype(dtype),
        "label_smoothing": dtype(0.125),
        "z_loss": dtype(0.01),
        "logit_softcap": dtype(3.0),
    }


def written_out(hidden, weight, labels, reduction="mean", where=None, **s):
    """The formula of the docstring in plain jax.numpy, for reference in float64."""
    x = hidden @ weight
    x = x + s["bias"][None] if "bias" in s else x
    if "logit_softcap" in s:
        x = s["logit_softcap"] * jnp.tanh(x / s["logit_softcap"])
    nll = -jax.nn.log_softmax(x)
    of_label = jnp.take_along_axis(nll, labels[:, None], 1)[:, 0]
    smooth = s.get("label_smoothing", 0.0)
    w = s.get("class_weights", jnp.ones(x.shape[1], x.dtype))
    loss = (1 - smooth) * w[labels] * of_label + smooth * jnp.mean(w[None] * nll, 1)
    loss += s.get("z_loss", 0.0) * jax.nn.logsumexp(x, 1) ** 2
    each = s.get("weights", jnp.ones_like(loss))
    if reduction == "none":
        return each * loss
    size = {"sum": 1, "mean": len(loss), "weighted_mean": jnp.sum(each)}[reduction]
    return jnp.sum(each * loss) / size


def value_and_gradients(fn, labels, **static):
    """By hidden, weight and all settings."""

    def loss(hidden, weight, settings):
        return jnp.sum(fn(hidden, weight, labels, **settings, **static))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def assert_close(got, expected, tolerance):
    """Every array to a fraction of its own largest entry."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = max(float(np.max(np.abs(b), initial=0)), 1e-30)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=tolerance)


PAIRS = [
    # Alone, and all at once, they are tried every time.
    *((names,) for names in settings()),
    tuple(settings()),
    *(pytest.param(pair, marks=pytest.mark.slow) for pair in itertools.combinations(settings(), 2)),
]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.few(7)
def test_all_pairs_of_options(sweep, names):
    with jax.enable_x64(True):
        hidden, weight, labels = operands(np.float64)
        chosen = {name: settings(np.float64)[name] for name in names}
        reduction = "weighted_mean" if "weights" in names else "mean"
        fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=CHUNK[sweep])
        got = value_and_gradients(fused, labels, reduction=reduction)(hidden, weight, chosen)
        expected = value_and_gradients(written_out, labels, reduction=reduction)(
            hidden, weight, chosen
        )
        assert_close(got, expected, 1e-13)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weighted_mean"])
@pytest.mark.parametrize("sweep", [*SWEEPS, "dense"])
@pytest.mark.few(4)
def test_reductions_in_float32(sweep, reduction):
    if sweep in ("stored", "vocab") and reduction == "none":
        pytest.skip("raises, as test_errors shows")
    hidden, weight, labels = operands()
    fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=CHUNK.get(sweep))
    got = value_and_gradients(fused, labels, reduction=reduction)(hidden, weight, settings())
    with jax.enable_x64(True):
        exact = jax.tree.map(np.float64, (hidden, weight, settings()))
        expected = value_and_gradients(written_out, labels, reduction=reduction)(*exact)
    assert_close(got, expected, 2e-6)


def test_shapes_of_tokens_and_weight():
    hidden, weight, labels = operands(n=12)
    expected = jaxloss.linear_cross_entropy(hidden, weight, labels, reduction="none")
    got = jaxloss.linear_cross_entropy(
        hidden.reshape(3, 2, 2, D), weight.T, labels.reshape(3, 2, 2), vocab_first=True,
        reduction="none",
    )  # fmt: skip
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-6)
    one = jaxloss.linear_cross_entropy(hidden[0], weight, labels[0])
    np.testing.assert_allclose(one, expected[0], rtol=1e-6)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_table_of_embeddings(sweep):
    hidden, weight, labels = operands()
    fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=CHUNK[sweep])
    value, (dh, dw, _) = value_and_gradients(fused, labels)(hidden, weight, {})
    got = value_and_gradients(fused, labels, vocab_first=True)(hidden, weight.T, {})
    assert_close(got, (value, (dh, dw.T, {})), 2e-6)


SIZES = [*range(1, 41), *range(63, 66), 100, *range(127, 130), 255, 256, 300, 128256]
SOME_SIZES = [1, 2, 3, 7, 100, 127, 128, 129, 255, 300, 128256]


@pytest.mark.parametrize(
    "v", [pytest.param(v, marks=[] if v in SOME_SIZES else [pytest.mark.slow]) for v in SIZES]
)
@pytest.mark.few(5)
def test_zero_weights_give_the_logarithm_of_the_vocabulary(v):
    hidden, weight, labels = np.ones((2, 1), np.float32), np.zeros((1, v), np.float32), [0, v - 1]
    for sweep, chunk in (("tokens", 1), ("stored", 1), ("vocab", 100)):
        got = jaxloss.linear_cross_entropy(
            hidden, weight, np.int32(labels), implementation=sweep, chunk_size=chunk
        )
        exact = np.float32(np.log(v))
        assert abs(got - exact) <= np.spacing(exact), sweep


@pytest.mark.parametrize("sweep", SWEEPS)
def test_one_class_no_tokens_and_all_ignored(sweep):
    hidden, weight, labels = operands()
    fused = partial(jaxloss.linear_cross_entropy, implementation=sweep)

    def all_zero(tree):
        return all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(tree))

    assert all_zero(value_and_gradients(fused, np.zeros(N, np.int32))(hidden, weight[:, :1], {}))
    none = value_and_gradients(fused, labels[:0])(hidden[:0], weight, {})
    assert all_zero(none) and none[1][0].shape == (0, D)
    bad = np.full_like(hidden, np.nan)
    assert all_zero(value_and_gradients(fused, labels, where=np.zeros(N, bool))(bad, weight, {}))
    ignored = np.full_like(labels, -100)
    assert all_zero(value_and_gradients(fused, ignored, ignore_index=-100)(bad, weight, {}))


@pytest.mark.parametrize("sweep", [*SWEEPS, "dense", "none"])
def test_masked_tokens_change_nothing(sweep):
    hidden, weight, labels = operands()
    kept = np.arange(N) % 3 > 0
    fused = partial(
        jaxloss.linear_cross_entropy,
        **{"reduction": "none"} if sweep == "none" else {"implementation": sweep},
    )
    expected, (dh, dw, _) = value_and_gradients(fused, labels[kept])(hidden[kept], weight, {})
    hidden[~kept] = np.nan
    labels[~kept] = -7
    weights = np.float32(kept)
    for masks in (
        {"where": kept},
        {"ignore_index": -7},
        {"weights": weights, **({} if sweep == "none" else {"reduction": "weighted_mean"})},
    ):
        value, (got_h, got_w, _) = value_and_gradients(fused, labels, **masks)(hidden, weight, {})
        assert_close((value, got_h[kept], got_w), (expected, dh, dw), 2e-6)
        assert np.all(np.asarray(got_h[~kept]) == 0), masks


@pytest.mark.parametrize("label", [-1, V, 2**30])
@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.few(3)
def test_a_bad_label_is_loud(sweep, label):
    hidden, weight, labels = operands()
    labels[3] = label
    fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=CHUNK[sweep])
    value, (dh, _, _) = value_and_gradients(fused, labels)(hidden, weight, {})
    assert np.isnan(value)
    assert list(np.flatnonzero(np.isnan(dh).all(1))) == [3]
    each = jaxloss.linear_cross_entropy(hidden, weight, labels, reduction="none")
    assert list(np.flatnonzero(np.isnan(each))) == [3]
    error, _ = jax.jit(checkify.checkify(fused))(hidden, weight, labels)
    assert "labels must be in [0, 23)" in error.get()


@pytest.mark.parametrize("sweep", SWEEPS)
def test_nan_in_one_token_is_loud(sweep):
    hidden, weight, labels = operands()
    hidden[5, 2] = np.nan
    fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=CHUNK[sweep])
    value, (dh, _, _) = value_and_gradients(fused, labels)(hidden, weight, {})
    assert np.isnan(value)
    assert list(np.flatnonzero(np.isnan(dh).all(1))) == [5]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_bias_of_minus_infinity_excludes_its_classes(sweep, softcap):
    hidden, weight, labels = operands()
    labels %= 10
    bias = np.where(np.arange(V) < 10, 0, -np.inf).astype(np.float32)
    fused = partial(
        jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=CHUNK[sweep],
        logit_softcap=softcap,
    )  # fmt: skip
    value, (dh, dw, _) = value_and_gradients(fused, labels)(hidden, weight, {"bias": bias})
    fewer = value_and_gradients(fused, labels)(hidden, weight[:, :10], {})
    assert_close((value, dh, dw[:, :10]), (fewer[0], *fewer[1][:2]), 2e-6)
    assert np.all(np.asarray(dw[:, 10:]) == 0)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_common_offset_changes_nothing(sweep):
    hidden, weight, labels = operands()
    # Multiples of a half, so that adding the offset rounds nothing.
    hidden, weight = np.round(hidden), np.round(2 * weight) / 2
    fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=CHUNK[sweep])
    plain = value_and_gradients(fused, labels)(hidden, weight, {"bias": np.zeros(V, np.float32)})
    offset = np.full(V, 1e4, np.float32)
    assert_close(value_and_gradients(fused, labels)(hidden, weight, {"bias": offset}), plain, 5e-7)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_tails(sweep):
    hidden = np.float32([[20, 0], [0, 0.5]])
    weight, labels = np.float32([[1, 0, 0], [0, 1, 1]]), np.int32([0, 2])
    fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=1)
    value, (dh, _, _) = value_and_gradients(fused, labels[:1])(hidden[:1], weight, {})
    np.testing.assert_allclose(value, 2 * np.exp(-20), rtol=1e-6)
    np.testing.assert_allclose(dh[0, 0], -2 * np.exp(-20), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("sweep", [*SWEEPS, "none"])
def test_half_precision(sweep, dtype):
    hidden, weight, labels = operands(n=600)
    hidden, weight = jnp.asarray(hidden, dtype), jnp.asarray(weight, dtype)
    extra = {"reduction": "none"} if sweep == "none" else {"implementation": sweep}
    fused = partial(jaxloss.linear_cross_entropy, chunk_size=10, **extra)
    value, (dh, dw, _) = value_and_gradients(fused, labels)(hidden, weight, {})
    assert (value.dtype, dh.dtype, dw.dtype) == (jnp.float32, dtype, dtype)
    with jax.enable_x64(True):
        wide = jnp.asarray(hidden, jnp.float64), jnp.asarray(weight, jnp.float64)
        reduction = "none" if sweep == "none" else "mean"
        exact = value_and_gradients(written_out, labels, reduction=reduction)(*wide, {})
        np.testing.assert_allclose(value, exact[0], rtol=1e-6)
        # The logits' gradients are rounded once, as they are for any matmul in this dtype, and
        # the results once more; sums over 600 tokens are not.
        eps = float(jnp.finfo(dtype).eps)
        assert_close((dh.astype(jnp.float64), dw.astype(jnp.float64)), exact[1][:2], eps)


def test_operands_of_two_dtypes():
    hidden, weight, labels = operands()
    low = jnp.asarray(hidden, jnp.bfloat16)
    for sweep in SWEEPS:
        fused = partial(jaxloss.linear_cross_entropy, implementation=sweep)
        value, (dh, dw, _) = value_and_gradients(fused, labels)(low, weight, {})
        assert (value.dtype, dh.dtype, dw.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
        expected = value_and_gradients(fused, labels)(low.astype(jnp.float32), weight, {})
        assert_close((value, dw), (expected[0], expected[1][1]), 2e-6)


MODES = {
    "jvp": lambda f, x, v: jax.jvp(f, x, v),
    "linearize": lambda f, x, v: jax.linearize(f, *x)[1](*v),
    "vjp": lambda f, x, v: jax.vjp(f, *x)[1](jnp.ones_like(f(*x)) * 1.5),
    "jacfwd": lambda f, x, v: jax.jacfwd(f, (0, 1))(*x),
    "forward over forward": lambda f, x, v: jax.jacfwd(jax.jacfwd(f, (0, 1)), (0, 1))(*x),
    "forward over reverse": lambda f, x, v: jax.jacfwd(jax.jacrev(f, (0, 1)), (0, 1))(*x),
    "reverse over forward": lambda f, x, v: jax.jacrev(jax.jacfwd(f, (0, 1)), (0, 1))(*x),
    "reverse over reverse": lambda f, x, v: jax.jacrev(jax.jacrev(f, (0, 1)), (0, 1))(*x),
    "product with the Hessian": lambda f, x, v: jax.jvp(gradient(f), x, v),
    "the same in reverse": lambda f, x, v: jax.vjp(gradient(f), *x)[1](v),
    "third order": lambda f, x, v: jax.jvp(gradient(lambda *x: jax.jvp(f, x, v)[1]), x, v),
    "vmap over hidden": lambda f, x, v: jax.vmap(gradient(f), (0, None))(both(x[0], v[0]), x[1]),
    "vmap over weight": lambda f, x, v: jax.vmap(gradient(f), (None, 0))(x[0], both(x[1], v[1])),
    "scan": lambda f, x, v: gradient(
        lambda h, w: jax.lax.scan(lambda c, h: (c, f(h, w)), 0, jnp.stack([h, 2 * h]))[1]
    )(*x),
    "checkpoint": lambda f, x, v: gradient(jax.checkpoint(f))(*x),
    "saving dots": lambda f, x, v: gradient(
        jax.checkpoint(f, policy=jax.checkpoint_policies.checkpoint_dots)
    )(*x),
}  # fmt: skip
FEW = {"jvp", "vjp", "forward over reverse", "the same in reverse", "vmap over weight"}


def both(a, b):
    return jnp.stack([a, b])


def gradient(f):
    return jax.grad(lambda *x: jnp.sum(f(*x)), (0, 1))


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=[] if m in FEW else [pytest.mark.slow]) for m in MODES]
)
@pytest.mark.parametrize("sweep", [*SWEEPS, "none", "masked"])
@pytest.mark.few(5)
def test_derivatives_of_all_kinds(sweep, mode):
    kept = np.array([False, True, False, True, True])
    extra = {
        "none": {"reduction": "none"},
        "masked": {"where": kept, "implementation": "tokens"},
    }.get(sweep, {"implementation": sweep})
    with jax.enable_x64(True):
        hidden, weight, labels = operands(np.float64, n=5, d=2, v=4)
        v = jax.tree.map(lambda x: np.cos(3 * x), (hidden, weight))

        def loss():
            return lambda h, w: jaxloss.linear_cross_entropy(
                h, w, labels, chunk_size=2, label_smoothing=0.1, z_loss=0.01, **extra
            )

        reduction = "none" if sweep == "none" else "mean"
        dense = partial(written_out, reduction=reduction, label_smoothing=0.1, z_loss=0.01)
        got = jax.jit(partial(MODES[mode], loss()))((hidden, weight), v)
        live = kept if sweep == "masked" else slice(None)
        plain = partial(MODES[mode], lambda h, w: dense(h[live], w, labels[live]))
        expected = jax.jit(plain)((hidden, weight), v)
        assert_close(got, expected, 1e-12)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_vmap_over_labels_and_settings(sweep):
    hidden, weight, labels = operands()

    def loss(labels, z_loss):
        fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=CHUNK[sweep])
        return jax.value_and_grad(lambda w: fused(hidden, w, labels, z_loss=z_loss))(weight)

    both = jnp.stack([labels, (labels + 1) % V]), jnp.float32([0.0, 0.1])
    got = jax.jit(jax.vmap(loss))(*both)
    for i in range(2):
        assert_close(jax.tree.map(lambda x, i=i: x[i], got), loss(*(x[i] for x in both)), 2e-6)


def test_without_jit():
    hidden, weight, labels = operands(n=5)
    expected = jaxloss.linear_cross_entropy(hidden, weight, labels, chunk_size=4)
    with jax.disable_jit():
        got = jaxloss.linear_cross_entropy(hidden, weight, labels, chunk_size=4)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def matmuls(fn, *args):
    return as_users(fn).lower(*args).compile().as_text().count(" dot(")


@pytest.mark.parametrize(
    ("sweep", "of", "number"),
    [
        ("tokens", (0, 1), 3),
        ("tokens", (), 1),
        ("tokens", (0,), 2),
        ("tokens", (1,), 2),
        ("stored", (0, 1), 3),
        ("stored", (), 1),
        ("stored", (0,), 2),
        ("stored", (1,), 2),
        ("vocab", (0,), 3),
        ("vocab", (1,), 3),
        ("vocab", (0, 1), 4),
        ("none", (0, 1), 4),
    ],
)
@pytest.mark.few(2)
def test_number_of_matmuls(sweep, of, number):
    hidden, weight, labels = operands(n=64, d=16, v=96)
    extra = {"reduction": "none"} if sweep == "none" else {"implementation": sweep}
    size = {"chunk_size": 32} if sweep == "vocab" else {"chunk_size": 16}

    def loss(h, w):
        losses = jaxloss.linear_cross_entropy(h, w, labels, **extra, **size)
        return jnp.sum(losses * jnp.cos(losses)) if sweep == "none" else losses

    assert matmuls(jax.value_and_grad(loss, of) if of else loss, hidden, weight) == number


def groups_of(tokens, monkeypatch):
    """Let the gradients of so many tokens' logits be stored at once; not fewer than 2 * D."""
    monkeypatch.setattr(_operands, "_GROUP_TOKENS", tokens)


# Of one chunk, of several with a rest, with a rest of the groups, and of equal parts.
@pytest.mark.parametrize("n", [10, 13, 17, 40])
@pytest.mark.parametrize("devices", [1, 8])  # Over which XLA may split tokens.
@pytest.mark.few(4)
def test_groups_of_stored_gradients(n, devices, monkeypatch):
    groups_of(10, monkeypatch)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    with jax.enable_x64(True):
        hidden, weight, labels = operands(np.float64, n=n)
        given = settings(np.float64, n=n)
        fused = partial(jaxloss.linear_cross_entropy, implementation="stored", chunk_size=4)
        got = value_and_gradients(fused, labels)(hidden, weight, given)
        assert_close(got, value_and_gradients(written_out, labels)(hidden, weight, given), 1e-13)


def test_stored_gradients_are_rounded_as_those_of_chunks_are(monkeypatch):
    groups_of(10, monkeypatch)
    for n in (10, 600):
        hidden, weight, labels = operands(n=n)
        hidden, weight = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(weight, jnp.bfloat16)

        def of(sweep, hidden=hidden, weight=weight, labels=labels):
            fused = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=10)
            return value_and_gradients(fused, labels)(hidden, weight, {})

        # Sums in float32 of the same products: they may round to neighbouring numbers.
        eps = float(jnp.finfo(jnp.bfloat16).eps)
        got, expected = (jax.tree.map(np.float32, of(sweep)) for sweep in ("stored", "tokens"))
        np.testing.assert_array_equal(got[0], expected[0])
        assert_close(got, expected, eps / 2)


def test_second_derivatives_are_those_of_the_sweep_over_tokens():
    hidden, weight, labels = operands(n=64, d=16, v=96)
    v = jax.tree.map(lambda x: np.cos(3 * x), (hidden, weight))

    def product(sweep):
        loss = partial(jaxloss.linear_cross_entropy, implementation=sweep, chunk_size=16)
        gradient = jax.grad(lambda h, w: loss(h, w, labels), (0, 1))
        return lambda *both: jax.jvp(gradient, *both)[1]

    stored, tokens = map(product, ("stored", "tokens"))
    both = (hidden, weight), v
    for a, b in zip(jax.jit(stored)(*both), jax.jit(tokens)(*both), strict=True):
        np.testing.assert_array_equal(a, b)
    assert matmuls(stored, *both) == matmuls(tokens, *both)


def temporary(fn, *shapes):
    operands = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return as_users(fn).lower(*operands).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_is_what_the_docstring_says():
    n, d, v = 2048, 64, 4096
    shapes = ((n, d), np.float32), ((d, v), np.float32), ((n,), np.int32)

    def of(sweep, chunk=None):
        def loss(h, w, y):
            fused = jaxloss.linear_cross_entropy
            return fused(h, w, y, implementation=sweep, chunk_size=chunk)

        return temporary(jax.value_and_grad(loss, (0, 1)), *shapes)

    for chunk in (64, 256):
        assert of("tokens", chunk) <= 8 * chunk * v + 4 * d * v + 12 * n * d
        assert of("stored", chunk) <= 4 * n * v + 8 * chunk * v + 12 * n * d
        assert of("vocab", chunk) <= 8 * chunk * n + 4 * d * v + 12 * n * d
    rows = 40 * 192  # What a chunk holds of each token: labels, sums, losses.
    for sweep, other in (("tokens", v), ("vocab", n)):
        assert 4 * 192 * other <= of(sweep, 256) - of(sweep, 64) <= 8 * 192 * other + rows
    assert of("dense") >= 4 * n * v


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.36), ("float32", 0.6)])
def test_memory_of_stored_gradients_is_a_part_of_that_of_the_plain_program(dtype, share):
    """A CPU multiplies bfloat16 in float32, and so has a copy of the weight in both programs."""
    n, d, v = 2048, 512, 32000
    shapes = ((n, d), dtype), ((d, v), dtype), ((n,), np.int32)

    def plain(h, w, y):
        x = (h @ w).astype(jnp.float32)
        of_label = jnp.take_along_axis(x, y[:, None], 1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(x, 1) - of_label)

    stored = partial(jaxloss.linear_cross_entropy, implementation="stored")
    ours, whole = (temporary(jax.value_and_grad(f, (0, 1)), *shapes) for f in (stored, plain))
    assert ours <= share * whole


def test_memory_of_groups(monkeypatch):
    groups_of(512, monkeypatch)
    n, d, v = 4096, 64, 8192
    shapes = ((n, d), np.float32), ((d, v), np.float32), ((n,), np.int32)
    stored = partial(jaxloss.linear_cross_entropy, implementation="stored", chunk_size=64)
    temporaries = temporary(jax.value_and_grad(stored, (0, 1)), *shapes)
    assert temporaries <= 4 * 512 * v + 8 * 64 * v + 4 * d * v + 12 * n * d


# Where the sweep over tokens would take several chunks.
LARGE = {"n": 2048, "d": 128, "v": 40000}


def lowered(platform, n, d, v, dtype="bfloat16", **options):
    loss = partial(jaxloss.linear_cross_entropy, **options)
    types = ((n, d), dtype), ((d, v), dtype), ((n,), "int32")
    traced = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(loss(*x)), (0, 1))).trace(
        *(jax.ShapeDtypeStruct(*of) for of in types)
    )
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_accelerators_store_gradients_by_default(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)

    def stores(platform, of=LARGE, **options):
        # An array that is not filled before the loop.
        return "AllocateBuffer" in lowered(platform, **of, **options)

    assert all(stores(platform) for platform in ("cuda", "rocm", "tpu"))
    assert not stores("cpu")
    # A wish is one; and whoever says how many tokens to take at once saves memory.
    assert not stores("cuda", implementation="tokens") and not stores("cuda", chunk_size=256)
    assert not stores("cuda", reduction="none")
    # One chunk, and few chunks of many tokens.
    assert not stores("cuda", of=LARGE | {"n": 128})
    assert not stores("cuda", of=LARGE | {"n": 60000, "v": 1000})
    # XLA would let each device have the whole of it.
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not stores("cuda")
    assert lowered("cuda", **LARGE) != lowered("cuda", **LARGE, implementation="tokens")


def test_left_free_one_program_serves_several_platforms():
    n, d, v = LARGE.values()
    types = ((n, d), "float32"), ((d, v), "float32"), ((n,), "int32")
    step = jax.jit(jax.value_and_grad(jaxloss.linear_cross_entropy, (0, 1)))
    shapes = [jax.ShapeDtypeStruct(*of) for of in types]
    assert jax.export.export(step, platforms=["cpu", "cuda"])(*shapes).platforms == ("cpu", "cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": np.ones((3, 4), np.float32)}, r"\(3, 4\) do not match weight of .* \(5, 23\)"),
        ({"weight": np.ones((23, 5), np.float32)}, "say vocab_first=True"),
        ({"labels": np.zeros(4, np.int32)}, r"\(4,\) do not match hidden of shape \(13, 'D'\)"),
        ({"bias": np.zeros(5, np.float32)}, r"bias of shape \(5,\) do not match"),
        ({"class_weights": np.zeros((1, 23), np.float32)}, "class_weights of shape"),
        ({"weights": np.ones(4, np.float32)}, "weights of shape"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\]"),
        ({"logit_softcap": 0.0}, "logit_softcap must be in"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"reduction": "average"}, "reduction must be one of"),
        ({"implementation": "fast"}, "implementation must be None or one of"),
        ({"implementation": "vocab", "reduction": "none"}, "leave implementation out"),
        ({"implementation": "stored", "reduction": "none"}, "leave implementation out"),
        ({"axis_name": "x"}, "inside shard_map, with check_vma=True"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_errors(change, message):
    names = dict(zip(("hidden", "weight", "labels"), operands(), strict=True))
    with pytest.raises(ValueError, match=message):
        jaxloss.linear_cross_entropy(**(names | change))


def test_errors_of_dtype():
    hidden, weight, labels = operands()
    with pytest.raises(TypeError, match="hidden must be floating point"):
        jaxloss.linear_cross_entropy(np.int32(hidden), weight, labels)
    with pytest.raises(TypeError, match="labels must be integers"):
        jaxloss.linear_cross_entropy(hidden, weight, np.float32(labels))
    with pytest.raises(TypeError, match="where must be boolean"):
        jaxloss.linear_cross_entropy(hidden, weight, labels, where=np.ones(N))


@pytest.mark.parametrize("fn", [jaxloss.linear_cross_entropy, jaxloss.linear_distillation])
def test_overloads_have_the_settings_of_the_function(fn):
    def hints(f):
        return typing.get_type_hints(f, include_extras=True)

    own = inspect.signature(fn).parameters
    by_reduction = {}
    for overload in typing.get_overloads(inspect.unwrap(fn)):
        (settings,) = typing.get_args(hints(overload)["settings"])
        names = [k for k in inspect.signature(overload).parameters if k != "settings"]
        assert {*names, *hints(settings)} == {*own}
        assert all(hints(settings)[k] == hints(fn)[k] for k in hints(settings))
        more = hints(overload).get("return_statistics") == typing.Literal[True]
        by_reduction[hints(overload)["reduction"], more] = hints(overload)["return"]
    kinds = {typing.Literal["parts"]: jaxloss.Mean, Reduction: jax.Array}
    want = {(reduction, False): of for reduction, of in kinds.items()}
    if "return_statistics" in own:
        pairs = {k: tuple[of, LinearStatistics] for k, of in kinds.items()}
        want |= {(reduction, True): pair for reduction, pair in pairs.items()}
    assert by_reduction == want
