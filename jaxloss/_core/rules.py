"""Helpers for derivative rules, and for calling a formula.

A rule is a `jax.custom_jvp`, so that every loss has derivatives of any order in any mode.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.split import ClassAxis, total


def jit_when_eager(formula: Callable[..., Any], **jit_options: Any) -> Callable[..., Any]:
    """Compile `formula` for an eager call; under a transformation, leave it to the caller's jit.

    A jit inside of a jit, even an inlined one, would be traced and linearised on its own,
    which doubles the time that tracing a loss and its gradient takes.
    """
    compiled = jax.jit(formula, **jit_options)

    @functools.wraps(formula)
    def call(*args, **options):
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
        return (formula if traced else compiled)(*args, **options)

    return call


def tangent_sum(like: Array, *terms: tuple[Any, Callable[[], Array]]) -> Array:
    """Sum the terms of a derivative rule, one `(tangent, term)` pair per argument.

    The term of an argument that is not being differentiated is left out rather than
    multiplied by zero: its factor may be infinite.
    """
    live = [term() for tangent, term in terms if not isinstance(tangent, SymbolicZero)]
    return sum(live[1:], live[0]) if live else jnp.zeros_like(like)


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
        (x, *others), (v, *moves) = primals, tangents
        value, gradient = both(x, *others)
        live = [i for i, move in enumerate(moves) if not isinstance(move, SymbolicZero)]

        def of_others():
            def f(*some):
                given = dict(zip(live, some, strict=True))
                return exact(x, *(given.get(i, other) for i, other in enumerate(others)))

            return jax.jvp(f, [others[i] for i in live], [moves[i] for i in live])[1]

        terms = [(v, lambda: inner(gradient, v))]
        if live:
            terms.append((moves[live[0]], of_others))
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
