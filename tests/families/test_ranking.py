"""Ranking losses: lists in rows and packed in them, masks, chunks of pairs, kinks and limits."""

import itertools
import math
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

import jaxloss
from tests.programs import as_users
from tests.test_checks import B, F, I, fails, struct
from tests.test_properties import close as nearly
from tests.test_transforms import close, rng

inf, nan = np.inf, np.nan
MAP: Any = "map"
softmax, logistic, hinge = (
    jaxloss.ranking_softmax_loss,
    jaxloss.pairwise_logistic_loss,
    jaxloss.pairwise_hinge_loss,
)
unreduced = partial(softmax, reduce_fn=None)
PAIRWISE = pytest.mark.parametrize("fn", [logistic, hinge], ids=["logistic", "hinge"])
LOSSES = {"softmax": unreduced, "logistic": logistic, "hinge": hinge}
EVERY = pytest.mark.parametrize("fn", LOSSES.values(), ids=LOSSES)
SCORES, LABELS = np.float32([2, 1, 3]), np.float32([1, 0, 0])


def batch(*shape):
    """Scores, labels with ties, weights, a mask and three lists a row."""
    random = rng()
    return (
        random.normal(size=shape).astype(np.float32) * 2,
        random.integers(0, 4, shape).astype(np.float32),
        random.uniform(0.5, 2, shape).astype(np.float32),
        random.uniform(size=shape) < 0.7,
        random.integers(-1, 2, shape).astype(np.int32),
    )


def swept(fn, *args):
    """Losses, and the gradients of their sum by every argument."""

    def total(*args):
        losses = fn(*args)
        return jnp.sum(losses), losses

    gradients, losses = jax.jit(jax.grad(total, range(len(args)), has_aux=True))(*args)
    return losses, gradients


def test_values():
    """Two pairs: one right by 1, one wrong by 1."""
    close(softmax(SCORES, LABELS), np.log(np.exp([0, -1, 1]).sum()))
    close(logistic(SCORES, LABELS), math.log1p(math.exp(-1)) + math.log1p(math.exp(1)))
    close(hinge(SCORES, LABELS), 0 + 2)
    close(hinge(SCORES, LABELS, margin=2.5), 1.5 + 3.5)
    s, c = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    close(jax.grad(logistic)(SCORES, LABELS), [-c - s, c, s])
    close(jax.grad(hinge)(SCORES, LABELS), [-1 - 0.5, 0.5, 1])


def test_graded_labels():
    """All six pairs of four grades, in scores that say the opposite."""
    scores, labels = np.float32([0, 1, 2, 3]), np.int8([9, 5, 1, -3])
    close(hinge(scores, labels), 3 * 2 + 2 * 3 + 1 * 4)
    close(logistic(scores, labels), sum(k * math.log1p(math.exp(4 - k)) for k in (1, 2, 3)))


@pytest.mark.slow
@PAIRWISE
def test_only_the_order_of_labels_counts(fn):
    scores, _, weights, *_ = batch(2, 6)
    order = np.array([3, 0, 2, 1, 1, 0])
    want = fn(scores, np.tile(order, (2, 1)), weights=weights)
    large = 2**24 + order  # As float32 these would tie.
    for labels in (large, order * 1e-30, np.float32([1, -inf, 0.5, 0, 0, -inf])):
        close(fn(scores, np.tile(labels, (2, 1)), weights=weights), want, 0, 0)
    np.testing.assert_array_equal(fn(scores, 1), 0)
    np.testing.assert_array_equal(jax.grad(lambda s: fn(s, True).sum())(scores), 0)
    gradient = jax.grad(lambda y: fn(scores, y).sum())(np.float32(np.tile(order, (2, 1))))
    np.testing.assert_array_equal(gradient, 0)


OPTIONS = [{}, {"where"}, {"weights"}, {"where", "weights"}]


@pytest.mark.parametrize("names", OPTIONS, ids=lambda names: "+".join(sorted(names)) or "plain")
@pytest.mark.parametrize("reduce_fn", [jnp.mean, jnp.sum, jnp.max, None])
@pytest.mark.few(3)
def test_softmax_is_that_of_optax(names, reduce_fn):
    scores, labels, weights, live, _ = batch(4, 5)
    live[1] = False  # A list that does not count.
    options = {k: v for k, v in {"where": live, "weights": weights}.items() if k in names}
    if reduce_fn is jnp.max:
        if "where" in names:
            pytest.skip("needs an initial value")
        reduce_fn = lambda a, where: jnp.max(a)
    ours = partial(softmax, reduce_fn=reduce_fn, **options)
    theirs = partial(optax.losses.ranking_softmax_loss, reduce_fn=reduce_fn, **options)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        close(ours(scores, labels), theirs(scores, labels), 1e-5)
        if "where" not in names:  # Theirs is NaN.
            want = jax.grad(lambda s: theirs(s, labels).sum())(scores)
            close(jax.grad(lambda s: ours(s, labels).sum())(scores), want, 1e-4)


def test_the_mean_is_over_lists_with_items():
    scores, labels, _, live, lists = batch(4, 9)
    live[1] = False
    losses = unreduced(scores, labels, where=live)
    close(softmax(scores, labels, where=live), np.sum(losses) / 3)
    # Row 0 has lists -1, 0 and 1; of row 2 only list 0 is live; rows 1 and 3 have nothing.
    lists[0, :3] = -1, 0, 1
    live[:] = False
    live[0], live[2] = True, lists[2] == 0
    losses = unreduced(scores, labels, where=live, segments=lists)
    close(softmax(scores, labels, where=live, segments=lists), np.sum(losses) / 4)
    close(softmax(scores, labels, segments=np.arange(9)[None] % 2), unreduced(
        scores, labels, segments=np.arange(9)[None] % 2).sum() / 8)  # fmt: skip


def test_no_list_at_all():
    scores, labels, *_ = batch(4, 5)
    for segments in (None, 0):
        for shape, live in (((4, 5), False), ((0, 5), None)):
            fn = partial(softmax, where=live, segments=segments)
            args = scores[: shape[0]], labels[: shape[0]]
            loss, gradients = jax.jit(jax.value_and_grad(fn, (0, 1)))(*args)
            assert loss == 0
            for gradient in gradients:
                np.testing.assert_array_equal(gradient, np.zeros(shape))


@EVERY
@pytest.mark.parametrize("poison", [nan, inf, -inf])
@pytest.mark.few(3)
def test_derivatives_at_masked_items(fn, poison):
    """optax's gradient by weights, and rax's by scores, are NaN."""
    scores, labels, weights, live, lists = batch(3, 6)
    live[1] = False
    for segments in (None, lists):

        def run(scores, labels, weights, segments=segments):
            return fn(scores, labels, weights=weights, where=live, segments=segments)

        clean = swept(run, scores, labels, weights)
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(clean))
        for gradient in clean[1]:
            np.testing.assert_array_equal(np.asarray(gradient)[~live], 0)
        bad = [np.where(live, a, np.float32(poison)) for a in (scores, labels, weights)]
        jax.tree.map(np.testing.assert_array_equal, swept(run, *bad), clean)


@EVERY
def test_masking_is_removing(fn):
    scores, labels, weights, *_ = batch(3, 6)
    live = np.array([0, 2, 5])
    mask = np.isin(np.arange(6), live)[None]

    def run(s, w, y, where=None):
        weighted = fn(s, y, weights=w, where=where)
        return jnp.stack([weighted, fn(s, y, where=where)])

    want = swept(lambda s, w: run(s, w, labels[:, live]), scores[:, live], weights[:, live])
    losses, gradients = swept(lambda s, w: run(s, w, labels, mask), scores, weights)
    close((losses, tuple(g[:, live] for g in gradients)), want)


@EVERY
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.few(1)
def test_segments_are_separate_lists(fn, chunk_size):
    if chunk_size is not None:
        if fn is unreduced:
            pytest.skip("has no pairs")
        fn = partial(fn, chunk_size=chunk_size)
    scores, labels, weights, live, lists = batch(3, 11)

    def separately(s, w):
        parts = [live & (lists == k) for k in (-1, 0, 1)]
        return sum(fn(s, labels, weights=w, where=part) for part in parts)

    def together(s, w, segments=lists):
        return fn(s, labels, weights=w, where=live, segments=segments)

    got = swept(together, scores, weights)
    close(got, swept(separately, scores, weights))
    # Whatever their numbers are.
    for numbers in ([7, -(2**31), 2**31 - 1], [200, 0, 255]):
        renamed = np.array(numbers)[lists + 1].astype(np.int32 if numbers[1] else np.uint8)
        close(swept(partial(together, segments=renamed), scores, weights), got, 0, 0)
    by_scores = [lambda s, f=f: f(s, weights).sum() for f in (together, separately)]
    close(*(jax.jit(jax.hessian(f))(scores) for f in by_scores))


def test_packed_lists_have_the_mean_of_padded_ones():
    scores, labels, weights, *_ = batch(3, 4)
    sizes = np.array([4, 1, 3])
    live = np.arange(4) < sizes[:, None]
    padded = softmax(scores, labels, where=live, weights=weights)
    packed = [np.concatenate([a[live], np.float32([nan, nan])]) for a in (scores, labels, weights)]
    lists = np.repeat([0, 1, 2, 9], [*sizes, 2])
    whole = packed[0][None], packed[1][None]
    options = {"where": lists[None] < 9, "weights": packed[2][None], "segments": lists[None]}
    close(softmax(*whole, **options), padded)


@EVERY
def test_a_nan_stays_in_its_list(fn):
    scores, labels, weights, _, lists = batch(3, 12)
    labels += 1.0  # Each of them counts in a softmax.
    run = partial(swept, lambda s, w, y: fn(s, y, weights=w, segments=lists))
    (losses, (by_s, by_w, _)), of_its_list = run(scores, weights, labels), lists == lists[1, 3]
    of_its_list[[0, 2]] = False
    scores_with, labels_with = scores.copy(), labels.copy()
    scores_with[1, 3] = labels_with[1, 3] = nan
    for bad in ((scores_with, weights, labels), (scores, weights, labels_with)):
        got, (gradient, by_weights, _) = run(*bad)
        np.testing.assert_array_equal(np.isnan(got), [False, True, False])
        np.testing.assert_array_equal(np.isnan(gradient), of_its_list)
        close(got[::2], losses[::2])
        close(gradient[~of_its_list], by_s[~of_its_list])
        close(by_weights[~of_its_list], by_w[~of_its_list])


@PAIRWISE
def test_a_nan_in_a_list_without_pairs(fn):
    assert np.isnan(fn(np.float32([1, nan]), 0))
    assert np.isnan(fn(np.float32([1, 2]), np.float32([0, nan])))
    assert fn(np.float32([1, 2]), 0) == 0


@pytest.mark.parametrize("n", [1, 2, 5, 16, 31, 100])
@pytest.mark.few(2)
def test_padding_is_never_counted(n):
    """Of scores of zero the losses count the pairs."""
    labels = np.arange(n)[::-1][None] // 2
    pairs = sum(int(a > b) for a in labels[0] for b in labels[0])
    for chunk_size in (None, 3, n, 1000):
        zeros = np.zeros((2, n), np.float32)
        assert np.all(hinge(zeros, labels, chunk_size=chunk_size) == pairs)
        close(logistic(zeros, labels, chunk_size=chunk_size), np.full(2, pairs * math.log(2)))


@PAIRWISE
@pytest.mark.few(1)
def test_chunks_change_nothing(fn):
    scores, labels, weights, live, lists = batch(2, 3, 23)

    def run(chunk_size):
        def of(s, w):
            options = {"where": live, "segments": lists, "chunk_size": chunk_size}
            return fn(s, labels, weights=w, **options)

        def several(s, w, v):
            by_scores = jax.grad(lambda s: of(s, w).sum())
            mapped = jax.vmap(jax.vmap(lambda *a: fn(*a, chunk_size=chunk_size)))(s, labels)
            tangent = jax.jvp(lambda s: of(s, w), (s,), (v,))[1]
            return tangent, jax.jvp(by_scores, (s,), (v,))[1], mapped

        return swept(of, scores, weights), jax.jit(several)(scores, weights, scores)

    want = run(None)
    for chunk_size in (1, 7):
        close(run(chunk_size), want, 1e-5, 1e-5)


def temporaries(step, *shapes):
    args = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return as_users(step).lower(*args).compile().memory_analysis().temp_size_in_bytes


ROWS = ((8, 2000), jnp.float32)


@PAIRWISE
@pytest.mark.parametrize(
    "options", [{}, {"where": B, "segments": I, "weights": F}], ids=["", "all"]
)
@pytest.mark.few(1)
def test_memory(fn, options):
    """The pairs alone of one array would take 128 MB."""

    def step(s, y, *given):
        return jnp.mean(fn(s, y, **dict(zip(options, given, strict=True))))

    shapes = [ROWS, ROWS, *((ROWS[0], dtype) for dtype in options.values())]
    assert temporaries(jax.value_and_grad(step), *shapes) < 16e6
    gradient = jax.grad(step)
    if not options:
        product = lambda s, y, v: jax.jvp(lambda s: gradient(s, y), (s,), (v,))[1]
        assert temporaries(product, ROWS, ROWS, ROWS) < 24e6
        reverse = lambda s, y, v: jax.grad(lambda s: jnp.sum(gradient(s, y) * v))(s)
        assert temporaries(reverse, ROWS, ROWS, ROWS) < 40e6
        tangent = lambda s, y, v: jax.jvp(lambda s: step(s, y), (s,), (v,))[1]
        assert temporaries(tangent, ROWS, ROWS, ROWS) < 24e6
        # The budget is for all rows together.
        large = ((4096, 300), jnp.float32)
        assert temporaries(jax.value_and_grad(step), large, large) < 12 * 4096 * 300 * 4


@pytest.mark.parametrize("difference, slope", [(0.5, -1), (1, -0.5), (1.5, 0)])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_hinge_at_its_margin(difference, slope, chunk_size):
    fn = lambda s, m: hinge(s, np.int32([1, 0]), margin=m, chunk_size=chunk_size)
    for mode in (jax.grad, jax.jacfwd):
        by_scores, by_margin = jax.jit(mode(fn, (0, 1)))(np.float32([difference, 0]), 1.0)
        np.testing.assert_array_equal(by_scores, [slope, -slope])
        assert by_margin == -slope
    curvature = jax.jit(jax.hessian(fn))(np.float32([difference, 0]), 1.0)
    np.testing.assert_array_equal(curvature, 0)


@PAIRWISE
def test_infinite_scores(fn):
    """Right: 0; wrong: inf, with a derivative of -1; equal: as any other equal scores."""
    run = jax.jit(jax.value_and_grad(fn))
    weighted = jax.jit(jax.value_and_grad(lambda s, y, w: fn(s, y, weights=w), (0, 2)))
    tie = run(np.float32([0, 0]), np.int32([1, 0]))
    for right in ([inf, 0], [0, -inf], [inf, -inf]):
        loss, gradient = run(np.float32(right), np.int32([1, 0]))
        assert loss == 0
        np.testing.assert_array_equal(gradient, 0)
        loss, gradient = run(np.float32(right), np.int32([0, 1]))
        assert loss == inf
        np.testing.assert_array_equal(gradient, [1, -1])
        loss, (by_scores, by_weights) = weighted(
            np.float32(right), np.int32([0, 1]), np.float32([1, 0])
        )
        assert loss == 0 and by_weights[1] > 1e30
        np.testing.assert_array_equal(by_scores, 0)
    for equal in (inf, -inf):
        close(run(np.float32([equal, equal]), np.int32([1, 0])), tie, 0, 0)
        hessian = jax.jit(jax.hessian(fn))(np.float32([equal, equal, 0]), np.int32([1, 0, 0]))
        assert np.all(np.isfinite(hessian))


def test_an_item_of_minus_infinity_leaves_its_softmax():
    scores, labels = np.float32([1, -inf, 2]), np.float32([1, 0, 0])
    for segments in (None, 0):
        fn = partial(softmax, segments=segments)
        loss, gradient = jax.jit(jax.value_and_grad(fn))(scores, labels)
        close(loss, math.log1p(math.exp(1)))
        assert gradient[1] == 0
        assert fn(scores, np.float32([0, 1, 0])) == inf


@pytest.mark.parametrize("half", [jnp.float16, jnp.bfloat16])
def test_half_precision_in_many_pairs(half):
    """In half precision itself neither the differences nor the count would do."""
    scores = np.zeros(600).astype(half)
    assert hinge(scores, np.arange(600)) == 600 * 599 / 2
    close(logistic(scores, np.arange(600)), 600 * 599 / 2 * math.log(2), 3e-6)


@pytest.mark.slow
@EVERY
def test_sizes_of_one_and_scalars(fn):
    scores, labels, weights, live, lists = batch(3, 5)
    full = {"where": live, "weights": weights, "segments": lists}
    run = jax.jit(lambda s, y, options: fn(s, y, **options))

    def spread(a):
        return np.broadcast_to(a, scores.shape)

    for index in (np.s_[:1], np.s_[:, :1], (0, 0)):
        small = jax.tree.map(lambda a, index=index: a[index], (labels, full))
        close(run(scores, *small), run(scores, *jax.tree.map(spread, small)))
    close(run(scores[:1], labels, full), run(spread(scores[:1]), labels, full))
    rows = [full | {"where": a} for a in (live[:, 0], live[:, :1])]
    close(*(run(scores, labels, options) for options in rows))


@EVERY
def test_errors(fn):
    rows = struct(2, 3), struct(2, 3)
    with_option = lambda name: lambda s, y, a: fn(s, y, **{name: a})
    words = ["must be floating point", "int32", "(2, 3)"]
    fails(TypeError, words, fn, struct(2, 3, dtype=I), rows[1])
    fails(ValueError, ["(2, 3)", "(3,)", "labels"], fn, rows[0], struct(3))
    fails(ValueError, ["(2, 3)", "(2, 4)", "labels"], fn, rows[0], struct(2, 4))
    fails(ValueError, ["shape ()", "no axis of items", "(1,)"], fn, struct(), struct())
    fails(TypeError, ["where must be boolean"], with_option("where"), *rows, struct(2, 3))
    segments = ["segments must be integers", "float32"]
    fails(TypeError, segments, with_option("segments"), *rows, struct(2, 3))
    for name, dtype in {"where": B, "weights": F, "segments": I}.items():
        for shape in ((3,), (2, 2), (1, 2, 3)):
            words = [name, f"of shape {shape}", "(2" if name == "where" else "(2, 3)"]
            fails(ValueError, words, with_option(name), *rows, struct(*shape, dtype=dtype))


@PAIRWISE
def test_settings_out_of_range(fn):
    rows = struct(2, 3), struct(2, 3)
    for bad in (0, -1):
        fails(ValueError, ["chunk_size", str(bad)], fn, *rows, chunk_size=bad)
    fails(TypeError, ["integer"], fn, *rows, chunk_size=1.5)
    if fn is hinge:
        fails(ValueError, ["margin must be in", "-0.5"], fn, *rows, margin=-0.5)
        call = lambda s, y, m: fn(s, y, margin=m)
        fails(ValueError, ["margin of shape (3,)"], call, *rows, struct(3))


def test_as_a_loss():
    scores, labels, weights, *_ = batch(4, 5)
    loss = jaxloss.Loss(logistic, "sum", chunk_size=2)
    rows = weights[:, 0]
    want = np.sum(rows * np.asarray(logistic(scores, labels)))
    close(jax.jit(lambda loss, *args: loss(*args, weights=rows))(loss, scores, labels), want)
    mean = jaxloss.Loss(softmax, reduce_fn=None)
    close(mean(scores, labels), softmax(scores, labels))


scores_of = partial(hnp.arrays, np.float32, elements=st.integers(-40, 40).map(lambda k: k / 4))
grades = hnp.arrays(np.float32, 5, elements=st.integers(0, 3))
items = scores_of(5)
COMPILED = [
    jax.jit(jax.value_and_grad(lambda s, y, w, fn=fn: fn(s, y, weights=w)))
    for fn in LOSSES.values()
]
ONES = np.ones(5, np.float32)


@given(items, grades, st.sampled_from([-1000.0, 64.0, 4096.0]))
def test_a_common_shift_changes_nothing(s, y, shift):
    for run in COMPILED:
        for a, b in zip(run(s, y, ONES), run(s + np.float32(shift), y, ONES), strict=True):
            nearly(a, b, 10)


@given(items, grades, grades, st.permutations(range(5)))
def test_order_of_items_does_not_matter(s, y, w, order):
    order = np.array(order)
    for run in COMPILED:
        loss, gradient = run(s, y, w)
        shuffled, by_shuffled = run(s[order], y[order], w[order])
        nearly(shuffled, loss, 100)
        nearly(by_shuffled, gradient[order], 100)


@given(scores_of(2), st.floats(0.25, 4, width=32))
def test_two_items_are_binary_cross_entropy(s, w):
    bce = jaxloss.sigmoid_binary_cross_entropy(s[0] - s[1], 1)
    weights, labels = np.float32([w, 7]), np.float32([1, 0])
    for fn in (softmax, logistic):
        nearly(fn(s, labels), bce)
        nearly(fn(s, labels, weights=weights), w * bce)
    nearly(hinge(s, labels), max(0, 1 - (s[0] - s[1])))


@given(items, st.integers(0, 4))
def test_one_relevant_item_is_cross_entropy(s, k):
    y = np.eye(5, dtype=np.float32)[k]
    nearly(softmax(s, y), jaxloss.softmax_cross_entropy_with_integer_labels(s, k))


@given(items, grades)
def test_gradients_sum_to_zero(s, y):
    for run in COMPILED:
        nearly(jnp.sum(run(s, y, ONES)[1]), 0, 10)


@given(items, grades)
def test_a_margin_of_zero_counts_what_is_in_the_wrong_order(s, y):
    wrong = [b - a for a, g in zip(s, y, strict=True) for b, h in zip(s, y, strict=True) if g > h]
    nearly(hinge(s, y, margin=0.0), sum(max(d, 0) for d in wrong), 10)


listmle, approx = jaxloss.listmle_loss, jaxloss.approx_ndcg_loss
LAMBDA = {
    "logistic": partial(logistic, lambda_weights="ndcg"),
    "hinge": partial(hinge, lambda_weights="ndcg"),
}
NEW = {"listmle": listmle, "approx_ndcg": approx, **LAMBDA}
EVERY_NEW = pytest.mark.parametrize("fn", NEW.values(), ids=NEW)
four = hnp.arrays(np.float32, 4, elements=st.floats(-30, 30, width=32))


def ndcg(ranks, labels):
    """Of one list, in float64."""
    gains = 2.0 ** np.asarray(labels) - 1
    best = np.sort(gains)[::-1] / np.log2(2 + np.arange(len(gains)))
    return np.sum(gains / np.log2(1 + np.asarray(ranks))) / best.sum()


@given(four)
def test_probabilities_of_all_orders_sum_to_one(s):
    orders = np.array(list(itertools.permutations(range(4))))
    losses = listmle(np.broadcast_to(s, orders.shape), orders)
    np.testing.assert_allclose(np.sum(np.exp(-np.float64(losses))), 1, rtol=1e-5)


@given(st.floats(-90, 90, width=32), st.floats(-90, 90, width=32))
def test_an_order_of_two_items_is_logistic(a, b):
    s = np.float32([a, b])
    for labels in ([1, 0], [0, 3]):
        nearly(listmle(s, np.array(labels)), logistic(s, np.array(labels)))


def test_an_order_of_items_item_by_item():
    s, y, *_ = batch(3, 7)
    for i in range(3):
        best = np.float64(s[i])[np.argsort(-y[i], kind="stable")]
        want = sum(np.log(np.exp(best[k:]).sum()) - best[k] for k in range(7))
        close(listmle(s[i], y[i]), want)
    np.testing.assert_array_equal(listmle(s[:, :1], y[:, :1]), 0)
    # Ties are taken in the order given.
    close(listmle(s, 1), listmle(s, np.arange(7)[::-1][None]))


def test_approximate_ranks_become_ranks():
    s, y, *_ = batch(3, 7)
    ranks = 1 + np.argsort(np.argsort(-s))
    want = [1 - ndcg(*row) for row in zip(ranks, y, strict=True)]
    close(approx(s, y, temperature=1e-4), want)
    smooth = 0.5 + (1 / (1 + np.exp((s[:, :, None] - s[:, None]) / 0.5))).sum(-1)
    close(approx(s, y, temperature=0.5), [1 - ndcg(*row) for row in zip(smooth, y, strict=True)])
    np.testing.assert_array_equal(approx(s, 0), 0)
    np.testing.assert_array_equal(jax.grad(lambda s: approx(s, 0).sum())(s), 0)
    # Equal labels have one derivative.
    slope = jax.grad(approx, 1)(np.float32([3, 3, 3]), np.float32([2, 1, 1]))
    assert slope[1] == slope[2]


def swapped(s, y):
    """By how much the NDCG of a list changes if two items change places."""
    ranks = 1 + np.argsort(np.argsort(-s, kind="stable"))
    change = np.zeros((len(s), len(s)))
    for i, j in itertools.product(range(len(s)), repeat=2):
        after = ranks.copy()
        after[[i, j]] = ranks[[j, i]]
        change[i, j] = abs(ndcg(after, y) - ndcg(ranks, y))
    return change


@pytest.mark.parametrize("name", LAMBDA)
def test_pairs_weigh_what_the_ndcg_changes_by(name):
    s, y, weights, *_ = batch(2, 6)
    s[1, 3:] = s[1, 0]
    of_pair = (
        (lambda d: np.log1p(np.exp(-d))) if name == "logistic" else lambda d: np.maximum(0, 1 - d)
    )
    for i in range(2):
        d = np.float64(s[i])[:, None] - s[i]
        pair = (y[i][:, None] > y[i]) * swapped(s[i], y[i])
        close(LAMBDA[name](s[i], y[i]), np.sum(pair * of_pair(d)))
        want = np.sum(weights[i][:, None] * pair * of_pair(d))
        close(LAMBDA[name](s[i], y[i], weights=weights[i], chunk_size=4), want)
    # No derivative by the weights: those of the losses alone, weighted.
    slope = jax.grad(lambda s: LAMBDA["hinge"](s, y[0]))(s[0])
    each = (y[0][:, None] > y[0]) * swapped(s[0], y[0]) * (s[0][:, None] - s[0] < 1)
    close(slope, each.sum(0) - each.sum(1))


def test_weights_of_ranks_by_a_function():
    s, y, _, live, lists = batch(3, 9)

    def of_first(y_i, y_j, r_i, r_j):
        return jnp.where(jnp.minimum(r_i, r_j) == 1, y_i - y_j, 0)

    got = logistic(s, y, lambda_weights=of_first, where=live, segments=lists, chunk_size=2)
    want = np.zeros(3)
    for i, k in itertools.product(range(3), (-1, 0, 1)):
        some = live[i] & (lists[i] == k)
        a, b = np.float64(s[i][some]), y[i][some]
        for m, n in itertools.permutations(range(len(a)), 2):
            if b[m] > b[n] and np.argmax(a) in (m, n):
                want[i] += (b[m] - b[n]) * np.log1p(np.exp(a[n] - a[m]))
    close(got, want)
    with pytest.raises(ValueError, match="lambda_weights must be 'ndcg' or a function, got 'map'"):
        logistic(s, y, lambda_weights=MAP)


@EVERY_NEW
def test_lists_in_a_row_are_as_lists_alone(fn):
    s, y, _, live, lists = batch(3, 9)
    poisoned = np.where(live, s, nan).astype(np.float32)
    losses, (slope,) = swept(lambda s: fn(s, y, where=live, segments=lists), poisoned)
    want, expected = np.zeros(3), np.zeros_like(s)
    for i, k in itertools.product(range(3), (-1, 0, 1)):
        some = live[i] & (lists[i] == k)
        loss, grad = jax.value_and_grad(fn)(s[i][some], y[i][some])
        want[i] += loss
        expected[i][some] = grad
    close(losses, want)
    close(slope, expected)
    np.testing.assert_array_equal(fn(poisoned, y, where=False), 0)


@EVERY_NEW
@pytest.mark.parametrize("bad", ["score", "label"])
def test_nan_is_loud_in_its_list(fn, bad):
    s, y = np.zeros((2, 3), np.float32), np.float32([[2, 1, 0], [2, 1, 0]])
    (s if bad == "score" else y)[0, 1] = nan
    losses, (slope,) = swept(lambda s: fn(s, y), s)
    assert np.isnan(losses).tolist() == [True, False]
    assert np.isnan(slope[0]).all() and np.isfinite(slope[1]).all()


@EVERY_NEW
def test_infinite_scores_of_new_losses(fn):
    y = np.float32([2, 1, 0])
    loss, (slope,) = swept(lambda s: fn(s, y), np.float32([inf, 0, -inf]))
    assert loss == pytest.approx(0) and np.all(slope == 0)
    loss, (slope,) = swept(lambda s: fn(s, y), np.float32([-inf, 0, inf]))
    assert loss == (pytest.approx(1 - ndcg([3, 2, 1], y)) if fn is approx else inf)
    assert np.all(np.isfinite(slope))


def test_memory_of_ranks():
    """One array of all pairs of 8 lists of 2000 has 128 MB."""
    lists = jax.ShapeDtypeStruct((8, 2000), jnp.float32)
    for fn in (approx, LAMBDA["logistic"]):
        step = as_users(jax.value_and_grad(lambda s, y, fn=fn: jnp.sum(fn(s, y))))
        program = step.lower(lists, lists).compile()
        assert program.memory_analysis().temp_size_in_bytes < 40e6


def test_long_lists_in_order():
    """Tails of a thousand items, which a difference of two logarithms would lose."""
    s = np.linspace(20, -20, 1000).astype(np.float32)
    best = np.float64(s)
    tails = np.cumsum(np.exp(best)[::-1])[::-1]
    want = np.log1p(tails[1:] / np.exp(best[:-1])).sum()
    np.testing.assert_allclose(listmle(s, s), want, rtol=2e-6)
