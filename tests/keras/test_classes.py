"""The classes of `jaxloss.keras`: weights, masks, reductions, custom losses, configurations."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import keras
from tests.keras.test_parity import CASES

RNG = np.random.default_rng(0)
MEANS = ("sum_over_batch_size", "mean", "auto")
REDUCTIONS = (*MEANS, "sum", "mean_with_sample_weight", "none", None)
T, P = RNG.normal(size=(2, 2, 3, 4)).astype("f")


def close(got, want, rtol=2e-6, atol=1e-7):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def identity(y_true, y_pred):
    return y_pred


class Own(keras.Loss):
    def call(self, y_true, y_pred):
        return jnp.mean((y_pred - y_true) ** 2, axis=-1)


def reduced(values, reduction, w=None, m=None):
    """The definition, in NumPy, for weights and masks of the leading axes."""
    values = np.asarray(values)
    w, m = (
        np.broadcast_to(
            np.reshape(a, np.shape(a) + (1,) * (values.ndim - np.ndim(a))), values.shape
        )
        for a in (1.0 if w is None else w, True if m is None else m)
    )
    total = values * w * m
    if reduction in ("none", None):
        return total
    size = {"sum": 1, "mean_with_sample_weight": np.sum(w * m)}.get(reduction, np.sum(m))
    return np.sum(total) / size


WEIGHTS = [None, 2.0, RNG.uniform(size=2), *(RNG.uniform(size=s) for s in [(2, 1), (1, 3), (2, 3)])]


@pytest.mark.parametrize("mask", [None, [True, False], [[1, 0, 1], [1, 1, 0]]], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=np.shape)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction, weights, mask):
    values = np.mean((T - P) ** 2, -1)
    for loss in (keras.MeanSquaredError(reduction), Own(reduction=reduction)):
        got = loss(T, P, sample_weight=weights, mask=mask)
        assert got.dtype == jnp.float32
        close(got, reduced(values, reduction, weights, mask))


def test_further_axes_of_size_one_say_nothing():
    values = np.arange(1.0, 7).reshape(2, 3).astype("f")
    loss = keras.LossFunctionWrapper(identity, "none")
    for shape in ((2,), (2, 1), (2, 1, 1)):
        w = np.reshape([1.0, 3.0], shape)
        close(loss(values, values, w), values * [[1], [3]])
    column = loss(values[0], values[0], [[1.0], [2], [3]])
    close(column, [1, 4, 9])
    assert loss(values, values, np.ones((2, 3, 1))).shape == (2, 3)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 2), (2, 3, 2)])
def test_weights_and_masks_that_do_not_fit(shape):
    for name in ("sample_weight", "mask"):
        with pytest.raises(ValueError, match=rf"{name} of shape|where of shape") as error:
            keras.MeanSquaredError()(T, P, **{name: np.ones(shape)})
        assert str(shape) in str(error.value) or str(shape[:1]) in str(error.value)


def test_a_vector_of_weights_is_for_examples_not_for_time():
    p = np.array([[1.0, 4], [9, 16]])[..., None] ** 0.5
    got = keras.MeanSquaredError("none")(np.zeros_like(p), p, [1.0, 0.0])
    close(got, [[1, 4], [0, 0]])


def test_vectors_are_examples_of_one_entry():
    t, p = np.array([0.0, 1, 1]), np.array([0.1, 0.9, 0.2])
    losses = -np.log([0.9, 0.9, 0.2])
    for loss in (keras.BinaryCrossentropy, keras.BinaryFocalCrossentropy):
        rows = loss(reduction=None)(t[:, None], p[:, None])
        assert rows.shape == (3,)
        close(loss(reduction=None)(t, p), rows)
    close(keras.BinaryCrossentropy()(t, p), np.mean(losses))
    close(keras.BinaryCrossentropy()(t, p, [1, 0, 2]), np.sum(losses * [1, 0, 2]) / 3)
    close(keras.MeanSquaredError("sum")(t, p[:, None]), np.sum((t - p) ** 2))


def test_scalar_weight_in_a_weighted_mean():
    values = np.arange(1.0, 7).reshape(2, 3).astype("f")
    loss = keras.LossFunctionWrapper(identity, "mean_with_sample_weight")
    assert loss(values, values, 2.0) == 3.5
    assert loss(values, values, [[1.0], [3.0]]) == 4.25
    assert loss(values, values, mask=[[True], [False]]) == 2


def test_the_weight_of_one_example_is_not_lost_in_a_weighted_mean():
    w = np.zeros(64)
    w[3] = 1
    t, p = np.zeros((64, 1)), np.arange(64.0)[:, None]
    close(keras.MeanSquaredError()(t, p, w), 9 / 64)
    close(keras.MeanSquaredError("mean_with_sample_weight")(t, p, w), 9)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty_batches_and_nothing_left(reduction):
    loss = keras.MeanSquaredError(reduction)
    empty = loss(np.zeros((0, 3)), np.zeros((0, 3)))
    assert empty.shape == ((0,) if reduction in ("none", None) else ())
    assert not np.any(empty)
    nan = jnp.full((2, 3), jnp.nan)
    for kwargs in ({"mask": [False, False]}, {"sample_weight": [0.0, 0]}):
        f = lambda p: jnp.sum(loss(jnp.zeros((2, 3)), p, **kwargs))  # noqa: B023
        value, slope = jax.value_and_grad(f)(nan)
        assert value == 0 and not slope.any()


# Of each class that Keras has, in the table that compares them.
FIRST = {name: (settings, t, p) for name, settings, t, p in reversed(CASES)}


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("kind", ["mask", "sample_weight"])
@pytest.mark.few(6)
@pytest.mark.filterwarnings("ignore::jaxloss.keras.LogitsWarning")
def test_what_is_masked_or_without_weight_changes_nothing(name, kind):
    if name == "Circle" and kind == "sample_weight":
        pytest.skip("a row without weight is still compared with the others")
    settings, t, p = FIRST[name]
    t, p = (jnp.asarray(a, "float32" if a.dtype.kind == "f" else "int32") for a in (t, p))
    # These add up all axes that they are not told of.
    axis = {"axis": (1, 2)} if name in ("Dice", "Tversky") else {}
    loss = getattr(keras, name)(**settings, **axis)

    @jax.jit
    def both(t, p):
        weights = {kind: (jnp.arange(len(p)) != 1).astype(float)}
        return jax.value_and_grad(lambda p: loss(t, p, **weights))(p)

    value, slope = both(t, p)
    for junk in (jnp.nan, jnp.inf, -jnp.inf):
        bad = t.at[1].set(junk) if jnp.issubdtype(t.dtype, jnp.floating) else t.at[1].set(99)
        got = both(bad, p.at[1].set(junk))
        close(got[0], value, 0, 0)
        close(got[1], slope, 0, 0)
    assert not slope[1].any() and slope[0].any()


def test_pairs_of_a_masked_row():
    x = RNG.normal(size=(5, 3)).astype("f")
    labels, mask = np.array([0, 0, 1, 1, 0]), np.array([True, True, False, True, True])
    loss = keras.Circle(gamma=2.0, reduction="none")
    kept = loss(labels[mask], x[mask])
    close(loss(labels, x, mask=mask)[mask], kept)
    junk = x.copy()
    junk[2] = np.nan
    value, slope = jax.value_and_grad(lambda x: jnp.sum(loss(labels, x, mask=mask)))(junk)
    close(value, np.sum(kept))
    assert np.isfinite(slope).all() and not slope[2].any()
    # A row without weight is still compared with the others.
    full = np.asarray(loss(labels, x))
    close(loss(labels, x, mask.astype("f")), np.where(mask, full, 0))
    # A row without a pair does not count in a mean.
    labels = np.array([0, 0, 1, 2, 3])
    rows = np.asarray(loss(labels, x))
    close(keras.Circle(gamma=2.0)(labels, x), np.sum(rows) / np.sum(rows > 0))


def test_mask_of_keras():
    class Masked(np.ndarray):
        pass

    p = np.array([[1.0], [3.0], [5.0]]).view(Masked)
    p._keras_mask = np.array([True, False, True])
    loss = keras.MeanSquaredError()
    close(loss(np.zeros((3, 1)), p), 13)
    close(loss(np.zeros((3, 1)), p, mask=[True, True, False]), 1)
    p._keras_mask = np.array([[1], [0], [1]])
    close(loss(np.zeros((3, 1)), p, mask=[True, True, False]), 1)


def test_ignored_class_masks_and_is_masked():
    t, p = np.array([[0, -1, 1], [-1, -1, 1]]), RNG.dirichlet(np.ones(2), (2, 3))
    rows = np.asarray(keras.sparse_categorical_crossentropy(t, p, ignore_class=-1))
    for labels in (t, t[..., None], t.astype(np.float32), t.astype(np.int8)):
        loss = keras.SparseCategoricalCrossentropy(ignore_class=-1)
        close(loss(labels, p), np.sum(rows) / 3)
        close(loss(labels, p, mask=[True, False]), np.sum(rows[0]) / 2)
        close(loss(labels, p, [1.0, 3.0]), np.sum(rows * [[1], [3]]) / 3)


@pytest.mark.parametrize(
    "fn",
    [
        lambda t, p: jnp.mean(jnp.abs(t - p), -1),
        lambda t, p: jnp.mean(jnp.abs(t - p), axis=(1, 2)),
        lambda t, p: jnp.abs(t - p),
    ],
    ids=["rows", "examples", "elements"],
)
def test_custom_losses(fn):
    class Same(keras.Loss):
        def call(self, y_true, y_pred):
            return fn(y_true, y_pred)

    values = fn(T, P)
    for reduction in REDUCTIONS:
        for loss in (keras.LossFunctionWrapper(fn, reduction), Same(reduction=reduction)):
            close(loss(T, P, [1.0, 3.0]), reduced(values, reduction, np.array([1.0, 3.0])))
            want = reduced(values, reduction, m=np.array([False, True]))
            close(loss(T, P, mask=[False, True]), want)
            close(jax.jit(loss)(T, P), reduced(values, reduction))


def test_custom_loss_of_labels_that_are_classes():
    class Picked(keras.Loss):
        def call(self, y_true, y_pred):
            assert y_true.dtype == jnp.int32
            return -jnp.take_along_axis(y_pred, y_true[:, None], 1)[:, 0]

    assert Picked()(np.array([1, 0]), np.array([[0.0, 1], [3, 0]])) == -2


def test_custom_loss_of_trees():
    class Sums(keras.Loss):
        def call(self, y_true, y_pred):
            assert y_pred["b"].dtype == jnp.float32
            return sum(jnp.abs(y_true[k] - y_pred[k]) for k in ("a", "b"))

    t = {"a": np.array([0.0, 1]), "b": np.array([0.0, 0])}
    p = {"a": np.array([1.0, 2]), "b": np.array([1, 3])}
    assert Sums()(t, p, [1.0, 2.0]) == 5


def test_one_number_for_a_batch_cannot_be_weighed():
    def scalar(y_true, y_pred):
        return jnp.mean((y_true - y_pred) ** 2)

    loss = keras.LossFunctionWrapper(scalar)
    close(loss(T, P), np.mean((T - P) ** 2))
    close(loss(T, P, 2.0), 2 * np.mean((T - P) ** 2))
    for kwargs in ({"sample_weight": [1.0, 0.0]}, {"mask": [True, False]}):
        with pytest.raises(ValueError, match="scalar returned a scalar for a batch"):
            loss(T, P, **kwargs)
        for regions in (keras.Dice(), keras.Tversky()):
            with pytest.raises(ValueError, match=r"axis=\(1, 2, 3\)"):
                regions(abs(T), abs(P), **kwargs)
    close(keras.Dice(axis=(1, 2))(abs(T), abs(P), [1, 0]), keras.dice(abs(T[:1]), abs(P[:1])) / 2)


@pytest.mark.slow
def test_masked_frames_of_ctc_are_paddings():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(4, 6, 4)).astype("f"), np.array([[1, 2], [3, 0], [1, 1], [2, 0]])
    frames = np.arange(6) < np.array([6, 3, 4, 0])[:, None]
    frames[0, 2] = False  # Not only at the end.
    each = [keras.ctc(labels[i : i + 1], x[i : i + 1, frames[i]])[0] for i in range(3)]
    spoiled = np.where(frames[..., None], x, np.nan).astype("f")
    w = np.array([2.0, 0.5, 0.0, 3.0], "f")
    for wrap in (lambda f: f, jax.jit):
        none = wrap(keras.CTC("none"))(labels, spoiled, mask=frames)
        close(none, [*each, 0], 1e-6)
        close(wrap(keras.CTC())(labels, spoiled, mask=frames), np.mean(each), 1e-6)
        weighed = wrap(keras.CTC("mean_with_sample_weight"))(labels, spoiled, w, frames)
        close(weighed, np.dot(each, w[:3]) / 2.5, 1e-6)
        slope = wrap(jax.grad(lambda x: keras.CTC()(labels, x, w, frames)))(spoiled)
        assert np.isfinite(slope).all() and not slope[~frames].any() and slope[frames].any()
    both = keras.CTC("none")(labels, x, mask=frames & (np.arange(4) > 0)[:, None])
    close(both, [0, *each[1:], 0], 1e-6)
    sequences = keras.CTC("none")(labels, x, mask=[True, False, True, False])
    close(sequences, np.asarray(keras.ctc(labels, x)) * [1, 0, 1, 0], 1e-6)
    with pytest.raises(ValueError, match=r"mask of shape \(4, 5\)"):
        keras.CTC()(labels, x, mask=frames[:, :5])


def test_dtype():
    t, p = np.array([[0.0]]), np.array([[0.1]])
    assert keras.MeanSquaredError()(t, jnp.asarray(p, jnp.bfloat16)).dtype == jnp.float32
    assert keras.MeanSquaredError(dtype=jnp.float16)(t, p).dtype == jnp.float16
    assert keras.MeanSquaredError(dtype="mixed_bfloat16").dtype == "bfloat16"
    with jax.enable_x64(True):
        assert keras.MeanSquaredError()(t, p).dtype == jnp.float64
        assert keras.MeanSquaredError()(t, p.astype("f")).dtype == jnp.float32
        up = keras.MeanSquaredError(dtype="float64")(t, p.astype("f"))
        close(up, np.float64(np.float32(0.1)) ** 2, 1e-15)
        low = keras.MeanSquaredError(dtype="float32")(t, p)
        assert low.dtype == jnp.float32

    class Policy:
        compute_dtype = "float16"

    assert keras.Loss(dtype=Policy()).dtype == "float16"
    with pytest.raises(AttributeError):
        keras.Loss().dtype = "float16"
    with pytest.raises(TypeError, match="floating"):
        keras.Loss(dtype="int32")


SETTINGS = {
    "BinaryCrossentropy": {"from_logits": True, "label_smoothing": 0.1, "axis": 1},
    "BinaryFocalCrossentropy": {"apply_class_balancing": True, "alpha": 0.5, "gamma": 1.0},
    "CategoricalFocalCrossentropy": {"alpha": [0.1, 0.9], "gamma": 1.0, "axis": 1},
    "SparseCategoricalCrossentropy": {"ignore_class": -1, "axis": 1},
    "CosineSimilarity": {"axis": 1},
    "Huber": {"delta": 2.0},
    "Dice": {"axis": [1, 2]},
    "Tversky": {"alpha": 0.3, "beta": 0.6, "axis": [1]},
    "Circle": {"gamma": 10.0, "margin": 0.1, "remove_diagonal": False},
    "CategoricalGeneralizedCrossEntropy": {"q": 0.3},
}
NAMES = [name for name in keras.__all__ if isinstance(getattr(keras, name), type)
         and issubclass(getattr(keras, name), keras.Loss)
         and name not in ("Loss", "LossFunctionWrapper")]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_configurations(name):
    cls, settings = getattr(keras, name), SETTINGS.get(name, {})
    default = cls()
    assert set(default.get_config()) >= {"name", "reduction", *settings}
    assert "dtype" not in default.get_config()
    given = {**settings, "reduction": "sum", "name": "mine", "dtype": "float16"}
    loss = cls(**given)
    assert loss.get_config() == {**default.get_config(), **given}
    for other in (
        cls.from_config(loss.get_config()),
        keras.deserialize(keras.serialize(loss)),
        keras.get(keras.serialize(loss)),
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
    ):
        assert type(other) is cls
        assert other.get_config() == loss.get_config() and other.dtype == "float16"
        for key, value in settings.items():
            assert getattr(other, key) == value
    assert repr(loss).startswith(f"{name}(name='mine', reduction='sum', dtype='float16'")


def test_arrays_among_the_settings():
    loss = keras.CategoricalFocalCrossentropy(alpha=np.array([0.25, 0.75]), gamma=np.float32(2))
    assert loss.get_config()["alpha"] == [0.25, 0.75] and loss.get_config()["gamma"] == 2
    t, p = np.eye(2), RNG.dirichlet(np.ones(2), 2)
    close(keras.get(keras.serialize(loss))(t, p), loss(t, p))


def test_settings_may_be_changed():
    loss = keras.Huber()
    loss.delta = 0.5
    close(loss([[0.0]], [[1.0]]), 0.375)
    assert loss.get_config()["delta"] == 0.5


def test_a_count_beyond_integers_does_not_wrap_around():
    losses = jax.ShapeDtypeStruct((65536, 65536), jnp.float32)
    loss = keras.LossFunctionWrapper(identity)
    program = str(jax.make_jaxpr(loss)(losses, losses))
    assert "4294967296.0" in program


def test_names():
    assert keras.MeanSquaredError().name == "mean_squared_error"
    assert keras.Huber().name == "huber_loss"
    assert Own().name == "own" and Own("mine").name == "mine"
    assert keras.LossFunctionWrapper(identity).name == "identity"


def test_settings_that_do_not_exist():
    with pytest.raises(TypeError, match="did you mean 'from_logits'"):
        keras.BinaryCrossentropy(from_loits=True)
    with pytest.raises(TypeError, match="did you mean 'reduction'"):
        Own(resuction="sum")
    with pytest.raises(TypeError, match="no option 'delta'"):
        keras.MeanSquaredError(delta=1.0)
    with pytest.raises(TypeError, match="did you mean 'label_smoothing'"):
        keras.LossFunctionWrapper(keras.binary_crossentropy, label_smooth=0.1)
    with pytest.raises(TypeError, match=r"constructor.*BinaryCrossentropy\(from_logits=...\)"):
        keras.BinaryCrossentropy()([[1.0]], [[0.5]], from_logits=True)
    with pytest.raises(ValueError, match="did you mean 'sum_over_batch_size'"):
        keras.Hinge(reduction="sum_over_batchsize")
    with pytest.raises(ValueError, match="reduction"):
        keras.Hinge(reduction=0)
    with pytest.raises(ValueError, match="q must be"):
        keras.CategoricalGeneralizedCrossEntropy(q=1.0)
    with pytest.raises(TypeError, match="callable"):
        keras.LossFunctionWrapper("mse")
    with pytest.raises(NotImplementedError, match="Loss does not define call"):
        keras.Loss()([[1.0]], [[1.0]])


def test_reduction_names_of_tf_keras():
    for name in ("AUTO", "NONE", "SUM", "SUM_OVER_BATCH_SIZE"):
        keras.MeanSquaredError(reduction=getattr(keras.Reduction, name))


def test_trains():
    """A classifier, under jit, with weights and a mask, from labels that are floats."""
    x = RNG.normal(size=(64, 3)).astype("f")
    y = (x @ np.array([1.0, -2, 0.5]) > 0).astype("f")
    loss = keras.BinaryCrossentropy(from_logits=True)
    mask = np.arange(64) < 60

    @jax.jit
    def step(w):
        value, slope = jax.value_and_grad(lambda w: loss(y, x @ w, np.ones(64), mask))(w)
        return value, w - slope

    w = jnp.zeros(3)
    first, w = step(w)
    for _ in range(50):
        last, w = step(w)
    assert last < 0.4 * first
