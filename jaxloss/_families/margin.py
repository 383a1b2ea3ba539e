"""Margin losses: hinges and perceptrons, zero once the right score leads by enough.

At a kink every derivative is the mean of the one-sided ones, and that of a maximum is shared
equally by those who attain it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import inputs, passes
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.nll import is_label
from jaxloss._core.numerics import clip_to_finite, nan_unless, one_or_nan, relu, times
from jaxloss._core.reports import report
from jaxloss._core.rules import (
    jit_when_eager,
    tangent_sum,
    with_fast_gradient,
    with_fast_value,
)
from jaxloss._core.split import of_label


@takes(predictor_outputs="entries", targets=("entries", "sign"))
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
            axes of size 1. Map labels of 0 and 1 by `2 * label - 1`: a target of 0 costs 1
            whatever the score, and under `jax.experimental.checkify` all but -1 and 1 are
            reported.
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
    x, t = _live(x, t, where)
    return inputs.masked(where, relu(1 - _agreement(x, t)))


@jax.custom_jvp
def _agreement(x: Array, t: Array) -> Array:
    """`t * x`; where one is infinite, which may cost nothing, the derivative is finite."""
    return t * x


@partial(_agreement.defjvp, symbolic_zeros=True)
def _agreement_rule(primals, tangents):
    (x, t), (dx, dt) = primals, tangents
    out = _agreement(x, t)
    by_x, by_t = (lambda: clip_to_finite(t) * dx), (lambda: clip_to_finite(x) * dt)
    return out, tangent_sum(out, (dx, by_x), (dt, by_t))


@takes(predictor_outputs="entries", targets=("entries", "sign"))
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
    x, t = _live(x, t, where)
    return inputs.masked(where, _squared_relu(1 - _agreement(x, t)))


@jax.custom_jvp
def _squared_relu(x: Array) -> Array:
    """`max(x, 0)**2`, with second derivative 1 at zero: the mean of the sides."""
    return relu(x) ** 2


@_squared_relu.defjvp
def _squared_relu_rule(primals, tangents):
    (x,), (dx,) = primals, tangents
    return _squared_relu(x), 2 * relu(x) * dx


@takes(predictor_outputs="entries", targets=("entries", "sign"))
def perceptron_loss(
    predictor_outputs: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Perceptron loss of a binary classifier, `max(0, -t * x)`.

    Args, returns, raises: see `hinge_loss`; of a target of 0 this is 0.

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
    x, t = _live(x, t, where)
    return inputs.masked(where, relu(-_agreement(x, t)))


@takes(scores=("row", "logits"), labels="labels")
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
    options = {"axis": axis, "margin": margin}
    exact, both = partial(_lead, **options), partial(_lead_and_gradient, **options)
    value = partial(_lead_in_one_pass, **options)
    loss = with_fast_value(with_fast_gradient(exact, both, axis), value)(s, labels)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


# With z the scores, but that of the label k less the margin:  loss = max_j z_j - z_k
# The gradient is the share of each class in the maximum, less one at the label.


def _behind_margin(s, labels, axis, margin):
    return jnp.where(is_label(labels, s, axis), s - margin, s)


def _lead(s, labels, *, axis, margin):
    z = _behind_margin(s, labels, axis, margin)
    valid = (labels >= 0) & (labels < s.shape[axis])
    lead = jnp.max(z, axis, keepdims=True) - of_label(z, labels, axis)
    return lead * one_or_nan(valid, s.dtype)


def _lead_in_one_pass(s, labels, *, axis, margin):
    best = passes.largest(_behind_margin(s, labels, axis, margin), axis)
    return jnp.expand_dims(_over_label(best, s, labels, axis, margin)[0], axis)


def _lead_and_gradient(s, labels, *, axis, margin):
    z = _behind_margin(s, labels, axis, margin)
    best = jnp.max(z, axis)
    lead, label_is_best = _over_label(best, s, labels, axis, margin)
    top = jnp.expand_dims(best, axis)
    # Of a NaN, which that maximum may drop, NaN.
    count = jnp.sum(jnp.where(z < top, 0, jnp.where(z >= top, jnp.ones_like(z), z)), axis)
    share = nan_unless(~jnp.isnan(lead), 1 / count)
    none = 0 * share
    rows = lead + none, share, none, jnp.where(label_is_best, share, none) - 1
    lead, share, none, at_label = (jnp.expand_dims(row, axis) for row in rows)
    elsewhere = jnp.where(s < top, none, share)
    return lead, jnp.where(is_label(labels, s, axis), at_label, elsewhere)


def _over_label(best, s, labels, axis, margin):
    """By how much the best of a row exceeds its label, and whether that is the best.

    Rows come without their axis: XLA's loops over one of size one are not vectorized.
    """
    k = jnp.squeeze(labels, axis)
    own = jnp.squeeze(of_label(s, labels, axis), axis) - margin
    label_is_best = own >= best
    lead = jnp.where(label_is_best, 0, best - own)
    lead = jnp.where(own == -jnp.inf, jnp.inf, lead)  # Also of a row that has no other class.
    return nan_unless((k >= 0) & (k < s.shape[axis]), lead), label_is_best


@takes(scores=("row", "logits"), labels="labels")
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


@takes(scores=("row", "logits"), labels=("row", "distribution"))
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

    def lead(s, y):
        y = clip_to_finite(y)  # As in `_agreement`.
        return 1 + jnp.max(times(1 - y, s), axis) - jnp.sum(times(y, s), axis)

    def in_passes(s, y):
        # Without selects; but where a weight of zero meets an infinity, that is NaN.
        out = 1 + jnp.max((1 - y) * s, axis) - jnp.sum(y * s, axis)
        return passes.unless(~jnp.any(jnp.isnan(out)), out, lead, s, y)

    loss = relu(with_fast_value(lead, in_passes)(s, y))
    return inputs.live_rows(live, loss, axis)


def _scores(predictor_outputs, targets, where):
    return inputs.elementwise("predictor_outputs", predictor_outputs, "targets", targets, where)


def _live(x, t, where):
    """Scores and signs, harmless where masked; `checkify` finds targets that are no signs."""
    known = jnp.abs(t) == 1
    t = report(
        t,
        jnp.all(known if where is None else known | ~where),
        "targets must be -1 or 1, but reach from {low} to {high}; map labels of 0 and 1 by "
        "2 * label - 1",
        low=jnp.min(t, initial=1, where=where),
        high=jnp.max(t, initial=-1, where=where),
    )
    return inputs.mask(where, x, t)
