"""Whose order the arguments have: Keras's call of ours, and `Loss`'s call of Keras's form."""

import functools
import inspect

import keras
import numpy as np
import pytest
from keras.src.losses.losses import LossFunctionWrapper  # What `compile` makes of a callable.

import jaxloss
import jaxloss.keras
import jaxloss.tf
from jaxloss.keras import as_keras_loss
from jaxloss.keras._identifiers import loss_table
from tests.declared import FUNCTIONS

pytestmark = pytest.mark.usefixtures("implicit_promotions")

X, Y = np.full((3, 4), 0.25, "f"), np.ones((3, 4), "f")
FIRST = r"Keras passes .*, but jaxloss\.{} takes predictions first: .*as_keras_loss"


def takes_two(fn):
    try:
        return bool(inspect.signature(fn).bind(0, 0))
    except TypeError:
        return False


OURS = [fn for fn in FUNCTIONS if takes_two(fn)]


@pytest.mark.parametrize("fn", OURS, ids=lambda f: f.__name__)
def test_functions_of_predictions_first(fn):
    for given in (fn, functools.partial(fn)):
        with pytest.raises(TypeError, match=FIRST.format(fn.__name__)):
            LossFunctionWrapper(given, name="given")(Y, X)
    with pytest.raises(TypeError, match=FIRST.format("Loss")):
        LossFunctionWrapper(jaxloss.Loss(fn), name="given")(Y, X)


def test_a_loss_of_your_own_function():
    with pytest.raises(TypeError, match=FIRST.format("Loss")):
        LossFunctionWrapper(jaxloss.Loss(lambda x, y: (x - y) ** 2), name="given")(Y, X)


@pytest.mark.parametrize(
    "given", [jaxloss.huber_loss, jaxloss.Loss(jaxloss.huber_loss)], ids=["function", "Loss"]
)
def test_compile(given):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    for settings in ({"loss": given}, {"loss": "mse", "metrics": [given]}):
        model.compile("sgd", **settings)
        with pytest.raises(TypeError, match="takes predictions first"):
            model.fit(X, Y, verbose=0)


def test_what_calls_them_itself_is_right():
    def mine(y_true, y_pred):
        return jaxloss.sigmoid_binary_cross_entropy(y_pred, y_true).mean(-1)

    want = np.log1p(np.exp(-0.25))
    for loss in (mine, as_keras_loss(mine), jaxloss.tf.sigmoid_cross_entropy_with_logits):
        got = loss if isinstance(loss, keras.losses.Loss) else LossFunctionWrapper(loss)
        np.testing.assert_allclose(got(Y, X), want, rtol=1e-6)
    bare = LossFunctionWrapper(functools.partial(jaxloss.keras.binary_crossentropy))
    np.testing.assert_allclose(bare(Y, X), -np.log(0.25), rtol=1e-6)


FACES = [
    *(getattr(jaxloss.tf, name) for name in jaxloss.tf.__all__),
    *(loss for loss in loss_table().values() if inspect.isfunction(loss)),
]


@pytest.mark.parametrize("fn", FACES, ids=lambda f: f.__name__)
def test_functions_of_labels_first(fn):
    options = {k: 0.5 for k in ("q", "pos_weight") if k in inspect.signature(fn).parameters}
    for given, more in ((fn, options), (functools.partial(fn, **options), {})):
        with pytest.raises(TypeError, match=rf"Loss passes .*\.{fn.__name__} takes labels first"):
            jaxloss.Loss(given, **more)


CLASSES = [
    c
    for c in (getattr(jaxloss.keras, name) for name in jaxloss.keras.__all__)
    if inspect.isclass(c) and issubclass(c, jaxloss.keras.LossFunctionWrapper)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_classes_of_labels_first(cls):
    made = cls(lambda t, p: p - t) if cls is jaxloss.keras.LossFunctionWrapper else cls()
    with pytest.raises(TypeError, match=f"{cls.__name__} takes labels first"):
        jaxloss.Loss(made)


def test_a_loss_of_what_swaps_them_is_right():
    loss = jaxloss.Loss(lambda p, t: jaxloss.keras.binary_crossentropy(t, p))
    np.testing.assert_allclose(loss(X, Y), -np.log(0.25), rtol=1e-6)
