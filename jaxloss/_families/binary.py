"""Binary cross-entropies: one probability an element."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, passes
from jaxloss._core.declare import takes
from jaxloss._core.numerics import sigmoid, softplus, xlog1my, xlogy
from jaxloss._core.rules import jit_when_eager, tangent_sum


@takes(
    logits=("entries", "logits"),
    labels=("entries", "bit"),
    label_smoothing=("entries", "probability"),
    pos_weight=("entries", "positive"),
)
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
    x, z, where = inputs.elementwise("logits", logits, "labels", labels, where)
    if pos_weight is not None:
        pos_weight = checks.setting("pos_weight", pos_weight, "logits", x)
    smoothing = checks.optional(
        "label_smoothing", label_smoothing, checks.setting, "logits", x, checks.SHARE
    )
    return _sigmoid_bce(x, z, smoothing, pos_weight, where)


@jit_when_eager
def _sigmoid_bce(x, z, smoothing, pos_weight, where):
    if pos_weight is not None:
        pos_weight = jnp.broadcast_to(pos_weight, x.shape)
    x, z = inputs.mask(where, x, z)
    return inputs.masked(where, bce(x, z, pos_weight, smoothing))


# With the weights of the negative and the positive class
#   a = (1 - s) (1 - z) + s / 2     b = w ((1 - s) z + s / 2)
# the loss is a * softplus(x) + b * softplus(-x).


def _weights(z: Array, w: Array | None, s: Array | None) -> tuple[Array, Array]:
    a, b = 1 - z, z
    if s is not None:
        a, b = (1 - s) * a + s / 2, (1 - s) * b + s / 2
    return a, b if w is None else w * b


@jax.custom_jvp
def bce(x: Array, z: Array, w: Array | None = None, s: Array | None = None) -> Array:
    return _bce_value(x, z, w, s)


@passes.own_pass
def _bce_value(x, z, w, s):
    a, b = _weights(z, w, s)
    return passes.two_sided(a, b, x) + (1 if w is None else a + b) * jnp.log1p(jnp.exp(-jnp.abs(x)))


@partial(bce.defjvp, symbolic_zeros=True)
def _bce_rule(primals, tangents):
    # d/dz = (1 - s) (w softplus(-x) - softplus(x)), which is -(1 - s) x for w = 1
    # d/dw = ((1 - s) z + s / 2) softplus(-x)    d/ds = (1/2 - z) (w softplus(-x) - softplus(x))
    x, z, w, s = primals
    dx, dz, dw, ds = tangents
    out, by_label = bce(x, z, w, s), -x if w is None else w * softplus(-x) - softplus(x)
    terms = [
        (dx, lambda: bce_slope(x, z, w, s) * dx),
        (dz, lambda: (by_label if s is None else (1 - s) * by_label) * dz),
    ]
    if w is not None:
        terms.append((dw, lambda: _weights(z, None, s)[1] * softplus(-x) * dw))
    if s is not None:
        terms.append((ds, lambda: (0.5 - z) * by_label * ds))
    return out, tangent_sum(out, *terms)


@jax.custom_jvp
def bce_slope(x: Array, z: Array, w: Array | None = None, s: Array | None = None) -> Array:
    a, b = _weights(z, w, s)
    return a * sigmoid(x) - b * sigmoid(-x)


@bce_slope.defjvp
def _bce_slope_rule(primals, tangents):
    # d/dx = (a + b) sigmoid(x) sigmoid(-x): of two products, one could underflow.
    x, *others = primals
    dx, *d_others = tangents
    a, b = _weights(*others)
    d_a, d_b = jax.jvp(_weights, others, d_others)[1]
    by_weights = d_a * sigmoid(x) - d_b * sigmoid(-x)
    return bce_slope(*primals), (a + b) * (sigmoid(x) * sigmoid(-x)) * dx + by_weights


@takes(probabilities=("entries", "probability"), labels=("entries", "bit"))
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
