"""Robust and asymmetric regression losses, of errors of one number.

At a kink every derivative is the mean of the one-sided ones: 0 for an exact fit.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.logs import bend, half_log, polynomial, relative_square, terms
from jaxloss._core.numerics import absolute, expm1, largest, relu
from jaxloss._core.rules import jit_when_eager, tangent_sum


@takes(predictions="entries", targets="entries", alpha="entries", scale=("entries", "positive"))
def general_robust_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: ArrayLike,
    scale: ArrayLike,
    where: ArrayLike | None = None,
) -> Array:
    r"""Barron's general robust loss: how much outliers count is a number, alpha.

    With r = (p - t) / scale and b = |alpha - 2|:

        loss = b / alpha * ((r**2 / b + 1)**(alpha / 2) - 1)
        loss = r**2 / 2                     alpha = 2
        loss = log(r**2 / 2 + 1)            alpha = 0
        loss = 1 - exp(-r**2 / 2)           alpha = -inf

    Args:
        predictions: p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1.
        alpha: 2 for the squared error, 1 for Charbonnier's (a smooth absolute error), 0 for
            Cauchy's, -2 for Geman and McClure's, -inf for Welsch's; shaped like `targets`.
        scale: of the errors, positive; shaped like `targets`. The second derivative of an exact fit
            is `1 / scale**2`, whatever alpha is.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss, of the shape of both together, in float32 (float64 for float64 predictions).

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `scale` is not positive.

    It has all derivatives, also by scale and alpha. That by alpha diverges, like a logarithm, as
    alpha goes to 2; at 2 it is 0, as it is at -inf. To learn a scale, add its logarithm: this is no
    likelihood.

    References:
        Barron, A General and Adaptive Robust Loss Function, 2019, arXiv:1701.03077.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.general_robust_loss(jnp.array([1.0, 10.0]), 0, alpha=1.0, scale=1.0))
    [0.41421354 9.049875  ]
    >>> print(jaxloss.general_robust_loss(jnp.array([1.0, 10.0]), 0, alpha=-2.0, scale=1.0))
    [0.4       1.9230769]
    """
    p, t, where = inputs.elementwise("predictions", predictions, "targets", targets, where)
    alpha = checks.setting("alpha", alpha, "predictions", p)
    scale = checks.setting("scale", scale, "predictions", p, checks.positive_range(p.dtype))
    return _general(p, t, alpha, scale, where)


@jit_when_eager
def _general(p, t, alpha, scale, where):
    alpha, scale = (jnp.broadcast_to(a, p.shape) for a in (alpha, scale))
    p, t, alpha, scale = inputs.mask(where, p, t, alpha, scale)
    return inputs.masked(where, _robust((p - t) / scale, alpha))


# With b = |alpha - 2|, w = r**2 / b, q = log(1 + w), g = b * q / 2 and m = alpha / b:
#   loss = (exp(m * g) - 1) / m    d loss / dr = r * exp(-g), with exp(g) for an alpha above 2


@jax.custom_jvp
def _robust(r: Array, alpha: Array) -> Array:
    b = jnp.abs(alpha - 2)
    g = half_log(r, b)
    m = jnp.where(jnp.isinf(alpha), jnp.sign(alpha), alpha / jnp.where(b == 0, 1, b))
    u = m * g
    small = (m == 0) | (jnp.abs(u) < float(jnp.finfo(r.dtype).eps) / 4)
    loss = jnp.where(small, g, jnp.expm1(u) / jnp.where(small, 1, m))
    return jnp.where(b == 0, 0.5 * r * r, loss)


@partial(_robust.defjvp, symbolic_zeros=True)
def _robust_rule(primals, tangents):
    (r, alpha), (dr, d_alpha) = primals, tangents
    out = _robust(r, alpha)
    return out, tangent_sum(
        out,
        (dr, lambda: _influence(r, alpha) * dr),
        (d_alpha, lambda: _by_alpha(r, alpha) * d_alpha),
    )


@jax.custom_jvp
def _influence(r: Array, alpha: Array) -> Array:
    """`r * exp(-g)`."""
    big = largest(r.dtype)
    r = jnp.clip(r, -big, big)
    root = jnp.exp(0.5 * _log_weight(r, alpha))  # Its square may vanish where the product does not.
    return r * root * root


@partial(_influence.defjvp, symbolic_zeros=True)
def _influence_rule(primals, tangents):
    # d (r * exp(-g)) = exp(-g) * (1 + (alpha - 1) * w) / (1 + w) * dr - r * exp(-g) * dg
    (r, alpha), (dr, d_alpha) = primals, tangents
    out = _influence(r, alpha)

    def by_r():
        b = jnp.abs(alpha - 2)
        w = relative_square(r, b)
        rest = jnp.where(jnp.isinf(alpha), jnp.sign(alpha), (alpha - 1) / jnp.where(b == 0, 1, b))
        bent = jnp.where(b == 0, 1, (1 + rest * r * r) / (1 + w))
        return jnp.exp(_log_weight(r, alpha)) * bent

    return out, tangent_sum(
        out,
        (dr, lambda: by_r() * dr),
        (d_alpha, lambda: out * jax.jvp(partial(_log_weight, r), (alpha,), (d_alpha,))[1]),
    )


def _log_weight(r: Array, alpha: Array) -> Array:
    """-g, and g for an alpha above 2."""
    return jnp.sign(alpha - 2) * half_log(r, jnp.abs(alpha - 2))


def _by_alpha(r: Array, alpha: Array) -> Array:
    """The derivative by alpha, which is of one sign.

    That is `(q**2 * f1(m * g) - exp(m * g) * (q - w / (1 + w))) / 2`, with the integral f1(u) of
    t * exp(u * t) over [0, 1]. Near 2, where its terms grow, it is the same integrated by parts.
    """
    none = (alpha == 2) | jnp.isinf(alpha)
    alpha = jnp.where(none, 1, alpha)
    b = jnp.abs(alpha - 2)
    w = jnp.minimum(relative_square(r, b), largest(r.dtype))
    q = jnp.log1p(w)
    u = 0.5 * alpha * q
    f1 = _integral(u, 1)
    plain = 0.5 * jnp.sign(2 - alpha) * (q * q * f1 - jnp.exp(u) * bend(w))
    by_parts = 0.25 * b * q * (q * f1 - _integral(u, 0) + _integral(u - q, 0))
    return jnp.where(none, 0, jnp.where((b < 1) & (w > 1), by_parts, plain))


def _integral(u: Array, power: int) -> Array:
    """Of `t**power * exp(u * t)` over t in [0, 1], for a power of 0 or 1."""
    small = jnp.abs(u) < 1
    near, far = jnp.where(small, u, 0), jnp.where(small, 1, u)
    count = terms(u, 11)
    near = polynomial(near, [1 / (math.factorial(k) * (k + power + 1)) for k in range(count)])
    whole = expm1(far) / far
    return jnp.where(small, near, whole if power == 0 else (jnp.exp(far) - whole) / far)


@takes(predictions="entries", targets="entries", beta=("entries", "positive"))
def smooth_l1_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> Array:
    r"""Absolute error with a parabola for its corner: `huber_loss(delta=beta) / beta`.

    With e = p - t:

        loss = e**2 / (2 * beta)    where |e| < beta
        loss = |e| - beta / 2       elsewhere

    Args:
        predictions: p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1.
        beta: error from which on the loss is linear, at least 0; shaped like `targets`. With 0 it
            is the absolute error.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in units of the targets, of the shape of both together, in float32 (float64 for
        float64 predictions).

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `beta` is negative.

    The derivative is `e / beta`, clipped to [-1, 1]; the second derivative at |e| = beta is that of
    the inside. With a beta of 0 the derivative of an exact fit is 0.

    References:
        Girshick, Fast R-CNN, 2015, arXiv:1504.08083; PyTorch, `smooth_l1_loss`.

    >>> import jax, jaxloss
    >>> print(jaxloss.smooth_l1_loss(jax.numpy.array([0.5, 3.0]), 0))
    [0.125 2.5  ]
    """
    p, t, where = inputs.elementwise("predictions", predictions, "targets", targets, where)
    beta = checks.setting("beta", beta, "predictions", p, checks.NONNEGATIVE)
    return _smooth_l1(p, t, beta, where)


@jit_when_eager
def _smooth_l1(p, t, beta, where):
    p, t = inputs.mask(where, p, t)
    return inputs.masked(where, _smooth_absolute(p, t, jnp.broadcast_to(beta, p.shape)))


# Nothing that value and gradient share, not even the error: see `binary`.


@jax.custom_jvp
def _smooth_absolute(p: Array, t: Array, beta: Array) -> Array:
    size = jnp.abs(p - t)
    return _share(size, beta) * (size - 0.5 * jnp.minimum(size, beta))


@partial(_smooth_absolute.defjvp, symbolic_zeros=True)
def _smooth_absolute_rule(primals, tangents):
    # With s = (p - t) / beta, clipped to [-1, 1]:  d loss = s * (dp - dt) - s**2 / 2 * d beta
    (p, t, beta), (dp, dt, d_beta) = primals, tangents
    out, s = _smooth_absolute(p, t, beta), -_slope(t - p, beta)
    return out, tangent_sum(
        out,
        (dp, lambda: s * dp),
        (dt, lambda: -s * dt),
        (d_beta, lambda: -0.5 * s * s * d_beta),
    )


def _share(size: Array, beta: Array) -> Array:
    """`min(size / beta, 1)`, 0 for a size of 0."""
    return jnp.minimum(size / jnp.maximum(beta, float(jnp.finfo(size.dtype).tiny)), 1)


@jax.custom_jvp
def _slope(e: Array, beta: Array) -> Array:
    return jnp.sign(e) * _share(jnp.abs(e), beta)


@partial(_slope.defjvp, symbolic_zeros=True)
def _slope_rule(primals, tangents):
    (e, beta), (de, d_beta) = primals, tangents
    out, inside = _slope(e, beta), (absolute(e) <= beta) & (beta > 0)
    steep = inside.astype(e.dtype) / jnp.where(inside, beta, 1)
    return out, tangent_sum(
        out, (de, lambda: steep * de), (d_beta, lambda: -steep * _slope(e, beta) * d_beta)
    )


@takes(predictions="entries", targets="entries", expectile=("entries", "probability"))
def expectile_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    expectile: ArrayLike = 0.5,
    where: ArrayLike | None = None,
) -> Array:
    r"""Asymmetric squared error, which is least at the given expectile of the targets.

        loss = expectile * max(t - p, 0)**2 + (1 - expectile) * max(p - t, 0)**2

    Args:
        predictions: p, any shape and floating dtype.
        targets: t, of the shape of `predictions`, a scalar, or of the same rank with axes of
            size 1.
        expectile: in [0, 1], shaped like `targets`; 0.5 gives half of the squared error, whose
            minimum is the mean, and numbers towards 1 come near to the largest target.
        where: booleans shaped like `predictions`; elsewhere the loss is 0.

    Returns:
        The loss in squared units of the targets, of the shape of both together, in float32
        (float64 for float64 predictions).

    Raises:
        TypeError: predictions are not floating point, or `where` is not boolean.
        ValueError: shapes do not match, or `expectile` is outside [0, 1].

    The second derivative of an exact fit is 1, the mean of the sides.

    References:
        Newey and Powell, Asymmetric Least Squares Estimation and Testing, 1987; Kostrikov et al.,
        Implicit Q-Learning, 2021, arXiv:2110.06169.

    >>> import jax, jaxloss
    >>> print(jaxloss.expectile_loss(jax.numpy.array([0.0, 3.0]), 1, expectile=0.75))
    [0.75 1.  ]
    """
    p, t, where = inputs.elementwise("predictions", predictions, "targets", targets, where)
    expectile = checks.setting("expectile", expectile, "predictions", p, checks.SHARE)
    return _expectile(p, t, expectile, where)


@jit_when_eager
def _expectile(p, t, expectile, where):
    p, t = inputs.mask(where, p, t)
    return inputs.masked(where, _asymmetric_square(p, t, jnp.broadcast_to(expectile, p.shape)))


@jax.custom_jvp
def _asymmetric_square(p: Array, t: Array, q: Array) -> Array:
    return jnp.abs(p - t) * jnp.maximum((1 - q) * (p - t), -q * (p - t))


@partial(_asymmetric_square.defjvp, symbolic_zeros=True)
def _asymmetric_square_rule(primals, tangents):
    (p, t, q), (dp, dt, dq) = primals, tangents
    out, slope = _asymmetric_square(p, t, q), 2 * ((1 - q) * relu(p - t) - q * relu(t - p))
    return out, tangent_sum(
        out,
        (dp, lambda: slope * dp),
        (dt, lambda: -slope * dt),
        (dq, lambda: (t - p) * absolute(t - p) * dq),
    )
