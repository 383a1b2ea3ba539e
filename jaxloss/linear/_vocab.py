"""A sweep over blocks of the vocabulary: the cross-entropy's total and gradients in little memory.

It looks at each block twice, for the statistics of the rows and then for the gradients: four
matmuls, of which each block of the weight's gradient is written once, in its own dtype. What is
differentiated further is the sweep over tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._numerics import finite, largest, nan_unless, times
from jaxloss._softmax import (
    ClassAxis,
    Split,
    beyond_one,
    everywhere,
    here,
    of_label,
    others_and_label,
    tail_of_others,
)
from jaxloss.linear._operands import vocabulary
from jaxloss.linear._rows import Settings, shaped
from jaxloss.linear._sharding import alike
from jaxloss.linear._tokens import Head, Sweep, Wanted, head_gradients, in_dtypes, logits_of


class _Part(NamedTuple):
    """Statistics of some of the classes of each row. [N, 1]"""

    top: Array  # their largest logit, clipped to finite numbers
    tail: Array  # sum of exp(x - top) over all of them but the label
    label: Array  # the label's logit, 0 if it is not one of them
    behind: Array  # sum of k * (top - x), for the weights k of the smoothed loss
    k: Array  # sum of k


class _Losses(NamedTuple):
    """What a token's loss is made of. [N, 1]"""

    nll: Array  # -log p of the label
    smooth: Array  # sum of k * -log p over all classes
    lse: Array  # log-sum-exp of the logits


class _Row(NamedTuple):
    """Statistics of whole rows. [N, 1]"""

    top: Array
    tail: Array
    scale: Array  # 1 / sum of exp(x - top), NaN for a row without a loss
    log_rest: Array  # log-sum-exp of the logits, less top
    k: Array
    losses: _Losses


class _Block(NamedTuple):
    """Some classes of this device."""

    head: Head
    bias: Array | None
    k: Array | None
    labels: Array  # counted from the first of them [N, 1]


class _Blocks(NamedTuple):
    """All classes of this device."""

    whole: _Block
    softcap: Array | None
    vocab_first: bool
    block_size: int
    classes: int  # on all devices

    @property
    def along(self) -> int:
        return 0 if self.vocab_first else 1

    def block(self, start: Any, width: int) -> _Block:
        def cut(x: Array | None, axis: int = 0) -> Any:
            return None if x is None else lax.dynamic_slice_in_dim(x, start, width, axis)

        head, bias, k, labels = self.whole
        weight = cut(head.weight, self.along)
        return _Block(Head(head.hidden, weight), cut(bias), cut(k), labels - start)

    def fold(self, body: Callable[..., Any], carry: Any) -> Any:
        """`carry = body(start, width, carry)` block by block, the last as wide as what remains."""
        width = self.block_size
        full, rest = divmod(self.whole.head.weight.shape[self.along], width)
        types = jax.eval_shape(lambda c: body(0, width, c), carry)
        carry = jax.tree.map(alike, carry, types)
        carry = lax.fori_loop(0, full, lambda i, c: body(i * width, width, c), carry)
        return body(full * width, rest, carry) if rest else carry


def total_and_gradients(
    sweep: Sweep,
    wanted: Wanted,
    heads: tuple[Head, ...],
    labels: Array,
    settings: Settings,
    coefficients: Array,
    *,
    block_size: int,
    axis: ClassAxis,
) -> tuple[Array, Wanted]:
    """`sum(coefficients * losses)` and its gradients; see `_tokens.total_and_gradients`."""
    (head,), labels = heads, labels[:, None]
    size = vocabulary(head, sweep.vocab_first)
    n = everywhere(size, axis)
    whole = _Block(head, settings.bias, _smoothed(settings, size, n), here(labels, size, axis))
    blocks = _Blocks(whole, settings.softcap, sweep.vocab_first, block_size, n)

    like = jnp.zeros(labels.shape, coefficients.dtype)
    row = _finished(_over_devices(_statistics(blocks, like), axis), labels, n)
    numbers = settings.class_weights, settings.smoothing, settings.z_loss
    combined = partial(_combined, labels=labels, axis=axis)
    loss, pull = jax.vjp(combined, row.losses, *numbers)
    total = jnp.sum(times(coefficients, loss[:, 0]))
    if not any(jax.tree.leaves(wanted)):
        return total, wanted
    d, d_class_weights, d_smoothing, d_z_loss = pull(alike(coefficients[:, None], loss))
    out = _gradients(blocks, wanted, settings, row, d)
    shared = out.shared._replace(
        class_weights=_sum(out.shared.class_weights, d_class_weights),
        smoothing=d_smoothing,
        z_loss=d_z_loss,
    )
    return total, Wanted(
        in_dtypes(out.hidden, [head.hidden]), out.weight, shared, finite(loss[:, 0])
    )


def _smoothed(settings: Settings, size: int, n: int) -> Array | None:
    """The weights of this device's classes in the smoothed loss."""
    if settings.smoothing is None:
        return None
    if settings.class_weights is None:
        return jnp.full(size, 1 / n, settings.smoothing.dtype)
    return settings.class_weights / n


def _logits(blocks: _Blocks, block: _Block) -> tuple[Array, Callable[..., Any]]:
    """Of a block; and the pullback to what the matmul gives, the bias and the cap."""
    u = logits_of(block.head, blocks.vocab_first)
    return jax.vjp(shaped, u, block.bias, blocks.softcap)


def _statistics(blocks: _Blocks, like: Array) -> _Part:
    """The first look at each block."""

    def look(start: Any, width: int, part: _Part) -> _Part:
        block = blocks.block(start, width)
        return _merged(part, _part(_logits(blocks, block)[0], block))

    nothing = _Part(like - largest(like.dtype), like, like, like, jnp.zeros((), like.dtype))
    return blocks.fold(look, nothing)


def _part(x: Array, block: _Block) -> _Part:
    big, eps = largest(x.dtype), float(jnp.finfo(x.dtype).eps)
    top = jnp.clip(jnp.max(x, 1, keepdims=True), -big, big)
    inside = (block.labels >= 0) & (block.labels < x.shape[1])
    label = jnp.where(inside, of_label(x, block.labels, 1), 0)
    behind, k = jnp.zeros_like(top), jnp.zeros((), x.dtype)
    if block.k is not None:
        # A power of two takes an infinite gap to a finite number and back: times zero, it is zero.
        gaps = jnp.minimum((top - x) * eps, big)
        behind, k = jnp.sum(gaps * block.k[None], 1, keepdims=True) / eps, jnp.sum(block.k)
    return _Part(top, tail_of_others(x, block.labels, top, 1), label, behind, k)


def _relative_to(top: Array, part: _Part) -> _Part:
    moved = top - part.top
    tail, behind = part.tail * jnp.exp(-moved), part.behind + part.k * moved
    return part._replace(top=top, tail=tail, behind=behind)


def _merged(a: _Part, b: _Part) -> _Part:
    top = jnp.maximum(a.top, b.top)
    a, b = _relative_to(top, a), _relative_to(top, b)
    return _Part(top, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def _over_devices(part: _Part, axis: ClassAxis) -> _Part:
    if not isinstance(axis, Split):
        return part
    part = _relative_to(lax.pmax(part.top, axis.axis_name), part)
    return _Part(part.top, *(lax.psum(x, axis.axis_name) for x in part[1:]))


def _finished(part: _Part, labels: Array, n: int) -> _Row:
    gap = jnp.maximum(part.top - part.label, 0)
    e_label = jnp.exp(-gap)
    log_rest = jnp.log1p(beyond_one(part.tail, e_label))
    sound = (labels >= 0) & (labels < n) & (part.tail < jnp.inf)
    nll = nan_unless(sound, log_rest + gap)
    weight = jnp.maximum(part.tail + e_label, float(jnp.finfo(part.top.dtype).tiny))
    scale = nan_unless(~jnp.isnan(nll), 1 / weight)
    losses = _Losses(nll, part.behind + part.k * log_rest, part.top + log_rest)
    return _Row(part.top, part.tail, scale, log_rest, part.k, losses)


def _combined(
    losses: _Losses,
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


def _gradients(
    blocks: _Blocks,
    wanted: Wanted,
    settings: Settings,
    row: _Row,
    d: _Losses,
) -> Wanted:
    """The second look at each block, with the derivatives of the total by each row's losses."""
    # Of softmax(x), and of that less the label's one.
    of_all, of_others = row.scale * (d.lse + row.k * d.smooth), row.scale * d.nll
    spread = settings.smoothing is not None or settings.z_loss is not None

    def write(start: Any, width: int, out: Wanted) -> Wanted:
        block = blocks.block(start, width)
        x, pull = _logits(blocks, block)
        g = of_others * others_and_label(x, block.labels, row.top, row.tail, 1, blocks.classes)
        g_class = None
        if spread:
            g = g + of_all * jnp.exp(jnp.minimum(x - row.top, 0))
        if block.k is not None:
            g = g - d.smooth * block.k[None]
            g_class = jnp.sum(d.smooth * ((row.top - x) + row.log_rest), 0) / blocks.classes
        g_x, g_bias, g_softcap = pull(g)
        g_hidden, g_weight = head_gradients(
            block.head, g_x, blocks.vocab_first, wanted.hidden[0], wanted.weight[0]
        )
        s = out.shared
        return Wanted(
            (_sum(out.hidden[0], g_hidden),),
            (_put(out.weight[0], g_weight, start, blocks.along),),
            s._replace(
                bias=_put(s.bias, g_bias, start),
                softcap=_sum(s.softcap, g_softcap),
                class_weights=_put(s.class_weights, g_class, start),
            ),
            None,
        )

    def zeros(wanted: bool | None, x: Array | None, dtype: Any = None) -> Array | None:
        return jnp.zeros_like(x, dtype) if wanted and x is not None else None

    head, w = blocks.whole.head, wanted.shared
    start = Wanted(
        (zeros(wanted.hidden[0], head.hidden, row.top.dtype),),
        (zeros(wanted.weight[0], head.weight),),
        Settings(
            bias=zeros(w.bias, settings.bias),
            softcap=zeros(w.softcap, settings.softcap),
            class_weights=zeros(w.class_weights, settings.class_weights),
        ),
        None,
    )
    return blocks.fold(write, start)


def _sum(whole: Array | None, more: Array | None) -> Array | None:
    return whole if whole is None or more is None else whole + more


def _put(whole: Array | None, some: Array | None, start: Any, axis: int = 0) -> Array | None:
    if whole is None or some is None:
        return whole
    return lax.dynamic_update_slice_in_dim(whole, some.astype(whole.dtype), start, axis)
