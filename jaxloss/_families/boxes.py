"""Losses of boxes in an image: of how far a predicted box and a true one cover each other.

All are sums of quotients of lengths along the two axes: of what belongs to one box only, to both,
and of the gap between them. No length is negative, so nothing cancels. At a kink, where two edges
meet, every derivative is the mean of the one-sided ones; a box without width can only grow.
"""

import math
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.numerics import heaviside, one_or_nan, ratio, relu
from jaxloss._core.rules import jit_when_eager

Format = Literal["xyxy", "xywh", "cxcywh"]


@takes(boxes=("row", "box"), targets=("row", "box"))
def iou_loss(
    boxes: ArrayLike,
    targets: ArrayLike,
    *,
    format: Format = "xyxy",
    where: ArrayLike | None = None,
) -> Array:
    r"""One minus the intersection over union of two boxes.

    With I the area that both cover and U the area that either does:

        loss = 1 - I / U

    computed as `(U - I) / U`, of the parts of one box only, so that it is exact for boxes that are
    all but equal.

    Args:
        boxes: predicted, [..., 4], any floating dtype.
        targets: true boxes, of the shape of `boxes`, or of the same rank with axes of size 1.
        format: what the four numbers are: "xyxy" for left, top, right and bottom; "xywh" for left,
            top, width and height; "cxcywh" for the centre, width and height.
        where: booleans shaped like the pairs, [...]; elsewhere the loss is 0.

    Returns:
        One loss for each pair, [...], in [0, 1], in float32 (float64 for float64 boxes); NaN, with
        NaN derivatives, for a box of negative width or height, or with a number that is not finite.

    Raises:
        TypeError: boxes are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, the last axis has not four entries, or an unknown format.

    Boxes that do not touch have a loss of 1 and derivatives of 0. Where edges meet, also of boxes
    that touch, the derivative is the mean of the sides, 0 for equal boxes. Of two boxes without an
    area the loss is 0 if they are the same, else 1, and its derivatives are 0.

    References:
        Yu et al., UnitBox, 2016, arXiv:1608.01471, whose loss is `-log(1 - loss)`.

    >>> import jax, jaxloss
    >>> print(jaxloss.iou_loss(jax.numpy.array([0.0, 0, 2, 2]), jax.numpy.array([1.0, 1, 3, 3])))
    0.857143
    """
    return _iou(*_pair(boxes, targets, format, where), format=format)


@partial(jit_when_eager, static_argnames="format")
def _iou(p, t, where, *, format):
    return _loss(p, t, where, format, lambda x, y: 0)


@takes(boxes=("row", "box"), targets=("row", "box"))
def giou_loss(
    boxes: ArrayLike,
    targets: ArrayLike,
    *,
    format: Format = "xyxy",
    where: ArrayLike | None = None,
) -> Array:
    r"""Generalised IoU, which boxes that do not touch can learn from.

    With I and U the areas of intersection and union, and C that of the smallest box around both:

        loss = 1 - I / U + (C - U) / C

    Args, raises: see `iou_loss`.

    Returns:
        One loss for each pair, [...], in [0, 2], in float32 (float64 for float64 boxes); NaN as for
        `iou_loss`.

    It is `iou_loss` where one box is inside the other. The second quotient is 0, with derivatives
    of 0, where the box around both has no area.

    References:
        Rezatofighi et al., Generalized Intersection over Union, 2019, arXiv:1902.09630.

    >>> import jax, jaxloss
    >>> print(jaxloss.giou_loss(jax.numpy.array([0.0, 0, 2, 2]), jax.numpy.array([1.0, 1, 3, 3])))
    1.0793651
    """
    return _giou(*_pair(boxes, targets, format, where), format=format)


@partial(jit_when_eager, static_argnames="format")
def _giou(p, t, where, *, format):
    def penalty(x, y):
        return _share(_beside(x, y), _shared(x, y) + _unshared(x, y))

    return _loss(p, t, where, format, penalty)


@takes(boxes=("row", "box"), targets=("row", "box"))
def diou_loss(
    boxes: ArrayLike,
    targets: ArrayLike,
    *,
    format: Format = "xyxy",
    where: ArrayLike | None = None,
) -> Array:
    r"""Distance IoU: by how much the centres are apart, in diagonals of the box around both.

    With d the distance of the centres and c the diagonal of the smallest box around both:

        loss = 1 - I / U + d**2 / c**2

    Args, raises: see `iou_loss`.

    Returns:
        One loss for each pair, [...], in [0, 2), in float32 (float64 for float64 boxes); NaN as for
        `iou_loss`.

    Boxes that are the same point have a loss of 0, with derivatives of 0.

    References:
        Zheng et al., Distance-IoU Loss, 2020, arXiv:1911.08287.

    >>> import jax, jaxloss
    >>> print(jaxloss.diou_loss(jax.numpy.array([0.0, 0, 2, 2]), jax.numpy.array([1.0, 1, 3, 3])))
    0.968254
    """
    return _diou(*_pair(boxes, targets, format, where), format=format)


@partial(jit_when_eager, static_argnames="format")
def _diou(p, t, where, *, format):
    return _loss(p, t, where, format, _distance)


@takes(boxes=("row", "box"), targets=("row", "box"))
def ciou_loss(
    boxes: ArrayLike,
    targets: ArrayLike,
    *,
    format: Format = "xyxy",
    where: ArrayLike | None = None,
) -> Array:
    r"""Complete IoU: `diou_loss`, and by how much the aspect ratios differ.

    With the widths w and heights h of the predicted and the true box:

        loss = 1 - I / U + d**2 / c**2 + alpha * v
        v = 4 / pi**2 * (atan(w_t / h_t) - atan(w_p / h_p))**2
        alpha = stop_gradient(v / (1 - I / U + v))

    Args, raises: see `iou_loss`.

    Returns:
        One loss for each pair, [...], in [0, 3), in float32 (float64 for float64 boxes); NaN as for
        `iou_loss`.

    As in the paper `alpha` has no derivative. That of v is its own: the factor `1 / (w**2 + h**2)`,
    which the authors' code leaves out, is there. A box without height has an angle of pi / 2; one
    that is a point has the angle of the other, v = 0, without a derivative by it.

    References:
        Zheng et al., Distance-IoU Loss, 2020, arXiv:1911.08287, section 3.3.

    >>> import jax, jaxloss
    >>> print(jaxloss.ciou_loss(jax.numpy.array([0.0, 0, 2, 2]), jax.numpy.array([1.0, 1, 3, 5])))
    1.0580007
    """
    return _ciou(*_pair(boxes, targets, format, where), format=format)


@partial(jit_when_eager, static_argnames="format")
def _ciou(p, t, where, *, format):
    def penalty(x, y):
        v = (2 / math.pi * _angle(x, y)) ** 2
        return _distance(x, y) + lax.stop_gradient(_share(v, _iou_loss(x, y))) * v

    return _loss(p, t, where, format, penalty)


class Along(NamedTuple):
    """Lengths along one axis, of a predicted interval and a true one."""

    own: Array  # of the predicted one only
    other: Array  # of the true one only
    both: Array
    gap: Array  # between the two
    around: Array  # of both and the gap
    apart: Array  # from the true centre to the predicted one
    size: Array  # of the predicted one
    true_size: Array


def _along(a: Array, b: Array, c: Array, d: Array) -> Along:
    """Of the intervals [a, b], predicted, and [c, d]."""
    overlap = jnp.minimum(b, d) - jnp.maximum(a, c)
    return Along(
        own=_outside(a, b, c, d),
        other=_outside(c, d, a, b),
        both=overlap * heaviside(b - c) * heaviside(d - a),
        gap=relu(c - b) + relu(a - d),
        around=jnp.maximum(b, d) - jnp.minimum(a, c),
        apart=0.5 * ((a - c) + (b - d)),
        size=b - a,
        true_size=d - c,
    )


def _outside(a: Array, b: Array, c: Array, d: Array) -> Array:
    """How much of [a, b] is outside of [c, d]."""
    return relu(jnp.minimum(b, c) - a) + relu(b - jnp.maximum(a, d))


def _shared(x: Along, y: Along) -> Array:
    """The area of both boxes, I."""
    return x.both * y.both


def _unshared(x: Along, y: Along) -> Array:
    """The area of either box but not of both, U - I."""
    return x.own * y.size + x.other * y.true_size + x.both * (y.own + y.other)


def _beside(x: Along, y: Along) -> Array:
    """The area of neither box in the one around both, C - U."""
    covered = x.own + x.other + x.both
    return x.gap * y.around + covered * y.gap + x.own * y.other + x.other * y.own


def _iou_loss(x: Along, y: Along) -> Array:
    inside, outside = _shared(x, y), _unshared(x, y)
    differ = (x.around > x.both) | (y.around > y.both)
    without_area = (inside + outside == 0) & differ
    return jnp.where(without_area, 1, _share(outside, inside))


def _distance(x: Along, y: Along) -> Array:
    """The squared distance of the centres, by the squared diagonal around both."""
    diagonal = x.around**2 + y.around**2
    point = diagonal == 0
    return jnp.where(point, 0, ratio(x.apart**2 + y.apart**2, jnp.where(point, 1, diagonal)))


@jax.custom_jvp
def _share(a: Array, b: Array) -> Array:
    """`a / (a + b)`, of nonnegative numbers, with 0 / 0 = 0 and derivatives of 0 there."""
    return a / _whole(a, b)


@_share.defjvp
def _share_rule(primals, tangents):
    # d share = (b * da - a * db) / (a + b)**2
    (a, b), (da, db) = primals, tangents
    return _share(a, b), (_share(b, a) * da - _share(a, b) * db) / _whole(a, b)


def _whole(a: Array, b: Array) -> Array:
    return jnp.where(a + b == 0, 1, a + b)


def _angle(x: Along, y: Along) -> Array:
    """`atan(w_p / h_p) - atan(w_t / h_t)`, 0 if either is a point."""
    point = (jnp.maximum(x.size, y.size) == 0) | (jnp.maximum(x.true_size, y.true_size) == 0)
    w, h, true_w, true_h = (
        jnp.where(point, 1, side) for side in (x.size, y.size, x.true_size, y.true_size)
    )
    return _atan(w, h) - _atan(true_w, true_h)


def _atan(w: Array, h: Array) -> Array:
    # Of a ratio: no square may under- or overflow.
    size = lax.stop_gradient(jnp.maximum(w, h))
    return jnp.arctan2(w / size, h / size)


def _loss(p, t, where, format, penalty):
    """`1 - I / U + penalty(along x, along y)`."""
    p, t = inputs.mask(None if where is None else where[..., None], p, t)
    (p, p_sound), (t, t_sound) = _edges(p, format), _edges(t, format)
    scale = _scale(p, t)
    left, top, right, bottom = ((scale * a, scale * b) for a, b in zip(p, t, strict=True))
    x = _along(left[0], right[0], left[1], right[1])
    y = _along(top[0], bottom[0], top[1], bottom[1])
    sound = p_sound & t_sound & (scale > 0)
    return inputs.masked(where, (_iou_loss(x, y) + penalty(x, y)) * one_or_nan(sound, scale.dtype))


def _edges(box: Array, format: Format) -> tuple[list[Array], Array]:
    """Left, top, right and bottom, and whether these are of a box."""
    x, y, w, h = (box[..., i] for i in range(4))
    if format == "xyxy":
        edges, w, h = [x, y, w, h], w - x, h - y
    elif format == "xywh":
        edges = [x, y, x + w, y + h]
    else:
        edges = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    return edges, (w >= 0) & (h >= 0)


def _scale(p: list[Array], t: list[Array]) -> Array:
    """A power of two by which the box around both is of about size one, without a derivative.

    The losses are the same at any scale, but squares of areas would over- or underflow. It is 0, or
    NaN, if anything is infinite or undefined.
    """
    (left, top, right, bottom) = (lax.stop_gradient(a) for a in zip(p, t, strict=True))
    around = jnp.maximum(*right) - jnp.minimum(*left), jnp.maximum(*bottom) - jnp.minimum(*top)
    size, info = jnp.maximum(*around), jnp.finfo(around[0].dtype)
    inverse = 1 / jnp.where(size < float(info.tiny), 1, size)
    return lax.reduce_precision(inverse, info.nexp, 0)


def _pair(boxes, targets, format, where):
    """Check and convert boxes and the mask of pairs; broadcast them together."""
    if format not in get_args(Format):
        raise ValueError(f"format must be one of {get_args(Format)}, got {format!r}")
    p = checks.predictions("boxes", boxes)
    t = checks.numeric("targets", targets, p.dtype)
    shape = checks.common_shape("boxes", p, "targets", t)
    if p.shape[-1:] != (4,) or t.shape[-1:] != (4,):
        raise ValueError(
            f"boxes of shape {p.shape} and targets of shape {t.shape} must have four numbers "
            f"along the last axis, {format!r}"
        )
    where = inputs.mask_of(where, "boxes", shape[:-1])
    return jnp.broadcast_to(p, shape), jnp.broadcast_to(t, shape), where
