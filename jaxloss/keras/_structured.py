"""Keras's losses of regions, of pairs and of sequences, over the library's of the same."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

import jaxloss
from jaxloss._core import checks
from jaxloss._core.checks import Axis
from jaxloss._core.numerics import one_or_nan
from jaxloss._families.overlap import Outcomes, outcomes, share
from jaxloss.keras._inputs import BAD_LABEL, EPSILON, class_ids, pair, predictions


def dice(y_true: ArrayLike, y_pred: ArrayLike, axis: Axis = None) -> Array:
    """One minus the Dice coefficient, `1 - 2 * sum(t p) / (sum t + sum p + 1e-7)`.

    `jaxloss.dice_loss` of probabilities, with the 1e-7 in the place of `smooth`: nothing there
    and nothing found costs 1.

    Args:
        y_true, y_pred: regions in [0, 1], of one shape.
        axis: the axes to sum over. By default all, the batch's too, which gives one number for
            the batch, not one that examples could be weighted in.

    >>> print(dice([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]], axis=1))
    [0.333333]
    """
    of = _outcomes(y_true, y_pred, axis)
    wrong = 0.5 * (of.false_positives + of.false_negatives + EPSILON)
    return share(wrong, of.true_positives)


def tversky(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    axis: Axis = None,
) -> Array:
    """One minus the Tversky index, `jaxloss.tversky_loss` of probabilities.

    Args:
        y_true, y_pred, axis: see `dice`.
        alpha: weight of false positives, at least 0, as in Keras from 3.16 on; before, its code
            took alpha for beta.
        beta: weight of false negatives, at least 0.

    >>> print(tversky([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]], 0.25, 0.75, axis=1))
    [0.428571]
    """
    of = _outcomes(y_true, y_pred, axis)
    dtype = of.true_positives.dtype
    alpha, beta = (
        checks.scalar("alpha", alpha, dtype, checks.NONNEGATIVE),
        checks.scalar("beta", beta, dtype, checks.NONNEGATIVE),
    )
    wrong = alpha * of.false_positives + beta * of.false_negatives + EPSILON
    return share(wrong, of.true_positives)


def _outcomes(y_true: ArrayLike, y_pred: ArrayLike, axis: Axis) -> Outcomes:
    t, p = pair(y_true, y_pred)
    return outcomes(p, 1 - p, t, checks.axes(axis, p.ndim))


def circle(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    ref_labels: ArrayLike | None = None,
    ref_embeddings: ArrayLike | None = None,
    remove_diagonal: bool = True,
    gamma: ArrayLike = 80,
    margin: ArrayLike = 0.4,
) -> Array:
    """`jaxloss.circle_loss` of embeddings as they are, whose weights have derivatives too.

    Args:
        y_true: labels of shape (B,) or (B, 1), whole numbers.
        y_pred: embeddings of shape (B, D); normalise them for the loss of the paper.
        ref_labels, ref_embeddings: what they are compared with; by default they themselves.
        remove_diagonal: whether to leave out the pairs (i, i).
        gamma, margin: see `jaxloss.circle_loss`.

    >>> print(circle([0, 0, 1], [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], gamma=1.0))
    [0.61634374 0.96167487 0.        ]
    """
    references = ref_labels, ref_embeddings
    return circle_of(y_true, y_pred, *references, remove_diagonal, gamma=gamma, margin=margin)


def circle_of(
    y_true,
    y_pred,
    ref_labels=None,
    ref_embeddings=None,
    remove_diagonal=True,
    *,
    gamma,
    margin,
    where=None,
):
    """`circle`, with a mask of the rows that exist."""
    x, labels = predictions(y_pred), _column(y_true)
    references = {}
    if ref_labels is not None or ref_embeddings is not None:
        references["reference_labels"] = labels if ref_labels is None else _column(ref_labels)
        others = x if ref_embeddings is None else predictions(ref_embeddings)
        references["reference_embeddings"] = others.astype(x.dtype)
    losses = jaxloss.circle_loss(
        x,
        labels,
        gamma=gamma,
        margin=margin,
        normalize=False,
        detach_weights=False,
        remove_diagonal=remove_diagonal,
        where=where,
        **references,
    )
    return losses * one_or_nan(labels != BAD_LABEL, losses.dtype)


def _column(y_true: ArrayLike) -> Array:
    labels = class_ids(y_true).astype(jnp.int32)
    return jnp.squeeze(labels, 1) if labels.ndim == 2 and labels.shape[1] == 1 else labels


def ctc(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.ctc_loss` of labels that are padded with 0, which is the blank, on the right.

    Args:
        y_true: whole numbers of shape (B, N).
        y_pred: logits of shape (B, T, K), none of whose frames are padding; those that a mask
            leaves out are, in `CTC`.

    >>> print(ctc([[1, 0]], [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]))
    [1.098612]
    """
    return ctc_of(y_true, y_pred)


def ctc_of(y_true, y_pred, frames=None):
    """`ctc`, with a mask of the frames that exist."""
    x, labels = predictions(y_pred), class_ids(y_true)
    if x.ndim != 3 or labels.ndim != 2:
        raise ValueError(
            f"y_pred of shape {x.shape} and y_true of shape {labels.shape} must be logits of "
            f"shape (B, T, K) and labels of shape (B, N)"
        )
    paddings = jnp.zeros(x.shape[:2], bool) if frames is None else ~frames
    return jaxloss.ctc_loss(x, paddings, labels, labels == 0)
