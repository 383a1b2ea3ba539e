"""Rows of the policy losses, of log-probabilities of tokens by two policies."""

from itertools import product

import jax.numpy as jnp
import numpy as np
from jax import lax
from mpmath import mp

import jaxloss
from jaxloss._core.numerics import compute_dtype
from tests.cases._case import Case, Model
from tests.cases._jets import Jet, constant, drawn, exp, function, held, jets_case, operands_case

LOW = HIGH = 0.25
DUAL = 3.0
# Targets are numbers of these: advantages have no derivative.
ADVANTAGES = np.float32([1, -1, 0.375, 0, -2.5])
STEPS = [s * x for x in (0, 1e-30, 1e-4, 0.125, 0.5, 2, 20, 100, 1e4) for s in (1, -1)]
# Log-probabilities now and then.
PAIRS = [(d, 0) for d in STEPS] + [
    (0.5, 0.25), (-3, -3.125), (-3, -2.5), (-1000.25, -1000), (-0.5, -1.75), (-1e-4, -3e-30),
]  # fmt: skip
SEQUENCES = [
    (-1, -2, -3, *old)
    for old in ((-1.125, -2, -3.25), (-2, -1, -3), (-0.5, -2.5, -4), (-3, -2.5, -5))
]


def _case(name, loss, naive, exact, predictions, size) -> Case:
    """`loss(x, a)`, of predictions x and an advantage."""

    def numbered(f):
        return lambda x, k: f(x, jnp.asarray(ADVANTAGES, x.dtype)[k])

    def of_tuple(f):
        return lambda x, a: f(jnp.stack(x, -1), a)

    return jets_case(
        name,
        numbered(loss),
        numbered(naive),
        lambda x, k: exact(x, float(ADVANTAGES[k])),
        [(np.float32(x), k) for x, k in product(predictions, range(len(ADVANTAGES)))],
        predictions="real",
        targets="integer",
        size=size,
        model=Model(
            fn=of_tuple(loss),
            naive=of_tuple(naive),
            sample=lambda rng, n: (drawn(size)(rng, n)[0], np.ones((n, 1024), np.float32)),
            sizes=(16, 1024, 4096),
        ),
    )


def _clipped(rho: Jet, a: float, dual: float) -> Jet:
    """Where it is clipped, a constant; no point is at a clip."""
    value = rho.value
    if a > 0:
        return constant(-a) * (rho if value < 1 + HIGH else 1 + HIGH)
    return constant(-a) * (dual if value > dual else rho if value > 1 - LOW else 1 - LOW)


def _naive_clipped(rho, a, dual):
    loss = -jnp.minimum(rho * a, jnp.clip(rho, 1 - LOW, 1 + HIGH) * a)
    return jnp.where(a < 0, jnp.minimum(loss, -dual * a), loss)


def _surrogate(suffix="", dual=float("inf"), **options):
    return _case(
        f"clipped_surrogate_loss{suffix}",
        lambda x, a: jaxloss.clipped_surrogate_loss(
            x[..., 0], x[..., 1], a, clip_low=LOW, clip_high=HIGH, **options
        ),
        lambda x, a: _naive_clipped(jnp.exp(x[..., 0] - x[..., 1]), a, dual),
        lambda x, a: _clipped(exp(x[0] - x[1]), a, dual),
        PAIRS,
        2,
    )


def _exact_sequence(x, a):
    steps = [now - old for now, old in zip(x[:3], x[3:], strict=True)]
    return _clipped(exp((steps[0] + steps[1] + steps[2]) / 3), a, float("inf"))


def _naive_sequence(x, a):
    return _naive_clipped(jnp.exp(jnp.mean(x[..., :3] - x[..., 3:], -1)), a, float("inf"))


# Of CISPO's weights there is no derivative, but they are the same for all log-probabilities that
# are as far from the old ones: two tokens, one up, one down.
STEP = np.float32([0.125, -0.5])


def _cispo(x, a):
    old = lax.stop_gradient(x).astype(compute_dtype(x.dtype))
    old -= jnp.asarray(STEP, old.dtype).reshape((1,) * (x.ndim - 1) + (2,))
    return jnp.sum(jaxloss.cispo_loss(x, old, jnp.expand_dims(a, -1), clip_high=HIGH), -1)


def _exact_cispo(x, a):
    old = [held(v) - d for v, d in zip(x, map(float, STEP), strict=True)]
    losses = [exp(held(v) - o) * -a * v for v, o in zip(x, old, strict=True)]
    return losses[0] + losses[1]


def _k3(d: Jet) -> Jet:
    return function(d, lambda d: [mp.expm1(d) - d, mp.expm1(d), mp.exp(d), mp.exp(d)])


def _kl_case(kind, exact, naive, suffix=""):
    return operands_case(
        f"kl_estimate{suffix}",
        lambda x, y: jaxloss.kl_estimate(x, y, kind=kind),
        naive,
        exact,
        [((x, y), ()) for y, x in PAIRS],
        of=(2, 0),
        sample=drawn(2),
    )


def _value(v: Jet, old: Jet, r: Jet, clip: Jet) -> Jet:
    step, plain = v.value - old.value, v - r
    if abs(step) <= clip.value:
        return plain * plain / 2
    clipped = (old + clip if step > 0 else old - clip) - r
    return (plain * plain if abs(plain.value) > abs(clipped.value) else clipped * clipped) / 2


def _naive_value(v, old, r, clip):
    clipped = jnp.clip(v, old - clip, old + clip)
    return jnp.maximum((v - r) ** 2, (clipped - r) ** 2) / 2


VALUES = [
    (values, (clip,))
    for values in (
        (0.5, 0.75, 0.125), (1, 0.5, 3), (1, 0.5, -3), (1, 2, 3), (1, 2, -3), (2, 0.5, 1),
        (1e4, 0, 1), (-1e4, 0, 1), (0.3, 0.3, 0.3), (1e-4, 2e-4, 3e-4), (1000.5, 1000, 1001),
    )
    for clip in (0.125, 2.5)
]  # fmt: skip

CASES = [
    _surrogate(),
    _surrogate("(dual_clip=3)", dual=DUAL, dual_clip=DUAL),
    _case(
        "clipped_surrogate_loss(sequence)",
        lambda x, a: jaxloss.clipped_surrogate_loss(
            x[..., :3], x[..., 3:], a, clip_low=LOW, clip_high=HIGH, level="sequence"
        ),
        _naive_sequence,
        _exact_sequence,
        SEQUENCES,
        6,
    ),
    _case(
        "cispo_loss",
        _cispo,
        lambda x, a: -a * jnp.sum(np.exp(STEP) * x, -1),
        _exact_cispo,
        [(0, -0.5), (-1e-30, -1e4), (-2.5, -0.125), (-30, -1e-4)],
        2,
    ),
    _case(
        "policy_gradient_loss",
        # Of two tokens of a sequence, which has one advantage.
        lambda x, a: jnp.sum(jaxloss.policy_gradient_loss(x, a), -1),
        lambda x, a: -a * jnp.sum(x, -1),
        lambda x, a: x[0] * -a + x[1] * -a,
        [(0, -0.5), (-1e-30, -1e4), (-2.5, -0.125)],
        2,
    ),
    _kl_case("k3", lambda x, y: _k3(y - x), lambda x, y: jnp.exp(y - x) - 1 - (y - x)),
    _kl_case("k1", lambda x, y: x - y, lambda x, y: x - y, "(k1)"),
    _kl_case("k2", lambda x, y: (y - x) * (y - x) / 2, lambda x, y: (y - x) ** 2 / 2, "(k2)"),
    operands_case(
        "clipped_value_loss",
        lambda v, old, r, clip: jaxloss.clipped_value_loss(v, old, r, clip=clip),
        _naive_value,
        _value,
        VALUES,
        of=(3, 1),
        sample=drawn(3, 0.25),
        targets="positive",
    ),
]
