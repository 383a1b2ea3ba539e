"""Losses that come from inside a model, added to the loss of its predictions."""

from typing import Any

import jax
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks
from jaxloss._core.numerics import times


def total_loss(data_loss: ArrayLike, auxiliary: Any, *, scale: ArrayLike = 1.0) -> Array:
    r"""The loss of the predictions and the penalties that the layers of a model report.

    `data_loss + scale * sum(auxiliary)`, over all leaves of the tree.

    A pure function: nothing is collected here, so nothing is left over for the next call.
    `docs/training.md` shows how to collect in Keras, flax and equinox.

    Args:
        data_loss: what `Loss` returns: a scalar, floating.
        auxiliary: a tree of real scalars. It may be empty; None is no leaf.
        scale: factor of the penalties, a scalar. Zero switches them off, even infinite ones.

    Returns:
        A scalar, in float32, or float64 if `data_loss` has that.

    Raises:
        ValueError: `data_loss`, a leaf or `scale` is not a scalar: whether a batch of
            penalties is to be summed, or averaged as the data loss is, decides how strong
            they are, so it is left to the model.
        TypeError: `data_loss` is not floating point; a leaf is not a real number.

    Linear in all of its arguments' leaves, so without kinks.

    References:
        Keras, `Layer.add_loss`, sums in the same way, but also over arrays.

    >>> import jaxloss
    >>> print(jaxloss.total_loss(2.0, {"hidden": [0.5, 1.5], "out": None}, scale=0.1))
    2.2
    """
    total = checks.predictions("data_loss", data_loss)
    if total.ndim:
        raise ValueError(
            f"data_loss has shape {total.shape}, but must be a scalar: reduce it first, as "
            f"jaxloss.Loss does"
        )
    scale = checks.scalar("scale", scale, total.dtype)
    for path, leaf in jax.tree_util.tree_leaves_with_path(auxiliary):
        name = f"auxiliary{jax.tree_util.keystr(path)}"
        penalty = checks.numeric(name, leaf, total.dtype)
        if penalty.ndim:
            raise ValueError(
                f"{name} has shape {penalty.shape}, but must be a scalar: take its mean over "
                f"the batch, or its sum over layers, e.g. jax.tree.map(jnp.mean, auxiliary)"
            )
        total = total + times(scale, penalty)
    return total
