"""Rows of the transducer losses: two frames of three classes, and the labels a number selects.

The exact arithmetic goes through every order of labels and blanks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, Model, amplify, spread
from tests.cases.sequence import (
    CLASSES,
    LABELS,
    PADDED,
    PADDINGS,
    Lattice,
    Path,
    amplified,
    curvature,
    lattice_of,
    slope,
)

FRAMES, NODES = 2, 3  # Of a frame: after none, one and two labels.


@functools.cache
def alignments(labels: tuple[int, ...], frames: int, nodes: int) -> tuple[Path, ...]:
    """All ways to emit the labels; the rows are those of the first frame, then of the next."""

    def after(t: int, u: int) -> list[Path]:
        if t == frames:
            return [()] if u == len(labels) else []
        ways = [((t * nodes + u, 0), *rest) for rest in after(t + 1, u)]
        if u < len(labels):
            ways += [((t * nodes + u, labels[u]), *rest) for rest in after(t, u + 1)]
        return ways

    return tuple(after(0, 0))


def _lattice(x: Sequence[mpf], k: int) -> Lattice:
    return lattice_of(tuple(x), alignments(LABELS[k], FRAMES, NODES), CLASSES)


def _value(x, k):
    return [-mp.log(_lattice(x, k).total)]


def _gradient(x, k, i):
    return spread(slope(_lattice(x, k), *divmod(i, CLASSES)), amplified(x))


def _hessian(x, k, i, j):
    terms = curvature(_lattice(x, k), *divmod(i, CLASSES), *divmod(j, CLASSES))
    return spread(terms, amplified(x))


# Of encoder and predictor, one after the other.

SPLIT = FRAMES * CLASSES


def _sums(x):
    """The logits of all nodes."""
    e, p = ([v[i : i + CLASSES] for i in range(0, len(v), CLASSES)] for v in (x[:SPLIT], x[SPLIT:]))
    return [a + b for frame in e for node in p for a, b in zip(frame, node, strict=True)]


def _places(i: int) -> list[tuple[int, int]]:
    """The nodes whose logits an entry is in, and its class."""
    row, k = divmod(i, CLASSES)
    if i < SPLIT:
        return [(row * NODES + u, k) for u in range(NODES)]
    return [(t * NODES + row - FRAMES, k) for t in range(FRAMES)]


def _amplified(x):
    """Also by the rounding of the sums."""
    sums = _sums(x)
    return amplified(sums) + amplify(max(map(abs, sums))) - 1


def _additive_value(x, k):
    return spread(_value(_sums(x), k), _amplified(x))


def _additive_gradient(x, k, i):
    exact = _lattice(_sums(x), k)
    return spread([t for at in _places(i) for t in slope(exact, *at)], _amplified(x))


def _additive_hessian(x, k, i, j):
    exact = _lattice(_sums(x), k)
    pairs = [(a, b) for a in _places(i) for b in _places(j)]
    return spread([t for a, b in pairs for t in curvature(exact, *a, *b)], _amplified(x))


def _parts(x):
    parts = (x[..., :SPLIT], FRAMES), (x[..., SPLIT:], NODES)
    return tuple(jnp.reshape(a, (*x.shape[:-1], n, CLASSES)) for a, n in parts)


def _rest(k):
    k = jnp.reshape(k, -1)
    return jnp.zeros((k.size, FRAMES)), jnp.asarray(PADDED)[k], jnp.asarray(PADDINGS)[k]


def loss(x, k):
    shaped = jnp.reshape(x, (-1, FRAMES, NODES, CLASSES))
    return jnp.reshape(jaxloss.rnnt_loss(shaped, *_rest(k)), jnp.shape(k))


def additive_loss(x, k):
    encoder, predictor = _parts(jnp.reshape(x, (-1, x.shape[-1])))
    losses = jaxloss.rnnt_additive_loss(encoder, predictor, *_rest(k))
    return jnp.reshape(losses, jnp.shape(k))


def naive(x, y):
    """The forward variables of one frame after another, as a user would write them.

    With the sums L of the label's log-probabilities over the labels so far, those of a frame are
    L plus the cumulative log-sum-exp of what comes from the frame before, less L.
    """
    labels, padded = y

    def one(log_p, labels, padded):
        blank = log_p[:, :, 0]
        each = jnp.take_along_axis(log_p[:, :-1], labels[None, :, None], 2)[:, :, 0]
        so_far = jnp.pad(jnp.cumsum(each, 1), ((0, 0), (1, 0)))

        def step(alpha, frame):
            blank, so_far = frame
            return jax.lax.cumlogsumexp(alpha + blank - so_far) + so_far, None

        alpha = jax.lax.scan(step, so_far[0], (blank[:-1], so_far[1:]))[0]
        n = jnp.sum(~padded)
        return -(alpha + blank[-1])[n]

    return jax.vmap(one)(jax.nn.log_softmax(x), labels, padded)


def _of_number(fn: Callable[..., Any]) -> Callable[..., Any]:
    def of_one(x, k):
        labels, padded = jnp.asarray(PADDED)[k][None], jnp.asarray(PADDINGS)[k][None]
        return fn(x, (labels, padded))[0]

    return of_one


@_of_number
def _naive(x, y):
    return naive(jnp.reshape(x, (1, FRAMES, NODES, CLASSES)), y)


def naive_of_parts(x, y):
    encoder, predictor = x
    return naive(encoder[:, :, None] + predictor[:, None], y)


@_of_number
def _additive_naive(x, y):
    return naive_of_parts(_parts(x[None]), y)


def _rows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = FRAMES, NODES, CLASSES

    def confident(*classes):
        """All but certain of one class at each node."""
        return 15 * np.eye(CLASSES)[list(classes)].reshape(shape) + rng.normal(size=shape)

    rows = [
        np.zeros(shape),
        rng.normal(size=shape),
        3 * rng.normal(size=shape),
        confident(1, 0, 0, 0, 2, 0),
        confident(0, 1, 0, 1, 1, 0),
    ]
    return [np.float32(row).ravel() for row in rows]


def _rows_of_parts() -> list[np.ndarray]:
    rng = np.random.default_rng(1)

    def confident(frames, nodes):
        return 9 * np.eye(CLASSES)[[*frames, *nodes]].ravel() + rng.normal(size=size)

    size = (FRAMES + NODES) * CLASSES
    rows = [
        np.zeros(size),
        rng.normal(size=size),
        3 * rng.normal(size=size),
        confident((1, 0), (1, 0, 0)),
        confident((0, 0), (0, 1, 2)),
    ]
    return [np.float32(row) for row in rows]


def _points(rows):
    return [(x, k) for x in rows for k in range(len(LABELS))]


T, U, V = 100, 20, 128


def _labels(rng, n):
    lengths = rng.integers(U // 2, U + 1, (n, 1))
    return rng.integers(1, V, (n, U)).astype(np.int32), np.arange(U) >= lengths


def _joined(rng, n):
    """Logits of a joiner: 100 frames, up to 20 labels, 128 classes."""
    return rng.normal(size=(n, T, U + 1, V)).astype(np.float32), _labels(rng, n)


def _apart(rng, n):
    """Those of an encoder and a predictor, not added up."""
    x = tuple(rng.normal(size=(n, m, V)).astype(np.float32) for m in (T, U + 1))
    return x, _labels(rng, n)


def _model_loss(x, y):
    return jaxloss.rnnt_loss(x, jnp.zeros(x.shape[:2]), *y)


def _model_additive_loss(x, y):
    return jaxloss.rnnt_additive_loss(*x, jnp.zeros(x[0].shape[:2]), *y)


CASES = [
    Case(
        name="rnnt_loss",
        fn=loss,
        naive=_naive,
        value=_value,
        gradient=_gradient,
        hessian=_hessian,
        predictions="logits",
        targets="integer",
        points=_points(_rows()),
        size=FRAMES * NODES * CLASSES,
        sizes=(),
        model=Model(fn=_model_loss, naive=naive, sample=_joined, sizes=(2, 16, 64)),
    ),
    Case(
        name="rnnt_additive_loss",
        fn=additive_loss,
        naive=_additive_naive,
        value=_additive_value,
        gradient=_additive_gradient,
        hessian=_additive_hessian,
        predictions="logits",
        targets="integer",
        points=_points(_rows_of_parts()),
        size=(FRAMES + NODES) * CLASSES,
        sizes=(),
        model=Model(
            fn=_model_additive_loss, naive=naive_of_parts, sample=_apart, sizes=(2, 16, 64)
        ),
    ),
]
