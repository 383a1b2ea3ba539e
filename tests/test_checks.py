"""Wrong shapes, dtypes and settings are errors at trace time; bad labels are loud at run time."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.typing import ArrayLike

import jaxloss
from tests.cases import FIRST_OF_EACH_KIND, FIRST_ROWS
from tests.cases._case import SAMPLES
from tests.declared import FUNCTIONS, arguments, takes

slow = pytest.mark.slow
KEYWORD = inspect.Parameter.KEYWORD_ONLY
F, I, B = jnp.float32, jnp.int32, jnp.bool_  # noqa: E741


def public(case):
    """The public function of a row, with the settings that it cannot do without."""
    fn = getattr(jaxloss, case.function)
    required = [p for p in inspect.signature(fn).parameters.values() if p.default is p.empty]
    return case.fn if len(required) > 2 else fn


def parameters(fn):
    return inspect.signature(fn).parameters


def adapted(case):
    """Whether a row's function is one of the tests' own, made to fit the table."""
    return not getattr(case.fn, "func", case.fn).__module__.startswith("jaxloss")


PLAIN = [case for case in FIRST_ROWS if not adapted(case)]
ELEMENTWISE = [public(c) for c in PLAIN if c.elementwise]
DENSE = [public(c) for c in PLAIN if not c.elementwise and not c.integer]
INTEGER = [public(c) for c in PLAIN if c.integer]
EVERY = [*ELEMENTWISE, *DENSE, *INTEGER]
# One of each kind runs every time: the checks are the same pieces in all of them.
OF_EACH_KIND = [public(c) for c in FIRST_OF_EACH_KIND if c in PLAIN]
CROSS_ENTROPY = jaxloss.softmax_cross_entropy_with_integer_labels


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def struct(*shape, dtype=F):
    return jax.ShapeDtypeStruct(shape, dtype)


def each(fns):
    def name(fn):
        return getattr(getattr(fn, "func", fn), "__name__", None)

    rows = [pytest.param(fn, marks=() if fn in OF_EACH_KIND else slow) for fn in fns]
    return pytest.mark.parametrize("fn", rows, ids=name)


def fails(error, words, fn, *args, **settings):
    """Eagerly and when traced, with every word in the message."""
    fn = partial(fn, **settings)
    arrays = [jnp.zeros(a.shape, a.dtype) for a in args]
    for call in (lambda: fn(*arrays), lambda: jax.eval_shape(fn, *args)):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        for word in words:
            assert word in str(caught.value), f"{word!r} not in {caught.value}"


@pytest.mark.parametrize("dtype", [I, jnp.bool_, jnp.uint8, jnp.complex64])
@each(EVERY)
def test_predictions_must_be_floating(fn, dtype):
    labels = struct(2, dtype=I) if fn in INTEGER else struct(2, 3)
    words = [str(jnp.dtype(dtype)), "(2, 3)", "must be floating point"]
    fails(TypeError, words, fn, struct(2, 3, dtype=dtype), labels)


@pytest.mark.parametrize(
    ("labels", "logits"),
    [((2, 1), (2,)), ((2,), (2, 1)), ((3,), (4,)), ((2, 3), (2, 4)), ((1, 2, 3), (2, 3))],
)
@each([f for f in EVERY if f not in INTEGER])
def test_dense_labels_of_a_wrong_shape(fn, labels, logits):
    words = [str(labels), str(logits), list(parameters(fn))[1]]
    fails(ValueError, words, fn, struct(*logits), struct(*labels))


@each(INTEGER)
@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ((2, 3), (2, 3)),
        ((2, 1), (2, 3)),
        ((3,), (2, 3)),
        ((), (2, 3)),
        ((2,), (3,)),
        ((4,), (2, 4)),
    ],
)
def test_integer_labels_of_a_wrong_shape(fn, labels, logits):
    words = [str(labels), "labels of shape", str(logits[:-1])]
    fails(ValueError, words, fn, struct(*logits), struct(*labels, dtype=I))


@pytest.mark.parametrize("dtype", [F, B])
@each(INTEGER)
def test_labels_that_are_not_integers(fn, dtype):
    words = ["labels must be integers", str(jnp.dtype(dtype)), "(2,)"]
    fails(TypeError, words, fn, struct(2, 3), struct(2, dtype=dtype))


def distributions():
    """The functions that take a distribution over classes for each row, and its name."""
    for fn in FUNCTIONS:
        of_rows = {k: o.of for k, o in takes(fn).operands.items() if o.kind == "row"}
        for name in list(of_rows)[1:]:
            if of_rows[name] == "distribution":
                yield pytest.param(fn, name, id=fn.__name__)


@pytest.mark.few(4)
@pytest.mark.parametrize(("fn", "name"), list(distributions()))
def test_class_numbers_given_for_a_distribution(fn, name):
    """The message gives the one-hot labels to write, and they are right."""
    words = ["(2,)", "(2, 3)", "with_integer_labels", f"jax.nn.one_hot({name}, 3)"]
    fails(ValueError, words, fn, struct(2, 3), struct(2, dtype=I))
    for options in ({}, {"axis": 1} if "axis" in parameters(fn) else {}):
        p, labels = jnp.full((2, 3, 3), 1 / 3), jnp.array([[0, 1, 2], [2, 1, 1]])
        with pytest.raises(ValueError, match=r"jax\.nn\.one_hot\(") as caught:
            fn(p, labels, **options)
        (written,) = re.findall(r"jax\.nn\.one_hot\(.*?\)", str(caught.value))
        one_hot = eval(written, {"jax": jax, name: labels})
        want = jax.nn.one_hot(labels, 3, axis=options.get("axis", -1))
        np.testing.assert_array_equal(one_hot, want)
        assert fn(p, one_hot, **options).shape == (2, 3)


@each([f for f in EVERY if "where" in parameters(f)])
def test_where(fn):
    labels = struct(2, dtype=I) if fn in INTEGER else struct(2, 3)
    masked = lambda x, y, m: fn(x, y, where=m)
    for dtype in (F, I):
        words = ["where must be boolean", str(jnp.dtype(dtype)), "(2, 3)"]
        fails(TypeError, words, masked, struct(2, 3), labels, struct(2, 3, dtype=dtype))
    for shape in ((3,), (2, 2), (3, 3), (1, 2, 3)):
        words = [f"where of shape {shape}", "(2, 3)" if len(shape) > 1 else "(2,"]
        fails(ValueError, words, masked, struct(2, 3), labels, struct(*shape, dtype=B))


@pytest.mark.parametrize("axis", [2, -3, (0, 0), (1, -1), (0, 2), ()])
@each([f for f in EVERY if "axis" in parameters(f)])
def test_axis(fn, axis):
    labels = struct(2, dtype=I) if fn in INTEGER else struct(2, 3)
    fails(ValueError, [f"axis {axis}", "rank 2"], fn, struct(2, 3), labels, axis=axis)


@pytest.mark.parametrize("shape", [(), (2,), (4,), (1,), (3, 1), (1, 3)])
def test_class_weights(shape):
    fn = lambda x, y, w: CROSS_ENTROPY(x, y, class_weights=w)
    words = [f"class_weights of shape {shape}", "3 classes"]
    fails(ValueError, words, fn, struct(2, 3), struct(2, dtype=I), struct(*shape))


@pytest.mark.parametrize(
    ("fn", "option", "bad"),
    [
        *[(jaxloss.sigmoid_binary_cross_entropy, "label_smoothing", v) for v in (-0.1, 1.5, 2)],
        *[(CROSS_ENTROPY, "label_smoothing", v) for v in (-0.1, 1.5, float("nan"))],
        *[(jaxloss.sigmoid_focal_loss, "alpha", v) for v in (-0.1, 1.1)],
        *[(jaxloss.sigmoid_focal_loss, "gamma", v) for v in (-1, -0.1)],
        *[(jaxloss.softmax_focal_loss, "gamma", v) for v in (-1, float("nan"))],
        (jaxloss.huber_loss, "delta", -1),
        (jaxloss.wing_loss, "width", -1),
        *[(jaxloss.wing_loss, "curvature", v) for v in (-1, 0)],
        *[(jaxloss.quantile_loss, "quantile", v) for v in (-0.1, 1.1)],
        (jaxloss.absolute_percentage_error, "epsilon", -1),
        (jaxloss.cosine_similarity, "epsilon", -1),
        *[(jaxloss.distillation_loss, "temperature", v) for v in (-1, float("nan"))],
    ],
)
def test_options_out_of_range(fn, option, bad):
    labels = struct(2, dtype=I) if fn is CROSS_ENTROPY else struct(2, 3)
    fails(ValueError, [option, "must be in", str(bad)], fn, struct(2, 3), labels, **{option: bad})


def test_smooth_labels():
    for bad in (-0.1, 1.1):
        fails(ValueError, ["alpha", str(bad)], jaxloss.smooth_labels, struct(2, 3), alpha=bad)
    fails(TypeError, ["labels", "int32"], jaxloss.smooth_labels, struct(2, dtype=I), alpha=0.1)
    masked = lambda y, m: jaxloss.smooth_labels(y, 0.1, where=m)
    fails(ValueError, ["(3,)", "(2, 3)"], masked, struct(2, 3), struct(3, dtype=B))
    fails(ValueError, ["axis 2", "rank 2"], jaxloss.smooth_labels, struct(2, 3), alpha=0, axis=2)


NUMBERS = ArrayLike, ArrayLike | None  # As settings are annotated that may be traced.


@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_options_of_a_wrong_shape(fn):
    batch = arguments(fn, np.random.default_rng(0), 4)
    floats = {k for k, operand in takes(fn).operands.items() if operand.of != "integer"}
    for option, parameter in parameters(fn).items():
        setting = isinstance(parameter.default, (int, float)) or option in floats
        if parameter.annotation not in NUMBERS or not setting or option in batch:
            continue
        for shape in ((7,), (7, 1)):
            said = refusal(lambda x, k=option: fn(**batch, **{k: x}), np.ones(shape, np.float32))
            assert f"{option} of shape {shape}" in said


@pytest.mark.few(15)
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
def test_arrays_out_of_range(fn):
    """What is refused as a number is as an array too, in the same words, and by `checkify`."""
    batch = arguments(fn, np.random.default_rng(0), 4)
    for option, parameter in parameters(fn).items():
        number = parameter.annotation in NUMBERS
        for bad in (-1.0, 2.0) if number and option not in batch else ():
            run = lambda value, option=option: fn(**batch, **{option: value})
            message = refusal(run, bad)
            if "must be in" not in message:
                continue
            assert message.startswith(option)
            assert refusal(run, np.float32(bad)) == refusal(run, jnp.float32(bad)) == message
            checked = checkify.checkify(jax.jit(run))
            assert f"{option} must be in" in checked(jnp.float32(bad))[0].get()
            good = 1.0 if parameter.default is None else parameter.default
            assert checked(jnp.float32(good))[0].get() is None


def refusal(run, value):
    """The words in which a value is refused, if it is."""
    try:
        jax.eval_shape(lambda: run(value))
    except ValueError as error:
        return str(error)
    except TypeError:
        pass  # Of a mask.
    return ""


@pytest.mark.parametrize(
    ("fn", "option"),
    [
        (fn, name)
        for fn in FUNCTIONS
        for name, operand in takes(fn).operands.items()
        if operand.kind == "entries" and parameters(fn)[name].kind is KEYWORD
    ],
)
def test_settings_along_trailing_axes(fn, option):
    """As in optax, TensorFlow and torch; also with a mask, under `vmap`, and in a Loss."""
    rng = np.random.default_rng(0)
    batch = arguments(fn, rng, 4)
    whole = next(iter(batch.values())).shape
    batch.pop(option, None)
    value = SAMPLES[takes(fn).operands[option].of](rng, whole[-1:]).astype("f")
    want = fn(**batch, **{option: np.broadcast_to(value, whole)})
    np.testing.assert_array_equal(fn(**batch, **{option: value}), want)
    where = np.array([True, False, True, True])
    loss = jaxloss.Loss(fn, "none", **{option: value})
    np.testing.assert_array_equal(loss(**batch, where=where), np.where(where[:, None], want, 0))
    rows = jax.vmap(lambda batch: fn(**batch, **{option: value}))(batch)
    np.testing.assert_allclose(rows, want, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (1, 1), (2, 1), (1, 3), (2, 3)])
@each(ELEMENTWISE)
def test_allowed_elementwise_shapes(fn, shape):
    p, z = jnp.linspace(0.1, 0.9, 6).reshape(2, 3), jnp.full(shape, 0.25)
    got = fn(p, z)
    assert got.shape == (2, 3)
    np.testing.assert_array_equal(got, fn(p, jnp.full((2, 3), 0.25)))
    assert fn(0.5, 1).shape == () and fn(0.5, p).shape == (2, 3)


@pytest.mark.parametrize("dtype", [B, jnp.uint8, I, jnp.float16, jnp.bfloat16, F])
@each([*ELEMENTWISE, *DENSE])
def test_allowed_label_dtypes_and_size_one_axes(fn, dtype):
    p, one = jnp.linspace(0.1, 0.9, 6).reshape(2, 3), jnp.array([[0, 1, 0]])
    want = fn(p, jnp.tile(one, (2, 1)).astype(F))
    got = fn(p, one.astype(dtype))
    assert got.dtype == F and got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "dtype",
    [jnp.uint8, *(pytest.param(d, marks=slow) for d in (jnp.int8, jnp.int16, I, jnp.uint32))],
)
@each(INTEGER)
def test_allowed_integer_labels(fn, dtype):
    p = jnp.full((2, 200), 1 / 200).at[:, 100].set(0.25)
    labels = jnp.array([100, 100])
    np.testing.assert_array_equal(fn(p, labels[:1].astype(dtype)), fn(p, labels))
    assert fn(p[0], 100).shape == ()
    assert fn(p, jnp.array(100 + 2 * 200, I), axis=None).shape == () and fn(p, 3, axis=None) > 0


@pytest.mark.parametrize("bad", [-1, *(pytest.param(k, marks=slow) for k in (3, -100, 2**31 - 1))])
@each(INTEGER)
def test_a_bad_label_is_reported_by_checkify_and_nan_without_it(fn, bad):
    p = jnp.array([[0.5, 0.25, 0.25]] * 3)
    good, labels = jnp.array([0, 1, 2]), jnp.array([0, bad, 2])
    checked = checkify.checkify(jax.jit(fn))
    assert checked(p, good)[0].get() is None
    error, loss = checked(p, labels)
    assert np.isnan(loss[1])
    wanted = rf"labels must be in \[0, 3\), but reach from {min(bad, 0)} to {max(bad, 2)}"
    assert re.search(wanted, error.get())
    gradient_of = jax.grad(lambda p, y: jnp.sum(fn(p, y)))
    assert "labels must be in" in checkify.checkify(jax.jit(gradient_of))(p, labels)[0].get()
    for wrap in (lambda f: f, jax.jit):
        loss, gradient = wrap(fn)(p, labels), wrap(gradient_of)(p, labels)
        np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
        np.testing.assert_array_equal(np.isnan(gradient), np.tile(np.isnan(loss), (3, 1)).T)

    if "ignore_index" not in parameters(fn):
        return
    ignoring = checkify.checkify(jax.jit(partial(fn, ignore_index=bad)))
    assert ignoring(p, labels)[0].get() is None
    message = ignoring(p, jnp.array([0, bad, 7]))[0].get()
    assert f"[0, 3) or {bad}" in message
