"""Fenchel-Young losses: sparsemax, whose predictions may be exactly zero, and any other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.nll import is_label, other_class
from jaxloss._core.numerics import clip_to_finite, nan_unless, one_or_nan, times
from jaxloss._core.rules import jit_when_eager, tangent_sum, with_fast_gradient
from jaxloss._core.split import of_label, sums, total


@takes(logits=("entries", "logits"), labels=("entries", "bit"))
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


# f(x) = max(x, 0) + max(1 - |x|, 0)**2 / 4, and f(x) - f(-x) = x.


@jax.custom_jvp
def _sparse_nll(x: Array, z: Array) -> Array:
    size, weight = jnp.abs(x), jnp.where(x > 0, 1 - z, z)
    corner = jnp.where(size > 1, 0, 1 - size) ** 2 / 4
    return jnp.where(weight == 0, corner, corner + weight * size)


@partial(_sparse_nll.defjvp, symbolic_zeros=True)
def _sparse_nll_rule(primals, tangents):
    (x, z), (dx, dz) = primals, tangents
    out = _sparse_nll(x, z)
    return out, tangent_sum(
        out, (dx, lambda: _sparse_slope(x, z) * dx), (dz, lambda: -clip_to_finite(x) * dz)
    )


@jax.custom_jvp
def _sparse_slope(x: Array, z: Array) -> Array:
    between = 0.5 * (x + (1 - 2 * z))
    return jnp.where(x < -1, -z, jnp.where(x > 1, 1 - z, between))


@_sparse_slope.defjvp
def _sparse_slope_rule(primals, tangents):
    (x, z), (dx, dz) = primals, tangents
    return _sparse_slope(x, z), 0.25 * (jnp.sign(x + 1) - jnp.sign(x - 1)) * dx - dz


@takes(scores=("row", "logits"), labels="labels")
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
    exact, both = (
        partial(_sparsemax_nll, axis=axis),
        partial(_sparsemax_nll_and_gradient, axis=axis),
    )
    loss = with_fast_gradient(exact, both, axis)(s, labels)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


# With a the scores less the largest, plus one, and the threshold t:
#   p = max(a - t, 0)    loss = sum_j p_j (a_j - p_j / 2) + 1/2 - a_k
# without cancellation, by the classes other than the label k:
#   loss = (sum p_j**2 + (sum p_j)**2) / 2 + max(t - a_k, 0)
# The gradient is p, and at the label minus the sum of the others.


def _sparsemax_nll(s, labels, *, axis):
    a = s - lax.stop_gradient(jnp.max(s, axis, keepdims=True)) + 1
    p = _sparsemax(s, axis)
    valid = (labels >= 0) & (labels < s.shape[axis])
    loss = total(times(p, a) - p * p / 2, axis) + 0.5 - of_label(a, labels, axis)
    return loss * one_or_nan(valid, s.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sparsemax(s: Array, axis: int) -> Array:
    """The projection of the scores onto the simplex."""
    top = jnp.max(s, axis, keepdims=True)
    return jnp.maximum((s - top) + 1 - _threshold(s, top, axis), 0)


@_sparsemax.defjvp
def _sparsemax_rule(axis, primals, tangents):
    (s,), (v,) = primals, tangents
    p = _sparsemax(s, axis)
    inside = lax.stop_gradient((p > 0).astype(s.dtype))
    return p, inside * (v - total(inside * v, axis) / total(inside, axis))


def _sparsemax_nll_and_gradient(s, labels, *, axis):
    top = jnp.max(s, axis, keepdims=True)
    threshold = _threshold(s, top, axis)

    def terms(s, labels, top, threshold):
        p = jnp.maximum((s - top) + 1 - threshold, 0) * other_class(labels, s, axis)
        return p, p * p

    others, squares = sums(terms, axis, s, labels, top, threshold)
    # The largest score is in the support, so it exceeds t by its probability.
    behind = (top - of_label(s, labels, axis)) - (1 - threshold)
    loss = 0.5 * (squares + others * others) + jnp.maximum(behind, 0)
    # Last of all: a maximum may drop a NaN.
    sound = (labels >= 0) & (labels < s.shape[axis]) & ~jnp.isnan(threshold)
    loss, threshold, others = (nan_unless(sound, row) for row in (loss, threshold, others))
    top, threshold, others = lax.optimization_barrier((top, threshold, others))
    a = (s - top) + 1
    p = jnp.where(a > threshold, a - threshold, 0 * threshold)
    return loss, jnp.where(is_label(labels, s, axis), -others, p)


def _threshold(s: Array, top: Array, axis: int) -> Array:
    """What scores, of which the largest is made one, are projected onto the simplex by.

    It is the sum of those inside the support, but one of the largest, by their number: small
    numbers stay exact. Newton's method from below finds the support: each step divides what
    the sum exceeds one by, times the number, by four at least, so that some twenty are enough.
    """

    def ties(s, top):
        return (1 - passes.step(top - s) + passes.nan_of(s),)

    def of_support(s, top, threshold):
        a = (s - top) + 1
        inside = passes.step(jnp.maximum(a - threshold, 0))
        return inside, inside * passes.step(top - s) * jnp.maximum(a, 0)

    def step(state):
        threshold, size, _ = state
        new, others = sums(of_support, axis, s, top, threshold)
        return (others + (tops - 1)) / new, new, size

    def shrinking(state):
        _, size, before = state
        return jnp.any(size < before)

    (tops,) = sums(ties, axis, s, top)
    before = jnp.full_like(tops, jnp.inf)
    start = jnp.zeros_like(tops), jnp.full_like(tops, s.shape[axis] + 1), before
    return lax.while_loop(shrinking, step, start)[0]


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., Array]:
    r"""The Fenchel-Young loss of a maximum function.

        loss = max_fun(scores) - sum_j targets_j * scores_j

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
