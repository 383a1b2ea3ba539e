"""Losses of metric learning: distances or similarities against margins."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, pairs
from jaxloss._core.declare import takes
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.numerics import one_or_nan, relu, softplus, times
from jaxloss._core.pairs import AxisName, Side
from jaxloss._core.rows import logsumexp
from jaxloss._core.rules import jit_when_eager, tangent_sum
from jaxloss._core.vectors import inverse_power, norm


@takes(anchors="row", positives="row", negatives="row")
def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    axis: int = -1,
    norm_degree: ArrayLike = 2,
    margin: ArrayLike = 1.0,
    eps: ArrayLike = 1e-6,
    *,
    where: ArrayLike | None = None,
) -> Array:
    r"""Triplet loss: an anchor is to be nearer to its positive than to its negative.

    With a the anchor, p the positive, n the negative and q the degree of the norm:

        distance(a, b) = (sum_k |a_k - b_k| ** q + eps) ** (1 / q)
        loss = max(0, distance(a, p) - distance(a, n) + margin)

    Args:
        anchors: floating, of any shape with features along `axis`.
        positives, negatives: of the same shape, a scalar, or of the same rank with axes of
            size 1.
        axis: the axis of features.
        norm_degree: q, at least 1, not only an integer; may be traced, and has a derivative.
        margin: by how much the positive is to be nearer.
        eps: inside the root, which so has a derivative at a distance of zero.
        where: booleans of the shape of the losses: which triplets exist; 0 is the loss of
            others.

    Returns:
        The losses, of the shape of `anchors` without `axis`, in float32 (float64 for float64
        anchors).

    Raises:
        TypeError: a dtype is wrong. ValueError: shapes do not match, `axis` is not one of the
            anchors, or `norm_degree` or `eps` is out of range.

    At the margin the derivative is half of that above it. Where two entries are equal, that
    of their distance is 0; the second derivative there, which is infinite between the degrees
    1 and 2, is 0 below degree 2.

    References:
        Balntas et al., Learning Shallow Convolutional Feature Descriptors with Triplet Losses,
        BMVC 2016.

    >>> import jax.numpy as jnp, jaxloss
    >>> a, p, n = jnp.zeros(2), jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])
    >>> print(jaxloss.triplet_margin_loss(a, p, n), jaxloss.triplet_margin_loss(a, p, n, -1, 1))
    4.0 6.0
    """
    a = checks.predictions("anchors", anchors)
    p = checks.numeric("positives", positives, a.dtype)
    n = checks.numeric("negatives", negatives, a.dtype)
    shape = checks.common_shape("anchors", a, "positives", p)
    a = jnp.broadcast_to(a, shape)
    shape = checks.common_shape("anchors", a, "negatives", n)
    a, p, n = (jnp.broadcast_to(x, shape) for x in (a, p, n))
    (axis,) = checks.axes(axis, len(shape))
    # Squares and square roots are faster, and as a rule more accurate, than powers.
    square = isinstance(norm_degree, (int, float)) and norm_degree == 2
    finite = checks.Range(1.0, closed=False)
    degree = None if square else checks.scalar("norm_degree", norm_degree, a.dtype, finite)
    margin = checks.scalar("margin", margin, a.dtype)
    eps = checks.scalar("eps", eps, a.dtype, checks.NONNEGATIVE)
    where = inputs.mask_of(where, "losses", checks.without(shape, (axis,)))
    return _triplet(a, p, n, degree, margin, eps, where, axis=axis)


@partial(jit_when_eager, static_argnames="axis")
def _triplet(a, p, n, degree, margin, eps, where, *, axis):
    live = None if where is None else jnp.expand_dims(where, axis)
    a, p, n = inputs.mask(live, a, p, n)
    near, far = (_distance(a, b, degree, eps, axis) for b in (p, n))
    return inputs.masked(where, relu(near - far + margin))


def _distance(a: Array, b: Array, degree: Array | None, eps: Array, axis: int) -> Array:
    square = degree is None
    powers = (a - b) ** 2 if square else _power(a - b, degree, odd=False)
    total = jnp.sum(powers, axis) + eps
    zero = total == 0  # Without an eps; the root has no derivative there.
    total = jnp.where(zero, 1, total)
    root = jnp.sqrt(total) if square else total ** (1 / degree)
    return jnp.where(zero, 0, root)


# Powers of |d|, and those that also have its sign, are closed under differentiation:
#   d |d|**q = q sign(d) |d|**(q - 1) dd + log|d| |d|**q dq, and the same with the sign.


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _power(d: Array, q: Array, odd: bool) -> Array:
    """`|d| ** q`, zero at zero unless q is; with the sign of d if odd."""
    size = jnp.abs(d)
    zero = size == 0
    power = jnp.where(zero, 0, jnp.where(zero, 1, size) ** q)
    return jnp.sign(d) * power if odd else jnp.where(zero & (q == 0), 1, power)


@partial(_power.defjvp, symbolic_zeros=True)
def _power_rule(odd, primals, tangents):
    (d, q), (dd, dq) = primals, tangents
    out = _power(d, q, odd)

    def by_q():
        return times(out, jnp.log(jnp.where(d == 0, 1, jnp.abs(d)))) * dq

    return out, tangent_sum(out, (dd, lambda: q * _power(d, q - 1, not odd) * dd), (dq, by_q))


@takes(embeddings="embeddings", labels="labels")
def circle_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 80.0,
    margin: ArrayLike = 0.4,
    normalize: bool = True,
    detach_weights: bool = True,
    reference_embeddings: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
    remove_diagonal: bool | None = None,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Circle loss: each pair moves at a pace of its own, by how far it is from its optimum.

    With s_ij the cosine of rows i and j, P(i) the other rows with the label of i, N(i) those
    with another label, and m the margin:

        a_ij = max(0, 1 + m - s_ij)  for j in P(i),   max(0, s_ij + m)  for j in N(i)
        loss_i = log(1 + sum over n in N(i) of exp(gamma * a_in * (s_in - m))
                       * sum over p in P(i) of exp(-gamma * a_ip * (s_ip - 1 + m)))

    Args:
        embeddings: floating, of shape (batch, features).
        labels: integers of shape (batch,).
        gamma: scale, at least 0.
        margin: m, in [0, 1].
        normalize: whether s is the cosine; otherwise it is the inner product of the embeddings
            as they are, but at most 1.
        detach_weights: whether derivatives hold the weights a constant, as the paper does.
        reference_embeddings: what rows are compared with, of shape (references, features);
            by default the batch itself.
        reference_labels: their labels, of the dtype of `labels`.
        remove_diagonal: whether to leave out the pairs (i, i); by default, unless there are
            references.
        where: booleans of shape (batch,): which rows exist; 0 is the loss of others.
        chunk_size: how many rows meet all others at a time. By default all at once, in a few
            arrays of batch times batch numbers; with it there is never one of that size, and
            a derivative computes each block of similarities twice.
        axis_name: axes of `shard_map` along which the batch, and references, are split; the
            losses are this device's rows of those of the whole batch.

    Returns:
        The losses of the anchors in nats, of shape (batch,), in float32 (float64 for float64
        embeddings); 0 for an anchor without positive or without negative pairs.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape is, or a setting is out of range, or
        only one of the references is given.

    Derivatives at the kinks s = -m and s = 1 are the mean of those on both sides. A row of
    zeros has a cosine of 0 with every other and a gradient of 0. Inner products are exact to
    float32, on any platform; `jax.default_matmul_precision` can ask for less, which is faster.

    References:
        Sun et al., Circle Loss, 2020, arXiv:2002.10857. `keras.losses.Circle` is this with
        `normalize=False, detach_weights=False`.

    >>> import jax.numpy as jnp, jaxloss
    >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    >>> print(jaxloss.circle_loss(x, jnp.array([0, 0, 1]), gamma=1.0))
    [0.61634374 0.96167487 0.        ]
    """
    x = pairs.vectors("embeddings", embeddings)
    own = pairs.labels("labels", labels, "embeddings", x)
    if (reference_embeddings is None) != (reference_labels is None):
        raise ValueError("reference_embeddings and reference_labels go together")
    references = None
    if reference_embeddings is not None and reference_labels is not None:
        y = pairs.vectors("reference_embeddings", reference_embeddings, x.dtype)
        theirs = pairs.labels("reference_labels", reference_labels, "reference_embeddings", y)
        pairs.comparable(x, y, own, theirs)
        references = (y, theirs)
    settings = (
        checks.scalar("gamma", gamma, x.dtype, checks.NONNEGATIVE),
        checks.scalar("margin", margin, x.dtype, checks.SHARE),
    )
    live = pairs.mask(where, "embeddings", x)
    return _circle(
        x,
        own,
        references,
        settings,
        live,
        normalize=normalize,
        detach=detach_weights,
        diagonal=references is not None if remove_diagonal is None else not remove_diagonal,
        size=checks.chunk_size(chunk_size),
        axis_name=axis_name,
    )


@partial(
    jit_when_eager,
    static_argnames=("normalize", "detach", "diagonal", "size", "axis_name"),
)
@left_to_xla(1)
def _circle(x, labels, references, settings, live, *, normalize, detach, diagonal, size, axis_name):
    rows = others = pairs.side(x, labels, live, normalize, axis_name)
    if references is not None:
        y, theirs = references
        others = pairs.side(y, theirs, None, normalize, axis_name)
    others = pairs.columns(others, axis_name)
    if diagonal:
        others = others._replace(place=-1 - others.place)  # A row is in none of these places.
    block = partial(_circle_block, clip=not normalize, detach=detach)
    losses = pairs.sweep(block, rows, others, size, *settings)
    return inputs.masked(live, losses)


def _circle_block(rows, others, gamma, margin, *, clip, detach):
    s = pairs.products(rows, others)
    s = jnp.minimum(s, 1) if clip else s
    positive, negative = pairs.kinds(rows, others)
    weights = [jnp.maximum(1 + margin - s, 0), jnp.maximum(s + margin, 0)]
    pull, push = map(lax.stop_gradient, weights) if detach else weights

    def total(pairs, exponents):
        return logsumexp(jnp.where(pairs, gamma * exponents, -jnp.inf), 1)

    attraction = total(positive, pull * (1 - margin - s))
    repulsion = total(negative, push * (s - margin))
    return softplus(attraction + repulsion)[:, 0]


@takes(embeddings="embeddings", labels="labels")
def batch_hard_triplet_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    soft: bool = False,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Triplet loss of each row with its farthest positive and its nearest negative in the batch.

    With d_ij the Euclidean distance of rows i and j, P(i) the other rows with the label of i, N(i)
    those with another label, and m the margin:

        loss_i = max(0, m + max over p in P(i) of d_ip - min over n in N(i) of d_in)

    or, if soft, `log(1 + exp(max d_ip - min d_in))`.

    Args:
        embeddings: floating, of shape (batch, features), which are not normalised.
        labels: integers of shape (batch,).
        margin: m, by how much the farthest positive is to be nearer than the nearest negative.
        soft: whether a softplus takes the place of the hinge and its margin, so that triplets
            that are right already are still pulled apart.
        where: booleans of shape (batch,): which rows exist; 0 is the loss of others.
        chunk_size: how many rows meet all others at a time. By default all at once, in a few
            arrays of batch times batch numbers; with it there is never one of that size.
        axis_name: axes of `shard_map` along which the batch is split; the losses are this
            device's rows of those of the whole batch.

    Returns:
        The losses of the anchors, of shape (batch,), in float32 (float64 for float64 embeddings);
        0 for an anchor without a positive or without a negative.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape is.

    Distances are those of differences, and so exact for rows that are near each other and far from
    the origin, where the square root of `|x|**2 - 2 * x @ y + |y|**2` has no digits. They are
    computed of all pairs to find the hardest; derivatives take the time of two distances a row.

    The derivative goes to the hardest pairs; of several equally hard ones to the first. At the
    hinge it is half of that above it, and of a distance of 0 it is 0. A NaN or an infinity makes
    all losses NaN but those without a positive or without a negative. Distances below 1e-19 of the
    largest entry of the batch (1e-154 in float64) count as equal.

    References:
        Hermans, Beyer and Leibe, In Defense of the Triplet Loss for Person Re-Identification,
        2017, arXiv:1703.07737.

    >>> import jax.numpy as jnp, jaxloss
    >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 5.5]])
    >>> print(jaxloss.batch_hard_triplet_loss(x, jnp.array([0, 0, 1])))
    [0.5      2.645898 0.      ]
    """
    x = pairs.vectors("embeddings", embeddings)
    labels = pairs.labels("labels", labels, "embeddings", x)
    live = pairs.mask(where, "embeddings", x)
    margin = checks.scalar("margin", margin, x.dtype)
    size = checks.chunk_size(chunk_size)
    return _batch_hard(x, labels, margin, live, soft=soft, size=size, axis_name=axis_name)


@partial(jit_when_eager, static_argnames=("soft", "size", "axis_name"))
@left_to_xla(1)
def _batch_hard(x, labels, margin, live, *, soft, size, axis_name):
    rows = pairs.side(x, labels, live, False, axis_name)
    others = pairs.columns(rows, axis_name)
    if not rows.vectors.shape[0]:
        return jnp.sum(x, 1)  # Of nothing there is no hardest.
    # By a power of two no square that counts is lost.
    scale = inverse_power(jnp.max(jnp.abs(lax.stop_gradient(others.vectors)), initial=0))

    def held(side):
        return side._replace(vectors=lax.stop_gradient(side.vectors) * scale)

    *hardest, both = pairs.sweep(_hardest, held(rows), held(others), size)
    far, near = (
        norm(rows.vectors - others.vectors[jnp.where(both, i, rows.place)], 1) for i in hardest
    )
    losses = softplus(far - near) if soft else relu(margin + (far - near))
    # Whoever is compared is compared with all, so that an error is everybody's.
    losses *= one_or_nan(jnp.all(jnp.isfinite(others.vectors)), x.dtype)
    return inputs.masked(live, jnp.where(both, losses, 0))


def _hardest(rows: Side, others: Side) -> tuple[Array, Array, Array]:
    """The places of the farthest positive and the nearest negative, and whether there are both."""
    squares = jnp.sum(jnp.square(rows.vectors[:, None] - others.vectors[None]), 2)
    positive, negative = pairs.kinds(rows, others)
    return (
        jnp.argmax(jnp.where(positive, squares, -jnp.inf), 1),
        jnp.argmin(jnp.where(negative, squares, jnp.inf), 1),
        jnp.any(positive, 1) & jnp.any(negative, 1),
    )
