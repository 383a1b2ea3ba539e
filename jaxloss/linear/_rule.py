"""The derivative rules of the sweeps.

The cotangent of a total is one number. So its gradients are formed together with its value: the
tangent is their inner product with the operands' tangents, and reverse mode only scales them. The
losses of single tokens are computed again, chunk by chunk, when their cotangents are known.

Whatever sweep forms the gradients, those that are differentiated again are the token sweep's.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.mapped import alike, varying
from jaxloss._core.numerics import compute_dtype
from jaxloss._core.reduce import Reduction, coefficients, reduce_losses
from jaxloss.linear._head import Head, logits_dtype
from jaxloss.linear._sweep import EachToken, Gradients, Need, Sweep
from jaxloss.linear._targets import weights_of
from jaxloss.linear._tokens import TokenSweep


def reduced(
    sweep: Sweep,
    heads: tuple[Head, ...],
    labels: Array,
    shared: Any,
    reduction: Reduction,
    weights: Array | None,
    where: Array | None,
    groups: int = 1,
) -> tuple[Array, Any]:
    """The losses of all tokens, weighted, masked and reduced; and the statistics of each.

    With `groups`, the tokens of each device are swept on their own, side by side: their gradients
    are then added up over devices once, not once for each chunk.
    """
    if reduction == "none":
        losses, statistics = per_token(sweep.tokens, heads, labels, shared)
        return reduce_losses(losses, reduction, weights=weights, where=where), statistics
    like = jnp.ones(heads[0].hidden.shape[:1], logits_dtype(*heads))
    each = coefficients(like, reduction, weights=weights, where=where)
    if groups == 1:
        return weighted_total(sweep, heads, labels, shared, each)
    split = partial(_split, groups)
    heads = tuple(Head(split(head.hidden), head.weight) for head in heads)
    labels, each = jax.tree.map(split, (labels, each))
    axes = tuple(Head(0, None) for _ in heads), 0, None, 0
    totals = jax.vmap(partial(weighted_total, sweep), axes)
    totals, statistics = totals(heads, labels, shared, each)
    return jnp.sum(totals), jax.tree.map(lambda x: x.reshape(-1), statistics)


def _split(groups: int, x: Array) -> Array:
    return x.reshape(groups, -1, *x.shape[1:])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_total(
    sweep: Sweep, heads: tuple[Head, ...], labels: Any, shared: Any, coefficients: Array
) -> tuple[Array, Any]:
    """`sum(coefficients * losses)` of all tokens; and their statistics, without a derivative."""
    operands = heads, labels, shared, coefficients
    nothing = Need(*jax.tree.map(lambda _: False, _differentiable(*operands)))
    total, gradients = _total_and_gradients(sweep, nothing, *operands)
    return total, gradients.statistics


@partial(weighted_total.defjvp, symbolic_zeros=True)
def _weighted_total_rule(sweep, primals, tangents):
    tangents = _differentiable(*tangents)
    need = Need(*jax.tree.map(lambda d: not isinstance(d, SymbolicZero), tangents))
    # Without the checkpoint, reverse mode over reverse mode would keep the logits of all chunks.
    total, gradients = jax.checkpoint(partial(_total_and_gradients, sweep, need))(*primals)
    terms = [
        _inner(g, d, total)
        for needed, g, d in zip(*map(_leaves, (need, gradients[:-1], tangents)), strict=True)
        if needed
    ]
    statistics = gradients.statistics
    zeros = jax.tree.map(jnp.zeros_like, statistics)
    return (total, statistics), (sum(terms, jnp.zeros_like(total)), zeros)


def _differentiable(
    heads: tuple[Head, ...], labels: Any, shared: Any, coefficients: Any
) -> tuple[Any, ...]:
    """What belongs to the differentiable operands, in the order of `Need` and `Gradients`."""
    hidden, weight = tuple(h.hidden for h in heads), tuple(h.weight for h in heads)
    return hidden, weight, shared, coefficients, weights_of(labels)


def _total_and_gradients(sweep: Sweep, need: Need, *operands: Any) -> tuple[Array, Gradients]:
    if isinstance(sweep, TokenSweep):
        return sweep.total_and_gradients(need, *operands)
    return _by_another_sweep(sweep, need, *operands)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _by_another_sweep(sweep: Sweep, need: Need, *operands: Any) -> tuple[Array, Gradients]:
    return sweep.total_and_gradients(need, *operands)


@_by_another_sweep.defjvp
def _by_another_sweep_rule(sweep, need, primals, tangents):
    return jax.jvp(partial(sweep.tokens.total_and_gradients, need), primals, tangents)


def _leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: x is None)


def _inner(g: Array, d: Array, like: Array) -> Array:
    """`sum(g * d)`, over all devices that have a part of the total."""
    # Not a dot product, which would gather operands that are split over devices.
    local_sum = jnp.sum(g.astype(like.dtype) * d.astype(like.dtype))
    apart = tuple(varying(local_sum) - varying(like))
    return alike(lax.psum(local_sum, apart) if apart else local_sum, like)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def per_token(
    sweep: EachToken, heads: tuple[Head, ...], labels: Any, shared: Any
) -> tuple[Any, Any]:
    """What `loss_of_logits` returns, floating-point numbers, for each token; and its statistics."""
    return sweep.each_token(heads, labels, shared)


@partial(per_token.defjvp, symbolic_zeros=True)
def _per_token_rule(sweep, primals, tangents):
    heads, labels, shared = primals
    d_heads, d_labels, d_shared = tangents
    # A gradient accumulates over chunks in the dtype of its tangent in the loop.
    d_heads = tuple(
        Head(*(None if isinstance(d, SymbolicZero) else _wide(d) for d in head)) for head in d_heads
    )
    d_shared = jax.tree.map(_instantiated, shared, d_shared)
    d_targets = jax.tree.map(_instantiated, weights_of(labels), weights_of(d_labels))
    losses, statistics = per_token(sweep, heads, labels, shared)
    d_losses = sweep.tokens.tangents_of_each_token(
        heads, labels, shared, d_heads, d_shared, d_targets
    )
    return (losses, statistics), (d_losses, jax.tree.map(jnp.zeros_like, statistics))


def _instantiated(x: Array, d: Any) -> Array:
    return jnp.zeros_like(x) if isinstance(d, SymbolicZero) else d


def _wide(d: Array) -> Array:
    return d.astype(compute_dtype(d.dtype))
