"""Rows of the angular margins: an example is an embedding, or one with all prototypes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Model
from tests.cases._jets import ZERO, Jet, constant, exp, function, jets_case, log, softplus

FEATURES, CLASSES = 256, 16000
# Of errors that add up, where few do.
ULPS = 1
PROTOTYPES = np.float32([[1, 0, 0], [0.5, 1, -2], [-3, 0.25, 1], [2, 2, 1.5], [0, -0.25, 0.125]])
EMBEDDINGS = [
    np.float32(row)
    for row in (
        [4, 0, 0],  # At the first prototype,
        [-2, 0, -0.0],  # opposite to it,
        [2, 0.01, 0.005],  # near to it,
        [1, 1e-5, 0],  # and nearer.
        [1, 2, -4.01],
        [-0.3, -1, 2],
        [5e14, 4e14, 6e14],
        [-3e-15, 1e-15, 2e-15],
    )
]
LABELLED = [(x, k) for x in EMBEDDINGS for k in range(len(PROTOTYPES))]
# One embedding and five prototypes, of two numbers each.
TOGETHER = [
    (np.float32(row), k)
    for k, row in enumerate(
        (
            [1, 0, 3, 0, 0.5, -1, -2, 1, 1, 1, 0, 2],
            [0.3, -2, 1, 1, -1.5, 0.25, 0.25, -2, 1, 0, -1, -1],
            [2e3, 1e3, -1e-3, -0.5e-3, 0.5, 3, 2, 1.1, 1, -0.5, 0, 4],
            [0.5, 4, 1, 2, -3, 0.25, 0.25, -2, -1, -8, 1, 9],
            [-1, 3, 1, 2, -2, 5, 3, 0.5, -0.3, -0.2, -1, 2.5],
        )
    )
]


def _sum(terms) -> Jet:
    return sum(terms, constant(0))


def _sqrt(x: Jet) -> Jet:
    return function(
        x, lambda x: [mp.sqrt(x), 1 / mp.sqrt(x) / 2, -(x ** mpf(-1.5)) / 4, x ** mpf(-2.5) * 3 / 8]
    )


def _unit(x: list[Jet]) -> list[Jet]:
    size = _sqrt(_sum(a * a for a in x))
    return [a / size for a in x]


def _cosine(u, v) -> Jet:
    return _sum(a * b for a, b in zip(u, v, strict=True))


def _distance(d: list[Jet]) -> Jet:
    squares = _sum(a * a for a in d)
    if squares.value > mpf("1e-12"):
        return _sqrt(squares)
    return Jet({(): mp.sqrt(squares.value)}, {(): sum((a.error[()] for a in d), ZERO)})


def _arcface(u, v, m: float) -> Jet:
    cosine, theta = _cosine(u, v), mp.acos(max(mpf(-1), min(mpf(1), _cosine(u, v).value)))
    if theta + m > mp.pi:
        return cosine - m * mp.sin(m)
    apart, sum_of = (_distance([a + s * b for a, b in zip(u, v, strict=True)]) for s in (-1, 1))
    return cosine * mp.cos(m) - apart * sum_of / 2 * mp.sin(m)


def _cosface(u, v, m: float) -> Jet:
    return _cosine(u, v) - m


def _exact(target, m, s, x, prototypes, k) -> Jet:
    u, *v = map(_unit, (x, *prototypes))
    others = log(_sum(exp(s * _cosine(u, w)) for j, w in enumerate(v) if j != k))
    return softplus(others - s * target(u, v[k], m))


def _naive_arcface(c, m):
    beyond = c <= math.cos(math.pi - m)
    moved = c * math.cos(m) - jnp.sqrt(1 - c * c) * math.sin(m)
    return jnp.where(beyond, c - m * math.sin(m), moved)


def _naive_cosface(c, m):
    return c - m


def naive(target, m, s, x, p, k):
    """With all cosines at once, as it is usually written."""
    x, p = (a / jnp.linalg.norm(a, axis=-1, keepdims=True) for a in (x, p))
    c = x @ p.T
    logits = s * jnp.where(jax.nn.one_hot(k, p.shape[0], dtype=bool), target(c, m), c)
    label = jnp.take_along_axis(logits, jnp.expand_dims(k, -1), -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - label


NAIVE = {jaxloss.arcface_loss: _naive_arcface, jaxloss.cosface_loss: _naive_cosface}
EXACT = {jaxloss.arcface_loss: _arcface, jaxloss.cosface_loss: _cosface}


def _model(loss, plain) -> Model:
    def sample(rng, n):
        x, p = (rng.normal(size=(m, FEATURES)).astype(np.float32) for m in (n, CLASSES))
        return (x, p), rng.integers(0, CLASSES, n).astype(np.int32)

    def matmuls(n):
        return [(n, FEATURES, CLASSES), (n, CLASSES, FEATURES), (FEATURES, n, CLASSES)]

    return Model(
        fn=lambda x, y: loss(*x, y),
        naive=lambda x, y: plain(*x, y),
        sample=sample,
        sizes=(256, 1024, 4096),
        matmuls=matmuls,
    )


def _fixed(loss, m, s, points, suffix=""):
    plain, exact = partial(naive, NAIVE[loss], m, s), partial(_exact, EXACT[loss], m, s)
    prototypes = [[constant(float(a)) for a in row] for row in PROTOTYPES]

    def of(f):
        return lambda x, k: f(x, jnp.asarray(PROTOTYPES, x.dtype), k)

    return jets_case(
        f"{loss.__name__}{suffix}",
        of(partial(loss, margin=m, scale=s)),
        of(plain),
        lambda x, k: exact(x, prototypes, k),
        points,
        predictions="real",
        targets="integer",
        size=3,
        ulps=ULPS,
        model=_model(partial(loss, margin=m, scale=s), plain),
    )


def _together(loss, m, s):
    plain, exact = partial(naive, NAIVE[loss], m, s), partial(_exact, EXACT[loss], m, s)

    def of(f):
        def one(x, k):
            return f(x[:2], x[2:].reshape(5, 2), k)

        return jnp.vectorize(one, signature="(n),()->()")

    return jets_case(
        f"{loss.__name__}(by its prototypes)",
        of(partial(loss, margin=m, scale=s)),
        of(plain),
        lambda x, k: exact(x[:2], [x[i : i + 2] for i in range(2, 12, 2)], k),
        TOGETHER,
        predictions="real",
        targets="integer",
        size=12,
        ulps=ULPS,
    )


CASES = [
    _fixed(jaxloss.arcface_loss, 0.5, 64.0, LABELLED),
    _fixed(jaxloss.arcface_loss, 1.25, 3.0, LABELLED, "(margin=1.25, scale=3)"),
    _together(jaxloss.arcface_loss, 0.5, 4.0),
    _fixed(jaxloss.cosface_loss, 0.35, 64.0, LABELLED),
    _together(jaxloss.cosface_loss, 0.35, 4.0),
]
