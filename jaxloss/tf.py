"""The cross-entropies of `tf.nn`, with TensorFlow's argument names and shape rules.

Arrays may be given as lists. The `name` of an operation means nothing here, and is ignored.

>>> import jax.numpy as jnp
>>> from jaxloss import tf
>>> print(tf.sigmoid_cross_entropy_with_logits(labels=jnp.zeros(1), logits=jnp.ones(1)))
[1.313262]
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

import jaxloss
from jaxloss._names import unknown

__all__ = [
    "sigmoid_cross_entropy_with_logits",
    "softmax_cross_entropy_with_logits",
    "sparse_softmax_cross_entropy_with_logits",
    "weighted_cross_entropy_with_logits",
]


def sigmoid_cross_entropy_with_logits(
    labels: ArrayLike, logits: ArrayLike, name: str | None = None
) -> Array:
    """`jaxloss.sigmoid_binary_cross_entropy`, for two arrays of one shape.

    Args:
        labels: probability of the positive class, in [0, 1].
        logits: log-odds of the positive class, floating, of the same shape.

    Returns:
        The loss in nats, element by element, in the dtype of `logits`.

    Raises:
        TypeError: logits are not floating point.
        ValueError: the shapes are not the same.

    Derivatives, at kinks and in the tails, are those of `sigmoid_binary_cross_entropy`.

    References:
        TensorFlow, `tf.nn.sigmoid_cross_entropy_with_logits`.

    >>> import jax.numpy as jnp
    >>> print(sigmoid_cross_entropy_with_logits(jnp.array([0.5]), jnp.array([0.0])))
    [0.693147]
    """
    labels, logits = _same_shape(labels, logits)
    return _as_logits(jaxloss.sigmoid_binary_cross_entropy(logits, labels), logits)


def weighted_cross_entropy_with_logits(
    labels: ArrayLike, logits: ArrayLike, pos_weight: ArrayLike, name: str | None = None
) -> Array:
    """`jaxloss.sigmoid_binary_cross_entropy` with `pos_weight`, for arrays of one shape.

    Args:
        labels: probability of the positive class, in [0, 1].
        logits: log-odds of the positive class, floating, of the same shape.
        pos_weight: weight of the positive class, a scalar or of a shape that fits.

    Returns:
        The loss in nats, element by element, in the dtype of `logits`.

    Raises:
        TypeError: logits are not floating point.
        ValueError: the shapes are not the same, or `pos_weight` does not fit them.

    Derivatives, at kinks and in the tails, are those of `sigmoid_binary_cross_entropy`.

    References:
        TensorFlow, `tf.nn.weighted_cross_entropy_with_logits`.

    >>> import jax.numpy as jnp
    >>> print(weighted_cross_entropy_with_logits(jnp.array([1.0]), jnp.array([0.0]), 2.0))
    [1.386294]
    """
    labels, logits = _same_shape(labels, logits)
    pos_weight = _array("pos_weight", pos_weight)
    loss = jaxloss.sigmoid_binary_cross_entropy(logits, labels, pos_weight=pos_weight)
    return _as_logits(loss, logits)


def softmax_cross_entropy_with_logits(
    labels: ArrayLike, logits: ArrayLike, axis: int = -1, name: str | None = None
) -> Array:
    """`jaxloss.softmax_cross_entropy`; half precision is computed in float32 and cast back.

    Args:
        labels: distributions over the classes along `axis`.
        logits: unnormalised log-probabilities, floating, of the same shape.
        axis: the class axis.

    Returns:
        The loss in nats, of the shape of `logits` without `axis`, in the dtype of `logits`.

    Raises:
        TypeError: logits are not floating point.
        ValueError: shapes do not match, or `axis` is not one of the logits.

    Derivatives, by labels too, are those of `softmax_cross_entropy`.

    References:
        TensorFlow, `tf.nn.softmax_cross_entropy_with_logits`.

    >>> import jax.numpy as jnp
    >>> print(softmax_cross_entropy_with_logits(jnp.array([0.0, 0, 1]), jnp.array([1.0, 2, 3])))
    0.40761
    """
    labels, logits = _same_shape(labels, logits)
    return _as_logits(jaxloss.softmax_cross_entropy(logits, labels, axis), logits)


def sparse_softmax_cross_entropy_with_logits(
    labels: ArrayLike, logits: ArrayLike, name: str | None = None
) -> Array:
    """`jaxloss.softmax_cross_entropy_with_integer_labels`, classes along the last axis.

    Args:
        labels: integers in [0, C); any other makes the loss and gradient of its row NaN.
        logits: unnormalised log-probabilities, floating, of shape `labels.shape + (C,)`.

    Returns:
        The loss in nats, of the shape of `labels`, in the dtype of `logits`.

    Raises:
        TypeError: logits are not floating point, or labels are not integers.
        ValueError: logits are a scalar, or ranks or shapes do not match.

    Derivatives are those of `softmax_cross_entropy_with_integer_labels`.

    References:
        TensorFlow, `tf.nn.sparse_softmax_cross_entropy_with_logits`.

    >>> import jax.numpy as jnp
    >>> print(sparse_softmax_cross_entropy_with_logits(jnp.array(2), jnp.array([1.0, 2, 3])))
    0.40761
    """
    labels, logits = _array("labels", labels), _array("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits cannot be a scalar: their last axis holds the classes")
    if labels.ndim != logits.ndim - 1:
        raise ValueError(
            f"Rank mismatch: labels of shape {labels.shape} must have one axis fewer than "
            f"logits of shape {logits.shape}"
        )
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels of shape {labels.shape} do not match logits of shape {logits.shape}: "
            f"expected labels of shape {logits.shape[:-1]}"
        )
    loss = jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _as_logits(loss, logits)


def _array(name: str, x: ArrayLike) -> Array:
    if x is None:
        raise ValueError(f"{name} is missing")
    return jnp.asarray(x)


def _same_shape(labels: ArrayLike, logits: ArrayLike) -> tuple[Array, Array]:
    labels, logits = _array("labels", labels), _array("logits", logits)
    if labels.shape != logits.shape:
        raise ValueError(
            f"logits and labels must have the same shape, got logits of shape {logits.shape} "
            f"and labels of shape {labels.shape}"
        )
    return labels, logits


def _as_logits(loss: Array, logits: Array) -> Array:
    return loss.astype(logits.dtype)


def __getattr__(name: str):
    raise AttributeError(unknown(__name__, name, __all__))
