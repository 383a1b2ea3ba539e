"""Transducers beside their rows: all alignments of small lattices, sums, padding, memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType
from mpmath import mp, mpf

import jaxloss
from jaxloss._families import transducer
from tests.cases._exact import ulps
from tests.cases.sequence import lattice_of, slope
from tests.cases.transducer import alignments
from tests.families.test_sequence import padded
from tests.programs import as_users
from tests.test_transforms import close, rng

inf, nan = np.inf, np.nan


def ends(lengths, width):
    return np.float32(np.arange(width) >= np.array(lengths)[:, None])


def sweep(fn, x, *rest, **options):
    """Losses and the gradient of their sum, by an array or a pair of them."""

    def total(x):
        losses = fn(*x, *rest, **options) if isinstance(x, tuple) else fn(x, *rest, **options)
        return jnp.sum(losses), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(x)
    return np.asarray(losses), jax.tree.map(np.asarray, gradient)


def test_all_alignments():
    """Of one to three frames and none to three labels, in one batch."""
    reads = [(), (1,), (2, 1), (1, 1), (1, 2, 2), (2, 1, 1)]
    of = [(t, labels) for t in (1, 2, 3) for labels in reads for _ in range(3)]
    scales = np.resize([1, 6, 20], len(of))[:, None, None, None]
    x = np.float32(scales * rng().normal(size=(len(of), 3, 4, 3)))
    paddings = ends([t for t, _ in of], 3), *padded(*(labels for _, labels in of))
    losses, gradients = sweep(jaxloss.rnnt_loss, x, *paddings)
    for row, (frames, labels), loss, gradient in zip(x, of, losses, gradients, strict=True):
        nodes = len(labels) + 1
        live = row[:frames, :nodes].reshape(-1, 3)
        paths = alignments(labels, frames, nodes)
        exact = lattice_of(tuple(mpf(float(v)) for v in live.ravel()), paths, 3)
        by = 1 + float(np.ptp(live, 1).max())  # What rounding does to exp(a - b).
        assert ulps(float(loss), -mp.log(exact.total), -by * mp.log(exact.total), np.float32) <= 8
        for i, k in np.ndindex(live.shape):
            terms = slope(exact, i, k)
            got = float(gradient[i // nodes, i % nodes, k])
            assert ulps(got, sum(terms), by * sum(map(abs, terms)), np.float32) <= 8
        np.testing.assert_array_equal(gradient[frames:], 0)
        np.testing.assert_array_equal(gradient[:, nodes:], 0)


def test_one_frame_is_a_sum_of_cross_entropies():
    x = np.float32(4 * rng().normal(size=(2, 1, 4, 5)))
    labels, paddings = padded((3, 1, 1), (2,))
    losses, gradient = sweep(jaxloss.rnnt_loss, x, np.zeros((2, 1)), labels, paddings)
    emitted, live = np.array([[3, 1, 1, 0], [2, 0, 0, 0]]), [[1, 1, 1, 1], [1, 1, 0, 0]]

    def plain(x):
        each = jaxloss.softmax_cross_entropy_with_integer_labels(x[:, 0], emitted)
        return jnp.sum(each * np.float32(live))

    np.testing.assert_allclose(np.sum(losses), plain(x), rtol=1e-6)
    np.testing.assert_allclose(gradient, jax.grad(plain)(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("blank", "loss"), [(0, 4.495666), (4, 5.09566688538)])
@pytest.mark.few(1)
def test_numbers_published(blank, loss):
    """warp-transducer, test_cpu.cpp, and torchaudio, rnnt_loss_impl.py: the same logits."""
    x = [
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
    ]
    paddings = jnp.zeros((1, 2))
    got = jaxloss.rnnt_loss(jnp.array([x]), paddings, jnp.array([[1, 2]]), paddings, blank_id=blank)
    np.testing.assert_allclose(got, [loss], rtol=2e-7)


# Logits that are a sum.


def parts(batch=3, frames=3, labels=2, classes=4, scale=2):
    e, g = (scale * rng().normal(size=(batch, n, classes)) for n in (frames, labels + 1))
    return np.float32(e), np.float32(g)


def of_sum(e, g, *rest, **options):
    return jaxloss.rnnt_loss(e[:, :, None] + g[:, None], *rest, **options)


def test_of_a_sum_is_that_of_the_logits():
    """Value, first and second derivatives, of sequences of all lengths."""
    x = parts()
    rest = ends([3, 2, 0], 3), *padded((1, 3), (2,), (3,), width=2)
    ours, plain = (sweep(f, x, *rest) for f in (jaxloss.rnnt_additive_loss, of_sum))
    assert ours[0][2] == inf
    close(ours, plain)
    second = [
        jax.jit(jax.hessian(lambda e, g, f=f: jnp.sum(f(e, g, *rest)[:2]), (0, 1)))(*x)
        for f in (jaxloss.rnnt_additive_loss, of_sum)
    ]
    close(*second)


@pytest.mark.parametrize("together", ["few frames", "few sequences", "split"])
@pytest.mark.few(2)
def test_chunks(together, monkeypatch):
    """A frame at a time, sequences in groups, or all sequences but few frames."""
    x = parts(batch=4, frames=11, labels=3, classes=5)
    rest = ends([11, 8, 2, 5], 11), *padded((1, 3, 4), (2,), (3, 3), ())
    want = sweep(of_sum, x, *rest)
    chunk = {"few frames": 40, "few sequences": 2 * 8 * 20, "split": 100}[together]
    monkeypatch.setattr(transducer, "CHUNK", chunk)
    monkeypatch.setattr(transducer, "unpartitioned", lambda: together != "split")
    assert "scan" in str(jax.make_jaxpr(partial(jaxloss.rnnt_additive_loss))(*x, *rest))
    close(sweep(jaxloss.rnnt_additive_loss, x, *rest), want)


@pytest.mark.slow
def test_memory_of_a_sum():
    """Its logits would take 6.5 GB."""
    batch, frames, labels, classes = 8, 500, 99, 4096
    shapes = (batch, frames, classes), (batch, labels + 1, classes)
    x = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    rest = jnp.zeros((batch, frames)), jnp.ones((batch, labels), int), jnp.zeros((batch, labels))

    def loss(e, g):
        return jnp.mean(jaxloss.rnnt_additive_loss(e, g, *rest))

    one = jax.make_mesh((1,), ("x",), (AxisType.Auto,), devices=jax.devices()[:1])
    with jax.set_mesh(one):
        step = as_users(jax.value_and_grad(loss, (0, 1))).lower(*x).compile()
        assert step.memory_analysis().temp_size_in_bytes < 80e6


@pytest.mark.slow
def test_memory_of_logits():
    x = jax.ShapeDtypeStruct((4, 32, 11, 1024), jnp.float32)
    rest = jnp.zeros((4, 32)), jnp.ones((4, 10), int), jnp.zeros((4, 10))

    step = jax.value_and_grad(lambda x: jnp.mean(jaxloss.rnnt_loss(x, *rest)))
    size = as_users(step).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert size < 1.5 * 4 * x.size, size / x.size / 4  # Beside the gradient.


# Tails, and classes that are excluded.


def test_a_confident_prediction_costs_little_but_never_less():
    # Emits 1, goes on, emits 2; or: the label at either frame, no path alone being certain.
    path = 20 * np.eye(3)[[[1, 0, 0], [0, 2, 0]]]
    either = np.array([[[0, 0, -40], [20, -20, -20]], [[-20, 20, -20], [20, -20, -20]]])
    for x, labels in ((path, (1, 2)), (either, (1,))):
        x = np.float32(x)
        paths = alignments(labels, *x.shape[:2])
        exact = -mp.log(lattice_of(tuple(map(mpf, x.ravel().tolist())), paths, 3).total)
        got = jaxloss.rnnt_loss(x[None], np.zeros((1, 2)), *padded(labels))
        np.testing.assert_allclose(got, float(exact), rtol=2e-6)
        assert got > 0


@pytest.mark.slow
def test_an_excluded_class_is_a_class_removed_or_needed():
    x = np.float32(rng().normal(size=(1, 3, 3, 4)))
    x[..., 2] = -inf
    rest = np.zeros((1, 3)), *padded((1, 3))
    few = [0, 1, 3]
    (loss, gradient), (want, slopes) = (
        sweep(jaxloss.rnnt_loss, x, *rest),
        sweep(jaxloss.rnnt_loss, x[..., few], np.zeros((1, 3)), *padded((1, 2))),
    )
    close(loss, want)
    close(gradient[..., few], slopes)
    np.testing.assert_array_equal(gradient[..., 2], 0)
    assert np.all(np.isfinite(jax.hessian(lambda x: jaxloss.rnnt_loss(x, *rest)[0])(x)))
    needed = np.zeros((1, 3)), *padded((1, 2))
    loss, gradient = sweep(jaxloss.rnnt_loss, x, *needed)
    assert loss == inf
    np.testing.assert_array_equal(gradient, 0)


# What is padded, and errors in a sequence, which are errors of that sequence.


def test_without_frames_or_labels():
    x = np.float32(rng().normal(size=(2, 3, 3, 4)))
    losses, gradient = sweep(jaxloss.rnnt_loss, x, ends([0, 2], 3), *padded((), (), width=2))
    blanks = -jnp.sum(jax.nn.log_softmax(x)[1, :2, 0, 0])
    np.testing.assert_allclose(losses, [inf, blanks], rtol=1e-6)
    np.testing.assert_array_equal(gradient[0], 0)
    for shape in ((2, 0, 3, 4), (2, 3, 1, 4), (0, 3, 3, 4)):
        batch, frames, nodes, _ = shape
        rest = np.zeros((batch, frames)), np.ones((batch, nodes - 1), int)
        losses = jaxloss.rnnt_loss(np.zeros(shape), *rest, np.zeros((batch, nodes - 1)))
        assert losses.shape == (batch,) and np.all(np.isinf(losses)) == (frames == 0 or batch == 0)


@pytest.mark.parametrize("filler", [nan, inf])
@pytest.mark.few(1)
def test_what_is_padded_changes_nothing(filler):
    e, g = parts()
    rest = ends([3, 2, 1], 3), *padded((1, 3), (2,), ())
    want = sweep(jaxloss.rnnt_additive_loss, (e, g), *rest)
    logits = e[:, :, None] + g[:, None]
    plain = sweep(jaxloss.rnnt_loss, logits, *rest)
    frames, nodes = ends([3, 2, 1], 3) > 0, ends([3, 2, 1], 3) > 0
    e[frames], g[nodes] = filler, filler
    logits[frames[:, :, None] | nodes[:, None]] = filler
    close(sweep(jaxloss.rnnt_additive_loss, (e, g), *rest), want)
    close(sweep(jaxloss.rnnt_loss, logits, *rest), plain)


def test_errors_cost_their_own_sequence():
    x = np.float32(rng().normal(size=(6, 3, 3, 4)))
    x[1, 1, 1, 2] = nan
    frames, (labels, last) = np.zeros((6, 3), np.float32), padded(*[(1, 2)] * 6)
    labels[2, 1], labels[3, 0] = 4, 0
    frames[4], last[5] = [1, 0, 0], [1, 0]
    losses, gradient = sweep(jaxloss.rnnt_loss, x, frames, labels, last)
    assert np.isfinite(losses[0]) and np.all(np.isfinite(gradient[0]))
    np.testing.assert_array_equal(losses[1:], nan)
    bad = np.isnan(gradient[1:]).reshape(5, -1)
    assert np.all(bad[:3]) and np.all(np.any(bad, 1))
    check = jax.jit(checkify.checkify(jaxloss.rnnt_loss))
    found = [str(check(x[i:], frames[i:], labels[i:], last[i:])[0].get()) for i in (3, 4)]
    assert "labels must be in [0, 4) and not the blank, 0" in found[0]
    assert "frames and labels be padded on the right" in found[1]


def test_wrong_shapes():
    x, labels, frames = np.zeros((2, 4, 3, 5)), np.ones((2, 2), int), np.zeros((2, 4))
    e, g = np.zeros((2, 4, 5)), np.zeros((2, 3, 5))
    for fn, args, words in [
        (jaxloss.rnnt_loss, (x[:, :, :2], frames, labels, 0 * labels), ["(2, 4, 2, 5)", "(2, 2)"]),
        (jaxloss.rnnt_loss, (x, frames[:, :1], labels, 0 * labels), ["logit_paddings", "(2, 1)"]),
        (jaxloss.rnnt_additive_loss, (e, e, frames, labels, labels), ["predictor", "(2, 4, 5)"]),
        (jaxloss.rnnt_additive_loss, (e, g[:, 1:], frames, labels, labels), ["(2, 2, 5)"]),
    ]:
        with pytest.raises(ValueError) as caught:
            fn(*args)
        assert all(word in str(caught.value) for word in words)
    with pytest.raises(TypeError, match="predictor must be floating point"):
        jaxloss.rnnt_additive_loss(e, np.zeros((2, 3, 5), int), frames, labels, labels)
    with pytest.raises(ValueError, match=r"blank_id must be in \[0, 5\)"):
        jaxloss.rnnt_loss(x, frames, labels, labels, blank_id=5)
