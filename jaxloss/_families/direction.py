"""Cosine similarity and distance: the error of the direction of a vector."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.rules import jit_when_eager, with_fast_gradient
from jaxloss._core.split import total
from jaxloss._core.vectors import Length, length, unit_vector


@takes(predictions="row", targets="row")
def cosine_similarity(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cosine of the angle between two vectors, in [-1, 1].

        similarity = sum_j p_j * t_j / (|p| * |t|)

    Args:
        predictions: vectors p along `axis`, any floating dtype.
        targets: vectors t, of the shape of `predictions` or of the same rank with axes of
            size 1.
        epsilon: floor of the squared norms, at least 0.
        axis: the axis of the vectors; a tuple of them, or None for all.
        where: booleans shaped like `predictions`, to leave entries out, or without the axes
            of the vectors.

    Returns:
        The similarity, of the shape of `predictions` without `axis`, in float32 (float64 for
        float64 predictions); 0 for a vector of zeros, with derivatives of 0.

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, `epsilon` is negative, or `axis` is not one of the
            predictions.

    Vectors of any scale that the dtype holds give the same; those with an infinite entry NaN.

    References:
        Manning et al., Introduction to Information Retrieval, 2008, section 6.3.1.

    >>> import jax, jaxloss
    >>> print(jaxloss.cosine_similarity(jax.numpy.array([3.0, 4.0]), jax.numpy.array([6.0, 8.0])))
    1.0
    """
    p, t, live, floor, axis = _pair(predictions, targets, epsilon, axis, where)
    return _cosine(p, t, live, floor, axis=axis, distance=False)


@takes(predictions="row", targets="row")
def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cosine distance, `1 - cosine_similarity`, in [0, 2].

    Computed as half the squared distance of the unit vectors, so that it is not lost beside
    the one.

    Args, returns, raises: see `cosine_similarity`; a vector of zeros is at distance 1.

    References:
        Manning et al., Introduction to Information Retrieval, 2008, section 6.3.1.

    >>> import jax, jaxloss
    >>> print(jaxloss.cosine_distance(jax.numpy.array([3.0, 4.0]), jax.numpy.array([3.0, 4.25])))
    0.00041579
    """
    p, t, live, floor, axis = _pair(predictions, targets, epsilon, axis, where)
    return _cosine(p, t, live, floor, axis=axis, distance=True)


@partial(jit_when_eager, static_argnames=("axis", "distance"))
def _cosine(p, t, live, epsilon, *, axis, distance):
    p, t = (inputs.exclude(live, x, 0) for x in (p, t))

    def exact(p, t):
        a, b = (_floored_unit(x, epsilon, axis) for x in (p, t))
        return _distance(a, b, axis) if distance else total(a.vector * b.vector, axis)

    if epsilon is None:
        fast = partial(_with_gradient, axis=axis, distance=distance)
        out = with_fast_gradient(exact, fast, axis)(p, t)
    else:
        out = exact(p, t)
    return inputs.live_rows(live, jnp.squeeze(out, axis), axis)


class _Unit(NamedTuple):
    vector: Array
    missing: Array  # 1 - |vector|**2: 0, or more of a vector that is zero or below the floor


def _distance(a: _Unit, b: _Unit, axis):
    # 1 - <a, b> = (|a - b|**2 + (1 - |a|**2) + (1 - |b|**2)) / 2, not lost beside the one
    return (total((a.vector - b.vector) ** 2, axis) + (a.missing + b.missing)) / 2


def _with_gradient(p, t, *, axis, distance):
    # d <a, b> / dp = (b - a <a, b>) / |p|
    of_p, of_t = length(p, axis), length(t, axis)
    inverse = of_p.inverse * of_t.inverse
    if distance:
        out = _distance(_unit(p, of_p), _unit(t, of_t), axis)
        cosine, sign = 1 - out, -1
    else:
        cosine = out = total((p * of_p.scale) * (t * of_t.scale), axis) * inverse
        sign = 1
    # Once a row, not once an element.
    p_scale, t_scale, by_b, by_a = lax.optimization_barrier(
        (
            of_p.scale,
            of_t.scale,
            sign * of_p.scale * inverse,
            sign * of_p.scale * of_p.inverse * (cosine * of_p.inverse),
        )
    )
    return out, (t * t_scale) * by_b - (p * p_scale) * by_a


def _unit(x, size: Length) -> _Unit:
    return _Unit(x * size.scale * size.inverse, (size.inverse == 0).astype(x.dtype))


def _floored_unit(x, epsilon, axis) -> _Unit:
    zero = length(x, axis).inverse == 0
    u, missing = unit_vector(x, axis), zero.astype(x.dtype)
    if epsilon is None:
        return _Unit(u, missing)
    floor = jnp.sqrt(epsilon)
    short = ~zero & (total(x * u, axis) < floor)  # A zero vector has derivatives of zero.
    v = jnp.where(short, x / jnp.where(short, floor, 1), u)
    return _Unit(v, jnp.where(short, 1 - total(v * v, axis), missing))


def _pair(predictions, targets, epsilon, axis, where):
    """Check and convert two vectors, the mask and the floor of the squared norms."""
    p, t, axis, live = inputs.dense("predictions", predictions, "targets", targets, axis, where)
    floor = checks.optional("epsilon", epsilon, checks.scalar, p.dtype, checks.NONNEGATIVE)
    return p, t, live, floor, axis
