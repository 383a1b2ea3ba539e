"""The types of values inside `shard_map`: over which of its axes they differ."""

import jax
from jax import Array, lax


def varying(x: Array | jax.ShapeDtypeStruct) -> frozenset:
    """The mapped axes of `shard_map` over which a value, or one yet to be computed, differs."""
    kind = (x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)).manual_axis_type
    return kind.varying if kind else frozenset()


def alike(x: Array, *like: Array | jax.ShapeDtypeStruct) -> Array:
    """Let `x`, in its type, differ over all axes over which any of `like` does."""
    missing = tuple(frozenset().union(*map(varying, like)) - varying(x))
    return lax.pcast(x, missing, to="varying") if missing else x
