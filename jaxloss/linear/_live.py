"""The sweep over chunks of the tokens that count: ignored tokens cost no matmul.

Which tokens count is known only to the running program. They are put before the others, and the
loop over chunks ends with the last of them. Such a loop has no derivative in reverse: those of
higher order are the token sweep's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax import Array

from jaxloss._core.mapped import automatically_split
from jaxloss.linear._head import Head
from jaxloss.linear._sweep import Gradients, Need, Sweep
from jaxloss.linear._tokens import TokenSweep, with_hidden


@dataclass(frozen=True)
class LiveSweep:
    tokens: TokenSweep

    def total_and_gradients(
        self,
        need: Need,
        heads: tuple[Head, ...],
        labels: Array,
        shared: Any,
        coefficients: Array,
    ) -> tuple[Array, Gradients]:
        operands = heads, labels, shared, coefficients
        if need.coefficients:  # By a weight of zero, the derivative is the token's loss.
            return self.tokens.total_and_gradients(need, *operands)
        live = coefficients != 0
        order = jnp.argsort(~live, stable=True)
        hidden, labels, coefficients = jax.tree.map(
            lambda x: x.at[order].get(unique_indices=True, mode="promise_in_bounds"),
            (tuple(head.hidden for head in heads), labels, coefficients),
        )
        total, gradients = self.tokens.total_and_gradients(
            need, with_hidden(heads, hidden), labels, shared, coefficients, jnp.sum(live)
        )
        return total, gradients._replace(hidden=_put_back(order, gradients.hidden))


def can_skip(sweep: Sweep, hidden: Array, *masks: Array | None) -> TypeGuard[TokenSweep]:
    """Whether there are masks and several chunks, of tokens that stay on their device.

    Devices that share the classes of a token go through the same chunks.
    """
    if not isinstance(sweep, TokenSweep) or not isinstance(sweep.class_axis, int):
        return False
    several = isinstance(n := hidden.shape[0], int) and n > sweep.chunk_size
    return several and any(x is not None for x in masks) and not automatically_split(hidden)


def _put_back(order: Array, columns: Sequence[Array | None]) -> tuple[Array | None, ...]:
    return tuple(
        None if x is None else jnp.zeros_like(x).at[order].set(x, unique_indices=True)
        for x in columns
    )
