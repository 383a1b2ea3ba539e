"""Reductions of sequences: each one's mean or sum over its tokens, then the mean over sequences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import Loss, Mean

REDUCTIONS = ("sequence_mean", "sequence_sum")
RNG = np.random.default_rng(0)
SHAPE = (4, 9)
X, Y = RNG.normal(size=SHAPE), RNG.normal(size=SHAPE)
W = RNG.uniform(0.5, 2, SHAPE) * (RNG.uniform(size=SHAPE) > 0.2)
# A row without a token, a sequence without one, and rows of different lengths.
M = RNG.uniform(size=SHAPE) > 0.3
M[2] = False
M[0, :4] = False
SEGMENTS = {
    "rows": None,
    "packed": np.sort(RNG.integers(0, 4, SHAPE), -1),
    "in any order": RNG.integers(-2, 2, SHAPE),
    "all alone": np.tile(np.arange(9) * 1000, (4, 1)),
    "the same in all rows": np.arange(9)[None] // 4,
}
SEGMENTS["packed"][0] = [0, 0, 0, 0, 1, 1, 1, 3, 3]
square = lambda p, t: (p - t) ** 2


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def written_out(reduction, segments, weights, where):
    """The definition, in loops; also how much each token counts."""
    segments = np.broadcast_to(0 if segments is None else segments, SHAPE)
    sequences = [(row, i) for row in range(len(X)) for i in np.unique(segments[row])]
    shares = np.zeros(SHAPE)
    count = 0
    for row, i in sequences:
        tokens = (segments[row] == i) & where[row]
        if tokens.any():
            count += 1
            shares[row, tokens] = 1 / tokens.sum() if reduction == "sequence_mean" else 1
    shares *= weights / max(count, 1)
    return np.sum(shares * (X - Y) ** 2), 2 * shares * (X - Y), count


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("weights", [None, W], ids=["", "weights"])
@pytest.mark.parametrize("where", [None, M], ids=["", "where"])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.few(12)
def test_reductions(reduction, segments, where, weights, wrap):
    x = X if where is None else np.where(where, X, np.nan)
    loss = Loss(square, reduction)
    kwargs = {"weights": weights, "where": where, "segments": segments}
    value, gradient = wrap(jax.value_and_grad(partial(loss, **kwargs)))(x, Y)
    by_token = (np.ones(SHAPE) if weights is None else weights), np.ones(SHAPE, bool)
    want = written_out(reduction, segments, by_token[0], by_token[1] if where is None else where)
    np.testing.assert_allclose(value, want[0], rtol=1e-13)
    np.testing.assert_allclose(gradient, want[1], rtol=1e-13)
    parts = wrap(partial(loss.parts, **kwargs))(x, Y)
    assert isinstance(parts, Mean) and int(parts.size) == want[2]
    np.testing.assert_allclose(parts.value, want[0], rtol=1e-13)
    # Rows apart: a sequence stays in its row.
    rows = [{k: None if v is None else v[i : i + 1] for k, v in kwargs.items()} for i in range(4)]
    if segments is None or len(segments) == 4:
        in_parts = lambda x: sum(
            loss.parts(x[i : i + 1], Y[i : i + 1], **rows[i]) for i in range(4)
        )
        np.testing.assert_allclose(jax.jit(in_parts)(x).value, want[0], rtol=1e-13)
    squares = (np.where(where, X, Y) - Y) ** 2 if where is not None else (X - Y) ** 2
    each = wrap(partial(Mean.of, reduction=reduction, **kwargs))(squares)
    np.testing.assert_allclose(each.value, want[0], rtol=1e-13)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.few(6)
def test_nothing_left_gives_zero(packed, shape, reduction):
    def value(x):
        segments = jnp.zeros(shape, int) if packed else None
        where = jnp.zeros(shape, bool)
        return Loss(square, reduction)(x, jnp.ones(shape), where=where, segments=segments)

    got, gradient = jax.jit(jax.value_and_grad(value))(np.full(shape, np.nan))
    assert got == 0
    np.testing.assert_array_equal(gradient, np.zeros(shape))


def test_classes_ignored_labels_and_leading_axes():
    x, y = RNG.normal(size=(2, 3, 4, 5)), RNG.integers(-1, 5, (2, 3, 4))
    y[0, 0] = -1
    ce = jaxloss.softmax_cross_entropy_with_integer_labels
    each = Loss(ce, "none", ignore_index=-1)(x, y)
    rows = each.reshape(6, 4), y.reshape(6, 4) >= 0
    want = np.mean([np.mean(row[live]) for row, live in zip(*rows, strict=True) if live.any()])
    loss = Loss(ce, "sequence_mean", ignore_index=-1)
    np.testing.assert_allclose(loss(x, y), want, rtol=1e-13)
    want = np.mean([np.sum(row) for row, live in zip(*rows, strict=True) if live.any()])
    got = Loss(ce, "sequence_sum", ignore_index=-1)(x, y, segments=np.zeros((2, 3, 4), np.int8))
    np.testing.assert_allclose(got, want, rtol=1e-13)
    # One row of tokens, without a batch.
    np.testing.assert_allclose(loss(x[1, 1], y[1, 1]), np.mean(each[1, 1][y[1, 1] >= 0]))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.few(4)
def test_shares_of_mapped_axis_add_up(reduction):
    fold = lambda a: a.reshape(2, 2, *a.shape[1:])
    arrays = X, Y, M, SEGMENTS["packed"]

    def share(loss, x, y, where, segments):
        return loss(x, y, where=where, segments=segments)

    shares = jax.vmap(partial(share, Loss(square, reduction, axis_name="d")), axis_name="d")
    want = share(Loss(square, reduction), *arrays)
    np.testing.assert_allclose(jnp.sum(shares(*map(fold, arrays))), want, rtol=1e-13)


@pytest.mark.parametrize(
    ("reduction", "x", "segments", "error", "message"),
    [
        ("mean", X, np.zeros(SHAPE, int), ValueError, "segments say what is a sequence"),
        ("sum", X, np.zeros(SHAPE, int), ValueError, "segments say what is a sequence"),
        ("sequence_mean", X, np.zeros(SHAPE), TypeError, "segments must be integers"),
        ("sequence_mean", X, np.zeros(4, int), ValueError, r"segments of shape \(4,\)"),
        ("sequence_mean", X, np.zeros((9, 4), int), ValueError, r"segments of shape \(9, 4\)"),
        ("sequence_sum", X[0, 0], None, ValueError, r"needs losses of tokens"),
        ("sequence", X, None, ValueError, "reduction must be one of .*'sequence_mean'"),
    ],
)
def test_refused(reduction, x, segments, error, message):
    with pytest.raises(error, match=message):
        Loss(square, reduction)(x, x, segments=segments)


def test_linear_losses_have_no_sequences():
    hidden, weight = np.ones((2, 3, 4)), np.ones((4, 5))
    labels = np.zeros((2, 3), int)
    with pytest.raises(ValueError, match="reduction must be one of"):
        jaxloss.linear_cross_entropy(hidden, weight, labels, reduction="sequence_mean")
    each = jaxloss.linear_cross_entropy(hidden, weight, labels, reduction="none")
    np.testing.assert_allclose(Mean.of(each, "sequence_sum").value, 3 * np.log(5), rtol=1e-13)
