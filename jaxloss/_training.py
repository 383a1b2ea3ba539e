"""Several losses in one: penalties from inside a model, and tasks with learned weights."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks
from jaxloss._core.numerics import times
from jaxloss._mean import Mean

# The name of the data loss among the terms.
_DATA = "data_loss"


def total_loss(
    data_loss: ArrayLike | Mean,
    auxiliary: Any,
    *,
    scale: ArrayLike = 1.0,
    weights: Mapping[str, ArrayLike] | None = None,
    return_terms: bool = False,
) -> Any:
    r"""The loss of the predictions and the penalties that the layers of a model report.

    `data_loss + scale * sum(auxiliary)`, over all leaves of the tree; with names, for w_n the
    weight of what stands under the name n:

        data_loss + scale * sum_n w_n * sum(auxiliary[n])

    A pure function: nothing is collected here, so nothing is left over for the next call.
    `docs/training.md` shows how to collect in Keras, flax and equinox. Where a batch comes in
    parts, return a `Mean` for each term to `value_and_grad` instead.

    Args:
        data_loss: what `Loss` returns: a scalar, floating. A `Mean` stands for its value.
        auxiliary: a tree of real scalars or Means. It may be empty; None is no leaf.
        scale: factor of the penalties, a scalar. Zero switches them off, even infinite ones.
        weights: of the entries of `auxiliary`, which is then a dictionary, by name; scalars, 1
            for names that are not there. They also multiply `scale`.
        return_terms: whether to return what was added up, too.

    Returns:
        A scalar, in float32, or float64 if `data_loss` has that. With `return_terms`, a pair of
        it and a dictionary of its terms, not weighted, for logging: `data_loss` and the sum of
        the leaves under each name (under `auxiliary` if that is no dictionary).

    Raises:
        ValueError: `data_loss`, a leaf, a weight or `scale` is not a scalar: whether a batch of
            penalties is to be summed, or averaged as the data loss is, decides how strong
            they are, so it is left to the model. A weight for a name that is not there.
        TypeError: `data_loss` is not floating point; a leaf is not a real number; weights for
            what has no names.

    Linear in all of its arguments' leaves, so without kinks.

    References:
        Keras, `Layer.add_loss`, sums in the same way, but also over arrays.

    >>> import jaxloss
    >>> print(jaxloss.total_loss(2.0, {"hidden": [0.5, 1.5], "out": None}, scale=0.1))
    2.2
    >>> penalties = {"hidden": [0.5, 1.5], "router": 3.0}
    >>> total, terms = jaxloss.total_loss(
    ...     2.0, penalties, weights={"router": 0.01}, return_terms=True
    ... )
    >>> print(total, {name: float(term) for name, term in terms.items()})
    4.03 {'data_loss': 2.0, 'hidden': 2.0, 'router': 3.0}
    """
    data = checks.predictions("data_loss", _value(data_loss))
    if data.ndim:
        raise ValueError(
            f"data_loss has shape {data.shape}, but must be a scalar: reduce it first, as "
            f"jaxloss.Loss does"
        )
    scale = checks.scalar("scale", scale, data.dtype)
    weights = _checked_weights(weights, auxiliary, data)
    total, terms = data, {_DATA: data}
    for path, leaf in jax.tree_util.tree_leaves_with_path(auxiliary, is_leaf=_is_mean):
        penalty = _penalty(f"auxiliary{jax.tree_util.keystr(path)}", _value(leaf), data)
        name = path[0].key if isinstance(auxiliary, Mapping) else "auxiliary"
        weight = times(weights[name], scale) if name in weights else scale
        total = total + times(weight, penalty)
        terms[name] = terms[name] + penalty if name in terms else penalty
    return (total, terms) if return_terms else total


def _checked_weights(
    weights: Mapping[str, ArrayLike] | None, auxiliary: Any, like: Array
) -> dict[str, Array]:
    named = isinstance(auxiliary, Mapping)
    if named and _DATA in auxiliary:
        raise ValueError(f"auxiliary has {_DATA!r}, the name of the loss of the predictions")
    if weights is None:
        return {}
    if not named:
        raise TypeError(
            f"weights are by name, so auxiliary must be a dictionary, got "
            f"{type(auxiliary).__name__}; scale is the factor of all of it"
        )
    for name in weights:
        if name not in auxiliary:
            names = ", ".join(map(repr, auxiliary)) or "no entry"
            raise ValueError(f"weights has {name!r}, but auxiliary has {names}")
    return {k: checks.scalar(f"weights[{k!r}]", w, like.dtype) for k, w in weights.items()}


def _penalty(name: str, leaf: Any, like: Array) -> Array:
    penalty = checks.numeric(name, leaf, like.dtype)
    if penalty.ndim:
        raise ValueError(
            f"{name} has shape {penalty.shape}, but must be a scalar: take its mean over "
            f"the batch, or its sum over layers, e.g. jax.tree.map(jnp.mean, auxiliary)"
        )
    return penalty


def _is_mean(x: Any) -> bool:
    return isinstance(x, Mean)


def _value(x: Any) -> Any:
    return x.value if _is_mean(x) else x


def uncertainty_weighting(
    terms: Mapping[str, Mean], log_variances: Mapping[str, ArrayLike]
) -> dict[str, Mean]:
    r"""The losses of several tasks, weighted by variances that are learned with the model.

    For a task with the mean loss L = T / N and the log-variance s of its observations:

        exp(-s) * L + s / 2

    the negative log-likelihood, up to a constant, of a Gaussian of variance exp(s), if the loss
    is `l2_loss`, and nearly that of a softmax of temperature exp(s), if it is a cross-entropy. Its
    minimum by s is at exp(s) = 2 * L: a task of large losses gets a small weight.

    Args:
        terms: the tasks' losses by name, as Means of scalars; a loss L by itself is `Mean(L, 1)`.
        log_variances: s by name, scalars: parameters, which start at 0, where the weight is 1.
            A term without one stays as it is.

    Returns:
        The terms of that value, with the sizes as they were, to add up or for `value_and_grad`: the
        mean over a batch is that of its parts, whatever their sizes. Where nothing counts, the
        term is 0, and the log-variance has a derivative of 0.

    Raises:
        TypeError: a term is no `Mean`.
        ValueError: a log-variance for a term that is not there, or that is no scalar.

    References:
        Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
        Geometry and Semantics, CVPR 2018, arXiv:1705.07115.

    >>> import jaxloss
    >>> terms = {"depth": jaxloss.Mean(8.0, 4), "class": jaxloss.Mean(2.0, 4)}
    >>> weighted = jaxloss.uncertainty_weighting(terms, {"depth": 1.0})
    >>> print(weighted["depth"].value, weighted["class"].value)
    1.2357589 0.5
    """
    out = dict(terms)
    for name, term in terms.items():
        if not _is_mean(term):
            raise TypeError(f"term {name!r} must be a jaxloss.Mean, got {term!r}")
    for name, s in log_variances.items():
        if name not in terms:
            names = ", ".join(map(repr, terms)) or "none"
            raise ValueError(f"log_variances has {name!r}, but the terms are {names}")
        total, size = terms[name].total, terms[name].size
        s = checks.scalar(f"log_variances[{name!r}]", s, total.dtype)
        out[name] = Mean(jnp.exp(-s) * total + 0.5 * s * size, size)
    return out
