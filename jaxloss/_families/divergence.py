"""Divergences of a predicted distribution from a target one, over the classes of a row."""

import operator
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.checks import Axis
from jaxloss._core.nll import soft_nll
from jaxloss._core.numerics import (
    clip_to_finite,
    defined,
    largest,
    nonnegative,
    times,
    xlogy,
    zero_or_nan,
)
from jaxloss._core.rows import softmax
from jaxloss._core.rules import jit_when_eager, shortcut, with_fast_gradient
from jaxloss._core.split import ClassAxis, total


def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence of predictions from targets, `KL(targets || predictions)`.

    With l the log-probabilities predicted and t the targets of one row, and `0 * inf = 0`:

        loss = sum_j t_j * (log(t_j) - l_j)

    Args:
        log_predictions: logarithms of probabilities, floating, classes along `axis`. They are
            not normalised: where a model has logits, use `softmax_cross_entropy`, which has
            the same derivative by them, or `jax.nn.log_softmax`.
        targets: probabilities, of the shape of `log_predictions` or of the same rank with
            axes of size 1.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `log_predictions` to leave terms out, or without the
            class axes to exclude rows.

    Returns:
        The divergence in nats, of the shape of `log_predictions` without `axis`, in float32
        (float64 for float64 predictions); inf where a class of probability 0 has a target;
        NaN for a negative target.

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `axis` is not one of the predictions.

    The derivative by l is `-t`, by t `log(t) + 1 - l`; where that is infinite, at t = 0, a huge
    number stands for it.

    References:
        Kullback and Leibler, On Information and Sufficiency, 1951.

    >>> import jax.numpy as jnp, jaxloss
    >>> log_p = jnp.log(jnp.array([0.25, 0.75, 0.0]))
    >>> print(jaxloss.kl_divergence(log_p, jnp.array([0.5, 0.5, 0.0])))
    0.143841
    """
    log_p, t, axis, live = _pair(log_predictions, "targets", targets, axis, where)
    return _kl(log_p, t, live, axis=axis)


@partial(jit_when_eager, static_argnames=("axis", "measures"))
def _kl(log_p, t, live, *, axis, measures=False):
    def exact(log_p, t):
        positive = nonnegative(t)
        terms = xlogy(positive, positive) - times(positive, defined(log_p))
        return total(terms + (jnp.exp(log_p) - t) if measures else terms, axis)

    def fast(log_p, t):
        loss = _cross(log_p, t, lambda t: (t, jnp.log(t + float(jnp.finfo(t.dtype).tiny))), axis)
        loud = _loud(loss, log_p, t, lambda log_p, t: zero_or_nan(log_p) - 0 * jnp.sqrt(t))
        if measures:
            loss += total(jnp.exp(log_p) - t, axis)
            return loss, (loud - t) + _exp_again(log_p)
        return loss, loud - t

    # What is no class is no term; a measure has none of it either.
    log_p = inputs.exclude(live, log_p, -jnp.inf if measures else 0)
    t = inputs.exclude(live, t, 0)
    return jnp.squeeze(with_fast_gradient(exact, fast, axis)(log_p, t), axis)


def _cross(log_p, targets, parts, axis):
    """`sum(t * (log_t - log_p))`, for the `t, log_t = parts(targets)`; `log_p` may be -inf."""

    def plain(log_p, targets):
        t, log_t = parts(targets)
        return total(t * (log_t - log_p), axis)

    def full(log_p, targets):
        t, log_t = parts(targets)
        # A power of two takes an infinity to a finite number and back: times zero, it is zero.
        eps, least = float(jnp.finfo(t.dtype).eps), -largest(t.dtype)
        behind = (log_t * eps) - jnp.maximum(log_p * eps, least)
        return total(t * behind + zero_or_nan(log_p), axis) / eps

    loss = plain(log_p, targets)
    return shortcut(jnp.all(jnp.isfinite(loss)), lambda *_: loss, full, log_p, targets)


def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""`kl_divergence` of targets that are given by their logarithms.

    With l the log-probabilities predicted and m those of the targets:

        loss = sum_j exp(m_j) * (m_j - l_j)

    Args:
        log_predictions, axis, where: see `kl_divergence`.
        log_targets: logarithms of probabilities, -inf for 0, shaped like targets there.

    Returns and raises: see `kl_divergence`.

    The derivative by m is `exp(m) * (m - l + 1)`, 0 at -inf.

    References:
        Kullback and Leibler, On Information and Sufficiency, 1951.

    >>> import jax.numpy as jnp, jaxloss
    >>> log_p, log_t = jnp.log(jnp.array([0.25, 0.75, 0.0])), jnp.log(jnp.array([0.5, 0.5, 0.0]))
    >>> print(jaxloss.kl_divergence_with_log_targets(log_p, log_t))
    0.143841
    """
    log_p, log_t, axis, live = _pair(log_predictions, "log_targets", log_targets, axis, where)
    return _kl_of_logs(log_p, log_t, live, axis=axis)


def _loud(loss, log_p, targets, of_entries):
    """Zeros, to add to a gradient: NaN where that has to be.

    On accelerators one look at all inputs gives value and gradient, by `of_entries`; on a CPU
    the loss of the row, which is NaN if any entry is, saves that a look.
    """

    def of_row(loss, log_p, _):
        return jnp.broadcast_to(jnp.where(jnp.isnan(loss), loss, 0), log_p.shape)

    def default(_, *entries):
        return of_entries(*entries)

    return lax.platform_dependent(loss, log_p, targets, cpu=of_row, default=default)


def _exp_again(x):
    """`exp(x)`, not shared with that of the value: XLA's CPU backend would write it out."""
    return jnp.exp(jnp.minimum(x, 1000))


@partial(jit_when_eager, static_argnames="axis")
def _kl_of_logs(log_p, log_t, live, *, axis):
    def exact(log_p, log_t):
        t = jnp.exp(log_t)
        return total(times(t, log_t) - times(t, defined(log_p)), axis)

    def fast(log_p, log_t):
        # The exponential of -1000 is zero, and so is the term.
        loss = _cross(log_p, log_t, lambda m: (jnp.exp(m), jnp.maximum(m, -1000)), axis)
        loud = _loud(loss, log_p, log_t, lambda log_p, _: zero_or_nan(log_p))
        return loss, loud - _exp_again(log_t)

    log_p, log_t = inputs.exclude(live, log_p, 0), inputs.exclude(live, log_t, -jnp.inf)
    return jnp.squeeze(with_fast_gradient(exact, fast, axis)(log_p, log_t), axis)


def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Kullback-Leibler divergence of measures, which need not sum to one.

        loss = sum_j t_j * (log(t_j) - l_j) + exp(l_j) - t_j

    Args, returns, raises: see `kl_divergence`, of non-negative numbers for probabilities.

    It is never negative, 0 only where both are equal, and the Bregman divergence of
    `t log t - t`. The derivative by l is `exp(l) - t`.

    References:
        Bregman, The Relaxation Method of Finding the Common Point of Convex Sets, 1967; Boyd
        and Vandenberghe, Convex Optimization, 2004, p. 90.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.generalized_kl_divergence(jnp.log(jnp.array([2.0, 1.0])), jnp.ones(2)))
    0.306853
    """
    log_p, t, axis, live = _pair(log_predictions, "targets", targets, axis, where)
    return _kl(log_p, t, live, axis=axis, measures=True)


def convex_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""`generalized_kl_divergence`, under the name that optax gave it first.

    Args, returns, raises: see `generalized_kl_divergence`.

    References:
        optax, `convex_kl_divergence`.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.convex_kl_divergence(jnp.log(jnp.array([2.0, 1.0])), jnp.ones(2)))
    0.306853
    """
    return generalized_kl_divergence(log_predictions, targets, axis, where)


def js_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Jensen-Shannon divergence: how far predictions and targets are from their mean.

    With p the probabilities predicted, t the targets and m = (p + t) / 2:

        loss = sum_j (t_j * log(t_j / m_j) + p_j * log(p_j / m_j)) / 2

    Args, raises: see `kl_divergence`.

    Returns:
        The divergence in nats, at most log 2 for distributions, of the shape of
        `log_predictions` without `axis`, in float32 (float64 for float64 predictions); NaN for
        a negative target.

    Symmetric in p and t, and finite where either is 0. Where they are close it is computed
    from their difference, of which it is the square, so it keeps its digits. The derivative by
    l is `p * log(p / m) / 2`, by t `log(t / m) / 2`, a huge number for an infinite one.

    References:
        Lin, Divergence Measures Based on the Shannon Entropy, 1991.

    >>> import jax.numpy as jnp, jaxloss
    >>> log_p = jnp.log(jnp.array([0.0, 1.0]))
    >>> print(jaxloss.js_divergence(log_p, jnp.array([1.0, 0.0])))
    0.693147
    """
    log_p, t, axis, live = _pair(log_predictions, "targets", targets, axis, where)
    return _js(log_p, t, live, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _js(log_p, t, live, *, axis):
    p = jnp.exp(inputs.exclude(live, log_p, -jnp.inf))
    return js_of_probabilities(p, nonnegative(inputs.exclude(live, t, 0)), axis)


def js_of_probabilities(p: Array, t: Array, axis: ClassAxis) -> Array:
    return jnp.squeeze(total(_js_term(p, t), axis), operator.index(axis))


@jax.custom_jvp
def _js_term(p: Array, t: Array) -> Array:
    # With u = (t - p) / (t + p) it is (t + p) / 4 of
    #   (1 + u) log(1 + u) + (1 - u) log(1 - u) = 2 u atanh(u) + log1p(-u**2).
    total = jnp.where(p + t == 0, 1, p + t)
    u = (t - p) / total
    close = jnp.abs(u) < 0.5
    u = jnp.where(close, u, 0)
    near = total / 4 * (2 * u * jnp.arctanh(u) + jnp.log1p(-u * u))
    far = 0.5 * (times(p, _log_share(p, t)) + times(t, _log_share(t, p)))
    return jnp.where(close, near, far)


@_js_term.defjvp
def _js_term_rule(primals, tangents):
    (p, t), (dp, dt) = primals, tangents
    slope = (
        clip_to_finite(0.5 * _log_share(p, t)) * dp + clip_to_finite(0.5 * _log_share(t, p)) * dt
    )
    return _js_term(p, t), slope


@jax.custom_jvp
def _log_share(a: Array, b: Array) -> Array:
    """`log(a / ((a + b) / 2))`; 0 where both are 0."""
    total = jnp.where(a + b == 0, 1, a + b)
    u = (a - b) / total
    close = jnp.abs(u) < 0.5
    far = jnp.log(jnp.where(a + b == 0, 1, 2 * a / total))
    return jnp.where(close, jnp.log1p(jnp.where(close, u, 0)), far)


@_log_share.defjvp
def _log_share_rule(primals, tangents):
    # (b da / a - db) / (a + b), with no term in da where a is 0: what is infinite there is
    # multiplied by zero.
    (a, b), (da, db) = primals, tangents
    total = jnp.where(a + b == 0, 1, a + b)
    by_a = jnp.where(a == 0, 0, b / jnp.where(a == 0, 1, a)) * da
    return _log_share(a, b), (by_a - db) / total


def distillation_loss(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Divergence of a student's softmax from a teacher's, both softened by a temperature.

    With x and y the logits of student and teacher, and T the temperature:

        loss = T**2 * KL(softmax(y / T) || softmax(x / T))

    The factor keeps the size of the gradient, `T * (softmax(x / T) - softmax(y / T))`,
    comparable to that of a cross-entropy added to it.

    Args:
        logits: of the student, floating, classes along `axis`. A logit of -inf excludes its
            class.
        teacher_logits: of the teacher, of the shape of `logits` or of the same rank with axes
            of size 1; wrap them in `jax.lax.stop_gradient` if the teacher is frozen.
        temperature: positive; a large one makes both distributions flat.
        axis: the class axis; a tuple of them, or None for all.
        where: booleans, shaped like `logits` to exclude classes, or without the class axes to
            exclude rows.

    Returns:
        The loss in nats, of the shape of `logits` without `axis`, in float32 (float64 for
        float64 logits); 0 where `where` leaves no class, inf where the student excludes a
        class and the teacher does not.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, `temperature` is not positive, or `axis` is not one
            of the logits.

    References:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.

    >>> import jax.numpy as jnp, jaxloss
    >>> student, teacher = jnp.array([1.0, 0.0, 0.0]), jnp.array([3.0, 1.0, 0.0])
    >>> print(jaxloss.distillation_loss(student, teacher, temperature=2.0))
    0.296607
    """
    x, y, axis, live = inputs.dense("logits", logits, "teacher_logits", teacher_logits, axis, where)
    temperature = checks.positive("temperature", temperature, x.dtype)
    return distillation(x, y, live, temperature, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def distillation(x, y, live, temperature, *, axis):
    x, y = (inputs.exclude(live, a, -jnp.inf) / temperature for a in (x, y))
    teacher = softmax(y, axis).p
    loss = jnp.squeeze(soft_nll(x, teacher, axis) - soft_nll(y, teacher, axis), axis)
    return inputs.live_rows(live, temperature**2 * loss, axis)


def _pair(log_predictions, name, targets, axis, where):
    return inputs.dense("log_predictions", log_predictions, name, targets, axis, where)
