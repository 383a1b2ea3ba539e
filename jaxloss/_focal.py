"""Cross-entropies that weigh easy and hard examples differently."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss import _checks, _inputs
from jaxloss._checks import Axis
from jaxloss._numerics import finite, one_program, times
from jaxloss._softmax import along, complement, log_complement, softmax


def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Array:
    r"""Focal loss of `softmax(logits)`: cross-entropy that plays down easy examples.

    With x the logits, y the labels and p the softmax of one row:

        loss = -sum_j alpha_j * y_j * (1 - p_j)**gamma * log(p_j)

    Args:
        logits: unnormalised log-probabilities, floating, classes along `axis`. A logit of
            -inf excludes its class.
        labels: non-negative weights of the classes, usually a distribution: bool, integer or
            floating, of the shape of `logits` or of the same rank with axes of size 1.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `logits` to exclude classes (what their labels say is
            then ignored), or without the class axes to exclude rows.
        alpha: weight of the loss, a scalar or one for each class.
        gamma: exponent, at least 0; with 0 this is the (weighted) cross-entropy.

    Returns:
        The loss in nats, of the shape of `logits` without `axis`, in float32 (float64 for
        float64 logits); 0 where `where` leaves no class.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, `gamma` is negative, or `axis` is not one of the
            logits.

    `1 - p` and its logarithm are exact where p is close to one, so every derivative is finite
    for every gamma >= 0.

    References:
        Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv:1708.02002.

    >>> import jax, jaxloss
    >>> logits, labels = jax.numpy.array([20.0, 0.0]), jax.numpy.array([1.0, 0.0])
    >>> print(jaxloss.softmax_focal_loss(logits, labels, gamma=1.0))
    4.2483e-18
    """
    _checks.option("gamma", gamma, 0, float("inf"))
    x, y, axis, live = _inputs.dense("logits", logits, "labels", labels, axis, where)
    gamma = _checks.numeric("gamma", gamma, x.dtype)
    _checks.fits("gamma", gamma, "a scalar", ())
    if alpha is not None:
        alpha = _checks.numeric("alpha", alpha, x.dtype)
        if alpha.shape not in ((), (x.shape[axis],)):
            raise ValueError(
                f"alpha of shape {alpha.shape} is neither a scalar nor one weight for each of "
                f"the {x.shape[axis]} classes of logits"
            )
    return _softmax_focal(x, y, live, alpha, gamma, axis=axis)


@partial(one_program, static_argnames="axis")
def _softmax_focal(x, y, live, alpha, gamma, *, axis):
    x, y = _inputs.exclude(live, x, -jnp.inf), _inputs.exclude(live, y, 0)
    if alpha is not None:
        y *= alpha.reshape(along(x, axis)) if alpha.ndim else alpha
    easy = jnp.exp(times(jnp.broadcast_to(gamma, x.shape), log_complement(x, axis)))
    nll = softmax(x, axis).nll
    loss = jnp.sum(y * easy * finite(nll), axis)
    # The value with a label on an excluded class; its derivative is that of the sum.
    excluded = jnp.any((y > 0) & jnp.isinf(nll), axis)
    loss += jax.lax.stop_gradient(jnp.where(excluded, jnp.inf, 0))
    return _inputs.live_rows(live, loss, axis)


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""PolyLoss: cross-entropy of `softmax(logits)` with its first polynomial term changed.

    With x the logits, y the labels and p the softmax of one row:

        loss = sum_j y_j * (-log(p_j) + epsilon * (1 - p_j))

    Args:
        logits: unnormalised log-probabilities, floating, classes along `axis`. A logit of
            -inf excludes its class.
        labels: non-negative weights of the classes, usually a distribution: bool, integer or
            floating, of the shape of `logits` or of the same rank with axes of size 1.
        epsilon: coefficient of the first term; the paper suggests 2 for image
            classification, -1 for detection.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `logits` to exclude classes (what their labels say is
            then ignored), or without the class axes to exclude rows.

    Returns:
        The loss in nats, of the shape of `logits` without `axis`, in float32 (float64 for
        float64 logits); 0 where `where` leaves no class.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `axis` is not one of the logits.

    `1 - p`, like the cross-entropy, is exact where p is close to one.

    References:
        Leng et al., PolyLoss, 2022, arXiv:2204.12511.

    >>> import jax, jaxloss
    >>> logits, labels = jax.numpy.array([20.0, 0.0]), jax.numpy.array([1.0, 0.0])
    >>> print(jaxloss.poly_loss_cross_entropy(logits, labels))
    6.1834e-09
    """
    x, y, axis, live = _inputs.dense("logits", logits, "labels", labels, axis, where)
    epsilon = _checks.numeric("epsilon", epsilon, x.dtype)
    _checks.fits("epsilon", epsilon, "a scalar", ())
    return _poly(x, y, live, epsilon, axis=axis)


@partial(one_program, static_argnames="axis")
def _poly(x, y, live, epsilon, *, axis):
    x, y = _inputs.exclude(live, x, -jnp.inf), _inputs.exclude(live, y, 0)
    terms = epsilon * complement(x, axis) + softmax(x, axis).nll
    return _inputs.live_rows(live, jnp.sum(times(y, terms), axis), axis)
