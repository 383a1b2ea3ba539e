"""`as_keras_loss`: a loss of this library, or of yours, for `model.compile` of Keras on JAX.

Importing this module imports Keras, on the JAX backend unless another was chosen, registers
what Keras is to save and load, and makes the classes of `jaxloss.keras` losses of Keras too, so
that `compile` hands them weights and masks. It is imported as soon as Keras is.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

import jaxloss
import jaxloss.keras
import jaxloss.tf
from jaxloss._core.declare import declaration
from jaxloss._names import short
from jaxloss.keras import _inputs
from jaxloss.keras._identifiers import loss_table
from jaxloss.keras._loss import REDUCTIONS, LossFunctionWrapper, weights_of

os.environ.setdefault("KERAS_BACKEND", "jax")  # Keras reads it once, and defaults to another.

import keras

AnyLoss = str | jaxloss.Loss | jaxloss.keras.Loss | Callable[..., Array]

# First arguments that give away that a function takes its predictions first.
PREDICTIONS = frozenset({"logits", "pred", "predictions", "preds", "y_hat", "y_pred"})


def as_keras_loss(
    loss: AnyLoss,
    reduction: str | None = "auto",
    name: str | None = None,
    dtype: Any = None,
) -> "KerasLoss":
    """A `keras.losses.Loss` for `model.compile`, on Keras's JAX backend.

    Weights, masks (of `Embedding(mask_zero=True)` and the like) and reductions are
    `jaxloss.Loss`'s: rank-one weights are one for each example, NaN under a mask or a weight
    of zero changes nothing, and half precision is computed in float32. Integer labels stay
    integers.

    Args:
        loss: one of

            - a function of `jaxloss`, or `functools.partial` of one with options;
            - a `jaxloss.Loss`, of such a function or of yours, predictions first;
            - what `jaxloss.keras` has: an object, a function, or its name as a string;
            - your own `fn(y_true, y_pred)`, in Keras's order, returning one loss for each
              example. Another library's function of predictions first goes into a
              `jaxloss.Loss`.
        reduction: Keras's names: "sum_over_batch_size" or "mean", "sum",
            "mean_with_sample_weight", "none" or None. "auto" is that of the loss, if it has
            one, else "sum_over_batch_size".
        name: by default that of the loss.
        dtype: of the result, as in Keras; by default `keras.config.floatx()`.

    Returns:
        An object that Keras compiles, saves and loads. A script that loads a model imports
        `jaxloss.keras`, by which the class is registered; a function of yours is loaded if it
        is registered by `keras.saving.register_keras_serializable`, or given in
        `custom_objects`.

    Raises:
        TypeError: it is no loss; a function does not take two arguments, or takes its
            predictions first.
        ValueError: an unknown reduction or name; when called with weights or a mask, a loss
            that is one number for the whole batch, which neither could be applied to.
        RuntimeError: Keras runs on another backend.

    Labels of class numbers may have a last axis of size 1, and may be floats, from a data
    pipeline that casts them. Floats that are not class numbers make their rows NaN, as do
    those from 2**24 on in float32 (2**11 in float16), which may be another label's, rounded.

    >>> import jax.numpy as jnp, jaxloss
    >>> from jaxloss.keras import as_keras_loss
    >>> loss = as_keras_loss(jaxloss.softmax_cross_entropy_with_integer_labels)
    >>> print(loss(jnp.array([0, 1]), jnp.array([[2.0, 0.0], [0.0, 0.0]])))
    0.41003758
    """
    return KerasLoss(loss, reduction, name, dtype)


class _Masked(keras.losses.Loss):
    """Losses times the mask that Keras keeps beside the predictions.

    Only `keras.losses.Loss` has access to that mask.
    """

    def __init__(self, losses: Array):
        super().__init__("masked", "none", losses.dtype.name)
        self.losses = losses

    def call(self, y_true, y_pred):
        return self.losses


def _mask(y_pred: Any) -> Array | None:
    """The mask that Keras keeps beside predictions; of what is no array of JAX, on them."""
    if not isinstance(y_pred, Array):
        mask = getattr(y_pred, "_keras_mask", None)
        return None if mask is None else jnp.asarray(mask, bool)
    one = jnp.ones(())
    masked: Any = _Masked(one)(one, y_pred)
    return None if masked is one else masked != 0


@keras.saving.register_keras_serializable(package="jaxloss")
class KerasLoss(keras.losses.Loss):
    """What `as_keras_loss` returns."""

    def __init__(
        self,
        loss: AnyLoss,
        reduction: str | None = "auto",
        name: str | None = None,
        dtype: Any = None,
    ):
        if keras.backend.backend() != "jax":
            raise RuntimeError(
                f"Keras runs on {keras.backend.backend()}, but jaxloss computes with JAX: set the "
                f'environment variable KERAS_BACKEND="jax" before Keras is imported'
            )
        self.loss = loss = _resolved(loss)
        if reduction == "auto":
            reduction = _own_reduction(loss)
        super().__init__(name or _name(loss), reduction or "none", dtype)
        self._given_dtype = None if dtype is None else self.dtype
        self._run = _bound(loss, self.reduction, self._given_dtype)

    def call(self, y_true: ArrayLike, y_pred: ArrayLike) -> Array:
        """The losses of the examples: not weighted, masked or reduced."""
        run = _bound(self.loss, "none", self._given_dtype)
        return run(y_true, y_pred, None, None).astype(self.dtype)

    def __call__(
        self, y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Array:
        # Not the base class's, which makes labels float32, and multiplies NaN by a mask.
        return self._run(y_true, y_pred, sample_weight, _mask(y_pred)).astype(self.dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            "loss": _serialize(self.loss),
            "reduction": self.reduction,
            "name": self.name,
            "dtype": self._given_dtype,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "KerasLoss":
        return cls(**config | {"loss": _deserialize(config["loss"])})


def _resolved(loss: Any) -> Any:
    """The loss without its spellings: names, classes, and options bound by `partial`."""
    if isinstance(loss, (str, type)):
        loss = jaxloss.keras.get(loss)
    if isinstance(loss, functools.partial) and not loss.args and _is_ours(loss.func):
        loss = jaxloss.Loss(loss.func, **loss.keywords)
    if isinstance(loss, jaxloss.Loss):
        if loss.axis_name is not None:
            raise ValueError(f"Keras has no mapped axis {loss.axis_name!r}: leave axis_name out")
        return loss
    if isinstance(loss, jaxloss.keras.Loss):
        return loss
    if isinstance(loss, keras.losses.Loss):
        raise TypeError(f"{loss.name} is a loss of Keras already: compile takes it as it is")
    if not callable(loss):
        raise TypeError(f"a loss is a function, a Loss or a name, got {type(loss).__name__}")
    _check_arguments(loss)
    return loss


def _is_ours(fn: Any) -> bool:
    """Of this library, predictions first: not of `jaxloss.keras` or `jaxloss.tf`."""
    return (getattr(fn, "__module__", None) or "").startswith("jaxloss._")


def _check_arguments(fn: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # Some built-in callables have no signature.
        return
    name = _name(fn)
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(_other_arguments(name, signature)) from None
    first = next(iter(signature.parameters))
    if first in PREDICTIONS and not _is_ours(fn):
        raise TypeError(
            f"{name} takes {first!r} first, but Keras passes (y_true, y_pred): give "
            f"jaxloss.Loss({name}), which passes predictions first"
        )


def _other_arguments(name: str, signature: inspect.Signature) -> str:
    required = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    *others, last = required or ["nothing"]
    taken = f"{', '.join(others)} and {last}" if others else last
    same = [n for n in jaxloss.keras.__all__ if n.islower() and short(n) == short(name)]
    return (
        f"{name} takes {taken}, but Keras passes y_true and y_pred: give a function of these two "
        f"that calls it" + "".join(f", or {n!r}, Keras's own form of it" for n in same)
    )


def _name(loss: Any) -> str:
    fn = loss.fn if isinstance(loss, jaxloss.Loss) else loss
    return next(
        str(name)
        for x in (fn, getattr(fn, "func", None), type(fn))
        if (name := getattr(x, "name", None) or getattr(x, "__name__", None))
    )


def _own_reduction(loss: Any) -> str | None:
    if isinstance(loss, jaxloss.Loss):
        for name, reduction in REDUCTIONS.items():
            if name and reduction == loss.reduction:
                return name
        raise ValueError(
            f"Keras has no reduction for {loss.reduction!r} of {loss!r}: give as_keras_loss a "
            f"function of (y_true, y_pred) that returns its losses, or another reduction"
        )
    return loss.reduction if isinstance(loss, jaxloss.keras.Loss) else "sum_over_batch_size"


def _bound(loss: Any, reduction: str, dtype: str | None) -> Callable[..., Array]:
    """The loss as a function of labels, predictions, sample weights and a mask."""
    loss = _as_class(loss)
    if isinstance(loss, jaxloss.keras.Loss):
        config = loss.get_config() | {"reduction": reduction}
        return type(loss).from_config(config if dtype is None else config | {"dtype": dtype})
    if not isinstance(loss, jaxloss.Loss) and not _is_ours(loss):
        return LossFunctionWrapper(loss, reduction, dtype=dtype)
    loss = loss if isinstance(loss, jaxloss.Loss) else jaxloss.Loss(loss)
    loss = loss.replace(reduction=REDUCTIONS[reduction])
    # Half precision is for the result only.
    dtype = None if dtype is None or jnp.finfo(dtype).bits < 64 else dtype
    takes = declaration(loss.fn)
    numbered = loss.ignore_index is not None or (takes is not None and takes.has("labels"))
    align = _class_numbers if numbered else _inputs.aligned

    def run(y_true, y_pred, weights, mask):
        y_true, y_pred = align(jnp.asarray(y_true), jnp.asarray(y_pred, dtype))
        weights = None if weights is None else weights_of(weights, y_true, y_pred)
        return loss(y_pred, y_true, weights=weights, where=mask)

    return run


def _as_class(loss: Any) -> Any:
    """Of a function of `jaxloss.keras` its class, which knows what a mask of it means."""
    fn, options = loss, {}
    if isinstance(loss, functools.partial) and not loss.args:
        fn, options = loss.func, loss.keywords
    for made in _made():
        if made.fn is fn and options.keys() <= made.get_config().keys():
            return type(made)(**options)
    return loss


@functools.cache
def _made() -> list[LossFunctionWrapper]:
    """One of each class of `jaxloss.keras` that is one of a function."""
    public = [getattr(jaxloss.keras, name) for name in jaxloss.keras.__all__]
    base = LossFunctionWrapper
    classes: list[Any] = [c for c in public if isinstance(c, type) and issubclass(c, base)]
    return [c() for c in classes if c is not base]


def _class_numbers(y: Array, x: Array) -> tuple[Array, Array]:
    """Integer labels, one for each row; Keras may give them a last axis of size 1."""
    return _inputs.class_ids(_inputs.row_labels(y, x.ndim, -1)), x


@functools.cache
def _public() -> dict[str, Any]:
    modules = jaxloss, jaxloss.keras, jaxloss.tf
    return {f"{m.__name__}.{name}": getattr(m, name) for m in modules for name in m.__all__}


def _serialize(loss: Any) -> Any:
    """Ours by public names, yours by Keras's own registration."""
    for name, function in _public().items():
        if loss is function:
            return name
    if isinstance(loss, jaxloss.Loss):
        options = keras.saving.serialize_keras_object(loss.options)
        config = {"fn": _serialize(loss.fn), "ignore_index": loss.ignore_index, "options": options}
        return {"jaxloss.Loss": config}
    if type(loss) in _public().values():
        return {"jaxloss.keras": jaxloss.keras.serialize(loss)}
    return keras.saving.serialize_keras_object(loss)


def _deserialize(config: Any) -> Any:
    if isinstance(config, str):
        return _public()[config]
    if "jaxloss.keras" in config:
        return jaxloss.keras.deserialize(config["jaxloss.keras"])
    if "jaxloss.Loss" in config:
        inner = config["jaxloss.Loss"]
        options = keras.saving.deserialize_keras_object(inner["options"])
        # Saved as JSON, a tuple of axes comes back as a list.
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return jaxloss.Loss(
            _deserialize(inner["fn"]), ignore_index=inner["ignore_index"], **options
        )
    return keras.saving.deserialize_keras_object(config)


def _join() -> None:
    """Make ours losses of Keras, by which it knows what to hand them, and how to save them."""
    ours = jaxloss.keras.Loss
    if keras.losses.Loss not in ours.__bases__:
        ours.__bases__ = (*ours.__bases__, keras.losses.Loss)
        ours._mask_of = staticmethod(_mask)
    for loss in loss_table().values():
        keras.saving.register_keras_serializable("jaxloss")(loss)


if keras.backend.backend() == "jax":
    _join()
