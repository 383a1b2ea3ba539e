"""`get`, `serialize` and `deserialize`: every name, configurations, near misses."""

import json
import pickle

import jax.numpy as jnp
import pytest

from jaxloss import keras


class Mine(keras.Loss):
    def __init__(self, power=2, name=None, reduction="sum_over_batch_size", dtype=None):
        super().__init__(name, reduction, dtype)
        self.power = power

    def call(self, y_true, y_pred):
        return jnp.mean(jnp.abs(y_true - y_pred) ** self.power, -1)

    def get_config(self):
        return super().get_config() | {"power": self.power}


def worst(y_true, y_pred, scale=1.0):
    return scale * jnp.max(jnp.abs(y_true - y_pred), -1)


OTHERS = ("LogitsWarning", "LossFunctionWrapper", "Reduction", "deserialize", "get", "serialize")
NAMES = [name for name in keras.__all__ if name not in OTHERS]
FUNCTIONS = [name for name in NAMES if name.islower()]
CLASSES = [name for name in NAMES if not name.islower()]
ALIASES = {
    "bce": "binary_crossentropy",
    "BCE": "binary_crossentropy",
    "kld": "kl_divergence",
    "KLD": "kl_divergence",
    "kullback_leibler_divergence": "kl_divergence",
    "mae": "mean_absolute_error",
    "MAE": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "MAPE": "mean_absolute_percentage_error",
    "mse": "mean_squared_error",
    "MSE": "mean_squared_error",
    "msle": "mean_squared_logarithmic_error",
    "MSLE": "mean_squared_logarithmic_error",
    "huber_loss": "huber",
    "logcosh": "log_cosh",
}


def test_counts():
    assert len(FUNCTIONS) == 22 and len(CLASSES) == 23


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    fn = getattr(keras, name)
    assert keras.get(name) is fn and keras.deserialize(name) is fn
    entry = {
        "module": "builtins",
        "class_name": "function",
        "config": name,
        "registered_name": "function",
    }
    assert keras.serialize(fn) == entry
    assert keras.get(entry) is keras.deserialize(json.loads(json.dumps(entry))) is fn
    assert pickle.loads(pickle.dumps(fn)) is fn


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name):
    cls = getattr(keras, name)
    for identifier in (name, cls, {"class_name": name, "config": {}}, {"class_name": name}):
        loss = keras.get(identifier)
        assert type(loss) is cls and loss.get_config() == cls().get_config()
    entry = keras.serialize(cls())
    assert entry["module"] == "jaxloss.keras" and entry["class_name"] == name
    # The module is Keras's in its own files.
    entry = json.loads(json.dumps(entry | {"module": "keras.losses"}))
    assert type(keras.deserialize(entry)) is cls


@pytest.mark.parametrize("name", ALIASES)
def test_aliases(name):
    fn = getattr(keras, ALIASES[name])
    assert keras.get(name) is keras.deserialize(name) is getattr(keras, name) is fn


def test_whatever_is_a_loss_already():
    loss = Mine()
    assert keras.get(None) is None and keras.serialize(None) is None
    assert keras.get(loss) is loss and keras.get(worst) is worst
    assert isinstance(keras.get(Mine), Mine)
    with pytest.raises(ValueError, match="not a loss: 3"):
        keras.get(3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MeanSquareError", "did you mean 'MeanSquaredError'"),
        ("sparse_categorical_cross_entropy", "did you mean 'sparse_categorical_crossentropy'"),
        ("Possion", "did you mean 'Poisson'"),
        ("possion", "did you mean 'poisson'"),
        ("crossentropy", "binary_crossentropy"),
        ("ce", "binary_crossentropy"),
        ("mylib_loss", "custom_objects"),
    ],
)
def test_near_misses(name, message):
    for call in (keras.get, keras.deserialize, lambda n: keras.get({"class_name": n})):
        with pytest.raises(ValueError, match=message):
            call(name)


def test_attributes_that_do_not_exist():
    with pytest.raises(AttributeError, match=r"did you mean jaxloss\.keras\.Poisson"):
        keras.Possion  # noqa: B018


def test_custom_objects():
    objects = {"Mine": Mine, "worst": worst}
    assert keras.get("worst", objects) is worst
    assert isinstance(keras.get("Mine", objects), Mine)
    entry = json.loads(json.dumps(keras.serialize(Mine(3, "mine", "sum", "float16"))))
    assert entry["module"] == __name__
    loss = keras.deserialize(entry, objects)
    assert isinstance(loss, Mine)
    assert (loss.power, loss.name, loss.reduction, loss.dtype) == (3, "mine", "sum", "float16")
    # Keras puts a package before the name that it registers.
    assert isinstance(keras.get(entry | {"registered_name": "p>Mine"}, objects), Mine)
    with pytest.raises(ValueError, match="custom_objects"):
        keras.deserialize(entry)
    assert keras.deserialize(keras.serialize(worst), objects) is worst


def test_wrapped_functions():
    loss = keras.LossFunctionWrapper(worst, "sum", dtype="float16", scale=2.0)
    entry = json.loads(json.dumps(keras.serialize(loss)))
    again = keras.deserialize(entry, {"worst": worst})
    assert again.fn is worst and again.get_config() == loss.get_config()
    assert again([[0.0]], [[1.5]]) == 3
    own = keras.LossFunctionWrapper(keras.mean_squared_error)
    assert keras.LossFunctionWrapper.from_config(own.get_config()).fn is keras.mean_squared_error
    with pytest.raises(ValueError, match="no name"):
        keras.serialize(keras.LossFunctionWrapper(lambda t, p: p))


def test_configurations_that_are_wrong():
    with pytest.raises(ValueError, match="class_name"):
        keras.get({"config": {}})
    with pytest.raises(TypeError, match="did you mean 'delta'"):
        keras.get({"class_name": "Huber", "config": {"delt": 1.0}})
    with pytest.raises(ValueError, match="no name"):
        keras.serialize(3)
