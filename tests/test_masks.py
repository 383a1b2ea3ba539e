"""`where`, `ignore_index`, `axis` and size-1 broadcasting: what is masked does not exist."""

import inspect
from functools import partial

import jax
import numpy as np
import pytest

import jaxloss
from tests.cases import CASES, FIRST_ROWS
from tests.rows import follows_its_kind, marks, slow
from tests.test_transforms import argnums, close, rng, sweep

CLASSES = 5
ALL_OPTIONS = {"label_smoothing": 0.125, "z_loss": 0.25, "ignore_index": -100}
WEIGHTS = np.arange(1, CLASSES + 1, dtype=np.float32) / 2


def takes(case, option):
    return option in inspect.signature(case.fn).parameters


TAKES_MASK = [c for c in CASES if takes(c, "where")]
ONE_MASKED_EACH = [c for c in FIRST_ROWS if c in TAKES_MASK]


def kind(case):
    return "elementwise" if case.elementwise else "integer" if case.integer else "dense"


def functions(*kinds, cases=TAKES_MASK):
    """(case, function) for kinds of cases; softmax with integer labels with all options, too."""
    rows = [
        pytest.param(c, c.fn, id=c.name, marks=marks(c, follows_its_kind))
        for c in cases
        if kind(c) in kinds
    ]
    if "integer" in kinds:
        fn = jaxloss.softmax_cross_entropy_with_integer_labels
        case = next(c for c in CASES if c.fn is fn)
        rows.append(pytest.param(case, partial(fn, **ALL_OPTIONS), id="all options"))
        rows.append(pytest.param(case, weighted, id="class weights"))
    return pytest.mark.parametrize(("case", "fn"), rows)


def weighted(x, y, where=None, *, classes=slice(None), **options):
    fn = partial(jaxloss.softmax_cross_entropy_with_integer_labels, label_smoothing=0.125)
    return fn(x, y, where=where, class_weights=WEIGHTS[classes], **options)


def element_mask(shape):
    """About two thirds live; the second row masked, and the last but for one entry."""
    mask = rng().uniform(size=shape) < 2 / 3
    mask[1] = False
    mask[-1] = True
    if mask.ndim > 1:
        mask[-1, 1:] = False
    return mask


def everything(case, fn):
    """Values, gradients, their Hessians and tangents, of predictions and float targets."""

    def run(x, y, v):
        gradients = sweep(case, fn)
        args = argnums(case)

        def of(a):
            return gradients(*a) if len(args) > 1 else gradients(a[0], y)

        a = (x, y)[: len(args)]
        tangents = (v, v)[: len(args)]
        return of(a), jax.jvp(of, (a,), (tangents,))[1], jax.jacfwd(lambda a: of(a)[1])(a)

    return run


@functions("elementwise", "dense", "integer")
@pytest.mark.few(9)
def test_masked_entries_change_nothing(case, fn):
    x, y = case.random(rng(), 4)
    mask = element_mask(x.shape)
    if case.integer:
        y = np.argmax(mask, 1)  # A class that is live.
    run = jax.jit(everything(case, partial(fn, where=mask)))
    v = rng().normal(size=x.shape).astype(np.float32)
    clean = run(x, y, v)
    (losses, gradients), _, hessian = clean
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(clean))
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0)
    for block in jax.tree.leaves(hessian):
        np.testing.assert_array_equal(np.asarray(block)[~mask], 0)
    np.testing.assert_array_equal(losses[1], 0)
    for poison in (np.nan, np.inf, -np.inf):
        poisoned = np.where(mask, x, np.float32(poison))
        targets = y if case.integer else np.where(mask, y, np.float32(poison))
        jax.tree.map(np.testing.assert_array_equal, run(poisoned, targets, v), clean)


@functions("elementwise", "dense", "integer")
@pytest.mark.few(9)
def test_a_mask_of_ones_and_an_empty_one(case, fn):
    x, y = case.random(rng(), 4)
    run = jax.jit(lambda x, y, mask: sweep(case, partial(fn, where=mask))(x, y))
    close(run(x, y, np.ones(x.shape, bool)), jax.jit(sweep(case, fn))(x, y))
    for leaf in jax.tree.leaves(run(np.full_like(x, np.nan), y, np.zeros(x.shape, bool))):
        np.testing.assert_array_equal(leaf, 0)


@functions("dense", "integer")
@pytest.mark.few(3)
def test_masked_rows(case, fn):
    """Given without the class axis, or with it and of size one."""
    x, y = case.random(rng(), 4)
    rows = np.array([True, False, True, False])
    x[~rows] = np.nan
    run = jax.jit(lambda x, y, mask: sweep(case, partial(fn, where=mask))(x, y))
    losses, gradients = run(x, y, rows)
    some = jax.jit(sweep(case, fn))(x[rows], y[rows])
    close((losses[rows], [g[rows] for g in gradients]), (some[0], list(some[1])))
    for a in (losses, *gradients):
        np.testing.assert_array_equal(np.asarray(a)[~rows], 0)
    for mask in (rows[:, None], np.repeat(rows[:, None], CLASSES, 1)):
        close(run(x, y, mask), (losses, gradients))


@functions("dense", "integer")
@pytest.mark.few(3)
def test_masking_classes_is_removing_them(case, fn):
    x, y = case.random(rng(), 4)
    live = np.array([0, 2, 4])
    mask = np.isin(np.arange(CLASSES), live)[None]
    y, few = (live[y % 3], y % 3) if case.integer else (y, y[:, live])
    smaller = partial(fn, classes=live) if fn is weighted else fn
    losses, gradients = jax.jit(sweep(case, partial(fn, where=mask)))(x, y)
    want = jax.jit(sweep(case, smaller))(x[:, live], few)
    close((losses, tuple(g[:, live] for g in gradients)), want)


@functions("dense", "integer")
@pytest.mark.few(1)
def test_a_logit_of_minus_infinity_is_a_class_removed(case, fn):
    if case.predictions != "logits" or fn is not case.fn:
        pytest.skip("excludes no class; or has options that count classes")
    x, y = case.random(rng(), 4)
    live = np.array([0, 2, 4])
    excluded = ~np.isin(np.arange(CLASSES), live)
    y, few = (live[y % 3], y % 3) if case.integer else (y, y[:, live])
    x[:, excluded] = -np.inf
    if not case.integer:
        y[:, excluded] = 0

    def total(x, y):
        return fn(x, y).sum()

    run = jax.jit(lambda x, y: (fn(x, y), jax.grad(total)(x, y), jax.hessian(total)(x, y)))
    losses, gradient, hessian = run(x, y)
    for derivative in (gradient, hessian):
        np.testing.assert_array_equal(np.asarray(derivative)[:, excluded], 0)
    only = np.ix_(range(4), live, range(4), live)
    close((losses, gradient[:, live], hessian[only]), run(x[:, live], few))


@functions("integer")
def test_a_label_on_a_masked_class_costs_the_most(case, fn):
    x, _ = case.random(rng(), CLASSES)
    labels = np.arange(CLASSES)
    losses = fn(x, labels, where=~np.eye(CLASSES, dtype=bool))
    # The generalised one is bounded by 1 / q.
    q = getattr(fn, "keywords", {}).get("q")
    np.testing.assert_allclose(losses, 1 / q if q else np.inf, rtol=1e-6)
    # And one that is all but alone is never negative.
    alone = fn(x, labels, where=np.eye(CLASSES, dtype=bool))
    assert np.all(np.asarray(alone) >= 0)


SHAPE = (3, 4, CLASSES)
# The axis, the order in which it puts the axes, and the shape of the last-axis equivalent.
AXES = {
    0: ((1, 2, 0), (4, 5, 3)),
    1: ((0, 2, 1), (3, 5, 4)),
    (1, 2): ((0, 1, 2), (3, 20)),
    (2, 0): ((1, 2, 0), (4, 15)),
    None: ((0, 1, 2), (60,)),
}


@pytest.mark.parametrize(
    "axis",
    [1, (2, 0), *(pytest.param(a, marks=slow) for a in (0, (1, 2), None))],
    ids=str,
)
@functions("dense", "integer", cases=[c for c in ONE_MASKED_EACH if takes(c, "axis")])
@pytest.mark.few(4)
def test_axes(case, fn, axis):
    if fn is weighted:
        pytest.skip("has as many weights as there are classes along one axis")
    order, shape = AXES[axis]
    x, dense = rng().uniform(size=(2, *SHAPE)).astype(np.float32)
    mask = rng().uniform(size=SHAPE) < 0.8

    def last(a):
        return a.transpose(order).reshape(shape)

    given, y = dense, last(dense)
    if case.integer:
        given = y = np.argmax(last(mask), -1)  # A class that is live.
    losses, gradients = jax.jit(sweep(case, partial(fn, axis=axis, where=mask)))(x, given)
    assert np.all(np.isfinite(losses))
    want = jax.jit(sweep(case, partial(fn, where=last(mask))))(last(x), y)
    close((losses, tuple(last(g) for g in gradients)), want)
    close(jax.jit(partial(fn, axis=axis))(x, given), jax.jit(fn)(last(x), y))


@pytest.mark.parametrize("index", [-100, *(pytest.param(k, marks=slow) for k in (2, 255))])
@functions("integer", cases=[c for c in TAKES_MASK if "ignore" in str(inspect.signature(c.fn))])
def test_ignored_rows(case, fn, index):
    x, y = case.random(rng(), 4)
    kept = np.array([True, False, True, False])
    y = np.where(kept, np.int32([0, 9, 4, 9]), index)
    fn = partial(fn, ignore_index=index)
    run = jax.jit(everything(case, fn))
    want = run(x, y, x)
    x_bad = np.where(kept[:, None], x, np.float32(np.nan))
    got = run(x_bad, y, x)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    (losses, (gradient,)), _, _ = got
    assert np.all(np.asarray(losses)[kept] > 0)
    np.testing.assert_array_equal(np.asarray(losses)[~kept], 0)
    np.testing.assert_array_equal(np.asarray(gradient)[~kept], 0)
    small = np.int8 if index < 128 else np.uint8
    np.testing.assert_array_equal(jax.jit(fn)(x_bad, y.astype(small)), jax.jit(fn)(x_bad, y))


@functions("elementwise", "dense", cases=ONE_MASKED_EACH)
@pytest.mark.few(5)
def test_size_one_labels_and_masks(case, fn):
    x, full = case.random(rng(), 4, size=CLASSES)
    row, column = np.array([[True, False, True, True, True]]), np.array([[True], [False]] * 2)
    reference = jax.jit(lambda x, y, mask: sweep(case, partial(fn, where=mask))(x, y))
    for y, where in ((full[:1], column), (full[:, :1], row), (full[0, 0], np.array(True))):
        got = jax.jit(sweep(case, partial(fn, where=where)))(x, y)
        spread = [np.broadcast_to(a, x.shape) for a in (y, where)]
        losses, (by_x, by_y) = reference(x, *spread)
        # The derivative by a label that many share is the sum of theirs.
        axes = tuple(i for i in range(2) if np.ndim(y) == 0 or y.shape[i] < x.shape[i])
        close(got, (losses, (by_x, np.sum(by_y, axes).reshape(np.shape(y)))))


@functions("integer")
def test_size_one_integer_labels(case, fn):
    x, y = case.random(rng(), 4)
    got = jax.jit(sweep(case, fn))(x, y[:1])
    close(got, jax.jit(sweep(case, fn))(x, np.repeat(y[:1], 4)))


def test_smooth_labels_of_masked_classes():
    y = rng().uniform(size=(3, CLASSES)).astype(np.float32)
    live = np.array([0, 2, 4])
    mask = np.broadcast_to(np.isin(np.arange(CLASSES), live), y.shape)
    want = jaxloss.smooth_labels(y[:, live], 0.25)
    poisoned = np.where(mask, y, np.nan)
    for where, axis in ((mask, -1), (mask[:1], 1)):
        smoothed = partial(jaxloss.smooth_labels, alpha=0.25, where=where, axis=axis)
        got, gradient = smoothed(poisoned), jax.grad(lambda y, f=smoothed: f(y).sum())(poisoned)
        close(got[:, live], want)
        np.testing.assert_array_equal(np.asarray(got)[~mask], 0)
        np.testing.assert_array_equal(gradient, np.where(mask, np.float32(0.75), 0))
    turned = jaxloss.smooth_labels(poisoned.T, 0.25, axis=0, where=mask.T)
    np.testing.assert_array_equal(turned, got.T)
    close(jaxloss.smooth_labels(y, 0.25, axis=None), 0.75 * y + 0.25 / y.size)
