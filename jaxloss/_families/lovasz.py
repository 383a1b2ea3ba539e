"""Lovász losses: the Jaccard loss of segmentations, extended to errors between 0 and 1.

The pixels of an image are taken for wrong one after the other, those of larger errors first, and
each error is weighted by how much the Jaccard loss grows by its pixel.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.numerics import one_or_nan, relu
from jaxloss._core.reduce import per_size
from jaxloss._core.rows import softmax_and_complement
from jaxloss._core.rules import jit_when_eager

Classes = Literal["present", "all"] | Sequence[int]


@takes(logits=("pixels", "logits"), labels=("pixels", "bit"))
def lovasz_hinge_loss(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> Array:
    r"""Lovász hinge: the Jaccard loss of one class, a convex function of its logits.

    With x the logits of the n pixels of one image, z its labels, and the errors
    `e_i = 1 - x_i * (2 * z_i - 1)` in decreasing order:

        loss = sum_i max(0, e_i) * (J_i - J_(i-1)),    J_i = 1 - (S - P_i) / (S + N_i)

    where S is the number of pixels that are 1, P_i and N_i are those of the first i that are 1 and
    0, and J_0 = 0. J_i is the Jaccard loss of taking just the first i pixels wrongly.

    Args:
        logits: floating, shaped (batch, pixels ...).
        labels: 0 or 1, of the same shape: bool, integer or floating.
        where: booleans, shaped like `logits` or of the same rank with axes of size 1: which pixels
            there are.

    Returns:
        The losses of the images, of shape (batch,), in float32 (float64 for float64 logits); 0
        without pixels, NaN where a label is neither 0 nor 1.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or there is no axis of images.

    Of pixels of one error, those with one label share the growth of J evenly, in the mean of
    having those of 1 first and last. At an error of 0 the derivative is half of that above it. By
    the labels it is 0.

    References:
        Berman, Rannen Triki and Blaschko, The Lovász-Softmax loss, 2018, arXiv:1705.08790.

    >>> import jax.numpy as jnp, jaxloss
    >>> logits, labels = jnp.array([[2.0, -0.5, 0.5]]), jnp.array([[1, 1, 0]])
    >>> print(jaxloss.lovasz_hinge_loss(logits, labels))
    [1.]
    """
    x = checks.predictions("logits", logits)
    z = checks.numeric("labels", labels, x.dtype)
    _check_images(x, 1)
    if x.shape != z.shape:
        raise ValueError(
            f"labels of shape {z.shape} and logits of shape {x.shape} must have the same shape"
        )
    return _lovasz_hinge(*jax.tree.map(_flat, (x, z, inputs.mask_of(where, "pixels", x.shape))))


@takes(logits=("pixels", "logits"), labels="labels")
def lovasz_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    ignore_index: int | None = None,
    classes: Classes = "present",
    where: ArrayLike | None = None,
) -> Array:
    r"""Lovász-Softmax: the Jaccard loss of each class, extended to probabilities.

    With p the softmax of the logits and y the labels, a pixel's error for class c is `1 - p_c`
    where y is c, and `p_c` elsewhere. Their sum, weighted as in `lovasz_hinge_loss` with y = c for
    the pixels that are 1, is the loss of the class, and the image's is the mean over classes.

    Args:
        logits: floating, shaped (batch, pixels ..., classes); a logit of -inf excludes its class.
        labels: integers in [0, classes), shaped (batch, pixels ...).
        ignore_index: a label whose pixels do not count, which need not be a class.
        classes: of which the mean is: "present", those that an image has in its labels, "all",
            or the numbers of some, present or not.
        where: booleans, shaped like `labels` or of the same rank with axes of size 1: which
            pixels there are.

    Returns:
        The losses of the images in [0, 1], of shape (batch,), in float32 (float64 for float64
        logits); 0 where no pixel counts, NaN where a label is out of range and not ignored.

    Raises:
        TypeError: logits are not floating point, labels not integers, or `where` not boolean.
        ValueError: shapes do not match, or `classes` names none.

    Of pixels of one error, those in the class, and those that are not, share the growth of the
    Jaccard loss evenly, in the mean of having either first.

    References:
        Berman, Rannen Triki and Blaschko, The Lovász-Softmax loss, 2018, arXiv:1705.08790.

    >>> import jax.numpy as jnp, jaxloss
    >>> logits = jnp.log(jnp.array([[[0.75, 0.25], [0.5, 0.5]]]))
    >>> print(jaxloss.lovasz_softmax_loss(logits, jnp.array([[0, 1]])))
    [0.4375]
    """
    x = checks.predictions("logits", logits)
    _check_images(x, 2)
    y = inputs.labels("logits", x, labels, x.ndim - 1, ignore_index)[..., 0]
    live = inputs.not_ignored(inputs.mask_of(where, "pixels", y.shape), y, ignore_index)
    y, live = jax.tree.map(_flat, (y, live))
    x = x.reshape(*y.shape, x.shape[-1])
    return _lovasz_softmax(x, y, live, classes=_chosen(classes, x.shape[-1]))


def _check_images(x: Array, axes: int) -> None:
    if x.ndim < axes:
        wanted = "(batch, pixels ..., classes)" if axes == 2 else "(batch, pixels ...)"
        raise ValueError(f"logits of shape {x.shape} must have the shape {wanted}")


def _flat(a: Array) -> Array:
    """The pixels of each image along one axis."""
    return a.reshape(a.shape[0], math.prod(a.shape[1:]))


def _chosen(classes: Classes, n: int) -> str | tuple[int, ...]:
    if isinstance(classes, str):
        if classes not in ("present", "all"):
            raise ValueError(f"classes must be 'present', 'all' or numbers, got {classes!r}")
        return classes
    chosen = tuple(int(c) for c in classes)
    if not chosen or not all(0 <= c < n for c in chosen):
        raise ValueError(f"classes must be one or several of [0, {n}), got {classes}")
    return chosen


@jit_when_eager
@left_to_xla(1)
def _lovasz_hinge(x, z, live):
    x, z = inputs.exclude(live, x, 0), inputs.exclude(live, z, 0)
    margin = jnp.where(z == 1, x, -x)
    # In the order of the margins, which are not rounded as 1 - margin is.
    weights = _jaccard_steps(inputs.exclude(live, margin, jnp.inf), z == 1)
    loss = _weighted_sum(inputs.masked(live, relu(1 - margin)), weights)
    return loss * one_or_nan(jnp.all((z == 0) | (z == 1), 1), x.dtype)


@partial(jit_when_eager, static_argnames="classes")
@left_to_xla(1)
def _lovasz_softmax(x, labels, live, *, classes):
    n = x.shape[-1]
    numbers = jnp.arange(n) if isinstance(classes, str) else jnp.array(classes)
    x = x if live is None else jnp.where(live[..., None], x, 0.5)
    x = jnp.moveaxis(x, -1, 0)
    labels = inputs.exclude(live, labels, 0)
    there = labels[None] == numbers[:, None, None].astype(labels.dtype)
    p, q = softmax_and_complement(x, 0)
    if not isinstance(classes, str):
        p, q = p[numbers], q[numbers]
    error, right = jnp.where(there, q, p), jnp.where(there, p, q)
    # Of two errors that round to one, 1 - error still tells the larger.
    order = jnp.where(error > right, -1 / right, 1 / error)
    if live is not None:
        live = jnp.broadcast_to(live, there.shape)
        there &= live
    weights = _jaccard_steps(inputs.exclude(live, order, jnp.inf), there)
    losses = _weighted_sum(inputs.masked(live, error), weights)
    counted = jnp.any(there, -1) if classes == "present" else jnp.ones(losses.shape, bool)
    count = jnp.sum(counted, 0, dtype=losses.dtype)
    loss = per_size(jnp.sum(inputs.masked(counted, losses), 0), count)
    return loss * one_or_nan(jnp.all((labels >= 0) & (labels < n), 1), loss.dtype)


def _weighted_sum(errors: Array, weights: Array) -> Array:
    """`sum(weights * errors)` of each row."""
    # A plain sum, of as many terms of one sign, a CPU adds up one after the other.
    return jnp.vecdot(errors, weights, precision=lax.Precision.HIGHEST)


def _jaccard_steps(order: Array, there: Array) -> Array:
    """By how much J = 1 - I / U grows with each pixel of a row, taken in ascending order.

    A pixel that is there takes 1 from the intersection I, one that is not adds 1 to the union U.
    Those of one place in the order take I to K and U to V. If the ones there come first, each of
    them adds 1 / U, and each of the others K / (U V); if they come last, 1 / V and I / (U V).
    """
    order = lax.stop_gradient(order)
    axis, n = order.ndim - 1, order.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, order.shape, axis)
    order, old_place, there = lax.sort((order, place, there.astype(jnp.int32)), dimension=axis)
    first = (place == 0) | (order != jnp.roll(order, 1, axis))
    last = (place == n - 1) | (order != jnp.roll(order, -1, axis))
    taken = lax.cumsum(there, axis)

    def before(count):
        return lax.cummax(jnp.where(first, count, 0), axis)

    def after(count):
        return lax.cummin(jnp.where(last, count, n), axis, reverse=True)

    whole = jnp.max(taken, axis, keepdims=True, initial=0)
    found = before(taken - there), after(taken)
    i, k = (whole - count for count in found)
    u, v = whole + before(place) - found[0], whole + after(place + 1) - found[1]
    i, k, u, v = (a.astype(order.dtype) for a in (i, k, u, v))
    # Without any that is there J grows from 0 to 1 at once.
    missed = jnp.where(u == 0, 1, (i + k) / 2 / jnp.maximum(u, 1)) / v
    steps = jnp.where(there == 1, (1 / u + 1 / v) / 2, missed)
    _, steps = lax.sort((old_place, steps), dimension=axis, num_keys=1)
    return steps
