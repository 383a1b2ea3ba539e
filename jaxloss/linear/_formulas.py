"""What the linear losses compute of a chunk of logits, by the library's dense formulas.

Each function is a `LossOfLogits` of `_tokens.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core import passes
from jaxloss._core.nll import label_nll
from jaxloss._core.numerics import absolute, nan_unless, tanh
from jaxloss._core.rows import finite_gap, logsumexp, softmax
from jaxloss._core.rules import with_fast_value
from jaxloss._core.split import (
    ClassAxis,
    Split,
    class_index,
    classes,
    largest_of,
    of_label,
    sums,
    total,
)
from jaxloss._families.categorical import integer_cross_entropy
from jaxloss._families.divergence import distillation, js_of_probabilities, skew_kl
from jaxloss._mean import Mean


class Settings(NamedTuple):
    """What all tokens share in a cross-entropy, None where it is not used."""

    bias: Array | None = None
    softcap: Array | None = None
    class_weights: Array | None = None
    smoothing: Array | None = None
    z_loss: Array | None = None
    temperature: Array | None = None  # of statistics only


class LinearStatistics(NamedTuple):
    """Statistics of each token's logits; `linear_statistics` has their formulas."""

    log_prob: Array
    logsumexp: Array
    entropy: Array
    argmax: Array
    correct: Array
    # What the z-loss adds to the loss, reduced as that is; None from `linear_statistics`.
    z_loss: Array | Mean | None = None


class TokenStatistics(NamedTuple):
    """Statistics of each token's logits, in the dtype of these, as sweeps pass them on."""

    log_prob: Array
    logsumexp: Array
    entropy: Array
    # As a float, exact up to 2**24 classes: in `shard_map` integers have no tangent.
    argmax: Array


def shaped(
    x: Array, bias: Array | None, softcap: Array | None, temperature: Array | None = None
) -> Array:
    """Logits, from the matmul's result; a class that the bias excludes stays excluded."""
    if bias is not None:
        x = x + bias[None]
    if softcap is None and temperature is None:
        return x
    excluded = x == -jnp.inf
    x = jnp.where(excluded, 0, x)
    x = x if softcap is None else softcap * tanh(x / softcap)
    return jnp.where(excluded, -jnp.inf, x if temperature is None else x / temperature)


def cross_entropy(
    logits: tuple[Array, ...], labels: Array, settings: Settings, axis: ClassAxis
) -> Array:
    x = shaped(logits[0], settings.bias, settings.softcap)
    return integer_cross_entropy(
        x, labels[:, None], None, settings.smoothing, settings.class_weights, settings.z_loss,
        axis=axis, ignore_index=None,
    )  # fmt: skip


def statistics(
    logits: tuple[Array, ...], labels: Array, settings: Settings, axis: ClassAxis
) -> TokenStatistics:
    def exact(x: Array, labels: Array) -> TokenStatistics:
        p, nll = softmax(x, axis)
        return TokenStatistics(
            -label_nll(x, labels, axis)[:, 0],
            logsumexp(x, axis)[:, 0],
            # Of a class that is impossible neither the term nor a derivative is there.
            total(p * jnp.where(p == 0, 0, nll), axis)[:, 0],
            fast(lax.stop_gradient(x), labels).argmax,
        )

    def fast(x: Array, labels: Array) -> TokenStatistics:
        return statistics_of(_spread(x, labels, axis), labels, classes(x, axis))

    x = shaped(logits[0], settings.bias, settings.softcap, settings.temperature)
    return with_fast_value(exact, fast)(x, labels[:, None])


class Spread(NamedTuple):
    """What the statistics of a row of logits are made of. [N, 1]"""

    top: Array  # the largest logit
    label: Array  # the label's
    rest: Array  # sum of exp(x - top) over the classes below the largest
    ties: Array  # how many are the largest
    behind: Array  # sum of exp(x - top) * (top - x)
    first: Array  # the first of the largest, as a float


def statistics_of(row: Spread, labels: Array, count: int) -> TokenStatistics:
    """With t the sum of exp(x - top) over all classes but one of the largest:

    -log p_k = (top - x_k) + log1p(t), and the entropy is sum(p * (top - x)) + log1p(t).
    """
    tail = row.rest + jnp.maximum(row.ties - 1, 0)
    log_rest = jnp.log1p(tail)
    gap = jnp.where(row.label < row.top, row.top - row.label, 0)
    # A NaN that a maximum drops makes its exponential infinite.
    valid = row.rest < jnp.inf
    columns = TokenStatistics(
        nan_unless(valid & (labels >= 0) & (labels < count), -(gap + log_rest)),
        nan_unless(valid, row.top + log_rest),
        nan_unless(valid, row.behind / (1 + tail) + log_rest),
        jnp.where(row.first < NO_CLASS, row.first, 0),
    )
    return jax.tree.map(lambda column: column[:, 0], columns)


def spread_terms(x: Array, top: Array) -> tuple[Array, Array, Array]:
    """What `Spread` sums up of each class, written for a CPU: see `passes`."""
    gap = finite_gap(x, top)
    other, e = passes.step(gap), jnp.exp(-gap)
    # Of -1000 the exponential is zero.
    return e * other, 1 - other, e * jnp.minimum(gap, 1000)


# Beyond all classes.
NO_CLASS = 2.0**30


def first_index(x: Array, top: Array, index: Array) -> Array:
    """The index of the first of the largest logits on this device, if there is one."""
    return jnp.min(index + passes.step(finite_gap(x, top)) * NO_CLASS, 1, keepdims=True)


def of_all_devices(first: Array, n: int, axis: ClassAxis) -> Array:
    """An index of this device's `n` classes, counted on all devices."""
    if not isinstance(axis, Split):
        return first
    before = n * lax.axis_index(axis.axis_name).astype(first.dtype)
    return jnp.where(first < NO_CLASS, first + before, first)


def _spread(x: Array, labels: Array, axis: ClassAxis) -> Spread:
    top = largest_of(x, axis)
    index = class_index(x, 1).astype(x.dtype)
    first = of_all_devices(passes.own_pass(first_index)(x, top, index), x.shape[1], axis)
    if isinstance(axis, Split):
        first = lax.pmin(first, axis.axis_name)
    rest, ties, behind = sums(spread_terms, axis, x, top)
    return Spread(top, of_label(x, labels, axis), rest, ties, behind, first)


class Pair(NamedTuple):
    """What all tokens share in a distillation."""

    temperature: Array
    bias: Array | None
    teacher_bias: Array | None
    softcap: Array | None
    teacher_softcap: Array | None
    mixture: Array | None  # beta or alpha


def kl(logits: tuple[Array, ...], labels: Array, pair: Pair, axis: ClassAxis) -> Array:
    x, y = _student_and_teacher(logits, pair)
    return distillation(x, y, None, pair.temperature, axis=axis)


def reverse_kl(logits: tuple[Array, ...], labels: Array, pair: Pair, axis: ClassAxis) -> Array:
    x, y = _student_and_teacher(logits, pair)
    return distillation(y, x, None, pair.temperature, axis=axis)


def js(logits: tuple[Array, ...], labels: Array, pair: Pair, axis: ClassAxis) -> Array:
    (p, t), beta = _probabilities(logits, pair, axis), pair.mixture
    if beta is None:
        return pair.temperature**2 * js_of_probabilities(p, t, axis)
    of_teacher, of_student = skew_kl(t, p, beta, axis), skew_kl(p, t, 1 - beta, axis)
    return pair.temperature**2 * (beta * of_teacher + (1 - beta) * of_student)


def skewed_kl(logits: tuple[Array, ...], labels: Array, pair: Pair, axis: ClassAxis) -> Array:
    p, t = _probabilities(logits, pair, axis)
    assert pair.mixture is not None
    return pair.temperature**2 * skew_kl(t, p, pair.mixture, axis)


def skewed_reverse_kl(
    logits: tuple[Array, ...], labels: Array, pair: Pair, axis: ClassAxis
) -> Array:
    p, t = _probabilities(logits, pair, axis)
    assert pair.mixture is not None
    return pair.temperature**2 * skew_kl(p, t, pair.mixture, axis)


def total_variation(logits: tuple[Array, ...], labels: Array, pair: Pair, axis: ClassAxis) -> Array:
    p, t = _probabilities(logits, pair, axis)
    return pair.temperature * total(absolute(p - t), axis)[:, 0] / 2


def _probabilities(logits: tuple[Array, ...], pair: Pair, axis: ClassAxis) -> tuple[Array, Array]:
    x, y = _student_and_teacher(logits, pair)
    return softmax(x / pair.temperature, axis).p, softmax(y / pair.temperature, axis).p


def _student_and_teacher(logits: tuple[Array, ...], pair: Pair) -> tuple[Array, Array]:
    student, teacher = logits
    return (
        shaped(student, pair.bias, pair.softcap),
        shaped(teacher, pair.teacher_bias, pair.teacher_softcap),
    )
