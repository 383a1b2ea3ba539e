"""Continuous ranked probability scores: of a Gaussian forecast, and of an ensemble.

A score is the integral of the squared difference of two distribution functions, the forecast's and
the observation's step, in units of the targets. It is least, on average, for the true distribution.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.numerics import one_or_nan, ratio
from jaxloss._core.rules import jit_when_eager, tangent_sum


@takes(mean="entries", targets="entries", scale=("entries", "positive"))
def gaussian_crps(
    mean: ArrayLike,
    targets: ArrayLike,
    scale: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Continuous ranked probability score of a Gaussian forecast.

    With z = (t - mean) / scale, and phi the density of the standard normal distribution:

        loss = scale * (z * erf(z / sqrt(2)) + 2 * phi(z) - 1 / sqrt(pi))

    Args:
        mean: any shape and floating dtype.
        targets: t, of the shape of `mean`, a scalar, or of the same rank with axes of size 1.
        scale: the standard deviation, at least 0, shaped like `targets`. With 0 it is the absolute
            error.
        where: booleans shaped like `mean`; elsewhere the loss is 0.

    Returns:
        The loss in units of the targets, of the shape of both together, in float32 (float64 for
        float64 means); NaN for a negative scale.

    Raises:
        TypeError: `mean` is not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by the mean is `-erf(z / sqrt(2))`, between -1 and 1: an outlier counts as in an
    absolute error. By the scale it is `2 * phi(z) - 1 / sqrt(pi)`.

    References:
        Gneiting, Raftery, Westveld and Goldman, Calibrated Probabilistic Forecasting Using Ensemble
        Model Output Statistics and Minimum CRPS Estimation, 2005.

    >>> import jax, jaxloss
    >>> print(jaxloss.gaussian_crps(jax.numpy.array([0.0, 3.0]), 0, 1.0))
    [0.23369497 2.4365747 ]
    """
    m, t, where = inputs.elementwise("mean", mean, "targets", targets, where)
    scale = checks.setting("scale", scale, "mean", m)
    return _gaussian(m, t, scale, where)


@jit_when_eager
def _gaussian(m, t, scale, where):
    (scale,) = inputs.mask(where, jnp.broadcast_to(scale, m.shape))
    return inputs.masked(where, _gaussian_score(inputs.residual(m, t, where), scale))


@jax.custom_jvp
def _gaussian_score(e: Array, scale: Array) -> Array:
    return e * _erf_of(e, scale) + scale * _by_scale(e, scale)


@partial(_gaussian_score.defjvp, symbolic_zeros=True)
def _gaussian_score_rule(primals, tangents):
    (e, scale), (de, d_scale) = primals, tangents
    out = _gaussian_score(e, scale)
    return out, tangent_sum(
        out,
        (de, lambda: _erf_of(e, scale) * de),
        (d_scale, lambda: _by_scale(e, scale) * d_scale),
    )


def _erf_of(e: Array, scale: Array) -> Array:
    return lax.erf(ratio(e, scale) * math.sqrt(0.5))


def _by_scale(e: Array, scale: Array) -> Array:
    """`2 * phi(e / scale) - 1 / sqrt(pi)`."""
    z = ratio(e, scale)
    return math.sqrt(2 / math.pi) * jnp.exp(-0.5 * z * z) - math.sqrt(1 / math.pi)


@takes(members="row", targets="number")
def ensemble_crps(
    members: ArrayLike,
    targets: ArrayLike,
    *,
    fair: bool = True,
    where: ArrayLike | None = None,
) -> Array:
    r"""Continuous ranked probability score of an ensemble of forecasts.

    With M members x_i:

        loss = mean_i |x_i - t| - sum_ij |x_i - x_j| / (2 * M * (M - 1))     fair=True
        loss = mean_i |x_i - t| - sum_ij |x_i - x_j| / (2 * M**2)            fair=False

    computed from the sorted members, as a sum over the gaps between neighbours: with j members on
    the far side of a part of a gap from t, it has the weight `j * (j - 1) / (M * (M - 1))`, or
    `(j / M)**2`. So memory is that of the members, and nothing cancels.

    Args:
        members: forecasts, [..., M], any floating dtype.
        targets: t, [...], real numbers.
        fair: without the bias of a small ensemble; on average it is then the score of the
            distribution that the members are drawn from. False for that of the members themselves.
        where: booleans shaped like `targets`; elsewhere the loss is 0.

    Returns:
        One loss for each target, [...], in its units, in float32 (float64 for float64 members); NaN
        where a member, or the target, is. With one member it is the absolute error, fair or not.

    Raises:
        TypeError: members are not floating point, targets not real, or `where` is not boolean.
        ValueError: shapes do not match, or there are no members.

    The derivative by a member is a difference of counts: by `mean_i |x_i - t|` it is its side of
    the target, 0 on it, and by the other sum how many are below it, less how many are above.

    References:
        Ferro, Fair Scores for Ensemble Forecasts, 2014; Zamo and Naveau, Estimation of the
        Continuous Ranked Probability Score with Limited Information, 2018.

    >>> import jax, jaxloss
    >>> members = jax.numpy.array([1.0, 4.0, 2.0])
    >>> print(jaxloss.ensemble_crps(members, 3.0), jaxloss.ensemble_crps(members, 3.0, fair=False))
    0.33333334 0.6666667
    """
    x = checks.predictions("members", members)
    t = checks.numeric("targets", targets, x.dtype)
    if not x.ndim or t.shape != x.shape[:-1] or not x.shape[-1]:
        raise ValueError(
            f"members of shape {x.shape} and targets of shape {t.shape} do not match: expected "
            f"[..., M], of at least one member, and [...]"
        )
    return _ensemble(x, t, inputs.mask_of(where, "targets", t.shape), fair=fair)


@partial(jit_when_eager, static_argnames="fair")
@left_to_xla(-1)
def _ensemble(x, t, where, *, fair):
    (t,) = inputs.mask(where, t)
    (x,) = inputs.mask(None if where is None else where[..., None], x)
    sound = ~(jnp.any(jnp.isnan(x), -1) | jnp.isnan(t))
    loss = _ensemble_score(x, t, fair) * one_or_nan(sound, x.dtype)
    return inputs.masked(where, loss)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _ensemble_score(x: Array, t: Array, fair: bool) -> Array:
    m, s = x.shape[-1], jnp.sort(x, -1)
    t, low, high = t[..., None], s[..., :-1], s[..., 1:]
    # Of each gap, with so many members below it, what is below the target, and what is above.
    count = jnp.arange(1, m, dtype=x.dtype)
    below = jnp.where(high < t, high, jnp.where(low < t, t, low)) - low
    above = high - jnp.where(low > t, low, jnp.where(high > t, t, high))

    def weight(j):
        return j * (j - 1) / (m * (m - 1)) if fair else j * j / (m * m)

    parts = _as_row(weight(count), x) * below + _as_row(weight(m - count), x) * above
    outside = jnp.maximum(t - s[..., -1:], 0) + jnp.maximum(s[..., :1] - t, 0)
    return jnp.sum(parts, -1) + outside[..., 0]


def _as_row(of_gap: Array, x: Array) -> Array:
    return of_gap.reshape((1,) * (x.ndim - 1) + of_gap.shape)


@partial(_ensemble_score.defjvp, symbolic_zeros=True)
def _ensemble_score_rule(fair, primals, tangents):
    # With sides s_i = sign(x_i - t) and r_i of all members how many are below, less how many above:
    #   d loss = sum_i (s_i - r_i / (M - 1)) / M * dx_i - mean_i s_i * dt,    or r_i / M if not fair
    (x, t), (dx, dt) = primals, tangents
    out, m = _ensemble_score(x, t, fair), x.shape[-1]
    side, others = jnp.sign(x - t[..., None]), max(m - 1, 1) if fair else m

    def by_members():
        return (side * others - _rank(lax.stop_gradient(x))) / (m * others)

    return out, tangent_sum(
        out,
        (dx, lambda: jnp.sum(by_members() * dx, -1)),
        (dt, lambda: -jnp.sum(side, -1) / m * dt),
    )


def _rank(x: Array) -> Array:
    """How many entries of its row are smaller than each, less how many are larger."""
    axis, m = x.ndim - 1, x.shape[-1]
    place = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    s, old_place = lax.sort((x, place), dimension=axis, num_keys=1)
    differs = s[..., 1:] != s[..., :-1]
    edge = jnp.ones_like(differs, shape=(*x.shape[:-1], 1))
    smaller = lax.cummax(jnp.where(jnp.concatenate([edge, differs], axis), place, 0), axis)
    last = jnp.concatenate([differs, edge], axis)
    upto = lax.cummin(jnp.where(last, place + 1, m), axis, reverse=True)
    _, rank = lax.sort((old_place, smaller - (m - upto)), dimension=axis, num_keys=1)
    return rank.astype(x.dtype)
