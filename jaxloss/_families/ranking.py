"""Ranking losses: a model's scores of the items of a list against their relevance.

A list runs along the last axis, or is what `segments` say of it. Each loss is a sum: over the
items of a list, or over its pairs of a more and a less relevant item.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.nll import soft_nll
from jaxloss._core.numerics import clip_to_finite, largest, one_or_nan, softplus, times
from jaxloss._core.pairs import blocks
from jaxloss._core.reduce import reduce_losses
from jaxloss._core.rows import softmax
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.split import total

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
        items = jnp.ones(s.shape, jnp.int32) if live is None else live.astype(jnp.int32)
        live = _sum_each(items, lists) > 0
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
    return _sum_each(times(y, softmax(s, axis, lists).nll), lists)


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
        ValueError: shapes do not match, there is no axis of items, or `chunk_size` is not
            positive.

    To have the mean over pairs, divide by their number, which is what `pairwise_hinge_loss`
    gives for scores of zero.

    The derivative of a pair by `s_i - s_j` is `-w_i * sigmoid(s_j - s_i)`, also where scores are
    equal; by the labels it is 0. Equal scores, infinite ones too, have a difference of 0. An
    infinite difference costs 0 if it is right and inf, with a derivative of -1, if it is wrong.
    A NaN among the scores or labels of a list makes its loss and all of its derivatives NaN.

    References:
        Burges et al., Learning to Rank using Gradient Descent, 2005.

    >>> import jax.numpy as jnp, jaxloss
    >>> scores, labels = jnp.array([2.0, 1.0, 3.0]), jnp.array([1, 0, 0])
    >>> print(jaxloss.pairwise_logistic_loss(scores, labels))
    1.626523
    """
    items = _items("scores", scores, labels, where, weights, segments)
    return _pairwise(*items, None, of_pair=_logistic, chunk=_chunk(chunk_size, items[0]))


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
        where, weights, segments, chunk_size: as in `pairwise_logistic_loss`.

    Returns:
        The loss of each row, of the shape of `scores` and `labels` together without the last
        axis, in float32 (float64 for float64 scores). A row without a pair has 0.

    Raises:
        TypeError: scores are not floating point, `where` is not boolean, or `segments` are not
            integers.
        ValueError: shapes do not match, there is no axis of items, `margin` is negative, or
            `chunk_size` is not positive.

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
    return _pairwise(*items, margin, of_pair=_hinge, chunk=_chunk(chunk_size, items[0]))


def _hinge(difference: Array, margin: Array) -> Array:
    # At the kink the derivative of a maximum is the mean of both sides.
    return jnp.maximum(margin - difference, 0)


@partial(jit_when_eager, static_argnames=("of_pair", "chunk"))
@left_to_xla(-1)
def _pairwise(s, y, w, live, lists, margin, *, of_pair, chunk):
    axis = s.ndim - 1
    s = inputs.exclude(live, s, 0)
    undefined = inputs.exclude(live, jnp.isnan(s) | (y != y), False)
    sound = total(undefined.astype(s.dtype), axis, lists) == 0
    factor = one_or_nan(sound, s.dtype)
    # Infinities must not meet: as finite numbers they are equal, or far apart.
    each = _against_lower(clip_to_finite(s) * factor, y, live, lists, margin, of_pair, chunk)
    limit = largest(s.dtype) / 16
    each += lax.stop_gradient(jnp.where(each > limit, jnp.inf, 0))
    each *= factor
    if w is not None:
        each = times(inputs.exclude(live, w, 0), each)
    return jnp.sum(each, axis)


def _against_lower(s, y, live, lists, margin, of_pair, chunk):
    """The loss of each item's pairs with the less relevant ones of its list, in chunks."""
    mine = theirs = lists
    if live is not None:
        # What is masked has no list, and is of nobody else's.
        lists = jnp.zeros(s.shape, jnp.int32) if lists is None else lists
        mine, theirs = jnp.where(live, lists, -1), jnp.where(live, lists, -2)

    def some(items):
        s_i, y_i, mine = (a if a is None else a[..., None] for a in items)
        pair = y_i > y[..., None, :]
        if mine is not None:
            pair &= mine == theirs[..., None, :]
        # A difference of inf has a loss of 0, and all of its derivatives.
        difference = jnp.where(pair, s_i - s[..., None, :], jnp.inf)
        return jnp.sum(of_pair(difference, margin), -1)

    n = s.shape[-1]
    if n <= chunk:
        return some((s, y, mine))
    # Kept are the items only: a chunk's pairs are computed anew where they are needed.
    some = jax.checkpoint(some, prevent_cse=False)
    chunks = jax.tree.map(lambda a: blocks(a, chunk, a.ndim - 1), (s, y, mine))
    each = jnp.moveaxis(lax.map(some, chunks), 0, -2)
    return each.reshape(*s.shape[:-1], each.shape[-2] * chunk)[..., :n]


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
    if segments is not None:
        segments = checks.integers("segments", segments, "number the lists of a row")
        checks.fits("segments", segments, name, shape)
        segments = _numbered(jnp.broadcast_to(segments, shape))
    return s, jnp.broadcast_to(y, shape), weights, live, segments


@jit_when_eager
def _numbered(segments: Array) -> Array:
    """The same lists with numbers in [0, n)."""

    def row(segments):
        return jnp.searchsorted(jnp.sort(segments), segments).astype(jnp.int32)

    return jnp.vectorize(row, signature="(n)->(n)")(segments)


def _sum_each(x: Array, lists: Array) -> Array:
    """The sum over each list of a row, where its number says, and 0 elsewhere."""

    def row(x, lists):
        return jax.ops.segment_sum(x, lists, num_segments=x.size)

    return jnp.vectorize(row, signature="(n),(n)->(n)")(x, lists)
