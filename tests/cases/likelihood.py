"""Rows of the likelihoods."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import Case
from tests.cases._numbers import POSITIVE, row

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
]
