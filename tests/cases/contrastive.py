"""Rows of the contrastive losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

import jaxloss
from jaxloss._core.numerics import compute_dtype
from tests.cases._case import softplus
from tests.cases._pairs import BATCHES, LABELLED, ROWS, pairs_case, pairs_of, weighted

T = 0.25

KEYS = [np.roll(row, 2) * np.float32(0.75) + np.float32(0.125) for row in BATCHES]
ALIKE = [np.float32([1, 0.1, -1, 0.1, 0, -3]), np.float32([1, 0.2, -1, 0.1, 0.125, -2])]
TOWERS = [*zip(BATCHES, KEYS, strict=True), (BATCHES[1], BATCHES[1]), tuple(ALIKE)]


def _ntxent(s, k):
    losses = []
    for i, positives, negatives in pairs_of(k):
        others = sum((mp.exp(s[i][n] / T) for n in negatives), mpf(0))
        losses += [mp.log1p(others * mp.exp(-s[i][p] / T)) for p in positives]
    return sum(losses, mpf(0)) / max(len(losses), 1)


def _supervised(s, k):
    losses = []
    for i, positives, negatives in pairs_of(k):
        everything = [*positives, *negatives]
        nll = [
            mp.log1p(sum((mp.exp((s[i][a] - s[i][p]) / T) for a in everything if a != p), mpf(0)))
            for p in positives
        ]
        losses.append(sum(nll, mpf(0)) / max(len(nll), 1))
    return weighted(losses)


def _picking(s):
    n = range(ROWS)
    return [
        mp.log1p(sum((mp.exp((s[i][j] - s[i][i]) / T) for j in n if j != i), mpf(0))) for i in n
    ]


def _info_nce(s, _):
    return weighted(_picking(s))


def _info_nce_of_more(s, _):
    """The first and the last have one id, and all keys come once more as extra ones."""
    n = range(ROWS)
    others = [[j for j in n if j % 2 != i % 2] for i in n]
    return weighted(
        mp.log1p(sum((mp.exp((s[i][j] - s[i][i]) / T) for j in [*others[i], *n]), mpf(0)))
        for i in n
    )


SCALE, BIAS = 4, mpf("-2.5")


def _siglip(s, _):
    n = range(ROWS)
    return weighted(
        sum(softplus((-1 if i == j else 1) * (SCALE * s[i][j] + BIAS)) for j in n) for i in n
    )


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


def _more(loss):
    def of(x, y, **options):
        y = y.astype(compute_dtype(x.dtype))  # Its two derivatives are one.
        ids = jnp.arange(x.shape[0], dtype=jnp.int32) % 2
        return loss(x, y, extra_keys=y, ids=ids, **options)

    return of


def _naive_info_nce_of_more(x, y, extra_keys, ids):
    x, y, more = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (x, y, extra_keys))
    e, own = jnp.exp(x @ y.T / T), jnp.eye(x.shape[0], dtype=bool)
    counted = own | (ids[:, None] != ids[None])
    whole = jnp.sum(jnp.where(counted, e, 0), 1) + jnp.sum(jnp.exp(x @ more.T / T), 1)
    return -jnp.log(jnp.diagonal(e) / whole)


def _naive_siglip(x, y):
    x, y = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    signs = 2 * jnp.eye(len(x)) - 1
    return -jnp.sum(jnp.log(jax.nn.sigmoid(signs * (SCALE * x @ y.T + float(BIAS)))), 1)


CASES = [
    pairs_case(
        f"ntxent(temperature={T})",
        partial(jaxloss.ntxent, temperature=T),
        _naive_ntxent,
        _ntxent,
        1 + 2 / T,
        LABELLED,
    ),
    pairs_case(
        f"info_nce(temperature={T}, chunk_size=2)",
        partial(jaxloss.info_nce, temperature=T),
        _naive_info_nce,
        _info_nce,
        1 + 2 / T,
        TOWERS,
        chunk_size=2,
    ),
    pairs_case(
        f"info_nce(temperature={T}, extra_keys, ids)",
        _more(partial(jaxloss.info_nce, temperature=T)),
        _more(_naive_info_nce_of_more),
        _info_nce_of_more,
        1 + 2 / T,
        TOWERS,
    ),
    pairs_case(
        "siglip_loss",
        partial(jaxloss.siglip_loss, temperature=SCALE, bias=float(BIAS)),
        _naive_siglip,
        _siglip,
        1 + SCALE,
        TOWERS,
    ),
    pairs_case(
        f"supervised_contrastive_loss(temperature={T})",
        partial(jaxloss.supervised_contrastive_loss, temperature=T),
        _naive_supervised,
        _supervised,
        1 + 2 / T,
        LABELLED,
    ),
]
