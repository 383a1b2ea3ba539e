"""Preference losses: of log-probabilities, or rewards, of a chosen and a rejected response.

At a kink every derivative is the mean of the one-sided ones.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.numerics import clip_to_finite, expm1, one_or_nan, relu, sigmoid, softplus, times
from jaxloss._core.rules import jit_when_eager, tangent_sum
from jaxloss._families.binary import bce

HALF = checks.Range(0.0, 0.5, closed=False)


@takes(
    chosen="entries",
    rejected="entries",
    reference_chosen="entries",
    reference_rejected="entries",
    beta=("entries", "positive"),
    label_smoothing=("entries", "probability"),
)
def dpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    reference_chosen: ArrayLike,
    reference_rejected: ArrayLike,
    *,
    beta: ArrayLike = 0.1,
    label_smoothing: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Direct preference optimisation: which of two responses is preferred, by a language model.

    With D = (chosen - reference_chosen) - (rejected - reference_rejected) and s the smoothing:

        loss = -(1 - s) * log sigmoid(beta * D) - s * log sigmoid(-beta * D)

    Args:
        chosen, rejected: log-probabilities of the two responses in nats, as a rule sums over
            their tokens; any shape and floating dtype, one entry a pair.
        reference_chosen, reference_rejected: those of the reference model, of the shape of
            `chosen`, scalars, or of the same rank with axes of size 1. They have derivatives
            too: where the reference is no constant, wrap it in `jax.lax.stop_gradient`.
        beta: how much it costs to leave the reference, at least 0; one number, or a shape that
            broadcasts along the trailing axes.
        label_smoothing: s in [0, 1], the probability that a preference is wrong (conservative
            DPO); shaped like `beta`.
        where: booleans shaped like `chosen`; elsewhere the loss is 0, whatever the rest holds.

    Returns:
        The loss in nats, of the shape of all log-probabilities together, in float32 (float64 for
        float64 `chosen`).

    Raises:
        TypeError: `chosen` is not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or a setting is out of its range.

    The derivative by `chosen` is `-beta * ((1 - s) * sigmoid(-beta * D) - s * sigmoid(beta * D))`,
    exact in both tails; there is no kink. `beta` and `label_smoothing` have derivatives.

    References:
        Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290; smoothed:
        Mitchell, A note on DPO with noisy preferences, 2023.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.dpo_loss(jnp.array([-10.0, -20.0]), -12.0, -11.0, -11.0))
    [0.59814 1.17110]
    """
    four, where = _against_reference(where, chosen, rejected, reference_chosen, reference_rejected)
    beta = checks.setting("beta", beta, "chosen", four[0], checks.NONNEGATIVE)
    smoothing = _smoothing(label_smoothing, four[0])
    return _logistic(four, beta, smoothing, None, where)


@takes(
    chosen="entries",
    rejected="entries",
    reference_chosen="entries",
    reference_rejected="entries",
    beta=("entries", "positive"),
)
def robust_dpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    reference_chosen: ArrayLike,
    reference_rejected: ArrayLike,
    *,
    beta: ArrayLike = 0.1,
    label_smoothing: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""DPO whose mean over wrong labels is the loss of right ones (robust DPO).

    With D and s as in `dpo_loss`:

        loss = (-(1 - s) * log sigmoid(beta * D) + s * log sigmoid(-beta * D)) / (1 - 2 * s)

    computed as `-log sigmoid(beta * D) - s / (1 - 2 * s) * beta * D`.

    Args:
        chosen, rejected, reference_chosen, reference_rejected, beta, where: see `dpo_loss`.
        label_smoothing: s in [0, 1/2), the probability that a preference is wrong; shaped like
            `beta`.

    Returns, raises: see `dpo_loss`. The loss may be negative.

    The derivative by `chosen` is `-beta * (sigmoid(-beta * D) + s / (1 - 2 * s))`, which does not
    vanish where the pair is right; there is no kink.

    References:
        Chowdhury et al., Provably Robust DPO, 2024, arXiv:2403.00409.

    >>> import jax.numpy as jnp, jaxloss
    >>> chosen = jnp.array([-10.0, -20.0])
    >>> print(jaxloss.robust_dpo_loss(chosen, -12.0, -11.0, -11.0, label_smoothing=0.25))
    [0.49814 1.57110 ]
    """
    four, where = _against_reference(where, chosen, rejected, reference_chosen, reference_rejected)
    beta = checks.setting("beta", beta, "chosen", four[0], checks.NONNEGATIVE)
    smoothing = _smoothing(label_smoothing, four[0], HALF)
    return _robust(four, beta, smoothing, where)


@jit_when_eager
def _robust(four, beta, s, where):
    x = times(beta, _difference(four, where))
    loss = softplus(-x)
    return inputs.masked(where, loss if s is None else loss - times(s / (1 - 2 * s), x))


@takes(
    chosen="entries",
    rejected="entries",
    reference_chosen="entries",
    reference_rejected="entries",
    beta=("entries", "positive"),
)
def ipo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    reference_chosen: ArrayLike,
    reference_rejected: ArrayLike,
    *,
    beta: ArrayLike = 0.1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Identity preference optimisation: a margin over the reference that is met, not exceeded.

    With D as in `dpo_loss`:

        loss = (D - 1 / (2 * beta))**2

    Args:
        chosen, rejected, reference_chosen, reference_rejected, where: see `dpo_loss`. For
            responses of different lengths give means over their tokens: TRL's trainer does, while
            the paper has whole responses.
        beta: the paper's tau, positive; one number, or a shape that broadcasts along the trailing
            axes.

    Returns:
        The loss in squared nats, of the shape of all log-probabilities together, in float32
        (float64 for float64 `chosen`).

    Raises:
        TypeError, ValueError: see `dpo_loss`.

    The derivative by `chosen` is `2 * D - 1 / beta`; `beta` has one.

    References:
        Azar et al., A General Theoretical Paradigm to Understand Learning from Human
        Preferences, 2023, arXiv:2310.12036.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.ipo_loss(jnp.array([-10.0, -20.0]), -12.0, -11.0, -11.0))
    [  9. 169.]
    """
    four, where = _against_reference(where, chosen, rejected, reference_chosen, reference_rejected)
    positive = checks.positive_range(four[0].dtype)
    return _ipo(four, checks.setting("beta", beta, "chosen", four[0], positive), where)


@jit_when_eager
def _ipo(four, beta, where):
    error = _difference(four, where) - 0.5 / beta
    return inputs.masked(where, error * error)


@takes(
    chosen="entries",
    rejected="entries",
    reference_chosen="entries",
    reference_rejected="entries",
    beta=("entries", "positive"),
)
def dpo_hinge_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    reference_chosen: ArrayLike,
    reference_rejected: ArrayLike,
    *,
    beta: ArrayLike = 0.1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Hinge loss of a preference, zero once the pair is right by a margin (SLiC, RSO).

    With D as in `dpo_loss`:

        loss = max(0, 1 - beta * D)

    Args, returns, raises: see `dpo_loss`.

    The derivative by `chosen` is `-beta` inside the margin, 0 outside, and `-beta / 2` at
    beta * D = 1.

    References:
        Zhao et al., SLiC-HF, 2023, arXiv:2305.10425, without a reference; normalised by one: Liu
        et al., Statistical Rejection Sampling Improves Preference Optimization, 2023,
        arXiv:2309.06657.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.dpo_hinge_loss(jnp.array([-10.0, -20.0]), -12.0, -11.0, -11.0))
    [0.8 1.8]
    """
    four, where = _against_reference(where, chosen, rejected, reference_chosen, reference_rejected)
    beta = checks.setting("beta", beta, "chosen", four[0], checks.NONNEGATIVE)
    return _hinge(four, beta, where)


@jit_when_eager
def _hinge(four, beta, where):
    return inputs.masked(where, relu(1 - times(beta, _difference(four, where))))


@takes(
    chosen="entries",
    rejected="entries",
    beta=("entries", "positive"),
    label_smoothing=("entries", "probability"),
)
def cpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    beta: ArrayLike = 0.1,
    label_smoothing: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Contrastive preference optimisation: DPO without a reference model.

    With D = chosen - rejected and s the smoothing:

        loss = -(1 - s) * log sigmoid(beta * D) - s * log sigmoid(-beta * D)

    Args:
        chosen, rejected, beta, label_smoothing, where: see `dpo_loss`.

    Returns, raises, derivatives: see `dpo_loss`.

    The paper adds the negative log-likelihood of the chosen response, which is yours to add; its
    loss has no smoothing, which is as in TRL.

    References:
        Xu et al., Contrastive Preference Optimization, 2024, arXiv:2401.08417.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.cpo_loss(jnp.array([-10.0, -20.0]), -12.0))
    [0.59814 1.17110]
    """
    pair, where = _pair(chosen, rejected, where)
    beta = checks.setting("beta", beta, "chosen", pair[0], checks.NONNEGATIVE)
    return _logistic(pair, beta, _smoothing(label_smoothing, pair[0]), None, where)


@takes(
    chosen="entries",
    rejected="entries",
    beta=("entries", "positive"),
    margin="entries",
)
def simpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    beta: ArrayLike = 2.0,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Simple preference optimisation: of mean log-probabilities a token, with a margin.

        loss = -log sigmoid(beta * (chosen - rejected) - margin)

    Args:
        chosen, rejected: log-probabilities of the two responses in nats, means over their
            tokens; any shape and floating dtype, one entry a pair.
        beta: scale, at least 0; one number, or a shape that broadcasts along the trailing axes.
        margin: the paper's gamma, by which the scaled difference is to lead; shaped like `beta`.
        where: booleans shaped like `chosen`; elsewhere the loss is 0.

    Returns, raises: see `dpo_loss`.

    The derivative by `chosen` is `-beta * sigmoid(margin - beta * (chosen - rejected))`; `beta` and
    `margin` have derivatives.

    References:
        Meng et al., SimPO, 2024, arXiv:2405.14734.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.simpo_loss(jnp.array([-1.0, -2.0]), -1.5))
    [0.69315 2.12693 ]
    """
    pair, where = _pair(chosen, rejected, where)
    beta = checks.setting("beta", beta, "chosen", pair[0], checks.NONNEGATIVE)
    return _logistic(pair, beta, None, _margin(margin, "chosen", pair[0]), where)


@takes(chosen_rewards="entries", rejected_rewards="entries", margin="entries")
def bradley_terry_loss(
    chosen_rewards: ArrayLike,
    rejected_rewards: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Loss of a reward model: the chosen response is to have the higher reward.

        loss = -log sigmoid(chosen_rewards - rejected_rewards - margin)

    Args:
        chosen_rewards: of the preferred responses, any shape and floating dtype, one entry a pair.
        rejected_rewards: of the others, of the shape of `chosen_rewards`, a scalar, or of the same
            rank with axes of size 1.
        margin: by which the rewards are to differ; one number, or a shape that broadcasts along
            the trailing axes.
        where: booleans shaped like `chosen_rewards`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64 rewards).

    Raises:
        TypeError: `chosen_rewards` are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by the chosen reward is `-sigmoid(rejected + margin - chosen)`, exact in both
    tails; `margin` has one.

    References:
        Bradley and Terry, Rank Analysis of Incomplete Block Designs, 1952; with a margin: Touvron
        et al., Llama 2, 2023, arXiv:2307.09288.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.bradley_terry_loss(jnp.array([2.0, -1.0]), 0.5))
    [0.20141 1.70141 ]
    """
    (x, y), where = inputs.entries(
        where, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards
    )
    return _logistic((x, y), None, None, _margin(margin, "chosen_rewards", x), where)


@jit_when_eager
def _logistic(operands, beta, smoothing, margin, where):
    """`-log sigmoid(beta * D - margin)`; smoothed, some of it is of the other sign."""
    x = _difference(operands, where)
    x = x if beta is None else times(beta, x)
    x = x if margin is None else x - margin
    # A wrong label has the probability s.
    return inputs.masked(where, softplus(-x) if smoothing is None else bce(-x, smoothing))


@takes(chosen=("entries", "log distribution"), rejected=("entries", "log distribution"))
def orpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Odds-ratio preference optimisation: of mean log-probabilities a token.

    With logodds(l) = l - log(1 - exp(l)):

        loss = -log sigmoid(logodds(chosen) - logodds(rejected))

    Args:
        chosen, rejected: log-probabilities of the two responses in nats, means over their
            tokens, so at most 0; any shape and floating dtype, one entry a pair. One above 0 makes
            its loss and gradient NaN.
        where: booleans shaped like `chosen`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64
        `chosen`): 0 at chosen = 0, inf at rejected = 0, log 2 where both are equal.

    Raises:
        TypeError: `chosen` is not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    Exact from -1e4 to -1e-30, where 1 - exp(l) has lost all digits long since. With p and q the
    two probabilities, the derivative by `chosen` is `-q / (q * (1 - p) + p * (1 - q))`, which at
    chosen = 0 is minus the odds of the rejected response. For an infinite derivative, as at
    rejected = 0, a huge number stands, so that a tangent of zero stays zero.

    The paper adds this, times a weight, to the negative log-likelihood of the chosen response;
    that sum is yours. (TRL calls the weight beta, the paper lambda.)

    References:
        Hong et al., ORPO: Monolithic Preference Optimization without Reference Model, 2024,
        arXiv:2403.07691.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.orpo_loss(jnp.array([-0.5, -1e-8]), jnp.array([-1.0, -1.0])))
    [3.2030e-01 5.8198e-09]
    """
    (chosen, rejected), where = _pair(chosen, rejected, where)
    return _orpo(chosen, rejected, where)


@jit_when_eager
def _orpo(chosen, rejected, where):
    half = -math.log(2)
    chosen, rejected = (inputs.exclude(where, x, half) for x in (chosen, rejected))
    loss = _odds_ratio(chosen, rejected) * one_or_nan((chosen <= 0) & (rejected <= 0), chosen.dtype)
    return inputs.masked(where, loss)


class _Odds(NamedTuple):
    """With the probabilities p and q, and a, b of which one is 1 and a / b is q / p."""

    a: Array
    b: Array
    not_p: Array  # 1 - p
    not_q: Array  # 1 - q
    inverse: Array  # 1 / (a (1 - p) + b (1 - q))


def _odds(c: Array, r: Array) -> _Odds:
    # Of equal ones either; but a / b has to have its derivative.
    a, b = jnp.exp(jnp.where(r < c, r - c, 0)), jnp.exp(jnp.where(c <= r, c - r, 0))
    not_p, not_q = 0 - expm1(c), 0 - expm1(r)  # Not -0.
    return _Odds(a, b, not_p, not_q, 1 / (a * not_p + b * not_q))


# With the odds p / (1 - p) and q / (1 - q) the loss is log(1 + t), t = q (1 - p) / (p (1 - q)), and
# in terms of `_Odds`, whose w is the inverse,
#   d loss = -g dc + h dr,   g = a w,   h = a w (1 - p) / (1 - q)
#   dg = -g ((b (1 - q) - a p) w dc - b w dr)
#   dh = -g b w dc + h (q / (1 - q) + b w) dr


@jax.custom_jvp
def _odds_ratio(c: Array, r: Array) -> Array:
    # By which of the two is more probable, log1p(t), or log(t) + log1p(1 / t).
    not_p, not_q, wrong = 0 - expm1(c), 0 - expm1(r), c < r
    less, more = jnp.where(wrong, not_q, not_p), jnp.where(wrong, not_p, not_q)
    share = jnp.where(c == r, 1, less / jnp.where(more == 0, 1, more))
    log_t = jnp.where(wrong, (r - c) - jnp.log(jnp.where(wrong, share, 1)), 0)
    return log_t + jnp.log1p(share * jnp.exp(-jnp.abs(c - r)))


@partial(_odds_ratio.defjvp, symbolic_zeros=True)
def _odds_ratio_rule(primals, tangents):
    (c, r), (dc, dr) = primals, tangents
    out = _odds_ratio(c, r)
    return out, tangent_sum(
        out,
        (dc, lambda: -clip_to_finite(_by_chosen(c, r)) * dc),
        (dr, lambda: clip_to_finite(_by_rejected(c, r)) * dr),
    )


@jax.custom_jvp
def _by_chosen(c: Array, r: Array) -> Array:
    of = _odds(c, r)
    return of.a * of.inverse


@partial(_by_chosen.defjvp, symbolic_zeros=True)
def _by_chosen_rule(primals, tangents):
    (c, r), (dc, dr) = primals, tangents
    out, of = _by_chosen(c, r), _odds(c, r)
    by_c = (of.b * of.not_q - of.a * jnp.exp(c)) * of.inverse
    by_r = of.b * of.inverse
    return out, tangent_sum(
        out,
        (dc, lambda: -clip_to_finite(out * by_c) * dc),
        (dr, lambda: clip_to_finite(out * by_r) * dr),
    )


@jax.custom_jvp
def _by_rejected(c: Array, r: Array) -> Array:
    of = _odds(c, r)
    share = of.a * of.not_p * of.inverse
    return jnp.where((c == 0) & (r == 0), 0.5, share) / of.not_q


@partial(_by_rejected.defjvp, symbolic_zeros=True)
def _by_rejected_rule(primals, tangents):
    (c, r), (dc, dr) = primals, tangents
    out, of = _by_rejected(c, r), _odds(c, r)
    by_c = of.b * of.inverse
    by_r = jnp.exp(r) / of.not_q + by_c
    return out, tangent_sum(
        out,
        (dc, lambda: -clip_to_finite(_by_chosen(c, r) * by_c) * dc),
        (dr, lambda: clip_to_finite(out * by_r) * dr),
    )


@takes(
    log_probs="entries",
    reference="entries",
    desirable=("entries", "bit"),
    beta=("entries", "positive"),
    kl="entries",
    desirable_weight=("entries", "positive"),
    undesirable_weight=("entries", "positive"),
)
def kto_loss(
    log_probs: ArrayLike,
    reference: ArrayLike,
    desirable: ArrayLike,
    *,
    beta: ArrayLike = 0.1,
    kl: ArrayLike = 0.0,
    desirable_weight: ArrayLike = 1.0,
    undesirable_weight: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kahneman-Tversky optimisation: of single responses, each desirable or not.

    With r = log_probs - reference and w the weight of its kind:

        loss = w * (1 - sigmoid(beta * (r - kl)))    of a desirable response
        loss = w * (1 - sigmoid(beta * (kl - r)))    of another

    computed as `w * sigmoid(-...)`.

    Args:
        log_probs: log-probabilities of responses in nats, sums over their tokens; any shape and
            floating dtype.
        reference: those of the reference model, of the shape of `log_probs`, a scalar, or of the
            same rank with axes of size 1; it has a derivative, see `dpo_loss`.
        desirable: booleans, or 0 and 1, shaped like `reference`; a number between them mixes both
            losses.
        beta: how risk-averse, at least 0; one number, or a shape that broadcasts along the
            trailing axes.
        kl: estimate of the divergence from the reference, which the paper and TRL take from
            responses of other prompts, not below 0; shaped like `beta`. Without derivative.
        desirable_weight, undesirable_weight: of the two kinds; shaped like `beta`.
        where: booleans shaped like `log_probs`; elsewhere the loss is 0.

    Returns:
        The loss, of the shape of all log-probabilities together, in float32 (float64 for float64
        `log_probs`).

    Raises:
        TypeError: `log_probs` are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `beta` is negative.

    With x = beta * (r - kl) the derivative by `log_probs` is `w * beta * sigmoid(x) * sigmoid(-x)`,
    negative for a desirable response; `beta` and the weights have derivatives.

    References:
        Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, 2024,
        arXiv:2402.01306, without the constant lambda_y.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.kto_loss(jnp.array([-10.0, -10.0]), -12.0, jnp.array([True, False])))
    [0.450166 0.549834]
    """
    (x, y, z), where = inputs.entries(
        where, log_probs=log_probs, reference=reference, desirable=desirable
    )
    beta = checks.setting("beta", beta, "log_probs", x, checks.NONNEGATIVE)
    kl, good, bad = (
        checks.setting(name, value, "log_probs", x)
        for name, value in (
            ("kl", kl),
            ("desirable_weight", desirable_weight),
            ("undesirable_weight", undesirable_weight),
        )
    )
    return _kto(x, y, z, beta, kl, good, bad, where)


@jit_when_eager
def _kto(x, y, z, beta, kl, good, bad, where):
    x, y, z = inputs.mask(where, x, y, z)
    gain = times(beta, (x - y) - lax.stop_gradient(kl))
    return inputs.masked(where, good * z * sigmoid(-gain) + bad * (1 - z) * sigmoid(gain))


def _pair(chosen, rejected, where):
    return inputs.entries(where, chosen=chosen, rejected=rejected)


def _against_reference(where, chosen, rejected, reference_chosen, reference_rejected):
    return inputs.entries(
        where,
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )


def _smoothing(value, like, allowed=checks.SHARE):
    return checks.optional("label_smoothing", value, checks.setting, "chosen", like, allowed)


def _margin(value, name, like):
    return checks.optional("margin", value, checks.setting, name, like)


def _difference(operands, where):
    """How much more probable the chosen response is, by the model less by its reference."""
    chosen, rejected, *reference = inputs.mask(where, *operands)
    if not reference:
        return chosen - rejected
    return (chosen - reference[0]) - (rejected - reference[1])
