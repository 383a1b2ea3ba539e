"""Predictions that contradict `from_logits`: a warning eagerly, an error under checkify."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import keras

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(16, 4)) * 2
SOFTMAX = np.asarray(jax.nn.softmax(LOGITS))
SIGMOID = np.asarray(jax.nn.sigmoid(LOGITS))
LABELS = RNG.integers(0, 4, 16)
ONE_HOT = np.eye(4)[LABELS]
BITS = RNG.integers(0, 2, (16, 4))
CASES = [
    (keras.BinaryCrossentropy, BITS, SIGMOID),
    (keras.BinaryFocalCrossentropy, BITS, SIGMOID),
    (keras.CategoricalCrossentropy, ONE_HOT, SOFTMAX),
    (keras.CategoricalFocalCrossentropy, ONE_HOT, SOFTMAX),
    (keras.SparseCategoricalCrossentropy, LABELS, SOFTMAX),
]


def quiet(call, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*args)


@pytest.mark.parametrize(("cls", "labels", "p"), CASES, ids=lambda c: getattr(c, "__name__", ""))
def test_warns_and_names_the_fix(cls, labels, p):
    with pytest.warns(keras.LogitsWarning, match="remove the sigmoid or softmax") as seen:
        cls(from_logits=True)(labels, p)
    assert seen[0].filename == __file__
    with pytest.warns(keras.LogitsWarning, match="from_logits=True"):
        cls()(labels, LOGITS)
    quiet(cls(), labels, p)
    quiet(cls(from_logits=True), labels, LOGITS)
    # Under jit nothing is known, and nothing said.
    quiet(jax.jit(cls(from_logits=True)), labels, p)


@pytest.mark.parametrize(("cls", "labels", "p"), CASES, ids=lambda c: getattr(c, "__name__", ""))
def test_checkify(cls, labels, p):
    def error(x, **options):
        fails = checkify.checkify(jax.jit(cls(**options)), errors=checkify.user_checks)
        return fails(labels, x)[0].get()

    assert "remove the sigmoid or softmax" in error(p, from_logits=True)
    assert "set from_logits=True" in error(LOGITS)
    assert error(p) is None and error(LOGITS, from_logits=True) is None


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros((16, 4)),
        np.full((16, 4), 0.25)[:1],
        np.array([[0.3, 0.7]]),
        np.full((16, 1), 0.5),
        np.ones((16, 4)),
        np.zeros((0, 4)),
        LOGITS,
    ],
    ids=np.shape,
)
def test_what_may_be_logits(logits):
    bits = np.zeros(logits.shape)
    quiet(keras.binary_crossentropy, bits, logits, True)
    if logits.shape[-1] > 1:
        quiet(keras.categorical_crossentropy, bits, logits, True)


@pytest.mark.parametrize(
    "p",
    [
        np.array([[0.5, 0.89, 0.6]]),
        np.array([[1.0002, -0.0002]]),
        np.array([[0.0, 0.0]]),
        np.array([[np.nan, 0.5]]),
    ],
    ids=str,
)
def test_what_may_be_probabilities(p):
    quiet(keras.binary_crossentropy, np.zeros(p.shape), p)
    quiet(keras.categorical_crossentropy, np.zeros(p.shape), p)


def test_other_axes_and_half_precision():
    t, p = ONE_HOT.T[None], SOFTMAX.T[None]
    with pytest.warns(keras.LogitsWarning):
        keras.categorical_crossentropy(t, jnp.asarray(p, jnp.float16), True, axis=1)
    with pytest.warns(keras.LogitsWarning):
        keras.categorical_generalized_cross_entropy(LABELS, LOGITS, 0.5)


def test_one_number():
    quiet(keras.binary_crossentropy, 1.0, 0.5, True)
    with pytest.warns(keras.LogitsWarning):
        keras.binary_crossentropy(1.0, 3.0)
