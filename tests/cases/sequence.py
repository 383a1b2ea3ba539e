"""Rows of the sequence losses: four frames of three classes, and the labels that a number selects.

The exact arithmetic goes through every sequence of classes, all 81 of them.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, Model, amplify, spread

FRAMES, CLASSES = 4, 3
# Nothing, one label, two, a repeated one that needs a blank in between, and two more.
LABELS: list[tuple[int, ...]] = [(), (1,), (1, 2), (1, 1), (2, 1)]
PADDED = np.array([[*k, 0, 0][:2] for k in LABELS], np.int32)
PADDINGS = np.array([[i >= len(k) for i in range(2)] for k in LABELS])


def read(path: Sequence[int], blank: int = 0) -> tuple[int, ...]:
    """What a sequence of classes reads as."""
    merged = [k for k, _ in itertools.groupby(path)]
    return tuple(k for k in merged if k != blank)


class Lattice(NamedTuple):
    """Of rows of classes, and paths that emit one class each in all rows, or in some."""

    p: list[list[mpf]]
    q: list[list[mpf]]  # 1 - p
    total: mpf  # the probability of all paths
    given: list[list[mpf]]  # that of each class in each row, given that it is one of the paths
    others: list[list[mpf]]  # that of the other classes in it
    visited: list[mpf]  # that of all of them
    joint: dict[tuple[int, int, int, int], mpf]  # of classes in two rows, given the same


Path = tuple[tuple[int, int], ...]  # Rows, and their classes.


def lattice(x: tuple[mpf, ...], labels: tuple[int, ...], classes: int = CLASSES) -> Lattice:
    return lattice_of(x, reading(labels, len(x) // classes, classes), classes)


@functools.cache
def reading(labels: tuple[int, ...], frames: int, classes: int) -> tuple[Path, ...]:
    every = itertools.product(range(classes), repeat=frames)
    return tuple(tuple(enumerate(path)) for path in every if read(path) == labels)


def lattice_of(x: tuple[mpf, ...], paths: tuple[Path, ...], classes: int) -> Lattice:
    return _lattice(x, paths, classes, mp.prec)  # `mp.diff` computes in a higher precision.


@functools.cache
def _lattice(x, paths, classes, precision) -> Lattice:
    del precision
    rows, p, q = range(len(x) // classes), [], []
    for t in rows:
        e = [mp.exp(v) for v in x[t * classes : (t + 1) * classes]]
        p.append([v / sum(e) for v in e])
        q.append([sum(e[:i] + e[i + 1 :], mpf(0)) / sum(e) for i in range(classes)])
    weights = [mp.fprod(p[t][k] for t, k in path) for path in paths]
    total = sum(weights, mpf(0))
    joint: dict[tuple[int, int, int, int], mpf] = {}
    for path, weight in zip(paths, weights, strict=True):
        for (t, c), (u, d) in itertools.product(path, repeat=2):
            joint[t, c, u, d] = joint.get((t, c, u, d), mpf(0)) + weight / total

    every = range(classes)
    given = [[joint.get((t, k, t, k), mpf(0)) for k in every] for t in rows]
    others = [[sum((of[j] for j in every if j != k), mpf(0)) for k in every] for of in given]
    return Lattice(p, q, total, given, others, [sum(of, mpf(0)) for of in given], joint)


def slope(of: Lattice, t: int, k: int) -> list[mpf]:
    """The terms of the derivative of `-log(total)` by a logit."""
    if of.p[t][k] > 0.5:
        return [of.others[t][k], -of.q[t][k] * of.visited[t]]
    return [of.p[t][k] * of.visited[t], -of.given[t][k]]


def curvature(of: Lattice, t: int, a: int, u: int, b: int) -> list[mpf]:
    """Those of the second derivative by two logits."""
    terms = []
    # Through the log-probabilities c and d of both rows, whose derivative is one or zero less
    # p; what is subtracted sums up to zero, but it is computed.
    for c, d in itertools.product(range(len(of.p[t])), repeat=2):
        both, each = of.joint.get((t, c, u, d), mpf(0)), of.given[t][c] * of.given[u][d]
        if both or each:
            by = ((a == c) - of.p[t][a]) * ((b == d) - of.p[u][b])
            terms += [-both * by, each * by]
    if t == u:
        terms.append(of.visited[t] * of.p[t][a] * (of.q[t][a] if a == b else -of.p[t][b]))
    return terms


def _value(x, k):
    total = lattice(tuple(x), LABELS[k]).total
    return [-mp.log(total)]


def amplified(x):
    """By what the probability of a path is off for the rounding of the logits' differences."""
    frames = [x[i : i + CLASSES] for i in range(0, len(x), CLASSES)]
    return amplify(max(max(frame) - min(frame) for frame in frames))


def _gradient(x, k, i):
    exact = lattice(tuple(x), LABELS[k])
    return spread(slope(exact, *divmod(i, CLASSES)), amplified(x))


def _hessian(x, k, i, j):
    exact = lattice(tuple(x), LABELS[k])
    terms = curvature(exact, *divmod(i, CLASSES), *divmod(j, CLASSES))
    return spread(terms, amplified(x))


def _batch(x, k):
    k = jnp.reshape(k, -1)
    x = jnp.reshape(x, (-1, FRAMES, CLASSES))
    paddings = jnp.zeros(x.shape[:2])
    return x, paddings, jnp.asarray(PADDED)[k], jnp.asarray(PADDINGS)[k]


def loss(x, k):
    return jnp.reshape(jaxloss.ctc_loss(*_batch(x, k)), jnp.shape(k))


def loss_of_arrays(x, k):
    """What the last row of the forward probabilities says of all labels."""
    x, paddings, labels, label_paddings = _batch(x, k)
    _, blank, _ = jaxloss.ctc_loss_with_forward_probs(x, paddings, labels, label_paddings)
    n = jnp.sum(~label_paddings, 1, keepdims=True)
    return jnp.reshape(-jnp.take_along_axis(blank[-1], n, 1), jnp.shape(k))


def _naive(x, k):
    """The sum over all paths, of which a table has those that read as the labels."""
    paths = np.array(list(itertools.product(range(CLASSES), repeat=FRAMES)))
    reads = np.array([[read(path) == labels for path in paths] for labels in LABELS])
    p = jax.nn.softmax(jnp.reshape(x, (FRAMES, CLASSES)))
    each = jnp.prod(p[np.arange(FRAMES), paths], 1)
    return -jnp.log(jnp.sum(jnp.where(jnp.asarray(reads)[k], each, 0)))


def _rows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)

    def confident(*path):
        """All but certain of one sequence of classes."""
        return np.float32(15 * np.eye(CLASSES)[list(path)] + rng.normal(size=(FRAMES, CLASSES)))

    rows = [
        np.zeros(FRAMES * CLASSES),
        rng.normal(size=FRAMES * CLASSES),
        3 * rng.normal(size=FRAMES * CLASSES),
        confident(1, 0, 1, 1),
        confident(0, 1, 1, 2),
    ]
    return [np.float32(row).ravel() for row in rows]


POINTS = [(x, k) for x in _rows() for k in range(len(LABELS))]


def _naive_forward(x, y):
    """The forward variables of one sequence after another frame each, as textbooks have them."""
    labels, padded = y

    def one(log_p, k, padded):
        blanks = jnp.zeros(2 * len(k) + 1, k.dtype).at[1::2].set(k)
        differs = (blanks != jnp.roll(blanks, 2)) & (blanks != 0)
        start = jnp.full(len(blanks), -jnp.inf).at[:2].set(log_p[0, blanks[:2]])

        def step(a, frame):
            one, two = (jnp.roll(a, i).at[:i].set(-jnp.inf) for i in (1, 2))
            a = jnp.logaddexp(jnp.logaddexp(a, one), jnp.where(differs, two, -jnp.inf))
            return a + frame[blanks], None

        end = 2 * jnp.sum(~padded)
        a = jax.lax.scan(step, start, log_p[1:])[0]
        return -jnp.logaddexp(a[end], a[end - 1])

    return jax.vmap(one)(jax.nn.log_softmax(x), labels, padded)


def _speech(rng, n):
    """200 frames of 128 classes, and up to 40 labels."""
    lengths = rng.integers(20, 41, (n, 1))
    labels = rng.integers(1, 128, (n, 40)).astype(np.int32)
    return rng.normal(size=(n, 200, 128)).astype(np.float32), (labels, np.arange(40) >= lengths)


def _model(fn) -> Model:
    return Model(fn=fn, naive=_naive_forward, sample=_speech, sizes=(2, 16, 64))


def _model_loss(x, y):
    return jaxloss.ctc_loss(x, jnp.zeros(x.shape[:2]), *y)


def _model_arrays(x, y):
    return jaxloss.ctc_loss_with_forward_probs(x, jnp.zeros(x.shape[:2]), *y)[0]


def _case(name, fn, model, points) -> Case:
    return Case(
        name=name,
        fn=fn,
        naive=_naive,
        value=_value,
        gradient=_gradient,
        hessian=_hessian,
        predictions="logits",
        targets="integer",
        points=points,
        size=FRAMES * CLASSES,
        sizes=(),
        model=_model(model),
    )


CASES = [
    _case("ctc_loss", loss, _model_loss, POINTS),
    # Not where the loss is close to zero: the array has the logarithm of a sum close to one.
    _case("ctc_loss_with_forward_probs", loss_of_arrays, _model_arrays, POINTS[:15]).variant_of(
        "ctc_loss"
    ),
]
