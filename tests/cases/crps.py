"""Rows of the continuous ranked probability scores."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from mpmath import mp

import jaxloss
from tests.cases._case import Case, Model
from tests.cases._jets import Jet, constant, drawn, exp, function, numbers_case, operands_case
from tests.cases._numbers import POINTS

SCALED = [
    ((m, t), (s,))
    for m, t in ((0, 0), (1e-30, 0), (0.5, 0.25), (-2, 7), (100.5, 0.25), (-1e4, 1), (3, 3.001))
    for s in (1e-3, 0.75, 30)
]
MEMBERS = [
    (0, 1, 2, 3.5, -1), (5, 1, 2.5, 7, 3), (1e4, 9998, 1e4 + 1, 9996, 9999.5),
    (1e-4, -1e-4, 2e-4, 0, 5e-5), (-300, 1, 1.0001, 1.0002, 300),
]  # fmt: skip


def _gaussian(m, t, s):
    z = (t - m) / s
    edge = _erf(z / mp.sqrt(2))
    return (t - m) * edge + s * (mp.sqrt(2 / mp.pi) * exp(z * z / -2) - 1 / mp.sqrt(mp.pi))


def _erf(x: Jet) -> Jet:
    def derivatives(x):
        slope = 2 / mp.sqrt(mp.pi) * mp.exp(-x * x)
        return [mp.erf(x), slope, -2 * x * slope, (4 * x * x * slope, -2 * slope)]

    return function(x, derivatives)


def _naive_gaussian(m, t, s):
    z = (t - m) / s
    density = jnp.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return s * (z * erf(z / np.sqrt(2)) + 2 * density - 1 / np.sqrt(np.pi))


def _value(x: Jet):
    return x.value


def _ensemble(fair):
    """By the gaps between sorted members, of which some have j members on the far side."""

    def loss(*operands):
        *x, t = operands
        m, x = len(x), sorted(x, key=_value)

        def weight(j):
            return mp.mpf(j * (j - 1)) / (m * (m - 1)) if fair else mp.mpf(j * j) / m**2

        total = constant(0)
        for k, (low, high) in enumerate(pairwise(x), 1):
            inside = min(max(low, t, key=_value), high, key=_value)
            total += weight(k) * (inside - low) + weight(m - k) * (high - inside)
        for part in (t - x[-1], x[0] - t):
            total += part if part.value > 0 else constant(0)
        return total

    return loss


def _naive_ensemble(fair):
    def loss(x, t):
        m = x.shape[-1]
        pairs = jnp.sum(jnp.abs(x[..., :, None] - x[..., None, :]), (-2, -1))
        near = jnp.mean(jnp.abs(x - t[..., None]), -1)
        return near - pairs / (2 * m * (m - 1 if fair else m))

    return loss


def _ensemble_case(fair, suffix="") -> Case:
    loss, naive = partial(jaxloss.ensemble_crps, fair=fair), _naive_ensemble(fair)

    def sample(rng, n):
        return rng.normal(size=(n, 64)).astype(np.float32), rng.normal(size=n).astype(np.float32)

    case = operands_case(
        f"ensemble_crps{suffix}",
        loss,
        naive,
        _ensemble(fair),
        [(x, (t,)) for x in MEMBERS for t in (0.25, -500, 9997.25, 1.00015)],
        of=(5, 1),
        sample=sample,
    )
    return replace(
        case,
        fn=lambda x, y: loss(jnp.asarray(x), jnp.asarray(y)[..., 0]),
        naive=lambda x, y: naive(x, y[..., 0]),
        model=Model(fn=loss, naive=naive, sample=sample, sizes=(256, 16384, 131072)),
    )


CASES = [
    numbers_case(
        "gaussian_crps",
        partial(jaxloss.gaussian_crps, scale=0.75),
        lambda m, t: _naive_gaussian(m, t, 0.75),
        lambda m, t: _gaussian(m, t, constant(0.75)),
        POINTS,
        predictions="real",
        targets="real",
    ),
    operands_case(
        "gaussian_crps(by its scale)",
        jaxloss.gaussian_crps,
        _naive_gaussian,
        _gaussian,
        SCALED,
        of=(2, 1),
        sample=drawn(2, 0.75),
        targets="positive",
    ),
    _ensemble_case(True),
    _ensemble_case(False, "(fair=False)"),
]
