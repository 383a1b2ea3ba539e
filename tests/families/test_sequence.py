"""CTC beside its rows: all alignments of small lattices, optax, padding, errors, peers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from mpmath import mp, mpf

import jaxloss
from jaxloss._core import frames as _frames
from tests.cases._exact import ulps
from tests.cases.sequence import lattice
from tests.programs import as_users
from tests.test_transforms import close, rng

inf, nan = np.inf, np.nan


def padded(*sequences, width=None):
    """Label sequences of several lengths in one array, with their paddings."""
    width = max(map(len, sequences)) if width is None else width
    labels = np.zeros((len(sequences), width), np.int32)
    for row, sequence in zip(labels, sequences, strict=True):
        row[: len(sequence)] = sequence
    lengths = np.array([len(s) for s in sequences])[:, None]
    return labels, np.float32(np.arange(width) >= lengths)


def ctc(x, sequences, frames=None, width=None, fn=jaxloss.ctc_loss, **options):
    frames = np.zeros(x.shape[:2], np.float32) if frames is None else frames
    fn = partial(fn, **options)
    fn = fn if isinstance(x, jax.core.Tracer) else jax.jit(fn)
    return fn(x, frames, *padded(*sequences, width=width))


def sweep(x, *args, **options):
    """Losses and the gradient of their sum."""

    def total(x):
        losses = ctc(x, *args, **options)
        return jnp.sum(losses), losses

    gradient, losses = jax.jit(jax.grad(total, has_aux=True))(x)
    return np.asarray(losses), np.asarray(gradient)


def hessian(x, *args, **options):
    return jax.jit(jax.hessian(lambda x: jnp.sum(ctc(x, *args, **options))))(x)


# The exact sum over all alignments.

READS = [(), (1,), (2,), (1, 1), (1, 2), (2, 1)]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_all_alignments(frames):
    scales = np.repeat([1, 6, 20], len(READS))[:, None, None]
    x = np.float32(scales * rng().normal(size=(3 * len(READS), frames, 3)))
    losses, gradients = sweep(x, READS * 3)
    for row, labels, loss, gradient in zip(x, READS * 3, losses, gradients, strict=True):
        exact = lattice(tuple(mpf(float(v)) for v in row.ravel()), labels)
        if exact.total == 0:
            assert loss == inf
            np.testing.assert_array_equal(gradient, 0)
            continue
        value = -mp.log(exact.total)
        by = 1 + float(np.ptp(row, 1).max())  # What rounding does to exp(a - b).
        assert ulps(float(loss), value, by * value, np.float32) <= 8
        for t, k in np.ndindex(frames, 3):
            terms = exact.p[t][k], -exact.given[t][k]
            if exact.p[t][k] > 0.5:
                terms = exact.others[t][k], -exact.q[t][k]
            scale_of = by * sum(map(abs, terms))
            assert ulps(float(gradient[t, k]), sum(terms), scale_of, np.float32) <= 8


@pytest.mark.parametrize("logits", [(20, 0), (0, 20), (0, 0), (30, -30), (1, 2, 3), (-40, 0, 40)])
@pytest.mark.few(2)
def test_one_frame_is_cross_entropy(logits):
    x, n = jnp.array(logits, jnp.float32), len(logits)
    every = jnp.tile(x, (n, 1, 1))
    losses, gradients = sweep(every, [(k,) if k else () for k in range(n)])
    entropy = partial(jaxloss.softmax_cross_entropy_with_integer_labels, x)
    want = [entropy(k) for k in range(n)]
    slopes = [jax.grad(jaxloss.softmax_cross_entropy_with_integer_labels)(x, k) for k in range(n)]
    np.testing.assert_allclose(losses, want, rtol=5e-7)
    np.testing.assert_allclose(gradients[:, 0], slopes, rtol=1e-6)


def test_numbers_published():
    """TensorFlow, ctc_loss_op_test.py, `testBasic`: losses 3.34211 and 5.42262."""
    p = [
        [
            [0.633766, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
            [0.111121, 0.588392, 0.278779, 0.0055756, 0.00569609, 0.010436],
            [0.0357786, 0.633813, 0.321418, 0.00249248, 0.00272882, 0.0037688],
            [0.0663296, 0.643849, 0.280111, 0.00283995, 0.0035545, 0.00331533],
            [0.458235, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
        ],
        [
            [0.30176, 0.28562, 0.0831517, 0.0862751, 0.0816851, 0.161508],
            [0.24082, 0.397533, 0.0557226, 0.0546814, 0.0557528, 0.19549],
            [0.230246, 0.450868, 0.0389607, 0.038309, 0.0391602, 0.202456],
            [0.280884, 0.429522, 0.0326593, 0.0339046, 0.0326856, 0.190345],
            [0.423286, 0.315517, 0.0338439, 0.0393744, 0.0339315, 0.154046],
        ],
    ]
    losses = ctc(jnp.log(jnp.array(p)), [(0, 1, 2, 1, 0), (0, 1, 1, 0)], blank_id=5)
    np.testing.assert_allclose(losses, [3.34211, 5.42262], atol=6e-6)


# Beside optax.


def random_batch(frames=12, classes=6, labels=4):
    x = np.float32(2 * rng().normal(size=(5, frames, classes)))
    sequences = [(1, 2, 3, 4), (2, 2), (5,), (3, 1, 3), (4, 4, 1)]
    ends = np.float32(np.arange(frames) >= np.array([frames, 7, 9, 4, frames - 1])[:, None])
    return x, sequences, ends


def test_values_and_gradients_of_optax():
    close(sweep(*random_batch()), sweep(*random_batch(), fn=optax.ctc_loss), 2e-5, 5e-6)
    x, sequences, ends = random_batch()
    moved = np.roll(x, 3, 2)
    sequences = [tuple((k + 3) % 6 for k in s) for s in sequences]
    close(sweep(moved, sequences, ends, blank_id=3)[0], sweep(*random_batch())[0], 1e-6)


def test_forward_arrays_of_optax():
    x, sequences, ends = random_batch()
    ours, theirs = (
        ctc(x, sequences, ends, fn=f)
        for f in (jaxloss.ctc_loss_with_forward_probs, optax.losses.ctc_loss_with_forward_probs)
    )
    np.testing.assert_allclose(ours[0], jaxloss.ctc_loss(x, ends, *padded(*sequences)))
    lengths = np.array([[len(s)] for s in sequences])
    for got, want, live in zip(ours[1:], theirs[1:], (lengths + 1, lengths), strict=True):
        assert got.shape == want.shape
        possible = np.asarray(want) > -5e4
        possible &= np.arange(want.shape[2]) < live
        assert np.mean(possible) > 0.2
        np.testing.assert_allclose(got, np.where(possible, want, -1e5), rtol=1e-5, atol=1e-5)


def test_log_epsilon_is_what_is_not_possible():
    x, sequences, ends = random_batch()
    run = partial(ctc, x, sequences, ends, fn=jaxloss.ctc_loss_with_forward_probs)
    (loss, *arrays), (same, *with_inf) = run(), run(log_epsilon=-inf)
    np.testing.assert_array_equal(loss, same)
    for a, b in zip(arrays, with_inf, strict=True):
        np.testing.assert_array_equal(np.where(np.isinf(b), -1e5, b), a)
    np.testing.assert_array_equal(ctc(x, sequences, ends, log_epsilon=-1e7), loss)


def test_gradients_of_many_frames():
    """Rescaled logarithms keep the digits that grow with the loss in optax."""
    x = np.float32(2 * rng().normal(size=(2, 200, 16)))
    sequences = [tuple(rng().integers(1, 16, 40)), tuple(range(1, 16))]
    (losses, ours), (_, theirs) = sweep(x, sequences), sweep(x, sequences, fn=optax.ctc_loss)
    with jax.enable_x64(True):
        want, exact = sweep(np.float64(x), sequences)
    np.testing.assert_allclose(losses, want, rtol=2e-6)
    error, peers = (np.max(np.abs(g - exact)) for g in (ours, theirs))
    assert error < 2e-5 and error < peers / 5


# What peers get wrong.


def test_a_confident_prediction_costs_little_but_never_less():  # optax: -8.3e-8
    x = 20 * jax.nn.one_hot(jnp.array([[1, 0, 2, 2, 0]]), 3)
    (loss,), _ = sweep(x, [(1, 2)])
    exact = lattice(tuple(mpf(float(v)) for v in x.ravel()), (1, 2))
    np.testing.assert_allclose(float(loss), float(-mp.log(exact.total)), rtol=1e-6)
    # Where every alignment is good, no path alone is close to certain.
    either = jnp.array([[[-20.0, 20, -40], [0, 0, -40], [0, 0, -40]]])
    exact = lattice(tuple(mpf(float(v)) for v in either.ravel()), (1,))
    np.testing.assert_allclose(ctc(either, [(1,)]), float(-mp.log(exact.total)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("excluded", [2, 3])
def test_an_excluded_class_is_a_class_removed(excluded):  # optax: NaN
    x = np.float32(rng().normal(size=(1, 4, 4)))
    kept = [k for k in range(4) if k != excluded]
    few, label = x[:, :, kept], kept.index(5 - excluded)
    x[:, :, excluded] = -inf
    (loss, gradient), (want, slopes) = sweep(x, [(1, 5 - excluded)]), sweep(few, [(1, label)])
    close(loss, want, 1e-6)
    second = np.asarray(hessian(x, [(1, 5 - excluded)]))
    curvatures = hessian(few, [(1, label)])
    close(gradient[:, :, kept], slopes)
    close(second[:, :, kept][..., kept], curvatures)
    for derivative in (gradient, second):
        np.testing.assert_array_equal(derivative[:, :, excluded], 0)
    tangent = jax.jvp(lambda x: ctc(x, [(1, 5 - excluded)]), (x,), (np.ones_like(x),))[1]
    np.testing.assert_allclose(tangent, 0, atol=1e-6)


@pytest.mark.slow
def test_excluded_in_some_frames_or_needed():
    x = np.float32(rng().normal(size=(1, 4, 3)))
    x[0, 1, 1] = x[0, 2, 0] = -inf
    losses, gradient = sweep(x, [(1, 2)])
    assert np.isfinite(losses) and np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(hessian(x, [(1, 2)])))
    for needed in ([(1, 2)], [(2,)]):
        x[..., 2] = -inf
        losses, gradient = sweep(x, needed)
        np.testing.assert_array_equal(losses, inf)
        np.testing.assert_array_equal(gradient, 0)
    assert ctc(np.full((1, 2, 3), -inf, np.float32), [(1,)]) == inf


IMPOSSIBLE = [(1, 2, 3, 4), (1, 1, 1), (2, 2, 1)]


@pytest.mark.slow
def test_labels_longer_than_the_frames():  # optax: 1e5, with gradients
    x = np.float32(rng().normal(size=(4, 3, 5)))
    sequences = [*IMPOSSIBLE, (1, 2, 1)]
    losses, gradient = sweep(x, sequences)
    np.testing.assert_array_equal(losses[:3], inf)
    zeroed, same = sweep(x, sequences, zero_infinity=True)
    np.testing.assert_array_equal(zeroed, [0, 0, 0, losses[3]])
    np.testing.assert_array_equal(gradient, same)
    np.testing.assert_array_equal(gradient[:3], 0)
    assert np.all(gradient[3] != 0)
    second = np.asarray(hessian(x, sequences))
    np.testing.assert_array_equal(second[:3], 0)
    assert np.any(second[3])
    tangent = jax.jvp(lambda x: ctc(x, IMPOSSIBLE), (x[:3],), (x[:3],))[1]
    np.testing.assert_array_equal(tangent, 0)


# Errors in a sequence are errors of that sequence.


@pytest.mark.parametrize("bad", [np.int8(-1), np.int32(3), np.int64(0), np.uint32(2**32 - 1)])
@pytest.mark.few(1)
def test_a_bad_label(bad):  # optax: -.51
    x = np.float32(rng().normal(size=(3, 4, 3)))
    labels, ends = padded((1, 2), (1, 2), (2,))
    labels = labels.astype(bad.dtype)
    labels[1, 1] = labels[2, 1] = bad  # The last is padded.
    fn = lambda x: jaxloss.ctc_loss(x, np.zeros((3, 4)), labels, ends)
    losses, gradient = jax.jit(fn)(x), np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(fn(x))))(x))
    want, slopes = sweep(x, [(1, 2), (1, 2), (2,)])
    np.testing.assert_allclose(losses, [want[0], nan, want[2]], rtol=1e-6)
    assert np.all(np.isnan(gradient[1]))
    close(gradient[[0, 2]], slopes[[0, 2]])
    error, _ = jax.jit(checkify.checkify(jaxloss.ctc_loss))(x, np.zeros((3, 4)), labels, ends)
    assert "labels must be in [0, 3) and not the blank, 0" in str(error.get())


def test_a_nan_costs_its_own_sequence():
    x = np.float32(rng().normal(size=(3, 4, 3)))
    x[1, 2, 2] = nan
    losses, gradient = sweep(x, [(1,), (1,), (2, 1)])
    assert np.isnan(losses[1]) and np.all(np.isnan(gradient[1]))
    assert np.all(np.isfinite(losses[[0, 2]])) and np.all(np.isfinite(gradient[[0, 2]]))


@pytest.mark.slow
def test_paddings_that_are_none():
    x = np.float32(rng().normal(size=(3, 4, 3)))
    labels, frames = np.ones((3, 2), np.int32), np.zeros((3, 4), np.float32)
    ends = np.float32([[1, 0], [0, 0.5], [0, 1]])
    frames[2, 3] = nan
    np.testing.assert_array_equal(jaxloss.ctc_loss(x, frames, labels, ends), nan)
    check = jax.jit(checkify.checkify(jaxloss.ctc_loss))
    assert "paddings must be 0 or 1" in str(check(x, frames, labels, ends)[0].get())
    assert check(x, 0 * ends[:, :1] + np.zeros(4), labels, 0 * ends)[0].get() is None


# Padding.


@pytest.mark.slow
def test_padded_frames_change_nothing():
    """At the end, at the start and in between; and what they hold, in no derivative."""
    few = np.float32(rng().normal(size=(2, 4, 3)))
    sequences = [(1, 2), (2, 2)]
    where = np.array([[0, 1, 2, 3], [1, 2, 4, 6]])
    rows = np.arange(2)[:, None]
    frames = np.ones((2, 7), bool)
    frames[rows, where] = False
    want = (*sweep(few, sequences), np.asarray(hessian(few, sequences)))
    for filler in (0, nan, inf):
        x = np.full((2, 7, 3), filler, np.float32)
        x[rows, where] = few
        got = (*sweep(x, sequences, frames), np.asarray(hessian(x, sequences, frames)))
        for a, axes in zip(got[1:], (1, 2), strict=True):
            outside = a.copy()
            if axes == 1:
                live = a[rows, where]
                outside[rows, where] = 0
            else:
                index = np.ix_(range(2), range(4), range(3), range(2), range(4), range(3))
                spot = where[index[0], index[1]], where[index[3], index[4]]
                at = index[0], spot[0], index[2], index[3], spot[1], index[5]
                live = a[at]
                outside[at] = 0
            close(live, want[axes])
            np.testing.assert_array_equal(outside, 0)
        close(got[0], want[0])


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32, jnp.bfloat16, np.float64])
def test_dtypes_of_paddings(dtype):
    x, sequences, ends = random_batch()
    labels, label_ends = padded(*sequences)
    want = jaxloss.ctc_loss(x, ends, labels, label_ends)
    got = jaxloss.ctc_loss(x, ends.astype(dtype), labels, label_ends.astype(dtype))
    np.testing.assert_array_equal(got, want)


@pytest.mark.slow
def test_sizes_of_zero():
    assert ctc(np.zeros((0, 4, 3), np.float32), [], width=2).shape == (0,)
    no_frames = np.zeros((2, 0, 3), np.float32)
    losses, gradient = sweep(no_frames, [(), (1,)])
    np.testing.assert_array_equal(losses, [0, inf])
    assert gradient.shape == no_frames.shape
    every = np.ones((2, 4))
    np.testing.assert_array_equal(ctc(np.full((2, 4, 3), nan), [(), (1,)], every), [0, inf])
    # Without labels all frames are blanks.
    x = np.float32(rng().normal(size=(2, 4, 3)))
    blanks = -jnp.sum(jax.nn.log_softmax(x)[:, :, 0], 1)
    for width in (0, 2):
        close(ctc(x, [(), ()], width=width), blanks)
    loss, blank, label = ctc(no_frames, [(), ()], fn=jaxloss.ctc_loss_with_forward_probs)
    assert (loss.shape, blank.shape, label.shape) == ((2,), (0, 2, 1), (0, 2, 0))


@pytest.mark.slow
def test_one_more_axis():
    x, sequences, ends = random_batch()
    many = np.stack([x, x[::-1], 2 * x])
    run = jax.jit(jax.vmap(jax.value_and_grad(lambda x: jnp.sum(ctc(x, sequences, ends)))))
    losses, gradients = run(many)
    for row, loss, gradient in zip(many, losses, gradients, strict=True):
        want, slopes = sweep(row, sequences, ends)
        close((loss, gradient), (np.sum(want), slopes), 1e-5, 1e-5)


# Properties.

JITTED = jax.jit(jaxloss.ctc_loss)
LOGITS = st.floats(-50, 50, width=32) | st.sampled_from([0.0, 30.0, -inf])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(LOGITS, min_size=24, max_size=24),
    st.lists(st.integers(1, 3), max_size=3),
    st.integers(0, 5),
)
def test_never_negative_whatever_is_padded_or_renamed(logits, labels, frames):
    x = np.float32(logits).reshape(1, 6, 4)
    x[:, :, 0] = np.maximum(x[:, :, 0], -50)  # Some class is left.
    ends = np.float32(np.arange(6) >= frames)[None]
    args = ends, *padded(labels, width=3)
    (loss,) = np.asarray(JITTED(x, *args))
    assert loss >= 0
    poisoned = np.where(ends[:, :, None] > 0, np.float32(nan), x)
    assert JITTED(poisoned, *args)[0] == loss
    renamed = [[0, 3, 1, 2][k] for k in labels]
    (same,) = JITTED(x[:, :, [0, 2, 3, 1]], ends, *padded(renamed, width=3))
    np.testing.assert_allclose(same, loss, rtol=2e-6)


# What only a TPU runs, on what this machine has.


def test_a_matmul_picks_what_an_index_picks():
    x = np.float32(10.0 ** rng().uniform(-30, 30, (2, 5, 7)) * rng().choice([-1, 1], (2, 5, 7)))
    x[0, 1, 2] = -inf
    x[1, 2, 3] = inf
    classes = np.array([[2, 0, 2], [3, 6, 1]])[:, None]
    np.testing.assert_array_equal(
        _frames._logits_by_matmul(x, classes), _frames._by_index(x, classes)
    )
    v, ct = np.where(np.isinf(x), 1, x), np.float32(rng().normal(size=(2, 5, 3)))
    (ours,), (plain,) = (
        jax.vjp(partial(pick, classes=classes), v)[1](ct)
        for pick in (_frames._by_matmul, _frames._by_index)
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-6)


# Shapes, dtypes, memory.


def test_wrong_shapes():
    x, labels = np.zeros((2, 4, 3), np.float32), np.ones((2, 2), np.int32)
    fn, ends = jaxloss.ctc_loss, np.zeros((2, 4), np.float32)
    for args, words in [
        ((x[0], ends, labels, 0 * labels), ["(4, 3)", "(2, 2)", "leading axis"]),
        ((x, ends, labels[:1], 0 * labels), ["(2, 4, 3)", "(1, 2)"]),
        ((x, ends[:, :3], labels, 0 * labels), ["logit_paddings", "(2, 3)", "(2, 4)"]),
        ((x, ends, labels, 0 * labels[:, :1]), ["label_paddings", "(2, 1)", "(2, 2)"]),
    ]:
        for call in (fn, jax.jit(fn)):
            with pytest.raises(ValueError) as caught:
                call(*args)
            assert all(word in str(caught.value) for word in words)
    with pytest.raises(TypeError, match="logits must be floating point"):
        fn(labels[:, :, None], 0 * labels, labels, 0 * labels)
    with pytest.raises(TypeError, match="labels must be integers"):
        fn(x, ends, np.float32(labels), 0 * labels)
    for blank in (-1, 3):
        with pytest.raises(ValueError, match=r"blank_id must be in \[0, 3\)"):
            fn(x, ends, labels, 0 * labels, blank_id=blank)


@pytest.mark.slow
def test_memory_does_not_have_a_row_of_classes_for_each_label():
    batch, frames, classes, width = 4, 64, 8192, 30
    x = jax.ShapeDtypeStruct((batch, frames, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch, width), jnp.int32)

    def step(x, labels):
        ends = jnp.zeros((batch, frames)), labels, jnp.zeros(labels.shape)
        loss, gradient = jax.value_and_grad(lambda x: jnp.mean(jaxloss.ctc_loss(x, *ends)))(x)
        return loss, jnp.sum(gradient * gradient)

    size = as_users(step).lower(x, labels).compile().memory_analysis().temp_size_in_bytes
    assert size < 2.5 * 4 * x.size, size / x.size / 4
