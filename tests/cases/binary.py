"""Rows of the binary cross-entropies."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, amplify, sigmoid, softplus

_HALF = [0.0, 1e-30, 1e-4, 0.5, 1.0, 2.5, 5.0, 17.0, 30.0, 60.0, 80.0, 1e4]
LOGITS = [np.float32(s * x) for x in _HALF for s in (1, -1)]
LABELS = [0.0, 1.0, 0.5, 0.3, 1e-3, 0.999]
LOGIT_POINTS = list(product(LOGITS, map(np.float32, LABELS)))
PROBABILITY_POINTS = [
    *product(np.float32([1e-30, 1e-10, 0.1, 0.5, 0.9, 0.999999]), map(np.float32, LABELS)),
    (np.float32(0), np.float32(0)),
    (np.float32(1), np.float32(1)),
]


def naive_sigmoid(x, z):
    """TensorFlow's formula as it is mostly transcribed."""
    return jnp.maximum(x, 0) - x * z + jnp.log1p(jnp.exp(-jnp.abs(x)))


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


def _focal_case(name, power=2.0, balance=None, optax_fn=None, **options) -> Case:
    g = mpf(power)

    def parts(x, z):
        """alpha_t, q and L with two derivatives each, as terms, and the amplification."""
        s, c = sigmoid(x), sigmoid(-x)
        a = mpf(1) if balance is None else mpf(balance) * z + (1 - mpf(balance)) * (1 - z)
        q = (1 - z) * s + z * c
        dq = (1 - 2 * z) * s * c
        return a * amplify(g * mp.log(q)), a, q, dq, (dq * c, -dq * s)

    def scaled(x, z, build):
        """The terms, and a pair that cancels but adds the amplified scale."""
        big, a, *rest = parts(x, z)
        terms = [a * t for t in build(*rest)]
        extra = sum(abs(t) for t in terms) * (big / a - 1) / 2 if a else mpf(0)
        return [*terms, extra, -extra]

    def loss(x, z):
        return (1 - z) * softplus(x) + z * softplus(-x)

    def slope(x, z):
        return ((1 - z) * sigmoid(x), -z * sigmoid(-x))

    def value(x, z):
        return scaled(x[0], z[0], lambda q, dq, ddq: [q**g * loss(x[0], z[0])])

    def gradient(x, z, _):
        x, z = x[0], z[0]
        return scaled(
            x,
            z,
            lambda q, dq, ddq: [
                g * q ** (g - 1) * dq * loss(x, z),
                *(q**g * t for t in slope(x, z)),
            ],
        )

    def hessian(x, z, *_):
        x, z = x[0], z[0]
        return scaled(
            x,
            z,
            lambda q, dq, ddq: [
                g * (g - 1) * q ** (g - 2) * dq**2 * loss(x, z),
                *(g * q ** (g - 1) * t * loss(x, z) for t in ddq),
                *(2 * g * q ** (g - 1) * dq * t for t in slope(x, z)),
                q**g * sigmoid(x) * sigmoid(-x),
            ],
        )

    def target_gradient(x, z, _):
        x, z = x[0], z[0]
        s, c = sigmoid(x), sigmoid(-x)
        da = mpf(0) if balance is None else 2 * mpf(balance) - 1
        a = mpf(1) if balance is None else mpf(balance) * z + (1 - mpf(balance)) * (1 - z)

        def build(q, dq, ddq):
            by_q = g * q ** (g - 1) * loss(x, z)
            return [by_q * c, -by_q * s, -(q**g) * x, da / a * q**g * loss(x, z)]

        # By the label of an example that is all but certain the derivative is amplified by
        # one power of q less.
        return scaled(x, z, build)

    def naive(x, z):
        p = jax.nn.sigmoid(x)
        q = (1 - z) * p + z * (1 - p)
        a = 1 if balance is None else balance * z + (1 - balance) * (1 - z)
        return a * q**power * naive_sigmoid(x, z)

    return Case(
        name=name,
        fn=partial(jaxloss.sigmoid_focal_loss, **options),
        naive=naive,
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
    _focal_case("sigmoid_focal_loss", optax_fn=optax.losses.sigmoid_focal_loss),
    _focal_case("sigmoid_focal_loss(gamma=0)", 0.0, gamma=0.0),
    _focal_case("sigmoid_focal_loss(gamma=0.5)", 0.5, gamma=0.5),
    _focal_case("sigmoid_focal_loss(gamma=5, alpha=0.25)", 5.0, 0.25, gamma=5.0, alpha=0.25),
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
