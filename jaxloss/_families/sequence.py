"""Sequence losses: the probability of a label sequence under per-frame predictions.

The forward recursion runs over logarithms that are rescaled at every frame, with one rule that
serves every order of derivative. The probability of every other outcome is added up beside it,
so that a loss near zero keeps its digits.
"""

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
from jaxloss._core.frames import Frames, class_nll, frames_of, probability
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.numerics import largest, one_or_nan
from jaxloss._core.rows import logsumexp
from jaxloss._core.rules import jit_when_eager


@takes(
    logits=("sequence", "logits"),
    logit_paddings=("sequence", "padding"),
    labels=("sequence", "integer"),
    label_paddings=("sequence", "padding"),
)
def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
    zero_infinity: bool = False,
) -> Array:
    r"""Connectionist temporal classification: labels without their alignment to the frames.

    Each frame emits a class of its softmax. A sequence of classes reads as the labels that are
    left when repetitions are merged first and blanks dropped then. With p the softmax of the
    logits, over all sequences of classes k that read as the labels:

        loss = -log(sum_k prod_t p[t, k_t])

    Args:
        logits: unnormalised log-probabilities, floating, (B, T, K): batch, frames, classes with
            the blank. A logit of -inf excludes its class from its frame.
        logit_paddings: (B, T), bool, integer or floating: 1 for frames to skip, else 0; of
            lengths, `jnp.arange(T) >= lengths[:, None]`.
        labels: (B, N), integers in [0, K) other than `blank_id`; anything where padded.
        label_paddings: (B, N), like `logit_paddings`: zeros, followed by ones.
        blank_id: the class of the blank, in [0, K).
        log_epsilon: has no effect here; see `ctc_loss_with_forward_probs`.
        zero_infinity: whether the loss of labels that cannot be read is 0 instead of inf.

    Returns:
        The loss in nats, (B,), in float32 (float64 for float64 logits); never negative. Labels
        that no sequence of classes reads as, such as those longer than the frames, cost inf, and
        have a gradient of 0. A label out of range or equal to the blank, labels that are not
        padded on the right, and paddings other than 0 and 1 make the loss of their sequence NaN,
        and its gradient.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: shapes do not match, or `blank_id` is not a class.

    The derivative by the logits of a frame is the softmax less the probability of each class
    there given the labels; for the likeliest class, the sum of what the others lack of that.

    References:
        Graves et al., Connectionist Temporal Classification, 2006.

    >>> import jax.numpy as jnp, jaxloss
    >>> frames, labels = jnp.zeros((1, 2, 3)), jnp.array([[1]])  # 11, 1_ and _1 of nine
    >>> print(jaxloss.ctc_loss(frames, jnp.zeros((1, 2)), labels, jnp.zeros((1, 1))))
    [1.0986123]
    """
    batch = _check(logits, logit_paddings, labels, label_paddings, blank_id)
    checks.scalar("log_epsilon", log_epsilon, batch.x.dtype)
    return _ctc_loss(*batch, blank=blank_id, zero_infinity=zero_infinity)


def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
    zero_infinity: bool = False,
) -> tuple[Array, Array, Array]:
    r"""`ctc_loss` with the logarithms of the forward probabilities it is computed from.

    After frame t, the probability that the classes so far read as the first n labels is, by
    their last class, that of a blank or of a label:

        exp(logalpha_blank[t, b, n])         for n in [0, N], ending in a blank, or empty
        exp(logalpha_nonblank[t, b, n - 1])  for n in [1, N], ending in label n

    In the last row `logalpha_blank` has both together. Padded frames repeat the row before.

    Args:
        logits: unnormalised log-probabilities, floating, (B, T, K): batch, frames, classes with
            the blank. A logit of -inf excludes its class from its frame.
        logit_paddings: (B, T), bool, integer or floating: 1 for frames to skip, else 0; of
            lengths, `jnp.arange(T) >= lengths[:, None]`.
        labels: (B, N), integers in [0, K) other than `blank_id`; anything where padded.
        label_paddings: (B, N), like `logit_paddings`: zeros, followed by ones.
        blank_id: the class of the blank, in [0, K).
        log_epsilon: stands for log 0 in what is returned, also of labels that are padded; the
            loss does not depend on it.
        zero_infinity: whether the loss of labels that cannot be read is 0 instead of inf.

    Returns:
        The losses as in `ctc_loss`, (B,), `logalpha_blank`, (T, B, N + 1), and
        `logalpha_nonblank`, (T, B, N); all can be differentiated.

    Raises:
        TypeError: logits are not floating point, or labels not integers.
        ValueError: shapes do not match, or `blank_id` is not a class.

    References:
        Graves et al., Connectionist Temporal Classification, 2006, section 4.1.

    >>> import jax.numpy as jnp, jaxloss
    >>> frames, labels = jnp.zeros((1, 2, 3)), jnp.array([[1]])
    >>> _, _, label = jaxloss.ctc_loss_with_forward_probs(
    ...     frames, jnp.zeros((1, 2)), labels, jnp.zeros((1, 1))
    ... )
    >>> print(jnp.exp(label[-1, 0, 0]))  # 11 and _1 of nine
    0.222222
    """
    batch = _check(logits, logit_paddings, labels, label_paddings, blank_id)
    log_zero = checks.scalar("log_epsilon", log_epsilon, batch.x.dtype)
    loss, blanks, others = _ctc_with_forward(
        *batch, log_zero, blank=blank_id, zero_infinity=zero_infinity
    )
    return loss, blanks, others


class _Batch(NamedTuple):
    x: Array  # (B, T, K)
    of: Sequences


def _check(logits, logit_paddings, labels, label_paddings, blank) -> _Batch:
    x = checks.predictions("logits", logits)
    labels = checks.integers("labels", labels, "they are class numbers")
    if x.ndim != 3 or labels.ndim != 2 or x.shape[0] != labels.shape[0]:
        raise ValueError(
            f"logits of shape {x.shape} and labels of shape {labels.shape} must be of shapes "
            f"(B, T, K) and (B, N); for one sequence, give both a leading axis of size 1"
        )
    paddings = logit_paddings, labels, label_paddings
    return _Batch(x, sequences("logits", x, *paddings, blank, frames_end=False))


@partial(jit_when_eager, static_argnames=("blank", "zero_infinity"))
@left_to_xla(1)
def _ctc_loss(x, of, *, blank, zero_infinity):
    loss, _ = _ctc(_Batch(x, of), blank)
    return _finish(loss, of.valid, zero_infinity)


@partial(jit_when_eager, static_argnames=("blank", "zero_infinity"))
def _ctc_with_forward(x, of, log_zero, *, blank, zero_infinity) -> Any:
    loss, out = _ctc(_Batch(x, of), blank)
    offsets = _offsets(out.before, of.live.T)[1:, :, None]
    blanks, others = (
        jnp.concatenate([_log_zeros(before), last[None]])[1:] + offsets
        for before, last in zip(out.before, out.last, strict=True)
    )
    others = others[:, :, :-1]
    if x.shape[1]:
        both = logsumexp(jnp.stack([blanks[-1, :, 1:], others[-1]]), 0)[0]
        blanks = blanks.at[-1, :, 1:].set(both)
    sound = one_or_nan(of.valid, loss.dtype)[None, :, None]
    blanks, others = (jnp.where(a == -jnp.inf, log_zero, a) * sound for a in (blanks, others))
    return _finish(loss, of.valid, zero_infinity), blanks, others


def _finish(loss: Array, valid: Array, zero_infinity: bool) -> Array:
    if zero_infinity:
        loss = jnp.where(loss == jnp.inf, 0, loss)
    # A factor, so that the gradient is NaN too.
    return loss * one_or_nan(valid, loss.dtype)


# The states are a blank, the first label, a blank, the second label, ..., a blank. A sequence of
# classes passes through one path of states or is rejected. Blanks and labels have an array each,
# of one shape, so that a step is arithmetic on whole arrays; the last of the labels is none.


class _States(NamedTuple):
    blanks: Array  # (..., N + 1)
    labels: Array  # (..., N + 1)


def _ctc(batch: _Batch, blank: int) -> tuple[Array, "_Forward"]:
    """The losses, and the forward recursion."""
    n = jnp.sum(batch.of.kept, 1, dtype=jnp.int32)[:, None]
    classes = jnp.pad(batch.of.labels, ((0, 0), (0, 1)), constant_values=blank)
    index = lax.broadcasted_iota(jnp.int32, classes.shape, 1)
    live = batch.of.live.T
    frames = frames_of(batch.x, batch.of.live)
    emissions = -class_nll(batch.x, classes[:, None], frames)
    emissions = _States(
        emissions[:, :, -1].T,
        jnp.where((index < n)[:, None], emissions, -jnp.inf).swapaxes(0, 1),
    )
    # A label may follow the one before it without a blank in between, unless they are the same.
    skip = classes != later(classes, blank)
    out = _forward(emissions, live, skip, index <= n)
    final = _States(index == n, index == n - 1)
    ends = [jnp.where(is_final, a, -jnp.inf) for is_final, a in zip(final, out.last, strict=True)]
    loss = -logsumexp(jnp.concatenate(ends, 1), 1)[:, 0] - jnp.sum(_shifts(out.before, live), 0)
    # It counts only where the labels are likely, and costs a fifth of a gradient. The logits go in
    # as they came: of what is computed of them, it would need an array.
    constants = lax.stop_gradient((batch, classes, final, frames, emissions.labels, out))
    rejected = lax.cond(
        jnp.any(loss < 1), lambda: _rejected(*constants), lambda: jnp.ones_like(loss)
    )
    return near_zero(loss, rejected), out


class _Forward(NamedTuple):
    before: _States  # of (T, B, N + 1), logarithms less the offset, before each frame, `finite`
    last: _States  # after the last


@jax.custom_jvp
def _forward(emissions: _States, live: Array, skip: Array, reached: Array) -> _Forward:
    """The forward recursion, `alpha[t, s] = log(sum of exp(alpha[t - 1, way])) + emission[t, s]`.

    Its values are kept near zero by an offset, so that they have digits to spare: each frame
    shifts them by the largest there was before it.
    """

    def step(carry, frame):
        alpha, shift = carry
        emission, live = frame
        emission = _States(jnp.where(reached, emission.blanks[:, None], -jnp.inf), emission.labels)
        new = jax.tree.map(lambda a, e: (a - shift) + e, _ways(alpha, skip), emission)
        new = _unless_padded(live, new, alpha)
        return (new, _top(new)), jax.tree.map(finite, alpha)

    nothing = jnp.zeros_like(jnp.sum(emissions.labels, 0))
    first = lax.broadcasted_iota(jnp.int32, nothing.shape, 1) == 0
    start = _States(jnp.where(first, nothing, -jnp.inf), jnp.full_like(nothing, -jnp.inf))
    (last, _), before = lax.scan(step, (start, _top(start)), (emissions, live))
    return _Forward(before, last)


def _ways(alpha: _States, skip: Array) -> _States:
    """What comes into each state: from itself, the one before and, at some, the one before that."""
    blanks = log_add(alpha.blanks, later(alpha.labels, -jnp.inf))
    return _States(blanks, log_add(alpha.labels, jnp.where(skip, blanks, alpha.blanks)))


def _unless_padded(live: Array, new: _States, old: _States) -> _States:
    """A padded frame changes nothing."""
    return jax.tree.map(lambda *of: jnp.where(live[:, None], *of), new, old)


def _log_zeros(alpha: Array) -> Array:
    """Undoes `finite`."""
    return jnp.where(alpha == -largest(alpha.dtype), -jnp.inf, alpha)


def _top(alpha: _States) -> Array:
    return largest_along(jnp.maximum(*alpha))


def _shifts(before: _States, live: Array) -> Array:
    """By how much each frame shifts, (T, B)."""
    return jnp.where(live, _top(lax.stop_gradient(before))[..., 0], 0)


def _offsets(before: _States, live: Array) -> Array:
    """The offsets before all frames and after the last, (T + 1, B)."""
    return jnp.pad(jnp.cumsum(_shifts(before, live), 0), ((1, 0), (0, 0)))


@_forward.defjvp
def _forward_rule(primals, tangents):
    #   d alpha[t] = sum over ways of w * (d alpha[t - 1], along the way) + d emission[t]
    # In reverse it is the backward recursion, over probabilities instead of logarithms.
    (_, live, skip, reached), (d_emissions, *_) = primals, tangents
    out = _forward(*primals)
    d_blanks = jnp.where(reached, d_emissions.blanks[:, :, None], 0)

    # The shares w are computed anew in reverse: five arrays that are not kept.
    @partial(jax.checkpoint, prevent_cse=False)
    def step(d_alpha, frame):
        alpha, live, d_emission = frame
        new = jax.tree.map(jnp.add, _along(_shares(alpha, skip), d_alpha), _States(*d_emission))
        return _unless_padded(live, new, d_alpha), jnp.stack(d_alpha)

    nothing = jax.tree.map(jnp.zeros_like, out.last)
    frames = out.before, live, jnp.stack([d_blanks, d_emissions.labels], 1)
    d_last, d_before = lax.scan(step, nothing, frames)
    return out, _Forward(_States(*d_before.swapaxes(0, 1)), d_last)


class _Shares(NamedTuple):
    """What each way has of all that comes into a state."""

    blanks: tuple[Array, Array]  # from itself, and from the label before
    labels: tuple[Array, Array, Array]  # from itself, the blank before and the label before


def _each_way(a: _States) -> _Shares:
    before = later(a.labels, 0)
    return _Shares((a.blanks, before), (a.labels, a.blanks, before))


def _along(shares: _Shares, a: _States) -> _States:
    def of(ways, values) -> Any:
        return sum(w * v for w, v in zip(ways, values, strict=True))

    return _States(*map(of, shares, _each_way(a)))


@jax.custom_jvp
def _shares(alpha: _States, skip: Array) -> _Shares:
    before = later(alpha.labels, -jnp.inf)
    stay, jump = shares_of(alpha.blanks, before)
    both = log_add(alpha.blanks, before)
    own, rest = shares_of(alpha.labels, jnp.where(skip, both, alpha.blanks))
    move = jnp.where(skip, rest * stay, rest)
    return _Shares((stay, jump), (own, move, jnp.where(skip, rest * jump, 0)))


@_shares.defjvp
def _shares_rule(primals, tangents):
    #   d w = w * ((d alpha, along the way) - sum over ways of the same, times w)
    # Not as a product of two shares: their derivatives cancel where a label is rarely reached.
    shares, d_alpha = _shares(*primals), tangents[0]
    means = _along(shares, d_alpha)

    def of(ways, values, mean):
        return tuple(w * (d - mean) for w, d in zip(ways, values, strict=True))

    return shares, _Shares(*map(of, shares, _each_way(d_alpha), means))


def _rejected(
    batch: _Batch,
    classes: Array,
    final: _States,
    frames: Frames,
    labels: Array,
    out: _Forward,
) -> Array:
    """The probability of all that does not read as the labels, a sum without a negative term.

    A path ends where a frame emits a class that does not go on from its state, or in a state
    that is not final.
    """
    # Classes that are not among the labels end every path.
    rows = lax.broadcasted_iota(jnp.int32, classes.shape, 0)
    foreign = jnp.ones_like(jnp.sum(batch.x, 1)).at[rows, classes].set(0)
    by_foreign = jnp.sum(probability(batch.x, frames) * foreign[:, None], 2).T
    # Others, each at its first occurrence, end it in the states that they do not go on from.
    kept = jnp.pad(batch.of.kept, ((0, 0), (0, 1)))
    same = classes[:, :, None] == classes[:, None]
    first = kept & ~jnp.any(jnp.tril(same, -1), 2)
    to = same & kept[:, None]
    after = jnp.pad(to[:, :, 1:], ((0, 0), (0, 0), (0, 1)))
    ended_by = first[:, :, None] & ~to, first[:, :, None] & ~same & ~after
    offsets = _offsets(out.before, batch.of.live.T)[:, :, None]
    at_frame = jnp.zeros_like(by_foreign)
    for before, ends in zip(out.before, ended_by, strict=True):
        p = jnp.exp(before + offsets[:-1])
        ended = jnp.einsum("tbs,bns->tbn", p, ends.astype(p.dtype), precision=lax.Precision.HIGHEST)
        at_frame += by_foreign * jnp.sum(p, 2) + jnp.sum(jnp.exp(labels) * ended, 2)
    at_end = sum(
        jnp.sum(jnp.where(is_final, 0, jnp.exp(last + offsets[-1])), 1)
        for is_final, last in zip(final, out.last, strict=True)
    )
    return jnp.sum(jnp.where(batch.of.live.T, at_frame, 0), 0) + at_end
