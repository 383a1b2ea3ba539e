"""Rows of the cosines."""

import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case

VECTORS = [np.float32(row) for row in ([1, 2, -3, 0.5], [0.25, -1, 4, 2], [1e-15, 3e-15, 0, 1e-15])]


def _cosine_terms(p, t):
    sizes = mp.sqrt(sum(a * a for a in p)) * mp.sqrt(sum(b * b for b in t))
    return [a * b / sizes for a, b in zip(p, t, strict=True)]


def _naive_cosine(p, t):
    sizes = jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(t, axis=-1)
    return jnp.sum(p * t, -1) / sizes


CASES = [
    Case(
        name="cosine_similarity",
        fn=jaxloss.cosine_similarity,
        naive=_naive_cosine,
        value=_cosine_terms,
        predictions="real",
        targets="real",
        points=[(a, b) for a in VECTORS for b in VECTORS[:2] if a is not b],
        sizes=(7, 129, 1000),  # Of one entry the derivative, which is 0, is all rounding.
        ulps=16,  # Of the norms, which every entry has a part in.
        optax=optax.losses.cosine_similarity,
    ),
    Case(
        name="cosine_distance",
        fn=jaxloss.cosine_distance,
        naive=lambda p, t: 1 - _naive_cosine(p, t),
        value=lambda p, t: [mpf(1), *(-term for term in _cosine_terms(p, t))],
        predictions="real",
        targets="real",
        points=[(a, b) for a in VECTORS for b in VECTORS[:2] if a is not b],
        sizes=(7, 129, 1000),
        ulps=16,
        optax=optax.losses.cosine_distance,
    ),
]
