"""Lovász losses: printed examples, sets, ties, masks, large images."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxloss
from tests.test_properties import close as nearly
from tests.test_transforms import close, rng

hinge, softmax = jaxloss.lovasz_hinge_loss, jaxloss.lovasz_softmax_loss
inf, nan = np.inf, np.nan
SOME: Any = "some"
SHAPE = (2, 3, 4, 5)
X = rng().normal(size=SHAPE).astype(np.float32)
Y = rng().integers(0, 4, SHAPE[:-1]).astype(np.int32)  # Class 4 is not there.
LIVE = rng().uniform(size=SHAPE[:-1]) < 0.7
bits = hnp.arrays(bool, (2, 6), elements=st.booleans())


def by_hand(errors, there):
    """Of one class of an image, pixel by pixel, in float64."""
    order = np.argsort(-errors, kind="stable")
    size, taken, loss, before = there.sum(), np.zeros(len(there), bool), 0.0, 0.0
    for i in order:
        taken[i] = True
        after = 1 - (there & ~taken).sum() / (there | taken).sum()
        loss += errors[i] * (after - before)
        before = after
    assert size or len(order) == 0 or before == 1
    return loss


def of_classes(x, y, classes):
    """Of an image, the mean over classes."""
    p = np.asarray(jax.nn.softmax(np.float64(x).reshape(-1, x.shape[-1])))
    y = y.ravel()
    return np.mean([by_hand(np.abs((y == c) - p[:, c]), y == c) for c in classes])


def value_and_slope(fn, x, *args):
    losses, pull = jax.vjp(lambda x: fn(x, *args), x)
    return losses, *pull(jnp.ones_like(losses))


def test_against_pixel_by_pixel():
    z = rng().uniform(size=X.shape) < 0.3
    z[1] = False
    want = [
        by_hand(np.maximum(0, 1 - np.where(b, a, -a)), b)
        for a, b in zip(np.float64(X).reshape(2, -1), z.reshape(2, -1), strict=True)
    ]
    for labels in (z, z.astype(np.int8), z.astype(np.float32)):
        close(hinge(X, labels), want)
    each = [np.unique(y) for y in Y]
    for classes, of in (("present", each), ("all", [range(5)] * 2), ([4, 1], [[1, 4]] * 2)):
        want = [of_classes(*args) for args in zip(X, Y, of, strict=True)]
        close(softmax(X, Y, classes=classes), want)


@given(bits, bits)
def test_of_sets_it_is_the_jaccard_loss(found, there):
    """Errors of 0 and 1; an image without either has none."""
    x = np.where(found, np.float32(1e4), np.float32(-1e4))
    both, either = (found & there).sum(1), (found | there).sum(1)
    want = np.where(either == 0, 0, 1 - both / np.maximum(either, 1))
    nearly(softmax(np.stack([0 * x, x], -1), there.astype(np.int32), classes=[1]), want)
    nearly(hinge(1e-4 * x, there), 2 * want)  # Those of the hinge are 0 and 2.


@given(st.floats(-8, 8, width=32), st.booleans())
def test_one_pixel(x, z):
    nearly(hinge(np.float32([x]), np.array([z])), max(0, 1 - (x if z else -x)))
    pair = np.float32([[0, x]])
    right = jnp.exp(-jaxloss.softmax_cross_entropy_with_integer_labels(pair, np.int32([z])))
    nearly(softmax(pair, np.int32([z])), 1 - right)


@given(hnp.arrays(np.float32, (1, 5), elements=st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])), bits)
def test_ties_are_shared_by_those_of_one_label(x, there):
    there = there[:1, :5]
    loss, slope = value_and_slope(hinge, x, there)
    nearly(loss, by_hand(np.maximum(0, 1 - np.where(there, x, -x))[0], there[0]))
    for i in range(5):
        for k in range(i):
            if x[0, i] == x[0, k] and there[0, i] == there[0, k]:
                assert slope[0, i] == slope[0, k]
    # Moved along its own slope, in either direction, the loss does not stay behind its tangent.
    for step in (1e-2, -1e-2):
        moved = hinge(x + np.float32(step) * slope, there)
        assert moved >= loss + step * np.sum(np.square(slope)) - 1e-5


def test_at_logits_of_zero():
    """Two of four pixels are there: J grows by 1 / 2 each, or by 1 / 4 where they come last."""
    loss, slope = value_and_slope(hinge, jnp.zeros((1, 4)), jnp.array([[1, 1, 0, 0]]))
    assert loss == 1
    np.testing.assert_array_equal(slope, [[-0.375, -0.375, 0.125, 0.125]])
    loss, slope = value_and_slope(hinge, jnp.zeros((1, 4)), jnp.zeros((1, 4), bool))
    assert loss == 1
    np.testing.assert_array_equal(slope, np.full((1, 4), 0.25))


def test_masked_pixels_are_not_there():
    bad = np.where(LIVE[..., None], X, nan).astype(np.float32)
    own = np.where(LIVE, Y, 255)
    for fn, args in (
        (partial(softmax, where=LIVE), (bad, np.where(LIVE, Y, -7))),
        (partial(softmax, ignore_index=255), (bad, own)),
        (jaxloss.Loss(softmax, "none", ignore_index=255), (bad, own)),
        (partial(hinge, where=LIVE), (bad[..., 0], np.where(LIVE, Y > 1, nan))),
    ):
        losses, slope = jax.jit(partial(value_and_slope, fn))(*args)
        np.testing.assert_array_equal(np.asarray(slope)[~LIVE], 0)
        for i in range(2):
            some = bad[i][LIVE[i]][None]
            (labels,) = (Y[i][LIVE[i]][None],)
            alone = (
                (hinge, labels > 1) if some.ndim == 2 and args[0].ndim == 3 else (softmax, labels)
            )
            if args[0].ndim == 3:
                some, alone = some[..., 0], (hinge, labels > 1)
            want, own_slope = value_and_slope(alone[0], some, alone[1])
            close(losses[i], want[0])
            close(np.asarray(slope)[i][LIVE[i]], own_slope[0])
    np.testing.assert_array_equal(softmax(bad, own, where=False), 0)
    assert hinge(jnp.zeros((2, 0)), jnp.zeros((2, 0))).tolist() == [0, 0]
    assert softmax(jnp.zeros((2, 0, 3)), jnp.zeros((2, 0), int)).tolist() == [0, 0]


def test_what_is_no_label_is_nan():
    for fn, args in ((softmax, (X, Y)), (hinge, (X[..., 0], np.float32(Y > 1)))):
        for bad in (-1, 5):
            labels = args[1].copy()
            labels[0, 0, 0] = bad
            losses, slope = value_and_slope(fn, args[0], labels)
            assert np.isnan(losses).tolist() == [True, False]
            assert np.isnan(slope[0]).all() and np.isfinite(slope[1]).all()


def test_infinite_logits():
    x, z = np.float32([[inf, -inf, 3, -inf]]), np.array([[1, 0, 1, 0]])
    loss, slope = value_and_slope(hinge, x, z)
    assert loss == 0 and not np.any(slope)
    loss, slope = value_and_slope(hinge, -x, z)
    assert loss == inf and np.all(np.isfinite(slope))
    x = np.float32([[[inf, 0, -inf], [0, -inf, 2], [1, 0, 0]]])
    loss, slope = value_and_slope(softmax, x, np.int32([[0, 2, 1]]))
    assert np.isfinite(loss) and np.all(np.isfinite(slope))


def test_a_confident_image_has_the_order_of_its_errors():
    """Where one in the class and one that is not have all but reached 1, too."""
    x, y = np.float32([[[0, 20], [21, 0], [0, -3]]]), np.int32([[0, 1, 1]])
    of_first = partial(softmax, classes=[0])
    _, slope = value_and_slope(of_first, x, y)
    with jax.enable_x64(True):
        _, want = value_and_slope(of_first, np.float64(x), y)
    np.testing.assert_allclose(slope, want, rtol=1e-6)


def test_a_large_image():
    x, z = rng().normal(size=(1, 2**18)).astype(np.float32), rng().uniform(size=(1, 2**18)) < 1e-3
    errors = np.maximum(0, 1 - np.where(z, x, -x).astype(np.float64))[0]
    order = np.argsort(-errors)
    taken = np.cumsum(z[0][order])
    after = 1 - (taken[-1] - taken) / (taken[-1] + np.arange(1, taken.size + 1) - taken)
    want = np.sum(errors[order] * np.diff(after, prepend=0))
    np.testing.assert_allclose(hinge(x, z), [want], rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"\(2, 3\).*\(2, 3, 4\)", lambda: hinge(X[..., 0], Y[..., 0])),
        (ValueError, r"logits of shape \(\)", lambda: hinge(0.5, 1)),
        (ValueError, r"labels of shape \(2, 3\).*expected labels", lambda: softmax(X, Y[..., 0])),
        (ValueError, r"logits of shape \(5,\)", lambda: softmax(X[0, 0, 0], 1)),
        (TypeError, "labels must be integers", lambda: softmax(X, X[..., 0])),
        (ValueError, "'all' or numbers, got 'some'", lambda: softmax(X, Y, classes=SOME)),
        (ValueError, r"several of \[0, 5\), got \(5,\)", lambda: softmax(X, Y, classes=(5,))),
        (ValueError, r"where of shape \(3,\)", lambda: softmax(X, Y, where=LIVE[0, :, 0])),
    ],
)
def test_wrong_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()
