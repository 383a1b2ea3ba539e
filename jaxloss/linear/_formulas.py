"""What the linear losses compute of a chunk of logits, by the library's dense formulas.

Each function is a `LossOfLogits` of `_tokens.py`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.nll import label_nll
from jaxloss._core.numerics import tanh
from jaxloss._core.rows import logsumexp, softmax
from jaxloss._core.split import ClassAxis, Split, total
from jaxloss._families.categorical import integer_cross_entropy
from jaxloss._families.divergence import distillation, js_of_probabilities


class Settings(NamedTuple):
    """What all tokens share in a cross-entropy, None where it is not used."""

    bias: Array | None = None
    softcap: Array | None = None
    class_weights: Array | None = None
    smoothing: Array | None = None
    z_loss: Array | None = None


class LinearStatistics(NamedTuple):
    """What `linear_statistics` returns, one of each for each token."""

    log_prob: Array
    logsumexp: Array
    entropy: Array
    argmax: Array


def shaped(x: Array, bias: Array | None, softcap: Array | None) -> Array:
    """Logits, from the matmul's result; a class that the bias excludes stays excluded."""
    if bias is not None:
        x = x + bias[None]
    if softcap is None:
        return x
    excluded = x == -jnp.inf
    return jnp.where(excluded, x, softcap * tanh(jnp.where(excluded, 0, x) / softcap))


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
) -> LinearStatistics:
    x = shaped(logits[0], settings.bias, settings.softcap)
    p, nll = softmax(x, axis)
    return LinearStatistics(
        -label_nll(x, labels[:, None], axis)[:, 0],
        logsumexp(x, axis)[:, 0],
        # Of a class that is impossible neither the term nor a derivative is there.
        total(p * jnp.where(p == 0, 0, nll), axis)[:, 0],
        # As a float, exact up to 2**24 classes: in `shard_map` integers have no tangent.
        _argmax(lax.stop_gradient(x), axis).astype(x.dtype),
    )


def _argmax(x: Array, axis: ClassAxis) -> Array:
    """The index of the first of the largest logits, among the classes of all devices."""
    local_index = jnp.argmax(x, 1)
    if not isinstance(axis, Split):
        return local_index
    name = axis.axis_name
    local_max = jnp.max(x, 1)
    index = local_index + x.shape[1] * lax.axis_index(name).astype(local_index.dtype)
    no_index = jnp.iinfo(index.dtype).max
    return lax.pmin(jnp.where(local_max == lax.pmax(local_max, name), index, no_index), name)


class Pair(NamedTuple):
    """What all tokens share in a distillation."""

    temperature: Array
    bias: Array | None
    teacher_bias: Array | None
    softcap: Array | None
    teacher_softcap: Array | None


def kl(logits: tuple[Array, ...], labels: Array, pair: Pair, axis: ClassAxis) -> Array:
    x, y = _student_and_teacher(logits, pair)
    return distillation(x, y, None, pair.temperature, axis=axis)


def js(logits: tuple[Array, ...], labels: Array, pair: Pair, axis: ClassAxis) -> Array:
    x, y = (softmax(x / pair.temperature, axis).p for x in _student_and_teacher(logits, pair))
    return pair.temperature**2 * js_of_probabilities(x, y, axis)


def _student_and_teacher(logits: tuple[Array, ...], pair: Pair) -> tuple[Array, Array]:
    student, teacher = logits
    return (
        shaped(student, pair.bias, pair.softcap),
        shaped(teacher, pair.teacher_bias, pair.teacher_softcap),
    )
