"""A sweep over blocks of the vocabulary: the cross-entropy's total and gradients in little memory.

It looks at each block twice, for the statistics of the rows and then for the gradients: four
matmuls, of which each block of the weight's gradient is written once, in its own dtype. Its
derivatives are those of the sweep over tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._numerics import finite, largest, nan_unless, times
from jaxloss._softmax import (
    ClassAxis,
    Split,
    beyond_one,
    of_label,
    others_and_label,
    tail_of_others,
)
from jaxloss.linear._rows import Settings, shaped
from jaxloss.linear._sharding import alike, typed_like
from jaxloss.linear._tokens import Head, Sweep, Wanted, head_gradients, logits_of


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
    (head,) = heads
    by_class = 0 if sweep.vocab_first else 1
    size = head.weight.shape[by_class]
    n = size * (lax.axis_size(axis.axis_name) if isinstance(axis, Split) else 1)
    before = lax.axis_index(axis.axis_name) * size if isinstance(axis, Split) else 0
    labels = labels[:, None]
    k = None
    if settings.smoothing is not None:
        ones = jnp.ones(size, settings.smoothing.dtype)
        k = (ones if settings.class_weights is None else settings.class_weights) / n

    def block(start: Any, width: int):
        """The operands of some classes, and the place of the labels among them."""

        def cut(x: Array | None, axis: int = 0) -> Array | None:
            return None if x is None else lax.dynamic_slice_in_dim(x, start, width, axis)

        weight = lax.dynamic_slice_in_dim(head.weight, start, width, by_class)
        return Head(head.hidden, weight), cut(settings.bias), cut(k), labels - before - start

    def look(start: Any, width: int, part: _Part) -> _Part:
        some, bias, k, here = block(start, width)
        x = shaped(logits_of(some, sweep.vocab_first), bias, settings.softcap)
        return _merge(part, _part(x, here, k))

    like = jnp.zeros((len(labels), 1), coefficients.dtype)
    nothing = _Part(like - largest(like.dtype), like, like, like, jnp.zeros_like(like[:1]))
    part = _over_devices(_over_blocks(look, size, block_size, nothing), axis)
    gap = jnp.maximum(part.top - part.label, 0)
    e_label = jnp.exp(-gap)
    log_rest = jnp.log1p(beyond_one(part.tail, e_label))
    sound = (labels >= 0) & (labels < n) & (part.tail < jnp.inf)
    losses = _Losses(
        nan_unless(sound, log_rest + gap), part.behind + part.k * log_rest, part.top + log_rest
    )
    numbers = settings.class_weights, settings.smoothing, settings.z_loss
    loss, pull = jax.vjp(lambda losses, *s: _combined(losses, labels, *s, axis), losses, *numbers)
    total = jnp.sum(times(coefficients, loss[:, 0]))
    if not any(jax.tree.leaves(wanted)):
        return total, wanted
    d, d_class_weights, d_smoothing, d_z_loss = pull(alike(coefficients[:, None], loss))
    scale = nan_unless(
        ~jnp.isnan(losses.nll), 1 / jnp.maximum(part.tail + e_label, jnp.finfo(like.dtype).tiny)
    )
    # Of softmax(x), and of that less the label's one.
    spread, point = scale * (d.lse + part.k * d.smooth), scale * d.nll

    def write(start: Any, width: int, out: Wanted) -> Wanted:
        some, bias, k, here = block(start, width)
        u = logits_of(some, sweep.vocab_first)
        x, pull = jax.vjp(shaped, u, bias, settings.softcap)
        g = point * others_and_label(x, here, part.top, part.tail, 1, n)
        if k is not None or settings.z_loss is not None:
            g = g + spread * jnp.exp(jnp.minimum(x - part.top, 0))
        if k is not None:
            g = g - d.smooth * k[None]
        g_u, g_bias, g_softcap = pull(g)
        g_hidden, g_weight = head_gradients(
            some, g_u, sweep.vocab_first, *wanted.hidden, *wanted.weight
        )
        g_class = None
        if k is not None and out.shared.class_weights is not None:
            g_class = jnp.sum(d.smooth * ((part.top - x) + log_rest), 0) / n

        def put(whole: Array | None, some: Array | None, axis: int = 0) -> Array | None:
            if whole is None or some is None:
                return whole
            return lax.dynamic_update_slice_in_dim(whole, some.astype(whole.dtype), start, axis)

        def add(whole: Array | None, more: Array | None) -> Array | None:
            return None if whole is None else whole + more.astype(whole.dtype)

        shared = out.shared._replace(
            bias=put(out.shared.bias, g_bias),
            softcap=add(out.shared.softcap, g_softcap),
            class_weights=put(out.shared.class_weights, g_class),
        )
        return Wanted(
            (add(out.hidden[0], g_hidden),), (put(out.weight[0], g_weight, by_class),), shared, None
        )

    def zeros(wanted: bool | None, x: Array | None, dtype: Any = None) -> Array | None:
        return jnp.zeros_like(x, dtype) if wanted and x is not None else None

    w = wanted.shared
    start = Wanted(
        (zeros(wanted.hidden[0], head.hidden, like.dtype),),
        (zeros(wanted.weight[0], head.weight),),
        Settings(
            zeros(w.bias, settings.bias),
            zeros(w.softcap, settings.softcap),
            zeros(w.class_weights, settings.class_weights),
        ),
        None,
    )
    out = _over_blocks(write, size, block_size, start)
    g_hidden = None if out.hidden[0] is None else out.hidden[0].astype(head.hidden.dtype)
    shared = out.shared._replace(smoothing=d_smoothing, z_loss=d_z_loss)
    if w.class_weights:
        shared = shared._replace(class_weights=shared.class_weights + d_class_weights)
    return total, Wanted((g_hidden,), out.weight, shared, finite(loss[:, 0]))


def _over_blocks(body: Callable[..., Any], size: int, width: int, carry: Any) -> Any:
    """`carry = body(start, width, carry)` for blocks of classes, the last of what remains."""
    full, rest = divmod(size, width)
    carry = jax.tree.map(typed_like, carry, jax.eval_shape(lambda c: body(0, width, c), carry))
    if full:
        carry = lax.fori_loop(0, full, lambda i, carry: body(i * width, width, carry), carry)
    return body(full * width, rest, carry) if rest else carry


def _part(x: Array, labels: Array, k: Array | None) -> _Part:
    big, eps = largest(x.dtype), float(jnp.finfo(x.dtype).eps)
    top = jnp.clip(jnp.max(x, 1, keepdims=True), -big, big)
    here = (labels >= 0) & (labels < x.shape[1])
    label = jnp.where(here, of_label(x, labels, 1), 0)
    behind = weight = jnp.zeros((), x.dtype)
    if k is not None:
        # A power of two takes an infinite gap to a finite number and back: times zero, it is zero.
        gaps = jnp.minimum((top - x) * eps, big)
        behind, weight = jnp.sum(gaps * k[None], 1, keepdims=True) / eps, jnp.sum(k)
    return _Part(top, tail_of_others(x, labels, top, 1), label, behind, weight)


def _relative_to(top: Array, part: _Part) -> _Part:
    moved = top - part.top
    return _Part(top, part.tail * jnp.exp(-moved), part.label, part.behind + part.k * moved, part.k)


def _merge(a: _Part, b: _Part) -> _Part:
    top = jnp.maximum(a.top, b.top)
    a, b = _relative_to(top, a), _relative_to(top, b)
    return _Part(top, *(x + y for x, y in zip(a[1:], b[1:], strict=True)))


def _over_devices(part: _Part, axis: ClassAxis) -> _Part:
    if not isinstance(axis, Split):
        return part
    part = _relative_to(lax.pmax(part.top, axis.axis_name), part)
    return _Part(part.top, *(lax.psum(x, axis.axis_name) for x in part[1:]))


def _combined(
    losses: _Losses,
    labels: Array,
    class_weights: Array | None,
    smoothing: Array | None,
    z_loss: Array | None,
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
