"""Divergences of a predicted distribution from a target one, over the classes of a row."""

import operator
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.logs import bend
from jaxloss._core.numerics import (
    clip_to_finite,
    defined,
    largest,
    nan_unless,
    nonnegative,
    times,
    xlogy,
)
from jaxloss._core.rows import softmax
from jaxloss._core.rules import jit_when_eager, with_fast_gradient
from jaxloss._core.split import ClassAxis, largest_of, sums, total


@takes(log_predictions=("row", "log distribution"), targets=("row", "distribution"))
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


@partial(jit_when_eager, static_argnames="axis")
def _kl(log_p, t, live, *, axis):
    def fast(log_p, t):
        terms = t * (_scaled_log(t) - _scaled(log_p)) + passes.nan_of(log_p)
        loss = total(terms, axis) / _scale(t)
        return loss, passes.nan_of_row(loss, log_p, jnp.log(t)) - t

    log_p, t = inputs.exclude(live, log_p, 0), inputs.exclude(live, t, 0)
    exact = partial(_exact_kl, axis=axis)
    return jnp.squeeze(with_fast_gradient(exact, fast, axis)(log_p, t), axis)


def _exact_kl(log_p, t, axis):
    positive = nonnegative(t)
    return total(xlogy(positive, positive) - times(positive, defined(log_p)), axis)


# In a sum of t * (log t - log p), a log p of -inf has to be finite where t is zero, and infinite
# elsewhere. So what is summed up is scaled by a power of two: that takes an infinity to a finite
# number, and back where the sum is divided by it.


def _scale(x):
    return float(jnp.finfo(x.dtype).eps)


def _scaled(log_p):
    """`log_p`, scaled, a finite number for -inf."""
    return jnp.maximum(log_p * _scale(log_p), -largest(log_p.dtype))


def _scaled_log(t):
    """`log(t)`, scaled, a finite number for zero; NaN for a negative `t`."""
    return jnp.log(t + float(jnp.finfo(t.dtype).tiny)) * _scale(t)


@takes(log_predictions=("row", "log distribution"), log_targets=("row", "log distribution"))
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


@partial(jit_when_eager, static_argnames="axis")
def _kl_of_logs(log_p, log_t, live, *, axis):
    def exact(log_p, log_t):
        t = jnp.exp(log_t)
        return total(times(t, log_t) - times(t, defined(log_p)), axis)

    def terms(log_p, log_t):
        t = jnp.exp(log_t)
        return (t * (_scaled(log_t) - _scaled(log_p)) + passes.nan_of(log_p),)

    def fast(log_p, log_t):
        (scaled,) = sums(terms, axis, log_p, log_t)
        loss = scaled / _scale(log_p)
        return loss, passes.nan_of_row(loss, log_p, log_t) - jnp.exp(log_t)

    log_p, log_t = inputs.exclude(live, log_p, 0), inputs.exclude(live, log_t, -jnp.inf)
    return jnp.squeeze(with_fast_gradient(exact, fast, axis)(log_p, log_t), axis)


@takes(log_predictions=("row", "log distribution"), targets=("row", "distribution"))
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
    return _kl_of_measures(log_p, t, live, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _kl_of_measures(log_p, t, live, *, axis):
    def exact(log_p, t):
        return _exact_kl(log_p, t, axis) + total(jnp.exp(log_p) - t, axis)

    def terms(log_p, t):
        return (t * (_scaled_log(t) - _scaled(log_p)) + (jnp.exp(log_p) - t) * _scale(t),)

    def fast(log_p, t):
        (scaled,) = sums(terms, axis, log_p, t)
        loss = scaled / _scale(t)
        return loss, passes.nan_of_row(loss, jnp.log(t)) + (jnp.exp(log_p) - t)

    # A measure has nothing of what is no class.
    log_p, t = inputs.exclude(live, log_p, -jnp.inf), inputs.exclude(live, t, 0)
    return jnp.squeeze(with_fast_gradient(exact, fast, axis)(log_p, t), axis)


@takes(log_predictions=("row", "log distribution"), targets=("row", "distribution"))
def convex_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""`generalized_kl_divergence`, under the name that optax gave it first.

        loss = sum_j t_j * (log(t_j) - l_j) + exp(l_j) - t_j

    Args, returns, raises: see `generalized_kl_divergence`.

    References:
        optax, `convex_kl_divergence`.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.convex_kl_divergence(jnp.log(jnp.array([2.0, 1.0])), jnp.ones(2)))
    0.306853
    """
    return generalized_kl_divergence(log_predictions, targets, axis, where)


@takes(log_predictions=("row", "log distribution"), targets=("row", "distribution"))
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


# With u = |t - p| / (p + t), in [0, 1], the term of a class is
#   (t log(t / m) + p log(p / m)) / 2 = (min(p, t) log(1 - u**2) + |t - p| log(1 + u)) / 2
# where the right side subtracts half of what remains, and nothing larger, from it.


@partial(jit_when_eager, static_argnames="axis")
def _js(log_p, t, live, *, axis):
    def exact(log_p, t):
        return total(_js_term(jnp.exp(log_p), nonnegative(t)), axis)

    def terms(log_p, t):
        return (_twice_js(jnp.exp(log_p), t) - 0 * jnp.sqrt(t),)  # NaN for a negative target.

    def fast(log_p, t):
        (twice,) = sums(terms, axis, log_p, t)
        p = jnp.exp(log_p)
        loud = passes.nan_of_row(twice, jnp.sqrt(t))
        return twice / 2, loud + p / 2 * clip_to_finite(_log_share(p, t))

    log_p, t = inputs.exclude(live, log_p, -jnp.inf), inputs.exclude(live, t, 0)
    return jnp.squeeze(with_fast_gradient(exact, fast, axis)(log_p, t), axis)


def js_of_probabilities(p: Array, t: Array, axis: ClassAxis) -> Array:
    return jnp.squeeze(total(_js_term(p, t), axis), operator.index(axis))


@jax.custom_jvp
def _js_term(p: Array, t: Array) -> Array:
    return _twice_js(p, t) / 2


@_js_term.defjvp
def _js_term_rule(primals, tangents):
    # d/dp = log(p / m) / 2
    (p, t), (dp, dt) = primals, tangents
    by_p, by_t = (clip_to_finite(_log_share(*pair) / 2) for pair in ((p, t), (t, p)))
    return _js_term(p, t), by_p * dp + by_t * dt


def _twice_js(p, t):
    info = jnp.finfo(p.dtype)
    # Below one, so that a class which only one of both has is zero times a finite logarithm.
    u = (1 - float(info.eps)) * (jnp.abs(t - p) / (p + t + float(info.tiny)))
    return jnp.minimum(p, t) * jnp.log1p(-u * u) + jnp.abs(t - p) * jnp.log1p(u)


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


# Of probabilities a and b, with the mixture m = w a + (1 - w) b and r = a / m - 1,
#   a log(a / m) - a + m = a * (log(1 + r) - r / (1 + r))
# is never negative, and adds up to KL(a || m). Its derivative is
#   (log(a / m) - w r) da - (1 - w) r db - (a - b) r dw.


def skew_kl(a: Array, b: Array, w: Array, axis: ClassAxis) -> Array:
    """`KL(a || w * a + (1 - w) * b)` of probabilities, for w inside (0, 1)."""
    return jnp.squeeze(total(_skew_term(a, b, w), axis), operator.index(axis))


@jax.custom_jvp
def _skew_term(a: Array, b: Array, w: Array) -> Array:
    m, r = w * a + (1 - w) * b, _excess(a, b, w)
    far = r < -0.5
    return jnp.where(far, xlogy(a, a / _or_one(m)) - a + m, a * bend(jnp.where(far, 0, r)))


@_skew_term.defjvp
def _skew_term_rule(primals, tangents):
    (a, b, w), (da, db, dw) = primals, tangents
    r = _excess(a, b, w)
    by_a = clip_to_finite(_log_part(a, b, w)) - w * r
    return _skew_term(a, b, w), by_a * da - (1 - w) * r * db - (a - b) * r * dw


@jax.custom_jvp
def _log_part(a: Array, b: Array, w: Array) -> Array:
    """`log(a / m)`; 0 where both are 0."""
    m, r = w * a + (1 - w) * b, _excess(a, b, w)
    close = jnp.abs(r) < 0.5
    far = jnp.log(jnp.where(m == 0, 1, a / _or_one(m)))
    return jnp.where(close, jnp.log1p(jnp.where(close, r, 0)), far)


@_log_part.defjvp
def _log_part_rule(primals, tangents):
    # ((1 - w) (b da / a - db) - (a - b) dw) / m, with no term in da where a is 0: what is infinite
    # there is multiplied by zero.
    (a, b, w), (da, db, dw) = primals, tangents
    m = _or_one(w * a + (1 - w) * b)
    by_a = jnp.where(a == 0, 0, b / _or_one(a)) * da
    return _log_part(a, b, w), (1 - w) * ((by_a - db) / m) - (a - b) / m * dw


@jax.custom_jvp
def _excess(a: Array, b: Array, w: Array) -> Array:
    """`a / m - 1`; 0 where both are 0."""
    return (1 - w) * ((a - b) / _or_one(w * a + (1 - w) * b))


@_excess.defjvp
def _excess_rule(primals, tangents):
    # ((1 - w) (b da - a db) - a (a - b) dw) / m**2, where m**2 may be too small for a number.
    (a, b, w), (da, db, dw) = primals, tangents
    m = _or_one(w * a + (1 - w) * b)
    moved = (1 - w) * (b / m * da - a / m * db) / m
    return _excess(a, b, w), moved - (a / m) * ((a - b) / m) * dw


def _or_one(x: Array) -> Array:
    return jnp.where(x == 0, 1, x)


@takes(logits=("row", "logits"), teacher_logits=("row", "logits"))
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
    x, y = inputs.exclude(live, x, -jnp.inf), inputs.exclude(live, y, -jnp.inf)

    def exact(x, y, temperature):
        student, teacher = (softmax(_cooler(a, temperature), axis) for a in (x, y))
        return total(times(teacher.p, student.nll) - times(teacher.p, teacher.nll), axis)

    fast = partial(_distillation_and_gradient, axis=axis)
    loss = with_fast_gradient(exact, fast, axis)(x, y, temperature)
    return inputs.live_rows(live, temperature**2 * jnp.squeeze(loss, axis), axis)


def _cooler(x, temperature):
    """`x / temperature`, of which an infinite `x` does not depend on the temperature."""
    infinite = jnp.isinf(x)
    return jnp.where(infinite, x, jnp.where(infinite, 0, x) / temperature)


# With s and t the logits of student and teacher, less their largest one and over the temperature,
# d = t - s, and q the teacher's softmax,
#   KL = sum(q * d) + log(1 + r),    r = sum(q * (exp(-d) - 1))
# which keeps its digits where both agree, and where both are sure of the same class. With the
# exponentials e of t and f of s, the terms of r are those of (e + f) * tanh(-d / 2) / sum(e).
# The derivative is (p - q) / T; where both are largest, p - q is -sum(f - e) / sum(f) / sum(e).


def _distillation_and_gradient(x, y, temperature, *, axis):
    x_top, y_top, cold = largest_of(x, axis), largest_of(y, axis), 1 / temperature

    def exponentials(x, top, cold):
        return (jnp.exp(_exponent(x, top, cold)),)

    def differences(x, y, x_top, y_top, cold):
        s, t = _exponent(x, x_top, cold), _exponent(y, y_top, cold)
        e, f = jnp.exp(t), jnp.exp(s)
        # Of -1000 the exponential is zero.
        nearer = jnp.maximum(s, -1000) - jnp.maximum(t, -1000)
        return e * (_scaled(t) - _scaled(s)), (e + f) * jnp.tanh(nearer / 2)

    (f,), (e,) = sums(exponentials, axis, x, x_top, cold), sums(exponentials, axis, y, y_top, cold)
    behind, more = sums(differences, axis, x, y, x_top, y_top, cold)
    behind = jnp.where((x_top == jnp.inf) & (behind > 0), jnp.inf, behind / _scale(x))
    # Nothing of a teacher without a class. A NaN that a minimum drops makes a sum infinite.
    taught = nan_unless((f < jnp.inf) & (e < jnp.inf), (e > 0).astype(x.dtype))
    f, e = jnp.maximum(f, 1), jnp.maximum(e, 1)
    r = more / e
    log_ratio = jnp.where(jnp.abs(r) < 0.5, jnp.log1p(r), jnp.log(f / e))
    loss = taught * (behind / e + log_ratio)
    # Once a row, not once an element.
    x_top, y_top, of_f, of_e, at_both = lax.optimization_barrier(
        (x_top, y_top, *(taught * cold * a for a in (1 / f, 1 / e, -more / f / e)))
    )
    s, t = _exponent(x, x_top, cold), _exponent(y, y_top, cold)
    return loss, jnp.where((s == 0) & (t == 0), at_both, jnp.exp(s) * of_f - jnp.exp(t) * of_e)


def _exponent(x, top, cold):
    """`(x - top) * cold`, of finite numbers for infinite ones but for a logit of -inf."""
    big = largest(x.dtype)
    return (jnp.minimum(x, big) - jnp.clip(top, -big, big)) * cold


def _pair(log_predictions, name, targets, axis, where):
    return inputs.dense("log_predictions", log_predictions, name, targets, axis, where)
