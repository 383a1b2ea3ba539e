"""Calls of a loss function of which some examples do not count.

What such an example holds is replaced before anything is computed of it, so that no derivative
can see it; where examples meet each other the function itself has to leave it out.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import callers, checks
from jaxloss._core.declare import FILL, Declaration, Operand, declaration
from jaxloss._core.numerics import compute_dtype
from jaxloss._core.reduce import per_example

Weighed = tuple[Array, Array | None, Array | None]


def weighed_losses(
    fn: Callable[[Any], Array],
    arguments: Any,
    fill: Callable[[Array, Any], Any],
    *,
    weights: ArrayLike | None,
    where: Array | None,
    names: tuple[str, str] = ("weights", "where"),
) -> Weighed:
    """Losses of arguments without what does not count, and weights and mask of their shape.

    `fill(where, arguments)` gives examples that are not in `where` harmless contents.
    """
    if where is not None:
        arguments = fill(where, arguments)
    losses = fn(arguments)
    if where is not None:
        where = per_example(names[1], where, losses.shape)
    if weights is None:
        return losses, None, where
    w = per_example(names[0], jnp.asarray(weights).astype(losses.dtype), losses.shape)
    # The derivative by a weight of zero is the loss, so only a useless one is replaced.
    useful = (w != 0) | jnp.isfinite(jax.lax.stop_gradient(losses))
    return fn(fill(useful, arguments)), w, where


def floating_losses(losses: Any) -> Array:
    """What a loss function returned, in the dtype it is weighed and reduced in."""
    if not isinstance(losses, jax.Array) or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise TypeError(f"fn must return an array of floating-point losses, got {losses!r}")
    return losses.astype(compute_dtype(losses.dtype))


def arrays(x: Any) -> Any:
    """Arrays for leaves; a (nested) list of numbers is one array, not a tree."""
    numbers = all(isinstance(leaf, (bool, int, float)) for leaf in jax.tree.leaves(x))
    return jnp.asarray(x) if isinstance(x, list) and numbers else jax.tree.map(jnp.asarray, x)


def rank(predictions: Any) -> int:
    return max((x.ndim for x in jax.tree.leaves(predictions)), default=0)


def parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):  # Some built-in callables have no signature.
        return {}


def class_axes(fn: Callable[..., Any], options: Mapping, predictions: Any) -> tuple[int, ...]:
    """Where the predictions have axes that the losses do not have, if `fn` says so."""
    parameter = parameters(fn).get("axis")
    default = -1 if parameter is None or parameter.default is parameter.empty else parameter.default
    n = rank(predictions)
    return tuple(sorted(checks.axes(options.get("axis", default), n))) if n else ()


def fill_trees(where: Array, trees: tuple[Any, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    """Predictions first, then trees of arrays of which nothing is known but their shapes."""
    full = rank(trees[0])

    def clean(x: Array) -> Array:
        if x.ndim < where.ndim:
            return x
        # A half is inside the domain of every prediction: logits, probabilities, rates.
        value = 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else 0
        return _filled(where, x, axes if x.ndim == full else (), value)

    return jax.tree.map(clean, trees)


def _filled(where: Array, x: Array, axes: tuple[int, ...], value: float) -> Array:
    mask = _along_examples(where, x.shape, axes)
    shape = jnp.broadcast_shapes(mask.shape, x.shape)
    mask, x = jnp.broadcast_to(mask, shape), jnp.broadcast_to(x, shape)
    return jnp.where(mask, x, jnp.asarray(value, x.dtype))


def _along_examples(mask: Array, to: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Give a per-example mask the axes of an array, with size 1 for the class axes."""
    shape = list(mask.shape)
    # Some functions sum over all axes but the batch's by default, and say so as None.
    for a in axes if len(axes) + mask.ndim <= len(to) else ():
        if a <= len(shape) < len(to):
            shape.insert(a, 1)
    shape += [1] * (len(to) - len(shape))
    if any(m != n and 1 not in (m, n) for m, n in zip(shape, to, strict=True)):
        raise ValueError(f"where of shape {mask.shape} does not fit an array of shape {to}")
    return mask.reshape(shape)


def call(
    fn: Callable[..., Any],
    operands: tuple[Any, ...],
    named: Mapping[str, Any],
    options: Mapping[str, Any],
) -> "Call | DeclaredCall":
    """A call of `fn` with operands by position and by name, and with options."""
    takes = declaration(fn)
    if takes is None:
        return Call(fn, tuple(map(arrays, operands)), {**options, **named})
    order = list(parameters(fn))[: len(operands)]
    if len(order) < len(operands) or any(name not in takes.operands for name in order):
        raise TypeError(
            f"{_name(fn)} takes {', '.join(takes.operands)} for each example, but {len(operands)} "
            f"operands came; options belong to the constructor of Loss"
        )
    checks.check_keywords(_name(fn), named, list(takes.operands))
    declared = {k: v for k, v in options.items() if k in takes.operands}
    declared |= dict(zip(order, operands, strict=False)) | dict(named)
    arguments = {k: arrays(v) for k, v in declared.items() if v is not None}
    # A `functools.partial` has options, too.
    given = {**getattr(fn, "keywords", {}), **takes.unreduced, **options}
    rest = {k: v for k, v in given.items() if k not in takes.operands}
    return DeclaredCall(fn, arguments, rest, takes)


@dataclass(frozen=True)
class Call:
    """Of a function without a declaration: of predictions and targets, which may be trees."""

    fn: Callable[..., Any]
    arguments: Any
    options: Mapping[str, Any]

    def with_options(self, **options: Any):
        return replace(self, options={**self.options, **options})

    @property
    def labels(self) -> Any:
        return self.arguments[1]

    @property
    def first(self) -> Any:
        return self.arguments[0]

    @property
    def axes(self) -> tuple[int, ...]:
        return class_axes(self.fn, self.options, self.first)

    def losses(self, arguments: Any) -> Array:
        losses = floating_losses(self.fn(*arguments, **self.options))
        if self._reduced(losses):
            raise ValueError(
                "fn returned a scalar for a batch of predictions: return one loss for each "
                "example, so that they can be weighted, masked and reduced"
            )
        return losses

    def _reduced(self, losses: Any) -> bool:
        return losses.ndim == 0 and rank(self.first) > max(1, len(self.axes))

    def weighed(self, weights: ArrayLike | None, where: Array | None) -> Weighed:
        fill = partial(fill_trees, axes=self.axes)
        return weighed_losses(self.losses, self.arguments, fill, weights=weights, where=where)


@dataclass(frozen=True)
class DeclaredCall(Call):
    """Of a function that says what it takes; its arguments are by name."""

    takes: Declaration

    @property
    def labels(self) -> Any:
        name = self.takes.named("labels")
        if name is None:
            raise TypeError(f"ignore_index is for integer labels, which {_name(self.fn)} has not")
        return self.arguments[name]

    @property
    def first(self) -> Any:
        return self.arguments[next(iter(self.takes.operands))]

    def losses(self, arguments: Any) -> Array:
        losses = floating_losses(self.fn(**arguments, **self.options))
        if self._reduced(losses) and not self.takes.has("embeddings", "pixels"):
            raise ValueError(
                f"{_name(self.fn)} returned one number for a batch, which is already reduced: "
                f"give it the options by which it returns a loss for each example"
            )
        return losses

    def _whole(self, loss: Array, weights: ArrayLike | None) -> Weighed:
        """The loss of a batch as a whole."""
        if weights is not None:
            raise ValueError(
                f"{_name(self.fn)} returns one number for the batch, already reduced, of which no "
                f"part can be weighed: leave parts out by where, or take a loss of each example"
            )
        return loss, None, None

    def weighed(self, weights: ArrayLike | None, where: Array | None) -> Weighed:
        if self.takes.together:
            return self._of_all(weights, where)
        if self.takes.parts(self.options):
            return self._of_parts(weights, where)
        self._check_where(where)
        return weighed_losses(self.losses, self.arguments, self._fill, weights=weights, where=where)

    def _check_where(self, where: Array | None) -> None:
        if where is not None and self.takes.has("row") and where.ndim == rank(self.first) > 0:
            raise ValueError(
                f"where of shape {where.shape} masks examples, but {_name(self.fn)} has one loss "
                f"for each row: give a mask of rows, or a mask of classes as class_where"
            )

    def _fill(self, where: Array, arguments: Mapping[str, Array]) -> Mapping[str, Array]:
        def clean(operand: Operand, x: Array) -> Array:
            # What has fewer axes is a setting of all examples, or of classes.
            axes = self.axes if operand.kind == "row" else ()
            each = rank(self.first) if operand.kind in ("row", "entries") else where.ndim
            if operand.kind == "shared" or x.ndim < max(each, where.ndim):
                return x
            classes = math.prod(x.shape[a] for a in axes)
            return _filled(where, x, axes, FILL[operand.of](classes))

        return {k: clean(self.takes.operands[k], x) for k, x in arguments.items()}

    def _of_all(self, weights: ArrayLike | None, where: Array | None) -> Weighed:
        """Examples that meet each other: what does not count is none for the function either."""
        members = self.takes.has("members")
        shape = self.first.shape if members else self.first.shape[:-1]
        live = where = None if where is None else per_example("where", where, shape)
        if weights is not None:
            weights = per_example("weights", jnp.asarray(weights), shape)
            counts = weights != 0
            # A member whose own loss has no weight is one of the others' all the same.
            counts = jnp.any(counts, -1, keepdims=True) if members else counts
            live = counts if live is None else live & counts
        run = self if live is None else self.with_options(where=live)
        losses = run.losses(self.arguments)
        if self._reduced(losses):
            return self._whole(losses, weights)
        return losses, None if weights is None else weights.astype(losses.dtype), where

    def _of_parts(self, weights: ArrayLike | None, where: Array | None) -> Weighed:
        """Lists of items, tokens or pixels: a mask of these is the function's own."""
        callers.refuse_keras()  # Of what is called by `eval_shape` the caller is JAX.
        run, arguments = self, dict(self.arguments)
        losses = jax.eval_shape(self.losses, arguments)
        if where is not None and self._reduced(losses):
            where = per_example(
                "where", where, self.first.shape[: max(where.ndim, rank(self.first) - 1)]
            )
        if where is not None and where.ndim > losses.ndim:
            run = self.with_options(where=where)
            where = jnp.any(where, tuple(range(losses.ndim, where.ndim)))
        of_items = weights is not None and jnp.ndim(weights) == rank(self.first)
        if of_items and "weights" in self.takes.operands:
            arguments["weights"], weights = jnp.asarray(weights), None
        if self._reduced(losses):
            return self._whole(run.losses(arguments), weights)
        return weighed_losses(run.losses, arguments, self._fill, weights=weights, where=where)


def check_options(fn: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = parameters(fn)
    if not known or any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    # The first two are what it is called with.
    checks.check_keywords(_name(fn), options, list(known)[2:])


def _name(fn: Any) -> str:
    return getattr(getattr(fn, "func", fn), "__name__", str(fn))
