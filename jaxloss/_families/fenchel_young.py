"""Fenchel-Young losses: sparsemax, whose predictions may be exactly zero, and any other."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.checks import Axis
from jaxloss._core.nll import label_bump
from jaxloss._core.numerics import bounded, clip_to_finite, largest, nan_unless, times, zero_or_nan
from jaxloss._core.rules import jit_when_eager, tangent_sum
from jaxloss._core.split import of_label, total


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
    x, z, where = inputs.elementwise("logits", logits, "labels", labels, where)
    return _binary_sparsemax(x, z, where)


@jit_when_eager
def _binary_sparsemax(x, z, where):
    x, z = inputs.mask(where, x, z)
    return inputs.masked(where, _sparse_nll(x, z))


@jax.custom_jvp
def _sparse_nll(x: Array, z: Array) -> Array:
    # f(x) = max(x, 0) + max(1 - |x|, 0)**2 / 4, in arithmetic that shares nothing with the
    # derivative: see `binary._bce`, also for the infinities.
    eps, big = float(jnp.finfo(x.dtype).eps), largest(x.dtype)
    wrong = jnp.minimum(jnp.maximum(x, 0) * eps, big) * (z - 1)
    wrong += jnp.maximum(jnp.minimum(x, 0) * eps, -big) * z
    size = jnp.abs(2 * x)
    corner = jnp.maximum(2 - size, 0)
    return corner * corner / 16 - wrong / eps + zero_or_nan(2 * x, 2)


@partial(_sparse_nll.defjvp, symbolic_zeros=True)
def _sparse_nll_rule(primals, tangents):
    (x, z), (dx, dz) = primals, tangents
    out = _sparse_nll(x, z)
    return out, tangent_sum(
        out,
        # A sigmoid of straight lines less z; on the right side that is zero exactly.
        (dx, lambda: (0.5 * _between_ones(x) + (0.5 - z)) * dx),
        (dz, lambda: -clip_to_finite(x) * dz),
    )


@jax.custom_jvp
def _between_ones(x: Array) -> Array:
    return bounded(0.25 * x, 0.25, 4)


@_between_ones.defjvp
def _between_ones_rule(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _between_ones(x), 0.5 * (jnp.sign(x + 1) - jnp.sign(x - 1)) * dx


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
    s, labels, axis, live = inputs.labelled("scores", scores, labels, axis, where)
    return _multiclass_sparsemax(s, labels, live, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _multiclass_sparsemax(s, labels, live, *, axis):
    s = inputs.live_classes(live, s, axis, -jnp.inf, 0)
    loss = jnp.squeeze(_sparsemax_nll(s, labels, axis), axis)
    return inputs.live_rows(live, loss, axis)


class _SparseRow(NamedTuple):
    top: Array  # the largest score
    threshold: Array  # of the scores less the largest, plus one; NaN for a bad row
    others: Array  # the sum of the probabilities of all but the label
    loss: Array


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sparsemax_nll(s: Array, labels: Array, axis: int) -> Array:
    return _sparse_row(s, labels, axis).loss


@partial(_sparsemax_nll.defjvp, symbolic_zeros=True)
def _sparsemax_nll_rule(axis, primals, tangents):
    (s, labels), (v, _) = primals, tangents
    loss, gradient = _sparsemax_nll_and_gradient(s, labels, axis)
    if isinstance(v, SymbolicZero):
        return loss, jnp.zeros_like(loss)
    return loss, total(gradient * v, axis)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _sparsemax_nll_and_gradient(s: Array, labels: Array, axis: int) -> tuple[Array, Array]:
    row = _sparse_row(s, labels, axis)
    top, threshold, others = lax.optimization_barrier(row[:3])
    p = _others((s - top) + 1, labels, threshold, axis, 8.0)
    is_label = 16 - jnp.minimum(label_bump(s, labels, axis, 16.0), 16)
    return row.loss, p / 8 - others / 16 * is_label


@partial(_sparsemax_nll_and_gradient.defjvp, symbolic_zeros=True)
def _sparsemax_nll_and_gradient_rule(axis, primals, tangents):
    # Inside the support the tangent of a probability is centred, outside it is zero.
    (s, labels), (v, _) = primals, tangents
    loss, gradient = _sparsemax_nll_and_gradient(s, labels, axis)
    if isinstance(v, SymbolicZero):
        return (loss, gradient), (jnp.zeros_like(loss), jnp.zeros_like(gradient))
    row = lax.stop_gradient(_sparse_row(s, labels, axis))
    inside = ((s - row.top) + 1 > row.threshold).astype(s.dtype)
    dp = inside * (v - total(inside * v, axis) / total(inside, axis))
    is_label = lax.broadcasted_iota(labels.dtype, s.shape, axis) == labels
    others = jnp.where(is_label, 0, dp)
    d_gradient = jnp.where(is_label, -total(others, axis), others)
    return (loss, gradient), (total(gradient * v, axis), d_gradient)


def _sparse_row(s: Array, labels: Array, axis: int) -> _SparseRow:
    top = jnp.max(s, axis, keepdims=True)
    a = (s - top) + 1
    threshold = _threshold(a, axis)
    valid = (labels >= 0) & (labels < s.shape[axis])
    threshold = lax.optimization_barrier(nan_unless(valid & ~jnp.isnan(threshold), threshold))
    p = [_others(a, labels, threshold, axis, unit) / unit for unit in (2.0, 4.0)]
    others = total(p[0], axis)
    # The largest score is in the support, so it exceeds tau by its probability.
    behind = (top - of_label(s, labels, axis)) - (1 - threshold)
    loss = 0.5 * (total(p[1] * p[1], axis) + others * others) + jnp.maximum(behind, 0)
    return _SparseRow(top, threshold, others, loss)


def _others(a, labels, threshold, axis, unit):
    """The probabilities, times `unit`; zero for the label."""
    p = jnp.maximum(unit * a - unit * threshold, 0)
    return jnp.minimum(p, label_bump(a, labels, axis, unit))


def _threshold(a: Array, axis: int) -> Array:
    """What scores, of which the largest is one, are projected onto the simplex by.

    It is the sum of those inside the support, but one of the largest, by their number: small
    numbers stay exact. Newton's method from below finds the support: each step divides what
    the sum exceeds one by, times the number, by four at least, so that some twenty are enough.
    """
    huge = 2.0**100

    def below(a, unit):
        return jnp.minimum((unit - unit * a) * huge, unit)

    tops = total(1 - below(a, 1) + zero_or_nan(a), axis)

    def step(state):
        threshold, size, _ = state
        inside = [
            jnp.minimum(jnp.maximum(a - threshold, 0) * (unit * huge), unit) for unit in (2, 4)
        ]
        new = total(inside[0], axis) / 2
        others = total(inside[1] * jnp.maximum(a, 0) * below(a, 8), axis) / 32
        return (others + (tops - 1)) / new, new, size

    start = jnp.zeros_like(tops)
    before = jnp.full_like(tops, 4 * a.shape[axis])
    return lax.while_loop(
        lambda state: jnp.any(state[1] < state[2]), step, (start, before / 2, before)
    )[0]


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
        s = checks.predictions("scores", scores)
        t = checks.numeric("targets", targets, s.dtype)
        shape = checks.common_shape("scores", s, "targets", t)
        if not shape:
            raise ValueError("scores and targets are scalars; give an axis to take the maximum of")
        one = jnp.vectorize(lambda row: max_fun(row, *args, **kwargs), signature="(n)->()")
        s, t = jnp.broadcast_to(s, shape), jnp.broadcast_to(t, shape)
        return one(s) - jnp.sum(times(t, s), -1)

    return fenchel_young_loss
