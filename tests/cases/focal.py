"""Rows of the cross-entropies that weigh easy and hard examples differently."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases import _jets as jets
from tests.cases._case import Case, amplify, sigmoid, softplus, spread
from tests.cases._sigmoid import LOGIT_POINTS, naive_sigmoid
from tests.cases._softmax import (
    DENSE_POINTS,
    INTEGER_POINTS,
    conditioned,
    naive_dense,
    one_hot,
    softmax_parts,
)


def _sigmoid_case(name, power=2.0, balance=None, optax_fn=None, ulps=4, **options) -> Case:
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
        ulps=ulps,
        optax=optax_fn,
    )


def _chain(x, y, slope, curvature, value):
    """Terms of sum_j y_j f(p_j) from terms of f'(p) p and of f''(p) p^2 + f'(p) p."""
    _, p, q, nll = softmax_parts(x)
    n = range(len(x))

    def step(j, i):  # d p_j / d x_i over p_j
        return q[i] if i == j else -p[i]

    def gradient(i):
        return [y[j] * t * step(j, i) for j in n for t in slope(p[j], q[j], nll[j])]

    def hessian(i, k):
        both = q[i] if i == k else -p[k]
        first = [
            y[j] * t * step(j, i) * step(j, k) for j in n for t in curvature(p[j], q[j], nll[j])
        ]
        second = [-y[j] * t * p[i] * both for j in n for t in slope(p[j], q[j], nll[j])]
        return [*first, *second]

    values = [y[j] * t for j in n for t in value(p[j], q[j], nll[j])]
    return values, gradient, hessian


def _chained_case(name, fn, naive, slope, curvature, value, amplification, optax_fn=None):
    def by(x, *ij):
        gap, _, q, _ = softmax_parts(x)
        extra = max(amplification * abs(mp.log(v)) for v in q) if len(x) > 1 else mpf(0)
        return conditioned(x) + sum((amplify(gap[i]) for i in ij), extra)

    def chain(x, y):
        return _chain(x, y, slope, curvature, value)

    return Case(
        name=name,
        fn=fn,
        naive=naive,
        value=lambda x, y: spread(chain(x, y)[0], by(x)),
        gradient=lambda x, y, i: spread(chain(x, y)[1](i), by(x, i)),
        hessian=lambda x, y, i, k: spread(chain(x, y)[2](i, k), by(x, i, k)),
        target_gradient=lambda x, y, i: spread(chain(x, one_hot(i, len(x)))[0], by(x)),
        predictions="logits",
        targets="distribution",
        points=DENSE_POINTS,
        optax=optax_fn,
    )


def _power(q, g):
    return q**g if q else mpf(int(g == 0))


def _softmax_case(power, **options) -> Case:
    g = mpf(power)
    return _chained_case(
        f"softmax_focal_loss(gamma={power:g})",
        partial(jaxloss.softmax_focal_loss, **options),
        lambda x, y: (
            -jnp.sum(y * (1 - jax.nn.softmax(x)) ** power * jnp.log(jax.nn.softmax(x)), -1)
        ),
        lambda p, q, nll: [
            -g * _power(q, g - 1) * p * nll if q else mpf(0),
            -_power(q, g),
        ],
        lambda p, q, nll: (
            [
                g * (g - 1) * _power(q, g - 2) * p**2 * nll,
                2 * g * _power(q, g - 1) * p,
                -g * _power(q, g - 1) * p * nll,
            ]
            if q
            else [mpf(0)]
        ),
        lambda p, q, nll: [_power(q, g) * nll],
        g,
    )


def _generalized_case(power) -> Case:
    g = mpf(power)

    def parts(x, k, *indices):
        """The label's p**g, and the amplification of it and of the gaps of some classes."""
        gap, p, q, nll = softmax_parts(x)
        by = amplify(g * nll[k]) + conditioned(x) + sum((amplify(gap[i]) for i in indices), mpf(0))
        # Of p - one_hot(k), exactly.
        slope = [-q[i] if i == k else p[i] for i in range(len(x))]
        return mp.exp(-g * nll[k]), p, q, slope, by

    def value(x, k):
        nll = softmax_parts(x)[3][k]
        return spread([-mp.expm1(-g * nll) / g if g else nll], conditioned(x))

    def gradient(x, k, i):
        weight, _, _, slope, by = parts(x, k, i)
        return spread([weight * slope[i]], by)

    def hessian(x, k, i, j):
        weight, p, q, slope, by = parts(x, k, i, j)
        curvature = p[i] * q[i] if i == j else -p[i] * p[j]
        return spread([weight * curvature, -g * weight * slope[i] * slope[j]], by)

    def naive(x, k):
        p = jnp.take_along_axis(jax.nn.softmax(x), k[..., None], -1)[..., 0]
        return (1 - p**power) / power if power else -jnp.log(p)

    return Case(
        name=f"generalized_cross_entropy(q={power:g})",
        fn=partial(jaxloss.generalized_cross_entropy, q=power),
        naive=naive,
        value=value,
        gradient=gradient,
        hessian=hessian,
        predictions="logits",
        targets="integer",
        points=INTEGER_POINTS,
    )


def _asymmetric_case(name, positive=1.0, negative=4.0, clip=0.05) -> Case:
    options = {"gamma_positive": positive, "gamma_negative": negative, "clip": clip}

    def focal(x, gamma):
        return jets.exp(-gamma * jets.softplus(x)) * jets.softplus(-x)

    def clipped(x):
        r = jets.sigmoid(x) - clip
        if r.value <= 0:
            return jets.constant(0)
        large = -jets.log(jets.sigmoid(-x) + clip)
        nll = -jets.log1p(-r) if r.value < 0.5 else large
        return jets.exp(negative * jets.log(r)) * nll

    def exact(v, _):
        x, z = v
        return z * focal(x, positive) + (1 - z) * (clipped(x) if clip else focal(-x, negative))

    def naive(x, z):
        p = jax.nn.sigmoid(x)
        r = jnp.maximum(p - clip, 0)
        return -z * (1 - p) ** positive * jnp.log(p) - (1 - z) * r**negative * jnp.log(1 - r)

    terms = jets.terms_of(exact)
    return Case(
        name=name,
        fn=partial(jaxloss.asymmetric_loss, **options),
        naive=naive,
        value=lambda x, z: terms([*x, *z], ()),
        gradient=lambda x, z, _: terms([*x, *z], (), 0),
        hessian=lambda x, z, *_: terms([*x, *z], (), 0, 0),
        target_gradient=lambda x, z, _: terms([*x, *z], (), 1),
        predictions="logits",
        targets="bit",
        points=[*LOGIT_POINTS, *product(np.float32([-2.95, -2.94, -2.5]), np.float32([0, 0.5]))],
        size=None,
    )


CASES = [
    _asymmetric_case("asymmetric_loss"),
    _asymmetric_case("asymmetric_loss(clip=0)", 0.5, 2.0, 0.0),
    _sigmoid_case("sigmoid_focal_loss", optax_fn=optax.losses.sigmoid_focal_loss),
    _sigmoid_case("sigmoid_focal_loss(gamma=0)", 0.0, gamma=0.0),
    # Its curvature sums products of up to six rounded factors, and reaches 4.03.
    _sigmoid_case("sigmoid_focal_loss(gamma=0.5)", 0.5, gamma=0.5, ulps=8),
    _sigmoid_case("sigmoid_focal_loss(gamma=5, alpha=0.25)", 5.0, 0.25, gamma=5.0, alpha=0.25),
    _softmax_case(2.0),
    _softmax_case(0.5, gamma=0.5),
    _softmax_case(0.0, gamma=0.0),
    _chained_case(
        "poly_loss_cross_entropy",
        jaxloss.poly_loss_cross_entropy,
        lambda x, y: naive_dense(x, y) + 2 * jnp.sum(y * (1 - jax.nn.softmax(x)), -1),
        lambda p, q, nll: [mpf(-1), -2 * p],
        lambda p, q, nll: [-2 * p],
        lambda p, q, nll: [nll, 2 * q],
        mpf(0),
        optax_fn=optax.losses.poly_loss_cross_entropy,
    ),
    _generalized_case(0.75),
    _generalized_case(0.0),
]
