"""The classes and functions of `jaxloss.keras` as `compile` takes them, without `as_keras_loss`."""

import copy
import importlib
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras.src.backend import set_keras_mask
from keras.src.trainers.compile_utils import CompileLoss

import jaxloss.keras as ours
from jaxloss.keras import as_keras_loss
from jaxloss.keras._identifiers import loss_table
from jaxloss.keras._late import when_imported
from tests.keras.test_parity import CASES

pytestmark = [
    pytest.mark.usefixtures("implicit_promotions"),
    # The same numbers serve all losses.
    pytest.mark.filterwarnings("ignore::jaxloss.keras.LogitsWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]
FIRST = {name: (settings, t, p) for name, settings, t, p in reversed(CASES)}
X = np.arange(1.0, 5, dtype="f")[:, None]


def saved(loss, path):
    """A model that passes on what it gets, compiled and saved."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile("sgd", loss)
    model.save(path)
    return str(path)


def close(got, want, rtol=1e-6):
    np.testing.assert_allclose(got, want, rtol=rtol)


def evaluated(loss, x=X, y=None, model=None, **weights):
    model = model or keras.Sequential([keras.Input((1,)), keras.layers.Activation("linear")])
    model.compile("sgd", loss)
    return model.evaluate(x, 0 * x if y is None else y, verbose=0, **weights)


@pytest.mark.parametrize("loss", [ours.MeanSquaredError(), ours.MeanSquaredError], ids=str)
def test_weights_and_masks_reach_it(loss):
    """Of losses 1, 4, 9, 16, as Keras's own; half of the steps are masked."""
    w = np.array([1.0, 0, 0, 0])
    close(evaluated(loss), 7.5)
    close(evaluated(loss, sample_weight=w), 0.25)
    close(evaluated(keras.losses.MeanSquaredError(), sample_weight=w), 0.25)
    x = np.array([[1.0, 0, 0], [1, 1, 0]], "f")[..., None]
    y = np.where(x == 0, 9, 0).astype("f")
    for reference in (loss, keras.losses.MeanSquaredError()):
        masking = keras.Sequential([keras.Input((3, 1)), keras.layers.Masking()])
        close(evaluated(reference, x, y, masking), 1)
    close(evaluated(ours.MeanSquaredError("sum"), sample_weight=w), 1)
    weighed = ours.MeanSquaredError("mean_with_sample_weight")
    close(evaluated(weighed, sample_weight=np.array([0.0, 0, 3, 1])), (27 + 16) / 4)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.few(2)
def test_every_class_in_compile(name):
    """Weights, masks and integer labels get there as in a call of its own."""
    settings, t, p = FIRST[name]
    if name in ("Dice", "Tversky"):
        settings = {"axis": (1, 2)}
    t, p = (jnp.asarray(a, "float32" if a.dtype == np.float64 else "int32") for a in (t, p))
    loss = getattr(ours, name)(**settings)
    w = jnp.arange(len(p), dtype="float32")
    mask = jnp.arange(len(p)) != 1
    want = loss(t, p, w), loss(t, p, w, mask), jax.grad(lambda p: loss(t, p, w, mask))(p)

    def compiled(p, masked):
        p = p * 1  # A new array, as the outputs of a model are.
        if masked:
            set_keras_mask(p, mask)
        return CompileLoss(loss)(t, p, w)

    for wrap in (lambda f: f, lambda f: jax.jit(f, static_argnums=1)):
        close(wrap(compiled)(p, False), want[0], 2e-6)
        close(wrap(compiled)(p, True), want[1], 2e-6)
        close(wrap(jax.grad(compiled))(p, True), want[2], 1e-5)


def test_one_number_for_a_batch_cannot_be_weighed():
    for loss in (ours.Dice(), ours.Tversky()):
        close(evaluated(loss, X / 8, X / 8), loss(X / 8, X / 8))
        with pytest.raises(ValueError, match="one number for the whole batch"):
            evaluated(loss, X / 8, sample_weight=np.ones(4))


class Cubic(ours.Loss):
    def call(self, y_true, y_pred):
        return jnp.mean(jnp.abs(y_pred - y_true) ** 3, -1)


def test_classes_of_yours():
    close(evaluated(Cubic(), sample_weight=np.array([0.0, 1, 0, 0])), 2)


MADE = {
    name: loss(**FIRST[name][0]) if name in FIRST else loss
    for name, loss in loss_table().items()
    if name in FIRST or name.islower()
}


@pytest.mark.parametrize("name", MADE)
def test_every_loss_is_saved_and_loaded(name):
    loss = MADE[name]
    for wrap in (keras.saving, keras.losses):
        deserialize = getattr(wrap, "deserialize_keras_object", None) or wrap.deserialize
        serialize = getattr(wrap, "serialize_keras_object", None) or wrap.serialize
        loaded = deserialize(serialize(loss))
        if name.islower():
            assert loaded is loss
        else:
            assert type(loaded) is type(loss) and loaded.get_config() == loss.get_config()
    if not name.islower():
        assert isinstance(loss, keras.losses.Loss)
        for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert type(copied) is type(loss) and copied.get_config() == loss.get_config()
        assert as_keras_loss(loss).get_config()["loss"] == {"jaxloss.keras": ours.serialize(loss)}


LOAD = """
import sys
{}
x = 3 * np.ones((4, 1), "float32")
for path in sys.argv[1:]:
    print(keras.models.load_model(path).evaluate(x, 0 * x, verbose=0))
"""
ORDERS = [
    "import numpy as np, jaxloss.keras, keras",
    "import numpy as np, keras, jaxloss.keras",
    "import numpy as np, jaxloss, keras; jaxloss.keras",
]


def test_loaded_in_another_process(tmp_path):
    losses = ours.Huber(delta=2.0), ours.mean_squared_error, as_keras_loss("mse")
    paths = [saved(loss, tmp_path / f"{i}.keras") for i, loss in enumerate(losses)]
    env = os.environ | {"KERAS_BACKEND": "jax"}
    for order in ORDERS:
        run = [sys.executable, "-c", LOAD.format(order), *paths]
        done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
        assert done.stdout.split() == ["4.0", "9.0", "9.0"], done.stderr[-2000:]


def test_what_waits_for_a_module_lets_it_be(tmp_path, monkeypatch):
    told = []
    when_imported("late_module", lambda: told.append("late_module" in sys.modules))
    try:
        with pytest.raises(ModuleNotFoundError, match="late_module"):
            importlib.import_module("late_module")
        (tmp_path / "late_module.py").write_text("x = 1")
        monkeypatch.syspath_prepend(tmp_path)
        assert importlib.import_module("late_module").x == 1 and told == [True]
        assert importlib.reload(sys.modules["late_module"]).x == 1 and told == [True]
        when_imported("late_module", lambda: told.append(None))
        assert told == [True, None]
    finally:
        sys.modules.pop("late_module", None)


def test_the_error_names_the_module(tmp_path):
    path = saved(ours.Huber(), tmp_path / "model.keras")
    code = LOAD.format("import numpy as np, keras")
    run = [sys.executable, "-c", code, path]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300)
    assert "'module': 'jaxloss.keras" in done.stderr
