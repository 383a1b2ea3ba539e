"""Helpers for derivative rules, and for calling a formula.

A rule is a `jax.custom_jvp`, so that every loss has derivatives of any order in any mode.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.split import ClassAxis, total


def jit_when_eager(formula: Callable[..., Any], **jit_options: Any) -> Callable[..., Any]:
    """Compile `formula` for an eager call and its derivatives; else leave it to the caller's jit.

    A jit inside of a jit, even an inlined one, would be traced and linearised on its own,
    which doubles the time that tracing a loss and its gradient takes. Under `jax_debug_infs` it is
    compiled all the same: infinities inside of a formula, as of what is no class, are not faults.
    """
    compiled = jax.jit(formula, **jit_options)

    @functools.wraps(formula)
    def call(*args, **options):
        plain = not all(map(_has_a_value, jax.tree.leaves(args)))
        plain &= not jax.config.jax_debug_infs  # pyright: ignore[reportAttributeAccessIssue]
        return (formula if plain else compiled)(*args, **options)

    return call


def _has_a_value(x: Any) -> bool:
    """Whether it is known by now, as also where it is differentiated without `jit`."""
    return not isinstance(x, Tracer) or x.to_concrete_value() is not None


def moves(tangent: Any) -> bool:
    """Whether an argument is differentiated; that of one that is None is None."""
    return tangent is not None and not isinstance(tangent, SymbolicZero)


def tangent_sum(like: Array, *terms: tuple[Any, Callable[[], Array]]) -> Array:
    """Sum the terms of a derivative rule, one `(tangent, term)` pair per argument.

    The term of an argument that is not being differentiated is left out rather than
    multiplied by zero: its factor may be infinite.
    """
    live = [term() for tangent, term in terms if moves(tangent)]
    return sum(live[1:], live[0]) if live else jnp.zeros_like(like)


def live_jvp(
    f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]
) -> tuple[Any, Any]:
    """`jax.jvp` by the operands that are being differentiated."""
    live = [i for i, tangent in enumerate(tangents) if moves(tangent)]

    def of_live(*some):
        given = dict(zip(live, some, strict=True))
        return f(*(given.get(i, primal) for i, primal in enumerate(primals)))

    return jax.jvp(of_live, [primals[i] for i in live], [tangents[i] for i in live])


def with_fast_gradient(
    exact: Callable[..., Array],
    fast: Callable[..., tuple[Array, Array]],
    axis: ClassAxis | tuple[()],
) -> Callable[..., Array]:
    """`exact(x, *others)`, of rows along `axis`, whose value and gradient by `x` are `fast`'s.

    With an axis of () each entry is a row. `fast` is for what a training step runs. The
    derivatives by the other operands, and all of higher order, are those of `exact`.
    """

    def inner(gradient, v):
        return gradient * v if isinstance(axis, tuple) else total(gradient * v, axis)

    @jax.custom_jvp
    def loss(x, *others):
        return both(x, *others)[0]

    @partial(loss.defjvp, symbolic_zeros=True)
    def _loss_rule(primals, tangents):
        (x, *others), (v, *rest) = primals, tangents
        value, gradient = both(x, *others)
        terms = [(v, lambda: inner(gradient, v))]
        moving = list(filter(moves, rest))
        if moving:
            terms.append((moving[0], lambda: live_jvp(partial(exact, x), others, rest)[1]))
        return value, tangent_sum(value, *terms)

    @jax.custom_jvp
    def both(x, *others):
        return fast(x, *others)

    @both.defjvp
    def _both_rule(primals, tangents):
        def slow(x, *others):
            value, pull = jax.vjp(lambda x: exact(x, *others), x)
            return value, *pull(jnp.ones_like(value))

        return both(*primals), jax.jvp(slow, primals, tangents)[1]

    return loss


def with_fast_value(exact: Callable[..., Any], fast: Callable[..., Any]) -> Callable[..., Any]:
    """`exact(*operands)`, whose value, where no derivative is asked for, is `fast`'s.

    That is for what is a pass of its own, but not where its terms are also the gradient's.
    """

    @jax.custom_jvp
    def formula(*operands):
        return fast(*operands)

    @partial(formula.defjvp, symbolic_zeros=True)
    def _rule(primals, tangents):
        return live_jvp(exact, primals, tangents)

    return formula
