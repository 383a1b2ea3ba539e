"""The same numbers as Keras's, to the last digits of float64, and the same signatures."""

import inspect
import itertools
import warnings
from functools import partial

import jax
import numpy as np
import pytest

import jaxloss.keras as ours

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")

RNG = np.random.default_rng(0)
B, T, K = 3, 4, 5
REAL = RNG.normal(size=(2, B, T, K))
RATES = RNG.uniform(0.1, 3, size=(2, B, T, K))
REGIONS = RNG.uniform(size=(2, B, T, K))
ROWS = RNG.dirichlet(np.ones(K), (2, B, T))
BITS = RNG.integers(0, 2, (B, T, K))
CLASSES = RNG.integers(0, K, (B, T))
ONE_HOT = np.eye(K)[CLASSES]
# Saturated and beyond: what is clipped.
EDGES = np.array([[[0.0, 1, 1e-9, 1 - 1e-9], [1, 0, 1e-4, 0.5]]])
SEQUENCES = np.array([[1, 2], [3, 3], [4, 0]])
UNIT = REAL[0].reshape(-1, K) / np.linalg.norm(REAL[0].reshape(-1, K), axis=1, keepdims=True)
CASES = [
    ("MeanSquaredError", {}, *REAL),
    ("MeanAbsoluteError", {}, *REAL),
    ("MeanAbsolutePercentageError", {}, *RATES),
    ("MeanAbsolutePercentageError", {}, np.zeros((1, 2, 4)), EDGES),
    ("MeanSquaredLogarithmicError", {}, *RATES),
    ("MeanSquaredLogarithmicError", {}, *REAL),
    ("CosineSimilarity", {}, *REAL),
    ("CosineSimilarity", {"axis": 1}, *REAL),
    ("CosineSimilarity", {}, REAL[0] * 1e-8, REAL[1]),
    ("Huber", {}, *REAL),
    ("Huber", {"delta": 0.3}, *REAL),
    ("LogCosh", {}, *REAL),
    ("Hinge", {}, BITS, REAL[0]),
    ("Hinge", {}, 2 * BITS - 1, REAL[0]),
    ("SquaredHinge", {}, BITS, REAL[0]),
    ("CategoricalHinge", {}, ONE_HOT, REAL[0]),
    ("KLDivergence", {}, *ROWS),
    ("KLDivergence", {}, ONE_HOT, ROWS[0]),
    ("KLDivergence", {}, *RATES),
    ("Poisson", {}, *RATES),
    ("Poisson", {}, EDGES, EDGES[:, ::-1]),
    ("BinaryCrossentropy", {}, BITS, REGIONS[0]),
    ("BinaryCrossentropy", {"label_smoothing": 0.1, "axis": 1}, BITS, REGIONS[0]),
    ("BinaryCrossentropy", {"from_logits": True}, BITS, REAL[0]),
    ("BinaryCrossentropy", {"from_logits": True, "label_smoothing": 0.1}, BITS, REAL[0]),
    ("BinaryCrossentropy", {}, np.round(EDGES), EDGES[:, ::-1]),
    ("BinaryFocalCrossentropy", {}, BITS, REGIONS[0]),
    (
        "BinaryFocalCrossentropy",
        {"apply_class_balancing": True, "gamma": 1.5, "label_smoothing": 0.1},
        BITS,
        REGIONS[0],
    ),
    ("BinaryFocalCrossentropy", {"from_logits": True}, BITS, REAL[0]),
    ("BinaryFocalCrossentropy", {}, np.round(EDGES), EDGES[:, ::-1]),
    ("CategoricalCrossentropy", {}, ONE_HOT, ROWS[0]),
    ("CategoricalCrossentropy", {"label_smoothing": 0.1}, *ROWS),
    ("CategoricalCrossentropy", {}, ONE_HOT, RATES[0] / 3),
    ("CategoricalCrossentropy", {"from_logits": True}, ONE_HOT, REAL[0]),
    ("CategoricalCrossentropy", {}, np.round(EDGES), EDGES[:, ::-1]),
    ("CategoricalFocalCrossentropy", {}, ONE_HOT, ROWS[0]),
    (
        "CategoricalFocalCrossentropy",
        {"alpha": [0.1, 0.2, 0.3, 0.4, 0.5], "gamma": 1.5, "label_smoothing": 0.1},
        *ROWS,
    ),
    ("CategoricalFocalCrossentropy", {"from_logits": True}, ONE_HOT, REAL[0]),
    ("SparseCategoricalCrossentropy", {}, CLASSES, ROWS[0]),
    ("SparseCategoricalCrossentropy", {}, CLASSES[..., None], ROWS[0]),
    ("SparseCategoricalCrossentropy", {"from_logits": True}, CLASSES, REAL[0]),
    ("SparseCategoricalCrossentropy", {"ignore_class": 1}, CLASSES, ROWS[0]),
    (
        "SparseCategoricalCrossentropy",
        {"from_logits": True, "ignore_class": 1},
        CLASSES,
        REAL[0],
    ),
    ("CategoricalGeneralizedCrossEntropy", {}, CLASSES, ROWS[0]),
    ("CategoricalGeneralizedCrossEntropy", {"q": 0.2}, CLASSES, ROWS[0]),
    ("CTC", {}, SEQUENCES, REAL[0]),
    ("Dice", {}, *REGIONS),
    ("Dice", {"axis": (1, 2)}, *REGIONS),
    ("Tversky", {}, *REGIONS),
    ("Tversky", {"alpha": 0.3, "beta": 0.6, "axis": (1, 2)}, *REGIONS),
    ("Circle", {}, CLASSES.ravel(), UNIT),
    ("Circle", {"gamma": 10.0, "margin": 0.2, "remove_diagonal": False}, CLASSES.ravel(), UNIT),
]
# Settings that Keras has from 3.16 on.
NEWER = ("label_smoothing",)
OTHERS = ("deserialize", "get", "serialize")
NAMES = [name for name in dir(keras.losses) if name[0] != "_" and name not in OTHERS]
REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None)


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """Float64, also in Keras, which takes means and CTC of it in float32 on JAX."""
    from keras.src import backend
    from keras.src.backend.common import dtypes

    narrow = dtypes.result_type

    def result_type(*given):
        return "float64" if "float64" in map(str, given) else narrow(*given)

    for module in (dtypes, backend):
        monkeypatch.setattr(module, "result_type", result_type)
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def of_keras(name, settings):
    """What Keras calls the settings: it took Tversky's alpha for beta before 3.16."""
    if name != "Tversky" or not keras.__version__.startswith("3.15."):
        return settings
    names = {"alpha": "beta", "beta": "alpha"}
    return {names.get(key, key): value for key, value in settings.items()}


def weights_of(values):
    """One for each leading shape that both take to mean the same."""
    yield None
    if values.ndim:
        yield np.float64(2.0)
        yield RNG.uniform(size=values.shape)
        yield RNG.uniform(size=(values.shape[0], *(1,) * (values.ndim - 1)))
    if values.ndim == 2:
        yield RNG.uniform(size=(1, values.shape[1]))


IDS = [f"{i}-{c[0]}" for i, c in enumerate(CASES)]
ARGUMENTS = ("name", "settings", "t", "p")


def some(case):
    """What every class does alike is run every time for a few of them only."""
    few = case[0] in ("MeanSquaredError", "Dice") or "ignore_class" in case[1]
    return pytest.param(*case, marks=() if few else pytest.mark.slow)


@pytest.mark.parametrize(ARGUMENTS, [some(c) for c in CASES], ids=IDS)
@pytest.mark.filterwarnings("ignore")
def test_classes(name, settings, t, p):
    values = jax.eval_shape(getattr(ours, name)(**settings, reduction="none"), t, p)

    def both(reduction, weight):
        if reduction == "mean_with_sample_weight" and weight is not None:
            # Keras divides by the sum of what it is given.
            weight = np.broadcast_to(weight, values.shape)
        known = {**of_keras(name, settings), "reduction": reduction, "dtype": "float64"}
        theirs = getattr(keras.losses, name)(**known)
        loss = getattr(ours, name)(**settings, reduction=reduction)
        return lambda t, p: (loss(t, p, weight), theirs(t, p, weight))

    pairs = [both(*kind) for kind in itertools.product(REDUCTIONS, weights_of(values))]
    for got, want in jax.jit(lambda t, p: [pair(t, p) for pair in pairs])(t, p):
        assert got.shape == want.shape and got.dtype == want.dtype == np.float64
        np.testing.assert_allclose(got, want, 1e-12, 1e-15)


def plainly(case):
    """Settings other than the defaults are slow."""
    return pytest.param(*case, marks=pytest.mark.slow if case[1] else ())


@pytest.mark.parametrize(ARGUMENTS, [plainly(c) for c in CASES], ids=IDS)
@pytest.mark.filterwarnings("ignore")
def test_functions(name, settings, t, p):
    (fn,) = (n for n in NAMES if n.islower() and n.replace("_", "") == name.lower())
    if fn == "categorical_generalized_cross_entropy":
        settings = {"q": 0.5, **settings}
    theirs = partial(getattr(keras.losses, fn), **of_keras(name, settings))
    want, got = (jax.jit(f)(t, p) for f in (theirs, partial(getattr(ours, fn), **settings)))
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, 1e-12, 1e-15)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_with_sample_weight"])
@pytest.mark.parametrize("weights", [None, RNG.uniform(size=(B, T))], ids=["", "weights"])
def test_masks(reduction, weights):
    from keras.src import backend

    t, p = (jax.numpy.asarray(a) for a in REAL)
    mask = jax.numpy.asarray(RNG.uniform(size=(B, T)) > 0.4)
    backend.set_keras_mask(p, mask)
    theirs = keras.losses.MeanSquaredError(reduction, dtype="float64")
    want = theirs(t, p, sample_weight=weights)
    loss = ours.MeanSquaredError(reduction)
    np.testing.assert_allclose(loss(t, p, weights), want, 1e-12)
    np.testing.assert_allclose(loss(t, p * 1, weights, mask), want, 1e-12)


def test_names():
    assert set(NAMES) <= set(ours.__all__) and len(NAMES) == 45
    with pytest.raises(ValueError):
        keras.losses.get("CategoricalGeneralizedCrossEntropy")
    for name in keras.src.losses.ALL_OBJECTS_DICT:
        assert name == "LossFunctionWrapper" or callable(ours.get(name))


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    mine, theirs = (inspect.signature(getattr(m, name)).parameters for m in (ours, keras.losses))
    both = [p for p in mine.values() if p.name in theirs or p.name not in NEWER]
    assert [(p.name, p.default, p.kind) for p in both] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


@pytest.mark.parametrize("name", [n for n in NAMES if not n.islower()])
def test_configurations_of_keras(name):
    """Those that Keras writes are read, and it reads ours."""
    theirs = getattr(keras.losses, name)(reduction="sum", name="x")
    mine = ours.get(keras.losses.serialize(theirs))
    assert type(mine) is getattr(ours, name)
    assert mine.get_config().items() >= theirs.get_config().items()
    entry = ours.serialize(mine) | {"module": "keras.losses"}
    known = inspect.signature(getattr(keras.losses, name)).parameters
    entry["config"] = {k: v for k, v in entry["config"].items() if k in known or k not in NEWER}
    again = keras.losses.deserialize(entry)
    if name != "CategoricalGeneralizedCrossEntropy":  # It is not among Keras's own names.
        assert again.get_config() == theirs.get_config()
