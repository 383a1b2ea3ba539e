"""`Loss`: any function of per-example losses, with settings, weights, masks and a reduction."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxloss import _checks
from jaxloss._reduce import Reduction, check_reduction, per_example, reduce_losses

# Options that decide shapes or branches; every other number is a leaf and may be traced.
_STATIC = ("axis", "ignore_index")


def _is_leaf(name: str, value: Any) -> bool:
    numeric = isinstance(value, (int, float, np.ndarray, np.generic, jax.Array))
    return numeric and not isinstance(value, bool) and name not in _STATIC


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, init=False)
class Loss:
    r"""A loss function with its settings and its reduction, as one value.

    A frozen dataclass and a pytree: numeric options are leaves, so they can be traced,
    scheduled or learned; the function, the reduction, `axis`, `ignore_index` and options that
    are not numbers are static. Hashable if its options are.

    Args:
        fn: `fn(predictions, targets, **options)`, a function of this library or your own,
            returning one loss for each example.
        reduction: "none", "sum", "mean" (over the examples that are not masked) or
            "weighted_mean" (over the sum of their weights).
        axis_name: mapped axes (of `shard_map`, `pmap` or `vmap`) over which a mean counts.
            Each device then returns its share, and the shares add up to the mean.
        ignore_index: examples with this integer target are masked.
        **options: passed on to `fn`.

    Calling it takes `(predictions, targets)` and, keyword-only:

    - `weights`: one for each example, or for the leading axes of the losses. An example of
      weight zero adds nothing, even if it holds NaN, but counts in "mean".
    - `where`: booleans, likewise. A masked example adds nothing and does not count.
    - `class_where`: passed on to `fn` as `where`, a mask of classes.

    An empty or fully masked batch gives 0.

    Raises:
        TypeError: `fn` is not callable or does not take the options.
        ValueError: an unknown reduction; weights or masks that do not fit the losses; a `fn`
            that returns a scalar for a batch, which could not be weighted.

    Contents of masked examples, and of examples of weight zero that are not finite, are
    replaced before `fn` sees them, so that no derivative of `fn` can turn them into NaN.

    >>> import jax.numpy as jnp, jaxloss
    >>> loss = jaxloss.Loss(jaxloss.softmax_cross_entropy_with_integer_labels, ignore_index=-1)
    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0], [jnp.nan, 0.0]])
    >>> print(loss(logits, jnp.array([0, 1, -1])))
    0.41003758
    """

    fn: Callable[..., Array]
    reduction: Reduction
    axis_name: str | tuple[str, ...] | None
    ignore_index: int | None
    options: tuple[tuple[str, Any], ...]

    def __init__(
        self,
        fn: Callable[..., Array],
        reduction: Reduction = "mean",
        *,
        axis_name: str | tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        **options: Any,
    ):
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {type(fn).__name__}")
        check_reduction(reduction)
        _check_options(fn, options)
        self._set(fn, reduction, axis_name, ignore_index, tuple(sorted(options.items())))

    def _set(self, *values: Any) -> None:
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    def tree_flatten(self):
        leaves = {k: v for k, v in self.options if _is_leaf(k, v)}
        rest = tuple((k, v) for k, v in self.options if k not in leaves)
        static = (self.fn, self.reduction, self.axis_name, self.ignore_index)
        return tuple(leaves.values()), (static, tuple(leaves), rest)

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        static, names, rest = aux
        self = object.__new__(cls)
        options = dict(rest) | dict(zip(names, leaves, strict=True))
        self._set(*static, tuple(sorted(options.items())))
        return self

    def __call__(
        self,
        predictions: Any,
        targets: Any,
        *,
        weights: ArrayLike | None = None,
        where: ArrayLike | None = None,
        class_where: ArrayLike | None = None,
    ) -> Array:
        predictions, targets = jax.tree.map(jnp.asarray, (predictions, targets))
        options = dict(self.options)
        if class_where is not None:
            options["where"] = class_where
        mask = self._mask(where, targets)
        w = None if weights is None else jnp.asarray(weights)

        axis = options.get("axis", -1)
        clean = partial(_clean, weights=w, where=mask, axis=axis)
        losses = self.fn(*jax.tree.map(clean, (predictions, targets)), **options)
        _check_losses(losses, predictions, axis)
        if w is not None:
            w = per_example("weights", w.astype(losses.dtype), losses.shape)
        if mask is not None:
            mask = per_example("where", mask, losses.shape)
        return reduce_losses(
            losses, self.reduction, weights=w, where=mask, axis_name=self.axis_name
        )

    def _mask(self, where: ArrayLike | None, targets: Array) -> Array | None:
        mask = None if where is None else _checks.boolean("where", where)
        if self.ignore_index is None:
            return mask
        kept = targets != self.ignore_index
        return kept if mask is None else per_example("where", mask, kept.shape) & kept


def _clean(x: Array, weights: Array | None, where: Array | None, axis: _checks.Axis) -> Array:
    """Replace what a mask or a zero weight says must not matter, before it is differentiated."""
    # A half is inside the domain of every prediction: logits, probabilities, rates.
    fill = jnp.asarray(0.5 if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.dtype)
    if where is not None and where.ndim <= x.ndim:
        x = jnp.where(_along_examples("where", where, x, axis), x, fill)
    if weights is not None and weights.ndim <= x.ndim and jnp.issubdtype(x.dtype, jnp.floating):
        # Only what is not finite: the derivative by a weight of zero is the loss itself.
        weightless = _along_examples("weights", weights, x, axis) == 0
        x = jnp.where(weightless & ~jnp.isfinite(x), fill, x)
    return x


def _along_examples(name: str, mask: Array, x: Array, axis: _checks.Axis) -> Array:
    """Give a per-example array the axes of `x`, with size 1 for the class axes."""
    shape = list(mask.shape)
    if x.ndim > mask.ndim > 0:
        for a in sorted(_checks.axes(axis, x.ndim)):
            shape.insert(a, 1) if a <= len(shape) < x.ndim else None
    shape += [1] * (x.ndim - len(shape))
    if any(m not in (n, 1) for m, n in zip(shape, x.shape, strict=True)):
        raise ValueError(f"{name} of shape {mask.shape} do not fit an array of shape {x.shape}")
    return jnp.broadcast_to(mask.reshape(shape), x.shape)


def _check_losses(losses: Any, predictions: Any, axis: _checks.Axis) -> None:
    rank = max((x.ndim for x in jax.tree.leaves(predictions)), default=0)
    if not isinstance(losses, jax.Array) or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise TypeError(f"fn must return an array of floating-point losses, got {losses!r}")
    if losses.ndim == 0 and rank > 1 and isinstance(axis, int):
        raise ValueError(
            "fn returned a scalar for a batch of predictions: return one loss for each example, "
            "so that they can be weighted, masked and reduced"
        )


def _check_options(fn: Callable[..., Any], options: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # Some built-in callables have no signature.
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [p.name for p in list(parameters.values())[2:]]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            takes = ", ".join(known) or "none"
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {takes}"
            raise TypeError(f"{getattr(fn, '__name__', fn)} has no option {name!r}; {hint}")
