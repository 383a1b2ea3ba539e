"""Binary cross-entropies: one probability an element."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.numerics import largest, sigmoid, softplus, xlog1my, xlogy
from jaxloss._core.rules import jit_when_eager, tangent_sum


def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    label_smoothing: ArrayLike = 0.0,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy of `sigmoid(logits)` against labels in [0, 1], element by element.

    With x a logit, z its label and w its `pos_weight` (1 if absent):

        loss = (1 - z) * softplus(x) + w * z * softplus(-x)

    computed as `|x| * ((1 - z) if x >= 0 else w z) + ((1 - z) + w z) * log1p(exp(-|x|))`.

    Args:
        logits: log-odds of the positive class, any shape and floating dtype.
        labels: probability of the positive class, in [0, 1]: bool, integer or floating, of
            the shape of `logits`, a scalar, or of the same rank with axes of size 1.
        label_smoothing: s in [0, 1]; replaces z by `z * (1 - s) + s / 2`.
        pos_weight: weight of the positive class, to balance classes; shaped like `labels`.
        where: booleans shaped like `labels`; elsewhere the loss is 0, whatever the logits.

    Returns:
        The loss in nats, of the shape of `logits` and `labels` together, in float32
        (float64 for float64 logits). Correct infinite logits cost 0, wrong ones inf.

    Raises:
        TypeError: logits are not floating point, or `where` is not boolean.
        ValueError: shapes do not match; `label_smoothing` is outside [0, 1].

    The derivative by the logits is `(1 - z) * sigmoid(x) - w * z * sigmoid(-x)`, exact to the
    last digits in both tails; at x = 0, z = 0 it is 1/2. Labels and `pos_weight` have
    derivatives too.

    References:
        TensorFlow, `sigmoid_cross_entropy_with_logits`,
        `weighted_cross_entropy_with_logits`.

    >>> import jax, jaxloss
    >>> print(jaxloss.sigmoid_binary_cross_entropy(jax.numpy.array([0.0, -30.0]), 1))
    [ 0.6931472 30.       ]
    >>> print(jax.grad(jaxloss.sigmoid_binary_cross_entropy)(0.0, 0.0))
    0.5
    """
    checks.option("label_smoothing", label_smoothing, 0, 1)
    x, z, where = inputs.elementwise("logits", logits, "labels", labels, where)
    if pos_weight is not None:
        pos_weight = checks.setting("pos_weight", pos_weight, "logits", x)
    smoothing = checks.optional_operand("label_smoothing", label_smoothing, x.dtype, x.shape)
    return _sigmoid_bce(x, z, smoothing, pos_weight, where)


@jit_when_eager
def _sigmoid_bce(x, z, smoothing, pos_weight, where):
    if pos_weight is not None:
        pos_weight = jnp.broadcast_to(pos_weight, x.shape)
    x, z = inputs.mask(where, x, z)
    loss = _bce(x, z, pos_weight)
    if smoothing is not None:
        # The loss is linear in the label, and the label is (1 - s) z + s / 2.
        loss = (1 - smoothing) * loss + smoothing * _bce(x, jnp.full_like(x, 0.5), pos_weight)
    return inputs.masked(where, loss)


@jax.custom_jvp
def _bce(x: Array, z: Array, w: Array | None) -> Array:
    # A reduction over arithmetic runs as one pass on XLA's CPU backend; a select, or a
    # subexpression or constant shared with the derivative, costs a pass of its own. Hence
    # minimum and maximum, and z - 1 here against 1 - z there. A power of two takes
    # infinities to finite numbers and back, so that an infinite logit times zero is zero.
    eps, big = float(jnp.finfo(x.dtype).eps), largest(x.dtype)
    wz = z if w is None else w * z
    weight = 1 if w is None else (1 - z) + wz
    wrong = jnp.minimum(jnp.maximum(x, 0) * eps, big) * (z - 1)
    wrong += jnp.maximum(jnp.minimum(x, 0) * eps, -big) * wz
    return weight * jnp.log1p(jnp.exp(-jnp.abs(x))) - wrong / eps


@partial(_bce.defjvp, symbolic_zeros=True)
def _bce_rule(primals, tangents):
    # d/dx = (1 - z) sigmoid(x) - w z sigmoid(-x)
    # d/dz = w softplus(-x) - softplus(x), which is -x for w = 1;  d/dw = z softplus(-x)
    x, z, w = primals
    dx, dz, dw = tangents
    wz = z if w is None else w * z
    out = _bce(x, z, w)
    terms = [
        (dx, lambda: ((1 - z) * sigmoid(x) - wz * sigmoid(-x)) * dx),
        (dz, lambda: (-x if w is None else w * softplus(-x) - softplus(x)) * dz),
    ]
    if w is not None:
        terms.append((dw, lambda: z * softplus(-x) * dw))
    return out, tangent_sum(out, *terms)


def binary_cross_entropy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Cross-entropy of probabilities against labels in [0, 1], element by element.

    With p a probability and z its label, and `0 * log 0 = 0`:

        loss = -z * log(p) - (1 - z) * log1p(-p)

    Nothing is clipped. Where a model has logits, `sigmoid_binary_cross_entropy` of those is
    more accurate: a p near 1 has lost the digits of 1 - p.

    Args:
        probabilities: of the positive class, any shape and floating dtype.
        labels: probability of the positive class, in [0, 1]: bool, integer or floating, of
            the shape of `probabilities`, a scalar, or of the same rank with axes of size 1.
        where: booleans shaped like `labels`; elsewhere the loss is 0.

    Returns:
        The loss in nats, of the shape of both together, in float32 (float64 for float64
        probabilities); NaN for a p outside [0, 1].

    Raises:
        TypeError: probabilities are not floating point, or `where` is not boolean.
        ValueError: shapes do not match.

    The derivative by p is `(1 - z) / (1 - p) - z / p`, a term of weight zero being zero: at
    p = z = 0 it is 1, at p = z = 1 it is -1. By the label it is `log1p(-p) - log(p)`; where that
    is infinite, a huge number stands for it, so that a tangent of zero stays zero.

    References:
        Goodfellow et al., Deep Learning, 2016, section 6.2.2.

    >>> import jax, jaxloss
    >>> print(jaxloss.binary_cross_entropy(jax.numpy.array([0.75, 1.0]), 1))
    [0.2876821 0.       ]
    """
    p, z, where = inputs.elementwise("probabilities", probabilities, "labels", labels, where)
    return _probability_bce(p, z, where)


@jit_when_eager
def _probability_bce(p, z, where):
    p, z = inputs.mask(where, p, z)
    return inputs.masked(where, 0 - (xlogy(z, p) + xlog1my(1 - z, p)))
