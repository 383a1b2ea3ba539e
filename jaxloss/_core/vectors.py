"""Directions of vectors along an axis, at any scale, with their derivative rules."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.numerics import largest
from jaxloss._core.rules import shortcut


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit_vector(x: Array, axis: int) -> Array:
    """`x / |x|`, and zero, with derivatives of zero, for a zero vector.

    Entries that are NaN or infinite become NaN.
    """
    size = length(x, axis)
    return shrunk(x, size, 0) * size.inverse


@unit_vector.defjvp
def _unit_rule(axis, primals, tangents):
    # d u = (v - u <u, v>) / |x|
    (x,), (v,) = primals, tangents
    u, size = unit_vector(x, axis), length(x, axis)
    return u, (v - u * _inner(u, v, axis)) * size.shrink * size.inverse


class Length(NamedTuple):
    shrink: Array  # a power of two by which no square that counts over- or underflows
    inverse: Array  # 1 / |shrink * x|, 0 for a zero vector


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def length(x: Array, axis: int) -> Length:
    # No square that counts is lost of a vector that is neither short nor long.
    squares = jnp.sum(jnp.square(x), axis, keepdims=True)
    low = float(jnp.finfo(x.dtype).tiny) ** 0.5
    easy = jnp.all((squares > low) & (squares < 1 / low))
    full = partial(_shrunk_length, axis=axis)
    # The barrier has these computed once a row.
    return Length(*lax.optimization_barrier(shortcut(easy, _plain_length, full, x, squares)))


def _plain_length(_, squares):
    inverse = 1 / jnp.sqrt(squares)
    shrink = lax.reduce_precision(inverse, jnp.finfo(squares.dtype).nexp, 0)
    return Length(shrink, inverse / shrink)


def _shrunk_length(x, _, axis):
    # By about the largest entry; its bound leaves room to halve what it is the inverse of.
    info = jnp.finfo(x.dtype)
    top = jnp.minimum(jnp.max(jnp.abs(x), axis, keepdims=True), largest(x.dtype) / 64)
    scale = jnp.where(top < float(info.tiny), 1, lax.reduce_precision(top, info.nexp, 0))
    shrink = lax.optimization_barrier(1 / scale)
    y = x * shrink
    # Of y * y, and a constant x, XLA would make x * x * shrink * shrink, which may be 0 * inf.
    squares = _inner(y, y + 1e-30, axis)
    zero = squares == 0
    return Length(shrink, jnp.where(zero, 0, 1 / jnp.sqrt(jnp.where(zero, 1, squares))))


@length.defjvp
def _length_rule(axis, primals, tangents):
    # d (1 / |s x|) = -(1 / |s x|) ** 2 * <u, s dx>
    (x,), (dx,) = primals, tangents
    out = length(x, axis)
    slope = _inner(unit_vector(x, axis), dx, axis) * out.shrink
    return out, Length(jnp.zeros_like(out.shrink), -(out.inverse**2) * slope)


def shrunk(x: Array, size: Length, use: int) -> Array:
    """The vector scaled by a power of two, another in each pass: see `rows`."""
    return x * (0.5**use * size.shrink)


def _inner(a: Array, b: Array, axis: int) -> Array:
    return jnp.sum(a * b, axis, keepdims=True)
