"""Policy losses: of log-probabilities of tokens that a policy took, and of how good they were.

At a clip every derivative is the mean of the one-sided ones. Advantages have none.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.numerics import compute_dtype, defined, expm1, heaviside, largest, one_or_nan
from jaxloss._core.reduce import per_size
from jaxloss._core.rules import jit_when_eager


@takes(
    log_probs="entries",
    old_log_probs="entries",
    advantages="entries",
    parts={"level": "sequence"},
)
def clipped_surrogate_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    clip_low: ArrayLike = 0.2,
    clip_high: ArrayLike = 0.2,
    dual_clip: ArrayLike | None = None,
    level: Literal["token", "sequence"] = "token",
    where: ArrayLike | None = None,
) -> Array:
    r"""Clipped surrogate of PPO, GRPO, Dr. GRPO, DAPO and, for sequences, GSPO.

    With the ratio rho = exp(log_probs - old_log_probs) and the advantage A:

        loss = -min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)

    With a `dual_clip` c it is at most `-c * A` where A is negative. With `level="sequence"` rho is
    one ratio a sequence, the exponential of the mean difference over its unmasked tokens.

    Args:
        log_probs: log-probabilities of the tokens taken, in nats, [..., T], any floating dtype.
        old_log_probs: those of the policy that took them, of the shape of `log_probs`, a scalar,
            or of the same rank with axes of size 1. They have a derivative.
        advantages: of the shape of `log_probs`, or without the last axis, one a sequence; the
            latter for `level="sequence"`. Without derivative; see `group_advantages`.
        clip_low, clip_high: how far the ratio may be below and above 1, at least 0; one number,
            or a shape that broadcasts along the trailing axes of the losses.
        dual_clip: c, above 1; None for no such bound.
        level: "token" for one loss a token, "sequence" for one a sequence.
        where: booleans shaped like `log_probs`: which tokens count. Elsewhere, and for a sequence
            without any, the loss is 0.

    Returns:
        The loss, of the shape of `log_probs`, or without its last axis, in float32 (float64 for
        float64 `log_probs`).

    Raises:
        TypeError: `log_probs` are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, a setting is out of its range, `level` is neither.

    The derivative by `log_probs` is `-rho * A`, 0 where it is clipped, and half of it at the clip.
    A ratio that overflows costs its limit, inf for a negative advantage without `dual_clip`, and
    nothing beside an advantage of 0.

    What is divided by what is the reduction's: `docs/post_training.md` has PPO, GRPO, Dr. GRPO and
    DAPO.

    References:
        Schulman et al., Proximal Policy Optimization, 2017, arXiv:1707.06347; `dual_clip`: Ye et
        al., 2019, arXiv:1912.09729; "sequence": Zheng et al., Group Sequence Policy Optimization,
        2025, arXiv:2507.18071.

    >>> import jax.numpy as jnp, jaxloss
    >>> new, old = jnp.log(jnp.array([0.5, 0.3, 0.1])), jnp.log(jnp.array([0.25, 0.25, 0.2]))
    >>> print(jaxloss.clipped_surrogate_loss(new, old, 1.0))
    [-1.2 -1.2 -0.5]
    >>> print(jaxloss.clipped_surrogate_loss(new, old, -1.0))
    [2.  1.2 0.8]
    """
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be 'token' or 'sequence', got {level!r}")
    (x, old), where = inputs.entries(where, log_probs=log_probs, old_log_probs=old_log_probs)
    a = _advantages(advantages, x, level)
    low = checks.setting("clip_low", clip_low, "losses", a, checks.NONNEGATIVE)
    high = checks.setting("clip_high", clip_high, "losses", a, checks.NONNEGATIVE)
    if dual_clip is not None:
        dual_clip = checks.setting("dual_clip", dual_clip, "losses", a, checks.Range(1.0))
    return _surrogate(x, old, a, low, high, dual_clip, where, level=level)


@partial(jit_when_eager, static_argnames="level")
def _surrogate(x, old, a, low, high, dual, where, *, level):
    x, old = inputs.mask(where, x, old)
    d = x - old
    if level == "sequence":
        counts = jnp.sum(jnp.ones_like(d, bool) if where is None else where, -1, dtype=jnp.int32)
        d, where = per_size(jnp.sum(d, -1), counts.astype(d.dtype)), counts > 0
    a = lax.stop_gradient(inputs.exclude(where, a, 0))
    return inputs.masked(where, -a * _bounded_ratio(d, a, low, high, dual))


def _bounded_ratio(d: Array, a: Array, low: Array, high: Array, dual: Array | None) -> Array:
    """`exp(d)`, or the bound that the sign of the advantage puts to it; half of both at a bound."""
    d *= one_or_nan(~jnp.isnan(a), d.dtype)
    ratio, gain = jnp.exp(lax.stop_gradient(d)), a > 0
    bound = jnp.where(gain, 1 + high, 1 - low)
    beyond = heaviside(jnp.where(gain, ratio - bound, bound - ratio))
    if dual is not None:
        bound = jnp.where(gain | (ratio < dual), bound, dual)
        beyond += jnp.where(gain, 0, heaviside(ratio - dual))
    # An advantage of zero does not ask how large the ratio is.
    held = (beyond == 1) | ((a == 0) & ~jnp.isnan(d))
    return jnp.where(held, bound, (1 - beyond) * jnp.exp(jnp.where(held, 0, d)) + beyond * bound)


@takes(log_probs="entries", old_log_probs="entries", advantages="entries")
def cispo_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    clip_low: ArrayLike | None = None,
    clip_high: ArrayLike = 0.2,
    where: ArrayLike | None = None,
) -> Array:
    r"""Policy gradient with clipped importance weights, of which no token is left out (CISPO).

    With the ratio rho = exp(log_probs - old_log_probs) and the advantage A:

        loss = -stop_gradient(clip(rho, 1 - clip_low, 1 + clip_high)) * A * log_probs

    Args:
        log_probs, old_log_probs, advantages, where: see `clipped_surrogate_loss`.
        clip_low, clip_high: how far the weight may be below and above 1, at least 0, or None for
            no bound below; one number, or a shape that broadcasts along the trailing axes. (TRL's
            `epsilon_high` is the bound itself, `1 + clip_high`.)

    Returns:
        The loss, of the shape of `log_probs`, in float32 (float64 for float64 `log_probs`).

    Raises:
        TypeError: `log_probs` are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or a setting is out of its range.

    The derivative by `log_probs` is `-clip(rho) * A`, of which that by `log_probs` is 0; by
    `old_log_probs`, advantages and settings there is none.

    References:
        MiniMax, MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, 2025,
        arXiv:2506.13585.

    >>> import jax, jax.numpy as jnp, jaxloss
    >>> new, old = jnp.log(jnp.array([0.5, 0.3, 0.1])), jnp.log(jnp.array([0.25, 0.25, 0.2]))
    >>> print(jax.grad(lambda x: jaxloss.cispo_loss(x, old, 1.0).sum())(new))
    [-1.2 -1.2 -0.5]
    """
    (x, old), where = inputs.entries(where, log_probs=log_probs, old_log_probs=old_log_probs)
    a = _advantages(advantages, x)
    high = checks.setting("clip_high", clip_high, "log_probs", x, checks.NONNEGATIVE)
    low = clip_low
    if low is not None:
        low = checks.setting("clip_low", low, "log_probs", x, checks.NONNEGATIVE)
    return _cispo(x, old, a, low, high, where)


@jit_when_eager
def _cispo(x, old, a, low, high, where):
    x, old = inputs.mask(where, x, old)
    ratio = jnp.exp(x - old)
    ratio = jnp.where(ratio > 1 + high, 1 + high, ratio)
    ratio = ratio if low is None else jnp.where(ratio < 1 - low, 1 - low, ratio)
    return inputs.masked(where, _weighed(ratio * inputs.exclude(where, a, 0), x))


@takes(log_probs="entries", advantages="entries")
def policy_gradient_loss(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Policy gradient (REINFORCE): `-advantages * log_probs`.

    Args:
        log_probs, advantages, where: see `clipped_surrogate_loss`.

    Returns:
        The loss, of the shape of `log_probs`, in float32 (float64 for float64 `log_probs`).

    Raises:
        TypeError: `log_probs` are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by `log_probs` is `-advantages`; that by the advantages is 0.

    References:
        Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
        Learning, 1992; Ahmadian et al., Back to Basics, 2024, arXiv:2402.14740.

    >>> import jax.numpy as jnp, jaxloss
    >>> log_probs = jnp.array([[-1.0, -0.5], [-2.0, -1.0]])
    >>> print(jaxloss.policy_gradient_loss(log_probs, jnp.array([1.0, -1.0])))
    [[ 1.   0.5]
     [-2.  -1. ]]
    """
    (x,), where = inputs.entries(where, log_probs=log_probs)
    return _policy_gradient(x, _advantages(advantages, x), where)


@jit_when_eager
def _policy_gradient(x, a, where):
    (x,) = inputs.mask(where, x)
    return inputs.masked(where, _weighed(inputs.exclude(where, a, 0), x))


def _weighed(weights: Array, log_probs: Array) -> Array:
    """Minus the product, without derivative by the weights, of which zero wins over -inf."""
    w = lax.stop_gradient(weights)
    return -w * defined(jnp.where((w == 0) & (log_probs == -jnp.inf), 0, log_probs))


@takes(log_probs="entries", reference="entries")
def kl_estimate(
    log_probs: ArrayLike,
    reference: ArrayLike,
    *,
    kind: Literal["k1", "k2", "k3"] = "k3",
    where: ArrayLike | None = None,
) -> Array:
    r"""Estimates, from tokens that a policy took, of its KL divergence from a reference.

    With d = reference - log_probs:

        k1: -d                  without bias, of either sign
        k2: d**2 / 2            with a small bias, never negative
        k3: exp(d) - 1 - d      without bias, never negative

    Args:
        log_probs: log-probabilities in nats of the tokens taken, any shape and floating dtype.
        reference: those by the reference, of the shape of `log_probs`, a scalar, or of the same
            rank with axes of size 1. It has a derivative.
        kind: "k1", "k2" or "k3", which is GRPO's.
        where: booleans shaped like `log_probs`; elsewhere the estimate is 0.

    Returns:
        The estimates in nats, of the shape of both together, in float32 (float64 for float64
        `log_probs`).

    Raises:
        TypeError: `log_probs` are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `kind` is none of these.

    k3 keeps all digits for every d, where `exp(d) - 1 - d` in float32 is 0 at 1e-4. Its derivative
    by `log_probs` is `-(exp(d) - 1)`. Of a k1 the mean of the derivatives is 0, of a k2 it is the
    divergence's derivative, of a k3 that of the reverse divergence.

    References:
        Schulman, Approximating KL Divergence, 2020; Shao et al., DeepSeekMath (GRPO), 2024,
        arXiv:2402.03300.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.kl_estimate(jnp.array([-1.0, -1.0]), jnp.array([-0.9999, -2.0])))
    [5.0e-09 3.7e-01]
    """
    if kind not in ("k1", "k2", "k3"):
        raise ValueError(f"kind must be 'k1', 'k2' or 'k3', got {kind!r}")
    (x, y), where = inputs.entries(where, log_probs=log_probs, reference=reference)
    return _kl_estimate(x, y, where, kind=kind)


@partial(jit_when_eager, static_argnames="kind")
def _kl_estimate(x, y, where, *, kind):
    x, y = inputs.mask(where, x, y)
    d = y - x
    estimate = {"k1": lambda: -defined(d), "k2": lambda: 0.5 * d * d, "k3": lambda: _k3(d)}
    return inputs.masked(where, estimate[kind]())


@jax.custom_jvp
def _k3(d: Array) -> Array:
    """`exp(d) - 1 - d`: from d**2 / 2 on, or, away from zero, a difference that loses nothing."""
    near = jnp.where(jnp.abs(d) < 1, d, 0)
    series = jnp.zeros_like(d)
    for c in reversed(_inverse_factorials(float(jnp.finfo(d.dtype).eps))):
        series = series * near + c
    far = jnp.where(d > largest(d.dtype), largest(d.dtype), d)
    return jnp.where(jnp.abs(d) < 1, near * near * series, expm1(d) - far)


def _inverse_factorials(least: float) -> list[float]:
    """From 1 / 2! to the last that counts beside it."""
    inverse = [0.5]
    while inverse[-1] > least / 8:
        inverse.append(inverse[-1] / (len(inverse) + 2))
    return inverse


@_k3.defjvp
def _k3_rule(primals, tangents):
    (d,), (dd,) = primals, tangents
    return _k3(d), expm1(d) * dd


@takes(values="entries", old_values="entries", returns="entries")
def clipped_value_loss(
    values: ArrayLike,
    old_values: ArrayLike,
    returns: ArrayLike,
    *,
    clip: ArrayLike = 0.2,
    where: ArrayLike | None = None,
) -> Array:
    r"""PPO's loss of a value function, which is not rewarded for a step beyond the clip.

    With v the value, o the old one and R the return:

        loss = max((v - R)**2, (clip(v, o - clip, o + clip) - R)**2) / 2

    Args:
        values: v, any shape and floating dtype.
        old_values, returns: o and R, of the shape of `values`, scalars, or of the same rank with
            axes of size 1. Both have derivatives: wrap what a model computes in
            `jax.lax.stop_gradient`.
        clip: how far a value may go, positive; one number, or a shape that broadcasts along the
            trailing axes.
        where: booleans shaped like `values`; elsewhere the loss is 0.

    Returns:
        The loss, of the shape of all together, in float32 (float64 for float64 values).

    Raises:
        TypeError: values are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `clip` is not positive.

    The derivative by v is `v - R`, 0 where the clipped error is the larger one. Where both are
    equal beyond the clip, and at the clip, it is the mean of both sides.

    References:
        Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation,
        2015, and OpenAI baselines, `ppo2`, which has the clip.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.clipped_value_loss(jnp.array([0.5, 2.0]), 1.0, 2.0))
    [1.125      0.32000]
    """
    (v, old, r), where = inputs.entries(
        where, values=values, old_values=old_values, returns=returns
    )
    clip = checks.setting("clip", clip, "values", v, checks.positive_range(v.dtype))
    return _clipped_value(v, old, r, clip, where)


@jit_when_eager
def _clipped_value(v, old, r, clip, where):
    v, old, r = inputs.mask(where, v, old, r)
    step = v - old
    plain, clipped = v - r, (old - r) + lax.stop_gradient(jnp.sign(step)) * clip
    # Beyond the clip its error is the larger one if, together, they are on the other side.
    stopped = heaviside(jnp.abs(step) - clip) * heaviside(-(plain + clipped) * jnp.sign(step))
    return inputs.masked(where, 0.5 * ((1 - stopped) * plain**2 + stopped * clipped**2))


def group_advantages(
    rewards: ArrayLike,
    *,
    axis: Axis = -1,
    normalize: bool = True,
    where: ArrayLike | None = None,
) -> Array:
    r"""Advantages of the responses to one prompt: how much better than their mean (GRPO).

    With m and s the mean and the population's standard deviation of a group:

        advantage = (reward - m) / s, or 0 where s is 0
        advantage = reward - m                              normalize=False (Dr. GRPO)

    Args:
        rewards: bool, integer or floating, groups along `axis`.
        axis: the axis of a group's responses; a tuple of them, or None for all.
        normalize: whether to divide by s.
        where: booleans of the shape of `rewards`, or of the same rank with axes of size 1: which
            responses there are. Others have an advantage of 0.

    Returns:
        The advantages, of the shape of `rewards`, in float32 (float64 for float64 rewards),
        without derivative. Those of equal rewards are exactly 0.

    Raises:
        TypeError: `where` is not boolean. ValueError: shapes do not match, or `axis` is not one
        of the rewards.

    TRL divides by the sample's standard deviation plus 1e-4, as others with other constants; here
    nothing is added, so that a scale of the rewards makes no difference.

    References:
        Shao et al., DeepSeekMath, 2024, arXiv:2402.03300; without normalisation: Liu et al.,
        Understanding R1-Zero-Like Training, 2025, arXiv:2503.20783.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.group_advantages(jnp.array([[1, 0, 0, 1], [1, 1, 1, 1]])))
    [[ 1. -1. -1.  1.]
     [ 0.  0.  0.  0.]]
    """
    rewards = jnp.asarray(rewards)
    floating = jnp.issubdtype(rewards.dtype, jnp.floating)
    dtype = compute_dtype(rewards.dtype) if floating else jnp.float32
    r = checks.numeric("rewards", rewards, dtype)
    where = inputs.mask_of(where, "rewards", r.shape)
    return _group_advantages(r, where, axis=checks.axes(axis, r.ndim), normalize=normalize)


@partial(jit_when_eager, static_argnames=("axis", "normalize"))
def _group_advantages(r, where, *, axis, normalize):
    r = lax.stop_gradient(r)

    def mean(x):
        live = jnp.ones_like(x) if where is None else where.astype(x.dtype)
        return per_size(jnp.sum(x, axis, keepdims=True), jnp.sum(live, axis, keepdims=True))

    # What is left of equal ones is exactly zero.
    least = jnp.min(inputs.exclude(where, r, jnp.inf), axis, keepdims=True, initial=jnp.inf)
    a = inputs.exclude(where, r - jnp.where(least == jnp.inf, 0, least), 0)
    a = inputs.exclude(where, a - mean(a), 0)
    if normalize:
        a = _over(a, jnp.max(jnp.abs(a), axis, keepdims=True, initial=0))  # So no square is lost.
        a = _over(a, jnp.sqrt(mean(a * a)))
    return a


def _over(x: Array, size: Array) -> Array:
    return x / jnp.where(size == 0, 1, size)


def _advantages(advantages, log_probs, level="token"):
    """Checked and converted, of the shape of the losses."""
    a = checks.numeric("advantages", advantages, log_probs.dtype)
    tokens = log_probs.shape
    if level == "sequence" and not tokens:
        raise ValueError("log_probs of shape () have no axis of tokens, [..., T]")
    if level == "sequence" or (0 < a.ndim == len(tokens) - 1):
        checks.fits("advantages", a, "sequences", tokens[:-1])
        a = jnp.broadcast_to(a, tokens[:-1])
        return a if level == "sequence" else jnp.broadcast_to(a[..., None], tokens)
    checks.fits("advantages", a, "log_probs", tokens)
    return jnp.broadcast_to(a, tokens)
