"""What the types of values say of devices: over which they differ in `shard_map`, or are split.

Under explicit sharding each operation says how its result is split. Where that is not worth the
trouble, as where all rows meet each other, it is left to XLA.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import AxisType, PartitionSpec, auto_axes


def varying(x: Array | jax.ShapeDtypeStruct) -> frozenset:
    """The mapped axes of `shard_map` over which a value, or one yet to be computed, differs."""
    kind = (x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)).manual_axis_type
    return kind.varying if kind else frozenset()


def alike(x: Array, *like: Array | jax.ShapeDtypeStruct) -> Array:
    """Let `x`, in its type, differ over all axes over which any of `like` does."""
    missing = tuple(frozenset().union(*map(varying, like)) - varying(x))
    return lax.pcast(x, missing, to="varying") if missing else x


def explicit(operands: Any) -> bool:
    """Whether the types of some operands include a sharding."""
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(operands))
    return any(kind == AxisType.Explicit for mesh in meshes for kind in mesh.axis_types)


def automatically_split(x: Array) -> bool:
    """Whether `x` may be split over devices by XLA, as far as its type says."""
    mesh = jax.typeof(x).sharding.mesh
    return mesh.size > 1 and any(kind != AxisType.Manual for kind in mesh.axis_types)


def unpartitioned() -> bool:
    """Whether XLA is known not to split the program over devices, inside `shard_map` or alone."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count() == 1
    kinds = zip(mesh.axis_types, mesh.axis_sizes, strict=True)
    return all(kind == AxisType.Manual or size == 1 for kind, size in kinds)


def automatic(formula: Callable[..., Any], specs: Any, *operands: Any) -> Any:
    """`formula(*operands)`, split as the specs say, with all that is in between left to XLA."""
    if not explicit(operands):
        return formula(*operands)
    return auto_axes(formula, out_sharding=specs)(*operands)


def left_to_xla(axes: int | None) -> Callable[..., Any]:
    """A formula whose intermediate results XLA may split over devices as it likes.

    Its result has the leading `axes` of the first operand, `[:axes]`, and is split as these are.
    """

    def decorate(formula: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(formula)
        def run(x: Array, *operands: Any, **options: Any) -> Any:
            spec = PartitionSpec(*jax.typeof(x).sharding.spec[:axes])
            return automatic(partial(formula, **options), spec, x, *operands)

        return run

    return decorate
