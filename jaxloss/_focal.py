"""Cross-entropies that weigh easy and hard examples differently."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss import _checks, _inputs
from jaxloss._categorical import softmax_cross_entropy_with_integer_labels
from jaxloss._checks import Axis
from jaxloss._numerics import finite, one_program, tangent_sum, times, with_gradient
from jaxloss._softmax import (
    SoftRow,
    along,
    complement,
    elsewhere,
    entry,
    gap_to,
    log_complement,
    soft_row,
    softmax,
    total,
    weighted_gradient,
)


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
    gamma = _checks.scalar("gamma", gamma, x.dtype)
    if alpha is not None:
        alpha = class_weights(alpha, x, axis)
    return _softmax_focal(x, y, live, alpha, gamma, axis=axis)


def class_weights(alpha: ArrayLike, x: Array, axis: int) -> Array:
    """The weight of the loss, or one for each class, so that it multiplies `x`."""
    alpha = _checks.numeric("alpha", alpha, x.dtype)
    if alpha.shape not in ((), (x.shape[axis],)):
        raise ValueError(
            f"alpha of shape {alpha.shape} is neither a scalar nor one weight for each of the "
            f"{x.shape[axis]} classes of {x.shape}"
        )
    return alpha.reshape(along(x, axis)) if alpha.ndim else alpha


@partial(one_program, static_argnames="axis")
def _softmax_focal(x, y, live, alpha, gamma, *, axis):
    x, y = _inputs.exclude(live, x, -jnp.inf), _inputs.exclude(live, y, 0)
    if alpha is not None:
        y *= alpha
    exact, fast = partial(_focal, axis=axis), partial(_focal_with_gradient, axis=axis)
    loss = with_gradient(exact, fast, axis)(x, y, gamma)
    return _inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


def _focal(x, y, gamma, *, axis):
    easy = jnp.exp(times(jnp.broadcast_to(gamma, x.shape), log_complement(x, axis)))
    return total(y * easy * finite(softmax(x, axis).nll), axis)


# The losses sum(y * f(p)) have the gradient p * sum(w) - w, with w = -y * p * f'(p), which is
# not negative. For training their value and gradient are written as arithmetic, anew in each
# pass over the row, and with constants of its own: see `_softmax`.


def _focal_with_gradient(x, y, gamma, *, axis):
    # f(p) = -(1-p)**gamma * log p  and  -p f'(p) = (1-p)**gamma * (1 + gamma * r),
    # with r = -p * log(p) / (1-p), which is one where p is.
    info, row = jnp.finfo(x.dtype), soft_row(x, y, axis)
    eps, tiny, big = float(info.eps), float(info.tiny), float(info.max)
    log_all = jnp.log1p(row.tail)
    at_top = jnp.where(row.tail < tiny, 1, log_all / jnp.maximum(row.tail, tiny))
    tail, log_all, log_tail, at_top = jax.lax.optimization_barrier(
        (row.tail, log_all, _log_tail(x, row, axis), at_top)
    )

    # Too much arithmetic for a pass of a reduction: the weights are written out, once.
    of = entry(x, row, 0)
    rest = jnp.maximum(tail + (1 - of.e), tiny)
    log_q = of.others * jnp.log(rest) + (1 - of.others) * log_tail - log_all
    easy = jnp.exp(gamma * log_q)
    r = of.others * (of.e * (jnp.minimum(of.gap, 200) + log_all) / rest)
    w = y * easy * (1 + gamma * (r + (1 - of.others) * at_top))

    behind = total(jnp.minimum((of.gap + log_all) * eps, big) * (y * easy), axis) / eps
    behind = jnp.where((row.top == jnp.inf) & (behind > 0), jnp.inf, behind)
    # The row is 0 without any class, and NaN with a NaN, where its gradient is.
    loss = jnp.where(row.scale == 0, 0 * total(y, axis), behind) + 0 * row.scale
    return loss, weighted_gradient(x, lambda _: w, row, axis)


def _log_tail(x: Array, row: SoftRow, axis: int) -> Array:
    """The logarithm of the sum of exp(-gap) over all but a sole largest class."""
    alone, top = jax.lax.optimization_barrier((row.alone, row.top))
    others = elsewhere(gap_to(x, alone, 40), 9)
    second = jnp.min(gap_to(x, top, 41) + 1e30 * (512 - others), axis, keepdims=True)
    second = jax.lax.optimization_barrier(jnp.minimum(second, 1e30))
    others = elsewhere(gap_to(x, alone, 42), 10)
    rest = total(jnp.exp(jnp.minimum(second - gap_to(x, top, 43), 0)) * others, axis)
    return jnp.maximum(jnp.log(rest / 1024), -1e30) - second


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
    return _poly(x, y, live, _checks.scalar("epsilon", epsilon, x.dtype), axis=axis)


@partial(one_program, static_argnames="axis")
def _poly(x, y, live, epsilon, *, axis):
    x, y = _inputs.exclude(live, x, -jnp.inf), _inputs.exclude(live, y, 0)

    def exact(x, y, epsilon):
        terms = epsilon * complement(x, axis) + softmax(x, axis).nll
        return total(times(y, terms), axis)

    fast = partial(_poly_with_gradient, axis=axis)
    loss = with_gradient(exact, fast, axis)(x, y, epsilon)
    return _inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


def _poly_with_gradient(x, y, epsilon, *, axis):
    # f(p) = -log p + epsilon * (1-p)  and  -p f'(p) = 1 + epsilon * p
    row = soft_row(x, y, axis)
    top, tail, scale = jax.lax.optimization_barrier((row.top, row.tail, row.scale))
    missing = total(y * (tail + (1 - jnp.exp(-gap_to(x, top, 11)))), axis)

    def weights(of):
        return y + y * ((epsilon * scale) * of.e)

    loss = row.loss + epsilon * scale * missing
    return loss, weighted_gradient(x, weights, row, axis)


def generalized_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    q: ArrayLike = 0.7,
    ignore_index: int | None = None,
) -> Array:
    r"""Bounded cross-entropy of `softmax(logits)`, for integer labels some of which are wrong.

    With x the logits of one row, k its label and p = softmax(x):

        loss = (1 - p_k**q) / q

    the cross-entropy in the limit of q = 0, and 1 - p_k, the probability of an error, at q = 1.

    Args:
        logits: unnormalised log-probabilities, floating, classes along `axis`. A logit of
            -inf excludes its class.
        labels: integers in [0, C), of the shape of `logits` without `axis`, or of that rank
            with axes of size 1. Any other label makes the loss and the gradient of its row
            NaN; under `jax.experimental.checkify` it is reported.
        axis: the class axis; for a tuple (None: all) the label is the flat index into them.
        where: booleans, shaped like `logits` to exclude classes, or without the class axes
            to exclude rows.
        q: from 0, trusting every label, to 1; a scalar, which may be traced.
        ignore_index: rows with this label cost 0 and have gradient 0, whatever their logits.

    Returns:
        The loss, in [0, 1 / q], of the shape of `labels`, in float32 (float64 for float64
        logits); 0 where `where` leaves no class, 1 / q where the label's class is excluded.

    Raises:
        TypeError: logits are not floating point, labels not integers, `where` not boolean.
        ValueError: shapes do not match, `q` is outside [0, 1], or `axis` is not one of the
            logits.

    The derivative by the logits is `p_k**q * (p - one_hot(k))`. It, and that by q, is exact
    also where p_k is close to one and where q is close or equal to zero.

    References:
        Zhang and Sabuncu, Generalized cross entropy loss for training deep neural networks
        with noisy labels, 2018, arXiv:1805.07836.

    >>> import jax, jaxloss
    >>> logits = jax.numpy.array([[20.0, 0.0], [0.0, 20.0]])
    >>> print(jaxloss.generalized_cross_entropy(logits, jax.numpy.array([0, 0])))
    [2.0612e-09 1.42857]
    """
    _checks.option("q", q, 0, 1)
    nll = softmax_cross_entropy_with_integer_labels(
        logits, labels, axis, where, ignore_index=ignore_index
    )
    return bounded_nll(nll, _checks.scalar("q", q, nll.dtype))


@one_program
def bounded_nll(nll, q):
    """`(1 - exp(-q * nll)) / q`, for a `nll` of inf too."""
    loss = _moment(finite(nll), q, 0)
    return loss + jax.lax.stop_gradient(jnp.where(jnp.isinf(nll) & (q == 0), jnp.inf, 0))


# The functions
#   m_k = integral over u from 0 to n of u**k exp(-q u)
# are closed under differentiation: d m_k / dn = n**k exp(-q n), d m_k / dq = -m_(k+1).


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _moment(n: Array, q: Array, k: int) -> Array:
    y, safe_q = q * n, jnp.where(q == 0, 1, q)
    if k == 0:
        return jnp.where(y == 0, n, -jnp.expm1(-y) / safe_q)
    # By parts; for small y, where that cancels, a series of which all terms are positive:
    #   n**(k+1) / (k+1) * exp(-y) * (1 + y / (k+2) * (1 + y / (k+3) * ...)).
    by_parts = (k * _moment(n, q, k - 1) - _damped(n, q, k)) / safe_q
    small = jnp.where(y < k + 1, y, 0)
    series = jnp.ones_like(small)
    for j in range(30, 0, -1):
        series = 1 + small / (k + 1 + j) * series
    return jnp.where(y < k + 1, _damped(n, q, k) * n / (k + 1) * series, by_parts)


def _damped(n, q, k):
    """`n**k * exp(-q n)`, not as infinity times zero."""
    return (n * jnp.exp(-q * n / k)) ** k if k else jnp.exp(-q * n)


@partial(_moment.defjvp, symbolic_zeros=True)
def _moment_rule(k, primals, tangents):
    (n, q), (dn, dq) = primals, tangents
    out = _moment(n, q, k)
    return out, tangent_sum(
        out,
        (dn, lambda: _damped(n, q, k) * dn),
        (dq, lambda: -_moment(n, q, k + 1) * dq),
    )
