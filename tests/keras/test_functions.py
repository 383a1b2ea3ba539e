"""The functions of `jaxloss.keras`: documented numbers, shapes, dtypes, labels, bad inputs."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import keras
from tests.test_tf import LOGITS_3X10

# The same numbers serve as logits and as probabilities here.
pytestmark = pytest.mark.filterwarnings("ignore:y_pred looks like probabilities")

PROBABILITIES = np.array([[0.9, 0.05, 0.05], [0.5, 0.89, 0.6], [0.05, 0.01, 0.94]], np.float32)
MEANS = [
    keras.mean_squared_error,
    keras.mean_absolute_error,
    keras.mean_absolute_percentage_error,
    keras.mean_squared_logarithmic_error,
    keras.huber,
    keras.log_cosh,
    keras.hinge,
    keras.squared_hinge,
    keras.poisson,
    keras.binary_crossentropy,
    keras.binary_focal_crossentropy,
]
ROWS = [
    keras.cosine_similarity,
    keras.categorical_hinge,
    keras.kl_divergence,
    keras.categorical_crossentropy,
    keras.categorical_focal_crossentropy,
]


def close(got, want, rtol=1e-6, atol=0.0):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def gradient(loss, p):
    return np.asarray(jax.jit(jax.grad(lambda p: jnp.sum(loss(p))))(jnp.asarray(p)))


def test_numbers_of_the_documentation():
    t, p = np.array([[0.0, 1], [0, 0]]), np.array([[0.6, 0.4], [0.4, 0.6]])
    close(keras.binary_crossentropy(t, p), [0.9162908, 0.7135582], 2e-7)
    for reduction, want in (("mean", 0.8149245), ("sum", 1.629849)):
        close(keras.BinaryCrossentropy(reduction=reduction)(t, p), want, 2e-7)
    close(keras.BinaryCrossentropy()(t, p, sample_weight=[1, 0]), 0.4581454, 2e-7)
    ones, zeros = np.ones((2, 2), int), np.zeros((2, 2), int)
    close(keras.mean_squared_error(ones, zeros), [1, 1])
    assert keras.MeanSquaredError("sum")(ones, zeros) == 2
    close(keras.BinaryCrossentropy(True)([0, 0, 1, 1, 1], [-1.0, -1, 0, 1, 2]), 0.35197204, 2e-7)


def test_sparse_and_dense_numbers():
    labels = np.array([2, 3, 4])
    dense = np.eye(10)[labels]
    want = [2.0077195, 0.00928135, 0.6800677]
    close(keras.sparse_categorical_crossentropy(labels, LOGITS_3X10, True), want, 2e-7, 3e-8)
    close(keras.categorical_crossentropy(dense, LOGITS_3X10, True), want, 2e-7, 3e-8)
    close(keras.SparseCategoricalCrossentropy(True)(labels, LOGITS_3X10), 0.8990229, 2e-7)
    close(keras.CategoricalCrossentropy(True, reduction="sum")(dense, LOGITS_3X10), 2.6970687)
    want = [0.10536055, 0.8046684, 0.0618754]
    close(keras.sparse_categorical_crossentropy([0, 1, 2], PROBABILITIES), want, 2e-6)
    close(keras.categorical_crossentropy(np.eye(3, dtype=int), PROBABILITIES), want, 2e-6)
    close(keras.sparse_categorical_crossentropy([2], [[1.0, 2, 3]], True), [0.40760595], 2e-7)


@pytest.mark.filterwarnings("ignore:.*has one class")
@pytest.mark.parametrize("loss", MEANS + ROWS, ids=lambda f: f.__name__)
def test_shapes(loss):
    t, p = np.full((4, 3), 0.25, "f"), np.full((4, 3), 0.5, "f")
    assert loss(t, p).shape == (4,)
    assert loss(t.tolist(), p.tolist()).shape == (4,)
    # Of (B,) and (B, 1) the former becomes the latter; never (B, B).
    assert loss(t[:, 0], p[:, :1]).shape == loss(t[:, :1], p[:, 0]).shape == (4,)
    assert loss(t[..., None], p).shape == loss(t, p[..., None]).shape == (4,)
    for bad in ((4, 1), (1, 3), (4, 2), (3,), (1, 4, 3)):
        with pytest.raises(ValueError, match="same shape") as error:
            loss(np.ones(bad, "f"), p)
        assert str(bad) in str(error.value) and "(4, 3)" in str(error.value)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        pytest.param(loss, k, id=f"{loss.__name__}-{k}")
        for loss in MEANS
        for k, setting in inspect.signature(loss).parameters.items()
        if isinstance(setting.default, float)
    ],
)
def test_settings_along_trailing_axes(loss, name):
    """One for each column, as if each were alone."""
    t, p = np.eye(3, dtype="f")[[0, 2]], np.float32([[0.1, 0.6, 0.3], [0.2, 0.2, 0.9]])
    each = np.float32([0.25, 0.5, 0.75])
    known = inspect.signature(loss).parameters
    options = {"apply_class_balancing": True} if "apply_class_balancing" in known else {}
    for logits in [{}, {"from_logits": True}] if "from_logits" in known else [{}]:
        fn = partial(loss, **options, **logits)
        columns = [fn(t[:, k : k + 1], p[:, k : k + 1], **{name: each[k]}) for k in range(3)]
        close(fn(t, p, **{name: each}), np.mean(columns, 0))


@pytest.mark.parametrize("loss", MEANS, ids=lambda f: f.__name__)
def test_one_number(loss):
    row = loss([[0.75]], [[0.25]])[0]
    close(loss(0.75, 0.25), row)
    close(loss(0.75, [[0.25, 0.25]]), [row])
    assert loss(np.zeros((2, 0)), np.zeros((2, 0))).tolist() == [0, 0]


def test_integer_predictions_do_not_truncate_the_targets():
    close(keras.mean_squared_error([[1.7]], [[1]]), [0.49])
    close(keras.cosine_similarity([[1.5, 2]], [[3, 4]]), [-1])
    assert keras.mean_squared_error([[1.7]], np.array([[True]])).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("loss", MEANS + ROWS, ids=lambda f: f.__name__)
@pytest.mark.few(4)
def test_half_precision_is_computed_in_float32(loss, dtype):
    p = jnp.array([[1.0, 0, 0.125], [0.5, 0.25, 0.25]], dtype)
    t = jnp.array([[1.0, 0, 0], [0, 0, 1]], dtype)
    got = loss(t, p)
    assert got.dtype == jnp.float32
    close(got, loss(t.astype(jnp.float32), p.astype(jnp.float32)), 0)
    assert np.isfinite(got).all()
    assert gradient(lambda p: loss(t, p), p).dtype == dtype


def test_no_overflow_of_half_precision():
    big = jnp.full((2, 70000), 300, jnp.float16)
    close(keras.mean_squared_error(0, big), [9e4, 9e4])
    close(keras.cosine_similarity(big, big), [-1, -1])
    p = jnp.ones((1, 1), jnp.float16)
    close(keras.binary_crossentropy(p, p), [0], atol=2e-7)
    close(keras.binary_focal_crossentropy(p, 30 * p, from_logits=True), [0], atol=1e-30)
    assert keras.BinaryCrossentropy(dtype="float16")(p, p).dtype == jnp.float16


SPARSE = [
    (lambda t, p: keras.sparse_categorical_crossentropy(t, p, True)),
    keras.sparse_categorical_crossentropy,
    (lambda t, p: keras.categorical_generalized_cross_entropy(t, p, 0.5)),
]


@pytest.mark.parametrize("loss", SPARSE, ids=["logits", "probabilities", "bounded"])
def test_labels_of_any_dtype_and_shape(loss):
    p = np.array([[0.2, 0.5, 0.3], [0.1, 0.8, 0.1]], "f")
    want = loss(np.array([1, 2]), p)
    assert want.shape == (2,)
    for labels in (
        jnp.array([1, 2], jnp.uint8),
        jnp.array([1, 2], jnp.bfloat16),
        np.array([1.0, 2.0]),
        [1, 2],
        [[1], [2]],
        jnp.array([[1.0], [2.0]]),
    ):
        close(loss(labels, p), want, 0)
    for bad in (np.zeros((1, 2), int), np.zeros((2, 3), int), np.zeros(3, int), 0):
        with pytest.raises(ValueError, match=r"y_true of shape .* y_pred of shape \(2, 3\)"):
            loss(bad, p)


@pytest.mark.parametrize("loss", SPARSE, ids=["logits", "probabilities", "bounded"])
@pytest.mark.parametrize("label", [-1, 3, 1.5, np.nan, np.inf, 1e30])
def test_no_such_class_is_loud_in_its_own_row(loss, label):
    labels, p = jnp.array([1, label]), jnp.array([[0.2, 0.5, 0.3], [0.1, 0.8, 0.1]])
    value, slope = loss(labels, p), gradient(lambda p: loss(labels, p), p)
    assert np.isfinite(value[0]) and np.isnan(value[1])
    assert np.isfinite(slope[0]).all() and np.isnan(slope[1]).all()


def test_class_ids_keep_their_integers():
    x = 10 * jax.nn.one_hot(jnp.array([257]), 300)
    for dtype in ("bfloat16", "float16"):
        loss = keras.SparseCategoricalCrossentropy(True, dtype=dtype)(np.array([257]), x)
        close(loss.astype(float), 0.0134888, 4e-3)


def test_class_axis():
    t, p = np.array([[0, 1, 1, 0]]), np.random.default_rng(0).dirichlet(np.ones(3), (1, 4))
    want = keras.sparse_categorical_crossentropy(t, p)
    close(keras.sparse_categorical_crossentropy(t, p.swapaxes(1, 2), axis=1), want)
    close(keras.sparse_categorical_crossentropy(t[:, None], p.swapaxes(1, 2), axis=1), want)
    dense = np.eye(3)[t]
    for loss in (keras.categorical_crossentropy, keras.categorical_focal_crossentropy):
        want = loss(dense, p, label_smoothing=0.1)
        got = loss(dense.swapaxes(1, 2), p.swapaxes(1, 2), label_smoothing=0.1, axis=1)
        close(got, want)
    alpha = [0.1, 0.2, 0.3]
    for logits in (False, True):
        want = keras.categorical_focal_crossentropy(dense, p, alpha, from_logits=logits)
        for axis in (1, -2):
            swapped = dense.swapaxes(1, 2), p.swapaxes(1, 2)
            options = {"from_logits": logits, "axis": axis}
            close(keras.categorical_focal_crossentropy(*swapped, alpha, **options), want)


def test_ignored_class():
    t, p = jnp.array([1, 255, 0]), jnp.array([[0.5, 0.5], [jnp.nan, 0], [0.25, 0.75]])
    for logits in (False, True):
        loss = lambda p: keras.sparse_categorical_crossentropy(t, p, logits, 255)  # noqa: B023
        assert loss(p)[1] == 0 and np.isfinite(loss(p)).all()
        slope = gradient(loss, p)
        assert np.isfinite(slope).all() and not slope[1].any()
        mean = keras.SparseCategoricalCrossentropy(logits, 255)(t.astype(float), p)
        close(mean, jnp.sum(loss(p)) / 2)


def test_each_label_of_a_hinge_is_its_own():
    t, p = np.array([[0.0, 1], [-1, 1]]), np.full((2, 2), 0.5)
    close(keras.hinge(t, p)[0], keras.hinge(t[:1], p[:1])[0])
    close(keras.hinge(t, p), [1.0, 1.0])


def test_infinite_logits():
    inf = jnp.inf
    assert keras.binary_crossentropy([[1, 0]], [[inf, -inf]], from_logits=True) == 0
    x, t = jnp.array([[0.0, 1, -inf]]), [[1, 0, 0]]
    close(keras.categorical_crossentropy(t, x, True), [1.3132617])
    slope = gradient(lambda x: keras.categorical_crossentropy(t, x, True), x)
    close(slope, [[-0.7310586, 0.7310586, 0]])


def test_rows_that_are_no_probabilities():
    eye = jnp.eye(2)
    loss = lambda p: keras.categorical_crossentropy(eye, p)
    p = jnp.array([[0.0, 0.0], [0.5, 0.5]])
    close(loss(p), [16.118095, 0.6931472])
    assert np.isfinite(gradient(loss, p)).all() and gradient(loss, p)[0, 0] < 0
    p = jnp.array([[-3.0, 1.0], [0.5, 0.5]])
    with pytest.warns(keras.LogitsWarning):
        assert np.isnan(loss(p)[0]) and np.isfinite(loss(p)[1])
    assert np.isnan(gradient(loss, p)[0]).all() and np.isfinite(gradient(loss, p)[1]).all()
    with pytest.warns(keras.LogitsWarning):
        assert np.isnan(keras.sparse_categorical_crossentropy([0], [[-5.0, 1, 1]]))


@pytest.mark.filterwarnings("ignore:y_pred has numbers outside")
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("ignore_class", [None, 2])
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.few(2)
def test_smoothed_integer_labels(from_logits, ignore_class, axis):
    """Keras 3.16: those of the smoothed one-hot, which is not made."""
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.dirichlet(np.ones(3), (4, 3)), jnp.float32)
    p = p.at[0, 0].set(jnp.array([0.0, 1, 0]))  # clipped
    labels = jnp.asarray(rng.integers(0, 3, (4, 3)))
    one_hot = jax.nn.one_hot(labels, 3, axis=axis)
    kept = jnp.ones((4, 3), bool) if ignore_class is None else labels != ignore_class

    def sparse(p, s):
        return keras.sparse_categorical_crossentropy(labels, p, from_logits, ignore_class, axis, s)

    def dense(p, s):
        losses = keras.categorical_crossentropy(one_hot, p, from_logits, s, axis)
        return jnp.where(kept, losses, 0)

    for s in (0.0, 0.1, 1.0):
        close(sparse(p, s), dense(p, s), 2e-6, 1e-7)
        close(jax.jit(sparse)(p, s), dense(p, s), 2e-6, 1e-7)
        got, want = (gradient(lambda p, f=f: f(p, s), p) for f in (sparse, dense))  # noqa: B023
        close(got, want, 1e-5, 1e-6)
        loss = keras.SparseCategoricalCrossentropy(
            from_logits, ignore_class, axis=axis, label_smoothing=s
        )
        assert loss.get_config()["label_smoothing"] == s
        close(loss(labels, p), np.asarray(dense(p, s))[kept].mean(), 2e-6, 1e-7)
    bad = jnp.array([[3, 0, 0]] * 4)
    losses = keras.sparse_categorical_crossentropy(bad, p, from_logits, None, axis, 0.1)
    assert np.isnan(losses).tolist() == [[True, False, False]] * 4
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        sparse(p, 1.5)


def test_accuracy():
    close(keras.log_cosh([[0.0]], [[1e-4]]), [5e-9])
    close(keras.mean_squared_logarithmic_error([[0.0]], [[1e-6]]), [8.1e-13], 1e-5)
    close(keras.cosine_similarity([[1e20, 0]], [[1e20, 0]]), [-1])
    for loss in (keras.cosine_similarity, keras.CosineSimilarity()):
        slope = gradient(lambda p: loss([[1.0, 0]], p), np.zeros((1, 2)))  # noqa: B023
        np.testing.assert_array_equal(slope, 0)
    # A floor of Keras's that is kept: vectors shorter than 1e-7 count as that long.
    close(keras.cosine_similarity([[1e-8, 0]], [[1.0, 0]]), [-0.1])


def test_derivatives_at_kinks():
    one = jnp.ones((1, 1))
    assert gradient(lambda p: keras.mean_absolute_error(one, p), one) == 0
    assert gradient(lambda p: keras.hinge(one, p), one) == -0.5


def test_regions():
    empty = np.zeros((2, 3))
    close(keras.dice(empty, empty, axis=1), [1, 1])  # As in Keras.
    t, p = np.array([[1.0, 1, 0, 0]]), np.array([[1.0, 0, 0, 0]])
    close(keras.dice(t, p), 1 / 3)
    # One false negative, which Keras 3.15 weighs by alpha, 3.16 by beta.
    close(keras.tversky([1.0, 1], [1.0, 0], alpha=0.1, beta=0.9), 0.4736842)
    close(keras.Tversky(alpha=0.9, beta=0.1)([1.0, 1], [1.0, 0]), 0.0909091)
    close(keras.tversky([1.0, 0], [1.0, 1], alpha=0.9, beta=0.1), 0.4736842)
    t, p = np.random.default_rng(0).uniform(size=(2, 3, 4, 5))
    close(keras.dice(t, p, axis=(1, 2)), [keras.dice(t[i], p[i]) for i in range(3)])


def test_sequences():
    frames = jnp.zeros((1, 2, 3))
    close(keras.ctc([[1, 0]], frames), [1.0986123])
    assert keras.ctc([[1, 1]], frames) == np.inf  # Two frames cannot hold it.
    for bad in ([[-1, 1]], [[0, 1]], [[1.5, 0]], [[3, 0]]):
        assert np.isnan(keras.ctc(jnp.array(bad), frames))
    with pytest.raises(ValueError, match=r"\(B, T, K\)"):
        keras.ctc([1, 0], frames)


def test_pairs():
    x = jnp.array([[1.0, 0], [0.6, 0.8], [0, 1]])
    want = keras.circle([0, 0, 1], x)
    close(keras.circle([[0.0], [0.0], [1.0]], x), want, 0)
    close(keras.circle([0, 0, 1], x, ref_labels=[0, 0, 1]), want)
    close(keras.circle([0, 0, 1], x, ref_embeddings=x), want)
    assert np.isnan(keras.circle([0.0, 0, 0.5], x)[2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keras.binary_crossentropy(1.0, 1.0, label_smoothing=-0.5), "label_smoothing"),
        (lambda: keras.categorical_crossentropy([[1]], [[1.0]], False, 2), "label_smoothing"),
        (lambda: keras.huber(1.0, 1.0, -1.0), "delta"),
        (lambda: keras.binary_focal_crossentropy(1.0, 1.0, gamma=-1), "gamma"),
        (lambda: keras.categorical_generalized_cross_entropy([0], [[1.0]], 2.0), "q must be"),
        (lambda: keras.binary_crossentropy([[1]], [[1.0]], axis=True), "axis must be an integer"),
        (lambda: keras.cosine_similarity([[1]], [[1.0]], axis=3), "axis 3"),
        (lambda: keras.tversky(1.0, 1.0, alpha=-1), "alpha"),
        (lambda: keras.categorical_crossentropy([0], [[0.5, 0.5]]), "sparse"),
        (lambda: keras.sparse_categorical_crossentropy([[0, 1]], [[0.5, 0.5]]), "one-hot"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.filterwarnings("ignore:.*has one class")
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_class():
    for loss in (keras.categorical_crossentropy, keras.categorical_focal_crossentropy):
        with pytest.warns(SyntaxWarning, match="binary_crossentropy"):
            loss([[1.0]], [[0.5]])
    with pytest.warns(SyntaxWarning, match="binary_crossentropy"):
        keras.sparse_categorical_crossentropy([0], [[0.5]])


@pytest.mark.parametrize("loss", MEANS + ROWS, ids=lambda f: f.__name__)
@pytest.mark.few(4)
def test_jit_and_vmap(loss):
    t, p = np.random.default_rng(0).dirichlet(np.ones(3), (2, 5)).astype("f")
    want = loss(t, p)
    close(jax.jit(loss)(t, p), want)
    close(jax.vmap(loss)(t, p), want)
