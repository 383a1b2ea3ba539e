"""The cross-entropy in two looks at blocks of classes: for statistics of the rows, for gradients.

Here are the formulas of a block and of the rows; what takes the looks is a sweep of its own.
What is differentiated further is the sweep over tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.nll import beyond_one, is_label, other_class
from jaxloss._core.numerics import clip_to_finite, largest, nan_unless, times
from jaxloss._core.split import ClassAxis, Split, local_labels, of_label, total_classes
from jaxloss.linear._operands import vocabulary
from jaxloss.linear._rows import Settings, shaped
from jaxloss.linear._sharding import alike
from jaxloss.linear._tokens import Head, Sweep, Wanted, in_dtypes, logits_of


class Part(NamedTuple):
    """Statistics of some of the classes of each row. [N, 1]"""

    top: Array  # their largest logit, clipped to finite numbers
    tail: Array  # sum of exp(x - top) over all of them but the label
    label: Array  # the label's logit, 0 if it is not one of them
    behind: Array  # sum of k * (top - x), for the weights k of the smoothed loss
    k: Array  # sum of k


class Losses(NamedTuple):
    """What a token's loss is made of. [N, 1]"""

    nll: Array  # -log p of the label
    smooth: Array  # sum of k * -log p over all classes
    lse: Array  # log-sum-exp of the logits


class Row(NamedTuple):
    """Statistics of whole rows. [N, 1]"""

    top: Array
    tail: Array
    scale: Array  # 1 / sum of exp(x - top), NaN for a row without a loss
    log_rest: Array  # log-sum-exp of the logits, less top
    k: Array
    losses: Losses


class Slopes(NamedTuple):
    """The total's derivatives by the logits of a row, and what forms them. [N, 1]

    None where no setting asks for it.
    """

    top: Array
    tail: Array
    others: Array  # of exp(x - top), and of -tail at the label
    spread: Array | None  # of exp(x - top) total_classes
    smooth: Array | None  # of -k
    log_rest: Array | None


class Block(NamedTuple):
    """Some classes of this device."""

    head: Head
    bias: Array | None
    k: Array | None
    labels: Array  # counted from the first of them [N, 1]


class Looks(Protocol):
    """A sweep that looks at all classes of this device, twice."""

    def statistics(self, like: Array) -> Part: ...

    def gradients(self, wanted: Wanted, slopes: Slopes, settings: Settings) -> Wanted:
        """By the head, the bias, the cap, and the class weights as parts of k."""
        ...


def total_and_gradients(
    sweep: Sweep,
    wanted: Wanted,
    heads: tuple[Head, ...],
    labels: Array,
    settings: Settings,
    coefficients: Array,
    *,
    looks: Callable[..., Looks],
    axis: ClassAxis,
) -> tuple[Array, Wanted]:
    """`sum(coefficients * losses)` and its gradients; see `_tokens.total_and_gradients`."""
    (head,), labels = heads, labels[:, None]
    size = vocabulary(head, sweep.vocab_first)
    n = total_classes(size, axis)
    whole = Block(
        head, settings.bias, _smoothed(settings, size, n), local_labels(labels, size, axis)
    )
    both = looks(whole, settings.softcap, sweep.vocab_first, n)

    like = jnp.zeros(labels.shape, coefficients.dtype)
    row = _finished(_over_devices(both.statistics(like), axis), labels, n)
    numbers = settings.class_weights, settings.smoothing, settings.z_loss
    combined = partial(_combined, labels=labels, axis=axis)
    loss, pull = jax.vjp(combined, row.losses, *numbers)
    total = jnp.sum(times(coefficients, loss[:, 0]))
    if not any(jax.tree.leaves(wanted)):
        return total, jax.tree.map(lambda _: None, wanted)
    d, d_class_weights, d_smoothing, d_z_loss = pull(alike(coefficients[:, None], loss))
    out = both.gradients(wanted, _slopes(row, d, settings), settings)
    shared = out.shared._replace(
        class_weights=added(out.shared.class_weights, d_class_weights),
        smoothing=d_smoothing,
        z_loss=d_z_loss,
    )
    out = Wanted(
        in_dtypes(out.hidden, [head.hidden]), out.weight, shared, clip_to_finite(loss[:, 0])
    )
    return total, jax.tree.map(lambda w, g: g if w else None, wanted, out)


def added(whole: Array | None, more: Array | None) -> Array | None:
    return whole if whole is None or more is None else whole + more


def _smoothed(settings: Settings, size: int, n: int) -> Array | None:
    """The weights of this device's classes in the smoothed loss."""
    if settings.smoothing is None:
        return None
    if settings.class_weights is None:
        return jnp.full(size, 1 / n, settings.smoothing.dtype)
    return settings.class_weights / n


def logits(block: Block, softcap: Array | None, vocab_first: bool) -> tuple[Array, Callable]:
    """Of a block; and the pullback to what the matmul gives, the bias and the cap."""
    return jax.vjp(shaped, logits_of(block.head, vocab_first), block.bias, softcap)


def nothing(like: Array) -> Part:
    """The statistics of no classes."""
    return Part(like - largest(like.dtype), like, like, like, like)


def part(x: Array, block: Block, label: Array) -> Part:
    """The statistics of a block whose logits are `x`, the label's one of them `label`."""
    big, eps = largest(x.dtype), float(jnp.finfo(x.dtype).eps)
    top = jnp.clip(jnp.max(x, 1, keepdims=True), -big, big)
    inside = (block.labels >= 0) & (block.labels < x.shape[1])
    behind = k = jnp.zeros_like(top)
    if block.k is not None:
        # A power of two takes an infinite gap to a finite number and back: times zero, it is zero.
        gaps = jnp.minimum((top - x) * eps, big)
        behind = jnp.sum(gaps * block.k[None], 1, keepdims=True) / eps
        k = k + jnp.sum(block.k[None], 1, keepdims=True)
    e = jnp.exp(jnp.minimum(x - top, 0))
    tail = jnp.sum(e * other_class(block.labels, x, 1), 1, keepdims=True)
    return Part(top, tail, jnp.where(inside, label, 0), behind, k)


def label_of(x: Array, block: Block) -> Array:
    return of_label(x, block.labels, 1)


def _relative_to(top: Array, part: Part) -> Part:
    moved = top - part.top
    tail, behind = part.tail * jnp.exp(-moved), part.behind + part.k * moved
    return part._replace(top=top, tail=tail, behind=behind)


def merged(a: Part, b: Part) -> Part:
    top = jnp.maximum(a.top, b.top)
    a, b = _relative_to(top, a), _relative_to(top, b)
    return Part(top, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def _over_devices(part: Part, axis: ClassAxis) -> Part:
    if not isinstance(axis, Split):
        return part
    part = _relative_to(lax.pmax(part.top, axis.axis_name), part)
    return Part(part.top, *(lax.psum(x, axis.axis_name) for x in part[1:]))


def _finished(part: Part, labels: Array, n: int) -> Row:
    gap = jnp.maximum(part.top - part.label, 0)
    e_label = jnp.exp(-gap)
    log_rest = jnp.log1p(beyond_one(part.tail, e_label))
    sound = (labels >= 0) & (labels < n) & (part.tail < jnp.inf)
    nll = nan_unless(sound, log_rest + gap)
    weight = jnp.maximum(part.tail + e_label, float(jnp.finfo(part.top.dtype).tiny))
    scale = nan_unless(~jnp.isnan(nll), 1 / weight)
    losses = Losses(nll, part.behind + part.k * log_rest, part.top + log_rest)
    return Row(part.top, part.tail, scale, log_rest, part.k, losses)


def _combined(
    losses: Losses,
    class_weights: Array | None,
    smoothing: Array | None,
    z_loss: Array | None,
    *,
    labels: Array,
    axis: ClassAxis,
) -> Array:
    loss = losses.nll
    if class_weights is not None:
        loss = times(of_label(class_weights[None], labels, axis), loss)
    if smoothing is not None:
        loss = (1 - smoothing) * loss + smoothing * losses.smooth
    if z_loss is not None:
        loss = loss + z_loss * losses.lse**2
    return loss


def _slopes(row: Row, d: Losses, settings: Settings) -> Slopes:
    spread, smooth = settings.z_loss is not None, settings.smoothing is not None
    return Slopes(
        row.top,
        row.tail,
        row.scale * d.nll,
        row.scale * (d.lse + row.k * d.smooth) if spread or smooth else None,
        d.smooth if smooth else None,
        row.log_rest if smooth else None,
    )


def gradient(x: Array, block: Block, s: Slopes, n: int) -> tuple[Array, Array | None]:
    """By the logits `x` of a block, of `n` classes in all; and by their weights, times `n`."""
    e = jnp.exp(jnp.minimum(x - s.top, 0))
    g = s.others * jnp.where(is_label(block.labels, x, 1), -s.tail, e)
    if s.spread is not None:
        g = g + s.spread * e
    if s.smooth is None or s.log_rest is None or block.k is None:
        return g, None
    g_class = jnp.sum(times(s.smooth, (s.top - x) + s.log_rest), 0) / n
    return g - s.smooth * block.k[None], g_class
