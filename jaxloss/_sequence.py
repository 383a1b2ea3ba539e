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
from jax.custom_derivatives import SymbolicZero
from jax.experimental import checkify
from jax.typing import ArrayLike

from jaxloss import _checks
from jaxloss._numerics import largest, one_or_nan, one_program
from jaxloss._softmax import logsumexp, softmax


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
        logit_paddings: (B, T), bool, integer or floating: 1 for frames to skip, else 0.
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
    del log_epsilon
    batch = _check(logits, logit_paddings, labels, label_paddings, blank_id)
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
        logit_paddings: (B, T), bool, integer or floating: 1 for frames to skip, else 0.
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
    log_zero = _checks.scalar("log_epsilon", log_epsilon, batch.x.dtype)
    loss, blanks, others = _ctc_with_forward(
        *batch, log_zero, blank=blank_id, zero_infinity=zero_infinity
    )
    return loss, blanks, others


class _Batch(NamedTuple):
    x: Array  # (B, T, K)
    live: Array  # (B, T), frames that are not padded
    labels: Array  # (B, N), the blank where padded
    kept: Array  # (B, N), labels that are not padded
    valid: Array  # (B,), sequences without an error


def _check(logits, logit_paddings, labels, label_paddings, blank) -> _Batch:
    x = _checks.predictions("logits", logits)
    labels = _checks.integers("labels", labels, "they are class numbers")
    frames = _checks.numeric("logit_paddings", logit_paddings, x.dtype)
    ends = _checks.numeric("label_paddings", label_paddings, x.dtype)
    _check_shapes(x, frames, labels, ends)
    classes = x.shape[2]
    if not 0 <= blank < classes:
        raise ValueError(f"blank_id must be in [0, {classes}), got {blank}")
    kept, live = ends == 0, frames == 0
    known = ~kept | ((labels >= 0) & (labels < classes) & (labels != blank))
    checkify.debug_check(
        jnp.all(known),
        f"labels must be in [0, {classes}) and not the blank, {blank}, but reach from {{low}} to "
        f"{{high}}",
        low=jnp.min(labels, initial=0, where=kept),
        high=jnp.max(labels, initial=0, where=kept),
    )
    right = jnp.all(kept[:, 1:] <= kept[:, :-1], 1)
    right &= jnp.all(kept | (ends == 1), 1) & jnp.all(live | (frames == 1), 1)
    checkify.debug_check(
        jnp.all(right), "paddings must be 0 or 1, and labels be padded on the right only"
    )
    labels = jnp.where(kept & known, labels, blank).astype(jnp.int32)
    return _Batch(x, live, labels, kept, right & jnp.all(known, 1))


def _check_shapes(x: Array, frames: Array, labels: Array, ends: Array) -> None:
    if x.ndim != 3 or labels.ndim != 2 or x.shape[0] != labels.shape[0]:
        raise ValueError(
            f"logits of shape {x.shape} and labels of shape {labels.shape} must be of shapes "
            f"(B, T, K) and (B, N); for one sequence, give both a leading axis of size 1"
        )
    for name, paddings, of, shape in (
        ("logit_paddings", frames, "logits", x.shape[:2]),
        ("label_paddings", ends, "labels", labels.shape),
    ):
        if paddings.shape != shape:
            raise ValueError(
                f"{name} of shape {paddings.shape} do not match {of}: expected shape {shape}"
            )


@partial(one_program, static_argnames=("blank", "zero_infinity"))
def _ctc_loss(x, live, labels, kept, valid, *, blank, zero_infinity):
    loss, _ = _ctc(_Batch(x, live, labels, kept, valid), blank)
    return _finish(loss, valid, zero_infinity)


@partial(one_program, static_argnames=("blank", "zero_infinity"))
def _ctc_with_forward(x, live, labels, kept, valid, log_zero, *, blank, zero_infinity) -> Any:
    loss, log_alphas = _ctc(_Batch(x, live, labels, kept, valid), blank)
    blanks, others = log_alphas[:, :, ::2], log_alphas[:, :, 1::2]
    if x.shape[1]:
        both = logsumexp(jnp.stack([blanks[-1, :, 1:], others[-1]]), 0)[0]
        blanks = blanks.at[-1, :, 1:].set(both)
    sound = one_or_nan(valid, loss.dtype)[None, :, None]
    blanks, others = (jnp.where(a == -jnp.inf, log_zero, a) * sound for a in (blanks, others))
    return _finish(loss, valid, zero_infinity), blanks, others


def _finish(loss: Array, valid: Array, zero_infinity: bool) -> Array:
    if zero_infinity:
        loss = jnp.where(loss == jnp.inf, 0, loss)
    # A factor, so that the gradient is NaN too.
    return loss * one_or_nan(valid, loss.dtype)


# The states are a blank, the first label, a blank, the second label, ..., a blank: S = 2 N + 1
# of them. A sequence of classes passes through one path of states or is rejected.


def _ctc(batch: _Batch, blank: int) -> tuple[Array, Array]:
    """The losses, and the logarithms of the forward probabilities, (T, B, S)."""
    live = batch.live.T[:, :, None]
    nll = softmax(jnp.where(batch.live[:, :, None], batch.x, 0), 2).nll
    own = _states(jnp.full_like(batch.labels, blank, shape=(len(nll), 1)), batch.labels)
    n = jnp.sum(batch.kept, 1, dtype=jnp.int32)[:, None]
    state = lax.broadcasted_iota(jnp.int32, own.shape, 1)
    label_nll = jnp.take_along_axis(nll, batch.labels[:, None], 2, mode="promise_in_bounds")
    emissions = -_states(nll[:, :, blank : blank + 1], label_nll)
    emissions = jnp.where((state <= 2 * n)[:, None], emissions, -jnp.inf).swapaxes(0, 1)
    emissions = jnp.where(live, emissions, 0)
    # A label may follow the one before it without a blank in between, unless they are the same.
    skip = (own != blank) & (own != _later(own, 2, blank))
    out = _forward(emissions, live, skip)
    final = (state >= 2 * n - 1) & (state <= 2 * n)
    loss = (-logsumexp(jnp.where(final, out.last, -jnp.inf), 1) - out.offset)[:, 0]
    # It counts only where the labels are likely, and costs a fifth of a gradient.
    constants = lax.stop_gradient((nll, emissions, out))
    rejected = lax.cond(
        jnp.any(loss < 1),
        lambda: _rejected(batch, blank, own, final, *constants),
        lambda: jnp.ones_like(loss),
    )
    return _near_zero(loss, rejected), out.alphas + out.offsets


def _states(blank: Array, labels: Array) -> Array:
    """The blank between all labels, and on both sides, along the last axis."""
    pairs = jnp.stack([jnp.broadcast_to(blank, labels.shape), labels], -1)
    return jnp.concatenate([pairs.reshape(*labels.shape[:-1], 2 * labels.shape[-1]), blank], -1)


def _later(a: Array, by: int, fill: float) -> Array:
    """Moved by some states along the last axis."""
    padding = ((0, 0),) * (a.ndim - 1) + ((by, 0),)
    return jnp.pad(a, padding, constant_values=fill)[..., : a.shape[-1]]


def _ways(a: Array, fill: float) -> tuple[Array, ...]:
    """What each state has from itself, from the state before and from the one before that."""
    return a, _later(a, 1, fill), _later(a, 2, fill)


class _Forward(NamedTuple):
    alphas: Array  # (T, B, S), logarithms less the offset
    offsets: Array  # (T, B, 1)
    weights: tuple[Array, ...]  # three of (T, B, S), the share of each way into a state
    last: Array  # (B, S), of alphas
    offset: Array  # (B, 1)


@jax.custom_jvp
def _forward(emissions: Array, live: Array, skip: Array) -> _Forward:
    """The forward recursion, `alpha[t, s] = log(sum of exp(alpha[t - 1, way])) + emission[t, s]`.

    Its values are kept near zero by an offset, so that they have digits to spare.
    """

    def step(carry, frame):
        alpha, offset = carry
        emission, live = frame
        stay, move, jump = _ways(alpha, -jnp.inf)
        jump = jnp.where(skip, jump, -jnp.inf)
        top = jnp.maximum(jnp.maximum(stay, jnp.maximum(move, jump)), -largest(alpha.dtype))
        shares = jnp.exp(stay - top), jnp.exp(move - top), jnp.exp(jump - top)
        total = sum(shares)
        new = top + jnp.log(total) + emission
        shift = jnp.max(new, 1, keepdims=True)
        shift = jnp.where(live & (shift != -jnp.inf), shift, 0)
        scale = jnp.where(total == 0, 0, 1 / total)
        # A padded frame changes nothing.
        weights = tuple(
            jnp.where(live, share * scale, float(i == 0)) for i, share in enumerate(shares)
        )
        carry = jnp.where(live, new - shift, alpha), offset + shift
        return carry, (*carry, weights)

    nothing = jnp.zeros_like(jnp.sum(emissions, 0))
    first = lax.broadcasted_iota(jnp.int32, nothing.shape, 1) == 0
    start = jnp.where(first, nothing, -jnp.inf), nothing[:, :1]
    (last, offset), (alphas, offsets, weights) = lax.scan(step, start, (emissions, live))
    return _Forward(alphas, offsets, weights, last, offset)


@partial(_forward.defjvp, symbolic_zeros=True)
def _forward_rule(primals, tangents):
    #   d alpha[t] = sum over ways of w * (d alpha[t - 1], along the way) + d emission[t]
    #   d w = w * ((d alpha[t - 1], along the way) - sum over ways of the same, times w)
    # In reverse the first is the backward recursion, over probabilities instead of logarithms.
    d_emissions, _, _ = tangents
    out = _forward(*primals)
    zero = jax.tree.map(jnp.zeros_like, out)
    if isinstance(d_emissions, SymbolicZero):
        return out, zero

    def step(d_alpha, frame):
        weights, d_emission = frame
        d_alpha = _along(weights, d_alpha) + d_emission
        return d_alpha, d_alpha

    d_last, d_alphas = lax.scan(step, zero.last, (out.weights, d_emissions))
    before = jnp.concatenate([zero.last[None], d_alphas])[:-1]
    mean = _along(out.weights, before)
    d_weights = tuple(w * (d - mean) for w, d in zip(out.weights, _ways(before, 0), strict=True))
    return out, _Forward(d_alphas, zero.offsets, d_weights, d_last, zero.offset)


def _along(weights: tuple[Array, ...], a: Array) -> Array:
    stay, move, jump = (w * v for w, v in zip(weights, _ways(a, 0), strict=True))
    return stay + move + jump


def _rejected(batch: _Batch, blank: int, own, final, nll, emissions, out: _Forward) -> Array:
    """The probability of all that does not read as the labels, a sum without a negative term.

    A path ends where a frame emits a class that does not go on from its state, or in a state
    that is not final.
    """
    labels, kept = batch.labels, batch.kept
    # Classes that are not among the labels end every path.
    rows = lax.broadcasted_iota(jnp.int32, own.shape, 0)
    foreign = jnp.ones_like(jnp.sum(nll, 1)).at[rows, own].set(0)
    by_foreign = jnp.sum(jnp.exp(-nll) * foreign[:, None], 2).T
    # Others, each at its first occurrence, end it in the states that they do not go on from.
    same = labels[:, :, None] == labels[:, None]
    first = kept & ~jnp.any(jnp.tril(same, -1), 2)
    after = jnp.pad(jnp.where(kept, labels, -1), ((0, 0), (0, 1)), constant_values=-1)
    after = jnp.repeat(after, 2, 1)[:, 1:]
    label = labels[:, :, None]
    ends = first[:, :, None] & (label != own[:, None]) & (label != after[:, None])
    alphas = jnp.exp(out.alphas + out.offsets)
    state = lax.broadcasted_iota(jnp.int32, out.last.shape, 1)
    before = jnp.concatenate([(state == 0).astype(nll.dtype)[None], alphas])[:-1]
    where_ended = jnp.einsum(
        "tbs,bns->tbn", before, ends.astype(nll.dtype), precision=lax.Precision.HIGHEST
    )
    at_frame = by_foreign * jnp.sum(before, 2)
    at_frame += jnp.sum(jnp.exp(emissions[:, :, 1::2]) * where_ended, 2)
    at_end = jnp.sum(jnp.where(final, 0, jnp.exp(out.last + out.offset)), 1)
    return jnp.sum(jnp.where(batch.live.T, at_frame, 0), 0) + at_end


@jax.custom_jvp
def _near_zero(loss: Array, rejected: Array) -> Array:
    """`loss`, as `-log1p(-rejected)` where that has more digits."""
    certain = (rejected < 0.5) & (loss < 1)
    return jnp.where(certain, -jnp.log1p(-jnp.where(certain, rejected, 0)), loss)


@_near_zero.defjvp
def _near_zero_rule(primals, tangents):
    return _near_zero(*primals), tangents[0]
