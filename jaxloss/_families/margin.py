"""Margin losses: hinges and perceptrons, zero once the right score leads by enough.

At a kink every derivative is the mean of the one-sided ones, and that of a maximum is shared
equally by those who attain it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._core import inputs
from jaxloss._core.checks import Axis
from jaxloss._core.nll import label_bump
from jaxloss._core.numerics import (
    bounded,
    clip_to_finite,
    largest,
    nan_unless,
    relu,
    times,
    zero_or_nan,
)
from jaxloss._core.rules import jit_when_eager, tangent_sum
from jaxloss._core.split import of_label, total


def hinge_loss(
    predictor_outputs: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Hinge loss of a binary classifier, `max(0, 1 - t * x)`.

    Args:
        predictor_outputs: scores x, any shape and floating dtype; their sign decides.
        targets: t, -1 or 1, of the shape of the scores, a scalar, or of the same rank with
            axes of size 1. Map labels of 0 and 1 by `2 * label - 1`.
        where: booleans shaped like the scores; elsewhere the loss is 0.

    Returns:
        The loss, of the shape of both together, in float32 (float64 for float64 scores).

    Raises:
        TypeError: scores are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by x is `-t` inside the margin, 0 outside, `-t / 2` at t * x = 1.

    References:
        Cortes and Vapnik, Support-Vector Networks, 1995.

    >>> import jax, jaxloss
    >>> print(jaxloss.hinge_loss(jax.numpy.array([0.25, 2.0]), 1))
    [0.75 0.  ]
    """
    return _hinge(*_scores(predictor_outputs, targets, where))


@jit_when_eager
def _hinge(x, t, where):
    x, t = inputs.mask(where, x, t)
    return inputs.masked(where, _below_margin(x, t, 1))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _below_margin(x: Array, t: Array, margin: float, zero: float = 0.0) -> Array:
    """`max(0, margin - t * x)`; `zero` is another one, -0, in another pass: see `binary`."""
    missing = margin - t * x
    return jnp.maximum(missing, zero) + zero_or_nan(missing, 1.25 * margin + 5, zero)


@partial(_below_margin.defjvp, symbolic_zeros=True)
def _below_margin_rule(margin, zero, primals, tangents):
    (x, t), (dx, dt) = primals, tangents
    out = _below_margin(x, t, margin, zero)
    active = lax.stop_gradient(_below(t * (2 * x) - 2 * margin))
    return out, tangent_sum(
        out, (dx, lambda: -t * active * dx), (dt, lambda: -times(active, x) * dt)
    )


def _below(x: Array) -> Array:
    """1 where `x < 0`, 1/2 at zero, 0 above."""
    # Of the least number, 2**-126, that is exp(128).
    return 4 / (4 + 4 * jnp.exp(bounded(x, 2.0**-100, 2.0**101) * 2.0**32))


def squared_hinge_loss(
    predictor_outputs: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Square of the hinge loss, `max(0, 1 - t * x)**2`, which is smooth.

    Args, returns, raises: see `hinge_loss`.

    References:
        Keras, `squared_hinge`; Chang et al., Coordinate Descent Method for Large-scale L2-loss
        Linear SVM, 2008.

    >>> import jax, jaxloss
    >>> print(jaxloss.squared_hinge_loss(jax.numpy.array([0.5, 2.0]), 1))
    [0.25 0.  ]
    """
    return _squared_hinge(*_scores(predictor_outputs, targets, where))


@jit_when_eager
def _squared_hinge(x, t, where):
    x, t = inputs.mask(where, x, t)
    return inputs.masked(where, _squared_below_one(x, t))


@jax.custom_jvp
def _squared_below_one(x: Array, t: Array) -> Array:
    missing = _below_margin(x, t, 1)
    return missing * missing


@partial(_squared_below_one.defjvp, symbolic_zeros=True)
def _squared_below_one_rule(primals, tangents):
    (x, t), (dx, dt) = primals, tangents
    out, slope = _squared_below_one(x, t), -_below_margin(2 * x, t, 2, -0.0)
    return out, tangent_sum(out, (dx, lambda: slope * t * dx), (dt, lambda: slope * x * dt))


def perceptron_loss(
    predictor_outputs: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Perceptron loss of a binary classifier, `max(0, -t * x)`.

    Args, returns, raises: see `hinge_loss`.

    The derivative by x is `-t` on the wrong side, 0 on the right one, `-t / 2` at x = 0, so
    that training can start there.

    References:
        Rosenblatt, The Perceptron, 1958.

    >>> import jax, jaxloss
    >>> print(jaxloss.perceptron_loss(jax.numpy.array([0.5, -2.0]), 1))
    [0. 2.]
    """
    return _perceptron(*_scores(predictor_outputs, targets, where))


@jit_when_eager
def _perceptron(x, t, where):
    x, t = inputs.mask(where, x, t)
    return inputs.masked(where, _below_margin(x, t, 0))


def multiclass_hinge_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Multi-class hinge loss of Crammer and Singer.

    With s the scores of one row and k its label:

        loss = max_j (s_j - s_k + (1 if j != k else 0))

    Args:
        scores: floating, classes along `axis`. A score of -inf excludes its class.
        labels: integers in [0, C), of the shape of `scores` without `axis`, or of that rank
            with axes of size 1. Any other label makes the loss and the gradient of its row
            NaN; under `jax.experimental.checkify` it is reported.
        axis: the class axis; for a tuple (None: all) the label is the flat index into them.
        where: booleans, shaped like `scores` to exclude classes, or without the class axes to
            exclude rows.

    Returns:
        The loss, of the shape of `labels`, in float32 (float64 for float64 scores); 0 where
        `where` leaves no class, inf where the label's class is excluded.

    Raises:
        TypeError: scores are not floating point, labels not integers, `where` not boolean.
        ValueError: shapes do not match, or `axis` is not one of the scores.

    The derivative is 1 at the class that attains the maximum, -1 at the label.

    References:
        Crammer and Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector
        Machines, 2001.

    >>> import jax, jaxloss
    >>> print(jaxloss.multiclass_hinge_loss(jax.numpy.array([1.0, 2.5, 0.0]), 0))
    2.5
    """
    s, labels, axis, live = inputs.labelled("scores", scores, labels, axis, where)
    return _multiclass_hinge(s, labels, live, axis=axis, margin=1)


@partial(jit_when_eager, static_argnames=("axis", "margin"))
def _multiclass_hinge(s, labels, live, *, axis, margin):
    s = inputs.live_classes(live, s, axis, -jnp.inf, 0)
    loss = jnp.squeeze(_label_hinge(s, labels, axis, margin), axis)
    return inputs.live_rows(live, loss, axis)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _label_hinge(s: Array, labels: Array, axis: int, margin: float) -> Array:
    return _label_hinge_row(s, labels, axis, margin)[0]


@partial(_label_hinge.defjvp, symbolic_zeros=True)
def _label_hinge_rule(axis, margin, primals, tangents):
    # The share of each best class but the label, whose own is minus their sum.
    (s, labels), (v, _) = primals, tangents
    loss, best, share, own = _label_hinge_row(s, labels, axis, margin)
    if isinstance(v, SymbolicZero):
        return loss, jnp.zeros_like(loss)
    best, share, own = lax.optimization_barrier((best, share, own))
    is_label = 8 - jnp.minimum(label_bump(s, labels, axis, 8.0), 8)
    gradient = share / 4 * _is_best(s, labels, best, axis, 4.0) - own / 8 * is_label
    return loss, total(lax.stop_gradient(gradient) * v, axis)


def _label_hinge_row(s, labels, axis, margin):
    """The loss, the largest other score, the share of each class of that, and their sum."""
    # As in `rows`, arithmetic instead of selects, with constants of its own in each pass.
    big = largest(s.dtype)
    others = jnp.minimum(s, label_bump(s, labels, axis, 2.0) * big - big)
    best = jnp.maximum(jnp.max(others, axis, keepdims=True), -big)
    lead = best - of_label(s, labels, axis) + margin
    best = jnp.minimum(best, big)
    count = total(_is_best(s, labels, best, axis, 16.0) + zero_or_nan(s), axis) / 16
    sound = (labels >= 0) & (labels < s.shape[axis]) & ~jnp.isnan(count + lead)
    share = nan_unless(
        sound, jnp.where(lead < 0, 0, 1 / jnp.maximum(count + jnp.where(lead == 0, 1, 0), 1))
    )
    return nan_unless(sound, jnp.maximum(lead, 0)), best, share, share * count


def _is_best(s, labels, best, axis, unit):
    """`unit` for the scores, other than the label's, that are `best`, else 0."""
    bump = jnp.minimum(label_bump(s, labels, axis, unit), unit) - unit / 2
    others = jnp.minimum(s, bump * (2 / unit * largest(s.dtype)))
    return unit - jnp.minimum((best - others) * (unit / 256 / float(jnp.finfo(s.dtype).tiny)), unit)


def multiclass_perceptron_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Multi-class perceptron loss: by how much the best score exceeds the label's.

    With s the scores of one row and k its label: `loss = max_j s_j - s_k`.

    Args, returns, raises and derivatives: see `multiclass_hinge_loss`.

    References:
        Collins, Discriminative Training Methods for Hidden Markov Models, 2002.

    >>> import jax, jaxloss
    >>> print(jaxloss.multiclass_perceptron_loss(jax.numpy.array([1.0, 2.5, 0.0]), 0))
    1.5
    """
    s, labels, axis, live = inputs.labelled("scores", scores, labels, axis, where)
    return _multiclass_hinge(s, labels, live, axis=axis, margin=0)


def categorical_hinge_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Categorical hinge loss of Keras, with labels over the classes.

    With s the scores and y the labels of one row, and `0 * inf = 0`:

        loss = max(0, 1 + max_j (1 - y_j) * s_j - sum_j y_j * s_j)

    For a one-hot y and non-negative scores, such as probabilities, this is the loss of
    `multiclass_hinge_loss`; of negative scores the 0 in the place of the label may be the
    largest.

    Args:
        scores: floating, classes along `axis`. A score of -inf excludes its class.
        labels: usually a one-hot: bool, integer or floating, of the shape of `scores` or of
            the same rank with axes of size 1.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `scores` to exclude classes (what their labels say is
            then ignored), or without the class axes to exclude rows.

    Returns:
        The loss, of the shape of `scores` without `axis`, in float32 (float64 for float64
        scores); 0 where `where` leaves no class.

    Raises:
        TypeError: scores are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `axis` is not one of the scores.

    References:
        Keras, `categorical_hinge`.

    >>> import jax, jaxloss
    >>> scores, labels = jax.numpy.array([0.75, 0.5, 0.0]), jax.numpy.array([1, 0, 0])
    >>> print(jaxloss.categorical_hinge_loss(scores, labels))
    0.75
    """
    s, y, axis, live = inputs.dense("scores", scores, "labels", labels, axis, where)
    return _categorical_hinge(s, y, live, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _categorical_hinge(s, y, live, *, axis):
    s, y = inputs.live_classes(live, s, axis, -jnp.inf, 0), inputs.exclude(live, y, 0)
    return inputs.live_rows(live, relu(jnp.squeeze(_soft_lead(s, y, axis), axis)), axis)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _soft_lead(s: Array, y: Array, axis: int) -> Array:
    """`1 + max((1 - y) * s) - sum(y * s)`, where zero wins over an infinite score."""
    return _soft_lead_row(s, y, axis)[0]


@partial(_soft_lead.defjvp, symbolic_zeros=True)
def _soft_lead_rule(axis, primals, tangents):
    # With r the share of each class in the maximum:
    # d lead = sum(((1 - y) r - y) ds - (r + 1) s dy)
    (s, y), (ds, dy) = primals, tangents
    lead, best, share = _soft_lead_row(s, y, axis)
    best, share = lax.stop_gradient(lax.optimization_barrier((best, share)))
    r = share / 64 * lax.stop_gradient(_is_largest(s, y, best, 8))
    return lead, tangent_sum(
        lead,
        (ds, lambda: total(((1 - y) * r - y) * ds, axis)),
        (dy, lambda: -total((r + 1) * clip_to_finite(s) * dy, axis)),
    )


def _soft_lead_row(s, y, axis):
    """The lead, the largest weighed score, and the share of each class of that.

    No number may be a constant in two of the passes, this and the gradient's: see `rows`.
    """
    eps = float(jnp.finfo(s.dtype).eps)
    best = jnp.max(_weighed(s, 32 - 32 * y, 32), axis, keepdims=True) / 1024
    count = total(_is_largest(s, y, best, 2), axis) / 4
    # This is NaN with a NaN, which some of XLA's CPU reductions drop in a maximum.
    own = total(_weighed(s, y, 16), axis) / 16
    lead = 1 + best / eps - own / eps
    share = nan_unless(~jnp.isnan(lead), 1 / count)
    return lead, best, share


def _is_largest(s, y, best, unit):
    """`unit ** 2` for the scores that, weighed by what is no label of theirs, are `best`."""
    # The minimum keeps the product from becoming a fused multiply-add, rounded otherwise.
    weighed = jnp.minimum(_weighed(s, unit - unit * y, unit), unit * (largest(s.dtype) / 128))
    gap = unit * unit * best - weighed
    return unit * unit - jnp.minimum(gap * (2.0**100 / unit), unit * unit)


def _weighed(s, w, unit):
    """`s * w`, zero if the weight is, times `unit` and by so much less that it is finite."""
    s = s * (unit * float(jnp.finfo(s.dtype).eps))
    return jnp.sign(s) * jnp.minimum(jnp.abs(s), unit * (largest(s.dtype) / 4096)) * w


def _scores(predictor_outputs, targets, where):
    return inputs.elementwise("predictor_outputs", predictor_outputs, "targets", targets, where)
