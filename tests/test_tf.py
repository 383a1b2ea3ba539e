"""`jaxloss.tf`: TensorFlow's documented numbers, names, shape rules and dtypes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import Loss, tf


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


SIGMOID = tf.sigmoid_cross_entropy_with_logits
WEIGHTED = tf.weighted_cross_entropy_with_logits
SOFTMAX = tf.softmax_cross_entropy_with_logits
SPARSE = tf.sparse_softmax_cross_entropy_with_logits

LOGITS_3X10 = np.fromstring(
    """
    -3.27133679 -22.6687183 -4.15501118 -5.14916372 -5.94609261
    -6.93373299 -5.72364092 -9.75725174 -3.15748906 -4.84012318
    -11.7642536 -45.3370094 -3.17252636 4.34527206 -17.7164974
    -.595088899 -17.6322937 -2.36941719 -6.82157373 -3.47369862
    -4.55468369 -1.07379043 -3.73261762 -7.08982277 -.0288562477
    -5.46847963 -.979336262 -3.03667569 -3.29502845 -2.25880361
    """,
    np.float32,
    sep=" ",
).reshape(3, 10)


def close(got, want, rtol=1e-6, atol=0.0):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def test_sigmoid_numbers():
    logits, labels = jnp.array([1.0, -1, 0, 1, -1, 0, 0]), jnp.array([0, 0, 0, 1, 1, 1, 0.5])
    want = [1.3132617, 0.3132617, 0.6931472, 0.3132617, 1.3132617, 0.6931472, 0.6931472]
    close(SIGMOID(labels, logits), want, 2e-7)
    labels, logits = jnp.array([0.0, 0, 1, 1, 1]), jnp.array([-1.0, -1, 0, 1, 2])
    close(jnp.mean(SIGMOID(labels, logits)), 0.35197204, 2e-7)


def test_three_ways_to_one_binary_number():
    x, z = jnp.array([1.0, -1, 0]), jnp.array([1.0, 1, 0])
    two = jnp.stack([jnp.zeros(3), x], -1)
    want = [0.31326166, 1.3132616, 0.6931472]
    close(SIGMOID(z, x), want, 2e-7)
    close(SPARSE(z.astype(int), two), want, 2e-7)
    close(SOFTMAX(jnp.stack([1 - z, z], -1), two), want, 2e-7)


def test_softmax_numbers():
    logits, labels = jnp.array([[1.0, 2, 3]] * 3), jnp.full(3, 2)
    dense = jax.nn.one_hot(labels, 3)
    close(SPARSE(labels, logits), np.full(3, 0.40760595), 2e-7)
    close(SOFTMAX(dense, logits), np.full(3, 0.40760595), 2e-7)
    close(SOFTMAX(dense.T, logits.T, 0), np.full(3, 0.40760595), 2e-7)
    softmax = jax.grad(lambda x: jnp.sum(SOFTMAX(jnp.zeros((1, 3)).at[0, 0].set(1), x)))
    close(softmax(logits[:1])[0] + jnp.eye(3)[0], [0.09003057, 0.24472848, 0.66524094])


def test_3x10_numbers():
    labels = np.array([2, 3, 4])
    printed = [2.0077195, 0.00928135, 0.6800677]  # the second with TensorFlow's own rounding
    exact = [2.00771960713, 0.00928137293923, 0.680067755268]  # mpmath
    for loss in (
        SPARSE(labels, LOGITS_3X10),
        SOFTMAX(np.eye(10, dtype="f")[labels], LOGITS_3X10),
    ):
        close(loss, printed, 2e-7, 3e-8)
        close(loss, exact, 2e-7)
    sparse = jaxloss.softmax_cross_entropy_with_integer_labels
    close(Loss(sparse)(LOGITS_3X10, labels), 0.8990229, 2e-7)
    close(Loss(sparse, "sum")(LOGITS_3X10, labels), 2.6970687, 2e-7)


def test_probability_numbers():
    p = jnp.array([[0.9, 0.05, 0.05], [0.5, 0.89, 0.6], [0.05, 0.01, 0.94]])
    p /= jnp.broadcast_to(jnp.sum(p, -1, keepdims=True), p.shape)  # tf.keras does
    loss = jaxloss.categorical_cross_entropy_with_integer_labels(p, jnp.arange(3))
    close(loss, [0.10536055, 0.8046684, 0.0618754], 1e-6)


@pytest.mark.parametrize(
    ("reduction", "weights", "want"),
    [
        ("mean", None, 0.8149245),
        ("sum", None, 1.629849),
        ("none", None, [0.9162908, 0.7135582]),
        ("mean", [1.0, 0.0], 0.4581454),
    ],
)
def test_keras_binary_numbers(reduction, weights, want):
    def rows(p, t):
        return jnp.mean(jaxloss.binary_cross_entropy(p, t), -1)

    p, t = jnp.array([[0.6, 0.4], [0.4, 0.6]]), jnp.array([[0.0, 1], [0, 0]])
    close(Loss(rows, reduction)(p, t, weights=weights), want, 2e-7)


@pytest.mark.parametrize("q", [0.0, 0.3, 1.0, 5.0])
def test_weighted_against_the_formula_in_float64(q):
    with jax.enable_x64(True):
        x = np.concatenate([np.linspace(-40, 40, 81), [-1e-9, 1e-9, -700, 700]])
        for z in (0.0, 0.25, 1.0):
            y = np.full_like(x, z)
            tail = np.log1p(np.exp(-np.abs(x))) + np.maximum(-x, 0)
            # TensorFlow's 1 + (q - 1) * z loses digits of a small q.
            want = (1 - z) * x + ((1 - z) + q * z) * tail
            scale = np.abs((1 - z) * x) + ((1 - z) + q * z) * tail
            got = WEIGHTED(jnp.asarray(y), jnp.asarray(x), q)
            assert got.dtype == jnp.float64
            assert np.all(np.abs(got - want) <= 4e-16 * scale)
            by_hand = (1 - z) / (1 + np.exp(-x)) - q * z / (1 + np.exp(x))
            close(jax.grad(lambda x: jnp.sum(WEIGHTED(y, x, q)))(x), by_hand, 1e-13, 1e-300)  # noqa: B023
    close(WEIGHTED(jnp.ones(2), jnp.zeros(2), jnp.array([q, 1])), np.log(2) * np.array([q, 1]))


@pytest.mark.parametrize(
    ("fn", "names", "defaults"),
    [
        (SIGMOID, ["labels", "logits", "name"], [None]),
        (WEIGHTED, ["labels", "logits", "pos_weight", "name"], [None]),
        (SOFTMAX, ["labels", "logits", "axis", "name"], [-1, None]),
        (SPARSE, ["labels", "logits", "name"], [None]),
    ],
)
def test_argument_names_and_order(fn, names, defaults):
    parameters = inspect.signature(fn).parameters.values()
    assert [p.name for p in parameters] == names
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    assert [p.default for p in parameters if p.default is not p.empty] == defaults
    assert fn.__name__ in tf.__all__


def operands(fn):
    """Lists for each of its arguments."""
    labels, logits = [[0.0, 1.0], [1.0, 0.0]], [[1.0, 2.0], [-1.0, 0.5]]
    given = {"labels": [1, 0] if fn is SPARSE else labels, "logits": logits}
    return given | ({"pos_weight": [[2.0, 1.0]]} if fn is WEIGHTED else {})


@pytest.mark.parametrize("name", tf.__all__)
def test_lists_and_the_name_of_an_operation(name):
    fn = getattr(tf, name)
    lists = operands(fn)
    want = fn(**{k: jnp.asarray(v) for k, v in lists.items()})
    np.testing.assert_array_equal(fn(**lists), want)
    np.testing.assert_array_equal(jax.jit(lambda: fn(**lists, name="loss"))(), want)


@pytest.mark.parametrize("name", tf.__all__)
def test_what_is_missing_is_named(name):
    fn = getattr(tf, name)
    lists = operands(fn)
    for missing in lists:
        with pytest.raises(ValueError, match=f"{missing} is missing"):
            fn(**lists | {missing: None})


@pytest.mark.parametrize(
    ("fn", "labels", "logits", "message"),
    [
        (SIGMOID, jnp.zeros(2), jnp.zeros((2, 1)), r"same shape.*\(2, 1\).*\(2,\)"),
        (SIGMOID, jnp.zeros((1, 3)), jnp.zeros((2, 3)), r"same shape.*\(2, 3\).*\(1, 3\)"),
        (SIGMOID, 1.0, jnp.zeros(3), r"same shape.*\(3,\).*\(\)"),
        (lambda z, x: WEIGHTED(z, x, 2.0), jnp.zeros(2), jnp.zeros(3), r"\(3,\).*\(2,\)"),
        (
            lambda z, x: WEIGHTED(z, x, jnp.ones(2)),
            jnp.zeros(3),
            jnp.zeros(3),
            r"pos_weight of shape \(2,\).*\(3,\)",
        ),
        (SOFTMAX, jnp.zeros((2, 4)), jnp.zeros((2, 3)), r"\(2, 3\).*\(2, 4\)"),
        (SOFTMAX, jnp.zeros(3), jnp.zeros((2, 3)), r"\(2, 3\).*\(3,\)"),
        (SPARSE, jnp.zeros((2, 3), int), jnp.zeros((2, 3)), r"Rank mismatch.*\(2, 3\).*\(2, 3\)"),
        (SPARSE, jnp.zeros((2, 1), int), jnp.zeros((2, 3)), r"Rank mismatch.*\(2, 1\).*\(2, 3\)"),
        (SPARSE, 0, jnp.zeros((2, 3)), r"Rank mismatch.*\(\).*\(2, 3\)"),
        (SPARSE, jnp.zeros(3, int), jnp.zeros((2, 3)), r"\(3,\).*\(2,\)"),
        (SPARSE, 0, 1.0, "logits cannot be a scalar"),
    ],
)
def test_shape_errors(fn, labels, logits, message):
    for call in (fn, jax.jit(fn), lambda *a: jax.eval_shape(fn, *a)):
        with pytest.raises(ValueError, match=message):
            call(labels, logits)


def test_dtype_errors():
    with pytest.raises(TypeError, match="labels must be integers"):
        SPARSE(jnp.zeros(2), jnp.zeros((2, 3)))
    for fn in (SIGMOID, SOFTMAX):
        with pytest.raises(TypeError, match="logits must be floating point"):
            fn(jnp.zeros(2), jnp.zeros(2, int))


def sigmoid_labels(shape):
    return jnp.linspace(0, 1, 12).reshape(shape)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(
    ("fn", "labels"),
    [
        (SIGMOID, sigmoid_labels((4, 3))),
        (lambda z, x: WEIGHTED(z, x, 3.0), sigmoid_labels((4, 3))),
        (SOFTMAX, jax.nn.softmax(sigmoid_labels((4, 3)))),
        (SPARSE, jnp.array([0, 1, 2, 2])),
    ],
    ids=["sigmoid", "weighted", "softmax", "sparse"],
)
@pytest.mark.few(4)
def test_half_precision_is_computed_in_float32(fn, labels, dtype):
    x = (8 * jnp.cos(jnp.arange(12.0)).reshape(4, 3)).astype(dtype)
    wide = x.astype(jnp.float32)
    got = fn(labels, x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, fn(labels, wide).astype(dtype))
    gradient = jax.grad(lambda x: jnp.sum(fn(labels, x)).astype(jnp.float32))(x)
    assert gradient.dtype == dtype
    want = jax.grad(lambda x: jnp.sum(fn(labels, x)))(wide)
    eps = float(jnp.finfo(dtype).eps)
    close(gradient.astype(jnp.float32), want, max(eps, 1e-7), float(jnp.finfo(dtype).tiny))


def test_label_gradients():
    x = jnp.array([[1.0, -2.0, 0.0], [20.0, 0.0, -1.0]])
    z = jnp.full_like(x, 1 / 3)
    close(jax.grad(lambda z: jnp.sum(SIGMOID(z, x)))(z), -x)
    by_label = 2 * np.logaddexp(0, -x) - np.logaddexp(0, x)
    close(jax.grad(lambda z: jnp.sum(WEIGHTED(z, x, 2.0)))(z), by_label)
    wide = np.asarray(x, "d")
    want = np.logaddexp.reduce(wide, -1, keepdims=True) - wide
    gradient = jax.grad(lambda z: jnp.sum(SOFTMAX(z, x)))(z)
    close(gradient, want, 1e-6)
    assert np.all(gradient != 0)


@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1, -(2**31)])
def test_bad_labels_are_nan_in_value_and_gradient(bad):
    labels, logits = jnp.array([1, bad, 2]), jnp.asarray(LOGITS_3X10[:, 2:5])

    def f(x):
        loss = SPARSE(labels, x)
        return jnp.sum(loss), loss

    gradient, loss = jax.jit(jax.grad(f, has_aux=True))(logits)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient), [[False] * 3, [True] * 3, [False] * 3])
