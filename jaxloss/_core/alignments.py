"""Labels without their alignment to frames: their checks, and sums over alignments.

Such sums are of probabilities too small for their dtype, so they run over logarithms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks
from jaxloss._core.numerics import largest
from jaxloss._core.reports import report


class Sequences(NamedTuple):
    live: Array  # (B, T), frames that are not padded
    labels: Array  # (B, N), the blank where padded
    kept: Array  # (B, N), labels that are not padded
    valid: Array  # (B,), sequences without an error


def sequences(
    name: str,
    x: Array,
    logit_paddings: ArrayLike,
    labels: Array,
    label_paddings: ArrayLike,
    blank: int,
    *,
    frames_end: bool,
) -> Sequences:
    """Check what comes with `x`, (B, T, ..., K).

    The padded labels follow the others; with `frames_end`, so do the padded frames.
    """
    frames = checks.numeric("logit_paddings", logit_paddings, x.dtype)
    ends = checks.numeric("label_paddings", label_paddings, x.dtype)
    _same_shape("logit_paddings", frames, name, x.shape[:2])
    _same_shape("label_paddings", ends, "labels", labels.shape)
    classes = x.shape[-1]
    if not 0 <= blank < classes:
        raise ValueError(f"blank_id must be in [0, {classes}), got {blank}")
    kept, live = ends == 0, frames == 0
    known = ~kept | ((labels >= 0) & (labels < classes) & (labels != blank))
    labels = report(
        labels,
        jnp.all(known),
        f"labels must be in [0, {classes}) and not the blank, {blank}, but reach from {{low}} to "
        f"{{high}}",
        low=jnp.min(labels, initial=0, where=kept),
        high=jnp.max(labels, initial=0, where=kept),
    )
    right = jnp.all(kept | (ends == 1), 1) & jnp.all(live | (frames == 1), 1)
    right &= _at_end(kept)
    if frames_end:
        right &= _at_end(live)
    what = "frames and labels" if frames_end else "labels"
    labels = report(
        labels, jnp.all(right), f"paddings must be 0 or 1, and {what} be padded on the right only"
    )
    labels = jnp.where(kept & known, labels, blank).astype(jnp.int32)
    return Sequences(live, labels, kept, right & jnp.all(known, 1))


def _at_end(kept: Array) -> Array:
    """Whether what is not kept comes last."""
    return jnp.all(kept[:, 1:] <= kept[:, :-1], 1)


def _same_shape(name: str, paddings: Array, of: str, shape: tuple[int, ...]) -> None:
    if paddings.shape != shape:
        raise ValueError(
            f"{name} of shape {paddings.shape} do not match {of}: expected shape {shape}"
        )


def later(a: Array, fill: float) -> Array:
    """What is of the label before."""
    return lax.pad(a, jnp.asarray(fill, a.dtype), [(0, 0, 0)] * (a.ndim - 1) + [(1, -1, 0)])


@jax.custom_jvp
def log_add(a: Array, b: Array) -> Array:
    """`log(exp(a) + exp(b))`, also of two -inf."""
    return jnp.maximum(a, b) + jnp.log(1 + jnp.exp(-_distance(a, b)))


@log_add.defjvp
def _log_add_rule(primals, tangents):
    (p, q), (da, db) = shares_of(*primals), tangents
    return log_add(*primals), p * da + q * db


@jax.custom_jvp
def shares_of(a: Array, b: Array) -> tuple[Array, Array]:
    """`exp(a)` and `exp(b)` over their sum; all to the first if both are zero."""
    less = jnp.exp(-_distance(a, b))
    more = 1 / (1 + less)
    less = less * more
    return jnp.where(a >= b, more, less), jnp.where(a >= b, less, more)


@shares_of.defjvp
def _shares_rule(primals, tangents):
    (p, q), (da, db) = shares_of(*primals), tangents
    moved = p * q * (da - db)
    return (p, q), (moved, -moved)


def _distance(a: Array, b: Array) -> Array:
    """`abs(a - b)`, inf also of two -inf."""
    return jnp.maximum(jnp.maximum(a, b), -largest(a.dtype)) - jnp.minimum(a, b)


def finite(alpha: Array) -> Array:
    """The least number for log 0: a derivative keeps it, and `jax_debug_infs` looks at that."""
    return jnp.where(alpha == -jnp.inf, -largest(alpha.dtype), alpha)


def largest_along(a: Array) -> Array:
    """Of the last axis, which is kept; finite also where there is none but -inf."""
    # `jnp.max` would make it another kernel.
    least = jnp.asarray(-largest(a.dtype), a.dtype)
    return lax.reduce(a, least, jnp.maximum, (a.ndim - 1,))[..., None]


@jax.custom_jvp
def near_zero(loss: Array, rejected: Array) -> Array:
    """`loss`, as `-log1p(-rejected)` where that has more digits.

    What is rejected is the probability of every other outcome, a sum without a negative term.
    """
    certain = (rejected < 0.5) & (loss < 1)
    return jnp.where(certain, -jnp.log1p(-jnp.where(certain, rejected, 0)), loss)


@near_zero.defjvp
def _near_zero_rule(primals, tangents):
    return near_zero(*primals), tangents[0]
