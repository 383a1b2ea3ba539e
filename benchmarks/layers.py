"""The last layer of a model, `h @ W`, whose outputs a loss takes: the mode "layer"."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FEATURES = 32
# As many numbers are drawn; more repeat them.
DRAWN = 2**20
# What a model of such predictions, as `SAMPLES` calls them, ends in: the function, torch's name and
# arguments for it, and the standard deviation of what it takes. Other predictions are the outputs
# themselves.
ACTIVATIONS: dict[str, tuple[Callable[..., Any], str, dict[str, Any], float]] = {
    "probability": (jax.nn.sigmoid, "sigmoid", {}, 2.0),
    "distribution": (jax.nn.softmax, "softmax", {"dim": -1}, 2.0),
    "log distribution": (jax.nn.log_softmax, "log_softmax", {"dim": -1}, 2.0),
    "positive": (jnp.exp, "exp", {}, 1.0),
}


def over(loss: Callable[..., Any], predictions: str, torch: bool = False) -> Callable[..., Any]:
    """The loss as a function of the layer's weights."""
    activation = _activation(predictions, torch)

    def of_weights(weights, hidden_and_targets):
        hidden, targets = hidden_and_targets
        outputs = jax.tree.map(lambda h, w: activation(h @ w), hidden, weights)
        return loss(outputs, targets)

    return of_weights


def _activation(predictions: str, torch: bool) -> Callable[..., Any]:
    if predictions not in ACTIVATIONS:
        return lambda outputs: outputs
    function, name, options, _ = ACTIVATIONS[predictions]
    return partial(getattr(import_module("torch"), name), **options) if torch else function


def batch(drawn: tuple[Any, Any], predictions: str) -> tuple[Any, Any]:
    """The weights, and (what they multiply, targets), for predictions like those drawn."""
    rng, (x, targets) = np.random.default_rng(1), drawn

    def factors(leaf):
        deviation = ACTIVATIONS[predictions][-1] if predictions in ACTIVATIONS else leaf.std()
        weight = rng.normal(size=(FEATURES, leaf.shape[-1])) * deviation / FEATURES**0.5
        shape = (*leaf.shape[:-1], FEATURES)
        hidden = np.resize(rng.normal(size=min(DRAWN, int(np.prod(shape)))), shape)
        return weight.astype(np.float32), hidden.astype(np.float32)

    leaves, tree = jax.tree.flatten(x)
    weights, hidden = zip(*map(factors, leaves), strict=True)
    return tree.unflatten(weights), (tree.unflatten(hidden), targets)


def matmuls(batch: tuple[Any, Any]) -> list[tuple[int, int, int]]:
    """The outputs and the gradient by the weights, as (rows, inner, columns)."""
    weights, (hidden, _) = batch
    shapes = []
    for w, h in zip(jax.tree.leaves(weights), jax.tree.leaves(hidden), strict=True):
        (features, columns), rows = w.shape, h.size // h.shape[-1]
        shapes += [(rows, features, columns), (features, rows, columns)]
    return shapes
