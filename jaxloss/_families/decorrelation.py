"""Losses of two views of a batch by their features: alike in both, and not of each other.

No pair of examples meets; what is compared are features, by their correlation over the batch.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, pairs
from jaxloss._core.declare import takes
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.numerics import relu
from jaxloss._core.pairs import AxisName
from jaxloss._core.reduce import per_size
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.vectors import inverse_power


@takes(a="embeddings", b="embeddings")
def barlow_twins_loss(
    a: ArrayLike,
    b: ArrayLike,
    *,
    off_diagonal_weight: ArrayLike = 5e-3,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Barlow Twins: each feature correlates with itself in the other view, and with no other.

    With C_ij the correlation over the batch of feature i of one view with feature j of the other,
    and w the `off_diagonal_weight`:

        loss = sum_i (1 - C_ii)**2 + w * sum over i != j of C_ij**2

    Args:
        a: floating, of shape (batch, features).
        b: of the same shape; row i is another view of row i of `a`.
        off_diagonal_weight: w, at least 0; may be traced, and has a derivative.
        where: booleans of shape (batch,): which pairs of views exist.
        axis_name: mapped axes over which the batch is split. Means and correlations are then those
            of all devices' rows, and each device returns the whole loss.

    Returns:
        One number, in float32 (float64 for float64 `a`); 0 if no pairs exist.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape is, or `off_diagonal_weight` is negative.

    A feature without variance correlates 0, with a derivative of 0. Nothing is added to a
    variance: scale and offset of a feature change nothing, however small or far they are.
    Matmuls are exact to float32, on any platform; `jax.default_matmul_precision` can ask for less,
    which is faster.

    References:
        Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, 2021,
        arXiv:2103.03230.

    >>> import jax.numpy as jnp, jaxloss
    >>> a = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
    >>> b = jnp.array([[1.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    >>> print(jaxloss.barlow_twins_loss(a, b))
    1.005
    """
    a, b = pairs.towers("a", a, "b", b)
    live = pairs.mask(where, "a", a)
    name = "off_diagonal_weight"
    weight = checks.scalar(name, off_diagonal_weight, a.dtype, checks.NONNEGATIVE)
    return _barlow_twins(a, b, weight, live, axis_name=axis_name)


@partial(jit_when_eager, static_argnames="axis_name")
@left_to_xla(0)
def _barlow_twins(a, b, weight, live, *, axis_name):
    a, b, live, n = _rows(a, b, live, axis_name)
    a, b = (_unit(x, live, n, axis_name) for x in (a, b))
    own = _sum(a * b, axis_name)
    others = _off_diagonal(pairs.matmul(a.T, b), axis_name)
    return jnp.where(n == 0, 0, jnp.sum((1 - own) ** 2) + weight * jnp.sum(others**2))


def _unit(x: Array, live: Array, n: Array, axis_name: AxisName) -> Array:
    """Features less their mean, of length one over the batch, or zero."""
    scale = inverse_power(_largest(jnp.where(live, jnp.abs(x), 0), axis_name))
    x = _centred(x * scale, live, n, axis_name)
    squares = _sum(x * x, axis_name)
    zero = squares == 0
    return jnp.where(zero, 0, x / jnp.sqrt(jnp.where(zero, 1, squares)))


@takes(a="embeddings", b="embeddings")
def vicreg_loss(
    a: ArrayLike,
    b: ArrayLike,
    *,
    weights: Sequence[ArrayLike] = (25.0, 25.0, 1.0),
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""VICReg: two views are alike, their features vary, and do not covary with each other.

    With N rows of D features, and of each view the covariances V over the batch, by N - 1:

        loss = w_1 * I + w_2 * S / 2 + w_3 * K
        I = sum_n sum_i (a_ni - b_ni)**2 / (N * D)
        S = sum over views of sum_i max(0, 1 - s_i) / D    with s_i = (V_ii + 1e-4)**(1 / 2)
        K = sum over views of sum over i != j of V_ij**2 / D

    Args:
        a: floating, of shape (batch, features).
        b: of the same shape; row i is another view of row i of `a`.
        weights: of invariance, variance and covariance, each at least 0; may be traced, and have
            derivatives.
        where: booleans of shape (batch,): which pairs of views exist.
        axis_name: mapped axes over which the batch is split. Means and covariances are then those
            of all devices' rows, and each device returns the whole loss.

    Returns:
        One number, in float32 (float64 for float64 `a`); 0 if no pairs exist.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape is, there are not three weights, or one is
        negative.

    The terms are those of the authors' program. A single row has covariances of 0. At a standard
    deviation of 1 the derivative is half of that below it. Matmuls are exact to float32, on any
    platform; `jax.default_matmul_precision` can ask for less, which is faster.

    References:
        Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization for
        Self-Supervised Learning, 2022, arXiv:2105.04906.

    >>> import jax.numpy as jnp, jaxloss
    >>> a = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
    >>> b = jnp.array([[1.0, 1.0], [0.0, 2.0], [-1.0, 0.0]])
    >>> print(jaxloss.vicreg_loss(a, b))
    15.64102
    """
    a, b = pairs.towers("a", a, "b", b)
    live = pairs.mask(where, "a", a)
    count = 1 if jnp.isscalar(weights) else len(weights)
    if count != 3:
        raise ValueError(f"weights are of invariance, variance and covariance; got {count}")
    given = [checks.scalar("weights", w, a.dtype, checks.NONNEGATIVE) for w in weights]
    return _vicreg(a, b, given, live, axis_name=axis_name)


@partial(jit_when_eager, static_argnames="axis_name")
@left_to_xla(0)
def _vicreg(a, b, weights, live, *, axis_name):
    a, b, live, n = _rows(a, b, live, axis_name)
    features, others = a.shape[1], jnp.maximum(n - 1, 0)
    invariance = jnp.sum(per_size(_sum((a - b) ** 2, axis_name), n))
    variance = covariance = jnp.zeros_like(n)
    for x in (a, b):
        x = _centred(x, live, n, axis_name)
        deviation = jnp.sqrt(per_size(_sum(x * x, axis_name), others) + 1e-4)
        variance += jnp.sum(relu(1 - deviation)) / 2
        between = _off_diagonal(pairs.matmul(x.T, x), axis_name)
        covariance += jnp.sum(per_size(between, others) ** 2)
    terms = invariance, variance, covariance
    return jnp.where(n == 0, 0, sum(w * t for w, t in zip(weights, terms, strict=True)) / features)


def _rows(a: Array, b: Array, live: Array | None, axis_name: AxisName):
    """Two views that are equal where there is none, a mask of the rows, and their number."""
    a, b = inputs.mask(None if live is None else live[:, None], a, b)
    live = jnp.ones_like(a, bool, shape=(a.shape[0], 1)) if live is None else live[:, None]
    n = jnp.sum(live, dtype=jnp.int32).astype(a.dtype)
    return a, b, live, n if axis_name is None else lax.psum(n, axis_name)


def _centred(x: Array, live: Array, n: Array, axis_name: AxisName) -> Array:
    """Less the mean of each feature; exactly 0 where a feature is one number."""
    # Of differences, whose mean has its digits however far from zero they are.
    x = jnp.where(live, x - _largest(jnp.where(live, x, -jnp.inf), axis_name), 0)
    return jnp.where(live, x - per_size(_sum(x, axis_name), n), 0)


def _sum(x: Array, axis_name: AxisName) -> Array:
    """Of each feature, over the whole batch."""
    local = jnp.sum(x, 0, keepdims=True)
    return local if axis_name is None else lax.psum(local, axis_name)


def _largest(x: Array, axis_name: AxisName) -> Array:
    local = lax.stop_gradient(jnp.max(x, 0, keepdims=True, initial=-jnp.inf))
    return local if axis_name is None else lax.pmax(local, axis_name)


def _off_diagonal(products: Array, axis_name: AxisName) -> Array:
    """What is of two features, over the whole batch, without what is of one."""
    whole = products if axis_name is None else lax.psum(products, axis_name)
    return jnp.where(jnp.eye(products.shape[0], dtype=bool), 0, whole)
