"""Softmax cross-entropies, of integer labels and of distributions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss
from benchmarks.failures._failure import (
    Failure,
    compared,
    f32,
    gradient,
    summed_slope,
    value_and_gradient,
)
from benchmarks.peers import module
from benchmarks.works import OURS

INF, NAN = float("inf"), float("nan")
VOCABULARY = 128256

keras: Any = module("keras")
T5X = "formula of T5X, MaxText"

INTEGER = {
    OURS: jaxloss.softmax_cross_entropy_with_integer_labels,
    "optax": optax.softmax_cross_entropy_with_integer_labels,
    "keras": lambda x, k: keras.losses.sparse_categorical_crossentropy(k, x, from_logits=True),
    "naive": lambda x, k: -jnp.take_along_axis(jax.nn.log_softmax(x), k[..., None], -1)[..., 0],
}
DENSE = {
    OURS: jaxloss.softmax_cross_entropy,
    "optax": optax.softmax_cross_entropy,
    "keras": lambda x, y: keras.losses.categorical_crossentropy(y, x, from_logits=True),
    "naive": lambda x, y: -jnp.sum(y * jax.nn.log_softmax(x), -1),
}
SAFE = {
    OURS: jaxloss.safe_softmax_cross_entropy,
    "optax": optax.safe_softmax_cross_entropy,
}


@jax.custom_vjp
def softmax_minus_targets(x, y, z_loss):
    """The loss and its z-loss, with the gradient that holds for distributions, and none by y."""
    squared = z_loss * jax.nn.logsumexp(x, -1) ** 2
    return DENSE["naive"](x, y) + squared, squared


def _forward(x, y, z_loss):
    return softmax_minus_targets(x, y, z_loss), (x, y, z_loss)


def _backward(saved, cotangents):
    x, y, z_loss = saved
    normaliser = 2 * z_loss * jax.nn.logsumexp(x, -1, keepdims=True)
    slope = (1 + normaliser) * jax.nn.softmax(x) - y
    # The other cotangent, that of the z-loss, is not used.
    return cotangents[0][..., None] * slope, jnp.zeros_like(y), 0.0


softmax_minus_targets.defvjp(_forward, _backward)

RULES = {
    **DENSE,
    T5X: lambda x, y: softmax_minus_targets(x, y, 0.0)[0],
}


def _ours_with_z_loss(x, y, z_loss):
    loss, k = INTEGER[OURS], jnp.argmax(y)
    return loss(x, k, z_loss=z_loss), loss(x, k, z_loss=z_loss) - loss(x, k)


ONE_TWO_THREE = f32(1, 2, 3)
P = np.exp([1, 2, 3]) / np.sum(np.exp([1, 2, 3]))
Z = 0.5
Z_SLOPE = 2 * Z * np.log(np.sum(np.exp([1, 2, 3]))) * P
EXCLUDED, SECOND = f32(1, 2, -INF), f32(0, 1, 0)
TAIL = 1 / (1 + np.exp(20.0))
MASKED = np.array([True, True, False])
NORMAL = np.asarray(jax.random.normal(jax.random.key(0), (VOCABULARY,), jnp.bfloat16), np.float64)


def _class_of_1001(losses):
    """What the label 1001 is read as: the class of which the loss has a gradient below 0."""
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")
    x, y = jnp.zeros((1, 2000), jnp.bfloat16), jnp.array([1001])
    return jnp.argmin(gradient(lambda x: loss(y, x), x))


def _our_class_of_1001():
    from jaxloss import keras as ours

    return _class_of_1001(ours)


def _first(f, x, k):
    """Loss of a batch of one row."""
    return f(x[None], jnp.array([k]))[0]


FAILURES: list[Failure] = [
    compared(
        "softmax cross-entropy of logits 20, 0, label 0; gradient",
        (TAIL, -TAIL, TAIL),
        lambda f: value_and_gradient(lambda x: f(x[None], jnp.array([0]))[0], f32(20, 0)),
        INTEGER,
    ),
    compared(
        "softmax cross-entropy of logits 20, 0, target 1, 0; gradient",
        (TAIL, -TAIL, TAIL),
        lambda f: value_and_gradient(lambda x: f(x[None], f32(1, 0)[None])[0], f32(20, 0)),
        DENSE,
    ),
    compared(
        "softmax cross-entropy of logits 1e7, 1e7 - 2, label 0",
        0.126928,
        lambda f: _first(f, f32(1e7, 1e7 - 2), 0),
        INTEGER,
    ),
    compared(
        "softmax cross-entropy of logits 1, 2, -inf, target 0, 1, 0",
        0.313262,
        lambda f: f(EXCLUDED[None], SECOND[None]),
        {**DENSE, "optax, safe": SAFE["optax"]},
    ),
    compared(
        "safe softmax cross-entropy of logits 1, 2, -inf: forward mode",
        0.268941,
        lambda f: jax.jvp(lambda x: f(x, SECOND), (EXCLUDED,), (f32(1, 0, 0),))[1],
        SAFE,
    ),
    compared(
        "softmax cross-entropy of logits -inf, -inf, label 0; gradient",
        (INF, 0.0, 0.0),
        lambda f: value_and_gradient(lambda x: _first(f, x, 0), f32(-INF, -INF)),
        INTEGER,
    ),
    *(
        compared(
            f"softmax cross-entropy of three classes, label {label}; gradient",
            (NAN,) * 4,
            lambda f, k=label: value_and_gradient(lambda x: _first(f, x, k), f32(0.5, 1, 2)),
            INTEGER,
        )
        for label in (-1, 3, -100)
    ),
    compared(
        "softmax cross-entropy of a label whose class is masked",
        INF,
        lambda f: f(f32(0.5, 1, 2), jnp.array(2), where=MASKED),
        {k: INTEGER[k] for k in (OURS, "optax")},
    ),
    compared(
        "softmax cross-entropy of float16 zeros, 128,256 classes",
        np.log(VOCABULARY),
        lambda f: _first(f, jnp.zeros(VOCABULARY, jnp.float16), 5),
        INTEGER,
    ),
    compared(
        "softmax cross-entropy of bfloat16 normals, 128,256 classes",
        np.log(np.sum(np.exp(NORMAL))) - NORMAL[7],
        lambda f: _first(f, jnp.asarray(NORMAL, jnp.bfloat16), 7),
        INTEGER,
        tolerance=1e-5,
    ),
    Failure(
        what="class that bfloat16 losses read from the label 1001",
        right=1001.0,
        ours=_our_class_of_1001,
        peers={"keras": lambda: _class_of_1001(keras.losses)},
        tolerance=1e-6,
    ),
    compared(
        "softmax cross-entropy, gradient of a target that is all 0",
        (0.0, 0.0, 0.0),
        lambda f: summed_slope(f, ONE_TWO_THREE, f32(0, 0, 0)),
        RULES,
    ),
    compared(
        "softmax cross-entropy, gradient of the target 1, 1, 0",
        tuple(2 * P - [1, 1, 0]),
        lambda f: summed_slope(f, ONE_TWO_THREE, f32(1, 1, 0)),
        RULES,
    ),
    compared(
        "softmax cross-entropy, gradient by the target",
        tuple(-np.log(P)),
        lambda f: gradient(lambda y: jnp.sum(f(ONE_TWO_THREE, y)), f32(0.2, 0.3, 0.5)),
        RULES,
    ),
    compared(
        "softmax cross-entropy, forward mode",
        P[0] - 0.2,
        lambda f: jax.jvp(lambda x: f(x, f32(0.2, 0.3, 0.5)), (ONE_TWO_THREE,), (f32(1, 0, 0),))[1],
        RULES,
    ),
    compared(
        "gradient of the z-loss alone",
        tuple(Z_SLOPE),
        lambda f: gradient(lambda x: f(x, f32(1, 0, 0), Z)[1], ONE_TWO_THREE),
        {OURS: _ours_with_z_loss, T5X: softmax_minus_targets},
    ),
    compared(
        "smoothed labels without any class",
        (0.0, 0.0),
        lambda f: f(f32(1, 0), 0.1, where=np.array([False, False])),
        {OURS: jaxloss.smooth_labels, "optax": optax.smooth_labels},
    ),
]
