"""Keras's regression losses: means over the last axis of what the library has for each entry.

All take `y_true` and `y_pred` of one shape `(..., K)`: `y_pred` of any real dtype (integers are
converted to floats, half precision is computed in float32) and `y_true` of any. Either may lack
a last axis of size 1; one number is a target for all. They return a loss of shape `(...)` in
float32, or float64 for float64 predictions, and raise a ValueError for other shapes.
"""

from jax import Array
from jax.typing import ArrayLike

import jaxloss
from jaxloss._core import checks
from jaxloss._core.numerics import clip_straight_through
from jaxloss._core.rules import jit_when_eager
from jaxloss._families.likelihood import rate_nll
from jaxloss.keras._inputs import EPSILON, class_axis, mean, pair

_rate_nll = jit_when_eager(rate_nll)


def mean_squared_error(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Mean over the last axis of `jaxloss.squared_error`.

    >>> print(mean_squared_error([[0.0, 1.0]], [[1.0, 3.0]]))
    [2.5]
    """
    t, p = pair(y_true, y_pred)
    return mean(jaxloss.squared_error(p, t))


def mean_absolute_error(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Mean over the last axis of `jaxloss.absolute_error`.

    >>> print(mean_absolute_error([[0.0, 1.0]], [[1.0, 3.0]]))
    [1.5]
    """
    t, p = pair(y_true, y_pred)
    return mean(jaxloss.absolute_error(p, t))


def mean_absolute_percentage_error(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Mean over the last axis of `jaxloss.absolute_percentage_error`, in percent.

    Targets smaller than 1e-7 count as that.

    >>> print(mean_absolute_percentage_error([[2.0, 4.0]], [[1.0, 5.0]]))
    [37.5]
    """
    t, p = pair(y_true, y_pred)
    return mean(jaxloss.absolute_percentage_error(p, t, epsilon=EPSILON))


def mean_squared_logarithmic_error(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Mean over the last axis of `jaxloss.squared_log_error`.

    Numbers below 1e-7 count as that; the derivative by them is that at 1e-7.

    >>> print(mean_squared_logarithmic_error([[1.0, 1.0]], [[0.0, 3.0]]))
    [0.480453]
    """
    t, p = pair(y_true, y_pred)
    high = float("inf")
    return mean(
        jaxloss.squared_log_error(
            clip_straight_through(p, EPSILON, high), clip_straight_through(t, EPSILON, high)
        )
    )


def cosine_similarity(y_true: ArrayLike, y_pred: ArrayLike, axis: int = -1) -> Array:
    """Minus the cosine of the angle between two vectors along `axis`: -1 if they are parallel.

    This is minus `jaxloss.cosine_similarity`; norms smaller than 1e-7 count as that.

    >>> print(cosine_similarity([[3.0, 4.0], [1.0, 0.0]], [[6.0, 8.0], [0.0, 1.0]]))
    [-1. -0.]
    """
    t, p = pair(y_true, y_pred)
    axis = class_axis(axis, p.ndim)
    return -jaxloss.cosine_similarity(p, t, epsilon=EPSILON**2, axis=axis)


def huber(y_true: ArrayLike, y_pred: ArrayLike, delta: ArrayLike = 1.0) -> Array:
    """Mean over the last axis of `jaxloss.huber_loss`.

    Args:
        delta: error from which on the loss is linear, at least 0.

    >>> print(huber([[0.0, 0.0]], [[0.5, 3.0]]))
    [1.3125]
    """
    t, p = pair(y_true, y_pred)
    return mean(jaxloss.huber_loss(p, t, delta=delta))


def log_cosh(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Mean over the last axis of `jaxloss.log_cosh`.

    >>> print(log_cosh([[0.0, 0.0]], [[0.0001, 1.0]]))
    [0.216890]
    """
    t, p = pair(y_true, y_pred)
    return mean(jaxloss.log_cosh(p, t))


def poisson(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Mean over the last axis of `p - t * log(p + 1e-7)`: `jaxloss.poisson_nll` of rates.

    NaN for a negative rate.

    >>> print(poisson([[1.0, 2.0]], [[1.0, 2.0]]))
    [0.806853]
    """
    t, p = pair(y_true, y_pred)
    return mean(_rate_nll(p, t, checks.scalar("epsilon", EPSILON, p.dtype)))


def hinge(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Mean over the last axis of `jaxloss.hinge_loss`; a label of 0 is one of -1.

    >>> print(hinge([[0.0, 1.0]], [[-0.5, 0.25]]))
    [0.625]
    """
    t, p = pair(y_true, y_pred)
    return mean(jaxloss.hinge_loss(p, _signs(t)))


def squared_hinge(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Mean over the last axis of `jaxloss.squared_hinge_loss`; a label of 0 is one of -1.

    >>> print(squared_hinge([[0.0, 1.0]], [[-0.5, 0.25]]))
    [0.40625]
    """
    t, p = pair(y_true, y_pred)
    return mean(jaxloss.squared_hinge_loss(p, _signs(t)))


def categorical_hinge(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.categorical_hinge_loss` along the last axis, of labels that are one-hot.

    >>> print(categorical_hinge([[1.0, 0.0, 0.0]], [[0.75, 0.5, 0.0]]))
    [0.75]
    """
    t, p = pair(y_true, y_pred)
    return jaxloss.categorical_hinge_loss(p, t)


def _signs(t: Array) -> Array:
    """Labels of 0 and 1 as -1 and 1; each on its own, whatever else is in the batch."""
    return t - (t == 0).astype(t.dtype)
