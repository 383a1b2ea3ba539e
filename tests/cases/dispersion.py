"""Rows of the likelihoods whose variance grows with the mean."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from mpmath import mp, mpf

import jaxloss
from jaxloss._core.numerics import compute_dtype
from tests.cases._case import amplify, spread
from tests.cases._jets import Jet, constant, function, log, log1p, numbers_case, operands_case
from tests.cases._numbers import POSITIVE, row

MEANS = [1e-10, 1e-3, 0.4, 1, 2.5, 40, 1e3]
COUNTS = [0.0, 1, 2.5, 40]
DISPERSIONS = [0, 1e-20, 1e-6, 0.01, 0.11, 0.13, 1, 30]
# Means and targets, and shapes.
FITS = [(1e-3, 2), (0.4, 0.4), (1, 1.001), (2.5, 1.5), (40, 1e-6), (1e3, 900), (1, 1e4)]
LEAST = 2.0**-10
SHAPES = [1e-3, 0.3, 1, 4.5, 100, 1e6]


def _mean_log(w: Jet) -> Jet:
    """`log(1 + w) / w`."""

    def derivatives(w):
        return [
            (-1) ** n * mp.factorial(n) / (n + 1) * mp.hyp2f1(n + 1, n + 1, n + 2, -w)
            for n in range(4)
        ]

    return function(w, derivatives)


def _rest(z: Jet) -> Jet:
    """Of Stirling's formula."""

    def derivatives(z):
        half = mpf(1) / 2
        return [
            mp.loggamma(z) - (z - half) * mp.log(z) + z - mp.log(2 * mp.pi) / 2,
            mp.psi(0, z) - mp.log(z) + half / z,
            mp.psi(1, z) - 1 / z - half / z**2,
            mp.psi(2, z) + 1 / z**2 + 1 / z**3,
        ]

    return function(z, derivatives)


def _rising(y: Jet, a: Jet) -> Jet:
    if a.value < 1e-15:  # The sum of log(1 + j * a) over j < y.
        first, second = (y * y - y) / 2, (y * y * y * 2 - y * y * 3 + y) / 6
        return a * first - a * a * second / 2
    w, z = a * y, 1 / a

    def bent(w):
        f = [(1 + w) * mp.log1p(w) / w - 1 if w else mpf(0)]
        of = [
            (-1) ** n * mp.factorial(n) / (n + 1) * mp.hyp2f1(n + 1, n + 1, n + 2, -w)
            for n in range(4)
        ]
        return f + [(1 + w) * of[n] + n * of[n - 1] for n in range(1, 4)]

    return y * function(w, bent) - log1p(w) / 2 + (_rest(z + y) - _rest(z))


def _negative_binomial(m, y, a):
    w = a * m
    return m * _mean_log(w) + y * log1p(w) - y * log(m) - _rising(y, a)


def _naive_negative_binomial(m, y, a):
    k = 1 / a
    return gammaln(k) - gammaln(y + k) + k * jnp.log1p(m / k) - y * (jnp.log(m) - jnp.log(m + k))


def _gamma(m, t, k):
    e = (t - m) / m

    def deviance(e):
        return [e - mp.log1p(e), e / (1 + e), 1 / (1 + e) ** 2, -2 / (1 + e) ** 3]

    return k * function(e, deviance) - log(k) / 2 + mp.log(2 * mp.pi) / 2 + _rest(k)


def _naive_gamma(m, t, k):
    return k * (t / m - jnp.log(t / m)) - k * jnp.log(k) + gammaln(k)


def _ratio_log(m, t, k):
    """The integral of `exp(k * x)` from 0 to log(t / m)."""
    x = mp.log(t / m)
    return x if k == 0 else mp.expm1(k * x) / k


def _tweedie_value(m, t, p):
    c = 2 - p
    if t == 0:
        loss = m**c / c
    else:
        loss = m**c * (t / m * _ratio_log(m, t, 1 - p) - _ratio_log(m, t, c))
    return spread([loss], amplify(c * mp.log(m)))


def _naive_tweedie(m, t, p):
    by_target = t ** (2 - p) / ((1 - p) * (2 - p))
    return by_target - t * m ** (1 - p) / (1 - p) + m ** (2 - p) / (2 - p)


def _tweedie_case(power, naive, suffix=""):
    p = mpf(power)

    def by_mean(m, t, *index):
        m, t = m[0], t[0]
        slope, steep = [(m - t) * m**-p], [m**-p, -p * (m - t) * m ** (-p - 1)]
        return spread(slope if len(index) == 1 else steep, amplify(p * mp.log(m)))

    def by_target(m, t, _):
        slope = m[0] ** (1 - p) * _ratio_log(m[0], t[0], 1 - p)
        return spread([slope], amplify((1 - p) * mp.log(m[0])))

    return row(
        f"tweedie_loss{suffix}",
        partial(jaxloss.tweedie_loss, power=power),
        naive,
        lambda m, t: _tweedie_value(m, t, p),
        [(m, t) for m in POSITIVE[1:] for t in np.float32([1e-3, 0.41, 1.0001, 3, 1e3])],
        gradient=by_mean,
        hessian=by_mean,
        target_gradient=by_target,
        predictions="positive",
        targets="positive",
    )


def positive(rng, n):
    """Of a model: means, targets and settings."""
    m, t, v = rng.uniform(0.5, 2, (3, n, 1024)).astype(np.float32)
    return (m,), (t, v)


CASES = [
    numbers_case(
        "negative_binomial_nll",
        partial(jaxloss.negative_binomial_nll, dispersion=0.5),
        lambda m, t: _naive_negative_binomial(m, t, 0.5),
        lambda m, t: _negative_binomial(m, t, constant(0.5)),
        [(np.float32(m), np.float32(t)) for m in MEANS for t in COUNTS],
        predictions="positive",
        targets="positive",
    ),
    operands_case(
        "negative_binomial_nll(by its settings)",
        jaxloss.negative_binomial_nll,
        _naive_negative_binomial,
        _negative_binomial,
        [
            ((m,), (t, a))
            for i, m in enumerate(MEANS)
            for t in COUNTS
            for a in DISPERSIONS[i % 2 :: 2]
        ],
        of=(1, 2),
        sample=positive,
        predictions="positive",
        targets="positive",
    ),
    numbers_case(
        "gamma_nll",
        partial(jaxloss.gamma_nll, shape=2.5),
        lambda m, t: _naive_gamma(m, t, 2.5),
        lambda m, t: _gamma(m, t, constant(2.5)),
        [tuple(map(np.float32, pair)) for pair in FITS],
        predictions="positive",
        targets="positive",
    ),
    operands_case(
        "gamma_nll(by its settings)",
        # A shape of 0, to which a test rounds some, would be none.
        lambda m, t, k: jaxloss.gamma_nll(m, t, k.astype(compute_dtype(m.dtype)) + LEAST),
        lambda m, t, k: _naive_gamma(m, t, k + LEAST),
        lambda m, t, k: _gamma(m, t, k + LEAST),
        [((m,), (t, k)) for i, (m, t) in enumerate(FITS) for k in SHAPES[i % 2 :: 2]],
        of=(1, 2),
        sample=positive,
        predictions="positive",
        targets="positive",
    ),
    _tweedie_case(1.5, lambda m, t: _naive_tweedie(m, t, 1.5)),
    _tweedie_case(1.0, lambda m, t: t * jnp.log(t / m) - t + m, "(power=1)"),
    _tweedie_case(2.0, lambda m, t: t / m - 1 - jnp.log(t / m), "(power=2)"),
]
