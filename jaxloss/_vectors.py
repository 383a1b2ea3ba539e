"""Directions of vectors along an axis, at any scale, with their derivative rules."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._numerics import largest


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit(x: Array, axis: int) -> Array:
    """`x / |x|`, and zero, with derivatives of zero, for a zero vector.

    Entries that are NaN or infinite become NaN.
    """
    return scaled(x, length(x, axis), 0)


@unit.defjvp
def _unit_rule(axis, primals, tangents):
    # d u = (v - u <u, v>) / |x|
    (x,), (v,) = primals, tangents
    u, size = unit(x, axis), length(x, axis)
    return u, (v - u * _inner(u, v, axis)) * size.shrink * size.inverse


class Length(NamedTuple):
    shrink: Array  # a power of two, one by about the largest entry; held constant
    inverse: Array  # 1 / |shrink * x|, 0 for a zero vector


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def length(x: Array, axis: int, use: int = 1) -> Length:
    # No square that counts over- or underflows once it is scaled, exactly.
    info = jnp.finfo(x.dtype)
    top = jnp.minimum(jnp.max(jnp.abs(x), axis, keepdims=True), largest(x.dtype) / 4)
    scale = jnp.where(top < float(info.tiny), 1, lax.reduce_precision(top, info.nexp, 0))
    shrink = lax.optimization_barrier(1 / scale)
    # Of a constant XLA would make x * x * shrink * shrink, which may be 0 * inf.
    y = x * shrink
    squares = _inner(y, y + use * 1e-30, axis)
    zero = squares == 0
    inverse = jnp.where(zero, 0, 1 / jnp.sqrt(jnp.where(zero, 1, squares)))
    return Length(shrink, lax.optimization_barrier(inverse))


@length.defjvp
def _length_rule(axis, use, primals, tangents):
    # d (1 / |s x|) = -(1 / |s x|) ** 2 * <u, s dx>
    (x,), (dx,) = primals, tangents
    out = length(x, axis, use)
    slope = _inner(unit(x, axis), dx, axis) * out.shrink
    return out, Length(jnp.zeros_like(out.shrink), -(out.inverse**2) * slope)


def scaled(x: Array, size: Length, use: int) -> Array:
    """The unit vector times `4 ** use`: so no two passes share anything, see `_softmax`."""
    return x * (2.0**use * size.shrink) * (2.0**use * size.inverse)


def _inner(a: Array, b: Array, axis: int) -> Array:
    return jnp.sum(a * b, axis, keepdims=True)
