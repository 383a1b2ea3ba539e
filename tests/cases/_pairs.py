"""Rows of the losses of pairs: an example is a batch of three embeddings of two numbers.

Such a row has six numbers, and one value: its losses, each with a weight of its own. The scale of
errors is what similarities contribute to a derivative before those parts of it that cannot
turn an embedding are projected out, times the gain of rounding a similarity, which the
temperature and the exponentials of the losses magnify.
"""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

from tests.cases._case import Case, Model

ROWS, SIZE = 3, 6
# Of a model: features of an embedding, and batch sizes.
FEATURES, PAIRS = 128, (256, 512, 1024)
PATTERNS = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 2]], np.int32)
WEIGHTS = [1.0, 0.5, 2.0]

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
LABELLED = [(x, k) for x in BATCHES for k in (0, 1)] + [(BATCHES[0], 3), (BATCHES[1], 4)]


def _total(losses):
    losses = jnp.asarray(losses)
    return losses if losses.ndim == 0 else jnp.sum(losses * jnp.array(WEIGHTS, losses.dtype))


def labelled(loss):
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


def weighted(losses):
    return sum((w * v for w, v in zip(WEIGHTS, losses, strict=True)), mpf(0))


def _on_scale(total, scale):
    """The total, and two terms that cancel, so that the absolute values add up to the scale."""
    extra = (scale - abs(total)) / 2
    return [total, extra, -extra]


@functools.cache
def derivatives(f, at, rank):
    """All derivatives of that order, by sorted indices."""
    out = {}
    for index in itertools.combinations_with_replacement(range(len(at)), rank):
        order = tuple(index.count(i) for i in range(len(at)))
        out[index] = mp.diff(lambda *v: f(v), at, order)
    return out


@functools.cache
def function(total, other, by):
    return lambda v: total(v, other) if by == 0 else total(other, v)


def _matmuls(n):
    """All similarities, and the gradient by the embeddings of each side."""
    return [(n, FEATURES, n), (n, n, FEATURES), (n, n, FEATURES)]


def pairs_model(loss, naive, integer):
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


def batch_case(name, fn, naive, total, scale, points, **fields):
    """A row with the derivatives of `total`; `scale(x, y, by, *index)` is that of their errors."""

    def terms(x, y, by, *index):
        x, y = tuple(x), y if isinstance(y, int) else tuple(y)
        at, other = (x, y) if by == 0 else (y, x)
        exact = derivatives(function(total, other, by), at, len(index))[tuple(sorted(index))]
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


def pairs_case(name, loss, naive, of, gain, points, **in_the_table):
    """A row of the loss `of(cosines, target)`.

    The gain is one plus the steepest slope of an exponent by a similarity, twice where the
    exponent is a difference of two. Similarities, with their lengths, are off by a few units.
    """
    integer = isinstance(points[0][1], int)
    of_flat = labelled if integer else _towers

    def total(x, y):
        return of(_cosines(x, x if integer else y), y if integer else None)

    @functools.cache
    def flat(k):
        return lambda s: of([s[ROWS * i : ROWS * (i + 1)] for i in range(ROWS)], k)

    def scale(x, y, by, *index):
        s = tuple(v for row in _cosines(x, x if integer else y) for v in row)
        f = flat(y if integer else None)
        slopes, curvatures = (
            sum((abs(d) for d in derivatives(f, s, order).values()), mpf(0)) for order in (1, 2)
        )
        sizes = [gain * abs(f(s)), gain * slopes + curvatures, gain * (curvatures + 2 * slopes)]
        lengths = [v for u in _embeddings((x, y)[by]) for v in [_length(u)] * 2]
        return sizes[len(index)] / mp.fprod(lengths[i] for i in index)

    return batch_case(
        name,
        of_flat(functools.partial(loss, **in_the_table)),
        of_flat(naive),
        total,
        scale,
        points,
        model=pairs_model(loss, naive, integer),
    )


def pairs_of(k):
    """Each anchor with its positives and its negatives."""
    label, n = PATTERNS[k], range(ROWS)
    for i in n:
        alike = [j for j in n if label[j] == label[i]]
        yield i, [j for j in alike if j != i], [j for j in n if j not in alike]
