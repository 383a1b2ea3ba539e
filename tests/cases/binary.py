"""Rows of the binary cross-entropies."""

from functools import partial
from itertools import product

import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, sigmoid, softplus
from tests.cases._sigmoid import LABELS, LOGIT_POINTS, naive_sigmoid

PROBABILITY_POINTS = [
    *product(np.float32([1e-30, 1e-10, 0.1, 0.5, 0.9, 0.999999]), map(np.float32, LABELS)),
    (np.float32(0), np.float32(0)),
    (np.float32(1), np.float32(1)),
]


def _sigmoid_case(name, w=1.0, s=0.0, optax_fn=None, **options) -> Case:
    def weights(z):
        return (1 - z) * (1 - mpf(s)) + mpf(s) / 2, mpf(w) * (z * (1 - mpf(s)) + mpf(s) / 2)

    def value(x, z):
        a, b = weights(z[0])
        return [a * softplus(x[0]), b * softplus(-x[0])]

    def gradient(x, z, _):
        a, b = weights(z[0])
        return [a * sigmoid(x[0]), -b * sigmoid(-x[0])]

    def hessian(x, z, *_):
        return [sum(weights(z[0])) * sigmoid(x[0]) * sigmoid(-x[0])]

    def target_gradient(x, _z, _i):
        if w == 1:
            return [-(1 - mpf(s)) * x[0]]
        return [-(1 - mpf(s)) * softplus(x[0]), mpf(w) * (1 - mpf(s)) * softplus(-x[0])]

    def naive(x, z):
        z = z * (1 - s) + s / 2
        return naive_sigmoid(x, z) + (w - 1) * z * jnp.log1p(jnp.exp(-x))

    return Case(
        name=name,
        fn=partial(jaxloss.sigmoid_binary_cross_entropy, **options),
        naive=naive_sigmoid if not options else naive,
        value=value,
        gradient=gradient,
        hessian=hessian,
        target_gradient=target_gradient,
        predictions="logits",
        targets="probability",
        points=LOGIT_POINTS,
        size=None,
        optax=optax_fn,
    )


def _log(p: mpf) -> mpf:
    return mp.log(p) if p else mpf("-inf")


def _term(weight: mpf, factor: mpf) -> mpf:
    return weight * factor if weight else mpf(0)


def _inverse(p: mpf) -> mpf:
    return 1 / p if p else mpf("inf")


CASES = [
    _sigmoid_case("sigmoid_binary_cross_entropy", optax_fn=optax.sigmoid_binary_cross_entropy),
    _sigmoid_case("sigmoid_binary_cross_entropy(pos_weight=3)", w=3.0, pos_weight=3.0),
    _sigmoid_case("sigmoid_binary_cross_entropy(pos_weight=1e-3)", w=1 / 1024, pos_weight=1 / 1024),
    _sigmoid_case(
        "sigmoid_binary_cross_entropy(label_smoothing, pos_weight)",
        w=3.0,
        s=0.125,
        label_smoothing=0.125,
        pos_weight=3.0,
    ),
    Case(
        name="binary_cross_entropy",
        fn=jaxloss.binary_cross_entropy,
        naive=lambda p, z: -(z * jnp.log(p) + (1 - z) * jnp.log(1 - p)),
        value=lambda p, z: [_term(-z[0], _log(p[0])), _term(-(1 - z[0]), _log(1 - p[0]))],
        gradient=lambda p, z, _: [
            _term(-z[0], _inverse(p[0])),
            _term(1 - z[0], _inverse(1 - p[0])),
        ],
        hessian=lambda p, z, *_: [
            _term(z[0], _inverse(p[0]) ** 2),
            _term(1 - z[0], _inverse(1 - p[0]) ** 2),
        ],
        target_gradient=lambda p, z, _: [-_log(p[0]), _log(1 - p[0])],
        predictions="probability",
        targets="probability",
        points=PROBABILITY_POINTS,
        size=None,
    ),
]
