"""Directions of vectors along an axis, at any scale, with their derivative rules."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._numerics import largest


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit(x: Array, axis: int) -> Array:
    """`x / |x|`, and zero, with derivatives of zero, for a zero vector; NaN only for NaN."""
    length = _length(x, axis)
    # A direction with infinite entries is theirs. Both factors are exact or near one.
    return _clipped(x) / length.scale * length.inverse


@unit.defjvp
def _unit_rule(axis, primals, tangents):
    # d u = (v - u <u, v>) / |x|
    (x,), (v,) = primals, tangents
    u, length = unit(x, axis), _length(x, axis)
    return u, (v - u * _inner(u, v, axis)) / length.scale * length.inverse


class _Length(NamedTuple):
    scale: Array  # a power of two near the largest entry; held constant
    inverse: Array  # scale / |x|, 0 for a zero vector


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _length(x: Array, axis: int) -> _Length:
    # No square that counts over- or underflows once it is divided by the scale, exactly.
    x = _clipped(x)
    top = jnp.minimum(jnp.max(jnp.abs(x), axis, keepdims=True), largest(x.dtype) / 4)
    scale = lax.reduce_precision(top, jnp.finfo(x.dtype).nexp, 0)
    scale = jnp.where(scale == 0, 1, scale)
    # Of a constant XLA makes a factor, and takes those of a square together: they overflow.
    scaled = lax.optimization_barrier(x / scale)
    squares = _inner(scaled, scaled, axis)
    zero = squares == 0
    return _Length(scale, jnp.where(zero, 0, 1 / jnp.sqrt(jnp.where(zero, 1, squares))))


@_length.defjvp
def _length_rule(axis, primals, tangents):
    # d (s / |x|) = -(s / |x|) ** 2 * <u, dx> / s
    (x,), (dx,) = primals, tangents
    out = _length(x, axis)
    slope = _inner(unit(x, axis), dx, axis) / out.scale
    return out, _Length(jnp.zeros_like(out.scale), -(out.inverse**2) * slope)


def _clipped(x: Array) -> Array:
    return jnp.clip(x, -largest(x.dtype), largest(x.dtype))


def _inner(a: Array, b: Array, axis: int) -> Array:
    return jnp.sum(a * b, axis, keepdims=True)
