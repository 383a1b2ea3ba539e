"""Rows of the ranking losses."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, Model, amplify, softplus, spread
from tests.cases._case import sigmoid as probability
from tests.cases._jets import both_case, constant, exp, expm1, log1p, sigmoid
from tests.cases._softmax import (
    DENSE_POINTS,
    ce_gradient,
    ce_hessian,
    ce_value,
    conditioned,
    dense_case,
    softmax_parts,
)

# Of few sizes: each is a program of its own.
POINTS = [
    (np.float32(scores), np.float32(labels))
    for scores, labels in (
        ([0.0, -0.0], [1, 0]),
        ([20.0, 0.0], [2, 1]),
        ([20.0, 0.0], [1, 2]),
        ([-60.0, 41.0], [0.5, 0.25]),
        ([1e7, 1e7 - 2], [0, 1]),
        ([3.0, 3.0, 0.5, 3.0, 3.0], [1, 0, 0, 0, 1]),
        ([1e-4, 0.0, -1e-30, 0.25, 0.25], [-1, 3, 1, 0, 0]),
        ([100.0, 99.25, 40.0, -100.0, -60.0], [0, 0, 0, 0, 0]),
        ([100.0, 99.25, 40.0, -100.0, -60.0], [0, 1, 2, 3, 4]),
        ([1.5, -0.3, 2.25, 0.6, -4.0], [2, 0, 1, 1, 0]),
        ([9.0, 0.0, 0.125, 8.5, -30.0], [0, 4, 1, 3, 2]),
    )
]
SOFTMAX_POINTS = [(x, y) for x, y in DENSE_POINTS if len(x) in (2, 5)]
SEGMENTS_POINTS = [(x, y) for x, y in DENSE_POINTS if len(x) == 5]


def _along_items(x, a):
    """One number for each item, in the rank of x."""
    return jnp.asarray(a).reshape((1,) * (x.ndim - 1) + (-1,))


def _pairs(x, y, weights, lists, swapped):
    """The pairs (i, j) of items with the terms of their weights and differences of scores."""
    n = range(len(x))
    return [
        (i, j, [weights(i) * w for w in swapped(x, y, i, j)], x[i] - x[j])
        for i in n
        for j in n
        if y[i] > y[j] and lists(i) == lists(j)
    ]


def _pairwise_case(
    name,
    fn,
    naive,
    terms,
    slope,
    curvature,
    weights=lambda _: 1,
    lists=lambda _: 0,
    swapped=lambda *_: [1],
    naive_swapped=lambda x, y: 1,
    differences=True,
) -> Case:
    """From the terms of one pair's loss, and of its derivatives by the difference of scores."""

    def value(x, y):
        return [
            w * t
            for _, _, of_pair, d in _pairs(x, y, weights, lists, swapped)
            for w in of_pair
            for t in terms(d)
        ]

    def gradient(x, y, k):
        # A difference of scores counts for the one item, and against the other.
        return [
            ((k == i) - (k == j)) * w * t
            for i, j, of_pair, d in _pairs(x, y, weights, lists, swapped)
            for w in of_pair
            for t in slope(d)
        ]

    def hessian(x, y, k, m):
        return [
            ((k == i) - (k == j)) * ((m == i) - (m == j)) * w * t
            for i, j, of_pair, d in _pairs(x, y, weights, lists, swapped)
            for w in of_pair
            for t in curvature(d)
        ]

    def of_all_pairs(x, y):
        of = np.arange(x.shape[-1])
        w, mine = np.array([float(weights(i)) for i in of]), np.array([lists(i) for i in of])
        pair = (y[:, None] > y[None]) & (mine[:, None] == mine[None])
        losses = jnp.asarray(w, x.dtype)[:, None] * naive(x[:, None] - x[None])
        losses *= jax.lax.stop_gradient(naive_swapped(x, y))
        return jnp.sum(jnp.where(pair, losses, 0))

    return Case(
        name=name,
        fn=fn,
        naive=of_all_pairs,
        value=value,
        gradient=gradient,
        hessian=hessian,
        target_gradient=lambda x, y, i: [mpf(0)],
        predictions="real",
        targets="positive",
        points=POINTS,
        sizes=(1, 7, 129),
        differences=differences,
        # The other row's weights are not those of a model.
        model=_lists(fn, of_all_pairs) if "(" not in name else None,
    )


def _lists(fn, naive) -> Model:
    def sample(rng, n):
        labels = rng.integers(0, 5, (n, 200)).astype(np.float32)
        return rng.normal(size=(n, 200)).astype(np.float32), labels

    return Model(fn=fn, naive=jax.vmap(naive), sample=sample, sizes=(8, 128, 512))


_logistic_case = partial(
    _pairwise_case,
    naive=lambda d: jnp.logaddexp(-d, jnp.zeros_like(d)),
    terms=lambda d: spread([softplus(-d)], amplify(d) if d > 0 else 1),
    slope=lambda d: spread([-probability(-d)], amplify(d) if d > 0 else 1),
    curvature=lambda d: spread([probability(d) * probability(-d)], amplify(d)),
)


def _weighted_lists(x, y):
    """Lists of every other item, weights, and chunks that the items do not fill."""
    n = np.arange(x.shape[-1])
    return jaxloss.pairwise_logistic_loss(
        x,
        y,
        weights=_along_items(x, (1 + n % 4) / 4),
        segments=_along_items(x, n % 2),
        chunk_size=2,
    )


def _discount(rank):
    return mp.log(2) / mp.log1p(rank)


def _gain(y):
    return mpf(2) ** y - 1


def _ideal(y):
    best = sorted(map(_gain, y), reverse=True)
    return sum((g * _discount(k + 1) for k, g in enumerate(best)), mpf(0))


def _swapped(x, y, i, j):
    """By how much the NDCG changes if two items change places."""
    rank = [1 + sum((x[k], -k) > (v, -i) for k in range(len(x))) for i, v in enumerate(x)]
    a, b = sorted((_discount(rank[i]), _discount(rank[j])))
    gain = abs(_gain(y[i]) - _gain(y[j])) / _ideal(y)
    return [gain * b, -gain * a]


def _naive_ranks(x):
    return 1 + jnp.argsort(jnp.argsort(-x)).astype(x.dtype)


def _naive_ideal(y):
    best = jnp.sort(2**y - 1)[::-1]
    return jnp.sum(best / jnp.log2(2 + jnp.arange(y.size, dtype=y.dtype)))


def _naive_swapped(x, y):
    gain, discount = 2**y - 1, 1 / jnp.log2(1 + _naive_ranks(x))
    change = jnp.abs(gain[:, None] - gain[None]) * jnp.abs(discount[:, None] - discount[None])
    return change / _naive_ideal(y)


def _total(jets):
    return sum(jets, constant(0))


def _listmle(v, _):
    x, y = v[: len(v) // 2], [u.value for u in v[len(v) // 2 :]]
    s = [x[i] for i in sorted(range(len(y)), key=lambda i: -y[i])]
    return _total(log1p(_total(exp(b - a) for b in s[k + 1 :])) for k, a in enumerate(s))


def _naive_listmle(x, y):
    s = x[jnp.argsort(-y)]
    return jnp.sum(jnp.log(jnp.cumsum(jnp.exp(s)[::-1])[::-1]) - s)


T = 0.5


def _approx_ndcg(v, _):
    x, y = v[: len(v) // 2], v[len(v) // 2 :]
    gains = [expm1(u * mp.log(2)) for u in y]
    n = range(len(y))
    if not any(u.value for u in y):
        return constant(0)

    def at(rank):
        return mp.log(2) / log1p(rank)

    ranks = [1 + _total(sigmoid((x[j] - x[i]) / T) for j in n if j != i) for i in n]
    places = sorted(n, key=lambda i: -y[i].value)
    shared = [[_discount(k + 1) for k, j in enumerate(places) if y[j].value == u.value] for u in y]
    ideal = _total(g * (sum(d) / len(d)) for g, d in zip(gains, shared, strict=True))
    return 1 - _total(g * at(r) for g, r in zip(gains, ranks, strict=True)) / ideal


def _naive_approx_ndcg(x, y):
    ranks = 0.5 + jnp.sum(jax.nn.sigmoid((x[None] - x[:, None]) / T), 1)
    return 1 - jnp.sum((2**y - 1) / jnp.log2(1 + ranks)) / _naive_ideal(y)


def _list_case(name, fn, naive, exact, points=POINTS) -> Case:
    """A row of `exact([*scores, *labels], _)`."""
    return both_case(
        name,
        fn,
        naive,
        exact,
        points,
        predictions="real",
        targets="positive",
        sizes=(1, 7, 129),
        model=_lists(fn, naive),
    )


def _segmented_softmax_case() -> Case:
    def part(x, y, k):
        return x[k % 2 :: 2], y[k % 2 :: 2]

    def value(x, y):
        return [t for k in range(min(2, len(x))) for t in ce_value(*part(x, y, k))]

    def hessian(x, y, i, j):
        return ce_hessian(*part(x, y, i), i // 2, j // 2) if i % 2 == j % 2 else [mpf(0)]

    def target_gradient(x, y, i):
        x, _ = part(x, y, i)
        return spread([softmax_parts(x)[3][i // 2]], conditioned(x))

    def fn(x, y):
        segments = _along_items(x, np.arange(x.shape[-1]) % 2)
        return jaxloss.ranking_softmax_loss(x, y, reduce_fn=None, segments=segments)

    def naive(x, y):
        parts = [-jnp.sum(y[k::2] * jnp.log(jax.nn.softmax(x[k::2]))) for k in (0, 1)]
        return sum(parts[: x.shape[-1]])

    return Case(
        name="ranking_softmax_loss(segments)",
        fn=fn,
        naive=naive,
        value=value,
        gradient=lambda x, y, i: ce_gradient(*part(x, y, i), i // 2),
        hessian=hessian,
        target_gradient=target_gradient,
        predictions="logits",
        targets="distribution",
        points=SEGMENTS_POINTS,
        sizes=(1, 7, 129, 1000),
    )


CASES = [
    dataclasses.replace(
        dense_case(
            "ranking_softmax_loss",
            partial(jaxloss.ranking_softmax_loss, reduce_fn=None),
            optax_fn=partial(optax.losses.ranking_softmax_loss, reduce_fn=None),
        ),
        points=SOFTMAX_POINTS[::3],
    ),
    _segmented_softmax_case(),
    _logistic_case("pairwise_logistic_loss", jaxloss.pairwise_logistic_loss),
    _logistic_case(
        "pairwise_logistic_loss(weights, segments, chunk_size)",
        _weighted_lists,
        weights=lambda i: mpf(1 + i % 4) / 4,
        lists=lambda i: i % 2,
    ),
    _logistic_case(
        "pairwise_logistic_loss(lambda_weights='ndcg')",
        partial(jaxloss.pairwise_logistic_loss, lambda_weights="ndcg"),
        swapped=_swapped,
        naive_swapped=_naive_swapped,
        differences=False,  # The weights, which the labels decide too, are held.
    ),
    _list_case("listmle_loss", jaxloss.listmle_loss, _naive_listmle, _listmle),
    _list_case(
        "approx_ndcg_loss",
        partial(jaxloss.approx_ndcg_loss, temperature=T),
        _naive_approx_ndcg,
        _approx_ndcg,
        [(x, y) for x, y in POINTS if min(y) >= 0],
    ),
    _pairwise_case(
        "pairwise_hinge_loss",
        jaxloss.pairwise_hinge_loss,
        naive=lambda d: jax.nn.relu(1 - d),
        terms=lambda d: [mpf(1), -d] if d < 1 else [],
        slope=lambda d: [mpf(-1)] if d < 1 else [],
        curvature=lambda d: [],
    ),
]
