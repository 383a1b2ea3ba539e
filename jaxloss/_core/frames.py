"""The softmax of frames, or of other rows of classes, at a few classes of each.

The logits of a batch are by far its largest array. Nothing of their size is computed of them but
their gradient: in a frame there are two numbers of a softmax, and one for each of its classes that
is asked for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxloss._core.rows import centred, finite_gap, gap_below, row
from jaxloss._core.split import total

FEW = 2  # Classes that are found by comparing each one's number.


class Frames(NamedTuple):
    live: Array  # (..., 1), those that are not padded
    top: Array  # (..., 1), the largest logit
    tail: Array  # (..., 1), the sum of exp(x - top) over all classes but one of the largest


def frames_of(x: Array, live: Array) -> Frames:
    live = live[..., None]
    of = row(jnp.where(live, lax.stop_gradient(x), 0), x.ndim - 1)
    return Frames(live, of.top, of.tail)


@jax.custom_jvp
def class_nll(x: Array, classes: Array, of: Frames) -> Array:
    """`-log softmax(x)` of the classes in each of the frames (..., K), (..., M).

    The classes (..., M) may be those of several frames, along axes of size one. Zero in frames
    that are padded.
    """
    return nll_of(logits_at(x, classes), of)


def nll_of(logits: Array, of: Frames) -> Array:
    """`-log softmax(x)` of classes with these logits; zero in frames that are padded."""
    return jnp.where(of.live, gap_below(logits, of.top) + jnp.log1p(of.tail), 0)


@class_nll.defjvp
def _class_nll_rule(primals, tangents):
    # With the softmax p, and v_M of a class M that has more than half of it:
    #   d nll_k = sum over j != M of p_j (v_j - v_M) - (v_k - v_M)
    # In reverse that is p times the sum of all cotangents c, less c_k; for M it is the sum of
    # c_k over k != M, less (1 - p_M) times that of all. Nothing is summed up over all classes.
    (x, classes, of), (v, _, _) = primals, tangents
    p = probability(x, of)
    sole = _sole(x, of)
    own = total(jnp.where(sole, v, 0), -1)
    mean = total(jnp.where(sole, 0, p) * v, -1) - beside(x, of) * own
    is_sole = _sole(logits_at(x, classes), of)
    d_nll = mean - jnp.where(is_sole, 0, _entries(v, classes) - own)
    return class_nll(*primals), jnp.where(of.live, d_nll, 0)


@jax.custom_jvp
def probability(x: Array, of: Frames) -> Array:
    """`softmax(x)`."""
    return jnp.exp(-finite_gap(jnp.where(of.live, x, 0), of.top)) * (1 / (1 + of.tail))


@probability.defjvp
def _probability_rule(primals, tangents):
    p = probability(*primals)
    return p, p * centred(p, tangents[0], p.ndim - 1)


@jax.custom_jvp
def beside(x: Array, of: Frames) -> Array:
    """What a class with more than half of the probability lacks of one."""
    return of.tail / (1 + of.tail)


@beside.defjvp
def _beside_rule(primals, tangents):
    d_p = jax.jvp(probability, primals, tangents)[1]
    return beside(*primals), total(jnp.where(_sole(*primals), 0, d_p), -1)


def _sole(x: Array, of: Frames) -> Array:
    """Which class has more than half of the probability."""
    return (finite_gap(x, of.top) == 0) & (of.tail < 1)


def logits_at(x: Array, classes: Array) -> Array:
    """The logits of the classes."""
    tpu = _by_select if classes.shape[-1] <= FEW else _logits_by_matmul
    return lax.platform_dependent(x, classes, tpu=tpu, default=_by_index)


def _entries(v: Array, classes: Array) -> Array:
    """The entries of the classes, linear in `v`."""
    if classes.shape[-1] <= FEW:
        # In reverse a select is part of the loop that has the softmax. A CPU would work that out
        # in the order of a matmul that takes it, column by column.
        return lax.platform_dependent(v, classes, cpu=_by_index, default=_by_select)
    # A TPU would gather and scatter along the last axis of a transposed copy.
    return lax.platform_dependent(v, classes, tpu=_by_matmul, default=_by_index)


def _by_index(v: Array, classes: Array) -> Array:
    return jnp.take_along_axis(v, classes, -1, mode="promise_in_bounds")


def _by_select(v: Array, classes: Array) -> Array:
    index = lax.broadcasted_iota(jnp.int32, (1,) * (v.ndim - 1) + v.shape[-1:], v.ndim - 1)
    each = [
        total(jnp.where(index == one, v, 0), -1)
        for one in jnp.split(classes, classes.shape[-1], -1)
    ]
    return jnp.concatenate(each, -1)


def _by_matmul(v: Array, classes: Array) -> Array:
    # At the highest precision a product with one, and a sum with zeros, are exact.
    one_hot = jax.nn.one_hot(classes[:, 0], v.shape[2], dtype=v.dtype)
    return jnp.einsum("btk,bmk->btm", v, one_hot, precision=lax.Precision.HIGHEST)


def _logits_by_matmul(x: Array, classes: Array) -> Array:
    # Zero times infinity is NaN: what stands for an infinity is finite.
    big = 2.0 ** (jnp.finfo(x.dtype).maxexp - 1)
    some = _by_matmul(jnp.clip(x, -big, big), classes)
    return jnp.where(jnp.abs(some) < big, some, 4 * some)
