"""Operands that are split over devices: their types, and programs that leave the rest to XLA."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, PartitionSpec, auto_axes

from jaxloss._core.mapped import alike as alike
from jaxloss._core.mapped import varying as varying


def _explicit(operands: Any) -> bool:
    """Whether shardings are part of the types of some operands."""
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(operands))
    return any(kind == AxisType.Explicit for mesh in meshes for kind in mesh.axis_types)


def automatic(formula: Callable[..., Any], out: Any, *operands: Any) -> Any:
    """`formula(*operands)`, where XLA is to find the shardings of what is computed on the way.

    `out` has None for each result that is one number, and else an operand whose leading axes it
    has.
    """
    if not _explicit(operands):
        return formula(*operands)
    specs = jax.tree.map(_leading, out, is_leaf=lambda x: x is None)
    return auto_axes(formula, out_sharding=specs)(*operands)


def _leading(like: Array | None) -> PartitionSpec:
    return PartitionSpec() if like is None else PartitionSpec(*jax.typeof(like).sharding.spec)


def groups(tokens: Array) -> int:
    """Over how many devices the first axis of the tokens is split, as far as its type says."""
    sharding = jax.typeof(tokens).sharding
    if not _explicit(tokens) or not len(sharding.spec) or (names := sharding.spec[0]) is None:
        return 1
    names = (names,) if isinstance(names, str) else names
    return math.prod(sharding.mesh.shape[name] for name in names)
