"""`Loss`: any function of per-example losses, with settings, weights, masks and a reduction."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxloss._core import checks, examples, inputs
from jaxloss._core.declare import declaration
from jaxloss._core.reduce import (
    ClassReduction,
    Reduction,
    SequenceReduction,
    check_reduction,
    per_example,
    reduce_losses,
    segments_of,
    total_and_size,
)
from jaxloss._core.split import of_label
from jaxloss._mean import Mean

Options = tuple[tuple[str, Any], ...]


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
            "weighted_mean" (over the sum of their weights). With `class_weights`,
            "class_weighted_mean": over the sum of the weights of the labels, as torch's mean; a
            "mean" is over their number. Of losses of tokens, [..., T]:
            "sequence_mean" (the mean over sequences of each one's mean over its tokens) or
            "sequence_sum" (the mean over sequences of each one's sum). A sequence without a token
            that counts does not count.
        axis_name: mapped axes (of `shard_map`, `pmap` or `vmap`) over which a mean counts.
            Each device then returns its share, and the shares add up to the mean.
        ignore_index: examples with this integer target are masked.
        **options: passed on to `fn`.

    Calling it takes `(predictions, targets)`, or what else `fn` takes for each example (as
    `gaussian_nll` a variance; see `takes`), by position or name, and, keyword-only:

    - `weights`: one for each example, or for the leading axes of the losses. An example of
      weight zero adds nothing, even if it holds NaN, but counts in "mean".
    - `where`: booleans, likewise. A masked example adds nothing and does not count. Of a `fn`
      whose examples have parts, the items of a list, the tokens of a sequence
      (`level="sequence"`) or the pixels of an image, also a mask of these: an example without any
      is masked.
    - `class_where`: passed on to `fn` as its mask of classes.
    - `segments`: for the reductions of sequences, where several are packed into a row: integers
      of the shape of the losses. Tokens of one row with the same number are a sequence; by
      default all tokens of a row are. A sequence has to be in one row.

    Where examples meet each other, as embeddings do, one that is masked or has weight zero does
    not exist for the others either, and `axis_name` is also `fn`'s.

    An empty or fully masked batch gives 0. `parts` returns a mean as its total and its size.

    Raises:
        TypeError: `fn` is not callable or does not take the options.
        ValueError: an unknown reduction; weights or masks that do not fit the losses; a `fn`
            that returns a scalar for a batch, which could not be weighted.

    Masked examples, and those of weight zero whose loss is not finite, are replaced before
    `fn` is differentiated, so that none of its derivatives can turn them into NaN. For that
    their place in the arguments must be known: `takes` declares it. A `fn` without a declaration
    takes `predictions`, which have the axes of the losses, with the class axes put in at `axis`
    (an option or a default of `fn`; the last, if it has none), and `targets`.

    >>> import jax.numpy as jnp, jaxloss
    >>> loss = jaxloss.Loss(jaxloss.softmax_cross_entropy_with_integer_labels, ignore_index=-1)
    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0], [jnp.nan, 0.0]])
    >>> print(loss(logits, jnp.array([0, 1, -1])))
    0.41003758
    """

    fn: Callable[..., Array]
    reduction: Reduction | SequenceReduction | ClassReduction
    axis_name: str | tuple[str, ...] | None
    ignore_index: int | None
    static_options: Options
    numeric_options: Options

    def __init__(
        self,
        fn: Callable[..., Array],
        reduction: Reduction | SequenceReduction | ClassReduction = "mean",
        *,
        axis_name: str | tuple[str, ...] | None = None,
        ignore_index: int | None = None,
        static_options: Options = (),
        numeric_options: Options = (),
        **options: Any,
    ):
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {type(fn).__name__}")
        _check_order(fn)
        check_reduction(reduction, sequences=True, classes=True)
        given = {**dict(static_options), **options}
        examples.check_options(fn, {**dict(numeric_options), **given})
        numeric = {k: v for k, v in given.items() if _is_leaf(k, v)}
        static = {k: v for k, v in given.items() if k not in numeric}
        numeric = {k: v for k, v in numeric_options if k not in given} | numeric
        pairs = (tuple(sorted(some.items())) for some in (static, numeric))
        self._set(fn, reduction, axis_name, ignore_index, *pairs)

    def _set(self, *values: Any) -> None:
        for field, value in zip(dataclasses.fields(self), values, strict=True):
            object.__setattr__(self, field.name, value)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.static_options) | dict(self.numeric_options)

    def replace(self, **changes: Any) -> "Loss":
        """The same loss with another function, reduction, `ignore_index` or other options.

        >>> import jaxloss
        >>> loss = jaxloss.Loss(jaxloss.huber_loss, delta=2.0)
        >>> print(loss.replace(reduction="sum", delta=0.5))
        Loss(huber_loss, 'sum', delta=0.5)
        """
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        given = [getattr(self.fn, "__name__", repr(self.fn)), repr(self.reduction)]
        fields = {"axis_name": self.axis_name, "ignore_index": self.ignore_index}
        given += [f"{k}={v!r}" for k, v in fields.items() if v is not None]
        given += [f"{k}={_written(v)}" for k, v in sorted(self.options.items())]
        return f"Loss({', '.join(given)})"

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
        *operands: Any,
        weights: ArrayLike | None = None,
        where: ArrayLike | None = None,
        class_where: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        **per_example: Any,
    ) -> Array:
        masks = weights, where, class_where, segments
        losses, of_losses = self._weighed(operands, per_example, *masks)
        return reduce_losses(losses, self.reduction, axis_name=self.axis_name, **of_losses)

    def parts(
        self,
        *operands: Any,
        weights: ArrayLike | None = None,
        where: ArrayLike | None = None,
        class_where: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        **per_example: Any,
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
        masks = weights, where, class_where, segments
        losses, of_losses = self._weighed(operands, per_example, *masks)
        return Mean(*total_and_size(losses, self.reduction, **of_losses))

    def _weighed(
        self, operands: Any, named: Any, weights: Any, where: Any, class_where: Any, segments: Any
    ) -> tuple[Array, dict[str, Any]]:
        """Losses, and weights, mask and segments of them."""
        takes = declaration(self.fn)
        if segments is not None and takes is not None and "segments" in takes.operands:
            named, segments = named | {"segments": segments}, None
        call = examples.call(self.fn, operands, named, self._call_options(class_where))
        losses, weights, where = call.weighed(weights, self._mask(where, call))
        segments, of_labels = segments_of(segments, losses.shape), None
        if self.reduction == "class_weighted_mean":
            of_labels = _of_labels(call, losses)
        of_losses = {"weights": weights, "where": where, "segments": segments}
        return losses, of_losses | {"of_labels": of_labels}

    def _call_options(self, class_where: ArrayLike | None) -> dict[str, Any]:
        options, takes = self.options, declaration(self.fn)
        if takes is not None and takes.together and "axis_name" in examples.parameters(self.fn):
            # The rows of all devices meet each other.
            options = {"axis_name": self.axis_name} | options
        if class_where is None:
            return options
        if takes is not None and not takes.has("row", "pixels"):
            raise TypeError(f"{self.fn.__name__} has no mask of classes: give its mask as where")
        name = "class_where" if "class_where" in examples.parameters(self.fn) else "where"
        return options | {name: class_where}

    def _mask(self, where: ArrayLike | None, call: examples.Call) -> Array | None:
        mask = None if where is None else checks.boolean("where", where)
        if self.ignore_index is None:
            return mask
        labels = checks.integers("targets", call.labels, "ignore_index is for integer targets")
        mask = None if mask is None else per_example("where", mask, labels.shape)
        return inputs.not_ignored(mask, labels, self.ignore_index)


def _of_labels(call: examples.Call, losses: Array) -> Array:
    """The weights of the labels' classes, of the shape of the losses."""
    weights = call.options.get("class_weights")
    if weights is None:
        raise ValueError(
            "reduction='class_weighted_mean' divides by the sum of the weights of the labels: give "
            "class_weights, or take 'mean'"
        )
    labels = checks.integers("targets", call.labels, "'class_weighted_mean' is for class numbers")
    each = jnp.asarray(weights, losses.dtype).reshape((1,) * labels.ndim + (-1,))
    each = of_label(each, labels[..., None], labels.ndim)[..., 0]
    return jnp.broadcast_to(each, losses.shape)


def _check_order(fn: Any) -> None:
    """An error for what Keras and TensorFlow call with labels first."""
    fn = getattr(fn, "func", fn)
    of_function = getattr(fn, "__module__", None) or ""
    of_classes = [base.__module__ for base in type(fn).__mro__]
    if any(name.startswith(("jaxloss.keras", "jaxloss.tf")) for name in (of_function, *of_classes)):
        name = f"{of_function}.{getattr(fn, '__name__', type(fn).__name__)}"
        raise TypeError(
            f"Loss passes predictions first, but {name} takes labels first: give Loss the function "
            f"of jaxloss, or use it as it is, or from jaxloss.keras.LossFunctionWrapper"
        )


def _written(option: Any) -> str:
    """As it is written in a program."""
    if isinstance(option, (np.ndarray, jax.Array)) and not isinstance(option, Tracer):
        return f"jnp.array({option.tolist()}, {option.dtype.name!r})"
    return getattr(option, "__name__", repr(option))
