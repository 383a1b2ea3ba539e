"""Operands that are split over devices: what their types say, and what is left to XLA."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import PartitionSpec

from jaxloss._core import mapped


def automatic(formula: Callable[..., Any], out: Any, *operands: Any) -> Any:
    """`formula(*operands)`, with the shardings of intermediate results left to XLA.

    `out` has one entry for each result: None for a scalar, otherwise an operand with the result's
    leading axes.
    """
    specs = jax.tree.map(_leading, out, is_leaf=lambda x: x is None)
    return mapped.automatic(formula, specs, *operands)


def _leading(like: Array | None) -> PartitionSpec:
    return PartitionSpec() if like is None else PartitionSpec(*jax.typeof(like).sharding.spec)


def groups(tokens: Array) -> int:
    """Over how many devices the first axis of the tokens is split, according to its type."""
    sharding = jax.typeof(tokens).sharding
    if not mapped.explicit(tokens) or not len(sharding.spec) or (names := sharding.spec[0]) is None:
        return 1
    names = (names,) if isinstance(names, str) else names
    return math.prod(sharding.mesh.shape[name] for name in names)
