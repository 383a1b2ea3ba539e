"""Rows of the divergences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case, amplify
from tests.cases._softmax import softmax_parts

DISTRIBUTIONS = [
    np.float32(row) for row in ([0.25, 0.75], [0.5, 0.5], [0.01, 0.9, 0.09], [0.3, 0.3, 0.4])
]
PAIRS = [(np.log(p), t) for p in DISTRIBUTIONS for t in DISTRIBUTIONS if len(p) == len(t)]
PAIRS += [(np.float32([-40, 0]), t) for t in DISTRIBUTIONS[:2]]
# A target of zero is for the value; derivatives by it are infinite.
WITH_ZERO = [*PAIRS, (np.log(DISTRIBUTIONS[0]), np.float32([0, 1]))]
LOGITS = [
    (np.float32(x), np.float32(y))
    for x, y in (
        ([0.0, 0.0], [1.0, -1.0]),
        ([20.0, 0.0], [3.0, 0.5]),
        ([1.0, 2.0, 3.0], [3.0, 1.0, 0.5]),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([5.0, -30.0, 1.0], [0.0, 0.0, 0.0]),
    )
]


def _xlogx(t):
    return t * mp.log(t) if t else mpf(0)


def _log(t):
    return mp.log(t) if t else mpf("-inf")


def _kl_terms(x, t):
    return [term for a, b in zip(x, t, strict=True) for term in (_xlogx(b), -b * a)]


def _kl_slope(x, t, i):
    return [_log(t[i]), mpf(1), -x[i]]


def _naive_kl(x, t):
    return jnp.sum(t * (jnp.log(t) - x), -1)


def _share(a, b):
    return mp.log(2 * a / (a + b)) if a else mpf(0)


def _js_terms(x, t):
    pairs = [(mp.exp(a), b) for a, b in zip(x, t, strict=True)]
    return [v / 2 for p, b in pairs for v in (p * _share(p, b), b * _share(b, p))]


def _with_rounded(p, t, terms):
    """The terms, and a pair for what the rounding of p does to the logarithm of its share."""
    extra = p * t / (p + t)
    return [*terms, extra, -extra]


def _js_gradient(x, t, i):
    p = mp.exp(x[i])
    return _with_rounded(p, t[i], [p * _share(p, t[i]) / 2])


def _js_hessian(x, t, i, j):
    p = mp.exp(x[i])
    if i != j:
        return [mpf(0)]
    return _with_rounded(p, t[i], [p * _share(p, t[i]) / 2, p * t[i] / (p + t[i]) / 2])


def _js_slope(x, t, i):
    p = mp.exp(x[i])
    return [
        (mp.log(2 * t[i] / (p + t[i])) if t[i] else mpf("-inf")) / 2,
        p / (p + t[i]),
        -p / (p + t[i]),
    ]


def _naive_js(x, t):
    p = jnp.exp(x)
    m = 0.5 * (p + t)
    return 0.5 * jnp.sum(t * jnp.log(t / m) + p * jnp.log(p / m), -1)


def _distillation_case(temperature) -> Case:
    T = mpf(temperature)

    def parts(x, y):
        student, teacher = softmax_parts([v / T for v in x]), softmax_parts([v / T for v in y])
        return student, teacher

    def value(x, y):
        (_, _, _, nll), (gap, q, _, own) = parts(x, y)
        n = range(len(x))
        return [
            T**2 * amplify(gap[j]) * s * q[j] * v[j] for j in n for s, v in ((1, nll), (-1, own))
        ]

    def total(x, y):
        (_, _, _, nll), (_, q, _, own) = parts(x, y)
        return T**2 * sum(a * (b - c) for a, b, c in zip(q, nll, own, strict=True))

    def scaled(exact, terms):
        """One exact number, and pairs that cancel, for the scale of the terms."""
        return [exact, *(s * t / 2 for t in terms for s in (1, -1))]

    def gradient(x, y, i):
        (gap, p, _, _), (behind, q, _, _) = parts(x, y)
        terms = [p[i] * amplify(gap[i]), q[i] * amplify(behind[i])]
        return scaled(T * (p[i] - q[i]), [T * t for t in terms])

    def hessian(x, y, i, j):
        (gap, p, q, _), _ = parts(x, y)
        term = p[i] * q[i] if i == j else -p[i] * p[j]
        return scaled(term, [term * (amplify(gap[i]) + amplify(gap[j]))])

    def target_gradient(x, y, i):
        (_, _, _, nll), (gap, q, _, own) = parts(x, y)
        kl = [a * (b - c) for a, b, c in zip(q, nll, own, strict=True)]
        exact = T * q[i] * (nll[i] - own[i] - sum(kl))
        sizes = sum(a * (b + c) for a, b, c in zip(q, nll, own, strict=True))
        return scaled(exact, [T * q[i] * amplify(gap[i]) * (nll[i] + own[i] + sizes)])

    def naive(x, y):
        x, y = (jax.nn.log_softmax(a / temperature) for a in (x, y))
        return temperature**2 * jnp.sum(jnp.exp(y) * (y - x), -1)

    return Case(
        name=f"distillation_loss(temperature={temperature:g})",
        fn=partial(jaxloss.distillation_loss, temperature=temperature),
        naive=naive,
        value=lambda x, y: scaled(total(x, y), value(x, y)),
        gradient=gradient,
        hessian=hessian,
        target_gradient=target_gradient,
        predictions="real",
        targets="real",
        points=LOGITS,
    )


def _generalized_case(fn) -> Case:
    return Case(
        name=fn.__name__,
        fn=fn,
        naive=lambda x, t: _naive_kl(x, t) + jnp.sum(jnp.exp(x) - t, -1),
        value=lambda x, t: [*_kl_terms(x, t), *map(mp.exp, x), *(-b for b in t)],
        target_gradient=lambda x, t, i: [*_kl_slope(x, t, i), mpf(-1)],
        predictions="log distribution",
        targets="distribution",
        points=WITH_ZERO,
        optax=optax.losses.generalized_kl_divergence,
    )


CASES = [
    Case(
        name="kl_divergence",
        fn=jaxloss.kl_divergence,
        naive=_naive_kl,
        value=_kl_terms,
        target_gradient=_kl_slope,
        predictions="log distribution",
        targets="distribution",
        points=WITH_ZERO,
        optax=optax.losses.kl_divergence,
    ),
    Case(
        name="kl_divergence_with_log_targets",
        fn=jaxloss.kl_divergence_with_log_targets,
        naive=lambda x, m: jnp.sum(jnp.exp(m) * (m - x), -1),
        value=lambda x, m: [
            v for a, b in zip(x, m, strict=True) for v in (mp.exp(b) * b, -mp.exp(b) * a)
        ],
        predictions="log distribution",
        targets="log distribution",
        points=[(p, np.log(t)) for p, t in PAIRS],
        optax=optax.losses.kl_divergence_with_log_targets,
    ),
    _generalized_case(jaxloss.generalized_kl_divergence),
    _generalized_case(jaxloss.convex_kl_divergence).variant_of("generalized_kl_divergence"),
    Case(
        name="js_divergence",
        fn=jaxloss.js_divergence,
        naive=_naive_js,
        value=_js_terms,
        gradient=_js_gradient,
        hessian=_js_hessian,
        target_gradient=_js_slope,
        predictions="log distribution",
        targets="distribution",
        points=WITH_ZERO,
    ),
    _distillation_case(1.0),
    _distillation_case(2.0),
]
