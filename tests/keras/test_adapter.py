"""`as_keras_loss`: what it takes, weights, masks, labels, and what it refuses."""

import functools
import inspect
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
import jaxloss.keras
import jaxloss.tf
from jaxloss.keras import _inputs, as_keras_loss
from tests.cases import CASES
from tests.declared import FUNCTIONS

pytestmark = pytest.mark.usefixtures("implicit_promotions")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3)).astype("f")
Y = np.array([0, 2, 1, 1], np.int32)
W = np.array([2.0, 0.0, 0.5, 1.0], "f")
LOSSES = np.log(np.exp(X).sum(-1)) - X[np.arange(4), Y]
integer_ce = jaxloss.softmax_cross_entropy_with_integer_labels


def close(got, want, rtol=2e-6, atol=1e-7):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def mine(y_true, y_pred):
    return integer_ce(y_pred, y_true)


def required(fn):
    """The names of the arguments that a function cannot do without."""
    return [p.name for p in inspect.signature(fn).parameters.values() if p.default is p.empty]


def takes_two(fn):
    try:
        return bool(inspect.signature(fn).bind(0, 0))
    except TypeError:
        return False


FORMS = {
    "function": integer_ce,
    "jit": jax.jit(integer_ce),
    "partial": functools.partial(integer_ce, axis=-1),
    "Loss": jaxloss.Loss(integer_ce),
    "Loss of another function": jaxloss.Loss(lambda x, y: integer_ce(x, y)),
    "keras object": jaxloss.keras.SparseCategoricalCrossentropy(from_logits=True),
    "keras function": functools.partial(
        jaxloss.keras.sparse_categorical_crossentropy, from_logits=True
    ),
    "tf function": jaxloss.tf.sparse_softmax_cross_entropy_with_logits,
    "callable": mine,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("reduction", "weights", "want"),
    [
        ("auto", None, LOSSES.mean()),
        ("sum_over_batch_size", W, (W * LOSSES).mean()),
        ("mean", W[:, None], (W * LOSSES).mean()),
        ("mean_with_sample_weight", W, (W * LOSSES).sum() / W.sum()),
        ("sum", W, (W * LOSSES).sum()),
        ("none", W, W * LOSSES),
        (None, None, LOSSES),
    ],
)
def test_every_form_and_reduction(form, reduction, weights, want):
    loss = as_keras_loss(FORMS[form], reduction)
    assert isinstance(loss, keras.losses.Loss)
    got = loss(Y, X, weights)
    assert got.dtype == jnp.float32
    close(got, want)
    close(loss.call(Y, X), LOSSES)


@pytest.mark.parametrize("name", ["mse", "MeanSquaredError", "mean_squared_error"])
def test_strings(name):
    close(as_keras_loss(name)(X, X + 1), 1)


def test_auto_is_the_reduction_of_the_loss():
    for given in (
        jaxloss.Loss(integer_ce, "weighted_mean"),
        jaxloss.keras.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight"),
    ):
        loss = as_keras_loss(given)
        assert loss.reduction == "mean_with_sample_weight"
        close(loss(Y, X, W), (W * LOSSES).sum() / W.sum())
        close(as_keras_loss(given, "sum")(Y, X, W), (W * LOSSES).sum())


def test_options_and_ignored_labels():
    loss = as_keras_loss(jaxloss.Loss(jaxloss.huber_loss, delta=0.5))
    close(loss(np.zeros((1, 2), "f"), np.array([[1.0, 0.1]], "f")), (0.375 + 0.005) / 2)
    loss = as_keras_loss(jaxloss.Loss(integer_ce, ignore_index=2))
    close(loss(Y, X), LOSSES[Y != 2].mean())
    close(loss(Y.astype("f"), X), LOSSES[Y != 2].mean())


def test_weights_of_time_steps():
    x, y = RNG.normal(size=(3, 3, 5)).astype("f"), RNG.integers(0, 5, (3, 3)).astype(np.int32)
    losses = np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, y[..., None], -1)[..., 0]
    loss = as_keras_loss(integer_ce)
    for w in (RNG.uniform(size=3), RNG.uniform(size=(3, 1)), RNG.uniform(size=(3, 3))):
        each = w[:, None] if w.ndim == 1 else w  # One for each example, never for each step.
        close(loss(y, x, w), (each * losses).mean())


def test_a_column_of_predictions_and_flat_labels():
    p, t = X[:, :1], X[:, 1]
    for fn in (jaxloss.squared_error, lambda y_true, y_pred: jnp.mean((y_true - y_pred) ** 2, -1)):
        close(as_keras_loss(fn)(t, p), np.mean((X[:, 0] - t) ** 2))
        close(as_keras_loss(fn)(p, t), np.mean((X[:, 0] - t) ** 2))


def test_class_numbers_in_every_dtype():
    x = np.zeros((2, 300), "f")
    x[0, 257] = x[1, 3] = 5
    want = np.log(299 + np.exp(5)) - 5
    for dtype in ("int32", "uint16", "float32", "float16"):
        for y in (np.array([257, 3], dtype), np.array([[257], [3]], dtype)):
            close(as_keras_loss(integer_ce)(y, x), want)
    # What Keras makes of 257 in bfloat16 is 256; here labels are never cast to the loss's dtype.
    loss = as_keras_loss(integer_ce, dtype="bfloat16")
    got = loss(np.array([257, 3], np.int32), x)
    assert got.dtype == jnp.bfloat16
    close(got.astype("f"), want, 1e-2)


@pytest.mark.parametrize("bad", [0.5, -0.5, np.nan, np.inf, 2.0**24, -1.0, 3.0])
def test_floats_that_are_no_class_are_nan_in_value_and_gradient(bad):
    loss = as_keras_loss(integer_ce, "none")
    y = np.array([0, bad, 1, 1], "f")
    assert np.isnan(loss(y, X)).tolist() == [False, True, False, False]
    gradient = jax.grad(lambda x: jnp.sum(loss(y, x)))(X)
    assert np.isnan(gradient).all(-1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 2**11), ("float32", 2**24)])
def test_floats_that_may_be_another_class_are_none(dtype, limit):
    y = jnp.array([limit - 1, limit, limit + 1], dtype)
    assert y[1] == y[2]  # Rounded: nobody can tell which it was.
    got = _inputs.class_ids(y)
    assert got.tolist() == [limit - 1, _inputs.BAD_LABEL, _inputs.BAD_LABEL]


@pytest.mark.parametrize("case", [c for c in CASES if c.targets == "sign"], ids=str)
def test_labels_of_hinges_are_signs(case):
    """Those of Keras's own may be 0 and 1; of ours `checkify` finds that they are not signs."""
    for loss in (as_keras_loss(case.fn), as_keras_loss(jaxloss.Loss(case.fn))):
        checked = checkify.checkify(loss)
        assert checked(np.sign(X), X)[0].get() is None
        assert "must be -1 or 1" in checked((X > 0).astype("f"), X)[0].get()
    for name in ("hinge", "SquaredHinge"):
        assert checkify.checkify(as_keras_loss(name))((X > 0).astype("f"), X)[0].get() is None


def test_nothing_but_rows_that_count_matters():
    loss = as_keras_loss(integer_ce)
    bad = X.copy()
    bad[1] = np.nan
    value, gradient = jax.value_and_grad(lambda x: loss(Y, x, W))(bad)
    want, clean = jax.value_and_grad(lambda x: loss(Y, x, W))(X)
    close(value, want)
    close(gradient, np.where(W[:, None] == 0, 0, clean))


def test_dtype():
    assert as_keras_loss(integer_ce)(Y, X.astype(jnp.bfloat16)).dtype == jnp.float32
    assert as_keras_loss(integer_ce, dtype="float16")(Y, X).dtype == jnp.float16
    policy = keras.DTypePolicy("mixed_bfloat16")
    assert as_keras_loss(integer_ce, dtype=policy)(Y, X).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = X.astype("d")
        exact = np.log(np.exp(wide).sum(-1)) - wide[np.arange(4), Y]
        for fn in (integer_ce, "keras object", "callable"):
            loss = as_keras_loss(FORMS.get(fn, fn), dtype="float64")
            got = loss(Y, X)
            assert got.dtype == jnp.float64
            close(got, exact.mean(), 1e-14)


def test_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        loss = as_keras_loss(integer_ce)
        close(loss(Y, jnp.asarray(X, jnp.bfloat16), W), (W * LOSSES).mean(), 1e-2)


def test_names():
    assert as_keras_loss(integer_ce).name == integer_ce.__name__
    assert as_keras_loss(jaxloss.Loss(jaxloss.l2_loss)).name == "l2_loss"
    assert as_keras_loss(mine).name == "mine"
    assert as_keras_loss(functools.partial(mine)).name == "mine"
    assert as_keras_loss("mse", name="error").name == "error"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "a loss is a function, a Loss or a name, got int"),
        (lambda y_pred, y_true: y_pred, TypeError, r"'y_pred' first.*give jaxloss.Loss\("),
        (lambda logits, labels: logits, TypeError, r"'logits' first"),
        (lambda y_true: y_true, TypeError, "takes y_true, but Keras passes y_true and y_pred"),
        (keras.losses.Huber(), TypeError, "a loss of Keras already"),
        (jaxloss.Loss(integer_ce, axis_name="d"), ValueError, "no mapped axis 'd'"),
        ("mean_square_error", ValueError, "mean_squared_error"),
    ],
)
def test_refused(given, error, message):
    with pytest.raises(error, match=message):
        as_keras_loss(given)


@pytest.mark.parametrize("name", [fn.__name__ for fn in FUNCTIONS if not takes_two(fn)])
def test_functions_of_other_arguments(name):
    """The error is a sentence that says what they take, and what to do."""
    *others, last = required(getattr(jaxloss, name))
    taken = f"{', '.join(others)} and {last}" if others else last
    with pytest.raises(TypeError) as caught:
        as_keras_loss(getattr(jaxloss, name))
    start = f"{name} takes {taken}, but Keras passes y_true and y_pred: give a function of these "
    assert str(caught.value).startswith(f"{start}two that calls it")
    assert str(caught.value).endswith(", or 'ctc', Keras's own form of it") == (name == "ctc_loss")


def test_a_function_that_calls_one_of_other_arguments():
    def nll(y_true, y_pred):
        return jaxloss.gaussian_nll(y_pred[:, 0], y_true, jnp.exp(y_pred[:, 1]))

    close(as_keras_loss(nll)(Y, X), np.mean(((X[:, 0] - Y) ** 2 / np.exp(X[:, 1]) + X[:, 1]) / 2))
    loss = as_keras_loss(functools.partial(jaxloss.gaussian_nll, variance=2.0))
    close(loss(X, X + 1), (0.5 + np.log(2)) / 2)


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduction"):
        as_keras_loss(integer_ce, "average")


def test_one_number_for_the_batch_cannot_be_weighed():
    loss = as_keras_loss(lambda y_true, y_pred: jnp.mean((y_true - y_pred) ** 2))
    close(loss(X, X + 1), 1)
    with pytest.raises(ValueError, match=r"returned a scalar for a batch.*for each example"):
        loss(X, X + 1, W)


def test_signature():
    assert list(inspect.signature(as_keras_loss).parameters) == [
        "loss",
        "reduction",
        "name",
        "dtype",
    ]


LAZY = """
import sys
import jaxloss, jaxloss.keras
assert "keras" not in sys.modules
from jaxloss.keras import as_keras_loss
import keras
assert keras.backend.backend() == "numpy"
try:
    as_keras_loss("mse")
except RuntimeError as error:
    print(error)
"""


def test_keras_is_imported_late_and_has_to_run_on_jax():
    env = os.environ | {"KERAS_BACKEND": "numpy"}
    run = [sys.executable, "-c", LAZY]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
    assert "Keras runs on numpy" in done.stdout, done.stderr[-2000:]
    assert 'KERAS_BACKEND="jax"' in done.stdout


@pytest.mark.parametrize("reduction", ["sequence_mean", "sequence_sum", "class_weighted_mean"])
def test_reductions_that_keras_does_not_have(reduction):
    with pytest.raises(ValueError, match=f"Keras has no reduction for '{reduction}'"):
        as_keras_loss(jaxloss.Loss(jaxloss.squared_error, reduction))
