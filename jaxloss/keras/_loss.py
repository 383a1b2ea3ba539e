"""The base of Keras's loss classes: conversion, weights, masks, reductions, configurations."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import callers, checks, reduce
from jaxloss._core.examples import (
    arrays,
    check_options,
    class_axes,
    fill_trees,
    floating_losses,
    rank,
    weighed_losses,
)
from jaxloss._core.numerics import compute_dtype
from jaxloss.keras._inputs import aligned

REDUCTIONS: dict[str | None, reduce.Reduction] = {
    "sum_over_batch_size": "mean",
    "mean": "mean",
    "auto": "mean",
    "sum": "sum",
    "mean_with_sample_weight": "weighted_mean",
    "none": "none",
    None: "none",
}


class Reduction:
    """The names of reductions, as in tf.keras."""

    AUTO = "auto"
    NONE = "none"
    SUM = "sum"
    SUM_OVER_BATCH_SIZE = "sum_over_batch_size"


class _Checked:
    """A class whose constructor suggests the name of a setting that does not exist."""

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        del args
        parameters = inspect.signature(cls.__init__).parameters
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            checks.check_keywords(cls.__name__, settings, list(parameters)[1:])
        return super().__new__(cls)


class Loss(_Checked):
    """Base class of losses: `call(y_true, y_pred)` is weighed, masked and reduced.

    Args:
        name: by default that of the class, in snake case.
        reduction: "sum_over_batch_size" or "mean", over examples that are not masked;
            "mean_with_sample_weight", over the sum of their weights; "sum"; "none" or None.
            "auto", of tf.keras, is the first.
        dtype: of the result, and if it has more than 32 bits, of the computation. By default
            float32, or float64 for float64 predictions. A Keras dtype policy will do.

    Calling it takes `(y_true, y_pred)`, arrays, (nested) lists of numbers or trees of arrays, and

    - `sample_weight`: one for each example, or for the leading axes of the losses, or one for
      all. An example of weight zero adds nothing, even if it holds NaN, but counts in "mean".
    - `mask`: booleans, likewise; by default the mask that Keras put on `y_pred`, if any. A
      masked example adds nothing, has no derivative and does not count.

    Floating labels have the dtype of the computation in `call`, integers keep theirs.

    Raises:
        TypeError: an unknown setting. ValueError: an unknown reduction; weights or masks that
        do not fit the losses, or for a `call` that returns one number for the batch.

    >>> import jax.numpy as jnp
    >>> class Cubic(Loss):
    ...     def call(self, y_true, y_pred):
    ...         return jnp.mean(jnp.abs(y_pred - y_true) ** 3, axis=-1)
    >>> print(Cubic()([[0.0], [0.0]], [[1.0], [3.0]], sample_weight=[1.0, 2.0]))
    27.5
    """

    def __init__(
        self,
        name: str | None = None,
        reduction: str | None = "sum_over_batch_size",
        dtype: Any = None,
    ):
        if reduction not in REDUCTIONS:
            near = checks.closest(str(reduction), [r for r in REDUCTIONS if r])
            hint = f"did you mean {near!r}?" if near else f"give one of {list(REDUCTIONS)}"
            raise ValueError(f"Invalid value for argument reduction: {reduction!r}; {hint}")
        self.name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()
        self.reduction = reduction
        self._dtype = _floating(dtype)

    @property
    def dtype(self) -> str | None:
        """The name of the dtype asked for, or None."""
        return self._dtype

    def call(self, y_true: Any, y_pred: Any) -> Array:
        """One loss for each example: what a subclass defines."""
        raise NotImplementedError(f"{type(self).__name__} does not define call(y_true, y_pred)")

    def __call__(
        self,
        y_true: Any,
        y_pred: Any,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        **settings: Any,
    ) -> Array:
        for setting in settings:
            raise TypeError(
                f"{setting!r} is not an argument of the call: give it to the constructor, as in "
                f"{type(self).__name__}({setting}=...)(y_true, y_pred)"
            )
        masks = [m for m in (self._mask_of(y_pred), mask) if m is not None]
        y_true, y_pred = self._converted(y_true, y_pred)
        weights = None if sample_weight is None else weights_of(sample_weight, y_true, y_pred)
        where = None
        for m in masks:
            m = leading(m)
            where = both(where, m if m.dtype == jnp.bool_ else m != 0)
        losses, weights, where = self._weighed(y_true, y_pred, weights, where)
        loss = reduce.reduce_losses(
            losses, REDUCTIONS[self.reduction], weights=weights, where=where
        )
        return loss if self._dtype is None else loss.astype(self._dtype)

    @staticmethod
    def _mask_of(y_pred: Any) -> Array | None:
        """The mask that Keras put on predictions; where Keras is, it is asked for it."""
        return getattr(y_pred, "_keras_mask", None)

    def _converted(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Arrays of the dtype of the computation; integer labels keep theirs."""
        y_true, y_pred = arrays(y_true), arrays(y_pred)
        leaves = [x.dtype for x in jax.tree.leaves(y_pred)]
        dtype = self._dtype or jnp.result_type(*(d if _is_float(d) else float for d in leaves))
        dtype = compute_dtype(dtype)
        floats = jax.tree.map(lambda t: t.astype(dtype) if _is_float(t.dtype) else t, y_true)
        return floats, jax.tree.map(lambda p: p.astype(dtype), y_pred)

    def _class_axes(self, y_pred: Any) -> tuple[int, ...]:
        """Axes of the predictions that losses do not have."""
        return class_axes(self.call, {}, y_pred)

    def _weighed(
        self, y_true: Any, y_pred: Any, weights: Array | None, where: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """Losses, with weights and a mask of their shape."""
        axes = self._class_axes(y_pred)
        each = where is not None or (weights is not None and weights.ndim > 0)

        def losses_of(arguments):
            y_pred, y_true = arguments
            losses = floating_losses(self.call(y_true, y_pred))
            if each and losses.ndim == 0 and rank(y_pred):
                raise ValueError(self._no_examples())
            return losses

        return weighed_losses(
            losses_of,
            (y_pred, y_true),
            partial(fill_trees, axes=axes),
            weights=weights,
            where=where,
            names=("sample_weight", "mask"),
        )

    def _no_examples(self) -> str:
        return (
            f"{self.name} returned a scalar for a batch, which cannot be weighed or masked: "
            f"return one loss for each example"
        )

    # Once Keras is imported, this class is one of its losses, which are pickled as models are.
    __reduce__ = object.__reduce__

    def get_config(self) -> dict[str, Any]:
        """What `from_config` makes the same loss of, as plain Python values."""
        config = {"name": self.name, "reduction": self.reduction}
        return config if self._dtype is None else config | {"dtype": self._dtype}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(**config)

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({settings})"


class LossFunctionWrapper(Loss):
    """Any function `fn(y_true, y_pred, **options)` of one loss for each example, as a `Loss`.

    Args:
        fn: its arrays are made of one rank, if one of them has or lacks a last axis of size 1.
        reduction, name, dtype: see `Loss`; the name is by default that of the function.
        **kwargs: options of `fn`.

    >>> import jax.numpy as jnp
    >>> worst = LossFunctionWrapper(lambda t, p: jnp.max(jnp.abs(t - p), -1), "sum")
    >>> print(worst([[0.0, 0.0], [0.0, 0.0]], [[1.0, -3.0], [2.0, 0.0]]))
    5.0
    """

    fn: Callable[..., Array]

    def __init__(
        self,
        fn: Callable[..., Array],
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {type(fn).__name__}")
        check_options(fn, kwargs)
        name = name or getattr(fn, "__name__", type(fn).__name__)
        super().__init__(name, reduction, dtype)
        self.fn = fn
        self._fn_kwargs = kwargs

    @property
    def _options(self) -> dict[str, Any]:
        return self._fn_kwargs

    def call(self, y_true: Any, y_pred: Any) -> Array:
        return self.fn(y_true, y_pred, **self._options)

    def _converted(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        y_true, y_pred = super()._converted(y_true, y_pred)
        if isinstance(y_true, jax.Array) and isinstance(y_pred, jax.Array):
            return aligned(y_true, y_pred)
        return y_true, y_pred

    def _class_axes(self, y_pred: Any) -> tuple[int, ...]:
        return class_axes(self.fn, self._options, y_pred)

    def get_config(self) -> dict[str, Any]:
        from jaxloss.keras._identifiers import serialize

        return super().get_config() | {"fn": serialize(self.fn)} | plain(self._options)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        from jaxloss.keras._identifiers import get

        return cls(**{**config, "fn": get(config["fn"])})


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays, of which settings may be made, as lists and numbers."""
    return {
        k: np.asarray(v).tolist() if isinstance(v, (jax.Array, np.ndarray, np.generic)) else v
        for k, v in settings.items()
    }


def _floating(dtype: Any) -> str | None:
    """The name of a floating dtype, given as that, as a dtype, or as a policy of Keras."""
    if dtype is None:
        return None
    dtype = getattr(dtype, "compute_dtype", dtype)
    if isinstance(dtype, str):
        dtype = dtype.removeprefix("mixed_")
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not _is_float(dtype):
        raise TypeError(f"dtype must be floating point, got {dtype}")
    return jnp.dtype(dtype).name


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def leading(x: ArrayLike) -> Array:
    """Without last axes of size 1, which say nothing: (B, 1) is for each example, as (B,) is."""
    x = jnp.asarray(x)
    last = next((a for a in range(x.ndim, 1, -1) if x.shape[a - 1] != 1), min(x.ndim, 1))
    return x.reshape(x.shape[:last])


def weights_of(sample_weight: ArrayLike, y_true: Any, y_pred: Any) -> Array:
    """Sample weights; an error if they are what Keras makes of `class_weight` and sequences."""
    labels = leading(y_true) if isinstance(y_true, jax.Array) else None
    if labels is not None and labels.ndim > 1 and jnp.ndim(y_pred) == labels.ndim + 1:
        _refuse_class_weight(labels.shape)
    return leading(sample_weight)


def _refuse_class_weight(shape: tuple[int, ...]) -> None:
    if callers.weighs_classes():
        raise ValueError(
            f"of class_weight= Keras makes one weight for each of the {shape[0]} rows of labels "
            f"of shape {shape}, not for each label: give the loss class_weights=, as in "
            f"as_keras_loss(functools.partial("
            f"jaxloss.softmax_cross_entropy_with_integer_labels, class_weights=...)), or give "
            f"sample_weight= of the shape of the labels"
        )


def both(a: Array | None, b: Array) -> Array:
    """Two masks of leading axes in one."""
    if a is None:
        return b
    ndim = max(a.ndim, b.ndim)
    a, b = (jnp.expand_dims(m, tuple(range(m.ndim, ndim))) for m in (a, b))
    return a & b
