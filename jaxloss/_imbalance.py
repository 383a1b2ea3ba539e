"""Classes of unequal frequency: weights, and a bias of the logits, from their counts."""

import math
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks
from jaxloss._core.numerics import compute_dtype, nan_unless, times
from jaxloss._core.reduce import per_size


def class_weights_from_counts(
    counts: ArrayLike,
    *,
    method: Literal["balanced", "effective_number"] = "balanced",
    beta: float = 0.999,
) -> Array:
    r"""Weights of classes, larger for rare ones, for `class_weights=` of the cross-entropies.

    With n_k the examples of class k, of n in all, and C the number of classes that have any:

        balanced: w_k = n / (C * n_k)
        effective_number: w_k = c * (1 - beta) / (1 - beta**n_k), with c for sum_k w_k = C

    Balanced weights give each class the same share of the total, and average to 1 over the
    examples. The effective number of examples, (1 - beta**n) / (1 - beta), approaches n for beta
    to 1, which makes the weights those of "balanced" up to a factor, and 1 for beta = 0.

    Args:
        counts: n_k, real and at least 0, of shape [C]; at least one above 0. A negative count makes
            all weights NaN.
        method: "balanced" or "effective_number".
        beta: in [0, 1), for "effective_number".

    Returns:
        Weights of shape [C], in float32 (float64 for float64 counts). A class without examples
        has weight 0.

    Raises:
        TypeError: counts are not real.
        ValueError: counts have not one axis; an unknown method; beta out of its range.

    Differentiable by counts, except where a count is 0: there the derivative is 0.

    References:
        King and Zeng, Logistic Regression in Rare Events Data, 2001, for "balanced"; Cui et al.,
        Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, arXiv:1901.05555.

    >>> import jax.numpy as jnp, jaxloss
    >>> counts = jnp.array([900, 90, 10])
    >>> print(jaxloss.class_weights_from_counts(counts))
    [ 0.37037036  3.7037036  33.333332  ]
    >>> print(jaxloss.class_weights_from_counts(counts, method="effective_number"))
    [0.0444296 0.3062825 2.649288  ]
    """
    if method not in ("balanced", "effective_number"):
        raise ValueError(f"method must be 'balanced' or 'effective_number', got {method!r}")
    n = _counts(counts)
    checks.scalar("beta", beta, n.dtype, checks.Range(0.0, 1.0, closed=False))
    classes = jnp.sum((n > 0).astype(n.dtype))
    if method == "balanced":
        return per_size(jnp.sum(n), classes * n)
    # 1 - beta**n; beta in float32 would lose the digits of 1 - beta.
    effective = -jnp.expm1(n * math.log(beta)) if beta > 0 else (n > 0).astype(n.dtype)
    inverse = per_size(jnp.ones_like(n), effective)
    return inverse * (classes / jnp.sum(inverse))


def logit_adjustment(counts: ArrayLike, tau: ArrayLike = 1.0) -> Array:
    r"""The logarithms of the frequencies of classes, a bias of the logits against imbalance.

    With n_k the examples of class k, of n in all:

        tau * log(n_k / n)

    Added to the logits in training (as `bias=` of `linear_cross_entropy`, or `logits + bias`),
    and left out in prediction, it makes the model estimate scores for balanced classes: those
    whose largest one minimises the mean of the errors of the classes, at tau = 1. Or train
    without it, and subtract it from the logits in prediction.

    Args:
        counts: n_k, real and at least 0, of shape [C]; at least one above 0. A negative count makes
            all of it NaN.
        tau: a scalar; 0 adjusts nothing.

    Returns:
        The bias, of shape [C], in float32 (float64 for float64 counts). For a class without
        examples it is -inf, which excludes the class.

    Raises:
        TypeError: counts or tau are not real.
        ValueError: counts have not one axis; tau is not a scalar.

    References:
        Menon et al., Long-tail Learning via Logit Adjustment, ICLR 2021, arXiv:2007.07314.

    >>> import jax.numpy as jnp, jaxloss
    >>> print(jaxloss.logit_adjustment(jnp.array([900, 90, 10])))
    [-0.10536052 -2.4079456  -4.6051702 ]
    """
    n = _counts(counts)
    rest = jnp.sum(n) - n
    # Close to 1, a rounded frequency would lose the digits of its logarithm.
    log_frequency = jnp.where(n > rest, -jnp.log1p(per_size(rest, n)), jnp.log(n / (n + rest)))
    return times(checks.scalar("tau", tau, n.dtype), log_frequency)


def _counts(counts: ArrayLike) -> Array:
    n = jnp.asarray(counts)
    floating = jnp.issubdtype(n.dtype, jnp.floating)
    n = checks.numeric("counts", n, compute_dtype(n.dtype if floating else jnp.float32))
    if n.ndim != 1:
        raise ValueError(
            f"counts of shape {n.shape} must have one axis, of classes: for integer labels, "
            f"jnp.bincount(labels, length=classes)"
        )
    return nan_unless(~(n < 0), n)
