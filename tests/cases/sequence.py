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
    p: list[list[mpf]]
    q: list[list[mpf]]  # 1 - p
    total: mpf  # the probability of the labels
    given: list[list[mpf]]  # that of each class in each frame, given the labels
    others: list[list[mpf]]  # one less that
    joint: dict[tuple[int, int, int, int], mpf]  # of classes in two frames, given the labels


def lattice(x: tuple[mpf, ...], labels: tuple[int, ...], classes: int = CLASSES) -> Lattice:
    return _lattice(x, labels, classes, mp.prec)  # `mp.diff` computes in a higher precision.


@functools.cache
def _lattice(x, labels, classes, precision) -> Lattice:
    del precision
    frames, p, q = range(len(x) // classes), [], []
    for t in frames:
        e = [mp.exp(v) for v in x[t * classes : (t + 1) * classes]]
        p.append([v / sum(e) for v in e])
        q.append([sum(e[:i] + e[i + 1 :], mpf(0)) / sum(e) for i in range(classes)])
    paths = [k for k in itertools.product(range(classes), repeat=len(frames)) if read(k) == labels]
    weights = [mp.fprod(p[t][k[t]] for t in frames) for k in paths]
    total = sum(weights, mpf(0))
    joint: dict[tuple[int, int, int, int], mpf] = {}
    for path, weight in zip(paths, weights, strict=True):
        for t, u in itertools.product(frames, frames):
            key = t, path[t], u, path[u]
            joint[key] = joint.get(key, mpf(0)) + weight / total

    def given(t, k):
        return joint.get((t, k, t, k), mpf(0))

    every = range(classes)
    return Lattice(
        p,
        q,
        total,
        [[given(t, k) for k in every] for t in frames],
        [[sum((given(t, j) for j in every if j != k), mpf(0)) for k in every] for t in frames],
        joint,
    )


def _value(x, k):
    total = lattice(tuple(x), LABELS[k]).total
    return [-mp.log(total)]


def _amplified(x):
    """By what the probability of a path is off for the rounding of the logits' differences."""
    frames = [x[i : i + CLASSES] for i in range(0, len(x), CLASSES)]
    return amplify(max(max(frame) - min(frame) for frame in frames))


def _gradient(x, k, i):
    exact, (t, j) = lattice(tuple(x), LABELS[k]), divmod(i, CLASSES)
    if exact.p[t][j] > 0.5:
        return spread([exact.others[t][j], -exact.q[t][j]], _amplified(x))
    return spread([exact.p[t][j], -exact.given[t][j]], _amplified(x))


def _hessian(x, k, i, j):
    exact, (t, a), (u, b) = lattice(tuple(x), LABELS[k]), divmod(i, CLASSES), divmod(j, CLASSES)
    terms = []
    # Through the log-probabilities c and d of both frames, whose derivative is one or zero less
    # p; what is subtracted sums up to zero, but it is computed.
    for c, d in itertools.product(range(CLASSES), repeat=2):
        by = ((a == c) - exact.p[t][a]) * ((b == d) - exact.p[u][b])
        both, each = exact.joint.get((t, c, u, d), mpf(0)), exact.given[t][c] * exact.given[u][d]
        terms += [-both * by, each * by]
    if t == u:
        terms.append(exact.p[t][a] * (exact.q[t][a] if a == b else -exact.p[t][b]))
    return spread(terms, _amplified(x))


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
