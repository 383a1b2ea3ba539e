"""Catching logits that are given as probabilities, and probabilities given as logits."""

import warnings

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from jaxloss._core import callers
from jaxloss._core.reports import report

# How far from [0, 1], or from a sum of one, probabilities may be; and how many numbers of one
# sign below one cannot be a coincidence.
_SLACK = 1e-3
_ENOUGH = 8
# Eagerly only so many rows are looked at.
_ROWS = 1024


class LogitsWarning(UserWarning):
    """Predictions do not look like what `from_logits` says they are."""


def checked(p: Array, from_logits: bool, axis: int | None = None) -> Array:
    """`p`; warn of predictions that contradict `from_logits`; under `checkify` it is an error.

    Args:
        p: predictions, floating.
        from_logits: what they are said to be.
        axis: the class axis; None for binary predictions.
    """
    symbolic = any(not isinstance(n, int) for n in p.shape)  # Exported, a size may be a symbol.
    if symbolic or not p.size or not (p.ndim or axis is None):
        return p
    rows = p.reshape(-1) if axis is None else jnp.moveaxis(p, axis, -1).reshape(-1, p.shape[axis])
    if from_logits:
        suspect = _like_probabilities
        message = (
            "y_pred looks like probabilities, but from_logits=True: remove the sigmoid or "
            "softmax from the model, or set from_logits=False"
        )
    else:
        suspect = _like_logits
        message = (
            "y_pred has numbers outside [0, 1], but from_logits=False: set from_logits=True if "
            "they are logits, or give the model a sigmoid or softmax"
        )
    if isinstance(rows, Tracer):
        return report(p, ~jnp.asarray(suspect(lax.stop_gradient(rows))), message)
    if suspect(np.asarray(rows[:_ROWS])):
        warnings.warn(message, LogitsWarning, stacklevel=caller())
    return p


def _like_logits(rows):
    return ((rows < -_SLACK) | (rows > 1 + _SLACK)).any()


def _like_probabilities(rows):
    inside = ((rows >= 0) & (rows <= 1)).all()
    if rows.ndim == 1:  # Many of them, and not all the same, as an untrained model's may be.
        return inside & (rows.min() < rows.max()) & (rows.size >= _ENOUGH)
    several = len(rows) > 1 and rows.shape[1] > 1
    return inside & (abs(rows.sum(-1) - 1) <= _SLACK).all() & several


def caller() -> int:
    """The stack level, for `warnings.warn` in `checked`, of the first frame outside the library."""
    return callers.entry("jaxloss.").depth
