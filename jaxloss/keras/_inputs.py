"""Keras's conventions about inputs: integer predictions, ranks that differ by one, float labels."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import callers, checks
from jaxloss._core.reduce import row_mean

EPSILON = 1e-7  # The default of `keras.config.epsilon()`.
BAD_LABEL = -(2**31)  # No class, and not one that anybody ignores.


# The modules whose functions take `y_true` first, and this one.
_FUNCTIONS = tuple(
    f"jaxloss.keras.{name}" for name in ("_inputs", "_classification", "_regression", "_structured")
)


def predictions(y_pred: ArrayLike) -> Array:
    """A floating-point array, in the dtype that the loss is computed in."""
    instead = "jaxloss.keras.LossFunctionWrapper takes it, with options and a reduction"
    callers.refuse_loss(_FUNCTIONS, "jaxloss.keras.{function}", instead)
    p = jnp.asarray(y_pred)
    if p.dtype == jnp.bool_ or jnp.issubdtype(p.dtype, jnp.integer):
        p = p.astype(float)
    return checks.predictions("y_pred", p)


def aligned(t: Array, p: Array) -> tuple[Array, Array]:
    """Of ranks that differ by one, for a last axis of size 1: (B,) becomes (B, 1), or it goes."""
    if abs(t.ndim - p.ndim) != 1:
        return t, p
    longer, shorter = (t, p) if t.ndim > p.ndim else (p, t)
    if longer.shape[-1] != 1:
        return t, p
    if shorter.ndim == 1:
        shorter = shorter[:, None]
    else:
        longer = jnp.squeeze(longer, -1)
    return (longer, shorter) if t.ndim > p.ndim else (shorter, longer)


def pair(y_true: ArrayLike, y_pred: ArrayLike, hint: str = "") -> tuple[Array, Array]:
    """Predictions, and targets of their dtype and shape; one number is a target for all."""
    p = predictions(y_pred)
    t, p = aligned(checks.numeric("y_true", y_true, p.dtype), p)
    if t.ndim and t.shape != p.shape:
        raise ValueError(
            f"y_true of shape {t.shape} and y_pred of shape {p.shape} must have the same shape"
            f"{hint}"
        )
    return jnp.broadcast_to(t, p.shape), p


def class_axis(axis: int, ndim: int) -> int:
    if isinstance(axis, bool):
        raise ValueError(f"axis must be an integer, got {axis}")
    return checks.axes(axis, ndim)[0]


def mean(losses: Array, axis: checks.Axis = -1) -> Array:
    """The mean over an axis; one number is its own mean."""
    if isinstance(axis, bool):
        raise ValueError(f"axis must be an integer, got {axis}")
    return row_mean(losses, checks.axes(axis, losses.ndim) if losses.ndim else ())


def class_ids(labels: ArrayLike) -> Array:
    """Integer labels; floating ones that are whole numbers are too, others are no class."""
    labels = jnp.asarray(labels)
    if labels.dtype == jnp.bool_:
        return labels.astype(jnp.int32)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return checks.integers("y_true", labels, "they are class numbers")
    x = checks.predictions("y_true", labels)
    # From here on a float may stand for another integer, of which it is the rounding.
    limit = min(2 / float(jnp.finfo(labels.dtype).eps), -float(BAD_LABEL))
    whole = (jnp.rint(x) == x) & (jnp.abs(x) < limit)
    return jnp.where(whole, x, float(BAD_LABEL)).astype(jnp.int32)


def row_labels(labels: Array, ndim: int, axis: int) -> Array:
    """Labels without a class axis of size 1."""
    squeezed = 0 < ndim == labels.ndim and labels.shape[axis] == 1
    return jnp.squeeze(labels, axis) if squeezed else labels


def labelled(y_true: ArrayLike, y_pred: ArrayLike, axis: int) -> tuple[Array, Array, int]:
    """Integer labels, one for each row of predictions; they may have the class axis, of size 1."""
    p, labels = predictions(y_pred), class_ids(y_true)
    axis = class_axis(axis, p.ndim)
    labels = row_labels(labels, p.ndim, axis)
    rows = checks.without(p.shape, (axis,))
    if labels.shape != rows:
        hint = (
            "one-hot labels are for the losses that are not sparse"
            if labels.shape == p.shape
            else f"expected integer labels of shape {rows}"
        )
        raise ValueError(
            f"y_true of shape {labels.shape} does not match y_pred of shape {p.shape} with "
            f"classes along axis {axis}; {hint}"
        )
    return labels, p, axis
