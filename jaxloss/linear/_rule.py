"""The derivative rules of the sweeps.

A total, whose cotangent is one number, has its gradients formed while its value is: the
tangent is their inner product with the tangents of the operands, and reverse mode only scales
them. Losses that are returned one a token are computed anew, a chunk at a time, when their
cotangents are known.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.numerics import compute_dtype
from jaxloss._core.reduce import Reduction, coefficients, reduce_losses
from jaxloss.linear._sharding import alike, varying
from jaxloss.linear._tokens import (
    Head,
    Sweep,
    Wanted,
    each_token,
    logits_dtype,
    tangents_of_each_token,
    total_and_gradients,
)


def reduced(
    sweep: Sweep,
    heads: tuple[Head, ...],
    labels: Array,
    shared: Any,
    reduction: Reduction,
    weights: Array | None,
    where: Array | None,
    groups: int = 1,
) -> Array:
    """The losses of all tokens, weighted, masked and reduced.

    `groups` of tokens are swept side by side, if they are on different devices: then their
    gradients are added up over devices once, and not for each chunk.
    """
    if reduction == "none":
        losses = per_token(sweep, heads, labels, shared)
        return reduce_losses(losses, reduction, weights=weights, where=where)
    like = jnp.ones(labels.shape, logits_dtype(*heads))
    each = coefficients(like, reduction, weights=weights, where=where)
    if groups == 1:
        return weighted_total(sweep, heads, labels, shared, each)
    split = partial(_split, groups)
    heads = tuple(Head(split(head.hidden), head.weight) for head in heads)
    labels, each = split(labels), split(each)
    along = tuple(Head(0, None) for _ in heads), 0, None, 0
    totals = jax.vmap(partial(weighted_total, sweep), along)
    return jnp.sum(totals(heads, labels, shared, each))


def _split(groups: int, x: Array) -> Array:
    return x.reshape(groups, -1, *x.shape[1:])


def _live(tangents: Any) -> Any:
    """Which tangents are not zero by construction."""
    return jax.tree.map(lambda t: not isinstance(t, SymbolicZero), tangents)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def weighted_total(
    sweep: Sweep, heads: tuple[Head, ...], labels: Array, shared: Any, coefficients: Array
) -> Array:
    """`sum(coefficients * losses)` over all tokens."""
    none = (False,) * len(heads)
    nothing = Wanted(none, none, jax.tree.map(lambda _: False, shared), False)
    return _total_and_gradients(sweep, nothing, heads, labels, shared, coefficients)[0]


@partial(weighted_total.defjvp, symbolic_zeros=True)
def _weighted_total_rule(sweep, primals, tangents):
    d_heads, _, d_shared, d_coefficients = tangents
    tangents = Wanted(
        tuple(d.hidden for d in d_heads),
        tuple(d.weight for d in d_heads),
        d_shared,
        d_coefficients,
    )
    wanted = _live(tangents)
    # Evaluated where it stands: without the checkpoint, reverse mode over reverse mode would
    # keep the logits of all chunks.
    total, gradients = jax.checkpoint(partial(_total_and_gradients, sweep, wanted))(*primals)
    terms = [
        _inner(g, d, total)
        for w, g, d in zip(*map(_leaves, (wanted, gradients, tangents)), strict=True)
        if w
    ]
    return total, sum(terms, jnp.zeros_like(total))


def _total_and_gradients(sweep: Sweep, wanted: Wanted, *operands: Any) -> tuple[Array, Wanted]:
    general = total_and_gradients if sweep.fast is None else _fast
    return general(sweep, wanted, *operands)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _fast(sweep: Sweep, wanted: Wanted, *operands: Any) -> tuple[Array, Wanted]:
    assert sweep.fast is not None
    return sweep.fast(sweep, wanted, *operands)


@_fast.defjvp
def _fast_rule(sweep, wanted, primals, tangents):
    # Gradients that are differentiated again are those of the sweep over tokens.
    return jax.jvp(partial(total_and_gradients, sweep, wanted), primals, tangents)


def _leaves(tree):
    return jax.tree.leaves(tree, is_leaf=lambda x: x is None)


def _inner(g: Array, d: Array, like: Array) -> Array:
    """`sum(g * d)`, over all devices whose parts make up the total."""
    # Not a dot product, which would gather operands that are split over devices.
    here = jnp.sum(g.astype(like.dtype) * d.astype(like.dtype))
    apart = tuple(varying(here) - varying(like))
    return alike(lax.psum(here, apart) if apart else here, like)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def per_token(sweep: Sweep, heads: tuple[Head, ...], labels: Array, shared: Any) -> Any:
    """What `rows` returns, numbers of floating point, for each token."""
    return each_token(sweep, heads, labels, shared)


@partial(per_token.defjvp, symbolic_zeros=True)
def _per_token_rule(sweep, primals, tangents):
    heads, labels, shared = primals
    d_heads, _, d_shared = tangents
    # A gradient adds up over chunks in the dtype that its tangent has in the loop.
    d_heads = tuple(
        Head(*(None if isinstance(d, SymbolicZero) else _wide(d) for d in head)) for head in d_heads
    )
    d_shared = jax.tree.map(
        lambda x, d: jnp.zeros_like(x) if isinstance(d, SymbolicZero) else d, shared, d_shared
    )
    out = per_token(sweep, heads, labels, shared)
    return out, tangents_of_each_token(sweep, heads, labels, shared, d_heads, d_shared)


def _wide(d: Array) -> Array:
    return d.astype(compute_dtype(d.dtype))
