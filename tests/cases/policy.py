"""Rows of the policy losses, of log-probabilities of tokens by two policies."""

from itertools import product

import jax.numpy as jnp
from jax import lax
from mpmath import mp

import jaxloss
from tests.cases._jets import Jet, drawn, exp, function, held, operands_case

LOW = HIGH = 0.25
DUAL = 3.0
STEPS = [s * x for x in (0, 1e-30, 1e-4, 0.125, 0.5, 2, 20, 100, 1e4) for s in (1, -1)]
# Log-probabilities now and then.
PAIRS = [(d, 0) for d in STEPS] + [
    (0.5, 0.25), (-3, -3.125), (-3, -2.5), (-1000.25, -1000), (-0.5, -1.75), (-1e-4, -3e-30),
]  # fmt: skip
SURROGATE = [(pair, (a,)) for pair, a in product(PAIRS, (1, -1, 0.375, 0))]
SEQUENCES = [
    ((-1, -2, -3, *old), (a,))
    for old in ((-1.125, -2, -3.25), (-2, -1, -3), (-0.5, -2.5, -4), (-3, -2.5, -5))
    for a in (1, -1, 0)
]


def _clipped(rho: Jet, a: Jet, dual: float) -> Jet:
    """Where it is clipped, a constant; no point is at a clip."""
    value, a = rho.value, held(a)
    if a.value > 0:
        return -a * (rho if value < 1 + HIGH else 1 + HIGH)
    return -a * (dual if value > dual else rho if value > 1 - LOW else 1 - LOW)


def _naive_clipped(rho, a, dual):
    a = lax.stop_gradient(a)
    loss = -jnp.minimum(rho * a, jnp.clip(rho, 1 - LOW, 1 + HIGH) * a)
    return jnp.where(a < 0, jnp.minimum(loss, -dual * a), loss)


def _surrogate_case(suffix, dual=float("inf"), **options):
    return operands_case(
        f"clipped_surrogate_loss{suffix}",
        lambda x, old, a: jaxloss.clipped_surrogate_loss(
            x, old, a, clip_low=LOW, clip_high=HIGH, **options
        ),
        lambda x, old, a: _naive_clipped(jnp.exp(x - old), a, dual),
        lambda x, old, a: _clipped(exp(x - old), a, dual),
        SURROGATE,
        of=(2, 1),
        sample=drawn(2, 1),
    )


def _of_sequences(x, *rest):
    *old, a = rest
    x, old = jnp.stack([x, *old[:2]], -1), jnp.stack(old[2:], -1)
    return x, old, a


def _sequence_loss(*operands):
    x, old, a = _of_sequences(*operands)
    return jaxloss.clipped_surrogate_loss(x, old, a, clip_low=LOW, clip_high=HIGH, level="sequence")


def _naive_sequence(*operands):
    x, old, a = _of_sequences(*operands)
    return _naive_clipped(jnp.exp(jnp.mean(x - old, -1)), a, float("inf"))


def _exact_sequence(*operands):
    *tokens, a = operands
    steps = [x - old for x, old in zip(tokens[:3], tokens[3:], strict=True)]
    return _clipped(exp((steps[0] + steps[1] + steps[2]) / 3), a, float("inf"))


def _cispo(x: Jet, old: Jet, a: Jet) -> Jet:
    rho = held(exp(x - old))
    return (
        -(rho if rho.value < 1 + HIGH else Jet({(): mp.mpf(1 + HIGH)}, {(): mp.mpf(0)}))
        * held(a)
        * x
    )


def _naive_cispo(x, old, a):
    return -lax.stop_gradient(jnp.minimum(jnp.exp(x - old), 1 + HIGH) * a) * x


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
    _surrogate_case(""),
    _surrogate_case("(dual_clip=3)", dual=DUAL, dual_clip=DUAL),
    operands_case(
        "clipped_surrogate_loss(sequence)",
        _sequence_loss,
        _naive_sequence,
        _exact_sequence,
        SEQUENCES,
        of=(6, 1),
        sample=drawn(6, 1),
    ),
    operands_case(
        "cispo_loss",
        lambda x, old, a: jaxloss.cispo_loss(x, old, a, clip_high=HIGH),
        _naive_cispo,
        _cispo,
        SURROGATE,
        of=(2, 1),
        sample=drawn(2, 1),
    ),
    operands_case(
        "policy_gradient_loss",
        # Of two tokens of a sequence, which has one advantage.
        lambda x, y, a: jnp.sum(jaxloss.policy_gradient_loss(jnp.stack([x, y], -1), a), -1),
        lambda x, y, a: -lax.stop_gradient(a) * (x + y),
        lambda x, y, a: -held(a) * x - held(a) * y,
        [((x, -1.25), (a,)) for x in (0, -1e-30, -2.5, -1e4) for a in (1, -0.3, 0)],
        of=(2, 1),
        sample=drawn(2, 1),
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
