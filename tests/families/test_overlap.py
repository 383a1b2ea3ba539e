"""Overlap losses: agreement with optax over its options and shapes, masks, limits, identities."""

import inspect
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.experimental import checkify
from mpmath import mpf

import jaxloss
from jaxloss import Loss
from jaxloss._families.overlap import Outcomes, _rarity, outcomes, share
from tests.cases._exact import ulps
from tests.programs import as_users
from tests.test_properties import close as nearly
from tests.test_transforms import close, rng

dice, binary = jaxloss.dice_loss, jaxloss.binary_dice_loss
generalized = jaxloss.multiclass_generalized_dice_loss
SHAPE = (2, 3, 4, 5)
X = rng().normal(size=SHAPE).astype(np.float32) * 2
T = np.eye(5, dtype=np.float32)[rng().integers(0, 5, SHAPE[:-1])]
SOFT = rng().dirichlet(np.ones(5), SHAPE[:-1]).astype(np.float32)
P = np.asarray(jax.nn.softmax(X))
RELU: Any = "relu"
WEIGHTS = np.arange(1, 6, dtype=np.float32) / 2


def with_gradients(fn):
    """Losses, and the gradients of their sum weighted by place, by predictions and targets."""

    def run(x, t):
        def total(*args):
            losses = fn(*args)
            places = jnp.arange(1, losses.size + 1, dtype=losses.dtype).reshape(losses.shape)
            return jnp.sum(losses * places), losses

        gradients, losses = jax.grad(total, (0, 1), has_aux=True)(x, t)
        return losses, gradients

    return jax.jit(run)


def agree(ours, theirs, x, t):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want = with_gradients(theirs)(x, t)
    got = with_gradients(ours)(x, t)
    assert got[0].shape == want[0].shape
    close(got, want, 1e-5, 1e-6)


OPTIONS = [
    {},
    {"alpha": 0.3, "beta": 0.7, "smooth": 0.5},
    {"smooth": 0.0, "reduction": "sum"},
    {"reduction": "none", "class_weights": WEIGHTS},
    {"ignore_background": True, "class_weights": WEIGHTS},
    {"ignore_background": True, "reduction": "none", "axis": (0, 1, 2)},
    {"axis": 1, "reduction": "none"},
    {"axis": (-2,)},
    {"axis": (), "reduction": "sum"},
    {"axis": (0, 2)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.few(4)
def test_agrees_with_optax(options):
    agree(partial(dice, **options), partial(optax.losses.dice_loss, **options), X, SOFT)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (3, 4, 5)], ids=str)
def test_agrees_with_optax_on_one_class(shape):
    """Also with the class axis missing in either."""
    options = {"ignore_background": True}
    x, t = (a.ravel()[: 2 * np.prod(shape, dtype=int)].reshape(2, *shape) for a in (X, SOFT))
    for a, b in ((x[..., None], t[..., None]), (x, t[..., None]), (x[..., None], t)):
        agree(partial(dice, **options), partial(optax.losses.dice_loss, **options), a, b)


@pytest.mark.parametrize(
    "x_shape, t_shape",
    [
        ((2, 30), (2, 30)),
        ((2, 30, 1), (2, 30, 1)),
        ((2, 30, 1), (2, 30)),
        ((2, 30), (2, 30, 1)),
        ((2, 5, 6), (2, 5, 6)),
        ((2, 5, 6, 1), (2, 5, 6, 1)),
        ((60,), (60,)),
        ((60, 1), (60, 1)),
        ((1,), (1,)),
    ],
    ids=str,
)
@pytest.mark.few(4)
def test_binary_agrees_with_optax(x_shape, t_shape):
    x, t = X.ravel()[: np.prod(x_shape)], SOFT.ravel()[: np.prod(t_shape)]
    x, t = x.reshape(x_shape), t.reshape(t_shape)
    agree(partial(binary, smooth=0.5), partial(optax.losses.binary_dice_loss, smooth=0.5), x, t)


@pytest.mark.parametrize("options", [{}, {"ignore_background": True, "smooth": 0.25}], ids=str)
@pytest.mark.parametrize("present", [5, 3], ids=["", "absent classes"])
def test_generalized_agrees_with_optax(options, present):
    t = T if present == 5 else np.eye(5, dtype=np.float32)[rng().integers(0, 3, SHAPE[:-1])]
    ours = partial(generalized, **options)
    theirs = partial(optax.losses.multiclass_generalized_dice_loss, **options)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want = jax.jit(jax.value_and_grad(theirs))(X, t)
    close(jax.jit(jax.value_and_grad(ours))(X, t), want, 1e-5, 1e-7)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["", "jit"])
def test_probabilities(wrap):  # optax: a tracer error under jit
    got = wrap(partial(dice, apply_softmax=False))(P, T)
    with jax.numpy_dtype_promotion("standard"):
        close(got, optax.losses.dice_loss(P, T, apply_softmax=False))
    close(got, dice(X, T), 1e-5)
    close(wrap(partial(generalized, apply_softmax=False))(P, T), generalized(X, T), 1e-5)
    # One class: optax asks for probabilities that are all one.
    p, x, t = 1 / (1 + np.exp(-X[..., 0])), X[..., 0], T[..., 0]
    close(wrap(partial(binary, apply_sigmoid=False))(p, t), binary(x, t), 1e-5)


def test_sums_of_probabilities_are_reported_by_checkify_only():
    fn = jax.jit(partial(dice, apply_softmax=False))
    halved = P * np.float32([1, 0.5])[:, None, None, None]
    assert np.all(np.isfinite(fn(halved, T)))
    checked = checkify.checkify(fn)
    for good in (P, P.astype(jnp.bfloat16), P.astype(np.float16)):
        assert checked(good, T)[0].get() is None
    message = checked(halved, T)[0].get()
    assert re.search("sum to one, .* but sums reach from 0.(5|4999)", message)
    live = np.array([True, False])[:, None, None]
    masked = checkify.checkify(jax.jit(partial(dice, apply_softmax=False, where=live)))
    assert masked(np.where(live[..., None], P, np.nan), T)[0].get() is None


OF_PROBABILITIES = [
    fn
    for fn in (getattr(jaxloss, name) for name in jaxloss.__all__)
    if "apply_softmax" in inspect.signature(fn).parameters
]


@pytest.mark.parametrize("fn", OF_PROBABILITIES, ids=lambda fn: fn.__name__)
def test_classes_that_overlap_are_not_reported(fn):
    """A sigmoid's: each class of a pixel is there or not, whatever the others are."""
    p = 1 / (1 + np.exp(-X))
    several = rng().integers(0, 2, SHAPE).astype(np.float32)
    checked = checkify.checkify(jax.jit(partial(fn, apply_softmax=False)))
    assert checked(p, several)[0].get() is None
    assert "sum to one" in checked(p, T)[0].get()
    # What is masked says nothing of what is meant.
    live = np.array([True, False])[:, None, None]
    mixed = np.where(live[..., None], T, several)
    masked = checkify.checkify(jax.jit(partial(fn, apply_softmax=False, where=live)))
    assert "sum to one" in masked(p, mixed)[0].get()


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan, np.inf])
@pytest.mark.parametrize("fn", [binary, generalized, dice])
def test_what_is_no_probability_is_nan(fn, bad):
    flag = {"apply_sigmoid" if fn is binary else "apply_softmax": False}
    p, t = (P, T) if fn is not binary else (P[..., 0], T[..., 0])
    p = p.copy()
    p[0, 0, 0] = bad
    losses, (slope, _) = with_gradients(partial(fn, **flag))(p, t)
    assert np.isnan(losses).ravel().tolist() == ([True] if fn is generalized else [True, False])
    assert np.isnan(slope[0, 0, 0]).all()


def test_a_near_perfect_prediction():  # optax: 0 with a gradient of 0
    x, t = np.float32([[20.0, -20.0]]), np.float32([[1, 0]])
    with jax.numpy_dtype_promotion("standard"):
        assert optax.losses.binary_dice_loss(x, t) == 0
    wrong = np.exp(-20.0)
    loss, (slope, _) = with_gradients(binary)(x, t)
    np.testing.assert_allclose(loss, [wrong / 2], rtol=1e-6)  # (.5 + .5) e / (1 + 1)
    np.testing.assert_allclose(slope, [[-wrong / 4, wrong / 4]], rtol=1e-6)


def test_nothing_there_and_nothing_found():
    x, t = jnp.zeros((1, 3)), jnp.zeros((1, 3))
    fn = lambda p, t, s: binary(p, t, apply_sigmoid=False, smooth=s)[0]
    assert fn(x, t, 0.0) == 0 and fn(x, t, 1.0) == 0
    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        for block in jax.tree.leaves(jax.jit(derivative(fn, (0, 1, 2)))(x, t, 0.0)):
            np.testing.assert_array_equal(block, 0)
    assert fn(x.at[0, 0].set(1e-6), t, 0.0) == 1
    assert fn(x, t.at[0, 0].set(1), 0.0) == 1
    empty = dice(jnp.zeros((2, 0, 3)), jnp.zeros((2, 0, 3)), smooth=0.0)
    np.testing.assert_array_equal(empty, [0, 0])
    assert generalized(jnp.zeros((0, 4, 3)), jnp.zeros((0, 4, 3))) == 0


@pytest.mark.parametrize("part, rest", [(1e-30, 0.0), (0.0, 1e-30), (3e30, 1e-30), (0.25, 2.0)])
def test_share_has_derivatives_at_any_scale(part, rest):
    """Of terms that exist none is zero times infinity, to the third order."""
    a, b = jnp.float32(part), jnp.float32(rest)
    exact = mpf(part) / (mpf(part) + mpf(rest))
    assert ulps(float(share(a, b)), exact, exact, np.float32) <= 2
    if part and rest:
        whole = mpf(part) + mpf(rest)
        by_part, by_rest = jax.grad(share, (0, 1))(a, b)
        for got, want in ((by_part, mpf(rest) / whole**2), (by_rest, -mpf(part) / whole**2)):
            assert ulps(float(got), want, abs(want), np.float32) <= 4
        # d3 share / d part3 = 6 rest / whole**4
        third = jax.grad(jax.grad(jax.grad(share)))(a, b)
        want = 6 * mpf(rest) / whole**4
        assert ulps(float(third), want, want, np.float32) <= 12
    for i in (0, 1):
        assert not np.isnan(jax.grad(jax.grad(share, i), i)(a, b))


@pytest.mark.parametrize("frequency", [[0, 1e6], [3, 2e6, 5], [0, 0, 7], [4e7, 3e7, 1]], ids=str)
def test_weights_of_rare_classes(frequency):
    """Far from overflow for images of any size, and exact where one class has all the weight."""
    f = np.float32(frequency)
    got, by = _rarity(f), jax.jacfwd(_rarity)(f)
    np.testing.assert_allclose(by, jax.jacrev(_rarity)(f), rtol=5e-7)
    v = [1 / (mpf(float(x)) ** 2 + mpf("1e-7")) for x in f]
    for c in range(len(f)):
        exact = v[c] / sum(v)
        assert ulps(float(got[c]), exact, exact, np.float32) <= 8
        for k in range(len(f)):
            slope = -2 * mpf(float(f[k])) * v[k]  # d log v_k
            exact = v[c] / sum(v) * slope * (1 - v[c] / sum(v) if k == c else -v[k] / sum(v))
            assert ulps(float(by[c, k]), exact, abs(exact), np.float32) <= 8


def test_a_big_image():
    """1.5 million pixels of one class and one pixel of the other."""
    labels = np.zeros((1, 1500, 1000), np.int32)
    labels[0, 0, 0] = 1
    x = np.float32([[1, -1], [-1, 1]])[labels] * np.float32(3)
    t = np.eye(2, dtype=np.float32)[labels]
    with jax.enable_x64(True):
        want = jax.jit(generalized)(x.astype(np.float64), t)
    np.testing.assert_allclose(jax.jit(generalized)(x, t), want, rtol=2e-6)


@pytest.mark.parametrize(
    "fn",
    [dice, generalized, partial(dice, apply_softmax=False)],
    ids=["dice", "generalized", "probabilities"],
)
@pytest.mark.parametrize("classes", [3, 1])
@pytest.mark.few(3)
def test_masked_pixels_change_nothing(fn, classes):
    shape = (2, 4, classes)
    x, t = rng().uniform(0.1, 0.9, size=(2, *shape)).astype(np.float32)
    live = np.array([[True, False, True, True], [True, False, False, True]])

    def everything(x, t, where):
        total = lambda x, t: jnp.sum(fn(x, t, where=where))
        gradients = jax.grad(total, (0, 1))
        tangents = jax.jvp(gradients, (x, t), (jnp.ones_like(x), jnp.ones_like(t)))[1]
        return fn(x, t, where=where), gradients(x, t), tangents, jax.hessian(total)(x, t)

    run = jax.jit(everything)
    clean = run(x, t, live)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(clean))
    for gradient in clean[1]:
        np.testing.assert_array_equal(np.asarray(gradient)[~live], 0)
        assert np.all(np.asarray(gradient)[live] != 0)
    for poison in (np.nan, np.inf, -np.inf):
        bad = [np.where(live[..., None], a, np.float32(poison)) for a in (x, t)]
        jax.tree.map(np.testing.assert_array_equal, run(*bad, live), clean)
    for where in (live[..., None], np.broadcast_to(live[..., None], shape)):
        np.testing.assert_array_equal(jax.jit(partial(fn, where=where))(*bad), clean[0])


def test_a_mask_is_removing_pixels():
    live = np.array([True, False, True, True])
    x, t = X[:, 0], SOFT[:, 0]
    got = dice(x, t, where=live[None], reduction="none")
    close(got, dice(x[:, live], t[:, live], reduction="none"))
    close(binary(x, t, where=live[None, :, None]), binary(x[:, live], t[:, live]))
    close(generalized(x, t, where=live[None]), generalized(x[:, live], t[:, live]))
    close(dice(x, t, where=True), dice(x, t))
    for reduction in ("none", "mean"):
        np.testing.assert_array_equal(dice(x, t, where=False, reduction=reduction), 0)


def test_an_excluded_class_is_removed():
    """By a logit of -inf without targets, or by a mask whatever the targets."""
    x, t = X[:, 0], SOFT[:, 0]
    few = np.array([0, 1, 3])
    want = dice(x[..., few], t[..., few], reduction="none")
    live = np.isin(np.arange(5), few)
    got, slopes = with_gradients(partial(dice, reduction="none"))(
        np.where(live, x, -np.inf), np.where(live, t, 0)
    )
    close(got[:, few], want)
    np.testing.assert_array_equal(got[:, ~live], 0)
    assert all(np.all(np.isfinite(a)) for a in slopes)
    np.testing.assert_array_equal(np.asarray(slopes[0])[..., ~live], 0)
    close(dice(x, t, where=live[None, None], reduction="none"), got)
    # A target on a class that is excluded by -inf is missed for certain.
    assert binary(np.float32([[-np.inf, 3]]), np.float32([[1, 0]]), smooth=0.0) == 1


def test_infinite_logits():
    x, t = np.float32([[np.inf, -np.inf, np.inf]]), np.float32([[1, 0, 0]])
    loss, (slope, _) = with_gradients(partial(binary, smooth=0.0))(x, t)
    np.testing.assert_allclose(loss, [1 / 3], rtol=1e-6)
    np.testing.assert_array_equal(slope, 0)


bits = hnp.arrays(bool, (2, 6), elements=st.booleans())
logits = hnp.arrays(np.float32, (2, 6), elements=st.floats(-30, 30, width=32))
HARD = {"apply_softmax": False, "smooth": 0.0}


@given(logits, bits, st.floats(0, 2, width=32), st.floats(0, 2, width=32))
def test_tversky_between_dice_and_jaccard(x, t, a, b):
    x, t = x[..., None], t[..., None]
    loss = jaxloss.tversky_loss(x, t, alpha=a, beta=b)
    assert np.all((loss >= 0) & (loss <= 1))
    nearly(jaxloss.tversky_loss(x, t), dice(x, t))
    nearly(jaxloss.tversky_loss(x, t, alpha=1.0, beta=1.0), jaxloss.jaccard_loss(x, t))
    assert np.all(jaxloss.tversky_loss(x, t, alpha=a + 1, beta=b + 1) >= loss - 1e-6)


@given(bits, bits)
def test_sets(found, there):
    """Against counting; and the Jaccard loss is 2 D / (1 + D) of the Dice loss D."""
    p, t = np.float32(found)[..., None], there[..., None]
    d, j = dice(p, t, **HARD), jaxloss.jaccard_loss(p, t, **HARD)
    both, either = (found & there).sum(1), (found | there).sum(1)
    nearly(j, np.where(either == 0, 0, 1 - both / np.maximum(either, 1)))
    nearly(j, 2 * d / (1 + d))
    nearly(dice(np.float32(there)[..., None], t, **HARD), 0)


def test_false_positives_are_weighed_by_alpha():
    found, there = np.float32([[1, 1, 0]])[..., None], np.float32([[1, 0, 0]])[..., None]
    loss = partial(jaxloss.tversky_loss, alpha=0.9, beta=0.1, **HARD)
    np.testing.assert_allclose(loss(found, there), [0.9 / 1.9], rtol=1e-6)
    np.testing.assert_allclose(loss(there, found), [0.1 / 1.1], rtol=1e-6)


@pytest.mark.parametrize("fn", [dice, jaxloss.tversky_loss, jaxloss.jaccard_loss])
def test_classes_that_overlap_by_their_logits(fn):
    """Each class is a loss of its own."""
    several = rng().integers(0, 2, SHAPE).astype(np.float32)
    got = fn(X, several, activation="sigmoid", reduction="none")
    close(got, np.stack([fn(X[..., [c]], several[..., [c]]) for c in range(5)], -1))
    p = np.asarray(jax.nn.sigmoid(X))
    close(fn(p, several, activation=None, reduction="none"), got, 1e-5)
    close(fn(p, several, apply_softmax=False, reduction="none"), got, 1e-5)
    one = several[..., :1]
    close(fn(X[..., :1], one, activation="sigmoid"), fn(X[..., :1], one))
    live = rng().uniform(size=SHAPE) < 0.7
    for c in range(5):
        some = fn(X, several, activation="sigmoid", reduction="none", where=live)[:, c]
        close(some, fn(X[..., [c]], several[..., [c]], where=live[..., [c]]))


# Of the predictions as they are, and with the classes last.
_AXES = {0: ((1, 2), (0, 1)), 1: ((0, 3), (0, 2)), -2: ((0, 1), (0, 1))}


@pytest.mark.parametrize("class_axis", _AXES)
def test_a_class_axis_that_is_not_the_last(class_axis):
    x, t = (np.moveaxis(a, -1, class_axis) for a in (X, SOFT))
    live = rng().uniform(size=SHAPE) < 0.7
    run = partial(dice, class_axis=class_axis)
    for options in ({}, {"reduction": "none", "class_weights": WEIGHTS}, {"activation": "sigmoid"}):
        close(run(x, t, **options), dice(X, SOFT, **options))
    for where, moved in ((live[..., 0], live[..., 0]), (live, np.moveaxis(live, -1, class_axis))):
        close(run(x, t, where=moved), dice(X, SOFT, where=where))
    axis, last = _AXES[class_axis]
    close(run(x, t, axis=axis), dice(X, SOFT, axis=last))
    one, there = np.expand_dims(X[..., 0], class_axis), np.expand_dims(T[..., 0], class_axis)
    close(run(one, T[..., 0]), run(one, there))
    with pytest.raises(ValueError, match="names the class axis"):
        run(x, t, axis=class_axis)


def test_focal_tversky():
    x, t = np.float32([[2.0, -1.0, 0.5, -3.0]]), np.float32([[1, 0, 1, 0]])
    focal = partial(jaxloss.tversky_loss, alpha=0.3, beta=0.7)
    plain = focal(x[..., None], t[..., None])
    for gamma in (0.5, 4 / 3, 3.0):
        close(focal(x[..., None], t[..., None], gamma=gamma), plain ** (1 / gamma))
    close(jax.jit(focal)(x[..., None], t[..., None], gamma=1.0), plain)
    # The root of what is found perfectly has no derivative: it is 0.
    perfect = partial(focal, smooth=0.0, activation=None)
    for gamma in (2.0, 1.0, 0.5):
        fn = jax.jit(lambda p, g: perfect(p[..., None], t[..., None], gamma=g)[0])
        loss, slope = jax.value_and_grad(fn)(t, gamma)
        assert loss == 0 and np.all(np.isfinite(slope)) and np.any(slope) == (gamma == 1)
        assert np.all(np.isfinite(jax.hessian(fn)(t, gamma)))
        assert jax.grad(fn, 1)(t, gamma) == 0


def test_the_pieces_make_other_forms_of_the_formula():
    """An epsilon in the denominator alone, as Keras has it."""
    p, t, eps = P[..., 0].ravel(), T[..., 0].ravel(), np.float32(1e-3)
    of = outcomes(p, 1 - p, t, (0,))
    assert isinstance(of, Outcomes)
    wrong = 0.5 * (of.false_positives + of.false_negatives)
    keras = 1 - 2 * (p * t).sum() / (p.sum() + t.sum() + 2 * eps)
    np.testing.assert_allclose(share(wrong + eps, of.true_positives), keras, rtol=1e-6)


def test_in_a_loss():
    """One example is an image: masks and weights are of the batch."""
    t = jnp.asarray(T)
    losses = dice(X, T, alpha=0.25)
    loss = Loss(dice, alpha=0.25)
    np.testing.assert_allclose(loss(X, t), losses.mean(), rtol=1e-6)
    keep = jnp.array([False, True])
    bad = np.where(np.array(keep)[:, None, None, None], X, np.nan)
    for kwargs in ({"where": keep}, {"weights": jnp.array([0.0, 2])}):
        value, slope = jax.value_and_grad(lambda x, kw=kwargs: loss(x, t, **kw))(bad)
        np.testing.assert_allclose(value, losses[1], rtol=1e-6)
        assert np.all(np.isfinite(slope)) and np.all(slope[0] == 0)
    pixels = jnp.asarray(rng().uniform(size=SHAPE[:-1]) < 0.5)
    np.testing.assert_allclose(
        Loss(dice, "none")(X, t, class_where=pixels), dice(X, t, where=pixels), rtol=1e-6
    )
    assert Loss(generalized)(X, t) == generalized(X, t)
    with pytest.raises(ValueError, match="already reduced"):
        Loss(generalized)(X, t, weights=jnp.ones(2))


def test_generalized_mean_is_of_images_with_a_pixel():
    pixels = np.ones(SHAPE[:-1], bool)
    pixels[0] = False
    np.testing.assert_allclose(
        generalized(X, T, where=pixels), generalized(X[1:], T[1:]), rtol=1e-6
    )


@pytest.mark.parametrize(
    "error, message, call",
    [
        (ValueError, r"\(2, 3, 4, 5\).*\(2, 3, 4\).*one_hot", lambda: dice(X, T[..., 0])),
        (ValueError, r"\(2, 3, 4, 5\).*\(2, 3, 5, 4\)", lambda: dice(X, T.swapaxes(2, 3))),
        (ValueError, r"\(2, 3, 4, 5\).*\(1, 3, 4, 5\)", lambda: generalized(X, T[:1])),
        (
            ValueError,
            r"\(2, 3, 1\).*\(2, 4, 1\)",
            lambda: binary(jnp.ones((2, 3)), jnp.ones((2, 4))),
        ),
        (TypeError, "must be floating point", lambda: dice(T.astype(int), T)),
        (TypeError, "where must be boolean", lambda: dice(X, T, where=T)),
        (ValueError, r"where of shape \(3, 4\)", lambda: dice(X, T, where=T[0, ..., 0] > 0)),
        (ValueError, r"\(4,\).*5 classes", lambda: dice(X, T, class_weights=np.ones(4))),
        (ValueError, r"alpha of shape \(5,\)", lambda: dice(X, T, alpha=np.ones(5))),
        (ValueError, "beta must be in", lambda: jaxloss.tversky_loss(X, T, beta=-0.5)),
        (ValueError, "smooth must be in", lambda: generalized(X, T, smooth=-1)),
        (ValueError, "names the class axis", lambda: dice(X, T, axis=(1, -1))),
        (ValueError, "axis 4", lambda: dice(X, T, axis=4)),
        (ValueError, "gamma must be in", lambda: jaxloss.tversky_loss(X, T, gamma=0)),
        (ValueError, "activation must be .*'relu'", lambda: dice(X, T, activation=RELU)),
        (
            ValueError,
            "predictions are probabilities",
            lambda: dice(X, T, activation="sigmoid", apply_softmax=False),
        ),
        (ValueError, "'weighted_mean'", lambda: dice(X, T, reduction="weighted_mean")),
        (ValueError, "rank 0", lambda: dice(0.5, 1)),
    ],
)
def test_wrong_arguments(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_memory():
    """One derivative for the probabilities and their complements: two took 5.1 images."""
    image = jax.ShapeDtypeStruct((4, 128, 128, 8), jnp.float32)
    step = as_users(jax.value_and_grad(lambda x, t: jnp.sum(dice(x, t))))
    used = step.lower(image, image).compile().memory_analysis().temp_size_in_bytes
    assert used < 5 * image.size * 4
