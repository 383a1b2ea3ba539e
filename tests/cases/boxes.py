"""Rows of the losses of boxes."""

from dataclasses import replace
from itertools import product

import jax.numpy as jnp
import numpy as np
from jax import lax
from mpmath import mp

import jaxloss
from tests.cases._case import SAMPLES, Case, Model
from tests.cases._jets import Jet, constant, function, held, operands_case

# Along one axis, a predicted interval and a true one, without a common edge.
INTERVALS = [
    (0, 2, 1, 3), (1, 3, 0, 2), (0, 4, 1, 2.5), (1, 2.5, 0, 4), (0, 1, 1.5, 4), (1.5, 4, 0, 1),
    (1, 2, 1.0001, 1.9999), (3, 3.0001, 2, 7),
]  # fmt: skip
PAIRS = [((a, e, b, f), (c, g, d, h)) for a, b, c, d in INTERVALS for e, f, g, h in INTERVALS]
# As they are, as pixels, and as parts of an image.
POINTS = PAIRS[::3] + [
    tuple(tuple(scale * x for x in box) for box in pair)
    for scale, pair in product((3e3, 1e-4, 1e-10), PAIRS[::13])
]


def _relu(x: Jet) -> Jet:
    return x if x.value > 0 else constant(0)


def _least(a: Jet, b: Jet) -> Jet:
    return a if a.value < b.value else b


def _largest(a: Jet, b: Jet) -> Jet:
    return a if a.value > b.value else b


def _along(a, b, c, d):
    """Own, the other's, both, gap, distance of the centres, and the sizes."""
    outside = [_relu(_least(r, m) - s) + _relu(r - _largest(s, n))
               for s, r, n, m in ((a, b, d, c), (c, d, b, a))]  # fmt: skip
    both = _relu(_least(b, d) - _largest(a, c))
    gap = _relu(c - b) + _relu(a - d)
    around = _largest(b, d) - _least(a, c)
    return *outside, both, gap, around, ((a - c) + (b - d)) / 2, b - a, d - c


def _share(a: Jet, b: Jet) -> Jet:
    """`a / (a + b)`, without a term that cancels in its derivatives."""
    if a.value == 0:
        return a / (a + b)
    return function(b / a, lambda q: [s * (1 + q) ** -n for n, s in enumerate((1, -1, 2, -6), 1)])


def _atan(x: Jet) -> Jet:
    def derivatives(x):
        s = 1 + x * x
        return [mp.atan(x), 1 / s, -2 * x / s**2, (8 * x * x / s**3, -2 / s**2)]

    return function(x, derivatives)


def _exact(kind):
    def loss(x1, y1, x2, y2, tx1, ty1, tx2, ty2):
        x, y = _along(x1, x2, tx1, tx2), _along(y1, y2, ty1, ty2)
        own, other, both, gap, around, apart, w, true_w = x
        own_y, other_y, both_y, gap_y, around_y, apart_y, h, true_h = y
        inside = both * both_y
        outside = own * h + other * true_h + both * (own_y + other_y)
        iou = _share(outside, inside)
        if kind == "giou":
            beside = gap * around_y + (own + other + both) * gap_y + own * other_y + other * own_y
            return iou + _share(beside, inside + outside)
        if kind == "iou":
            return iou
        diou = iou + (apart * apart + apart_y * apart_y) / (around * around + around_y * around_y)
        if kind == "diou":
            return diou
        angle = _atan(w / h) - _atan(true_w / true_h)
        v = angle * angle * (4 / mp.pi**2)
        return diou + held(_share(v, iou)) * v

    return loss


def _naive(kind):
    """As it is mostly written, with an epsilon of 1e-7."""

    def loss(p, t):
        (x1, y1, x2, y2), (tx1, ty1, tx2, ty2) = ([b[..., i] for i in range(4)] for b in (p, t))
        w, h, true_w, true_h = x2 - x1, y2 - y1, tx2 - tx1, ty2 - ty1
        both_w = jnp.maximum(jnp.minimum(x2, tx2) - jnp.maximum(x1, tx1), 0)
        both_h = jnp.maximum(jnp.minimum(y2, ty2) - jnp.maximum(y1, ty1), 0)
        inside = both_w * both_h
        union = w * h + true_w * true_h - inside + 1e-7
        iou = inside / union
        around_w = jnp.maximum(x2, tx2) - jnp.minimum(x1, tx1)
        around_h = jnp.maximum(y2, ty2) - jnp.minimum(y1, ty1)
        if kind == "iou":
            return 1 - iou
        if kind == "giou":
            around = around_w * around_h + 1e-7
            return 1 - iou + (around - union) / around
        squared = ((x1 + x2 - tx1 - tx2) ** 2 + (y1 + y2 - ty1 - ty2) ** 2) / 4
        diou = 1 - iou + squared / (around_w**2 + around_h**2 + 1e-7)
        if kind == "diou":
            return diou
        angle = jnp.arctan(true_w / (true_h + 1e-7)) - jnp.arctan(w / (h + 1e-7))
        v = 4 / np.pi**2 * angle**2
        return diou + lax.stop_gradient(v / (1 - iou + v + 1e-7)) * v

    return loss


def _case(kind, fn, format="xyxy", suffix="", **fields) -> Case:
    exact, naive = _exact(kind), _naive(kind)

    def loss(p, t):
        return fn(p, t, format=format)

    def edges(z):
        if format == "xyxy":
            return z
        x, y, w, h = z
        if format == "xywh":
            return x, y, x + w, y + h
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    def of_edges(p, t):
        return naive(*(jnp.stack(edges([b[..., i] for i in range(4)]), -1) for b in (p, t)))

    def sample(rng, n):
        return tuple(SAMPLES["box"](rng, (n, 4)).astype(np.float32) for _ in range(2))

    case = operands_case(
        f"{kind}_loss{suffix}",
        loss,
        of_edges,
        lambda *z: exact(*edges(z[:4]), *edges(z[4:])),
        [tuple(_formatted(box, format) for box in pair) for pair in POINTS],
        of=(4, 4),
        sample=sample,
        predictions="box",
        targets="box",
        **fields,
    )
    model = Model(fn=loss, naive=of_edges, sample=sample, sizes=(1024, 262144, 2097152))
    return replace(case, fn=loss, naive=of_edges, model=model)


def _formatted(box, format):
    x1, y1, x2, y2 = box
    if format == "xyxy":
        return box
    if format == "xywh":
        return x1, y1, x2 - x1, y2 - y1
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


CASES = [
    _case("iou", jaxloss.iou_loss),
    _case("iou", jaxloss.iou_loss, "xywh", "(xywh)"),
    _case("iou", jaxloss.iou_loss, "cxcywh", "(cxcywh)"),
    _case("giou", jaxloss.giou_loss),
    _case("diou", jaxloss.diou_loss),
    _case("ciou", jaxloss.ciou_loss, differences=False),
]
