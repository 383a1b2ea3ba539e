"""Rows of the likelihoods."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln
from mpmath import mp, mpf

import jaxloss
from jaxloss._core.numerics import compute_dtype
from tests.cases._case import Case
from tests.cases._jets import constant, drawn, function, log, log1p, numbers_case, operands_case
from tests.cases._numbers import POINTS, POSITIVE, row

COUNTS = np.float32([0, 1, 2.5, 40])


def _poisson_case(suffix="", log_input=True, full=False) -> Case:
    def value(x, t):
        terms = [mp.exp(x), -t * x] if log_input else [x, -t * mp.log(x)]
        return [*terms, mp.loggamma(t + 1)] if full else terms

    def naive(x, t):
        loss = jnp.exp(x) - t * x if log_input else x - t * jnp.log(x)
        return loss + gammaln(t + 1) if full else loss

    rates = [np.float32(x) for x in (-30, -1.5, 0, 0.75, 4, 20)] if log_input else POSITIVE
    return row(
        f"poisson_nll{suffix}",
        partial(jaxloss.poisson_nll, log_input=log_input, full=full),
        naive,
        value,
        [(x, t) for x in rates for t in COUNTS if not full or t],
        predictions="real" if log_input else "positive",
        targets="positive",
        ulps=16 if full else 4,  # Of the derivative by counts, JAX's digamma.
    )


LEAST = 2.0**-7
DEGREES = [0.01, 1, 2.5, 7, 40, 1e4, 1e8]
SCALED = [
    ((p, t), (s,))
    for p, t in ((0, 0), (1e-30, 0), (0.5, 0.25), (-2, 7), (100.5, 0.25), (-1e4, 1))
    for s in (1e-3, 0.75, 30)
]


def _laplace(p, t, s):
    e = p - t
    return log(s) + (e if e.value > 0 else -e if e.value < 0 else constant(0)) / s


def _student(p, t, s, n):
    r = (p - t) / s
    normalizer = function(1 / n, _normalizer)
    q = log1p(r * r / n)
    return log(s) + n * q / 2 + q / 2 + normalizer


def _normalizer(a):
    """lgamma(n / 2) - lgamma((n + 1) / 2) + log(n / 2) / 2 of a = 1 / n, and its derivatives."""
    n = 1 / a
    x, y = n / 2, (n + 1) / 2
    d = [mp.psi(k, x) - mp.psi(k, y) for k in range(3)]
    by_n = [
        mp.loggamma(x) - mp.loggamma(y) + mp.log(x) / 2,
        d[0] / 2 + 1 / (2 * n),
        d[1] / 4 - 1 / (2 * n**2),
        d[2] / 8 + 1 / n**3,
    ]
    f, f1, f2, f3 = by_n
    return [
        f,
        -(n**2) * f1,
        n**4 * f2 + 2 * n**3 * f1,
        -(n**6) * f3 - 6 * n**5 * f2 - 6 * n**4 * f1,
    ]


def _naive_student(p, t, s, n):
    normalizer = gammaln(n / 2) - gammaln((n + 1) / 2) + 0.5 * jnp.log(n / 2)
    return jnp.log(s) + (n + 1) / 2 * jnp.log1p(((p - t) / s) ** 2 / n) + normalizer


CASES = [
    _poisson_case(),
    _poisson_case("(full)", full=True),
    _poisson_case("(log_input=False)", log_input=False),
    row(
        "gaussian_nll",
        partial(jaxloss.gaussian_nll, variance=2.5),
        lambda p, t: 0.5 * (jnp.log(2.5) + (p - t) ** 2 / 2.5),
        lambda p, t: [mp.log(mpf(2.5)) / 2, (p - t) ** 2 / 5],
    ),
    row(
        "gaussian_nll(by the variance)",
        lambda v, t: jaxloss.gaussian_nll(jnp.zeros_like(v), t, v, full=True),
        lambda v, t: 0.5 * (jnp.log(v) + t**2 / v + np.log(2 * np.pi)),
        lambda v, t: [mp.log(v) / 2, t**2 / (2 * v), mp.log(2 * mp.pi) / 2],
        [(v, t) for v in POSITIVE[1:] for t in np.float32([-2, 1e-5, 0.5, 7])],
        predictions="positive",
    ),
    row(
        "gaussian_nll(beta=0.5)",
        lambda v, t: jaxloss.gaussian_nll(jnp.zeros_like(v), t, v, beta=0.5),
        lambda v, t: lax.stop_gradient(v**0.5) * 0.5 * (jnp.log(v) + t**2 / v),
        lambda v, t: [mp.sqrt(v) * mp.log(v) / 2, t**2 / (2 * mp.sqrt(v))],
        [(v, t) for v in POSITIVE[1:] for t in np.float32([-2, 1e-5, 0.5, 7])],
        gradient=lambda v, t, _: [
            mp.sqrt(v[0]) * a for a in (1 / (2 * v[0]), -(t[0] ** 2) / (2 * v[0] ** 2))
        ],
        hessian=lambda v, t, *_: [
            mp.sqrt(v[0]) * a for a in (-1 / (2 * v[0] ** 2), t[0] ** 2 / v[0] ** 3)
        ],
        predictions="positive",
        differences=False,
    ),
    row(
        "laplace_nll",
        partial(jaxloss.laplace_nll, scale=0.75),
        lambda p, t: jnp.log(0.75) + jnp.abs(p - t) / 0.75,
        lambda p, t: [mp.log(mpf(0.75)), abs(p - t) / mpf(0.75)],
    ),
    operands_case(
        "laplace_nll(by its scale)",
        jaxloss.laplace_nll,
        lambda p, t, s: jnp.log(s) + jnp.abs(p - t) / s,
        _laplace,
        SCALED,
        of=(2, 1),
        sample=drawn(2, 0.75),
        targets="positive",
    ),
    numbers_case(
        "student_t_nll",
        partial(jaxloss.student_t_nll, scale=0.75, df=3.0),
        lambda p, t: _naive_student(p, t, 0.75, 3.0),
        lambda p, t: _student(p, t, constant(0.75), constant(3)),
        POINTS,
        predictions="real",
        targets="real",
    ),
    operands_case(
        "student_t_nll(by its settings)",
        # Degrees of 0, to which a test rounds some, would be none.
        lambda p, t, s, n: jaxloss.student_t_nll(p, t, s, n.astype(compute_dtype(p.dtype)) + LEAST),
        lambda p, t, s, n: _naive_student(p, t, s, n + LEAST),
        lambda p, t, s, n: _student(p, t, s, n + LEAST),
        [
            (x, (*s, n))
            for i, (x, s) in enumerate(SCALED)
            for n in (DEGREES[i % 4], DEGREES[4 + i % 3])
        ],
        of=(2, 2),
        sample=drawn(2, 0.75, 3.0),
        targets="positive",
    ),
]
