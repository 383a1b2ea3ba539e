"""Transducer losses: label sequences under predictions that also depend on the labels so far.

The nodes of a lattice are the frames and the numbers of labels so far. Of the softmax of a node
only two numbers count, the probabilities of the blank and of the next label; the recursion runs
over these, one diagonal after the other. As in CTC, the probability of every other outcome is
added up where the loss is near zero.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks
from jaxloss._core.alignments import (
    Sequences,
    finite,
    largest_along,
    later,
    log_add,
    near_zero,
    sequences,
    shares_of,
)
from jaxloss._core.declare import takes
from jaxloss._core.frames import Frames, class_nll, frames_of, logits_at, nll_of, probability
from jaxloss._core.mapped import left_to_xla, unpartitioned
from jaxloss._core.numerics import largest, one_or_nan
from jaxloss._core.pairs import blocks
from jaxloss._core.rows import logsumexp
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.split import broadcast_rows

# Logits that exist at a time, where these are sums: 16 MB of float32; and frames of them.
CHUNK, FRAMES = 2**22, 8


@takes(
    logits=("sequence", "logits"),
    logit_paddings=("sequence", "padding"),
    labels=("sequence", "integer"),
    label_paddings=("sequence", "padding"),
)
def rnnt_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
) -> Array:
    r"""Transducer loss (RNN-T): labels without their alignment, each predicted given those before.

    At a frame t and after u labels, the softmax p of the logits emits the next label, or a blank,
    which goes on to the next frame; the blank of the last frame ends the sequence. Over all ways
    k to emit the labels, a blank for each frame among them, at (t_i, u_i) in step i:

        loss = -log(sum_k prod_i p[t_i, u_i, k_i])

    Args:
        logits: unnormalised log-probabilities, floating, (B, T, U + 1, V): batch, frames, labels
            so far, classes with the blank. A logit of -inf excludes its class.
        logit_paddings: (B, T), bool, integer or floating: 0 for frames, then 1 for padding; of
            lengths, `jnp.arange(T) >= lengths[:, None]`.
        labels: (B, U), integers in [0, V) other than `blank_id`; anything where padded.
        label_paddings: (B, U), like `logit_paddings`.
        blank_id: the class of the blank, in [0, V).

    Returns:
        The loss in nats, (B,), in float32 (float64 for float64 logits); never negative. Without
        frames, or where a class that is needed is excluded, it is inf, with a gradient of 0. A
        label out of range or equal to the blank, and paddings that are not zeros followed by
        ones, make the loss of their sequence NaN, and its gradient.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: shapes do not match, or `blank_id` is not a class.

    Value and gradient need no array of the size of the logits but the gradient; of half precision
    both are first of float32. The gradient's row at (t, u), with g the probability to get there
    given the labels, is g times the softmax, less the probability of each class there given the
    labels; for the likeliest class, the sum of what the others lack of that.
    `rnnt_additive_loss` needs no logits at all, where these are a sum.

    References:
        Graves, Sequence Transduction with Recurrent Neural Networks, 2012, arXiv:1211.3711.

    >>> import jax.numpy as jnp, jaxloss
    >>> logits, labels = jnp.zeros((1, 2, 2, 3)), jnp.array([[1]])  # 1__ and _1_, of 1/27 each
    >>> print(jaxloss.rnnt_loss(logits, jnp.zeros((1, 2)), labels, jnp.zeros((1, 1))))
    [2.6026897]
    """
    x = checks.predictions("logits", logits)
    labels = checks.integers("labels", labels, "they are class numbers")
    if x.ndim != 4 or labels.ndim != 2 or x.shape[:3:2] != _nodes(labels):
        raise ValueError(
            f"logits of shape {x.shape} and labels of shape {labels.shape} must be of shapes "
            f"(B, T, U + 1, V) and (B, U); for one sequence, give both a leading axis of size 1"
        )
    paddings = logit_paddings, labels, label_paddings
    of = sequences("logits", x, *paddings, blank_id, frames_end=True)
    return _rnnt_loss(x, of, blank=blank_id)


@takes(
    encoder=("sequence", "logits"),
    predictor=("sequence", "logits"),
    logit_paddings=("sequence", "padding"),
    labels=("sequence", "integer"),
    label_paddings=("sequence", "padding"),
)
def rnnt_additive_loss(
    encoder: ArrayLike,
    predictor: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
) -> Array:
    r"""`rnnt_loss` of logits that are a sum, without the memory for that.

    The logits of frame t after u labels are those of the encoder for the frame and those of the
    predictor for the labels, as in the simple joiner of the pruned transducer. With p their
    softmax, and ways k to emit the labels as in `rnnt_loss`:

        logits[t, u] = encoder[t] + predictor[u]
        loss = -log(sum_k prod_i p[t_i, u_i, k_i])

    Args:
        encoder: unnormalised log-probabilities, floating, (B, T, V): batch, frames, classes with
            the blank. An entry of -inf excludes its class, here and in `predictor`.
        predictor: (B, U + 1, V), of no label so far to all of them.
        logit_paddings: (B, T), bool, integer or floating: 0 for frames, then 1 for padding; of
            lengths, `jnp.arange(T) >= lengths[:, None]`.
        labels: (B, U), integers in [0, V) other than `blank_id`; anything where padded.
        label_paddings: (B, U), like `logit_paddings`.
        blank_id: the class of the blank, in [0, V).

    Returns:
        The loss in nats, (B,), in float32 (float64 for float64 encoders), as in `rnnt_loss`.

    Raises:
        TypeError: encoder or predictor are not floating point, or labels not integers.
        ValueError: shapes do not match, or `blank_id` is not a class.

    The logits, (B, T, U + 1, V), exist for a few frames at a time, 16 MB of them unless one
    frame's are more (of one sequence; of the whole batch where XLA may split it over devices).
    Beside these, value and gradient need some arrays of (B, T, U + 1): 60 MB for 8 x 500 frames,
    100 labels and 4096 classes, whose logits would take 6.6 GB. In reverse the logits are added
    once more. The derivative is that of `rnnt_loss`, summed over u, or over t.

    References:
        Graves, Sequence Transduction with Recurrent Neural Networks, 2012, arXiv:1211.3711,
        section 2.4.2; Kuang et al., Pruned RNN-T, 2022, arXiv:2206.13236.

    >>> import jax.numpy as jnp, jaxloss
    >>> encoder, predictor = jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3))
    >>> paddings, labels = jnp.zeros((1, 2)), jnp.array([[1]])  # 1__ and _1_, of 1/27 each
    >>> print(jaxloss.rnnt_additive_loss(encoder, predictor, paddings, labels, jnp.zeros((1, 1))))
    [2.6026897]
    """
    x = checks.predictions("encoder", encoder)
    y = checks.floating("predictor", predictor).astype(x.dtype)
    labels = checks.integers("labels", labels, "they are class numbers")
    wrong = x.ndim != 3 or y.ndim != 3 or labels.ndim != 2
    if wrong or (*_nodes(labels), x.shape[2]) != y.shape or x.shape[0] != y.shape[0]:
        raise ValueError(
            f"encoder of shape {x.shape}, predictor of shape {y.shape} and labels of shape "
            f"{labels.shape} must be of shapes (B, T, V), (B, U + 1, V) and (B, U); for one "
            f"sequence, give each a leading axis of size 1"
        )
    paddings = logit_paddings, labels, label_paddings
    of = sequences("encoder", x, *paddings, blank_id, frames_end=True)
    return _rnnt_additive_loss(x, y, of, blank=blank_id)


def _nodes(labels: Array) -> tuple[int, ...]:
    return labels.shape[0], labels.shape[1] + 1


@partial(jit_when_eager, static_argnames=("blank",))
@left_to_xla(1)
def _rnnt_loss(x, of, *, blank):
    nodes = _nodes_of(of, blank)
    frames = frames_of(x, nodes.live)
    log_p = -class_nll(x, nodes.classes, frames)
    # The logits go in as they came: of what is computed of them, it would need an array.
    held = lax.stop_gradient((x, nodes, frames))
    return _loss(of, nodes, log_p, lambda: _rejected(*held))


@partial(jit_when_eager, static_argnames=("blank",))
@left_to_xla(1)
def _rnnt_additive_loss(x, y, of, *, blank):
    nodes = _nodes_of(of, blank)
    held = lax.stop_gradient((x, y))
    frames = _by_frames(lambda x, y, live: frames_of(_sum(x, y), live), *held, nodes.live)
    log_p = -_nll_of_sums(x, y, nodes.classes, frames)

    def rejected(x, y, *of_nodes):
        return _rejected(_sum(x, y), *of_nodes)

    return _loss(of, nodes, log_p, lambda: _by_frames(rejected, *held, nodes, frames))


class _Nodes(NamedTuple):
    """Of frames and numbers of labels so far, and of the two ways on: by the blank, by a label."""

    live: Array  # (B, T, U + 1), those that are not padded
    classes: Array  # (B, T, U + 1, 2), the blank for a label where there is none
    ways: Array  # (B, T, U + 1, 2), whether there is this way


def _nodes_of(of: Sequences, blank: int) -> _Nodes:
    batch, labels = of.labels.shape
    shape = batch, of.live.shape[1], labels + 1
    n = jnp.sum(of.kept, 1, dtype=jnp.int32)[:, None, None]
    index = lax.broadcasted_iota(jnp.int32, (1, 1, labels + 1), 2)
    live = of.live[:, :, None] & (index <= n)
    last = of.live & ~lax.pad(of.live, jnp.asarray(False), [(0, 0, 0), (-1, 1, 0)])
    by_blank = live & (~last[:, :, None] | (index == n))
    classes = jnp.pad(of.labels, ((0, 0), (0, 1)), constant_values=blank)[:, None]
    classes = jnp.stack([jnp.full_like(classes, blank), classes], -1)
    ways = jnp.stack([by_blank, live & (index < n)], -1)
    return _Nodes(live, jnp.broadcast_to(classes, (*shape, 2)), ways)


def _rejected(x: Array, nodes: _Nodes, frames: Frames) -> Array:
    """The probability, at a node, of all classes by which it does not go on."""
    index = lax.broadcasted_iota(jnp.int32, (1,) * (x.ndim - 1) + x.shape[-1:], x.ndim - 1)
    classes = jnp.where(nodes.ways, nodes.classes, -1)
    goes_on = (index == classes[..., :1]) | (index == classes[..., 1:])
    p = jnp.sum(jnp.where(goes_on, 0, probability(x, frames)), -1)
    return jnp.where(nodes.live, p, 0)


def _loss(of: Sequences, nodes: _Nodes, log_p: Array, rejected: Callable[[], Array]) -> Array:
    """By the log-probabilities of both ways, and what is rejected at each node."""
    by_blank, by_label = (log_p[..., i] for i in range(2))
    # After its last frame a sequence waits for the others.
    waiting = jnp.where(of.live[:, :, None], -jnp.inf, jnp.zeros_like(by_blank))
    by_blank = _diagonals(jnp.where(nodes.ways[..., 0], by_blank, waiting), 0)
    by_label = _diagonals(jnp.where(nodes.ways[..., 1], by_label, -jnp.inf), -jnp.inf)
    nothing = jnp.zeros_like(jnp.sum(log_p, (1, 3)))
    index = lax.broadcasted_iota(jnp.int32, nothing.shape, 1)
    first = (index == 0) & jnp.any(of.live, 1, keepdims=True)
    out = _forward(_Ways(by_blank, by_label), jnp.where(first, nothing, -jnp.inf))
    last = jnp.where(
        index == jnp.sum(of.kept, 1, dtype=jnp.int32, keepdims=True), out.last, -jnp.inf
    )
    loss = -logsumexp(last, 1)[:, 0] - jnp.sum(out.shifts, (0, 2))

    def at_nodes():
        p = jnp.exp(lax.stop_gradient(out.alpha) + jnp.cumsum(out.shifts, 0))
        return jnp.sum(p * _diagonals(rejected(), 0), (0, 2))

    # It counts only where the labels are likely.
    loss = near_zero(loss, lax.cond(jnp.any(loss < 1), at_nodes, lambda: jnp.ones_like(loss)))
    # A factor, so that the gradient is NaN too.
    return loss * one_or_nan(of.valid, loss.dtype)


def _diagonals(a: Array, fill: float) -> Array:
    """Of (B, T, U + 1) the diagonals t + u, (T + U, B, U + 1), filled up where there is no t."""
    batch, frames, nodes = a.shape
    n = frames + nodes - 1
    # Rows that are one longer than that start one later each.
    edges = [(0, 0, 0), (0, nodes, 0), (0, 0, 0)]
    rows = lax.pad(a.transpose(2, 1, 0), jnp.asarray(fill, a.dtype), edges)
    flat = rows.reshape(nodes * (n + 1), batch)[: nodes * n]
    return flat.reshape(nodes, n, batch).transpose(1, 2, 0)


class _Forward(NamedTuple):
    alpha: Array  # (T + U, B, U + 1), `finite` logarithms less the shifts up to their diagonal
    shifts: Array  # (T + U, B, 1)
    last: Array  # (B, U + 1), after the last diagonal


class _Ways(NamedTuple):
    by_blank: Array  # (T + U, B, U + 1), log-probabilities
    by_label: Array


@jax.custom_jvp
def _forward(ways: _Ways, start: Array) -> _Forward:
    """The forward recursion, from each diagonal to the next:

        alpha[t, u] = log(exp(alpha + by_blank)[t - 1, u] + exp(alpha + by_label)[t, u - 1])

    Its values are kept near zero, so that they have digits to spare: each diagonal shifts them by
    its largest, and has no derivative by that.
    """

    def step(alpha, ways):
        top = largest_along(alpha)
        shift = jnp.where(top > -largest(top.dtype), top, 0)
        alpha = alpha - shift
        return log_add(*_arriving(alpha, ways)), (finite(alpha), shift)

    last, (alpha, shifts) = lax.scan(step, start, ways)
    return _Forward(alpha, shifts, last)


def _arriving(alpha: Array, ways: _Ways) -> tuple[Array, Array]:
    """By the blank, and by a label."""
    return alpha + ways.by_blank, later(alpha + ways.by_label, -jnp.inf)


@_forward.defjvp
def _forward_rule(primals, tangents):
    #   d alpha[t, u] = p * (d alpha + d by_blank)[t - 1, u] + q * (d alpha + d by_label)[t, u - 1]
    # with the shares p and q of both ways. In reverse it is the backward recursion, over
    # probabilities instead of logarithms.
    (ways, _), (d_ways, _) = primals, tangents
    out = _forward(*primals)

    # The shares are computed anew in reverse. As a loop that is differentiated keeps no rules of
    # what it has computed, a checkpoint does.
    @partial(jax.checkpoint, prevent_cse=False)
    def step(d_alpha, diagonal):
        alpha, ways, d_ways = diagonal
        p, q = shares_of(*_arriving(alpha, ways))
        return p * (d_alpha + d_ways.by_blank) + q * later(d_alpha + d_ways.by_label, 0), d_alpha

    diagonals = out.alpha, jax.tree.map(finite, ways), d_ways
    d_last, d_alpha = lax.scan(step, jnp.zeros_like(out.last), diagonals)
    return out, _Forward(d_alpha, jnp.zeros_like(out.shifts), d_last)


@jax.custom_jvp
def _nll_of_sums(x: Array, y: Array, classes: Array, of: Frames) -> Array:
    """`class_nll` of logits that are a sum of encoder `x` and predictor `y`."""
    return nll_of(logits_at(x[:, :, None], classes) + logits_at(y[:, None], classes), of)


@_nll_of_sums.defjvp
def _nll_of_sums_rule(primals, tangents):
    (x, y, classes, of), (dx, dy, *_) = primals, tangents

    def tangent(x, y, classes, of):
        (x, dx), (y, dy) = x, y
        # In reverse the frames are added up one by one: a CPU is slow at rows of rows.
        v = dx[:, None] + broadcast_rows(dy[None], dx[:, None], 0)
        return jax.jvp(lambda x: class_nll(x, classes, of), (_sum(x, y),), (v,))[1]

    return _nll_of_sums(*primals), _by_frames(tangent, (x, dx), (y, dy), classes, of)


def _sum(x: Array, y: Array) -> Array:
    return x[:, None] + y[None]


def _by_frames(body: Callable[..., Any], x: Any, y: Any, *of_nodes: Any) -> Any:
    """`body(x, y, *of_nodes)` of each sequence, (T, V), (U + 1, V) and (T, U + 1, ...).

    It gets a few frames at a time, and returns arrays of their nodes.
    """
    batch, frames, classes = jax.tree.leaves(x)[0].shape
    of_frame = max(jax.tree.leaves(y)[0].shape[1] * classes, 1)
    # Sequences that XLA may split over devices are not taken one after the other.
    apart = unpartitioned() and isinstance(batch, int)  # Exported, it may be a symbol.
    if not apart and isinstance(batch, int):
        of_frame *= max(batch, 1)
    size = min(max(CHUNK // of_frame, 1), FRAMES)
    group = max(CHUNK // (size * of_frame), 1)

    # A loop keeps the chunks apart by itself.
    body = partial(jax.checkpoint, prevent_cse=False)(body)

    @partial(jax.checkpoint, prevent_cse=False)
    def sequence(x, y, of_nodes):
        if frames <= size:
            return body(x, y, *of_nodes)
        split = jax.tree.map(lambda a: blocks(a, size, 0), (x, of_nodes))
        results = lax.map(lambda some: body(some[0], y, *some[1]), split)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:frames], results)

    if not apart or batch <= group:
        return jax.vmap(sequence)(x, y, of_nodes)
    # In groups of one XLA would copy what it loops over.
    by = None if group == 1 else group
    return lax.map(lambda some: sequence(*some), (x, y, of_nodes), batch_size=by)
