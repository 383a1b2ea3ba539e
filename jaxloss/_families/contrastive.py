"""Contrastive losses: each row of a batch of embeddings is to be told what belongs to it.

Similarities of all pairs become probabilities: of one row among all, or of each pair alone.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs, pairs
from jaxloss._core.declare import takes
from jaxloss._core.mapped import left_to_xla
from jaxloss._core.nll import label_nll, soft_nll
from jaxloss._core.numerics import softplus
from jaxloss._core.pairs import AxisName, Side
from jaxloss._core.reduce import per_size
from jaxloss._core.rows import logsumexp
from jaxloss._core.rules import jit_when_eager


@takes(embeddings="embeddings", labels="labels")
def ntxent(
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike = 0.07,
    *,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""NT-Xent: cross-entropy of each positive pair against the anchor's negatives.

    With s_ij the cosine of rows i and j, P the pairs of two rows with one label, and N(i)
    the rows with another label than i:

        loss = 1 / |P| * sum over (i, j) in P of
               -log(exp(s_ij / T) / (exp(s_ij / T) + sum over k in N(i) of exp(s_ik / T)))

    Args:
        embeddings: floating, of shape (batch, features), of any length but zero.
        labels: integers of shape (batch,); equal ones make a positive pair.
        temperature: T, positive; may be traced, and has a derivative.
        where: booleans of shape (batch,): which rows exist.
        chunk_size: how many rows meet all others at a time. By default all at once, in a few
            arrays of batch times batch numbers; with it there is never one of that size, and
            a derivative computes each block of similarities twice.
        axis_name: axes of `shard_map` along which the batch is split. Rows then meet those of
            all devices, and the result is this device's share: their sum is the whole loss.

    Returns:
        A scalar in nats, in float32 (float64 for float64 embeddings); 0 without positive pairs.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape is, or a setting is out of range.

    A row of zeros has a cosine of 0 with every other and a gradient of 0.
    Inner products are exact to float32, on any platform; `jax.default_matmul_precision` can ask
    for less, which is faster.

    References:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
        2020, arXiv:2002.05709.

    >>> import jax.numpy as jnp, jaxloss
    >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> print(jaxloss.ntxent(x, jnp.array([0, 0, 1, 1]), temperature=0.25))
    0.0359763
    """
    x = pairs.vectors("embeddings", embeddings)
    labels = pairs.labels("labels", labels, "embeddings", x)
    live = pairs.mask(where, "embeddings", x)
    temperature = checks.positive("temperature", temperature, x.dtype)
    size = checks.chunk_size(chunk_size)
    return _ntxent(x, labels, temperature, live, size=size, axis_name=axis_name)


@partial(jit_when_eager, static_argnames=("size", "axis_name"))
@left_to_xla(0)
def _ntxent(x, labels, temperature, live, *, size, axis_name):
    rows = pairs.side(x, labels, live, True, axis_name)
    others = pairs.columns(rows, axis_name)
    losses, counts = pairs.sweep(_ntxent_block, rows, others, size, temperature)
    count = jnp.sum(inputs.masked(live, counts))
    if axis_name is not None:
        count = lax.psum(count, axis_name)
    return per_size(jnp.sum(inputs.masked(live, losses)), count)


def _ntxent_block(rows: Side, others: Side, temperature: Array) -> tuple[Array, Array]:
    logits = pairs.products(rows, others) / temperature
    positive, negative = pairs.kinds(rows, others)
    against = logsumexp(jnp.where(negative, logits, -jnp.inf), 1)
    losses = jnp.where(positive, softplus(against - logits), 0)
    return jnp.sum(losses, 1), jnp.sum(positive, 1, dtype=logits.dtype)


@takes(queries="embeddings", keys="embeddings", extra_keys="shared", ids=("number", "integer"))
def info_nce(
    queries: ArrayLike,
    keys: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    symmetric: bool = False,
    normalize: bool = True,
    extra_keys: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""InfoNCE of two towers: each query picks its own key out of those of the batch.

    With s_ij the cosine of query i and key j:

        loss_i = -log(exp(s_ii / T) / sum_j exp(s_ij / T))

    where j runs over the keys of the batch and the extra ones.

    Args:
        queries: floating, of shape (batch, features).
        keys: of the same shape; row i belongs to query i, the other rows are its negatives.
        temperature: T, positive; may be traced, and has a derivative: `jnp.exp(-scale)` for a
            learned logit scale.
        symmetric: whether to average with the loss of each key picking its query, as CLIP does.
        normalize: whether s is the cosine, or the inner product of the embeddings as they are.
        extra_keys: of shape (extra, features), further negatives of all queries: hard ones, or a
            queue of earlier keys, of which `jax.lax.stop_gradient` keeps the derivative away. If
            symmetric, keys pick among the queries alone.
        ids: integers of shape (batch,), what each pair is of. Another pair with one's own id is
            no negative, and is left out of the sum. Extra keys have none.
        where: booleans of shape (batch,): which pairs exist; 0 is the loss of others.
        chunk_size: how many rows meet all others at a time. By default all at once, in a few
            arrays of batch times batch numbers; with it there is never one of that size, and
            a derivative computes each block of similarities twice.
        axis_name: axes of `shard_map` along which the batch, and extra keys, are split; the losses
            are this device's rows of those of the whole batch.

    Returns:
        The losses of the queries (of the pairs if symmetric) in nats, of shape (batch,), in
        float32 (float64 for float64 queries), exact also where they are tiny.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape is, or a setting is out of range.

    A row of zeros has a cosine of 0 with every other and a gradient of 0.
    Inner products are exact to float32, on any platform; `jax.default_matmul_precision` can ask
    for less, which is faster.

    References:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018,
        arXiv:1807.03748; symmetric: Radford et al., 2021, arXiv:2103.00020.

    >>> import jax.numpy as jnp, jaxloss
    >>> images, texts = jnp.eye(2), jnp.array([[1.0, 0.0], [0.6, 0.8]])
    >>> print(jaxloss.info_nce(images, texts, temperature=0.2))
    [0.126928 0.0181499]
    """
    x, y = pairs.towers("queries", queries, "keys", keys)
    if extra_keys is not None:
        extra_keys = pairs.vectors("extra_keys", extra_keys, x.dtype)
        pairs.same_features("queries", x, "extra_keys", extra_keys)
    if ids is not None:
        ids = pairs.labels("ids", ids, "queries", x)
    live = pairs.mask(where, "queries", x)
    temperature = checks.positive("temperature", temperature, x.dtype)
    size = checks.chunk_size(chunk_size)
    static = {"normalize": normalize, "size": size, "axis_name": axis_name}
    return _info_nce(x, y, extra_keys, ids, temperature, live, symmetric=symmetric, **static)


@partial(jit_when_eager, static_argnames=("symmetric", "normalize", "size", "axis_name"))
@left_to_xla(1)
def _info_nce(x, y, extra, ids, temperature, live, *, symmetric, normalize, size, axis_name):
    queries, keys = (pairs.side(a, ids, live, normalize, axis_name) for a in (x, y))

    def picking(rows, others):
        return pairs.sweep(_info_nce_block, rows, others, size, temperature)

    columns = pairs.columns(keys, axis_name)
    if extra is not None:
        more = pairs.columns(pairs.side(extra, None, None, normalize, axis_name), axis_name)
        columns = pairs.extended(columns, more)
    losses = picking(queries, columns)
    if symmetric:
        losses = (losses + picking(keys, pairs.columns(queries, axis_name))) / 2
    return inputs.masked(live, losses)


def _info_nce_block(rows: Side, others: Side, temperature: Array) -> Array:
    logits = pairs.products(rows, others) / temperature
    logits = inputs.exclude(pairs.present(others), logits, -jnp.inf)
    if rows.labels is not None:
        same, _ = pairs.kinds(rows, others)
        logits = jnp.where(same & (others.place >= 0)[None], -jnp.inf, logits)
    return label_nll(logits, rows.place[:, None], 1)[:, 0]


@takes(image_embeddings="embeddings", text_embeddings="embeddings")
def siglip_loss(
    image_embeddings: ArrayLike,
    text_embeddings: ArrayLike,
    *,
    temperature: ArrayLike = 10.0,
    bias: ArrayLike = -10.0,
    normalize: bool = True,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""SigLIP: whether image and text belong together, of all pairs; the temperature multiplies.

    With s_ij the cosine of image i and text j, and z_ij = 1 for i = j, else -1:

        loss_i = sum_j softplus(-z_ij * (t * s_ij + b))

    whose mean over i is the paper's loss.

    Args:
        image_embeddings: floating, of shape (batch, features).
        text_embeddings: of the same shape; row i belongs to image i.
        temperature: t, which multiplies the similarities, as in the paper; the temperatures of
            the other losses divide them. May be traced, like `bias`, and has a derivative.
        bias: b, which at first makes up for most pairs being negative.
        normalize: whether s is the cosine, or the inner product of the embeddings as they are.
        where: booleans of shape (batch,): which pairs exist; 0 is the loss of others.
        chunk_size: how many rows meet all others at a time. By default all at once, in a few
            arrays of batch times batch numbers; with it there is never one of that size, and
            a derivative computes each block of similarities twice.
        axis_name: axes of `shard_map` along which the batch is split; the losses are this
            device's rows of those of the whole batch.

    Returns:
        The losses of the images in nats, of shape (batch,), in float32 (float64 for float64
        images).

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape is, or a setting is out of range.

    A row of zeros has a cosine of 0 with every other and a gradient of 0.
    Inner products are exact to float32, on any platform; `jax.default_matmul_precision` can ask
    for less, which is faster.

    References:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, arXiv:2303.15343.

    >>> import jax.numpy as jnp, jaxloss
    >>> images, texts = jnp.eye(2), jnp.array([[1.0, 0.0], [0.6, 0.8]])
    >>> print(jaxloss.siglip_loss(images, texts))
    [0.711297 2.12697]
    """
    x, y = pairs.towers("image_embeddings", image_embeddings, "text_embeddings", text_embeddings)
    live = pairs.mask(where, "image_embeddings", x)
    temperature = checks.scalar("temperature", temperature, x.dtype)
    bias = checks.scalar("bias", bias, x.dtype)
    size = checks.chunk_size(chunk_size)
    static = {"normalize": normalize, "size": size, "axis_name": axis_name}
    return _siglip(x, y, temperature, bias, live, **static)


@partial(jit_when_eager, static_argnames=("normalize", "size", "axis_name"))
@left_to_xla(1)
def _siglip(x, y, temperature, bias, live, *, normalize, size, axis_name):
    images, texts = (pairs.side(a, None, live, normalize, axis_name) for a in (x, y))
    texts = pairs.columns(texts, axis_name)
    losses = pairs.sweep(_siglip_block, images, texts, size, temperature, bias)
    return inputs.masked(live, losses)


def _siglip_block(rows: Side, others: Side, temperature: Array, bias: Array) -> Array:
    logits = temperature * pairs.products(rows, others) + bias
    losses = softplus(jnp.where(pairs.same_place(rows, others), -logits, logits))
    return jnp.sum(inputs.masked(pairs.present(others), losses), 1)


@takes(embeddings="embeddings", labels="labels")
def supervised_contrastive_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array:
    r"""Supervised contrastive loss: each row picks, in the mean, all rows of its label.

    With s_ij the cosine of rows i and j, and P(i) the other rows with the label of i:

        loss_i = -1 / |P(i)| * sum over p in P(i) of
                 log(exp(s_ip / T) / sum over k != i of exp(s_ik / T))

    Args:
        embeddings: floating, of shape (batch, features), of any length but zero.
        labels: integers of shape (batch,).
        temperature: T, positive; may be traced, and has a derivative.
        where: booleans of shape (batch,): which rows exist; 0 is the loss of others.
        chunk_size: how many rows meet all others at a time. By default all at once, in a few
            arrays of batch times batch numbers; with it there is never one of that size, and
            a derivative computes each block of similarities twice.
        axis_name: axes of `shard_map` along which the batch is split; the losses are this
            device's rows of those of the whole batch.

    Returns:
        The losses of the anchors in nats, of shape (batch,), in float32 (float64 for float64
        embeddings); 0 for an anchor that is alone with its label.

    Raises:
        TypeError: a dtype is wrong. ValueError: a shape is, or a setting is out of range.

    A row of zeros has a cosine of 0 with every other and a gradient of 0.
    Inner products are exact to float32, on any platform; `jax.default_matmul_precision` can ask
    for less, which is faster.

    References:
        Khosla et al., Supervised Contrastive Learning, 2020, arXiv:2004.11362, equation 2.

    >>> import jax.numpy as jnp, jaxloss
    >>> x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> labels = jnp.array([0, 0, 1])
    >>> print(jaxloss.supervised_contrastive_loss(x, labels, temperature=0.25))
    [0.01814993 0.01814993 0.        ]
    """
    x = pairs.vectors("embeddings", embeddings)
    labels = pairs.labels("labels", labels, "embeddings", x)
    live = pairs.mask(where, "embeddings", x)
    temperature = checks.positive("temperature", temperature, x.dtype)
    size = checks.chunk_size(chunk_size)
    return _supervised(x, labels, temperature, live, size=size, axis_name=axis_name)


@partial(jit_when_eager, static_argnames=("size", "axis_name"))
@left_to_xla(1)
def _supervised(x, labels, temperature, live, *, size, axis_name):
    rows = pairs.side(x, labels, live, True, axis_name)
    others = pairs.columns(rows, axis_name)
    losses = pairs.sweep(_supervised_block, rows, others, size, temperature)
    return inputs.masked(live, losses)


def _supervised_block(rows: Side, others: Side, temperature: Array) -> Array:
    logits = pairs.products(rows, others) / temperature
    positive, negative = pairs.kinds(rows, others)
    logits = jnp.where(positive | negative, logits, -jnp.inf)
    positive = positive.astype(logits.dtype)
    share = per_size(positive, jnp.sum(positive, 1, keepdims=True))
    return soft_nll(logits, share, 1)[:, 0]
