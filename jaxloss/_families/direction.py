"""Cosine similarity and distance: the error of the direction of a vector."""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.checks import Axis
from jaxloss._core.rules import jit_when_eager, shortcut, with_fast_gradient
from jaxloss._core.split import total
from jaxloss._core.vectors import length, shrunk, unit_vector


def cosine_similarity(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cosine of the angle between two vectors, `<p, t> / (|p| |t|)`, in [-1, 1].

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


def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cosine distance, `1 - cosine_similarity`, in [0, 2].

    Computed as half the squared distance of the unit vectors where they are close, so that
    it is not lost beside the one.

    Args, returns, raises: see `cosine_similarity`; a vector of zeros is at distance 1.

    References:
        Manning et al., Introduction to Information Retrieval, 2008, section 6.3.1.

    >>> import jax, jaxloss
    >>> print(jaxloss.cosine_distance(jax.numpy.array([3.0, 4.0]), jax.numpy.array([3.0, 4.001])))
    7.197e-09
    """
    p, t, live, floor, axis = _pair(predictions, targets, epsilon, axis, where)
    return _cosine(p, t, live, floor, axis=axis, distance=True)


@partial(jit_when_eager, static_argnames=("axis", "distance"))
def _cosine(p, t, live, epsilon, *, axis, distance):
    p, t = (inputs.exclude(live, x, 0) for x in (p, t))

    def exact(p, t):
        a, b = (_floored_unit(x, epsilon, axis) for x in (p, t))
        return _of_units(a, b, axis, distance)

    if epsilon is None:
        fast = partial(_with_gradient, axis=axis, distance=distance)
        out = with_fast_gradient(exact, fast, axis)(p, t)
    else:
        out = exact(p, t)
    return inputs.live_rows(live, jnp.squeeze(out, axis), axis)


def _of_units(a, b, axis, distance):
    out = total(a * b, axis)
    if distance:
        # Half the squared difference, where the cosine would lose it beside the one.
        out = jnp.where(out > 0.5, 0.5 * total((a - b) ** 2, axis), 1 - out)
    return out


def _with_gradient(p, t, *, axis, distance):
    """Also (b - a <a, b>) / |p|, the derivative of the similarity, of the unit vectors a and b."""
    sizes = of_p, of_t = length(p, axis), length(t, axis)

    def pair(use):
        return (shrunk(x, size, use) for x, size in zip((p, t), sizes, strict=True))

    def apart(*_):
        a, b = (4 * size.inverse * x for size, x in zip(sizes, pair(2), strict=True))
        return total((a - b) ** 2, axis) / 2

    x, y = pair(0)
    out = cosine = total(x * y, axis) * (of_p.inverse * of_t.inverse)
    rest = -cosine
    if distance:
        close = cosine > 0.5
        near = shortcut(~jnp.any(close), lambda *_: jnp.zeros_like(cosine), apart)
        out = jnp.where(close, near, 1 - cosine)
        rest = jnp.where(close, near - 1, rest)
    factor = (-2 if distance else 2) * of_p.shrink * of_p.inverse
    of_b, of_a = lax.optimization_barrier((factor * of_t.inverse, factor * (rest * of_p.inverse)))
    x, y = pair(1)
    return out, y * of_b + x * of_a


def _floored_unit(x, epsilon, axis):
    if epsilon is None:
        return unit_vector(x, axis)
    floor, u = jnp.sqrt(epsilon), unit_vector(x, axis)
    short = jnp.sum(x * u, axis, keepdims=True) < floor
    return jnp.where(short, x / jnp.where(short, floor, 1), u)


def _pair(predictions, targets, epsilon, axis, where):
    """Check and convert two vectors, the mask and the floor of the squared norms."""
    checks.option("epsilon", epsilon, 0, float("inf"))
    p, t, axis, live = inputs.dense("predictions", predictions, "targets", targets, axis, where)
    return p, t, live, checks.optional_operand("epsilon", epsilon, p.dtype, ()), axis
