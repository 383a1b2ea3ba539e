"""Fenchel-Young losses: sparsemax and entmax, whose predictions may be zero, and any other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.checks import Axis
from jaxloss._core.declare import takes
from jaxloss._core.logs import curvature, log1p_per, terms
from jaxloss._core.nll import is_label, other_class
from jaxloss._core.numerics import clip_to_finite, nan_unless, one_or_nan, times
from jaxloss._core.rows import centred, gap_below
from jaxloss._core.rules import jit_when_eager, tangent_sum, with_fast_gradient
from jaxloss._core.split import of_label, sums, total


@takes(logits=("entries", "logits"), labels=("entries", "bit"))
def sparsemax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Binary sparsemax loss: a hinge with a parabola for its corner.

    With z the label, `f(x) = 0` below -1, `(x + 1)**2 / 4` up to 1 and x beyond:

        loss = (1 - z) * f(x) + z * f(-x)

    Args:
        logits: scores x, any shape and floating dtype.
        labels: z, 0 or 1 (or between): bool, integer or floating, of the shape of `logits`, a
            scalar, or of the same rank with axes of size 1.
        where: booleans shaped like `logits`; elsewhere the loss is 0.

    Returns:
        The loss, of the shape of both together, in float32 (float64 for float64 logits).

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by x is `clip((x + 1) / 2, 0, 1) - z`.

    References:
        Blondel et al., Learning with Fenchel-Young Losses, 2020, section 4.4.

    >>> import jax, jaxloss
    >>> print(jaxloss.sparsemax_loss(jax.numpy.array([0.0, 3.0]), 1))
    [0.25 0.  ]
    """
    x, z, where = inputs.elementwise("logits", logits, "labels", labels, where)
    return _binary_sparsemax(x, z, where)


@jit_when_eager
def _binary_sparsemax(x, z, where):
    x, z = inputs.mask(where, x, z)
    return inputs.masked(where, _sparse_nll(x, z))


# f(x) = max(x, 0) + max(1 - |x|, 0)**2 / 4, and f(x) - f(-x) = x.


@jax.custom_jvp
def _sparse_nll(x: Array, z: Array) -> Array:
    size, weight = jnp.abs(x), jnp.where(x > 0, 1 - z, z)
    corner = jnp.where(size > 1, 0, 1 - size) ** 2 / 4
    return jnp.where(weight == 0, corner, corner + weight * size)


@partial(_sparse_nll.defjvp, symbolic_zeros=True)
def _sparse_nll_rule(primals, tangents):
    (x, z), (dx, dz) = primals, tangents
    out = _sparse_nll(x, z)
    return out, tangent_sum(
        out, (dx, lambda: _sparse_slope(x, z) * dx), (dz, lambda: -clip_to_finite(x) * dz)
    )


@jax.custom_jvp
def _sparse_slope(x: Array, z: Array) -> Array:
    between = 0.5 * (x + (1 - 2 * z))
    return jnp.where(x < -1, -z, jnp.where(x > 1, 1 - z, between))


@_sparse_slope.defjvp
def _sparse_slope_rule(primals, tangents):
    (x, z), (dx, dz) = primals, tangents
    return _sparse_slope(x, z), 0.25 * (jnp.sign(x + 1) - jnp.sign(x - 1)) * dx - dz


@takes(scores=("row", "logits"), labels="labels")
def multiclass_sparsemax_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""Multi-class sparsemax loss, whose gradient is `sparsemax(scores) - one_hot(label)`.

    With p the projection of the scores s of one row onto the simplex, p = max(s - tau, 0),
    k its label and y the one-hot of it:

        loss = sum_j (y_j - p_j)**2 / 2 + max(tau - s_k, 0)

    which is the Fenchel-Young loss `p.(s - y) + (1 - |p|**2) / 2` without its cancellation.

    Args, returns, raises: see `multiclass_hinge_loss`.

    It is 0 once s_k leads by 1. The derivative is continuous; its own derivative at the edge of
    the support is that of the inside.

    References:
        Martins and Astudillo, From Softmax to Sparsemax, 2016, arXiv:1602.02068.

    >>> import jax, jaxloss
    >>> print(jaxloss.multiclass_sparsemax_loss(jax.numpy.array([1.0, 0.5, -3.0]), 0))
    0.0625
    """
    s, labels, axis, live = inputs.labelled("scores", scores, labels, axis, where)
    return _multiclass_sparsemax(s, labels, live, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _multiclass_sparsemax(s, labels, live, *, axis):
    s = inputs.live_classes(live, s, axis, -jnp.inf, 0)
    exact, both = (
        partial(_sparsemax_nll, axis=axis),
        partial(_sparsemax_nll_and_gradient, axis=axis),
    )
    loss = with_fast_gradient(exact, both, axis)(s, labels)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


# With a the scores less the largest, plus one, and the threshold t:
#   p = max(a - t, 0)    loss = sum_j p_j (a_j - p_j / 2) + 1/2 - a_k
# without cancellation, by the classes other than the label k:
#   loss = (sum p_j**2 + (sum p_j)**2) / 2 + max(t - a_k, 0)
# The gradient is p, and at the label minus the sum of the others.


def _sparsemax_nll(s, labels, *, axis):
    a = s - lax.stop_gradient(jnp.max(s, axis, keepdims=True)) + 1
    p = _sparsemax(s, axis)
    valid = (labels >= 0) & (labels < s.shape[axis])
    loss = total(times(p, a) - p * p / 2, axis) + 0.5 - of_label(a, labels, axis)
    return loss * one_or_nan(valid, s.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sparsemax(s: Array, axis: int) -> Array:
    """The projection of the scores onto the simplex."""
    top = jnp.max(s, axis, keepdims=True)
    return jnp.maximum((s - top) + 1 - _threshold(s, top, axis), 0)


@_sparsemax.defjvp
def _sparsemax_rule(axis, primals, tangents):
    (s,), (v,) = primals, tangents
    p = _sparsemax(s, axis)
    inside = lax.stop_gradient((p > 0).astype(s.dtype))
    return p, inside * (v - total(inside * v, axis) / total(inside, axis))


def _sparsemax_nll_and_gradient(s, labels, *, axis):
    top = jnp.max(s, axis, keepdims=True)
    threshold = _threshold(s, top, axis)

    def terms(s, labels, top, threshold):
        p = jnp.maximum((s - top) + 1 - threshold, 0) * other_class(labels, s, axis)
        return p, p * p

    others, squares = sums(terms, axis, s, labels, top, threshold)
    # The largest score is in the support, so it exceeds t by its probability.
    behind = (top - of_label(s, labels, axis)) - (1 - threshold)
    loss = 0.5 * (squares + others * others) + jnp.maximum(behind, 0)
    # Last of all: a maximum may drop a NaN.
    sound = (labels >= 0) & (labels < s.shape[axis]) & ~jnp.isnan(threshold)
    loss, threshold, others = (nan_unless(sound, row) for row in (loss, threshold, others))
    top, threshold, others = lax.optimization_barrier((top, threshold, others))
    a = (s - top) + 1
    p = jnp.where(a > threshold, a - threshold, 0 * threshold)
    return loss, jnp.where(is_label(labels, s, axis), -others, p)


def _threshold(s: Array, top: Array, axis: int) -> Array:
    """What scores, of which the largest is made one, are projected onto the simplex by.

    It is the sum of those inside the support, but one of the largest, by their number: small
    numbers stay exact. Newton's method from below finds the support: each step divides what
    the sum exceeds one by, times the number, by four at least, so that some twenty are enough.
    """

    def ties(s, top):
        return (1 - passes.step(top - s) + passes.nan_of(s),)

    def of_support(s, top, threshold):
        a = (s - top) + 1
        inside = passes.step(jnp.maximum(a - threshold, 0))
        return inside, inside * passes.step(top - s) * jnp.maximum(a, 0)

    def step(state):
        threshold, size, _ = state
        new, others = sums(of_support, axis, s, top, threshold)
        return (others + (tops - 1)) / new, new, size

    def shrinking(state):
        _, size, before = state
        return jnp.any(size < before)

    (tops,) = sums(ties, axis, s, top)
    before = jnp.full_like(tops, jnp.inf)
    start = jnp.zeros_like(tops), jnp.full_like(tops, s.shape[axis] + 1), before
    return lax.while_loop(shrinking, step, start)[0]


@takes(logits=("row", "logits"), labels="labels")
def entmax15_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""The loss of 1.5-entmax, a softmax that is exactly zero for classes far behind.

    `entmax_loss` with an alpha of 1.5, in fewer operations:

        loss = p.x - x_k + H(p)        p_j = max(x_j / 2 - tau, 0)**2

    Args, returns, raises: see `entmax_loss`.

    References:
        Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models, 2019, arXiv:1905.05702.

    >>> import jax, jaxloss
    >>> print(jaxloss.entmax15_loss(jax.numpy.array([2.0, 1.0, -3.0]), 0))
    0.06165588
    """
    x, labels, axis, live = inputs.labelled("logits", logits, labels, axis, where)
    return _entmax(x, labels, None, live, axis=axis)


@takes(logits=("row", "logits"), labels="labels")
def entmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 1.5,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> Array:
    r"""The loss of alpha-entmax, between softmax and sparsemax, of integer labels.

    With the probabilities p that maximise `p.x + H(p)`, the x being the logits of a row, k its
    label, and H Tsallis' entropy `sum_j (p_j - p_j**alpha) / (alpha * (alpha - 1))`:

        loss = p.x - x_k + H(p)        p_j = max((alpha - 1) * x_j - tau, 0)**(1 / (alpha - 1))

    Args:
        logits: scores of the classes, floating; -inf excludes a class.
        labels: integer classes in [0, C), shaped like `logits` without the class axis (axes of
            size 1 repeat).
        alpha: a number in [1, 2], which may be learned: 1 is
            `softmax_cross_entropy_with_integer_labels`, 2 `multiclass_sparsemax_loss`.
        axis: the class axis, several that together number the classes, or None for all of them.
        where: booleans that fit `logits`, or its rows. Other classes do not exist; a row without
            any has loss 0.

    Returns:
        The loss of each row, in float32 (float64 for float64 logits); NaN for a label out of range.

    Raises:
        TypeError: logits are not floating point, labels not integers, or `where` not boolean.
        ValueError: shapes do not match, or `alpha` is outside [1, 2].

    The gradient is `p - one_hot(label)`, and it and the loss are exactly 0 once x_k leads by
    1 / (alpha - 1). The derivative by alpha is that of the entropy. Small losses keep their digits.

    References:
        Peters, Niculae and Martins, Sparse Sequence-to-Sequence Models, 2019, arXiv:1905.05702;
        a learned alpha: Correia, Niculae and Martins, 2019, arXiv:1909.00015.

    >>> import jax, jaxloss
    >>> print(jaxloss.entmax_loss(jax.numpy.array([2.0, 1.0, -3.0]), 0, alpha=1.25))
    0.152222
    """
    x, labels, axis, live = inputs.labelled("logits", logits, labels, axis, where)
    alpha = checks.scalar("alpha", alpha, x.dtype, checks.Range(1.0, 2.0))
    return _entmax(x, labels, alpha - 1, live, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _entmax(x, labels, e, live, *, axis):
    x = inputs.live_classes(live, x, axis, -jnp.inf, 0)
    exact, both = partial(_entmax_nll, axis=axis), partial(_entmax_nll_and_gradient, axis=axis)
    loss = with_fast_gradient(exact, both, axis)(x, labels, e)
    return inputs.live_rows(live, jnp.squeeze(loss, axis), axis)


# With e = alpha - 1 and d_j >= 0 by how much a logit is below the normaliser, which is the largest
# logit and a bit more:
#   p_j = (1 - e * d_j)**(1 / e)    loss = sum over j != k of p_j**alpha / alpha + f(d_k)
# where f(d_k), the integral of q**(alpha - 2) * (1 - q) over q from p_k to 1, is
#   d_k - (1 - p_k**alpha) / alpha
# also outside of the support. An e of None is 1/2.


def _entmax_nll_and_gradient(x, labels, e, *, axis):
    d = _below(x, e, axis)
    p = _power(d, e, 0)
    label = is_label(labels, x, axis)
    others = total(jnp.where(label, 0, p), axis)
    rest = total(jnp.where(label, 0, p * _base(d, e)), axis) / _alpha(e)
    own = of_label(d, labels, axis)
    valid = (labels >= 0) & (labels < x.shape[axis]) & ~jnp.isnan(own)
    loss = nan_unless(valid, _of_label_alone(own, e) + rest)
    return loss, jnp.where(label, -others, p) * one_or_nan(valid, x.dtype)


def _entmax_nll(x, labels, e, *, axis):
    @jax.custom_jvp
    def loss(x, e):
        return _entmax_nll_and_gradient(x, labels, e, axis=axis)[0]

    @partial(loss.defjvp, symbolic_zeros=True)
    def _rule(primals, tangents):
        (x, e), (v, de) = primals, tangents
        out, gradient = _entmax_nll_and_gradient(x, labels, e, axis=axis)
        return out, tangent_sum(
            out,
            (v, lambda: total(gradient * v, axis)),
            (de, lambda: _by_alpha(x, labels, e, axis) * de),
        )

    return loss(x, e)


def _by_alpha(x, labels, e, axis):
    """Of the entropy, at the same probabilities; terms of one sign."""
    d, alpha = _below(x, e, axis), 1 + e
    inside = _base(d, e) > 0
    d = jnp.where(inside, d, 0)
    terms = d / alpha + _base(d, e) * d * d * curvature(-e * d)
    of_all = total(jnp.where(inside, _power(d, e, 0) * terms, 0), axis)
    valid = (labels >= 0) & (labels < x.shape[axis])
    return -of_all / alpha * one_or_nan(valid, x.dtype)


def _alpha(e: Array | None) -> Array | float:
    return 1.5 if e is None else 1 + e


def _base(d: Array, e: Array | None) -> Array:
    """`p**(alpha - 1)`, 0 outside of the support."""
    if e is None:
        return jnp.where(d >= 2, 0, 1 - 0.5 * d)
    return jnp.where(d == jnp.inf, 0, jnp.maximum(1 - e * d, 0) + 0 * d)


def _power(d: Array, e: Array | None, n: int) -> Array:
    """`(1 - e * d)**(1 / e - n)` in the support, else 0: the probability, where n is 0."""
    if e is None:
        base = _base(d, None)
        return base ** (2 - n) if n < 2 else jnp.where(base > 0, base ** (2 - n), 0)
    return _any_power(d, e, n)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _any_power(d: Array, e: Array, n: int) -> Array:
    inside = _base(d, e) > 0
    safe = jnp.where(inside | jnp.isnan(d), d, 0)
    power = jnp.exp(-log1p_per(-e, safe))
    if n:
        power /= _base(safe, e) ** n
    return jnp.where(inside | jnp.isnan(d), power, 0)


@partial(_any_power.defjvp, symbolic_zeros=True)
def _any_power_rule(n, primals, tangents):
    # With c = (log(1 - e * d) + e * d / (1 - e * d)) / (e * d)**2 and q = power_(n + 1):
    #   d power_n = -(1 - n * e) * q * dd + (n * d * q - d**2 * c * power_n) * de
    (d, e), (dd, de) = primals, tangents
    out, more = _any_power(d, e, n), _any_power(d, e, n + 1)

    def by_e():
        inside = jnp.where(_base(d, e) > 0, d, 0)
        return n * inside * more - inside * inside * curvature(-e * inside) * out

    return out, tangent_sum(out, (dd, lambda: -(1 - n * e) * more * dd), (de, lambda: by_e() * de))


def _of_label_alone(d: Array, e: Array | None) -> Array:
    """f, of a label's d. Not differentiated."""
    if e is None:
        return jnp.where(d < 2, d * d * (0.5 - d / 12), d - 2 / 3)
    alpha, base = 1 + e, _base(d, e)
    length = log1p_per(-e, jnp.where(base > 0, d, 0))  # -log p
    near = (base > 0) & (length < 0.7)
    # Sum over n of (alpha**n - e**n) * (-length)**(n + 1) / (n + 1)!
    step = jnp.where(near, length, 0)
    series, difference, power, factor = jnp.zeros_like(d), 0 * e + 1, e, 0.5 * step * step
    for n in range(1, terms(d, 12)):
        series += difference * factor
        difference, power, factor = alpha * difference + power, power * e, -factor * step / (n + 2)
    return jnp.where(near, series, d - (1 - _power(d, e, 0) * base) / alpha)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _below(x: Array, e: Array | None, axis: int) -> Array:
    """d of all classes."""
    gap = gap_below(x, jnp.max(x, axis, keepdims=True))
    return gap + _excess(gap, e, axis)


@partial(_below.defjvp, symbolic_zeros=True)
def _below_rule(axis, primals, tangents):
    # The probabilities add up to one: with weights w = power_1,
    #   dd_j = sum(w * dx) / sum(w) - dx_j + sum(by e of p) / sum(w) * de
    (x, e), (v, de) = primals, tangents
    out = _below(x, e, axis)
    weight = _power(out, e, 1)
    whole = total(weight, axis)

    def by_e():
        inside = jnp.where(_base(out, e) > 0, out, 0)
        of_power = -inside * inside * curvature(-e * inside) * _power(out, e, 0)
        return total(of_power, axis) / whole + jnp.zeros_like(out)

    return out, tangent_sum(
        out, (v, lambda: -centred(weight / whole, v, axis)), (de, lambda: by_e() * de)
    )


def _excess(gap: Array, e: Array | None, axis: int) -> Array:
    """How much more than the largest logit the normaliser is, by Newton's method from below.

    The sum of the probabilities less one is convex and falls, so that no step leads too far. The
    largest logit's own is what it lacks of one: small excesses keep their digits.
    """
    is_top = gap == 0
    ties = total(is_top.astype(gap.dtype), axis)

    def step(state):
        excess, _, count = state
        rest = total(jnp.where(is_top, 0, _power(gap + excess, e, 0)), axis)
        beyond = rest + (ties - 1) * _power(excess, e, 0) - _lacking(excess, e)
        slope = total(jnp.where(is_top, 0, _power(gap + excess, e, 1)), axis)
        new = excess + beyond / (slope + ties * _power(excess, e, 1))
        return new, excess, count + 1

    def rising(state):
        new, old, count = state
        return (count < 64) & jnp.any(new > old)

    zero = jnp.zeros_like(ties)
    state = zero, zero - 1, jnp.zeros_like(ties, jnp.int32, shape=())
    return lax.while_loop(rising, step, state)[0]


def _lacking(d: Array, e: Array | None) -> Array:
    """`1 - p`, of a d inside of the support."""
    return d * (1 - 0.25 * d) if e is None else -jnp.expm1(-log1p_per(-e, d))


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., Array]:
    r"""The Fenchel-Young loss of a maximum function.

        loss = max_fun(scores) - sum_j targets_j * scores_j

    Args:
        max_fun: convex, of scores of shape [n] to a scalar: the maximum of `<p, scores>` less
            a regulariser of p. Its gradient is the prediction that belongs to the loss.

    Returns:
        `loss(scores, targets, *args, **kwargs)`, of scores and targets of shape [..., n] to
        losses of shape [...]; further arguments are passed on to `max_fun`.

    References:
        Blondel et al., Learning with Fenchel-Young Losses, 2020, arXiv:1901.02324.

    >>> import jax, jaxloss
    >>> loss = jaxloss.make_fenchel_young_loss(jax.nn.logsumexp)
    >>> print(loss(jax.numpy.array([1.0, 2.0, 3.0]), jax.numpy.array([0.0, 0.0, 1.0])))
    0.407606
    """

    def fenchel_young_loss(
        scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any
    ) -> Array:
        s = checks.predictions("scores", scores)
        t = checks.numeric("targets", targets, s.dtype)
        shape = checks.common_shape("scores", s, "targets", t)
        if not shape:
            raise ValueError("scores and targets are scalars; give an axis to take the maximum of")
        one = jnp.vectorize(lambda row: max_fun(row, *args, **kwargs), signature="(n)->()")
        s, t = jnp.broadcast_to(s, shape), jnp.broadcast_to(t, shape)
        return one(s) - jnp.sum(times(t, s), -1)

    return fenchel_young_loss
