"""Rows of the contrastive losses: an example is a batch of three embeddings of two numbers.

Such a row has six numbers, and one value: its losses, each with a weight of its own. The scale of
errors is what similarities contribute to a derivative before those parts of it that cannot
turn an embedding are projected out, times the gain of rounding a similarity, which the
temperature and the exponentials of the losses magnify.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, Model, softplus

ROWS, SIZE = 3, 6
# Of a model: features of an embedding, and batch sizes.
FEATURES, PAIRS = 128, (256, 512, 1024)
PATTERNS = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 2]], np.int32)
WEIGHTS = [1.0, 0.5, 2.0]
T = 0.25

BATCHES = [
    np.float32(row)
    for row in (
        [1, 0.1, 1, -0.1, 0.2, 1],
        [0.3, -2, 1, 1, -1.5, 0.25],
        [2, 1, -1, -0.5, 0.5, 3],
        [1, 0, 1, 1e-3, -1, 2e-3],
        [1e-3, 2e-3, 40, -7, 0.5, 0.5],
    )
]
KEYS = [np.roll(row, 2) * np.float32(0.75) + np.float32(0.125) for row in BATCHES]
ALIKE = [np.float32([1, 0.1, -1, 0.1, 0, -3]), np.float32([1, 0.2, -1, 0.1, 0.125, -2])]
LABELLED = [(x, k) for x in BATCHES for k in (0, 1)] + [(BATCHES[0], 3), (BATCHES[1], 4)]
TOWERS = [*zip(BATCHES, KEYS, strict=True), (BATCHES[1], BATCHES[1]), tuple(ALIKE)]


def _total(losses):
    losses = jnp.asarray(losses)
    return losses if losses.ndim == 0 else jnp.sum(losses * jnp.array(WEIGHTS, losses.dtype))


def _labelled(loss):
    def one(x, k):
        return _total(loss(jnp.reshape(x, (ROWS, -1)), jnp.asarray(PATTERNS)[k]))

    return jnp.vectorize(one, signature="(n),()->()")


def _towers(loss):
    def one(x, y):
        return _total(loss(jnp.reshape(x, (ROWS, -1)), jnp.reshape(y, (ROWS, -1))))

    return jnp.vectorize(one, signature="(n),(n)->()")


def _length(v):
    return mp.sqrt(sum(a * a for a in v))


def _embeddings(row):
    return [row[2 * i : 2 * i + 2] for i in range(ROWS)]


def _cosines(x, y):
    return [
        [
            sum(a * b for a, b in zip(u, v, strict=True)) / (_length(u) * _length(v))
            for v in _embeddings(y)
        ]
        for u in _embeddings(x)
    ]


def _weighted(losses):
    return sum((w * v for w, v in zip(WEIGHTS, losses, strict=True)), mpf(0))


def _on_scale(total, scale):
    """The total, and two terms that cancel, so that the absolute values add up to the scale."""
    extra = (scale - abs(total)) / 2
    return [total, extra, -extra]


@functools.cache
def _derivatives(f, at, rank):
    """All derivatives of that order, by sorted indices."""
    out = {}
    for index in itertools.combinations_with_replacement(range(len(at)), rank):
        order = tuple(index.count(i) for i in range(len(at)))
        out[index] = mp.diff(lambda *v: f(v), at, order)
    return out


@functools.cache
def _function(total, other, by):
    return lambda v: total(v, other) if by == 0 else total(other, v)


def _matmuls(n):
    """All similarities, and the gradient by the embeddings of each side."""
    return [(n, FEATURES, n), (n, n, FEATURES), (n, n, FEATURES)]


def _pairs_model(loss, naive, integer):
    def sample(rng, n):
        x, y = rng.normal(size=(2, n, FEATURES)).astype(np.float32)
        # Two views of each image, or captions that resemble theirs.
        return (x, np.arange(n, dtype=np.int32) // 2) if integer else ((x, x + y), None)

    if integer:
        return Model(fn=loss, naive=naive, sample=sample, sizes=PAIRS, matmuls=_matmuls)
    return Model(
        fn=lambda x, _: loss(*x),
        naive=lambda x, _: naive(*x),
        sample=sample,
        sizes=PAIRS,
        matmuls=_matmuls,
    )


def _case(name, fn, naive, total, scale, points, **fields):
    """A row with the derivatives of `total`; `scale(x, y, by, *index)` is that of their errors."""

    def terms(x, y, by, *index):
        x, y = tuple(x), y if isinstance(y, int) else tuple(y)
        at, other = (x, y) if by == 0 else (y, x)
        exact = _derivatives(_function(total, other, by), at, len(index))[tuple(sorted(index))]
        return _on_scale(exact, scale(x, y, by, *index))

    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda x, y: terms(x, y, 0),
        gradient=lambda x, y, i: terms(x, y, 0, i),
        hessian=lambda x, y, i, j: terms(x, y, 0, i, j),
        target_gradient=lambda x, y, i: terms(x, y, 1, i),
        predictions="real",
        targets="integer" if isinstance(points[0][1], int) else "real",
        points=points,
        size=SIZE,
        sizes=(),
        **fields,
    )


def _pairs_case(name, loss, naive, of, gain, points, **in_the_table):
    """A row of the loss `of(cosines, target)`."""
    integer = isinstance(points[0][1], int)
    of_flat = _labelled if integer else _towers

    def total(x, y):
        return of(_cosines(x, x if integer else y), y if integer else None)

    @functools.cache
    def flat(k):
        return lambda s: of([s[ROWS * i : ROWS * (i + 1)] for i in range(ROWS)], k)

    def scale(x, y, by, *index):
        s = tuple(v for row in _cosines(x, x if integer else y) for v in row)
        f = flat(y if integer else None)
        slopes, curvatures = (
            sum((abs(d) for d in _derivatives(f, s, order).values()), mpf(0)) for order in (1, 2)
        )
        sizes = [gain * abs(f(s)), gain * slopes + curvatures, gain * (curvatures + 2 * slopes)]
        lengths = [v for u in _embeddings((x, y)[by]) for v in [_length(u)] * 2]
        return sizes[len(index)] / mp.fprod(lengths[i] for i in index)

    return _case(
        name,
        of_flat(functools.partial(loss, **in_the_table)),
        of_flat(naive),
        total,
        scale,
        points,
        model=_pairs_model(loss, naive, integer),
    )


def _pairs_of(k):
    """Each anchor with its positives and its negatives."""
    label, n = PATTERNS[k], range(ROWS)
    for i in n:
        alike = [j for j in n if label[j] == label[i]]
        yield i, [j for j in alike if j != i], [j for j in n if j not in alike]


def _ntxent(s, k):
    losses = []
    for i, positives, negatives in _pairs_of(k):
        others = sum((mp.exp(s[i][n] / T) for n in negatives), mpf(0))
        losses += [mp.log1p(others * mp.exp(-s[i][p] / T)) for p in positives]
    return sum(losses, mpf(0)) / max(len(losses), 1)


def _supervised(s, k):
    losses = []
    for i, positives, negatives in _pairs_of(k):
        everything = [*positives, *negatives]
        nll = [
            mp.log1p(sum((mp.exp((s[i][a] - s[i][p]) / T) for a in everything if a != p), mpf(0)))
            for p in positives
        ]
        losses.append(sum(nll, mpf(0)) / max(len(nll), 1))
    return _weighted(losses)


def _picking(s):
    n = range(ROWS)
    return [
        mp.log1p(sum((mp.exp((s[i][j] - s[i][i]) / T) for j in n if j != i), mpf(0))) for i in n
    ]


def _info_nce(s, _):
    return _weighted(_picking(s))


SCALE, BIAS = 4, mpf("-2.5")


def _siglip(s, _):
    n = range(ROWS)
    return _weighted(
        sum(softplus((-1 if i == j else 1) * (SCALE * s[i][j] + BIAS)) for j in n) for i in n
    )


GAMMA, MARGIN = 3, mpf("0.25")


def _circle(s, k):
    losses = []
    for i, positives, negatives in _pairs_of(k):
        pull = sum(
            mp.exp(-GAMMA * max(1 + MARGIN - s[i][p], mpf(0)) * (s[i][p] - 1 + MARGIN))
            for p in positives
        )
        push = sum(
            mp.exp(GAMMA * max(s[i][n] + MARGIN, mpf(0)) * (s[i][n] - MARGIN)) for n in negatives
        )
        losses.append(mp.log1p(pull * push))
    return _weighted(losses)


def _triplets(x, y):
    """Two triplets of two numbers each: anchors, positives, negatives."""
    return (x[..., :2], x[..., 2:4], y[..., :2]), (x[..., 4:], y[..., 2:4], y[..., 4:])


def _distances(x, y, degree):
    """Of each anchor to its positive, and of each to its negative."""

    def distance(u, v):
        powers = [abs(a - b) ** degree for a, b in zip(u, v, strict=True)]
        return (sum(powers) + mpf("1e-6")) ** (mpf(1) / degree)

    x, y = list(x), list(y)
    near = distance(x[:2], x[2:4]) + distance(x[4:], y[2:4])
    return near, distance(x[:2], y[:2]) + distance(x[4:], y[4:])


def _triplet_case(degree, points):
    def loss(a, p, n):
        return jaxloss.triplet_margin_loss(a, p, n, norm_degree=degree, margin=8.0)

    def plain(a, p, n):
        near, far = (jnp.sum(jnp.abs(a - v) ** degree + 1e-6, -1) ** (1 / degree) for v in (p, n))
        return jnp.maximum(near - far + 8, 0)

    def theirs(a, p, n):
        return optax.losses.triplet_margin_loss(a, p, n, -1, degree, 8.0)

    def both(f):
        return lambda x, y: sum(f(*triplet) for triplet in _triplets(x, y))

    def total(x, y):
        near, far = _distances(x, y, degree)
        return near - far + 16  # Each is positive at all points.

    def scale(x, y, by, *index):
        row, other = (x, y)[by], (y, x)[by]
        parts = [_part(degree, 0), _part(degree, 1)]
        sizes = [_derivatives(_function(f, other, by), row, len(index)) for f in parts]
        largest = [max(abs(d) for d in of.values()) for of in sizes]
        return 2 * sum(largest) + (0 if index else 16)

    def triplets(rng, n):
        return tuple(rng.normal(size=(3, n, FEATURES)).astype(np.float32)), None

    return _case(
        f"triplet_margin_loss(norm_degree={degree})",
        both(loss),
        both(plain),
        total,
        scale,
        points,
        optax=both(theirs) if degree == 2 else None,
        model=Model(
            fn=lambda x, _: loss(*x),
            naive=lambda x, _: plain(*x),
            sample=triplets,
            sizes=(8192, 65536, 131072),
        ),
        # XLA's powers are themselves a few units off, and there are five of them in a Hessian.
        ulps=8 if degree == 2 else 16,
    )


@functools.cache
def _part(degree, which):
    return lambda x, y: _distances(x, y, degree)[which]


APART = [
    (np.float32(x), np.float32(y))
    for x, y in (
        ([1, 0.5, -1, 2, 0, 3], [1.5, 1, 1, 2.5, 0.5, -1]),
        ([0.25, -2, 1, 1, -1.5, 4], [-0.75, 0.5, 1.25, 0.5, 2, 1]),
        ([30, 2, -3, 0.01, 0.5, 7], [29.75, 3, -2, 0.25, 1.5, 4]),
    )
]
TOUCHING = [(np.float32([1, 2, 1, 2, 2, 1.5]), np.float32([1, 2, 2, 1.5, 2.5, 2]))]


def _naive_ntxent(x, k):
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    e = jnp.exp(x @ x.T / T)
    alike = k[:, None] == k[None, :]
    pairs = alike & ~jnp.eye(len(k), dtype=bool)
    against = jnp.sum(jnp.where(alike, 0, e), 1, keepdims=True)
    return jnp.sum(jnp.where(pairs, -jnp.log(e / (e + against)), 0)) / jnp.sum(pairs)


def _naive_supervised(x, k):
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    e = jnp.exp(x @ x.T / T) * (1 - jnp.eye(len(k)))
    pairs = (k[:, None] == k[None, :]) & ~jnp.eye(len(k), dtype=bool)
    nll = jnp.where(pairs, -jnp.log(e / jnp.sum(e, 1, keepdims=True)), 0)
    return jnp.sum(nll, 1) / jnp.sum(pairs, 1)


def _naive_info_nce(x, y):
    x, y = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    return -jnp.log(jnp.diagonal(jax.nn.softmax(x @ y.T / T)))


def _naive_siglip(x, y):
    x, y = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    signs = 2 * jnp.eye(len(x)) - 1
    return -jnp.sum(jnp.log(jax.nn.sigmoid(signs * (SCALE * x @ y.T + float(BIAS)))), 1)


def _naive_circle(x, k):
    s = x @ x.T
    alike = k[:, None] == k[None, :]
    m = float(MARGIN)
    pull = jnp.exp(-GAMMA * jnp.maximum(1 + m - s, 0) * (s - 1 + m))
    push = jnp.exp(GAMMA * jnp.maximum(s + m, 0) * (s - m))
    pairs = alike & ~jnp.eye(len(k), dtype=bool)
    attraction = jnp.sum(jnp.where(pairs, pull, 0), 1)
    return jnp.log(1 + attraction * jnp.sum(jnp.where(alike, 0, push), 1))


def _normalized(naive):
    return lambda x, k: naive(x / jnp.linalg.norm(x, axis=1, keepdims=True), k)


def _set(loss, **options):
    return functools.partial(loss, **options)


CIRCLE = {"gamma": GAMMA, "margin": float(MARGIN), "detach_weights": False}

# The gain is one plus the steepest slope of an exponent by a similarity, twice where the
# exponent is a difference of two. Similarities, with their lengths, are off by a few units.
CASES = [
    _pairs_case(
        f"ntxent(temperature={T})",
        _set(jaxloss.ntxent, temperature=T),
        _naive_ntxent,
        _ntxent,
        1 + 2 / T,
        LABELLED,
    ),
    _pairs_case(
        f"info_nce(temperature={T}, chunk_size=2)",
        _set(jaxloss.info_nce, temperature=T),
        _naive_info_nce,
        _info_nce,
        1 + 2 / T,
        TOWERS,
        chunk_size=2,
    ),
    _pairs_case(
        "siglip_loss",
        _set(jaxloss.siglip_loss, temperature=SCALE, bias=float(BIAS)),
        _naive_siglip,
        _siglip,
        1 + SCALE,
        TOWERS,
    ),
    _pairs_case(
        f"supervised_contrastive_loss(temperature={T})",
        _set(jaxloss.supervised_contrastive_loss, temperature=T),
        _naive_supervised,
        _supervised,
        1 + 2 / T,
        LABELLED,
    ),
    _pairs_case(
        "circle_loss(detach_weights=False)",
        _set(jaxloss.circle_loss, **CIRCLE),
        _normalized(_naive_circle),
        _circle,
        1 + 4 * GAMMA,
        LABELLED,
    ),
    _triplet_case(2, APART + TOUCHING),
    _triplet_case(3.5, APART),
]
