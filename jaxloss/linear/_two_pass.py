"""The cross-entropy in two passes over blocks of classes, for sweeps that keep no logits.

The first pass collects statistics of each token's row of logits, the second computes the logits
again and turns them into gradients. Here are the formulas of a block and of a row; how the blocks
are visited is up to `_vocab.py` and `_pallas_tpu.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core import passes
from jaxloss._core.mapped import alike
from jaxloss._core.nll import Terms, beyond_one, combined, is_label, other_class
from jaxloss._core.numerics import clip_to_finite, largest, nan_unless, times
from jaxloss._core.split import ClassAxis, Split, class_index, local_labels, of_label, total_classes
from jaxloss.linear._formulas import (
    NO_CLASS,
    Settings,
    Spread,
    TokenStatistics,
    first_index,
    of_all_devices,
    shaped,
    spread_terms,
    statistics_of,
)
from jaxloss.linear._head import Head, in_dtypes, logits_dtype, logits_of, vocab_size
from jaxloss.linear._sweep import Gradients, Need
from jaxloss.linear._tokens import TokenSweep


class BlockStats(NamedTuple):
    """Statistics of a block of classes for each token. [N, 1]"""

    top: Array  # the largest logit, clipped to finite numbers
    tail: Array  # sum of exp(x - top) over all classes except the label
    label: Array  # the label's logit, 0 if the label is in another block
    smooth_gap: Array  # sum of k * (top - x), with the weights k of the classes in the smoothed
    # loss; here and below only of those that no logit of -inf excludes
    smooth_weight: Array  # sum of k
    live: Array  # how many classes are not excluded, where there are k
    spread: "BlockSpread | None" = None  # only where statistics are collected


class BlockSpread(NamedTuple):
    """What is in `Spread` of a row, and not in `BlockStats`. [N, 1]"""

    rest: Array
    ties: Array
    behind: Array
    first: Array  # as a class of this device


class RowStats(NamedTuple):
    """Statistics of all classes for each token. [N, 1]"""

    top: Array
    tail: Array
    scale: Array  # 1 / sum of exp(x - top); NaN for a row without a loss
    log_rest: Array  # log-sum-exp of the logits, minus top
    smooth_weight: Array  # the mean of k
    share: Array  # 1 / the number of live classes
    terms: Terms


class Slopes(NamedTuple):
    """The factors of a row's gradient: the total's derivative by its logits is

        nll * (exp(x - top), but -tail at the label) + lse * exp(x - top) - smooth * k

    where k is that of a live class.

    [N, 1]; None where no setting asks for it.
    """

    top: Array
    tail: Array
    nll: Array
    lse: Array | None
    smooth: Array | None
    log_rest: Array | None


class Block(NamedTuple):
    """A block of the classes of this device."""

    head: Head
    bias: Array | None
    smooth_weights: Array | None  # k
    labels: Array  # relative to the block's first class [N, 1]


class Vocabulary(NamedTuple):
    """All classes of this device, and what does not differ between them."""

    whole: Block
    settings: Settings
    vocab_first: bool
    collects: bool  # whether statistics of each token are wanted

    @property
    def vocab_axis(self) -> int:
        """Of the weight."""
        return 0 if self.vocab_first else 1

    @property
    def local_vocab(self) -> int:
        return vocab_size(self.whole.head, self.vocab_first)


class TwoPass(Protocol):
    """The two passes over the vocabulary of this device."""

    def statistics(self, like: Array) -> BlockStats:
        """The first pass. `like` is an array [N, 1] of the dtype of the logits."""
        ...

    def gradients(self, need: Need, slopes: Slopes) -> Gradients:
        """The second pass: by the head, the bias, the cap, and the class weights as parts of k."""
        ...


def vocabulary(
    sweep: TokenSweep,
    heads: tuple[Head, ...],
    labels: Array,
    settings: Settings,
    collects: bool,
) -> Vocabulary:
    (head,) = heads
    local_vocab = vocab_size(head, sweep.vocab_first)
    whole = Block(
        head,
        settings.bias,
        _smooth_weights(settings, local_vocab),
        local_labels(labels[:, None], local_vocab, sweep.class_axis),
    )
    return Vocabulary(whole, settings, sweep.vocab_first, collects)


def total_and_gradients(
    two: TwoPass,
    sweep: TokenSweep,
    need: Need,
    heads: tuple[Head, ...],
    labels: Array,
    settings: Settings,
    coefficients: Array,
) -> tuple[Array, Gradients]:
    """What `sweep` computes, by the two passes."""
    (head,), labels, axis = heads, labels[:, None], sweep.class_axis
    local_vocab = vocab_size(head, sweep.vocab_first)
    classes = total_classes(local_vocab, axis)
    like = jnp.zeros(labels.shape, coefficients.dtype)
    stats = _over_devices(two.statistics(like), local_vocab, axis)
    row, statistics = _of_row(stats, labels, classes), _of_tokens(stats, labels, classes)
    numbers = settings.class_weights, settings.smoothing, settings.z_loss
    loss, pull = jax.vjp(partial(_combined, labels=labels, axis=axis), row.terms, *numbers)
    total = jnp.sum(times(coefficients, loss[:, 0]))
    if not any(jax.tree.leaves(need)):
        nothing = jax.tree.map(lambda _: None, tuple(need))
        return total, Gradients(*nothing, statistics=statistics)
    d, d_class_weights, d_smoothing, d_z_loss = pull(alike(coefficients[:, None], loss))
    out = two.gradients(need, _slopes(row, d, settings))
    shared = out.shared._replace(
        class_weights=added(out.shared.class_weights, d_class_weights),
        smoothing=d_smoothing,
        z_loss=d_z_loss,
    )
    g_hidden = in_dtypes(out.hidden, [head.hidden])
    out = g_hidden, out.weight, shared, clip_to_finite(loss[:, 0]), None
    out = jax.tree.map(lambda n, g: g if n else None, tuple(need), out)
    return total, Gradients(*out, statistics=statistics)


def each_token(
    two: TwoPass, sweep: TokenSweep, heads: tuple[Head, ...], labels: Array
) -> TokenStatistics | None:
    """The statistics of each token, by the first pass."""
    local_vocab, axis = vocab_size(heads[0], sweep.vocab_first), sweep.class_axis
    classes = total_classes(local_vocab, axis)
    like = jnp.zeros((labels.shape[0], 1), logits_dtype(*heads))
    stats = _over_devices(two.statistics(like), local_vocab, axis)
    return _of_tokens(stats, labels[:, None], classes)


def _combined(
    terms: Terms,
    class_weights: Array | None,
    smoothing: Array | None,
    z_loss: Array | None,
    *,
    labels: Array,
    axis: ClassAxis,
) -> Array:
    of_class = None if class_weights is None else class_weights[None]
    return combined(terms, labels, of_class, smoothing, z_loss, axis)


def _smooth_weights(settings: Settings, local_vocab: int) -> Array | None:
    """k, the weights of this device's classes in the smoothed loss."""
    if settings.smoothing is None:
        return None
    if settings.class_weights is None:
        return jnp.ones(local_vocab, settings.smoothing.dtype)
    return settings.class_weights


def added(total: Array | None, term: Array | None) -> Array | None:
    return total if total is None or term is None else total + term


# A block of classes.


def logits(
    block: Block, softcap: Array | None, temperature: Array | None, vocab_first: bool
) -> tuple[Array, Callable]:
    """Of a block; and their pullback to the matmul's result, the bias and the cap."""
    shape = partial(shaped, temperature=temperature)
    return jax.vjp(shape, logits_of(block.head, vocab_first), block.bias, softcap)


def no_classes(like: Array, collects: bool) -> BlockStats:
    """The statistics of no classes, to start from."""
    spread = BlockSpread(like, like, like, like + NO_CLASS) if collects else None
    return BlockStats(like - largest(like.dtype), like, like, like, like, like, spread)


def block_stats(
    x: Array, block: Block, label: Array, spread: BlockSpread | None = None
) -> BlockStats:
    """Of a block with the logits `x`. `label` is the label's logit, if it is one of them."""
    big, eps, top = largest(x.dtype), float(jnp.finfo(x.dtype).eps), _top(x)
    inside = (block.labels >= 0) & (block.labels < x.shape[1])
    smooth_gap = smooth_weight = live = jnp.zeros_like(top)
    if block.smooth_weights is not None:
        each = x > -jnp.inf
        k = jnp.where(each, block.smooth_weights[None], 0)
        live = live + jnp.sum(each.astype(x.dtype), 1, keepdims=True)
        # Scaled by a power of two, an infinite gap becomes a finite number: times zero it is zero.
        gaps = jnp.minimum((top - x) * eps, big)
        smooth_gap = jnp.sum(gaps * k, 1, keepdims=True) / eps
        smooth_weight = smooth_weight + jnp.sum(k, 1, keepdims=True)
    e = jnp.exp(jnp.minimum(x - top, 0))
    tail = jnp.sum(e * other_class(block.labels, x, 1), 1, keepdims=True)
    label = jnp.where(inside, label, 0)
    return BlockStats(top, tail, label, smooth_gap, smooth_weight, live, spread)


def block_spread(x: Array, start: Any) -> BlockSpread:
    """Of a block that begins with the class `start`, in a kernel."""
    top, index = _top(x), _index(x)
    rest, ties, behind = (jnp.sum(t, 1, keepdims=True) for t in spread_terms(x, top))
    return _from(start, BlockSpread(rest, ties, behind, first_index(x, top, index)))


def block_spread_in_passes(x: Array, start: Any) -> BlockSpread:
    """The same, as is fast on a CPU."""
    top, index = _top(x), _index(x)
    rest, ties, behind = passes.sums(spread_terms, 1, x, top)
    first = passes.own_pass(first_index)(x, top, index)
    return _from(start, BlockSpread(rest, ties, behind, first))


def _top(x: Array) -> Array:
    big = largest(x.dtype)
    return jnp.clip(jnp.max(x, 1, keepdims=True), -big, big)


def _index(x: Array) -> Array:
    return class_index(x, 1).astype(x.dtype)


def _from(start: Any, spread: BlockSpread) -> BlockSpread:
    return spread._replace(first=spread.first + jnp.asarray(start).astype(spread.first.dtype))


def label_logit(x: Array, block: Block) -> Array:
    return of_label(x, block.labels, 1)


def _relative_to(top: Array, stats: BlockStats) -> BlockStats:
    rise = top - stats.top
    spread = None if stats.spread is None else _lowered(stats.spread, rise)
    return stats._replace(
        spread=spread,
        top=top,
        tail=stats.tail * jnp.exp(-rise),
        smooth_gap=stats.smooth_gap + stats.smooth_weight * rise,
    )


def _lowered(spread: BlockSpread, rise: Array) -> BlockSpread:
    """Relative to a logit that is larger by `rise`, or as large."""
    whole, drop, lower = spread.rest + spread.ties, jnp.exp(-rise), rise > 0
    return BlockSpread(
        jnp.where(lower, whole * drop, spread.rest),
        jnp.where(lower, 0, spread.ties),
        spread.behind * drop + whole * (jnp.minimum(rise, 1000) * drop),
        jnp.where(lower, NO_CLASS, spread.first),
    )


def merged(a: BlockStats, b: BlockStats) -> BlockStats:
    """The statistics of two blocks together."""
    top = jnp.maximum(a.top, b.top)
    a, b = _relative_to(top, a), _relative_to(top, b)
    out = jax.tree.map(jnp.add, a, b)._replace(top=top)
    if a.spread is None or b.spread is None or out.spread is None:
        return out
    first = jnp.minimum(a.spread.first, b.spread.first)
    return out._replace(spread=out.spread._replace(first=first))


def _over_devices(stats: BlockStats, local_vocab: int, axis: ClassAxis) -> BlockStats:
    if not isinstance(axis, Split):
        return stats
    stats = _relative_to(lax.pmax(stats.top, axis.axis_name), stats)
    out = lax.psum(stats, axis.axis_name)._replace(top=stats.top)
    if stats.spread is None or out.spread is None:
        return out
    first = lax.pmin(of_all_devices(stats.spread.first, local_vocab, axis), axis.axis_name)
    return out._replace(spread=out.spread._replace(first=first))


def block_gradient(x: Array, block: Block, slopes: Slopes) -> tuple[Array, Array | None]:
    """By the logits `x` of a block; and by their weights k."""
    e = jnp.exp(jnp.minimum(x - slopes.top, 0))
    g = slopes.nll * jnp.where(is_label(block.labels, x, 1), -slopes.tail, e)
    if slopes.lse is not None:
        g = g + slopes.lse * e
    if slopes.smooth is None or slopes.log_rest is None or block.smooth_weights is None:
        return g, None
    live = x > -jnp.inf
    nll = times(slopes.smooth, (slopes.top - x) + slopes.log_rest)
    k = jnp.where(live, block.smooth_weights[None], 0)
    return g - slopes.smooth * k, jnp.sum(jnp.where(live, nll, 0), 0)


# A row.


def _of_tokens(stats: BlockStats, labels: Array, classes: int) -> TokenStatistics | None:
    if stats.spread is None:
        return None
    # NaN, which a maximum may have dropped.
    rest = jnp.where(stats.tail < jnp.inf, stats.spread.rest, jnp.inf)
    return statistics_of(
        Spread(stats.top, stats.label, *stats.spread._replace(rest=rest)), labels, classes
    )


def _of_row(stats: BlockStats, labels: Array, classes: int) -> RowStats:
    gap = jnp.maximum(stats.top - stats.label, 0)
    e_label = jnp.exp(-gap)
    log_rest = jnp.log1p(beyond_one(stats.tail, e_label))
    valid = (labels >= 0) & (labels < classes) & (stats.tail < jnp.inf)
    nll = nan_unless(valid, log_rest + gap)
    weight = jnp.maximum(stats.tail + e_label, float(jnp.finfo(stats.top.dtype).tiny))
    scale = nan_unless(~jnp.isnan(nll), 1 / weight)
    share = 1 / jnp.maximum(stats.live, 1)
    smooth_weight = share * stats.smooth_weight
    smooth = share * stats.smooth_gap + smooth_weight * log_rest
    terms = Terms(nll, smooth, stats.top + log_rest)
    return RowStats(stats.top, stats.tail, scale, log_rest, smooth_weight, share, terms)


def _slopes(row: RowStats, d: Terms, settings: Settings) -> Slopes:
    """From the derivatives of the total by the terms."""
    assert d.smooth is not None and d.lse is not None
    smooth = settings.smoothing is not None
    lse = smooth or settings.z_loss is not None
    return Slopes(
        row.top,
        row.tail,
        row.scale * d.nll,
        row.scale * (d.lse + row.smooth_weight * d.smooth) if lse else None,
        row.share * d.smooth if smooth else None,
        row.log_rest if smooth else None,
    )
