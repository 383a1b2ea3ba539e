"""Rows of the margin losses. Their points are not at kinks."""

import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mpf

import jaxloss
from tests.cases._case import Case
from tests.cases._scores import INTEGER_POINTS, ROWS, SCORES, hinged, one_hot

POINTS = [(x, t) for x in SCORES for t in np.float32([1, -1])]


def _binary(name, fn, naive, margin, power=1, optax_fn=None) -> Case:
    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda x, t: [hinged(margin - t[0] * x[0]) ** power],
        predictions="real",
        targets="sign",
        points=[(x, t) for x, t in POINTS if x * t != margin],
        size=None,
        optax=optax_fn,
    )


def _best(s, k, margin):
    """The terms of the largest lead over the label, which is at least 0."""
    leads = [(v - s[k] + margin, [v, -s[k], mpf(margin)]) for i, v in enumerate(s) if i != k]
    value, terms = max(leads, default=(mpf(0), []), key=lambda lead: lead[0])
    return terms if value > 0 else [0 * t for t in s]


def _multiclass(name, fn, naive, margin, optax_fn) -> Case:
    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda s, k: _best(s, k, margin),
        predictions="logits",
        targets="integer",
        points=INTEGER_POINTS,
        optax=optax_fn,
    )


def _categorical_terms(s, y):
    wrong = max((1 - b) * a for a, b in zip(s, y, strict=True))
    right = [b * a for a, b in zip(s, y, strict=True)]
    return [mpf(1), wrong, *(-v for v in right)] if 1 + wrong > sum(right) else [mpf(0)]


CASES = [
    _binary(
        "hinge_loss",
        jaxloss.hinge_loss,
        lambda x, t: jnp.maximum(0, 1 - t * x),
        1,
        optax_fn=optax.losses.hinge_loss,
    ),
    _binary(
        "squared_hinge_loss",
        jaxloss.squared_hinge_loss,
        lambda x, t: jnp.maximum(0, 1 - t * x) ** 2,
        1,
        2,
    ),
    _binary(
        "perceptron_loss",
        jaxloss.perceptron_loss,
        lambda x, t: jnp.maximum(0, -t * x),
        0,
        optax_fn=optax.losses.perceptron_loss,
    ),
    _multiclass(
        "multiclass_hinge_loss",
        jaxloss.multiclass_hinge_loss,
        lambda s, k: (
            jnp.max(s + 1 - one_hot(s, k), -1) - jnp.take_along_axis(s, k[..., None], -1)[..., 0]
        ),
        1,
        optax.losses.multiclass_hinge_loss,
    ),
    _multiclass(
        "multiclass_perceptron_loss",
        jaxloss.multiclass_perceptron_loss,
        lambda s, k: jnp.max(s, -1) - jnp.take_along_axis(s, k[..., None], -1)[..., 0],
        0,
        optax.losses.multiclass_perceptron_loss,
    ),
    Case(
        name="categorical_hinge_loss",
        fn=jaxloss.categorical_hinge_loss,
        naive=lambda s, y: jnp.maximum(0, jnp.max((1 - y) * s, -1) - jnp.sum(y * s, -1) + 1),
        value=_categorical_terms,
        predictions="real",
        targets="distribution",
        points=[
            (s, np.float32(y))
            for s in ROWS[1:]
            for y in (*np.eye(len(s))[:2], np.arange(1, len(s) + 1) / 8)
        ],
    ),
]
