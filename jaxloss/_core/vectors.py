"""Directions of vectors along an axis, at any scale, with their derivative rules."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core import passes
from jaxloss._core.numerics import largest


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit_vector(x: Array, axis: int) -> Array:
    """`x / |x|`, and zero, with derivatives of zero, for a zero vector.

    Entries that are NaN or infinite become NaN.
    """
    size = length(x, axis)
    return x * size.scale * size.inverse


@unit_vector.defjvp
def _unit_rule(axis, primals, tangents):
    # d u = (v - u <u, v>) / |x|
    (x,), (v,) = primals, tangents
    u, size = unit_vector(x, axis), length(x, axis)
    return u, (v - u * _inner(u, v, axis)) * size.scale * size.inverse


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def norm(x: Array, axis: int) -> Array:
    """`|x|`, of which the derivative of a zero vector is zero; NaN of NaN and infinities."""
    return jnp.squeeze(_inner(unit_vector(x, axis), x, axis), axis)


@norm.defjvp
def _norm_rule(axis, primals, tangents):
    (x,), (v,) = primals, tangents
    return norm(x, axis), jnp.squeeze(_inner(unit_vector(x, axis), v, axis), axis)


class Length(NamedTuple):
    scale: Array  # a power of two by which no square that counts over- or underflows
    inverse: Array  # 1 / |scale * x|, 0 for a zero vector


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def length(x: Array, axis: int) -> Length:
    info = jnp.finfo(x.dtype)
    squares = jnp.sum(jnp.square(x), axis, keepdims=True)
    inverse = _inverse_root(squares)
    scale = lax.reduce_precision(inverse, info.nexp, 0)
    scaled = inverse / jnp.where(scale == 0, 1, scale)  # No 0 / 0, for `jax_debug_nans`.
    # Of vectors that are neither short nor long no square that counts is lost.
    low = float(info.tiny) ** 0.5
    plain = jnp.all((squares > low) & (squares < 1 / low))
    size = passes.unless(plain, (scale, scaled), partial(_scaled_length, axis=axis), x)
    return Length(*lax.optimization_barrier(size))  # Once a row, not once an element.


def _scaled_length(x: Array, axis: int) -> tuple[Array, Array]:
    """By a scale that is about the inverse of the largest entry."""
    scale = lax.optimization_barrier(inverse_power(jnp.max(jnp.abs(x), axis, keepdims=True)))
    y = x * scale
    # Of y * y, and a constant x, XLA would make x * x * scale * scale, which may be 0 * inf.
    return scale, _inverse_root(_inner(y, y + 1e-30, axis))


def inverse_power(top: Array) -> Array:
    """A power of two by which the largest of some numbers becomes about one."""
    info = jnp.finfo(top.dtype)
    top = jnp.minimum(top, largest(top.dtype) / 64)  # Room for the inverse.
    return 1 / jnp.where(top < float(info.tiny), 1, lax.reduce_precision(top, info.nexp, 0))


def _inverse_root(squares: Array) -> Array:
    zero = squares == 0
    return jnp.where(zero, 0, 1 / jnp.sqrt(jnp.where(zero, 1, squares)))


@length.defjvp
def _length_rule(axis, primals, tangents):
    # d (1 / |s x|) = -(1 / |s x|) ** 2 * <u, s dx>
    (x,), (dx,) = primals, tangents
    out = length(x, axis)
    slope = _inner(unit_vector(x, axis), dx, axis) * out.scale
    return out, Length(jnp.zeros_like(out.scale), -(out.inverse**2) * slope)


def _inner(a: Array, b: Array, axis: int) -> Array:
    return passes.settled(jnp.sum(a * b, axis, keepdims=True))
