"""Ranking losses: a model's scores of the items of a list against their relevance.

A list runs along the last axis, or is what `segments` say of it. Each loss is a sum: over the
items of a list, or over its pairs of a more and a less relevant item.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.declare import takes
from jaxloss._core.lists import (
    ends,
    in_order,
    infinite,
    inverse,
    leads,
    lists_of,
    of_own,
    sound,
    span,
    starts,
    sum_each,
)
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.nll import soft_nll
from jaxloss._core.numerics import expm1, sigmoid, softplus, times
from jaxloss._core.pairs import blocks
from jaxloss._core.reduce import per_size, reduce_losses
from jaxloss._core.rows import softmax
from jaxloss._core.rules import jit_when_eager

LambdaWeights = Literal["ndcg"] | Callable[[Array, Array, Array, Array], Array]

# What one chunk of pairs may take, counting one number for each pair.
_CHUNK_BYTES = 2**22


@takes(
    unreduced={"reduce_fn": None},
    logits=("list", "logits"),
    labels=("list", "positive"),
    weights=("list", "positive"),
    segments=("list", "integer"),
)
def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: Callable[..., Any] | None = jnp.mean,
    segments: ArrayLike | None = None,
) -> Array:
    r"""Softmax cross-entropy of the items of a list, each labelled with its relevance (ListNet).

    With s the scores of one list, y the labels and w the `weights` (1 if absent):

        loss = -sum_i w_i * y_i * log softmax(s)_i

    Args:
        logits: scores, floating, the items of a list along the last axis. An item of -inf
            leaves its list; if its label is not 0, the loss is inf.
        labels: relevance of the items, at least 0: bool, integer or floating, of the shape of
            `logits`, a scalar, or of the same rank with axes of size 1.
        where: booleans shaped like `labels`, or without the last axis; other items do not exist.
        weights: of the items, shaped like `labels`.
        reduce_fn: reduces the losses of the lists, called as `reduce_fn(losses, where=lists)`,
            where `lists` marks those with an item that is not masked (None if all are whole
            rows). `jax.numpy.mean` of no list is 0. With None the result is unreduced.
        segments: integers shaped like `labels`. Items of one row with the same number form a
            list, so that a row holds several, of any lengths and in any order.

    Returns:
        The reduced loss in nats, in float32 (float64 for float64 logits); with
        `reduce_fn=None` one loss for each row: with `segments` the sum over its lists.

    Raises:
        TypeError: logits are not floating point, `where` is not boolean, or `segments` are not
            integers.
        ValueError: shapes do not match, or there is no axis of items.

    Like `softmax_cross_entropy`, which is the same sum, it is exact where a softmax is close
    to one. Labels and weights have derivatives too, 0 for masked items.

    References:
        Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, 2007.
        Bruch et al., An Analysis of the Softmax Cross Entropy Loss for Learning-to-Rank with
        Binary Relevance, 2019.

    >>> import jax.numpy as jnp, jaxloss
    >>> scores, labels = jnp.array([2.0, 1.0, 3.0]), jnp.array([1.0, 0.0, 0.0])
    >>> print(jaxloss.ranking_softmax_loss(scores, labels))
    1.407606
    """
    s, y, w, live, lists = _items("logits", logits, labels, where, weights, segments)
    losses = _ranking_softmax(s, y.astype(s.dtype), w, live, lists)
    if reduce_fn is None:
        return losses if lists is None else jnp.sum(losses, -1)
    if lists is not None:
        items = jnp.ones_like(s, jnp.int32) if live is None else live.astype(jnp.int32)
        live = sum_each(items, lists) > 0
    elif live is not None:
        live = jnp.any(live, -1)
    if reduce_fn is jnp.mean:
        return reduce_losses(losses, "mean", where=live)
    return reduce_fn(losses, where=live)


@jit_when_eager
def _ranking_softmax(s, y, w, live, lists):
    axis = s.ndim - 1
    s, y = inputs.exclude(live, s, -jnp.inf), inputs.exclude(live, y, 0)
    if w is not None:
        y *= inputs.exclude(live, w, 0)
    if lists is None:
        return inputs.live_rows(live, jnp.squeeze(soft_nll(s, y, axis), axis), axis)
    return sum_each(times(y, softmax(s, axis, lists).nll), lists)


@takes(
    scores="list",
    labels=("list", "positive"),
    weights=("list", "positive"),
    segments=("list", "integer"),
)
def pairwise_logistic_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    lambda_weights: LambdaWeights | None = None,
    chunk_size: int | None = None,
) -> Array:
    r"""Cross-entropy of each pair's order, that of its scores against that of its labels (RankNet).

    With s the scores of one list, y the labels and w the `weights` (1 if absent):

        loss = sum of w_i * softplus(-(s_i - s_j)) over the pairs with y_i > y_j

    Args:
        scores: floating, the items of a list along the last axis.
        labels: relevance of the items, of which only the order counts: bool, integer or
            floating, of the shape of `scores`, a scalar, or of the same rank with axes of size 1.
        where: booleans shaped like `labels`, or without the last axis; other items do not exist.
        weights: of the items, shaped like `labels`; the weight of a pair is that of its more
            relevant item.
        segments: integers shaped like `labels`. Only items of one row with the same number are
            compared, so that a row holds several lists, of any lengths and in any order.
        lambda_weights: by what else a pair's loss is multiplied, without a derivative. "ndcg" is
            LambdaRank's `|2**y_i - 2**y_j| * |1 / log2(1 + r_i) - 1 / log2(1 + r_j)|` by the ideal
            DCG of the list, with the ranks r of its items by their scores: what the NDCG changes
            by if the two change places. Or a function of (labels_i, labels_j, ranks_i, ranks_j),
            called with arrays in the dtype of the scores that broadcast to all pairs of a chunk.
            Ranks count from 1; items of one score have theirs in the order given.
        chunk_size: how many items of each row are compared with all of it at a time. Memory
            grows with it, times the number of scores. By default a chunk has about a million
            pairs, or one item of each row. Inside `vmap` the rows of that are not seen: give
            a batch as leading axes instead.

    Returns:
        The loss in nats of each row, of the shape of `scores` and `labels` together without
        the last axis, in float32 (float64 for float64 scores). A row without a pair has 0.

    Raises:
        TypeError: scores are not floating point, `where` is not boolean, or `segments` are not
            integers.
        ValueError: shapes do not match, there is no axis of items, `chunk_size` is not positive,
            or there are no such `lambda_weights`.

    To have the mean over pairs, divide by their number, which is what `pairwise_hinge_loss`
    gives for scores of zero.

    The derivative of a pair by `s_i - s_j` is `-w_i * sigmoid(s_j - s_i)`, also where scores are
    equal; by the labels it is 0. Equal scores, infinite ones too, have a difference of 0. An
    infinite difference costs 0 if it is right and inf, with a derivative of -1, if it is wrong.
    A NaN among the scores or labels of a list makes its loss and all of its derivatives NaN.

    References:
        Burges et al., Learning to Rank using Gradient Descent, 2005. Burges, Ragno and Le, Learning
        to Rank with Nonsmooth Cost Functions, 2006, and Wang et al., The LambdaLoss Framework for
        Ranking Metric Optimization, 2018 (lambda_weights).

    >>> import jax.numpy as jnp, jaxloss
    >>> scores, labels = jnp.array([2.0, 1.0, 3.0]), jnp.array([1, 0, 0])
    >>> print(jaxloss.pairwise_logistic_loss(scores, labels))
    1.626523
    """
    items = _items("scores", scores, labels, where, weights, segments)
    static = {"of_pair": _logistic, "of_ranks": _of_ranks(lambda_weights)}
    return _pairwise(*items, None, chunk=_chunk(chunk_size, items[0]), **static)


def _logistic(difference: Array, _: None) -> Array:
    return softplus(-difference)


@takes(
    scores="list",
    labels=("list", "positive"),
    weights=("list", "positive"),
    segments=("list", "integer"),
)
def pairwise_hinge_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    lambda_weights: LambdaWeights | None = None,
    chunk_size: int | None = None,
) -> Array:
    r"""By how much each pair falls short of a margin between its scores (ranking SVM).

    With s the scores of one list, y the labels and w the `weights` (1 if absent):

        loss = sum of w_i * max(0, margin - (s_i - s_j)) over the pairs with y_i > y_j

    Args:
        scores: floating, the items of a list along the last axis.
        labels: relevance of the items, of which only the order counts: bool, integer or
            floating, of the shape of `scores`, a scalar, or of the same rank with axes of size 1.
        margin: by which the scores of a pair should differ, a scalar, at least 0.
        where, weights, segments, lambda_weights, chunk_size: as in `pairwise_logistic_loss`.

    Returns:
        The loss of each row, of the shape of `scores` and `labels` together without the last
        axis, in float32 (float64 for float64 scores). A row without a pair has 0.

    Raises:
        TypeError: scores are not floating point, `where` is not boolean, or `segments` are not
            integers.
        ValueError: shapes do not match, there is no axis of items, `margin` is negative,
            `chunk_size` is not positive, or there are no such `lambda_weights`.

    With scores of zero and a margin of 1 this counts the pairs, by their weights.

    The derivative of a pair by `s_i - s_j` is -w_i where it falls short, 0 where it does not,
    and `-w_i / 2`, their mean, at exactly the margin; by the labels it is 0. Infinities and NaN
    are as in `pairwise_logistic_loss`.

    References:
        Herbrich, Graepel and Obermayer, Large Margin Rank Boundaries for Ordinal Regression,
        2000. Joachims, Optimizing Search Engines using Clickthrough Data, 2002.

    >>> import jax.numpy as jnp, jaxloss
    >>> scores, labels = jnp.array([2.0, 1.0, 3.0]), jnp.array([1, 0, 0])
    >>> print(jaxloss.pairwise_hinge_loss(scores, labels))
    2.0
    """
    items = _items("scores", scores, labels, where, weights, segments)
    margin = checks.scalar("margin", margin, items[0].dtype, checks.NONNEGATIVE)
    static = {"of_pair": _hinge, "of_ranks": _of_ranks(lambda_weights)}
    return _pairwise(*items, margin, chunk=_chunk(chunk_size, items[0]), **static)


def _hinge(difference: Array, margin: Array) -> Array:
    # At the kink the derivative of a maximum is the mean of both sides.
    return jnp.maximum(margin - difference, 0)


def _of_ranks(lambda_weights: LambdaWeights | None) -> Callable[..., Array] | None:
    if lambda_weights == "ndcg":
        return _change_of_dcg
    if lambda_weights is not None and not callable(lambda_weights):
        raise ValueError(f"lambda_weights must be 'ndcg' or a function, got {lambda_weights!r}")
    return lambda_weights


def _change_of_dcg(y_i: Array, y_j: Array, r_i: Array, r_j: Array) -> Array:
    return jnp.abs(jnp.exp2(y_i) - jnp.exp2(y_j)) * jnp.abs(_discount(r_i) - _discount(r_j))


@partial(jit_when_eager, static_argnames=("of_pair", "of_ranks", "chunk"))
@left_to_xla(-1)
def _pairwise(s, y, w, live, lists, margin, *, of_pair, of_ranks, chunk):
    s, factor = sound(s, y != y, live, lists)
    relevance = lax.stop_gradient(inputs.exclude(live, y, 0).astype(s.dtype))
    of_lambda = None
    if of_ranks is not None:
        of_lambda = relevance, lax.stop_gradient(_ranks(s, live, lists))
    each = _against_lower(s, y, live, lists, of_lambda, margin, of_pair, of_ranks, chunk)
    if of_ranks is _change_of_dcg:
        each = per_size(each, of_own(_ideal_dcg(relevance, live, lists), lists))
    each = infinite(each) * factor
    if w is not None:
        each = times(inputs.exclude(live, w, 0), each)
    return jnp.sum(each, s.ndim - 1)


def _against_lower(s, y, live, lists, of_lambda, margin, of_pair, of_ranks, chunk):
    """The loss of each item's pairs with the less relevant ones of its list."""
    mine, theirs = _own_and_others(live, lists, s.shape)

    def some(items):
        s_i, y_i, mine, of_lambda_i = jax.tree.map(lambda a: a[..., None], items)
        pair = y_i > y[..., None, :]
        if mine is not None:
            pair &= mine == theirs[..., None, :]
        # A difference of inf has a loss of 0, and all of its derivatives.
        difference = jnp.where(pair, s_i - s[..., None, :], jnp.inf)
        losses = of_pair(difference, margin)
        if of_lambda is not None:
            (relevance, ranks), (y_j, r_j) = of_lambda_i, (a[..., None, :] for a in of_lambda)
            weights = jnp.where(pair, of_ranks(relevance, y_j, ranks, r_j), 0)
            losses = times(lax.stop_gradient(weights), infinite(losses))
        return passes.settled(jnp.sum(losses, -1))

    return _in_chunks(some, (s, y, mine, of_lambda), chunk)


def _own_and_others(live, lists, shape):
    """The number of each item's list, and of the list that each is to others: none if masked."""
    if live is None:
        return lists, lists
    lists = jnp.zeros(shape, jnp.int32) if lists is None else lists
    return jnp.where(live, lists, -1), jnp.where(live, lists, -2)


def _in_chunks(some: Callable[..., Array], items: Any, chunk: int) -> Array:
    """`some(items)`, a number for each, of so many at a time."""
    like = jax.tree.leaves(items)[0]
    n = like.shape[-1]
    if n <= chunk:
        return some(items)
    # Kept are the items only: a chunk's pairs are computed anew where they are needed.
    some = jax.checkpoint(some, prevent_cse=False)
    chunks = jax.tree.map(lambda a: blocks(a, chunk, a.ndim - 1), items)
    each = jnp.moveaxis(lax.map(some, chunks), 0, -2)
    return each.reshape(*like.shape[:-1], each.shape[-2] * chunk)[..., :n]


@takes(scores="list", labels=("list", "positive"), segments=("list", "integer"))
def approx_ndcg_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    where: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    chunk_size: int | None = None,
) -> Array:
    r"""One minus the NDCG of a list, by ranks that are smooth in its scores.

    With s the scores of one list, y the labels and T the temperature:

        r_i = 1 + sum over j != i of sigmoid((s_j - s_i) / T)
        loss = 1 - sum_i (2 ** y_i - 1) / log2(1 + r_i) / ideal,

    where the ideal is that sum by the ranks of the labels themselves.

    Args:
        scores: floating, the items of a list along the last axis.
        labels: relevance of the items, at least 0: bool, integer or floating, of the shape of
            `scores`, a scalar, or of the same rank with axes of size 1.
        temperature: T, positive; may be traced, and has a derivative. The lower, the closer to
            the NDCG itself, and the flatter between its steps.
        where, segments, chunk_size: as in `pairwise_logistic_loss`.

    Returns:
        The loss of each row in [0, 1), or with `segments` the sum over its lists, of the shape of
        `scores` and `labels` together without the last axis, in float32 (float64 for float64
        scores). A list without a relevant item has 0.

    Raises:
        TypeError: scores are not floating point, `where` is not boolean, or `segments` are not
            integers.
        ValueError: shapes do not match, there is no axis of items, or a setting is not positive.

    Labels have a derivative, those that are equal with the mean of the discounts of their ideal
    ranks. Infinities and NaN are as in `pairwise_logistic_loss`.

    References:
        Qin, Liu and Li, A general approximation framework for direct optimization of information
        retrieval measures, 2010. Bruch et al., Revisiting Approximate Metric Optimization in the
        Age of Deep Neural Networks, 2019.

    >>> import jax.numpy as jnp, jaxloss
    >>> scores, labels = jnp.array([2.0, 1.0, 3.0]), jnp.array([1, 0, 0])
    >>> print(jaxloss.approx_ndcg_loss(scores, labels))
    0.36907023
    """
    s, y, _, live, lists = _items("scores", scores, labels, where, None, segments)
    temperature = checks.positive("temperature", temperature, s.dtype)
    chunk = _chunk(chunk_size, s)
    return _approx_ndcg(s, y.astype(s.dtype), live, lists, temperature, chunk=chunk)


@partial(jit_when_eager, static_argnames="chunk")
@left_to_xla(-1)
def _approx_ndcg(s, y, live, lists, temperature, *, chunk):
    s, factor = sound(s, y != y, live, lists)
    y = inputs.exclude(live, y, 0)
    mine, theirs = _own_and_others(live, lists, s.shape)
    place = lax.broadcasted_iota(jnp.int32, s.shape, s.ndim - 1)

    def ranks(items):
        s_i, place_i, mine = jax.tree.map(lambda a: a[..., None], items)
        pair = place_i != place[..., None, :]
        if mine is not None:
            pair &= mine == theirs[..., None, :]
        difference = jnp.where(pair, s[..., None, :] - s_i, -jnp.inf)
        return 1 + jnp.sum(sigmoid(difference / temperature), -1)

    dcg = _of_lists(_gain(y) * _discount(_in_chunks(ranks, (s, place, mine), chunk)), lists)
    ideal = _ideal_dcg(y, live, lists)
    losses = jnp.where(ideal == 0, 0, 1 - per_size(dcg, ideal))
    return jnp.sum(losses, -1) * jnp.prod(factor, -1)


def _gain(y: Array) -> Array:
    return expm1(y * math.log(2))


def _discount(rank: Array) -> Array:
    return math.log(2) / jnp.log1p(rank)


def _of_lists(x: Array, lists: Array | None) -> Array:
    """The sum over each list, at its number; over a row that is one list, with size one."""
    return jnp.sum(x, -1, keepdims=True) if lists is None else sum_each(x, lists)


class _Ranked(NamedTuple):
    order: Array  # which item is at each place
    number: Array  # of its list, one that no list has if it is masked
    rank: Array  # in its list, from 1 on


def _ranked(keys: Array, live: Array | None, lists: Array | None) -> _Ranked:
    """List after list, the items with the largest keys first; equal ones in the order given."""
    largest_first = -keys if jnp.issubdtype(keys.dtype, jnp.floating) else ~keys
    order, number, _ = in_order(largest_first, live, lists)
    return _Ranked(order, number, _run_lengths(number))


def _run_lengths(number: Array) -> Array:
    """How many up to each place have been alike, from 1 on."""
    start, _ = span(starts(number))
    return lax.broadcasted_iota(jnp.int32, number.shape, number.ndim - 1) - start + 1


def _ranks(s: Array, live: Array | None, lists: Array | None) -> Array:
    """The place of each item in its list by its score, from 1 on."""
    by_score = _ranked(s, live, lists)
    rank = by_score.rank.astype(s.dtype)
    return jnp.take_along_axis(rank, inverse(by_score.order), -1)


def _ideal_dcg(y: Array, live: Array | None, lists: Array | None) -> Array:
    """The DCG of each list by the ranks of its labels."""
    by_label = _ranked(y, live, lists)
    y = jnp.take_along_axis(y, by_label.order, -1)
    # Equal labels have the mean of their discounts, for derivatives that do not tell them apart.
    again = (_run_lengths(y) > 1) & (by_label.rank > 1)
    group = lax.cumsum(1 - again.astype(jnp.int32), y.ndim - 1) - 1
    discount = _discount(by_label.rank.astype(y.dtype))
    mean = sum_each(discount, group) / jnp.maximum(sum_each(jnp.ones_like(y), group), 1)
    ideal = _gain(y) * jnp.take_along_axis(mean, group, -1)
    return _of_lists(ideal, None if lists is None else by_label.number)


@takes(scores="list", labels=("list", "positive"), segments=("list", "integer"))
def listmle_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    segments: ArrayLike | None = None,
) -> Array:
    r"""Negative log-likelihood of the order of a list by its labels (ListMLE, Plackett-Luce).

    With s the scores of one list in decreasing order of its labels:

        loss = -sum_i log(exp(s_i) / sum over j >= i of exp(s_j))

    Each item is so chosen among those that are not yet.

    Args:
        scores: floating, the items of a list along the last axis.
        labels: relevance of the items, of which only the order counts, equal ones in the order
            given: bool, integer or floating, of the shape of `scores`, a scalar, or of the same
            rank with axes of size 1.
        where: booleans shaped like `labels`, or without the last axis; other items do not exist.
        segments: integers shaped like `labels`. Items of one row with the same number form a
            list, so that a row holds several, of any lengths and in any order.

    Returns:
        The loss in nats of each row, or with `segments` the sum over its lists, of the shape of
        `scores` and `labels` together without the last axis, in float32 (float64 for float64
        scores), exact also where it is tiny.

    Raises:
        TypeError: scores are not floating point, `where` is not boolean, or `segments` are not
            integers.
        ValueError: shapes do not match, or there is no axis of items.

    By the labels the derivative is 0. Infinities and NaN are as in `pairwise_logistic_loss`.

    References:
        Xia et al., Listwise Approach to Learning to Rank: Theory and Algorithm, 2008.

    >>> import jax.numpy as jnp, jaxloss
    >>> scores, labels = jnp.array([2.0, 1.0, 3.0]), jnp.array([2, 0, 1])
    >>> print(jaxloss.listmle_loss(scores, labels))
    1.5345339
    """
    s, y, _, live, lists = _items("scores", scores, labels, where, None, segments)
    return _listmle(s, y, live, lists)


@jit_when_eager
@left_to_xla(-1)
def _listmle(s, y, live, lists):
    axis = s.ndim - 1
    s, _ = sound(s, y != y, live, lists)
    by_label = _ranked(y, live, lists)
    s = jnp.take_along_axis(s, by_label.order, axis)
    is_last = ends(starts(by_label.number)) | (by_label.number == s.shape[axis])
    return jnp.sum(infinite(softplus(leads(s, is_last))), axis)


def _chunk(size: int | None, s: Array) -> int:
    known = all(isinstance(n, int) for n in s.shape)  # Exported, sizes may be symbols.
    bytes_of_lists = s.nbytes if known else s.dtype.itemsize * s.shape[-1]
    return checks.chunk_size(size) or max(1, _CHUNK_BYTES // max(bytes_of_lists, 1))


def _items(name, scores, labels, where, weights, segments):
    """Check and convert what is given of the items; number the lists of a row in [0, n)."""
    s = checks.predictions(name, scores)
    labels = jnp.asarray(labels)
    y = checks.numeric("labels", labels, labels.dtype)
    shape = checks.common_shape(name, s, "labels", y)
    if not shape:
        raise ValueError(
            f"{name} of shape {s.shape} and labels of shape {y.shape} have no axis of items; "
            f"a list of one item has shape (1,)"
        )
    s, _, live = inputs.rows(name, jnp.broadcast_to(s, shape), -1, where)
    if weights is not None:
        weights = checks.numeric("weights", weights, s.dtype)
        checks.fits("weights", weights, name, shape)
        weights = jnp.broadcast_to(weights, shape)
    lists = lists_of(segments, name, shape)
    return s, jnp.broadcast_to(y, shape), weights, live, lists
