"""`Loss`: any function of per-example losses, with settings, weights, masks and a reduction."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks
from jaxloss._core.numerics import compute_dtype
from jaxloss._core.reduce import (
    Reduction,
    SequenceReduction,
    check_reduction,
    per_example,
    reduce_losses,
    segments_of,
    total_and_size,
)
from jaxloss._mean import Mean


def _is_leaf(name: str, value: Any) -> bool:
    """Numbers may be traced, but for those which decide shapes."""
    numeric = isinstance(value, (int, float, np.ndarray, np.generic, jax.Array))
    return numeric and not isinstance(value, bool) and name not in ("axis", "chunk_size")


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
            "weighted_mean" (over the sum of their weights). Of losses of tokens, [..., T]:
            "sequence_mean" (the mean over sequences of each one's mean over its tokens) or
            "sequence_sum" (the mean over sequences of each one's sum). A sequence without a token
            that counts does not count.
        axis_name: mapped axes (of `shard_map`, `pmap` or `vmap`) over which a mean counts.
            Each device then returns its share, and the shares add up to the mean.
        ignore_index: examples with this integer target are masked.
        **options: passed on to `fn`.

    Calling it takes `(predictions, targets)` and, keyword-only:

    - `weights`: one for each example, or for the leading axes of the losses. An example of
      weight zero adds nothing, even if it holds NaN, but counts in "mean".
    - `where`: booleans, likewise. A masked example adds nothing and does not count.
    - `class_where`: passed on to `fn` as `where`, a mask of classes.
    - `segments`: for the reductions of sequences, where several are packed into a row: integers
      of the shape of the losses. Tokens of one row with the same number are a sequence; by
      default all tokens of a row are. A sequence has to be in one row.

    An empty or fully masked batch gives 0. `parts` returns a mean as its total and its size.

    Raises:
        TypeError: `fn` is not callable or does not take the options.
        ValueError: an unknown reduction; weights or masks that do not fit the losses; a `fn`
            that returns a scalar for a batch, which could not be weighted.

    Masked examples, and those of weight zero whose loss is not finite, are replaced before
    `fn` is differentiated, so that none of its derivatives can turn them into NaN. For that
    their place in `predictions` must be known: the axes of the losses, with the class axes put
    in at `axis` (an option or a default of `fn`; the last, if it has none).

    >>> import jax.numpy as jnp, jaxloss
    >>> loss = jaxloss.Loss(jaxloss.softmax_cross_entropy_with_integer_labels, ignore_index=-1)
    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0], [jnp.nan, 0.0]])
    >>> print(loss(logits, jnp.array([0, 1, -1])))
    0.41003758
    """

    fn: Callable[..., Array]
    reduction: Reduction | SequenceReduction
    axis_name: str | tuple[str, ...] | None
    ignore_index: int | None
    static_options: tuple[tuple[str, Any], ...]
    numeric_options: tuple[tuple[str, Any], ...]

    def __init__(
        self,
        fn: Callable[..., Array],
        reduction: Reduction | SequenceReduction = "mean",
        *,
        axis_name: str | tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        **options: Any,
    ):
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {type(fn).__name__}")
        check_reduction(reduction, sequences=True)
        check_options(fn, options)
        items = sorted(options.items())
        numeric = tuple((k, v) for k, v in items if _is_leaf(k, v))
        static = tuple((k, v) for k, v in items if not _is_leaf(k, v))
        self._set(fn, reduction, axis_name, ignore_index, static, numeric)

    def _set(self, *values: Any) -> None:
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.static_options) | dict(self.numeric_options)

    def tree_flatten(self):
        names = tuple(k for k, _ in self.numeric_options)
        static = (self.fn, self.reduction, self.axis_name, self.ignore_index, self.static_options)
        return tuple(v for _, v in self.numeric_options), (static, names)

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        static, names = aux
        self = object.__new__(cls)
        self._set(*static, tuple(zip(names, leaves, strict=True)))
        return self

    def __call__(
        self,
        predictions: Any,
        targets: Any,
        *,
        weights: ArrayLike | None = None,
        where: ArrayLike | None = None,
        class_where: ArrayLike | None = None,
        segments: ArrayLike | None = None,
    ) -> Array:
        losses, w, mask = self._weighed(predictions, targets, weights, where, class_where)
        return reduce_losses(
            losses,
            self.reduction,
            weights=w,
            where=mask,
            segments=segments_of(segments, losses.shape),
            axis_name=self.axis_name,
        )

    def parts(
        self,
        predictions: Any,
        targets: Any,
        *,
        weights: ArrayLike | None = None,
        where: ArrayLike | None = None,
        class_where: ArrayLike | None = None,
        segments: ArrayLike | None = None,
    ) -> Mean:
        """The mean that a call returns, as a `Mean`, which adds up over parts of a batch.

        Arguments are those of a call. `axis_name` changes nothing: the parts are this device's,
        and `Mean.psum` adds them up.

        Raises:
            ValueError: as a call; the reduction is no mean.

        >>> import jax.numpy as jnp, jaxloss
        >>> loss = jaxloss.Loss(jaxloss.squared_error)
        >>> parts = [loss.parts(jnp.ones(n), jnp.zeros(n) + n) for n in (1, 3)]
        >>> print(sum(parts).value)
        3.0
        """
        losses, w, mask = self._weighed(predictions, targets, weights, where, class_where)
        segments = segments_of(segments, losses.shape)
        return Mean(
            *total_and_size(losses, self.reduction, weights=w, where=mask, segments=segments)
        )

    def _weighed(
        self, predictions: Any, targets: Any, weights: Any, where: Any, class_where: Any
    ) -> tuple[Array, Array | None, Array | None]:
        """Losses, weights and mask of the same shape."""
        predictions, targets = arrays(predictions), arrays(targets)
        options = self.options
        if class_where is not None:
            options["where"] = class_where
        axes = class_axes(self.fn, options, predictions)
        return weighed_losses(
            partial(self._losses, options=options, axes=axes),
            predictions,
            targets,
            axes,
            weights=weights,
            where=self._mask(where, targets),
        )

    def _mask(self, where: ArrayLike | None, targets: Any) -> Array | None:
        mask = None if where is None else checks.boolean("where", where)
        if self.ignore_index is None:
            return mask
        labels = checks.integers("targets", targets, "ignore_index is for integer targets")
        kept = labels != self.ignore_index
        return kept if mask is None else per_example("where", mask, kept.shape) & kept

    def _losses(self, predictions: Any, targets: Any, options: dict, axes: tuple) -> Array:
        losses = floating_losses(self.fn(predictions, targets, **options))
        if losses.ndim == 0 and rank(predictions) > max(1, len(axes)):
            raise ValueError(
                "fn returned a scalar for a batch of predictions: return one loss for each "
                "example, so that they can be weighted, masked and reduced"
            )
        return losses


def floating_losses(losses: Any) -> Array:
    """What a loss function returned, in the dtype it is weighed and reduced in."""
    if not isinstance(losses, jax.Array) or not jnp.issubdtype(losses.dtype, jnp.floating):
        raise TypeError(f"fn must return an array of floating-point losses, got {losses!r}")
    return losses.astype(compute_dtype(losses.dtype))


def weighed_losses(
    fn: Callable[[Any, Any], Array],
    predictions: Any,
    targets: Any,
    axes: tuple[int, ...],
    *,
    weights: ArrayLike | None,
    where: Array | None,
    names: tuple[str, str] = ("weights", "where"),
) -> tuple[Array, Array | None, Array | None]:
    """Losses of inputs without what does not count, and weights and mask of their shape."""
    if where is not None:
        predictions, targets = _replace(where, axes, predictions, targets)
    losses = fn(predictions, targets)
    if where is not None:
        where = per_example(names[1], where, losses.shape)
    if weights is None:
        return losses, None, where
    w = per_example(names[0], jnp.asarray(weights).astype(losses.dtype), losses.shape)
    # The derivative by a weight of zero is the loss, so only a useless one is replaced.
    useful = (w != 0) | jnp.isfinite(jax.lax.stop_gradient(losses))
    predictions, targets = _replace(useful, axes, predictions, targets)
    return fn(predictions, targets), w, where


def arrays(x: Any) -> Any:
    """Arrays for leaves; a (nested) list of numbers is one array, not a tree."""
    numbers = all(isinstance(leaf, (bool, int, float)) for leaf in jax.tree.leaves(x))
    return jnp.asarray(x) if isinstance(x, list) and numbers else jax.tree.map(jnp.asarray, x)


def rank(predictions: Any) -> int:
    return max((x.ndim for x in jax.tree.leaves(predictions)), default=0)


def class_axes(fn: Callable[..., Any], options: dict, predictions: Any) -> tuple[int, ...]:
    """Where the predictions have axes that the losses do not have, if `fn` says so."""
    axis = options.get("axis", _parameter_default(fn, "axis", -1))
    n = rank(predictions)
    return tuple(sorted(checks.axes(axis, n))) if n else ()


def _parameter_default(fn: Callable[..., Any], name: str, default: Any) -> Any:
    parameter = _parameters(fn).get(name)
    return (
        default if parameter is None or parameter.default is parameter.empty else parameter.default
    )


def _parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):  # Some built-in callables have no signature.
        return {}


def _replace(where: Array, axes: tuple[int, ...], predictions: Any, targets: Any) -> Any:
    """Put harmless contents into the examples that are not in `where`."""
    full = rank(predictions)

    def clean(x: Array) -> Array:
        if x.ndim < where.ndim:
            return x
        # A half is inside the domain of every prediction: logits, probabilities, rates.
        fill = 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else 0
        mask = _along_examples(where, x.shape, axes if x.ndim == full else ())
        shape = jnp.broadcast_shapes(mask.shape, x.shape)
        mask, x = jnp.broadcast_to(mask, shape), jnp.broadcast_to(x, shape)
        return jnp.where(mask, x, jnp.asarray(fill, x.dtype))

    return jax.tree.map(clean, predictions), jax.tree.map(clean, targets)


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


def check_options(fn: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = _parameters(fn)
    if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [p.name for p in list(parameters.values())[2:]]
    checks.check_keywords(getattr(fn, "__name__", str(fn)), options, known)
