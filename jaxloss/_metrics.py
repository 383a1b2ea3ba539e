"""Metrics that a training step has the numbers of already, as Means."""

import math
import operator
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.numerics import nan_unless
from jaxloss._core.reduce import per_example, per_size
from jaxloss._families.categorical import softmax_cross_entropy_with_integer_labels
from jaxloss._mean import Mean
from jaxloss.linear import LinearStatistics


@jax.tree_util.register_pytree_with_keys_class
class Perplexity(Mean):
    """`exp` of the mean of negative log-likelihoods: parts add up before it is taken."""

    @property
    def value(self) -> Array:
        return jnp.exp(super().value)


@jax.tree_util.register_pytree_with_keys_class
class CalibrationError(Mean):
    """How far confidence and accuracy are apart in each bin, over the number of all examples."""

    @property
    def value(self) -> Array:
        return per_size(jnp.sum(jnp.abs(self.total)), self.size)


def classification_metrics(
    predictions: ArrayLike | LinearStatistics,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    top_k: int | None = None,
    bytes_per_token: ArrayLike | None = None,
    bins: int = 15,
) -> dict[str, Mean]:
    r"""What is told of a classifier or a language model in training, as Means, by name.

    With p the softmax of the logits of one example, k its label and q = max_j p_j:

        loss: -log p_k, in nats
        perplexity: exp of the mean of -log p_k; 1 where nothing counts
        accuracy: whether k is the first j with the largest p_j
        top_5_accuracy: likewise whether it is among the first 5, for top_k=5
        bits_per_byte: the sum of -log2 p_k over the number of bytes, for bytes_per_token
        brier_score: sum_j (p_j - [j = k])**2
        calibration_error: sum_b |sum_{i in b} (q_i - [i is right])| / n, over bins b of q

    From logits all of them, from `linear_statistics` the first three and bits per byte. They add
    up over microbatches, devices and steps, as a mean of perplexities or calibration errors would
    not. Under `jit` the softmax is shared with a loss of the same logits, and what is not used is
    not computed.

    Args:
        predictions: logits, floating, [..., C], or what `linear_statistics` returned of these
            labels.
        labels: integers in [0, C), of the shape of the logits without their class axis.
        axis: the class axis of the logits.
        where: booleans, of the shape of `labels` or of its leading axes. A masked example adds
            nothing, even if it holds NaN, and does not count.
        ignore_index: examples with this label are masked.
        top_k: how many classes `top_k_accuracy` looks at.
        bytes_per_token: how many bytes of text each label stands for, real, of the shape of
            `labels`.
        bins: the number of bins of equal width of the calibration error, over (0, 1].

    Returns:
        A dictionary of Means, in float32 (float64 for float64 predictions). A label out of range
        makes all of them NaN, but for the sizes.

    Raises:
        TypeError: labels are not integers, logits not floating point, `where` not boolean.
        ValueError: shapes do not match; top_k or bins are not positive; top_k for statistics.

    Derivatives are 0: metrics are constants of what they measure.

    References:
        Brier, Verification of Forecasts Expressed in Terms of Probability, 1950; Guo et al., On
        Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.

    >>> import jax.numpy as jnp, jaxloss
    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> metrics = jaxloss.classification_metrics(logits, jnp.array([0, 1, 1]))
    >>> for name, metric in metrics.items():
    ...     print(name, round(float(metric.value), 3))
    loss 0.584
    perplexity 1.794
    accuracy 0.667
    brier_score 0.414
    calibration_error 0.194
    """
    labels = checks.integers("labels", labels, "metrics of classes are of integer labels")
    if where is not None:
        where = per_example("where", checks.boolean("where", where), labels.shape)
    where = inputs.not_ignored(where, labels, ignore_index)
    for name, number in (("top_k", top_k), ("bins", bins)):
        if number is not None and operator.index(number) < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")

    if isinstance(predictions, LinearStatistics):
        nll, right = _of_statistics(predictions, labels, top_k)
        of_logits = {}
    else:
        logits = _rows(predictions, labels, axis)
        if where is not None:
            logits = jnp.where(where[..., None], logits, 0)
            labels = jnp.where(where, labels, 0)
        nll = softmax_cross_entropy_with_integer_labels(logits, labels)
        right = jnp.argmax(logits, -1) == labels
        of_logits = _of_logits(logits, labels, nll, right, where, top_k, bins)
    mean = partial(Mean.of, where=where)
    loss = mean(nll)
    metrics = {
        "loss": loss,
        "perplexity": Perplexity(loss.total, loss.size),
        "accuracy": mean(_of_valid(nll, right)),
    }
    if bytes_per_token is not None:
        count = checks.numeric("bytes_per_token", bytes_per_token, nll.dtype)
        if count.shape != labels.shape:
            raise ValueError(
                f"bytes_per_token of shape {count.shape} do not match labels of shape "
                f"{labels.shape}: give one number for each label"
            )
        metrics["bits_per_byte"] = Mean(loss.total / math.log(2), mean(count).total)
    return metrics | of_logits


def _rows(logits: ArrayLike, labels: Array, axis: int) -> Array:
    """Logits with the classes last."""
    x = lax.stop_gradient(checks.predictions("logits", logits))
    (class_axis,) = checks.axes(axis, x.ndim)
    x = jnp.moveaxis(x, class_axis, -1)
    if x.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels of shape {labels.shape} do not match logits of shape {jnp.shape(logits)} with "
            f"classes along axis {axis}: expected labels of shape {x.shape[:-1]}"
        )
    return x


def _of_statistics(
    statistics: LinearStatistics, labels: Array, top_k: int | None
) -> tuple[Array, Array]:
    """The negative log-likelihoods, and whether the prediction is right."""
    if top_k is not None:
        raise ValueError("top_k needs logits: statistics have the first class only")
    if statistics.log_prob.shape != labels.shape:
        raise ValueError(
            f"labels of shape {labels.shape} do not match statistics of shape "
            f"{statistics.log_prob.shape}"
        )
    return -lax.stop_gradient(statistics.log_prob), statistics.argmax == labels


def _of_valid(nll: Array, x: Array) -> Array:
    """`x`, loud where the label or the logits are bad, which made the loss NaN."""
    return nan_unless(~jnp.isnan(nll), x.astype(nll.dtype))


def _of_logits(
    logits: Array,
    labels: Array,
    nll: Array,
    right: Array,
    where: Array | None,
    top_k: int | None,
    bins: int,
) -> dict[str, Mean]:
    mean = partial(Mean.of, where=where)
    index = lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    label = labels[..., None]
    metrics = {}
    if top_k is not None:
        own = jnp.take_along_axis(logits, label, -1, mode="clip")
        before = (logits > own) | ((logits == own) & (index < label))
        among = jnp.sum(before, -1, dtype=jnp.int32) < top_k
        metrics[f"top_{top_k}_accuracy"] = mean(_of_valid(nll, among))
    p = jax.nn.softmax(logits, -1)
    metrics["brier_score"] = mean(
        _of_valid(nll, jnp.sum((p - (index == label).astype(p.dtype)) ** 2, -1))
    )
    confidence = jnp.max(p, -1)
    number = jnp.ceil(confidence * bins) - 1
    inside = number[..., None] == jnp.arange(bins, dtype=p.dtype).reshape(
        (1,) * number.ndim + (-1,)
    )
    gap = _of_valid(nll, confidence - right.astype(p.dtype))
    if where is not None:
        gap = jnp.where(where, gap, 0)
    totals = jnp.sum(jnp.where(inside, gap[..., None], 0), range(gap.ndim))
    metrics["calibration_error"] = CalibrationError(totals, mean(gap).size)
    return metrics
