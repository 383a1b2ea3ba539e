"""Losses of boxes: edges that meet, boxes without an area, formats, scales, what is no box."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxloss
from jaxloss import Loss
from tests.cases.boxes import _naive as naive
from tests.test_properties import close

LOSSES = [jaxloss.iou_loss, jaxloss.giou_loss, jaxloss.diou_loss, jaxloss.ciou_loss]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda fn: fn.__name__)
FORMATS = "xyxy", "xywh", "cxcywh"


def of_corners(boxes, format):
    x1, y1, x2, y2 = np.moveaxis(np.asarray(boxes, np.float32), -1, 0)
    formats = {
        "xyxy": (x1, y1, x2, y2),
        "xywh": (x1, y1, x2 - x1, y2 - y1),
        "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
    }
    return np.stack(formats[format], -1)


# All boxes with corners in {0, 1, 2}, some without an area, and all pairs of them.
BOXES = np.float32(
    [(a, b, c, d) for a, b, c, d in product(range(3), repeat=4) if a <= c and b <= d]
)
P, T = (BOXES[i].reshape(-1, 4) for i in np.indices((len(BOXES),) * 2))


def with_an_area(b):
    return (b[:, 2] > b[:, 0]) & (b[:, 3] > b[:, 1])


SOLID = with_an_area(P) & with_an_area(T)


def test_values_of_torchvision():
    """Of its tests of the generalised IoU: equal, inside, side by side, and at a corner."""
    a, b, c, d = np.float32([[-1, -1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 2], [1, 1, 2, 2]])
    got = jaxloss.giou_loss(np.stack([a, a, b, b]), np.stack([a, b, c, d]))
    np.testing.assert_allclose(got, [0, 0.75, 1, 1.5], rtol=1e-6)


@each_loss
def test_however_edges_meet(loss):
    """Values, and derivatives that are the means of the one-sided ones."""
    run = jax.jit(lambda p, t: (loss(p, t), jax.grad(lambda *b: jnp.sum(loss(*b)), (0, 1))(p, t)))
    value, gradients = jax.tree.map(np.asarray, run(P, T))
    plain = naive(loss.__name__.removesuffix("_loss"))
    with jax.enable_x64(True):
        p, t = np.float64(P[SOLID]), np.float64(T[SOLID])
        want, step = jax.jit(plain), 1e-5
        np.testing.assert_allclose(value[SOLID], want(p, t), rtol=1e-6, atol=1e-6)
        if loss is jaxloss.ciou_loss:  # Of which a factor is held.
            return
        for i, move in enumerate(step * np.eye(4)):
            sides = (want(p + move, t) - want(p - move, t)) / (2 * step)
            np.testing.assert_allclose(gradients[0][SOLID, i], sides, atol=1e-4)
    swapped = value.reshape(len(BOXES), -1).T.ravel()
    np.testing.assert_allclose(value, swapped, rtol=1e-6)


@each_loss
@pytest.mark.few(2)
def test_boxes_without_an_area(loss):
    """All is finite, and a box is the best prediction of itself."""

    def one(p, t):
        return loss(p, t), jax.grad(loss, (0, 1))(p, t), jax.hessian(loss, (0, 1))(p, t)

    results = jax.jit(jax.vmap(one))(P, T)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(results))
    value, (by_box, by_target), _ = jax.tree.map(np.asarray, results)
    same = np.all(P == T, -1)
    np.testing.assert_array_equal(value[same], 0)
    assert np.all(value[~same] > 0)
    for gradient in (by_box, by_target):
        np.testing.assert_array_equal(gradient[same], 0)
    if loss is jaxloss.iou_loss:
        np.testing.assert_array_equal(value[~with_an_area(P) & ~same], 1)


def test_a_box_without_width_grows():
    p, t = np.float32([1, 0, 1, 2]), np.float32([0, 0, 2, 2])
    np.testing.assert_allclose(jax.grad(jaxloss.iou_loss)(p, t)[0::2], [0.5, -0.5])


def test_angle_of_a_box_without_height():
    flat, square = np.float32([0, 1, 2, 1]), np.float32([0, 0, 2, 2])
    v = 4 / np.pi**2 * (np.pi / 2 - np.pi / 4) ** 2
    np.testing.assert_allclose(jaxloss.ciou_loss(flat, square), 1 + v * v / (1 + v), rtol=1e-6)
    point = np.float32([1, 1, 1, 1])
    assert jaxloss.ciou_loss(point, square) == jaxloss.diou_loss(point, square) == 1


@each_loss
def test_formats_and_scales(loss):
    p, t = BOXES[:, None], BOXES[None]
    want = loss(p, t)
    for format in FORMATS:
        got = loss(of_corners(p, format), of_corners(t, format), format=format)
        np.testing.assert_allclose(got, want, rtol=1e-6)
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(loss(scale * p, scale * t), want, rtol=1e-6, atol=1e-6)
    half = loss(np.float16(1e4) * p.astype(np.float16), np.float16(1e4) * t.astype(np.float16))
    np.testing.assert_array_equal(half, want)


@pytest.mark.parametrize("format", FORMATS)
@each_loss
@pytest.mark.few(4)
def test_what_is_no_box_is_loud(loss, format):
    good = of_corners([[0, 0, 2, 2]], format)
    bad = np.repeat(good, 5, 0)
    bad[1, 2] = -1
    bad[2, 3] = -1
    bad[3, 0], bad[4, 3] = np.nan, np.inf
    loud = np.array([False, True, True, True, True])
    run = jax.jit(jax.value_and_grad(lambda p, t: jnp.sum(loss(p, t, format=format)[1:]), (0, 1)))
    for p, t in ((bad, good), (good, bad)):
        np.testing.assert_array_equal(np.isnan(loss(p, t, format=format)), loud)
        each = jax.jit(jax.vmap(jax.grad(lambda p, t: loss(p, t, format=format), (0, 1))))
        for gradient in each(*np.broadcast_arrays(p, t)):
            assert np.all(np.isnan(gradient[loud])) and np.all(np.isfinite(gradient[~loud]))
    assert np.isnan(run(bad, good)[0])


def test_masked_pairs():
    live = np.arange(len(BOXES)) % 3 > 0
    p, t = np.where(live[:, None], BOXES, np.nan), BOXES[::-1]
    run = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jaxloss.ciou_loss(p, t, where=live))))
    value, gradient = run(p)
    want = jaxloss.ciou_loss(BOXES, t)[live]
    np.testing.assert_allclose(value, jnp.sum(want), rtol=1e-6)
    np.testing.assert_array_equal(gradient[~live], 0)
    assert np.all(np.isfinite(gradient))
    mean = Loss(jaxloss.ciou_loss)(p, t, where=live)
    np.testing.assert_allclose(mean, jnp.mean(want), rtol=1e-6)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"boxes of shape \(2, 3\).*four numbers.*'xyxy'"):
        jaxloss.iou_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"boxes of shape \(2, 4\) and targets of shape \(4,\)"):
        jaxloss.iou_loss(jnp.zeros((2, 4)), jnp.zeros(4))
    with pytest.raises(ValueError, match=r"targets of shape .* four numbers"):
        jaxloss.giou_loss(jnp.zeros((2, 4)), jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"where of shape \(2, 4\) do not fit boxes of shape \(2"):
        jaxloss.diou_loss(jnp.zeros((2, 4)), jnp.zeros((2, 4)), where=jnp.ones((2, 4), bool))
    with pytest.raises(ValueError, match=r"format must be one of .*cxcywh.*, got 'yxyx'"):
        jaxloss.ciou_loss(jnp.zeros((2, 4)), jnp.zeros((2, 4)), format="yxyx")  # type: ignore


edge = st.floats(-8, 8, width=16)
box = st.tuples(edge, edge, edge, edge).map(
    lambda b: np.float32([min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])])
)


@given(box, box)
def test_bounds(p, t):
    iou, giou, diou, ciou = (float(loss(p, t)) for loss in LOSSES)
    assert 0 <= iou <= 1 and iou <= giou <= 2 and iou <= diou < 2 and diou <= ciou < 3


@given(box, st.tuples(*[st.floats(0, 1, width=16)] * 4))
def test_generalised_iou_of_a_box_inside_another_is_its_iou(outer, parts):
    low, size = outer[:2], outer[2:] - outer[:2]
    a, b = np.sort(np.float32(parts).reshape(2, 2), axis=0)
    inner = np.concatenate([low + a * size, np.minimum(low + b * size, outer[2:])])
    close(jaxloss.giou_loss(inner, outer), jaxloss.iou_loss(inner, outer))
