"""Rows of the robust regression losses."""

from functools import partial

import jax.numpy as jnp
from mpmath import mp, mpf

import jaxloss
from tests.cases._case import amplify, spread
from tests.cases._jets import Jet, constant, drawn, expm1, function, log1p, operands_case
from tests.cases._numbers import row

INFINITE = float("inf")
ERRORS = [(0, 0), (1e-30, 0), (-0.01, 0), (0.5, 0.25), (-1.5, 1), (3, -4), (100.5, 0.25), (-1e4, 1)]
ALPHAS = [1, 0, 2, -INFINITE, -2, 0.5, 1.5, 1.75, 1.9921875, 1e-4, -1e-10, -30, -1e6, 2.5]
SETTINGS = list(zip(ALPHAS, (1, 0.5, 3, 0.75) * 4, strict=False))


def _integral(u: Jet) -> Jet:
    """Of `exp(u * t)` over t in [0, 1]."""
    return function(u, lambda u: [mp.hyp1f1(n, n + 1, u) / n for n in range(1, 5)])


def _robust(p, t, alpha, c):
    r, a = (p - t) / c, alpha.value
    if a == 2:
        return r * r / 2
    if a == -INFINITE:
        return -expm1(r * r / -2)
    b = 2 - alpha if a < 2 else alpha - 2
    q = log1p(r * r / b)
    return b * q / 2 * _integral(alpha * q / 2)


def _naive_robust(p, t, alpha, c):
    b = jnp.abs(alpha - 2)
    return b / alpha * ((((p - t) / c) ** 2 / b + 1) ** (alpha / 2) - 1)


def _charbonnier(p, t):
    """Of alpha 1: the exponential of what is rounded, less one."""
    log = mp.log1p(4 * (p - t) ** 2) / 2
    return spread([mp.expm1(log)], amplify(log))


def _smooth(p, t, beta):
    e = p - t
    if abs(e.value) < beta.value:
        return e * e / (2 * beta)
    return (e if e.value > 0 else -e) - beta / 2


def _naive_smooth(p, t, beta):
    e = jnp.abs(p - t)
    return jnp.where(e < beta, 0.5 * e * e / beta, e - 0.5 * beta)


def _expectile(p, t, q):
    e = p - t
    return (q if e.value < 0 else 1 - q if e.value > 0 else constant(0.5)) * e * e


def _naive_expectile(p, t, q):
    return jnp.where(t > p, q, 1 - q) * (t - p) ** 2


CASES = [
    row(
        "general_robust_loss",
        partial(jaxloss.general_robust_loss, alpha=1.0, scale=0.5),
        lambda p, t: _naive_robust(p, t, 1.0, 0.5),
        _charbonnier,
    ),
    operands_case(
        "general_robust_loss(by its settings)",
        lambda p, t, a, c: jaxloss.general_robust_loss(p, t, alpha=a, scale=c),
        _naive_robust,
        _robust,
        [(ERRORS[i % len(ERRORS)], s) for i, s in enumerate(SETTINGS * 4)],
        of=(2, 2),
        sample=drawn(2, 1.0, 0.5),
        targets="positive",
    ),
    row(
        "smooth_l1_loss",
        jaxloss.smooth_l1_loss,
        lambda p, t: _naive_smooth(p, t, 1.0),
        lambda p, t: [(p - t) ** 2 / 2] if abs(p - t) < 1 else [abs(p - t), mpf(-0.5)],
    ),
    operands_case(
        "smooth_l1_loss(by its settings)",
        lambda p, t, beta: jaxloss.smooth_l1_loss(p, t, beta=beta),
        _naive_smooth,
        _smooth,
        [(e, (beta,)) for e in ERRORS for beta in (0.125, 2.25)]
        + [((3, -4), (0,)), ((0.25, 0.5), (1e-30,)), ((0, 1e-30), (1e-20,))],
        of=(2, 1),
        sample=drawn(2, 2.5),
        targets="positive",
    ),
    row(
        "expectile_loss",
        partial(jaxloss.expectile_loss, expectile=0.875),
        lambda p, t: _naive_expectile(p, t, 0.875),
        lambda p, t: [mpf(0.875 if t > p else 0.125) * (t - p) ** 2],
    ),
    operands_case(
        "expectile_loss(by its settings)",
        lambda p, t, q: jaxloss.expectile_loss(p, t, expectile=q),
        _naive_expectile,
        _expectile,
        [(e, (q,)) for e in ERRORS for q in (0.25, 0.9375, 0, 1)],
        of=(2, 1),
        sample=drawn(2, 0.875),
        targets="probability",
    ),
]
