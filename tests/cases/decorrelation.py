"""Rows of the losses of two views: an example is a batch of three rows of two features."""

import functools

import jax.numpy as jnp
import numpy as np
from mpmath import mpf

import jaxloss
from tests.cases._case import Case, Model
from tests.cases._jets import both_case, constant, sqrt

ROWS, FEATURES = 3, 512
# Features that correlate, that are far from zero, of other scales, or without variance.
POINTS = [
    (np.float32(a), np.float32(b))
    for a, b in (
        ([1, 0.5, -2, 1, 0.25, 3], [0.75, 0.5, -1, 2, 0.5, 1]),
        ([1, 0.5, -2, 1, 0.25, 3], [1, 0.5, -2, 1, 0.25, 3]),
        ([0.1, 7, 0.1, -7, 0.1, 6], [1, 2, 3, 5, -1, 0.5]),
        ([1000, 1e-3, 1001, 2e-3, 999.5, -3e-3], [30, 1, -20, 1.25, 25, 1.5]),
        ([2, 2, 0, 1, 1, 0], [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
    )
]


def _total(terms):
    return sum(terms, constant(0))


def _views(v):
    """The features of each view, less their means; exactly 0 where they have no variance."""
    for view in (v[:6], v[6:]):
        columns = [[u - view[i] for u in view[i::2]] for i in range(2)]
        yield [[u - _total(c) / ROWS for u in c] for c in columns]


def _inner(a, b):
    if a is None or b is None:
        return constant(0)
    return _total(u * v for u, v in zip(a, b, strict=True))


def _unit(c):
    if all(u.value == 0 for u in c):
        return None
    length = sqrt(_inner(c, c))
    return [u / length for u in c]


WEIGHT = 0.25


def _barlow(v, _):
    a, b = ([_unit(c) for c in view] for view in _views(v))
    own = _total((1 - _inner(p, q)) * (1 - _inner(p, q)) for p, q in zip(a, b, strict=True))
    others = [_inner(a[0], b[1]), _inner(a[1], b[0])]
    return own + WEIGHT * _total(c * c for c in others)


def _vicreg(v, _):
    differences = [p - q for p, q in zip(v[:6], v[6:], strict=True)]
    terms = [25 * _inner(differences, differences) / 6]
    for view in _views(v):
        deviations = [sqrt(_inner(c, c) / (ROWS - 1) + mpf("1e-4")) for c in view]
        terms += [25 * (1 - s) / 4 for s in deviations if s.value < 1]
        between = _inner(*view) / (ROWS - 1)
        terms.append(between * between)
    return _total(terms)


def _naive_barlow(a, b, weight=5e-3):
    a, b = ((x - jnp.mean(x, 0)) / jnp.std(x, 0) for x in (a, b))
    c = a.T @ b / a.shape[0]
    own = jnp.diagonal(c)
    return jnp.sum((1 - own) ** 2) + weight * (jnp.sum(c**2) - jnp.sum(own**2))


def _naive_vicreg(a, b):
    loss = 25 * jnp.mean((a - b) ** 2)
    for x in (a, b):
        loss += 25 * jnp.mean(jnp.maximum(1 - jnp.sqrt(jnp.var(x, 0, ddof=1) + 1e-4), 0)) / 2
        covariance = (x - jnp.mean(x, 0)).T @ (x - jnp.mean(x, 0)) / (x.shape[0] - 1)
        squares = jnp.sum(covariance**2) - jnp.sum(jnp.diagonal(covariance) ** 2)
        loss += squares / x.shape[1]
    return loss


def _case(name, loss, naive, exact, matmuls, **options) -> Case:
    def of_flat(f):
        def one(x, y):
            return f(jnp.reshape(x, (ROWS, -1)), jnp.reshape(y, (ROWS, -1)), **options)

        return jnp.vectorize(one, signature="(n),(n)->()")

    def sample(rng, n):
        x, y = rng.normal(size=(2, n, FEATURES)).astype(np.float32)
        return (x, x + y), None

    return both_case(
        name,
        of_flat(functools.partial(loss)),
        of_flat(naive),
        exact,
        POINTS,
        predictions="real",
        targets="real",
        size=6,
        sizes=(),
        model=Model(
            fn=lambda x, _: loss(*x),
            naive=lambda x, _: naive(*x),
            sample=sample,
            sizes=(256, 2048, 8192),
            # The products of features, and the gradient by each view.
            matmuls=lambda n: [(FEATURES, n, FEATURES), *[(n, FEATURES, FEATURES)] * 2] * matmuls,
        ),
    )


CASES = [
    _case(
        "barlow_twins_loss",
        lambda a, b, weight=5e-3: jaxloss.barlow_twins_loss(a, b, off_diagonal_weight=weight),
        _naive_barlow,
        _barlow,
        1,
        weight=WEIGHT,
    ),
    _case("vicreg_loss", jaxloss.vicreg_loss, _naive_vicreg, _vicreg, 2),
]
