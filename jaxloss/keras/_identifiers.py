"""Names of losses, those of Keras 3 and of tf.keras, and configurations of losses."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxloss._core import checks
from jaxloss.keras._loss import Loss

ALIASES = {
    **dict.fromkeys(("bce", "BCE"), "binary_crossentropy"),
    **dict.fromkeys(("kld", "KLD", "kullback_leibler_divergence"), "kl_divergence"),
    **dict.fromkeys(("mae", "MAE"), "mean_absolute_error"),
    **dict.fromkeys(("mape", "MAPE"), "mean_absolute_percentage_error"),
    **dict.fromkeys(("mse", "MSE"), "mean_squared_error"),
    **dict.fromkeys(("msle", "MSLE"), "mean_squared_logarithmic_error"),
    "huber_loss": "huber",
    "logcosh": "log_cosh",
}
_NOT_LOSSES = ("LogitsWarning", "Reduction", "deserialize", "get", "serialize")


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """A loss by name, class or configuration.

    Args:
        identifier: a name of a function or class of `jaxloss.keras`, Keras or tf.keras, also
            a short one such as "mse"; a class, of which an instance is made with its defaults;
            a configuration, as `serialize` makes it or `{"class_name": ..., "config": ...}`;
            any other callable; or None.
        custom_objects: functions and classes of yours, by name.

    Returns:
        A callable `(y_true, y_pred)`: a function or an instance; None for None.

    Raises:
        ValueError: the name is not known; one that is near is suggested.

    >>> print(get("mse").__name__, get("Huber"))
    mean_squared_error Huber(name='huber_loss', reduction='sum_over_batch_size', delta=1.0)
    """
    if identifier is None:
        return None
    if isinstance(identifier, Mapping):
        return deserialize(identifier, custom_objects)
    if isinstance(identifier, str):
        identifier = _find(identifier, custom_objects)
    if inspect.isclass(identifier):
        identifier = identifier()
    if not callable(identifier):
        raise ValueError(f"not a loss: {identifier!r}; give a name, a configuration or a callable")
    return identifier


def serialize(loss: Any) -> dict[str, Any] | None:
    """The configuration of a `Loss`, or of a function by its name, in the format of Keras.

    Raises:
        ValueError: a callable that has no name it could be found by, such as a lambda.

    >>> print(serialize(get("mse"))["config"])
    mean_squared_error
    """
    if loss is None:
        return None
    if isinstance(loss, Loss):
        cls, config = type(loss), loss.get_config()
        own = cls.__module__.startswith("jaxloss.keras.")
        module = "jaxloss.keras" if own else cls.__module__
        return _entry(module, cls.__name__, config, None if own else cls.__name__)
    name = getattr(loss, "__name__", None)
    if name is None or not name.isidentifier():
        raise ValueError(
            f"{loss!r} has no name to be saved by: define it with def, or subclass Loss"
        )
    return _entry("builtins", "function", name, "function")


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """What `serialize`, here or in Keras, made the configuration of.

    Args:
        config: a configuration, or a name.
        custom_objects: functions and classes of yours, by name.

    Returns:
        See `get`.

    Raises:
        ValueError: a name is not known. TypeError: a setting is not.

    >>> loss = get({"class_name": "Huber", "config": {"delta": 2.0}})
    >>> print(deserialize(serialize(loss)).delta)
    2.0
    """
    if not isinstance(config, Mapping):
        return get(config, custom_objects)
    if "class_name" not in config:
        raise ValueError(f"a configuration has a class_name, got {dict(config)}")
    name, settings = config["class_name"], config.get("config", {})
    if name == "function":
        return get(settings, custom_objects)
    found = _find(config.get("registered_name") or name, custom_objects, name)
    if not (inspect.isclass(found) and issubclass(found, Loss)):
        return get(found)
    settings = {k: _tuples(v) for k, v in settings.items()}
    if isinstance(settings.get("fn"), (str, Mapping)):
        settings["fn"] = get(settings["fn"], custom_objects)
    return found.from_config(settings)


def _entry(module: str, class_name: str, config: Any, registered: str | None) -> dict[str, Any]:
    entry = {"module": module, "class_name": class_name, "config": config}
    return entry | {"registered_name": registered}


def _find(name: str, custom: Mapping[str, Any] | None, *others: str) -> Callable[..., Any]:
    known = {**loss_table(), **(custom or {})}
    for n in (name, *others):
        if (n := n if n in known else ALIASES.get(n, n)) in known:
            return known[n]
    if name in ("ce", "crossentropy"):
        hint = "name its kind: binary_crossentropy, categorical_crossentropy or sparse_..."
    else:
        near = checks.closest(name, [*known, *ALIASES])
        hint = f"did you mean {near!r}? " if near else ""
        hint += "Losses of your own go into custom_objects"
    raise ValueError(f"unknown loss {name!r}; {hint}")


def loss_table() -> dict[str, Any]:
    """The public functions and classes that are losses, by name."""
    from jaxloss import keras

    return {name: getattr(keras, name) for name in keras.__all__ if name not in _NOT_LOSSES}


def _tuples(x: Any) -> Any:
    """Keras's own form of a tuple, as that."""
    if isinstance(x, Mapping) and x.get("class_name") == "__tuple__":
        return tuple(x.get("config", x.get("items", ())))
    return x
