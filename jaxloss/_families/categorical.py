"""Categorical cross-entropies: one distribution a row of classes."""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.nll import Terms, combined, label_nll, smoothed_nll, soft_nll
from jaxloss._core.numerics import one_or_nan, xlogy
from jaxloss._core.rows import logsumexp
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.split import class_shape, of_label


@takes(logits=("row", "logits"), labels=("row", "distribution"))
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy of `softmax(logits)` against a distribution over the classes.

    With x the logits and y the labels of one row, and `0 * inf = 0`:

        loss = -sum_j y_j * log_softmax(x)_j

    Args:
        logits: unnormalised log-probabilities, floating, classes along `axis`. A logit of
            -inf excludes its class.
        labels: non-negative weights of the classes, usually a distribution: bool, integer or
            floating, of the shape of `logits` or of the same rank with axes of size 1.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `logits` to exclude classes (what their labels say is
            then ignored), or without the class axes to exclude rows.

    Returns:
        The loss in nats, of the shape of `logits` without `axis`, in float32 (float64 for
        float64 logits); 0 where `where` leaves no class, inf where a label is put on a class
        that is excluded by -inf.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `axis` is not one of the logits.

    The derivative by the logits is `softmax(x) * sum(y) - y`, also where labels do not sum to
    one, and exact where a probability is close to one; by the labels it is `-log_softmax(x)`, a
    huge number for an excluded class.

    References:
        TensorFlow, `softmax_cross_entropy_with_logits`; Goodfellow et al., Deep Learning,
        2016, section 6.2.2.

    >>> import jax, jaxloss
    >>> logits, labels = jax.numpy.array([20.0, 0.0]), jax.numpy.array([1.0, 0.0])
    >>> print(jaxloss.softmax_cross_entropy(logits, labels))
    2.0612e-09
    """
    x, y, axis, live = inputs.dense("logits", logits, "labels", labels, axis, where)
    return _softmax_ce(x, y, live, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _softmax_ce(x, y, live, *, axis):
    x, y = inputs.exclude(live, x, -jnp.inf), inputs.exclude(live, y, 0)
    return inputs.live_rows(live, jnp.squeeze(soft_nll(x, y, axis), axis), axis)


@takes(logits=("row", "logits"), labels=("row", "distribution"))
def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""`softmax_cross_entropy` along the last axis, under the name that optax gives the one
    which takes logits of -inf. Here both do, in every derivative.

        loss = -sum_j y_j * log_softmax(x)_j

    Args, returns, raises and derivatives: see `softmax_cross_entropy`.

    References:
        optax, `safe_softmax_cross_entropy`.

    >>> import jax, jaxloss
    >>> logits = jax.numpy.array([1.0, 2.0, -jax.numpy.inf])
    >>> print(jaxloss.safe_softmax_cross_entropy(logits, jax.numpy.array([0.0, 1.0, 0.0])))
    0.313262
    """
    return softmax_cross_entropy(logits, labels)


@takes(logits=("row", "logits"), labels="labels")
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    ignore_index: int | None = None,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
) -> Array:
    r"""Cross-entropy of `softmax(logits)` against integer labels, without a one-hot.

    With x the logits of one row, C its number of classes that are not excluded, k its label,
    s `label_smoothing` and w `class_weights`:

        loss = (1 - s) * w_k * nll_k + s / C * sum_j w_j * nll_j + z_loss * logsumexp(x)**2

    where `nll = -log_softmax(x)`.

    Args:
        logits: unnormalised log-probabilities, floating, classes along `axis`. A logit of
            -inf excludes its class.
        labels: integers in [0, C), of the shape of `logits` without `axis`, or of that rank
            with axes of size 1. Any other label makes the loss and the gradient of its row
            NaN; under `jax.experimental.checkify` it is reported.
        axis: the class axis; for a tuple (None: all) the label is the flat index into them.
        where: booleans, shaped like `logits` to exclude classes, or without the class axes
            to exclude rows.
        label_smoothing: s in [0, 1], spread over the classes that are not excluded.
        ignore_index: rows with this label cost 0 and have gradient 0, whatever their logits.
        class_weights: C weights, at least 0; they multiply the loss and do not normalise it.
        z_loss: weight of the squared log-normaliser, which keeps logits from drifting.

    Returns:
        The loss in nats, of the shape of `labels`, in float32 (float64 for float64 logits);
        0 where `where` leaves no class, inf where the label's class is excluded.

    Raises:
        TypeError: logits are not floating point, labels not integers, `where` not boolean.
        ValueError: shapes do not match, `label_smoothing` is outside [0, 1], or `axis` is not
            one of the logits.

    The derivative by the logits is `softmax(x) - one_hot(k)`; at the label it is computed as
    minus the probability of the others, so it is exact when the model is confident.

    References:
        TensorFlow, `sparse_softmax_cross_entropy_with_logits`; Szegedy et al., 2015,
        arXiv:1512.00567 (smoothing); Chowdhery et al., 2022, arXiv:2204.02311 (z-loss).

    >>> import jax, jaxloss
    >>> logits = jax.numpy.array([[1.0, 2.0, 3.0], [20.0, 0.0, 0.0]])
    >>> labels = jax.numpy.array([2, 0])
    >>> print(jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels))
    [4.076e-01 4.1223e-09]
    """
    x, labels, axis, live = inputs.labelled("logits", logits, labels, axis, where, ignore_index)
    class_weights = checks.of_classes(
        "class_weights", class_weights, "logits", x.shape[axis], x.dtype
    )
    smoothing = checks.optional(
        "label_smoothing", label_smoothing, checks.scalar, x.dtype, checks.SHARE
    )
    z = checks.optional("z_loss", z_loss, checks.scalar, x.dtype)
    return integer_cross_entropy(
        x, labels, live, smoothing, class_weights, z, axis=axis, ignore_index=ignore_index
    )


@partial(jit_when_eager, static_argnames=("axis", "ignore_index"))
def integer_cross_entropy(x, labels, live, smoothing, class_weights, z_loss, *, axis, ignore_index):
    x, labels, kept = inputs.ignore(x, labels, axis, ignore_index)
    x = inputs.live_classes(live, x, axis, -jnp.inf, 0)
    nll, weights, smooth = label_nll(x, labels, axis), None, None
    if class_weights is not None:
        weights = class_weights.reshape(class_shape(x, axis))
    if smoothing is not None:
        each = jnp.ones(class_shape(x, axis), x.dtype) if weights is None else weights
        smooth = smoothed_nll(x, each, axis)
    lse = None if z_loss is None else logsumexp(x, axis)
    loss = combined(Terms(nll, smooth, lse), labels, weights, smoothing, z_loss, axis)
    loss = loss if kept is None else jnp.where(kept, loss, 0)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


@takes(probabilities=("row", "distribution"), labels=("row", "distribution"))
def categorical_cross_entropy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy of probabilities against a distribution over the classes.

    With p and y the probabilities and labels of one row, and `0 * log 0 = 0`:

        loss = -sum_j y_j * log(p_j)

    Nothing is clipped or normalised. Where a model has logits, `softmax_cross_entropy` of
    those is more accurate.

    Args:
        probabilities: floating, classes along `axis`.
        labels: non-negative weights of the classes, usually a distribution, of the shape of
            `probabilities` or of the same rank with axes of size 1.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `probabilities` to leave terms out, or without the class
            axes to exclude rows.

    Returns:
        The loss in nats, of the shape of `probabilities` without `axis`, in float32 (float64
        for float64 probabilities); NaN for a row with a p below 0 or (beyond rounding) above 1.

    Raises:
        TypeError: probabilities are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `axis` is not one of the probabilities.

    The derivative by p is `-y / p`, 0 where both are 0.

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.

    >>> import jax, jaxloss
    >>> p = jax.numpy.array([0.75, 0.25, 0.0])
    >>> print(jaxloss.categorical_cross_entropy(p, jax.numpy.array([1.0, 0.0, 0.0])))
    0.287682
    """
    p, y, axis, live = inputs.dense("probabilities", probabilities, "labels", labels, axis, where)
    return _probability_ce(p, y, live, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _probability_ce(p, y, live, *, axis):
    p, y = inputs.exclude(live, p, 1), inputs.exclude(live, y, 0)
    loss = 0 - jnp.sum(xlogy(y, p), axis, keepdims=True)  # NaN for a p below 0.
    return jnp.squeeze(loss * one_or_nan(inputs.at_most_one(p, axis), p.dtype), axis)


@takes(probabilities=("row", "distribution"), labels="labels")
def categorical_cross_entropy_with_integer_labels(
    probabilities: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    ignore_index: int | None = None,
) -> Array:
    r"""Cross-entropy of probabilities against integer labels.

    With p the probabilities of one row and k its label, `loss = -log(p_k)`. Nothing is
    clipped or normalised.

    Args:
        probabilities: floating, classes along `axis`.
        labels: integers in [0, C), of the shape of `probabilities` without `axis`, or of that
            rank with axes of size 1. Any other label makes the loss and the gradient of its
            row NaN; under `jax.experimental.checkify` it is reported.
        axis: the class axis; for a tuple (None: all) the label is the flat index into them.
        where: booleans, shaped like `probabilities` to exclude classes, or without the class
            axes to exclude rows.
        ignore_index: rows with this label cost 0 and have gradient 0.

    Returns:
        The loss in nats, of the shape of `labels`, in float32 (float64 for float64
        probabilities); 0 where `where` leaves no class, inf where p_k is 0 or excluded; NaN
        for a row with a p below 0 or (beyond rounding) above 1.

    Raises:
        TypeError: probabilities are not floating point, labels not integers, `where` not
            boolean.
        ValueError: shapes do not match, or `axis` is not one of the probabilities.

    The derivative by p is `-1 / p_k` at the label and 0 elsewhere.

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.

    >>> import jax, jaxloss
    >>> p = jax.numpy.array([[0.75, 0.25], [0.5, 0.5]])
    >>> labels = jax.numpy.array([0, 1])
    >>> print(jaxloss.categorical_cross_entropy_with_integer_labels(p, labels))
    [0.287682 0.693147]
    """
    p, labels, axis, live = inputs.labelled(
        "probabilities", probabilities, labels, axis, where, ignore_index
    )
    return _probability_integer_ce(p, labels, live, axis=axis, ignore_index=ignore_index)


@partial(jit_when_eager, static_argnames=("axis", "ignore_index"))
def _probability_integer_ce(p, labels, live, *, axis, ignore_index):
    p, labels, kept = inputs.ignore(p, labels, axis, ignore_index)
    p = inputs.live_classes(live, p, axis, 0, 1)
    valid = (labels >= 0) & (labels < p.shape[axis]) & inputs.are_probabilities(p, axis)
    p = p * one_or_nan(valid, p.dtype)  # A NaN then is in the gradient of each class.
    loss = 0 - jnp.log(of_label(p, labels, axis))
    loss = loss if kept is None else jnp.where(kept, loss, 0)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Mix a distribution over C classes with the uniform one: `(1 - alpha) * y + alpha / C`.

    Args:
        labels: distributions, floating, classes along `axis`.
        alpha: share of the uniform distribution, in [0, 1].
        axis: the class axis; a tuple of them, or None for all.
        where: booleans of the shape of `labels` (or of the same rank with axes of size 1);
            only these classes are counted in C, the others get 0.

    Returns:
        The smoothed labels, of the shape of `labels`, in float32 (float64 for float64 labels).

    Raises:
        TypeError: labels are not floating point, or `where` is not boolean.
        ValueError: shapes do not match; `alpha` is outside [0, 1].

    References:
        Szegedy et al., 2015, arXiv:1512.00567; Müller et al., 2019, arXiv:1906.02629.

    >>> import jax, jaxloss
    >>> print(jaxloss.smooth_labels(jax.numpy.array([0.0, 1.0]), 0.25))
    [0.125 0.875]
    """
    y = checks.predictions("labels", labels)
    alpha = checks.scalar("alpha", alpha, y.dtype, checks.SHARE)
    where = inputs.mask_of(where, "labels", y.shape)
    return _smooth(y, alpha, where, axis=checks.axes(axis, y.ndim))


@partial(jit_when_eager, static_argnames="axis")
def _smooth(y, alpha, where, *, axis):
    live = jnp.ones_like(y) if where is None else where.astype(y.dtype)
    count = jnp.maximum(jnp.sum(live, axis, keepdims=True), 1)
    smoothed = (1 - alpha) * y + alpha / count
    return smoothed if where is None else jnp.where(where, smoothed, 0)
