"""Several labels of each token, with weights: mixtures of labels, and what a teacher saved."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxloss._core.nll import Terms, combined, smoothed_nll, soft_nll
from jaxloss._core.numerics import nonnegative, one_or_nan, relu, softplus, times
from jaxloss._core.rows import logsumexp
from jaxloss._core.split import ClassAxis, class_shape, classes, local_labels, total
from jaxloss.linear import _formulas
from jaxloss.linear._formulas import Settings, TokenStatistics, shaped

LabelRest = Literal["none", "uniform", "proportional"]
# Stands for a label that there is not; other numbers that are no class make a loss NaN.
ABSENT = -2


class WeightedLabels(NamedTuple):
    """Of each token, [N, K]."""

    labels: Array
    weights: Array


def weights_of(labels: Any) -> Any:
    """What can be differentiated of the labels: None where each token has one."""
    return labels.weights if isinstance(labels, WeightedLabels) else None


def with_weights(labels: Any, weights: Any) -> Any:
    return labels._replace(weights=weights) if isinstance(labels, WeightedLabels) else labels


def heaviest(labels: Any) -> Array:
    """The label of each token; of several, that with the largest weight."""
    if not isinstance(labels, WeightedLabels):
        return labels
    best = jnp.argmax(labels.weights, 1)[:, None]
    return jnp.take_along_axis(labels.labels, best, 1)[:, 0]


# With the weights q of the labels and r what they lack of one, the targets of the other classes are
# r / (their number), or r times the share p_j / (1 - P) that the student gives them, where P is the
# probability of all labels together. The second has the loss -r * log(1 - P).


def cross_entropy(
    logits: tuple[Array, ...],
    labels: WeightedLabels,
    settings: Settings,
    axis: ClassAxis,
    *,
    rest: LabelRest,
) -> Array:
    x = shaped(logits[0], settings.bias, settings.softcap)
    present = labels.labels != ABSENT
    valid = (labels.labels >= 0) & (labels.labels < classes(x, axis)) | ~present
    valid = one_or_nan(jnp.all(valid, 1, keepdims=True), x.dtype)
    q = nonnegative(jnp.where(present, labels.weights, 0))
    lacking = relu(1 - jnp.sum(q, 1, keepdims=True))

    where = _places(labels.labels, x, axis)
    y = jnp.zeros_like(x).at[where].add(q, mode="drop")
    labelled = jnp.zeros(x.shape, bool).at[where].set(True, mode="drop")
    if rest == "uniform":
        others = ~labelled & (x > -jnp.inf)
        count = total(others.astype(x.dtype), axis)
        y += jnp.where(others, lacking / jnp.maximum(count, 1), 0)
    weights = settings.class_weights
    if weights is not None:
        weights = weights.reshape(class_shape(x, axis))
        y *= weights
    loss = soft_nll(x, y, axis)
    if rest == "proportional":
        inside, outside = (
            logsumexp(jnp.where(which, x, -jnp.inf), axis) for which in (labelled, ~labelled)
        )
        loss += times(lacking, softplus(inside - outside))

    smooth = lse = None
    if settings.smoothing is not None:
        smooth = smoothed_nll(x, jnp.ones_like(x) if weights is None else weights + 0 * y, axis)
    if settings.z_loss is not None:
        lse = logsumexp(x, axis)
    terms = Terms(loss * valid, smooth, lse)
    return combined(terms, labels.labels, None, settings.smoothing, settings.z_loss, axis)[:, 0]


def _places(labels: Array, x: Array, axis: ClassAxis) -> tuple[Array, Array]:
    """Where in `x` the labels are; those of other devices are beyond it."""
    local = local_labels(labels, x.shape[1], axis)
    here = (labels >= 0) & (local >= 0) & (local < x.shape[1])
    return jnp.arange(x.shape[0])[:, None], jnp.where(here, local, x.shape[1])


def statistics(
    logits: tuple[Array, ...], labels: Any, settings: Settings, axis: ClassAxis
) -> TokenStatistics:
    """Of several labels of a token, `log_prob` is the sum of theirs by their weights."""
    if not isinstance(labels, WeightedLabels):
        return _formulas.statistics(logits, labels, settings, axis)
    of_one = _formulas.statistics(logits, jnp.zeros_like(labels.labels[:, 0]), settings, axis)
    targets = cross_entropy(
        logits, labels, Settings(settings.bias, settings.softcap), axis, rest="none"
    )
    return of_one._replace(log_prob=-targets)
