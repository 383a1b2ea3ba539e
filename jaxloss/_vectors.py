"""Unit vectors and norms that neither overflow nor underflow, with their derivative rules."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def _total(x: Array, axis: int) -> Array:
    return jnp.sum(x, axis, keepdims=True)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def norm(x: Array, axis: int) -> Array:
    """The Euclidean norm along `axis`, which is kept; its derivative at zero is zero."""
    # In units of its largest entry, so that no square overflows or underflows.
    largest = jnp.max(jnp.abs(x), axis, keepdims=True, initial=0)
    scaled = x / jnp.where(largest == 0, 1, largest)
    return largest * jnp.sqrt(_total(scaled * scaled, axis))


@norm.defjvp
def _norm_rule(axis, primals, tangents):
    (x,), (v,) = primals, tangents
    return norm(x, axis), _total(unit(x, axis) * v, axis)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit(x: Array, axis: int) -> Array:
    """`x / norm(x)`; a vector of zeros stays one, with derivatives of zero."""
    size = norm(x, axis)
    return jnp.where(size == 0, 0, x / jnp.where(size == 0, 1, size))


@unit.defjvp
def _unit_rule(axis, primals, tangents):
    # d unit(x) = (v - u <u, v>) / |x|
    (x,), (v,) = primals, tangents
    u, size = unit(x, axis), norm(x, axis)
    across = v - u * _total(u * v, axis)
    return u, jnp.where(size == 0, 0, across / jnp.where(size == 0, 1, size))
