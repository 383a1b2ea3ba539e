"""Binary cross-entropies, of logits and of probabilities."""

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
from tests.cases._sigmoid import naive_sigmoid

INF = float("inf")

keras: Any = module("keras")
FORMULA = "formula of TensorFlow, AXLearn"
FLAX = "formula of flax's VAE example"


def _keras_binary(x, y, **options):
    y = jnp.expand_dims(jnp.asarray(y, jnp.result_type(x)), -1)
    return keras.losses.binary_crossentropy(y, jnp.expand_dims(x, -1), **options)


def _of_log_sigmoid(x, z):
    log_p = jax.nn.log_sigmoid(x)
    return -(z * log_p + (1 - z) * jnp.log(-jnp.expm1(log_p)))


LOGITS = {
    OURS: jaxloss.sigmoid_binary_cross_entropy,
    "optax": optax.sigmoid_binary_cross_entropy,
    "keras": lambda x, y: _keras_binary(x, y, from_logits=True),
    FORMULA: naive_sigmoid,
    FLAX: _of_log_sigmoid,
}
PROBABILITIES = {OURS: jaxloss.binary_cross_entropy, "keras": _keras_binary}


def _focal(cross_entropy):
    def loss(x, z, gamma=2.0, alpha=None):
        p = jax.nn.sigmoid(x)
        a = 1 if alpha is None else alpha * z + (1 - alpha) * (1 - z)
        return a * (p * (1 - z) + (1 - p) * z) ** gamma * cross_entropy(x, z)

    return loss


def _keras_focal(x, y, gamma=2.0, alpha=None):
    y, x = jnp.expand_dims(y, -1), jnp.expand_dims(x, -1)
    balance = {} if alpha is None else {"apply_class_balancing": True, "alpha": alpha}
    return keras.losses.binary_focal_crossentropy(y, x, gamma=gamma, from_logits=True, **balance)


FOCAL = {
    OURS: jaxloss.sigmoid_focal_loss,
    "optax": optax.losses.sigmoid_focal_loss,
    "keras": _keras_focal,
    FORMULA: _focal(naive_sigmoid),
}
SOFT = np.float32(0.999999)
ONE = jnp.ones(1, jnp.bfloat16)


def _weighted(loss, x, y, w):
    return value_and_gradient(lambda x: loss(x, y, w), x)


FAILURES: list[Failure] = [
    compared(
        "sigmoid cross-entropy, gradient at logit 0 of labels 0, 0.5, 1",
        (0.5, 0.0, -0.5),
        lambda f: summed_slope(f, f32(0, 0, 0), f32(0, 0.5, 1)),
        LOGITS,
    ),
    compared(
        "sigmoid cross-entropy of logit 1e4, label 0.999999",
        1e4 * (1 - float(SOFT)),
        lambda f: f(jnp.float32(1e4), SOFT),
        LOGITS,
        tolerance=1e-5,
    ),
    compared(
        "sigmoid cross-entropy of logits inf, -inf, labels 1, 0",
        (0.0, 0.0),
        lambda f: f(f32(INF, -INF), f32(1, 0)),
        LOGITS,
    ),
    compared(
        "sigmoid cross-entropy of logit 100, label 1",
        0.0,
        lambda f: f(jnp.float32(100), jnp.float32(1)),
        LOGITS,
    ),
    compared(
        "sigmoid cross-entropy of shapes (2, 1) and (2,)",
        "ValueError",
        lambda f: f(jnp.zeros((2, 1)), jnp.zeros(2)),
        {k: LOGITS[k] for k in (OURS, "optax")},
    ),
    compared(
        "focal loss, gradient at logits 0, 0 of labels 0, 1; alpha 0.25",
        tuple((np.log(2) / 4 + 1 / 8) * np.array([0.75, -0.25])),
        lambda f: gradient(lambda x: jnp.sum(f(x, f32(0, 1), gamma=2.0, alpha=0.25)), f32(0, 0)),
        FOCAL,
    ),
    compared(
        "focal loss, gradient at logits inf, -inf of labels 0, 1",
        (1.0, -1.0),
        lambda f: summed_slope(f, f32(INF, -INF), f32(0, 1)),
        FOCAL,
    ),
    compared(
        "focal loss, gradient at float16 logits 6e4, -6e4 of labels 0, 1",
        (1.0, -1.0),
        lambda f: summed_slope(f, jnp.array([6e4, -6e4], jnp.float16), jnp.float16([0, 1])),
        FOCAL,
    ),
    compared(
        "focal loss, gradient by the label at logit 0.3, label 1",
        -0.1246,
        lambda f: jax.grad(f, 1)(jnp.float32(0.3), jnp.float32(1)),
        FOCAL,
    ),
    compared(
        "focal loss of gamma 0.5, gradient at logits 88, -88 of labels 1, 0",
        (0.0, 0.0),
        lambda f: gradient(lambda x: jnp.sum(f(x, f32(1, 0), gamma=0.5)), f32(88, -88)),
        FOCAL,
    ),
    Failure(
        what="cross-entropy of sigmoid(17), label 0: gradient by the logit",
        right=1.0,
        ours=lambda: jax.grad(jaxloss.sigmoid_binary_cross_entropy)(17.0, 0.0),
        peers={
            "keras, of logits": lambda: gradient(lambda x: LOGITS["keras"](x, 0.0), 17.0),
            "keras, of probabilities": lambda: gradient(
                lambda x: PROBABILITIES["keras"](jax.nn.sigmoid(x), 0.0), 17.0
            ),
        },
    ),
    compared(
        "cross-entropy of the bfloat16 probability 1, label 1; gradient",
        (0.0, -1.0),
        lambda f: (f(ONE, ONE), summed_slope(f, ONE, ONE)),
        PROBABILITIES,
    ),
    compared(
        "mean sigmoid cross-entropy with NaN under weight 0: value and gradient",
        (np.log(2) / 2, -0.25, 0.0),
        lambda f: _weighted(f, f32(0, np.nan), f32(1, 1), f32(1, 0)),
        {
            OURS: lambda x, y, w: jaxloss.Loss(jaxloss.sigmoid_binary_cross_entropy)(
                x, y, weights=w
            ),
            "keras": lambda x, y, w: keras.losses.BinaryCrossentropy(from_logits=True)(
                y[:, None], x[:, None], sample_weight=w
            ),
        },
    ),
    compared(
        "mean sigmoid cross-entropy of an empty batch",
        0.0,
        lambda f: f(jnp.zeros((0, 3)), jnp.zeros((0, 3))),
        {
            OURS: jaxloss.Loss(jaxloss.sigmoid_binary_cross_entropy),
            "optax": lambda x, y: jnp.mean(optax.sigmoid_binary_cross_entropy(x, y)),
            "keras": lambda x, y: keras.losses.BinaryCrossentropy(from_logits=True)(y, x),
        },
    ),
]
