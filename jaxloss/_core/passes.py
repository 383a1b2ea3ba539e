"""The one room that knows XLA's CPU backend. Of this only `settled` is needed for a right number.

Since jaxlib 0.10 that backend hands a reduction, with the arithmetic before it, to YNNPACK
(`--xla_cpu_experimental_ynn_fusion_type`; seen in jaxlib 0.10 and 0.12): one pass over the
inputs that writes nothing. It takes along what YNNPACK knows, which are sums, products,
quotients, minima, maxima, exponentials and logarithms, but neither comparisons nor selects; and
only what has no other user. What two passes share, be it `1 - z` or a broadcast constant, is
written out at full size instead, at several times the cost.

So a formula that is summed up is written without selects (`step`, `times`), and it runs as a
pass of its own (`own_pass`, `sums`): on a CPU its operands and constants are multiplied by a one
that XLA cannot see through, another in each pass. Accelerators fuse by themselves, and get the
formula as it is. `tests/test_passes.py` shows what is written without this; if it no longer
fails there, this room can go.
"""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.extend.core import Literal
from jaxlib import version as jaxlib

from jaxloss._core.mapped import alike, explicit

Formula = Callable[..., Any]
# Up to as many entries a CPU takes several sums in one unrolled loop, ten times as fast as
# YNNPACK, which is made for long rows.
SHORT = 16


def own_pass(formula: Formula) -> Formula:
    """`formula`, of trees of arrays, as a pass that shares nothing with any other.

    It may consist of arithmetic, reductions and calls of such, and is never differentiated: it
    stands under a rule.
    """

    @wraps(formula)
    def run(*operands: Any) -> Any:
        apart = partial(_apart, formula, _name(formula))
        return lax.platform_dependent(*_all_alike(operands), cpu=apart, default=formula)

    return run


def sums(
    terms: Callable[..., Sequence[Array]], axis: int | tuple[int, ...], *operands: Array
) -> list[Array]:
    """The sum of each of `terms(*operands)` along axes, which are kept with size one."""
    axes = (axis,) if isinstance(axis, int) else axis

    def whole(*operands: Array) -> list[Array]:
        each = terms(*operands)
        shape = jnp.broadcast_shapes(*(t.shape for t in each))
        return [jnp.broadcast_to(t, shape) for t in each]

    def one_by_one(*operands: Array) -> list[Array]:
        return [jnp.sum(t, axes, keepdims=True) for t in whole(*operands)]

    def cpu(*operands: Array) -> list[Array]:
        shapes = jax.eval_shape(whole, *operands)
        short = _short(math.prod(shapes[0].shape[a] for a in axes))
        if short and not explicit(operands):
            carrier = _tangent_carrier(operands)
            return _in_one_loop([t + carrier for t in whole(*operands)], axes)
        passes = [lambda *xs, i=i: one_by_one(*xs)[i] for i in range(len(shapes))]
        return [_apart(f, f"{_name(terms)} {i}", *operands) for i, f in enumerate(passes)]

    return lax.platform_dependent(*_all_alike(operands), cpu=cpu, default=one_by_one)


def _short(entries: Any) -> bool:
    return isinstance(entries, int) and entries <= SHORT  # Exported, it may be a symbol.


def _tangent_carrier(operands: Sequence[Array]) -> Array | int:
    """0, which XLA sees, with a tangent that JAX takes for one if any operand has one.

    Of several terms in one loop JAX differentiates either all or none. (A scan that is
    linearised keeps no rule of what it computes, so that further orders see this.)
    """
    floating = [x for x in operands if x.size and jnp.issubdtype(x.dtype, jnp.floating)]
    never = jnp.zeros((), bool)
    return sum((jnp.where(never, x[(0,) * x.ndim], 0) for x in floating), 0)


def _in_one_loop(terms: Sequence[Array], axes: tuple[int, ...]) -> list[Array]:
    zeros = [jnp.zeros((), t.dtype) for t in terms]
    return [jnp.expand_dims(s, axes) for s in lax.reduce(terms, zeros, _each_added, axes)]


def largest(x: Array, axis: int) -> Array:
    """The largest entry along an axis, or NaN if one is; YNNPACK drops that in a maximum."""

    def plain(x: Array) -> Array:
        return jnp.max(x, axis)

    def in_one_loop(x: Array) -> Array:
        least = jnp.asarray(-jnp.inf, x.dtype)
        return lax.reduce(x, least, _larger_or_nan, (axis,))

    def cpu(x: Array) -> Array:
        if _short(x.shape[axis]):
            return in_one_loop(x)
        big = float(jnp.finfo(x.dtype).max)
        top = plain(jnp.minimum(x, big))  # Of a NaN, too, that is big.
        return lax.cond(jnp.all(top < big), _top, _top_or_nan(axis), x, top)

    return lax.platform_dependent(x, cpu=cpu, default=plain)


def step(x: Array) -> Array:
    """1 where `x` is positive (from 2**-100 on), 0 where it is 0; `x` is not negative."""
    return jnp.minimum(x * 2.0**100, 1)


def times(w: Array, x: Array) -> Array:
    """`w * x`, zero where the weight is, even for an `x` of inf; `x` is not negative."""
    info = jnp.finfo(x.dtype)
    # A power of two takes an infinity to a finite number and back.
    return w * jnp.minimum(x * float(info.eps), float(info.max)) / float(info.eps)


def two_sided(a: Array, b: Array, x: Array) -> Array:
    """`a * max(x, 0) + b * max(-x, 0)`, a side being zero where its weight is, even for inf."""
    info = jnp.finfo(x.dtype)
    scaled = jnp.minimum(jnp.maximum(x * float(info.eps), -float(info.max)), float(info.max))
    return (a * jnp.maximum(scaled, 0) - b * jnp.minimum(scaled, 0)) / float(info.eps)


def zero_at(index: Array, at: Array, x: Array) -> Array:
    """`x`, but 0 where the index is `at`; `x` is finite there. Not differentiated."""

    def cpu(index, at, x):
        return x * jnp.minimum(jnp.abs(index.astype(x.dtype) - at.astype(x.dtype)), 1)

    def default(index, at, x):
        return jnp.where(index == at, 0, x)

    return lax.platform_dependent(index, at, x, cpu=cpu, default=default)


def settled(of_rows: Array) -> Array:
    """The same sums of rows, which jaxlib 0.10.2 does not fuse with what is computed of them.

    There YNNPACK gets `v - sum(p * v)` wrong from some 32,768 entries on if `p` is broadcast over
    the leading axis, as it is where `jax.vmap` runs over tangents, in `jax.jacfwd` and in Hessians.
    It does not know `reduce_precision`, which changes nothing here, is linear, and stays.
    `tests/test_passes.py` shows the fault.
    """
    if jaxlib.__version__ != "0.10.2" or not jnp.issubdtype(of_rows.dtype, jnp.floating):
        return of_rows
    info = jnp.finfo(of_rows.dtype)
    return lax.reduce_precision(of_rows, info.nexp + 1, info.nmant + 1)


def nan_of(x: Array) -> Array:
    """0, or NaN where `x` is NaN, which `minimum` and `maximum` of YNNPACK drop."""
    return 0 / (1 + jnp.abs(x))


def nan_of_row(row: Array, *entries: Array) -> Array:
    """0, or NaN where the result of the row is NaN: on accelerators, where one of the entries is.

    A CPU would read the entries once more, and accelerators the gradient's other operands, which
    they have at hand while they sum up the row.
    """

    def default(row: Array, *entries: Array) -> Array:
        return sum(map(nan_of, entries), alike(jnp.zeros((), row.dtype), row, *entries))

    def cpu(row: Array, *entries: Array) -> Array:
        shape = jnp.broadcast_shapes(*(x.shape for x in entries))
        return jnp.broadcast_to(nan_of(row), shape)

    return lax.platform_dependent(*_all_alike((row, *entries)), cpu=cpu, default=default)


def unless(known: Array, results: Any, formula: Formula, *operands: Array) -> Any:
    """`formula(*operands)`, which a CPU skips where it is known to have these results.

    Accelerators run no branches: those would part what they fuse. Under `vmap` a CPU runs both.
    """

    def cpu(results, *operands):
        def skip(results, *_):
            return results

        def run(_, *operands):
            return formula(*operands)

        return lax.cond(known, skip, run, results, *operands)

    def default(_, *operands):
        return formula(*operands)

    return lax.platform_dependent(results, *operands, cpu=cpu, default=default)


def _all_alike(trees: Any) -> Any:
    """In `shard_map`, let all operands differ over the axes over which any of them does."""
    leaves = jax.tree.leaves(trees)
    return jax.tree.map(lambda x: alike(x, *leaves), trees)


def nan_beside_inf(x: Array, top: Array, axis: int) -> Array:
    """0, or NaN for a row with a NaN beside a largest entry of inf.

    `exp(min(x, big) - top)` is infinite for a NaN that the minimum drops, but not there.
    """

    def cpu(x: Array, top: Array) -> Array:
        look = jnp.any(top >= float(jnp.finfo(x.dtype).max))  # Which is next to never.
        return lax.cond(look, _nan_along(axis), _no_nan, x, top)

    return lax.platform_dependent(*_all_alike((x, top)), cpu=cpu, default=_no_nan)


# JAX knows by the function whether it has compiled a branch or a reduction before: outside of
# `jit`, one that is defined anew at each call is compiled anew.
def _each_added(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    return [u + v for u, v in zip(a, b, strict=True)]


def _larger_or_nan(a: Array, b: Array) -> Array:
    return jnp.where((b > a) | jnp.isnan(b), b, a)


def _top(_: Array, top: Array) -> Array:
    return top


def _no_nan(x: Array, top: Array) -> Array:
    return alike(jnp.zeros_like(top), x, top)


@functools.cache
def _nan_along(axis: int) -> Formula:
    def nan(x: Array, _: Array) -> Array:
        return jnp.sum(nan_of(x), axis, keepdims=True)

    return nan


@functools.cache
def _top_or_nan(axis: int) -> Formula:
    def top(x: Array, _: Array) -> Array:
        return jnp.max(x, axis) + jnp.sum(nan_of(x), axis)

    return top


def _name(formula: Formula) -> str:
    return f"{formula.__module__}.{formula.__qualname__}"


def _apart(formula: Formula, name: str, *trees: Any) -> Any:
    operands = jax.tree.leaves(trees)
    if explicit(operands):  # No entry can be taken of them without saying to where.
        return formula(*trees)
    # Traced of shapes alone: in `shard_map` all differ over the same devices, as the one does.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trees)
    jaxpr, out = jax.make_jaxpr(formula, return_shape=True)(*shapes)
    one = _hidden_one(operands, zlib.crc32(name.encode()))
    results = _evaluate(jaxpr.jaxpr, jaxpr.consts, [_times_one(x, one) for x in operands], one)
    return jax.tree.unflatten(jax.tree.structure(out), results)


def _hidden_one(operands: Sequence[Array], tag: int) -> Array:
    """1.0, from bits of an entry of each operand, of which none is left; shifted by the tag."""
    left = 1 + tag % 31
    right = 32 - left + tag // 31 % left

    @custom_vmap
    def zero(x):
        if not x.size:
            return jnp.zeros((), jnp.uint32)
        bits = lax.bitcast_convert_type(x[(0,) * x.ndim].astype(jnp.float32), jnp.uint32)
        return (bits >> jnp.uint32(left)) >> jnp.uint32(right)

    @zero.def_vmap
    def _(_size, _batched, x):
        return zero(x[0]), False  # One for the whole batch, or it would be an array itself.

    one = lax.bitcast_convert_type(jnp.float32(1), jnp.uint32)
    return lax.bitcast_convert_type(sum(map(zero, operands), one), jnp.float32)


def _times_one(x: Array, one: Array) -> Array:
    return x * one.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _evaluate(jaxpr: Any, consts: Sequence[Array], operands: Sequence[Array], one: Array):
    """The formula, with its constants times one."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *operands], strict=True))

    def read(v):
        if isinstance(v, Literal):
            return _times_one(jnp.asarray(v.val, jnp.result_type(v.aval)), one)
        return values[v]

    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if inner is not None:
            results = _evaluate(inner.jaxpr, inner.consts, inputs, one)
        else:
            results = equation.primitive.bind(*inputs, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        values |= zip(equation.outvars, results, strict=True)
    return [read(v) for v in jaxpr.outvars]
