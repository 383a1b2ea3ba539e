"""Rows of the metric losses: examples are batches of three embeddings, or two triplets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Model
from tests.cases._jets import constant, jets_case, softplus, sqrt
from tests.cases._pairs import (
    FEATURES,
    LABELLED,
    ROWS,
    WEIGHTS,
    batch_case,
    derivatives,
    function,
    labelled,
    pairs_case,
    pairs_model,
    pairs_of,
    weighted,
)

GAMMA, MARGIN = 3, mpf("0.25")


def _circle(s, k):
    losses = []
    for i, positives, negatives in pairs_of(k):
        pull = sum(
            mp.exp(-GAMMA * max(1 + MARGIN - s[i][p], mpf(0)) * (s[i][p] - 1 + MARGIN))
            for p in positives
        )
        push = sum(
            mp.exp(GAMMA * max(s[i][n] + MARGIN, mpf(0)) * (s[i][n] - MARGIN)) for n in negatives
        )
        losses.append(mp.log1p(pull * push))
    return weighted(losses)


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
        sizes = [derivatives(function(f, other, by), row, len(index)) for f in parts]
        largest = [max(abs(d) for d in of.values()) for of in sizes]
        return 2 * sum(largest) + (0 if index else 16)

    def triplets(rng, n):
        return tuple(rng.normal(size=(3, n, FEATURES)).astype(np.float32)), None

    return batch_case(
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
        ulps=4 if degree == 2 else 16,
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


def _batch_hard(soft):
    def exact(x, k):
        rows = [x[2 * i : 2 * i + 2] for i in range(ROWS)]
        losses = []
        for i, positives, negatives in pairs_of(k):
            if not (positives and negatives):
                losses.append(constant(0))
                continue
            of = {j: _length(rows[i], rows[j]) for j in (*positives, *negatives)}
            far = max(positives, key=lambda j: of[j].value)
            excess = of[far] - min((of[j] for j in negatives), key=lambda d: d.value)
            hinge = MARGIN + excess
            losses.append(softplus(excess) if soft else hinge if hinge.value > 0 else constant(0))
        return sum((w * v for w, v in zip(WEIGHTS, losses, strict=True)), constant(0))

    return exact


def _length(u, v):
    squares = [(a - b) * (a - b) for a, b in zip(u, v, strict=True)]
    total = sum(squares, constant(0))
    return sqrt(total) if total.value else constant(0)


def _naive_batch_hard(x, k, soft=False):
    d = jnp.sqrt(jnp.sum((x[:, None] - x[None]) ** 2, -1) + 1e-12)
    alike = k[:, None] == k[None, :]
    pairs = alike & ~jnp.eye(len(k), dtype=bool)
    far, near = jnp.where(pairs, d, -jnp.inf).max(1), jnp.where(alike, jnp.inf, d).min(1)
    loss = jax.nn.softplus(far - near) if soft else jax.nn.relu(float(MARGIN) + far - near)
    return jnp.where(jnp.any(pairs, 1) & ~jnp.all(alike, 1), loss, 0)


# Also far from the origin, where squares of lengths have no digits left, and at one place.
FAR = [
    (np.float32([1e4, 2, 1e4 + 1, 2.5, 1e4 - 2, 3]), 0),
    (np.float32([-3e5, 1e5, -3e5, 1e5 + 0.25, -3e5 + 1, 1e5]), 1),
    (np.float32([1e20, 2e20, 3e20, 0, 1e19, -1e20]), 2),
    (np.float32([0.5, 2, 0.5, 2, 1, -1]), 0),
]


def _batch_hard_case(soft):
    loss = functools.partial(jaxloss.batch_hard_triplet_loss, margin=float(MARGIN), soft=soft)
    naive = functools.partial(_naive_batch_hard, soft=soft)
    return jets_case(
        f"batch_hard_triplet_loss(soft={soft}, chunk_size=2)"
        if soft
        else "batch_hard_triplet_loss",
        labelled(functools.partial(loss, chunk_size=2) if soft else loss),
        labelled(naive),
        _batch_hard(soft),
        LABELLED + FAR,
        predictions="real",
        targets="integer",
        size=6,
        model=pairs_model(loss, naive, True),
    )


CIRCLE = {"gamma": GAMMA, "margin": float(MARGIN), "detach_weights": False}

CASES = [
    pairs_case(
        "circle_loss(detach_weights=False)",
        functools.partial(jaxloss.circle_loss, **CIRCLE),
        _normalized(_naive_circle),
        _circle,
        1 + 4 * GAMMA,
        LABELLED,
    ),
    _triplet_case(2, APART + TOUCHING),
    _triplet_case(3.5, APART),
    _batch_hard_case(False),
    _batch_hard_case(True),
]
