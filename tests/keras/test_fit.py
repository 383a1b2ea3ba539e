"""`model.compile` with these losses: against Keras's own, masked, weighed, saved and loaded."""

import functools
import os
import subprocess
import sys

import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxloss
import jaxloss.keras
from jaxloss.keras import as_keras_loss

pytestmark = [
    pytest.mark.usefixtures("implicit_promotions"),
    # Of Keras's variables, when a model is saved.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 5)).astype("f")
CLASSES = RNG.integers(0, 3, 12).astype(np.int32)
ONE_HOT = np.eye(3, dtype="f")[CLASSES]
BINARY = RNG.integers(0, 2, (12, 1)).astype("f")
TARGETS = 3 * RNG.normal(size=(12, 2)).astype("f")
integer_ce = jaxloss.softmax_cross_entropy_with_integer_labels


def close(got, want, rtol=1e-6, atol=1e-7):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def dense(outputs, activation=None, **options):
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(8, "tanh", **options)
    return keras.Sequential(
        [keras.Input((5,)), hidden, keras.layers.Dense(outputs, activation, **options)]
    )


def curve(model, loss, y, steps=20, rate=0.1, x=X, run_eagerly=False, **fit):
    """The loss of every step of gradient descent on the whole batch."""
    model.compile(keras.optimizers.SGD(rate), loss, run_eagerly=run_eagerly)
    settings = {"batch_size": len(x), "epochs": steps, "shuffle": False, "verbose": 0}
    return model.fit(x, y, **settings, **fit).history["loss"]


def of(fn, **options):
    return jaxloss.Loss(fn, **options)


ours, theirs = jaxloss.keras, keras.losses


@pytest.mark.parametrize(
    ("outputs", "activation", "y", "reference", "losses"),
    [
        (
            1,
            None,
            BINARY,
            theirs.BinaryCrossentropy(from_logits=True),
            [jaxloss.sigmoid_binary_cross_entropy, ours.BinaryCrossentropy(from_logits=True)],
        ),
        (
            1,
            "sigmoid",
            BINARY,
            theirs.BinaryCrossentropy(),
            [jaxloss.binary_cross_entropy, "binary_crossentropy"],
        ),
        (
            3,
            None,
            ONE_HOT,
            theirs.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
            [ours.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)],
        ),
        (
            3,
            "softmax",
            ONE_HOT,
            theirs.CategoricalCrossentropy(),
            [jaxloss.categorical_cross_entropy, "CategoricalCrossentropy"],
        ),
        (
            3,
            None,
            CLASSES,
            theirs.SparseCategoricalCrossentropy(from_logits=True),
            [integer_ce, ours.SparseCategoricalCrossentropy(from_logits=True)],
        ),
        (
            3,
            "softmax",
            CLASSES,
            theirs.SparseCategoricalCrossentropy(),
            ["sparse_categorical_crossentropy"],
        ),
        (2, None, TARGETS, theirs.MeanSquaredError(), [jaxloss.squared_error, "mse"]),
        (
            2,
            None,
            TARGETS,
            theirs.Huber(delta=0.7),
            [jaxloss.Loss(jaxloss.huber_loss, delta=0.7), ours.Huber(delta=0.7)],
        ),
    ],
    ids=["bce logits", "bce", "cce logits", "cce", "scce logits", "scce", "mse", "huber"],
)
@pytest.mark.few(3)
def test_the_same_curve_as_keras(outputs, activation, y, reference, losses):
    want = curve(dense(outputs, activation), reference, y)
    assert want[-1] < 0.9 * want[0]
    for loss in losses:
        close(curve(dense(outputs, activation), as_keras_loss(loss), y), want)


def tokens(seed=0):
    x = np.random.default_rng(seed).integers(0, 10, (6, 7)).astype(np.int32)
    return x, (x % 4).astype(np.int32)


@keras.saving.register_keras_serializable("tests")
class Spoil(keras.layers.Layer):
    """Makes masked steps NaN, and keeps the mask."""

    def __init__(self, **options):
        super().__init__(**options)
        self.supports_masking = True

    def call(self, x, mask=None):
        return x if mask is None else jnp.where(mask[..., None], x, jnp.nan)


def sequence_model(*extra):
    keras.utils.set_random_seed(0)
    embedding = keras.layers.Embedding(10, 6, mask_zero=True)
    return keras.Sequential(
        [keras.Input((7,), dtype="int32"), embedding, keras.layers.Dense(4), *extra]
    )


@pytest.mark.parametrize(
    "eager", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["jit", "eager"]
)
@pytest.mark.parametrize(
    "loss",
    [integer_ce, ours.SparseCategoricalCrossentropy(from_logits=True)],
    ids=["function", "keras object"],
)
def test_masked_steps_do_not_count(loss, eager):
    x, y = tokens()
    model = sequence_model()
    logits, live = np.asarray(model(x), "d"), x != 0
    assert 0 < live.sum() < live.size
    each = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[..., None], -1)[..., 0]
    model.compile("sgd", as_keras_loss(loss), run_eagerly=eager)
    close(model.evaluate(x, y, verbose=0), each[live].mean())
    # NaN in masked steps changes nothing, in value or gradient.
    settings = {"loss": as_keras_loss(loss), "y": y, "x": x, "steps": 3, "run_eagerly": eager}
    want = curve(sequence_model(), **settings)
    spoiled = sequence_model(Spoil())
    assert np.isnan(np.asarray(spoiled(x))).any()
    close(curve(spoiled, **settings), want)


def test_masks_of_single_examples():
    x = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]], "f")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Masking()])
    loss = as_keras_loss(jaxloss.squared_error)
    model.compile("sgd", loss)
    y = np.array([[1.0, 1.0], [5.0, 5.0], [1.0, 1.0]], "f")
    close(model.evaluate(x, y, verbose=0), (0 + 1 + 4 + 0) / 4)
    close(model.evaluate(x[1:2], y[1:2], verbose=0), 0)
    close(model.evaluate(x[2:], y[2:], verbose=0), 2)


def test_masked_frames_of_ctc_are_paddings():
    """As many as each sequence has."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 10, 3)).astype("f"), np.array([[1, 2, 1], [2, 0, 0]] * 2, np.int32)
    lengths = [10, 7, 8, 5]
    for i, n in enumerate(lengths):
        x[i, n:] = 0
    keras.utils.set_random_seed(0)
    layers = [keras.Input((10, 3)), keras.layers.Masking(), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    logits = np.asarray(model(x))
    each = [ours.ctc(y[i : i + 1], logits[i : i + 1, :n]).item() for i, n in enumerate(lengths)]
    for form in ("ctc", "CTC", ours.ctc, ours.CTC()):
        model.compile("sgd", as_keras_loss(form))
        close(model.evaluate(x, y, verbose=0), np.mean(each))


def test_targets_of_weight_zero_may_be_missing():
    w = (np.arange(12) % 3).astype("f")
    y = np.where(w[:, None] == 0, np.nan, TARGETS).astype("f")
    loss = as_keras_loss(jaxloss.Loss(jaxloss.squared_error))
    want = curve(dense(2), loss, TARGETS, sample_weight=w)
    close(want, curve(dense(2), keras.losses.MeanSquaredError(), TARGETS, sample_weight=w))
    close(curve(dense(2), loss, y, sample_weight=w), want)


def test_class_weights():
    weights = {0: 1.0, 1: 0.2, 2: 5.0}
    got = curve(dense(3), as_keras_loss(integer_ce), CLASSES, 5, class_weight=weights)
    reference = theirs.SparseCategoricalCrossentropy(from_logits=True)
    close(got, curve(dense(3), reference, CLASSES, 5, class_weight=weights))
    each = np.array([weights[int(c)] for c in CLASSES], "f")
    close(got, curve(dense(3), as_keras_loss(integer_ce), CLASSES, 5, sample_weight=each))


SEQUENCES = np.array([[0, 1, 2, 0], [2, 2, 1, 0]], np.int32)
FORMS = [
    as_keras_loss(integer_ce),
    as_keras_loss(jaxloss.Loss(integer_ce, ignore_index=-1)),
    as_keras_loss(lambda t, p: integer_ce(p, t.astype(int))),
    as_keras_loss(ours.SparseCategoricalCrossentropy(from_logits=True)),
    ours.SparseCategoricalCrossentropy(from_logits=True),
    as_keras_loss("ctc"),
]


def zeros(loss, **settings):
    """A model of zero logits for each of four steps."""
    layer = keras.layers.Dense(3, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((4, 1)), layer])
    model.compile("sgd", loss, **settings)
    return model


@pytest.mark.parametrize("loss", FORMS, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("eager", [False, True], ids=["jit", "eager"])
@pytest.mark.few(2)
def test_class_weights_of_sequences_are_refused(loss, eager):
    """Keras makes one weight of each sequence, that of the class of its place with the largest."""
    weights = {0: 1.0, 1: 5.0, 2: 2.0}
    x = np.zeros((2, 4, 1), "f")
    model = zeros(loss, run_eagerly=eager)
    for run in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match=r"shape \(2, 4\), not for each label.*class_weights="):
            run(x, SEQUENCES, class_weight=weights)
    model.fit(x, SEQUENCES, verbose=0)
    # A weight for each sequence that is yours, or for each label, is what it says.
    for w in (np.array([1.0, 3.0]), np.ones((2, 1))):
        model.fit(x, SEQUENCES, sample_weight=w, verbose=0)


def test_class_weights_of_labels():
    x, w = np.zeros((2, 4, 1), "f"), np.array([1.0, 5, 2], "f")
    want = np.log(3) * np.mean(w[SEQUENCES])  # 2.6092
    model = zeros(as_keras_loss(functools.partial(integer_ce, class_weights=w)))
    close(model.evaluate(x, SEQUENCES, verbose=0), want)
    each = zeros(as_keras_loss(integer_ce)).test_on_batch(x, SEQUENCES, w[SEQUENCES])
    close(each, want)


@pytest.mark.parametrize("structure", [dict, pytest.param(list, marks=pytest.mark.slow)])
def test_several_outputs(structure):
    def model():
        keras.utils.set_random_seed(0)
        x = keras.Input((5,))
        a, b = (keras.layers.Dense(n, name=s)(x) for n, s in ((3, "a"), (2, "b")))
        return keras.Model(x, {"a": a, "b": b} if structure is dict else [a, b])

    def pack(a, b):
        return {"a": a, "b": b} if structure is dict else [a, b]

    def total(a, b):
        made = model()
        weights = pack(1.0, 0.5)
        made.compile(keras.optimizers.SGD(0.1), pack(a, b), loss_weights=weights)
        fitted = made.fit(X, pack(CLASSES, TARGETS), epochs=4, batch_size=12, verbose=0)
        return fitted.history

    theirs = total(keras.losses.SparseCategoricalCrossentropy(True), keras.losses.Huber())
    got = total(as_keras_loss(integer_ce), as_keras_loss(jaxloss.huber_loss))
    assert sorted(got) == sorted(theirs)
    for key in got:
        close(got[key], theirs[key])


def test_mixed_precision():
    loss, policy = as_keras_loss(integer_ce), "mixed_bfloat16"
    model = dense(3, dtype=policy)
    assert model(X).dtype == jnp.bfloat16
    logits = np.asarray(model(X), "d")
    want = np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(12), CLASSES])
    model.compile("sgd", loss)
    # Of bfloat16 logits, the loss in float32.
    close(model.evaluate(X, CLASSES, verbose=0), want)
    losses = curve(dense(3, dtype=policy), loss, CLASSES)
    assert losses[-1] < 0.9 * losses[0]
    theirs = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    close(losses, curve(dense(3, dtype=policy), theirs, CLASSES), 1e-2)


def test_eager_run_and_float_labels_and_a_last_batch_of_one():
    want = curve(dense(3), as_keras_loss(integer_ce), CLASSES, 3)
    close(curve(dense(3), as_keras_loss(integer_ce), CLASSES, 3, run_eagerly=True), want)
    close(curve(dense(3), as_keras_loss(integer_ce), CLASSES.astype("d")[:, None], 3), want)
    model = dense(3)
    model.compile("sgd", as_keras_loss(integer_ce))
    whole = model.evaluate(X, CLASSES, batch_size=12, verbose=0)
    close(model.evaluate(X, CLASSES, batch_size=11, verbose=0), whole)
    close(model.evaluate(X, CLASSES, batch_size=4, steps=3, verbose=0), whole)


def test_labels_stay_integers_in_training():
    # Class 257 is 256 in the dtype of this loss, which Keras casts labels to.
    y = np.full(12, 257, np.int32)
    model = dense(300)
    model.layers[-1].bias.assign(5 * np.eye(300)[257])
    model.compile("sgd", as_keras_loss(integer_ce, dtype="bfloat16"))
    logits = np.asarray(model(X), "d")
    want = np.mean(np.log(np.exp(logits).sum(-1)) - logits[:, 257])
    close(model.evaluate(X, y, verbose=0), want, 1e-2)


@keras.saving.register_keras_serializable("tests")
def registered(y_true, y_pred):
    return jnp.mean(jnp.abs(y_pred - y_true) ** 1.5, -1)


@keras.saving.register_keras_serializable("tests")
def predictions_first(predictions, targets, power=1.0):
    return jnp.mean(jnp.abs(predictions - targets) ** power, -1)


def unregistered(y_true, y_pred):
    return jnp.mean((y_pred - y_true) ** 4, -1)


@keras.saving.register_keras_serializable("tests")
class Powered:
    """A configurable callable, as Keras saves them."""

    def __init__(self, power):
        self.power = power

    def __call__(self, y_true, y_pred):
        return jnp.mean(jnp.abs(y_pred - y_true) ** self.power, -1)

    def get_config(self):
        return {"power": self.power}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("tests")
class Cubic(ours.Loss):
    def call(self, y_true, y_pred):
        return jnp.mean(jnp.abs(y_pred - y_true) ** 3, -1)


SAVED = {
    "function": as_keras_loss(jaxloss.squared_error, "sum", "mine"),
    "dtype": as_keras_loss(jaxloss.squared_error, dtype="bfloat16"),
    "Loss": as_keras_loss(jaxloss.Loss(jaxloss.huber_loss, "weighted_mean", delta=0.3)),
    "Loss with an array": as_keras_loss(
        jaxloss.Loss(jaxloss.huber_loss, delta=np.array([[0.3, 2.0]], "f"))
    ),
    "Loss with axes": as_keras_loss(jaxloss.Loss(jaxloss.cosine_distance, axis=(1,))),
    "keras object": as_keras_loss(ours.Huber(delta=0.3), "mean_with_sample_weight"),
    "keras function": as_keras_loss("mae"),
    "callable": as_keras_loss(registered),
    "callable, predictions first": as_keras_loss(jaxloss.Loss(predictions_first, power=1.5)),
    "object of yours": as_keras_loss(Powered(3.0)),
    "subclass of yours": as_keras_loss(Cubic(reduction="sum")),
}


OFTEN = ("dtype", "Loss", "keras object", "callable")


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=[] if f in OFTEN else pytest.mark.slow) for f in SAVED]
)
def test_saved_and_loaded(form, tmp_path):
    model = dense(2)
    curve(model, SAVED[form], TARGETS, 2, rate=0.01)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss, keras.losses.Loss)
    assert loaded.loss.get_config() == SAVED[form].get_config()
    w = np.linspace(0, 2, 12).astype("f")

    def go_on(model):
        settings = {"batch_size": 12, "epochs": 2, "shuffle": False, "verbose": 0}
        return model.fit(X, TARGETS, sample_weight=w, **settings).history["loss"]

    assert go_on(model) == go_on(loaded)


def test_a_callable_that_is_not_registered_is_a_custom_object(tmp_path):
    model = dense(2)
    model.compile("sgd", as_keras_loss(unregistered))
    model.save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match="unregistered"):
        keras.models.load_model(tmp_path / "model.keras")
    scope = {"unregistered": unregistered}
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=scope)
    assert loaded.evaluate(X, TARGETS, verbose=0) == model.evaluate(X, TARGETS, verbose=0)


LOAD = """
import sys
from jaxloss.keras import as_keras_loss
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
x, y = np.load(sys.argv[2]).values()
print("loss", model.evaluate(x, y, verbose=0), model.loss.name)
"""


def test_loaded_in_another_process(tmp_path):
    model = dense(3)
    model.compile("sgd", as_keras_loss(jaxloss.Loss(integer_ce, ignore_index=2)))
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=X, y=CLASSES)
    run = [sys.executable, "-c", LOAD, tmp_path / "model.keras", tmp_path / "data.npz"]
    env = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}  # JAX by itself.
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("loss"), done.stderr[-2000:]
    value, name = done.stdout.split()[1:]
    close(float(value), model.evaluate(X, CLASSES, verbose=0))
    assert name == integer_ce.__name__
