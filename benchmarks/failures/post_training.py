"""Preference and policy losses: small numbers, as trainers of language models compute them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from benchmarks.failures._failure import Failure, compared, value_and_gradient
from benchmarks.works import OURS

TRL = "formula of TRL"  # https://github.com/huggingface/trl, which computes ORPO as it should.
PAPER = "formula of the paper"


def _k3(x, reference):
    return jnp.exp(reference - x) - (reference - x) - 1


def _orpo(chosen, rejected):
    chosen, rejected = (x - jnp.log(1 - jnp.exp(x)) for x in (chosen, rejected))
    return -jax.nn.log_sigmoid(chosen - rejected)


def _dpo(chosen, rejected, beta):
    return -jnp.log(jax.nn.sigmoid(beta * (chosen - rejected)))


def _second_slope(f, x):
    return jax.jit(jax.grad(jax.grad(f)))(x)


K3 = {OURS: partial(jaxloss.kl_estimate, kind="k3"), TRL: _k3}
ORPO = {OURS: jaxloss.orpo_loss, PAPER: _orpo}
DPO = {OURS: partial(jaxloss.cpo_loss, beta=1.0), PAPER: partial(_dpo, beta=1.0)}
ODDS = 1 / np.expm1(1)
TINY = float(np.exp(-80))

FAILURES: list[Failure] = [
    *(
        compared(
            f"k3 estimate of a KL divergence, log-probabilities {d:g} apart",
            d**2 / 2 + d**3 / 6,
            lambda f, d=d: f(jnp.float32(-d), jnp.float32(0)),
            K3,
        )
        for d in (1e-4, 1e-3)
    ),
    compared(
        "ORPO of mean log-probabilities -1e-8, -1",
        ODDS * 1e-8,
        lambda f: jax.jit(f)(jnp.float32(-1e-8), jnp.float32(-1)),
        ORPO,
    ),
    compared(
        "ORPO of mean log-probabilities -1e-8, -1; gradient",
        -ODDS,
        lambda f: value_and_gradient(lambda c: f(c, jnp.float32(-1)), jnp.float32(-1e-8))[1],
        ORPO,
    ),
    *(
        compared(
            f"DPO of a scaled difference of {u}; {what}",
            right,
            lambda f, u=u, of=of: of(lambda c: f(c, jnp.float32(0)), jnp.float32(u)),
            DPO,
        )
        for u, what, right, of in (
            (80, "value", TINY, lambda f, x: jax.jit(f)(x)),
            (80, "gradient", -TINY, lambda f, x: jax.jit(jax.grad(f))(x)),
            (-80, "second derivative", TINY, _second_slope),
        )
    ),
]
