"""Rows of the preference losses, of log-probabilities of two responses and of a reference's."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from mpmath import mp

import jaxloss
from jaxloss._core.numerics import compute_dtype
from tests.cases._case import Case, amplify, spread
from tests.cases._jets import (
    Jet,
    drawn,
    exp,
    expm1,
    log1p,
    operands_case,
    sigmoid,
    softplus,
)

# By how much a response leads, from one tail to the other: twice what it is scaled to.
LEADS = [s * x for x in (0, 1e-30, 1e-4, 1, 5, 34, 120, 160, 2e4) for s in (1, -1)]
FOUR = [
    (0.25, 0.5, 0.75, 0.125),
    (-10, -12, -11, -11),
    (-1000.25, -1000, -1000.125, -1000.5),
    (-300, -20, -310, -21.5),
    (-5, -250, -7, -80),
    (-1e-4, -2e-4, -3e-30, 0),
]
SMOOTHED = [(0.5, 0.25), (0.5, 0), (0.5, 1e-10), (0.03125, 0.25), (0.875, 0.03125)]


def _case(name, fn, formula, settings: Sequence, *, of, points=None, pieces=None, **fields) -> Case:
    """`formula(f, *operands)` is exact, or naive, with the softplus f; or with one of the `pieces`.

    A few operands come with all settings, the leads with the first two.
    """
    exact, naive = pieces or (softplus, lambda u: -jnp.log(jax.nn.sigmoid(-u)))
    points = points or [(x[:of], y) for x in FOUR for y in settings] + [
        ((lead, 0, 0, 0)[:of], settings[i // 2 % 2]) for i, lead in enumerate(LEADS)
    ]
    return operands_case(
        name,
        fn,
        partial(formula, naive),
        partial(formula, exact),
        points,
        of=(of, len(settings[0])),
        sample=drawn(of, *settings[0]),
        **fields,
    )


def _difference(c, r, rc, rr):
    return (c - rc) - (r - rr)


def _logistic(f, u, s):
    return (1 - s) * f(-u) + s * f(u)


def _robust(f, c, r, rc, rr, b, quarter):
    s = quarter * 0.25  # Of a number below two, one below a half.
    u = b * _difference(c, r, rc, rr)
    return ((1 - s) * f(-u) - s * f(u)) / (1 - 2 * s)


def _identity(_, c, r, rc, rr, b):
    error = _difference(c, r, rc, rr) - 0.5 / b
    return error * error


def _relu(u: Jet) -> Jet:
    return u * (1 if u.value > 0 else 0.5 if u.value == 0 else 0)


KL = 0.25


def _prospect(f, x, y, good, bad, z, b):
    gain = b * (x - y - KL)
    return z * good * f(-gain) + (1 - z) * bad * f(gain)


# Of the odds ratio the terms are stated: those of the formula cancel each other in a derivative.


def _odds_terms(c, r):
    """The derivatives by both, without sign, and what their own are made of."""
    p, q, not_p, not_q = mp.exp(c), mp.exp(r), -mp.expm1(c), -mp.expm1(r)
    both = q * not_p + p * not_q
    return q / both, q * not_p / (not_q * both), p * not_q / both, p * q / both, p / both, q / not_q


def _odds_gradient(x, _, i):
    g, h, *_ = _odds_terms(*x)
    return spread([h if i else -g], amplify(x[0] - x[1]))


def _odds_hessian(x, _, i, j):
    g, h, plus, minus, p, odds = _odds_terms(*x)
    terms = {0: [g * plus, -g * minus], 1: [-g * p], 2: [h * odds, h * p]}[i + j]
    return spread(terms, amplify(x[0] - x[1]))


def _naive_odds(c, r):
    log_odds = c - r - (jnp.log(1 - jnp.exp(c)) - jnp.log(1 - jnp.exp(r)))
    return -jnp.log(jax.nn.sigmoid(log_odds))


PAIRS = [
    (-0.5, -1), (-1, -0.5), (-1, -1), (-0.75, -0.6875), (-1e-30, -1), (-1, -1e-30), (-1e-8, -2),
    (-2, -1e-8), (-1e-4, -1e-4), (-1e-4, -2e-4), (-1e4, -1), (-1, -1e4), (-1e4, -9.9e3), (-50, -30),
    (-30, -50), (-30.5, -30), (-1e-30, -2e-30), (-1e-10, -1e4), (-1e4, -1e-10), (-0.01, -17),
]  # fmt: skip

CASES = [
    _case(
        "dpo_loss",
        lambda c, r, rc, rr, b, s: jaxloss.dpo_loss(c, r, rc, rr, beta=b, label_smoothing=s),
        lambda f, c, r, rc, rr, b, s: _logistic(f, b * _difference(c, r, rc, rr), s),
        SMOOTHED,
        of=4,
        targets="probability",
    ),
    _case(
        "robust_dpo_loss",
        lambda c, r, rc, rr, b, s: jaxloss.robust_dpo_loss(
            c, r, rc, rr, beta=b, label_smoothing=s.astype(compute_dtype(c.dtype)) * 0.25
        ),
        _robust,
        SMOOTHED,
        of=4,
        targets="probability",
    ),
    _case(
        "ipo_loss",
        lambda c, r, rc, rr, b: jaxloss.ipo_loss(c, r, rc, rr, beta=b),
        _identity,
        [(0.5,), (0.03125,)],
        of=4,
        targets="positive",
    ),
    _case(
        "dpo_hinge_loss",
        lambda c, r, rc, rr, b: jaxloss.dpo_hinge_loss(c, r, rc, rr, beta=b),
        lambda f, c, r, rc, rr, b: f(1 - b * _difference(c, r, rc, rr)),
        [(0.5,), (0.03125,)],  # At 1/2 the second of the four is at the margin.
        of=4,
        pieces=(_relu, jax.nn.relu),
        targets="probability",
    ),
    _case(
        "cpo_loss",
        lambda c, r, b, s: jaxloss.cpo_loss(c, r, beta=b, label_smoothing=s),
        lambda f, c, r, b, s: _logistic(f, b * (c - r), s),
        SMOOTHED,
        of=2,
        targets="probability",
    ),
    _case(
        "simpo_loss",
        lambda c, r, b, m: jaxloss.simpo_loss(c, r, beta=b, margin=m),
        lambda f, c, r, b, m: f(m - b * (c - r)),
        SMOOTHED,
        of=2,
        targets="probability",
    ),
    _case(
        "bradley_terry_loss",
        lambda x, y, m: jaxloss.bradley_terry_loss(x, y, margin=m),
        lambda f, x, y, m: f(m - (x - y)),
        [(0.5,), (0,)],
        of=2,
    ),
    _case(
        "orpo_loss",
        jaxloss.orpo_loss,
        lambda f, c, r: f(c, r),
        [()],
        of=2,
        points=[(x, (0, 0)) for x in PAIRS],
        pieces=(lambda c, r: log1p(exp(r - c) * expm1(c) / expm1(r)), _naive_odds),
        gradient=_odds_gradient,
        hessian=_odds_hessian,
        predictions="log distribution",
    ),
    _case(
        "kto_loss",
        lambda x, y, good, bad, z, b: jaxloss.kto_loss(
            x, y, z, beta=b, kl=KL, desirable_weight=good, undesirable_weight=bad
        ),
        _prospect,
        [(1, 0.5), (0, 0.5), (0.25, 0.875)],
        of=4,
        pieces=(sigmoid, lambda u: 1 - jax.nn.sigmoid(-u)),
        targets="probability",
    ),
]
