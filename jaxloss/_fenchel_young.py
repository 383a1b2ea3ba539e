"""Fenchel-Young losses: sparsemax, whose predictions may be exactly zero, and any other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss import _checks, _inputs
from jaxloss._checks import Axis
from jaxloss._numerics import finite, largest, one_program, tangent_sum, times


def sparsemax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Binary sparsemax loss: a hinge with a parabola for its corner.

    With z the label, `f(x) = 0` below -1, `(x + 1)**2 / 4` up to 1 and x beyond:

        loss = (1 - z) * f(x) + z * f(-x)

    Args:
        logits: scores x, any shape and floating dtype.
        labels: z, 0 or 1 (or between): bool, integer or floating, of the shape of `logits`, a
            scalar, or of the same rank with axes of size 1.
        where: booleans shaped like `logits`; elsewhere the loss is 0.

    Returns:
        The loss, of the shape of both together, in float32 (float64 for float64 logits).

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by x is `clip((x + 1) / 2, 0, 1) - z`.

    References:
        Blondel et al., Learning with Fenchel-Young Losses, 2020, section 4.4.

    >>> import jax, jaxloss
    >>> print(jaxloss.sparsemax_loss(jax.numpy.array([0.0, 3.0]), 1))
    [0.25 0.  ]
    """
    x, z, where = _inputs.elementwise("logits", logits, "labels", labels, where)
    return _binary_sparsemax(x, z, where)


@one_program
def _binary_sparsemax(x, z, where):
    x, z = _inputs.mask(where, x, z)
    return _inputs.masked(where, _sparse_nll(x, z))


@jax.custom_jvp
def _sparse_nll(x: Array, z: Array) -> Array:
    # f(x) = max(x, 0) + max(1 - |x|, 0)**2 / 4, in arithmetic that shares nothing with the
    # derivative: see `_binary._bce`, also for the infinities. A NaN is put back by 0 / NaN.
    eps, big = float(jnp.finfo(x.dtype).eps), largest(x.dtype)
    wrong = jnp.minimum(jnp.maximum(x, 0) * eps, big) * (z - 1)
    wrong += jnp.maximum(jnp.minimum(x, 0) * eps, -big) * z
    size = jnp.abs(2 * x)
    corner = jnp.maximum(2 - size, 0)
    return corner * corner / 16 - wrong / eps + 0 / (2 + size)


@partial(_sparse_nll.defjvp, symbolic_zeros=True)
def _sparse_nll_rule(primals, tangents):
    (x, z), (dx, dz) = primals, tangents
    out = _sparse_nll(x, z)
    return out, tangent_sum(
        out,
        (dx, lambda: ((1 - z) * _sparse_sigmoid(x) - z * _sparse_sigmoid(-x)) * dx),
        (dz, lambda: -finite(x) * dz),
    )


@jax.custom_jvp
def _sparse_sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * jnp.sign(x) * jnp.minimum(jnp.abs(x), 1)


@_sparse_sigmoid.defjvp
def _sparse_sigmoid_rule(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _sparse_sigmoid(x), 0.25 * (jnp.sign(x + 1) - jnp.sign(x - 1)) * dx


def multiclass_sparsemax_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Multi-class sparsemax loss, whose gradient is `sparsemax(scores) - one_hot(label)`.

    With p the projection of the scores s of one row onto the simplex, p = max(s - tau, 0),
    k its label and y the one-hot of it:

        loss = sum_j (y_j - p_j)**2 / 2 + max(tau - s_k, 0)

    which is the Fenchel-Young loss `p.(s - y) + (1 - |p|**2) / 2` without its cancellation.

    Args, returns, raises: see `multiclass_hinge_loss`.

    It is 0 once s_k leads by 1. The derivative is continuous; its own derivative at the edge of
    the support is that of the inside.

    References:
        Martins and Astudillo, From Softmax to Sparsemax, 2016, arXiv:1602.02068.

    >>> import jax, jaxloss
    >>> print(jaxloss.multiclass_sparsemax_loss(jax.numpy.array([1.0, 0.5, -3.0]), 0))
    0.0625
    """
    s, labels, axis, live = _inputs.labelled("scores", scores, labels, axis, where)
    return _multiclass_sparsemax(s, labels, live, axis=axis)


@partial(one_program, static_argnames="axis")
def _multiclass_sparsemax(s, labels, live, *, axis):
    s = _inputs.live_classes(live, s, axis, -jnp.inf, 0)
    is_label, sound = _inputs.label_mask(s, labels, axis)
    loss = _sparsemax_nll(s * sound, is_label, axis) * jnp.squeeze(sound, axis)
    return _inputs.live_rows(live, loss, axis)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sparsemax_nll(s: Array, is_label: Array, axis: int) -> Array:
    p = _sparsemax(s, axis)
    label = jnp.sum(jnp.where(is_label, s, 0), axis)
    # The largest score is in the support, so it exceeds tau by its probability.
    behind = (jnp.max(s, axis) - label) - jnp.max(p, axis)
    return 0.5 * jnp.sum(_missing(p, is_label, axis) ** 2, axis) + jnp.maximum(behind, 0)


@partial(_sparsemax_nll.defjvp, symbolic_zeros=True)
def _sparsemax_nll_rule(axis, primals, tangents):
    (s, is_label), (v, _) = primals, tangents
    loss = _sparsemax_nll(s, is_label, axis)
    if isinstance(v, SymbolicZero):
        return loss, jnp.zeros_like(loss)
    return loss, -jnp.sum(_missing(_sparsemax(s, axis), is_label, axis) * v, axis)


def _missing(p, is_label, axis):
    """`one_hot(label) - p`, at the label as the sum of the others."""
    others = jnp.where(is_label, 0, p)
    return jnp.where(is_label, jnp.sum(others, axis, keepdims=True), -others)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sparsemax(s: Array, axis: int) -> Array:
    """The Euclidean projection of `s` onto the simplex."""
    # With a = s - max(s) + 1 the threshold is the sum of a over all of the support but the
    # largest, by the size of the support: small numbers stay exact.
    a = (s - jnp.max(s, axis, keepdims=True)) + 1
    place = lax.broadcasted_iota(s.dtype, s.shape, axis)
    others = jnp.where(place == 0, 0, jnp.sort(a, axis, descending=True))
    inside = (place == 0) | ((place + 1) * others > jnp.cumsum(others, axis))
    size = jnp.sum(inside, axis, keepdims=True, dtype=s.dtype)
    threshold = jnp.sum(jnp.where(inside, others, 0), axis, keepdims=True) / size
    return jnp.maximum(a - threshold, 0)


@_sparsemax.defjvp
def _sparsemax_rule(axis, primals, tangents):
    # Inside the support the tangent is centred, outside it is zero.
    (s,), (v,) = primals, tangents
    p = _sparsemax(s, axis)
    inside = (p > 0).astype(p.dtype)
    mean = jnp.sum(inside * v, axis, keepdims=True) / jnp.sum(inside, axis, keepdims=True)
    return p, inside * (v - mean)


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., Array]:
    r"""The Fenchel-Young loss `max_fun(scores) - <targets, scores>` of a maximum function.

    Args:
        max_fun: convex, of scores of shape [n] to a scalar: the maximum of `<p, scores>` less
            a regulariser of p. Its gradient is the prediction that belongs to the loss.

    Returns:
        `loss(scores, targets, *args, **kwargs)`, of scores and targets of shape [..., n] to
        losses of shape [...]; further arguments are passed on to `max_fun`.

    References:
        Blondel et al., Learning with Fenchel-Young Losses, 2020, arXiv:1901.02324.

    >>> import jax, jaxloss
    >>> loss = jaxloss.make_fenchel_young_loss(jax.nn.logsumexp)
    >>> print(loss(jax.numpy.array([1.0, 2.0, 3.0]), jax.numpy.array([0.0, 0.0, 1.0])))
    0.407606
    """

    def fenchel_young_loss(
        scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any
    ) -> Array:
        s = _checks.predictions("scores", scores)
        t = _checks.numeric("targets", targets, s.dtype)
        shape = _checks.common_shape("scores", s, "targets", t)
        if not shape:
            raise ValueError("scores and targets are scalars; give an axis to take the maximum of")
        one = jnp.vectorize(lambda row: max_fun(row, *args, **kwargs), signature="(n)->()")
        s, t = jnp.broadcast_to(s, shape), jnp.broadcast_to(t, shape)
        return one(s) - jnp.sum(times(t, s), -1)

    return fenchel_young_loss
