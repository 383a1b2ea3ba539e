"""Softmax losses of cosines with a margin of angle or cosine, for many classes."""

import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, pairs
from jaxloss._core.checks import Range
from jaxloss._core.declare import takes
from jaxloss._core.nll import is_label
from jaxloss._core.numerics import one_or_nan, softplus
from jaxloss._core.rows import logsumexp
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.split import ClassAxis, Split, local_labels, total_classes
from jaxloss._core.vectors import unit_vector
from jaxloss.linear import _operands
from jaxloss.linear._head import Head, logits_dtype
from jaxloss.linear._operands import AxisName
from jaxloss.linear._rule import per_token
from jaxloss.linear._sharding import automatic
from jaxloss.linear._tokens import TokenSweep


@takes(embeddings="row", prototypes="shared", labels="labels")
def arcface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""ArcFace: softmax cross-entropy of cosines, with a margin on the angle to the label.

    With c_j the cosine of an embedding and the prototype of class j, theta_k the angle to that of
    its label k, m the margin and s the scale:

        loss = log(1 + sum over j != k of exp(s * (c_j - t_k)))
        t_k = cos(theta_k + m), or cos(theta_k) - m * sin(m) where theta_k + m > pi

    Args:
        embeddings: floating, [..., D], of any length: they are normalised here.
        prototypes: one of each class, floating, [C, D], likewise.
        labels: integers in [0, C), of the shape of `embeddings` without its last axis. Any other
            label makes the loss NaN; under `jax.experimental.checkify` it is reported.
        margin: m, in radians, in [0, pi / 2].
        scale: s, the inverse of a temperature, positive.
        where: booleans of the shape of `labels`, or of its leading axes; 0 is the loss of others.
        ignore_index: 0 is the loss of examples with this label.
        chunk_size: how many examples to take at once. The default makes cosines of 64 MiB, but
            takes no fewer than min(D, 1024), so that matmuls stay large.
        axis_name: inside `shard_map`, the mesh axes over which the classes of `prototypes` are
            split; labels are those of all classes.

    Returns:
        The losses in nats, of the shape of `labels`, in float32 (float64 for float64 operands).

    Raises:
        TypeError: embeddings or prototypes are not floating point, labels not integers, `where`
            not boolean.
        ValueError: shapes do not match; a setting is out of its range; with `axis_name`,
            prototypes that are not split over it.

    Cosines exist for one chunk of examples at a time, in value and every derivative; reverse mode
    computes them once more. On a CPU value and both gradients need `4 K C` bytes for chunks of K
    examples, and `16 C D` for unit vectors of the prototypes and their gradient. Inner products
    are exact to float32, on any platform; `jax.default_matmul_precision` can ask for less, which
    is faster.

    The angle has a kink where an embedding points exactly to its prototype, theta_k = 0 as far as
    rounding tells (8 units); all derivatives of the angle's sine are 0 there. At theta_k = pi the
    loss is smooth. Where theta_k + m passes pi it jumps upwards, and has the derivatives of its
    side. A row of zeros has a cosine of 0 with all others and a gradient of 0.

    References:
        Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2018,
        arXiv:1801.07698.

    >>> import jax.numpy as jnp, jaxloss
    >>> embeddings = jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> prototypes = jnp.array([[1.0, 0.0], [0.0, 3.0]])
    >>> print(jaxloss.arcface_loss(embeddings, prototypes, jnp.array([0, 1]), scale=4.0))
    [0.02944913 1.869705  ]
    """
    return _angular(
        embeddings, prototypes, labels, margin, scale, where,
        of=_arcface, margins=Range(0.0, math.pi / 2), ignore_index=ignore_index,
        chunk_size=chunk_size, axis_name=axis_name,
    )  # fmt: skip


@takes(embeddings="row", prototypes="shared", labels="labels")
def cosface_loss(
    embeddings: ArrayLike,
    prototypes: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.35,
    scale: ArrayLike = 64.0,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""CosFace: softmax cross-entropy of cosines, with a margin on the cosine of the label.

    With c_j the cosine of an embedding and the prototype of class j, k its label, m the margin and
    s the scale:

        loss = log(1 + sum over j != k of exp(s * (c_j - c_k + m)))

    Args:
        margin: m; a negative one relaxes.
        embeddings, prototypes, labels, scale, where, ignore_index, chunk_size, axis_name: see
            `arcface_loss`.

    Returns, raises, memory: see `arcface_loss`.

    It is smooth everywhere but at embeddings and prototypes of zeros, which have a cosine of 0 with
    all others and a gradient of 0.

    References:
        Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition, 2018,
        arXiv:1801.09414; as AM-Softmax, Wang et al., 2018, arXiv:1801.05599.

    >>> import jax.numpy as jnp, jaxloss
    >>> embeddings = jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> prototypes = jnp.array([[1.0, 0.0], [0.0, 3.0]])
    >>> print(jaxloss.cosface_loss(embeddings, prototypes, jnp.array([0, 1]), scale=4.0))
    [0.0716447 1.6204174]
    """
    return _angular(
        embeddings, prototypes, labels, margin, scale, where,
        of=_cosface, margins=None, ignore_index=ignore_index,
        chunk_size=chunk_size, axis_name=axis_name,
    )  # fmt: skip


def _arcface(u: Array, v: Array, margin: Array) -> Array:
    cosine, sine = _cosine(u, v), _sine(u, v)
    of_m = jnp.cos(margin), jnp.sin(margin)
    beyond = sine * of_m[0] + cosine * of_m[1] < 0  # The sine of theta + m.
    return jnp.where(beyond, cosine - margin * of_m[1], cosine * of_m[0] - sine * of_m[1])


def _cosface(u: Array, v: Array, margin: Array) -> Array:
    return _cosine(u, v) - margin


def _cosine(u: Array, v: Array) -> Array:
    return jnp.sum(u * v, 1)


def _sine(u: Array, v: Array) -> Array:
    """Of the angle between two vectors of length one, and 1 if one of them is zero.

    Not `sqrt(1 - cosine**2)`, which has no digits left of a small angle. See Kahan, How Futile are
    Mindless Assessments of Roundoff in Floating-Point Computation?, 2006, section 12.
    """
    no_angle = (_cosine(u, u) == 0) | (_cosine(v, v) == 0)
    return jnp.where(no_angle, 1, _distance(u - v) * _distance(u + v) / 2)


def _distance(d: Array) -> Array:
    """`|d|`, of a sum or difference of two unit vectors; held if it is of the size of rounding."""
    squares = _cosine(d, d)
    rounding = squares < (8 * float(jnp.finfo(d.dtype).eps)) ** 2
    size = jnp.sqrt(jnp.where(rounding, 1, squares))
    return jnp.where(rounding, jnp.sqrt(lax.stop_gradient(squares)), size)


def _angular(
    embeddings, prototypes, labels, margin, scale, where,
    *, of, margins, ignore_index, chunk_size, axis_name,
):  # fmt: skip
    head = _head(embeddings, prototypes, axis_name)
    shape, dtype = head.hidden.shape[:-1], logits_dtype(head)
    classes = total_classes(head.weight.shape[0], _operands.class_axis(axis_name))
    labels = _operands.labels_of(labels, shape, classes, ignore_index, "embeddings")
    margin = checks.scalar("margin", margin, dtype, margins)
    scale = checks.positive("scale", scale, dtype)
    where = _operands.of_tokens("where", where, shape, jnp.bool_)
    where = inputs.not_ignored(where, labels, ignore_index)
    return _losses(
        head, labels, margin, scale, where,
        of=of, chunk_size=checks.chunk_size(chunk_size), axis_name=axis_name,
    )  # fmt: skip


def _head(embeddings: ArrayLike, prototypes: ArrayLike, axis_name: AxisName) -> Head:
    x, p = checks.floating("embeddings", embeddings), checks.floating("prototypes", prototypes)
    if p.ndim != 2 or x.ndim < 1 or x.shape[-1] != p.shape[1] or 0 in p.shape:
        raise ValueError(
            f"embeddings of shape {x.shape} do not match prototypes of shape {p.shape}: expected "
            f"embeddings of [..., D] and prototypes of [C, D], one row of each class"
        )
    _operands.check_split("prototypes", p, axis_name, "class")
    dtype = logits_dtype(head := Head(x, p))
    return Head(*(a.astype(dtype) for a in head))


@partial(jit_when_eager, static_argnames=("of", "chunk_size", "axis_name"))
def _losses(head, labels, *settings, **static):
    return automatic(partial(_formula, **static), labels, head, labels, *settings)


def _formula(head, labels, margin, scale, where, *, of, chunk_size, axis_name):
    # Only the label's cosine has a margin: loss = softplus(log-sum-exp of the others - target).
    shape, axis = labels.shape, _operands.class_axis(axis_name)
    local_classes = head.weight.shape[0]
    classes = total_classes(local_classes, axis)
    labels, where = _operands.flatten(labels, where)
    dead = None if where is None else ~where
    (head,), labels = _operands.without(dead, (_operands.flatten_tokens(head),), labels, classes)
    u, v = (unit_vector(a, 1) for a in head)
    size = _operands.chunk_of_tokens(chunk_size, *u.shape, local_classes)
    sweep = TokenSweep(_of_others, axis, size, True, pairs.precision())
    others, _ = per_token(sweep, (Head(scale * u, v),), labels, ())
    target = scale * _of_label(partial(of, margin=margin), u, v, labels, axis)
    valid = (labels >= 0) & (labels < classes)
    loss = softplus(others - target) * one_or_nan(valid, u.dtype)
    return inputs.masked(where, loss).reshape(shape)


def _of_others(logits: tuple[Array, ...], labels: Array, _: tuple[()], axis: ClassAxis) -> Array:
    """The log-sum-exp of the logits of all classes but the label."""
    (x,) = logits
    return logsumexp(jnp.where(is_label(labels[:, None], x, axis), -jnp.inf, x), axis)[:, 0]


def _of_label(
    of: Callable[[Array, Array], Array], u: Array, v: Array, labels: Array, axis: ClassAxis
) -> Array:
    """`of(u, v)` with the label's row of `v`; of any row if the label is none."""
    n = v.shape[0]
    local = local_labels(labels, n, axis)
    row = jnp.clip(local, 0, n - 1)
    target = of(u, v.at[row].get(mode="promise_in_bounds"))
    if not isinstance(axis, Split):
        return target
    return lax.psum(jnp.where(local == row, target, 0), axis.axis_name)
