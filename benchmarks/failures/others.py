"""Regression, divergence, overlap, contrastive, ranking and sequence losses."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mpf

import jaxloss
from benchmarks.failures._failure import (
    Failure,
    compared,
    f32,
    gradient,
    summed_slope,
    temporaries,
    value_and_gradient,
)
from benchmarks.peers import module
from benchmarks.works import OURS
from tests.cases.sequence import lattice

INF, NAN = float("inf"), float("nan")

keras: Any = module("keras")
rax: Any = module("rax")
o = optax.losses


def both(name: str, **options: Any):
    """Ours and optax's, which have the same arguments."""
    return {
        OURS: partial(getattr(jaxloss, name), **options),
        "optax": partial(getattr(o, name), **options),
    }


COSINE = {**both("cosine_similarity"), "keras": lambda x, y: -keras.losses.cosine_similarity(y, x)}
DIRECTION = f32(3, 4)


def _of_length(length, dtype=jnp.float32):
    return jnp.asarray([0.6 * length, 0.8 * length], dtype)


HALF = jnp.asarray(1e4, jnp.float16), jnp.asarray(0, jnp.float16)
SCORES, RELEVANCE = f32(0.5, NAN, 2), f32(1, 0, 2)
PAIRS = np.array([True, False, True])
EMBEDDINGS = f32([1, 0.1], [1, -0.1], [0.2, 1], [-1, 0.5])
LOGITS = np.array([[[1, 0, 2, -1], [0, 1.5, -1, 0], [0.3, 0.2, 1, 2], [2, 0, 0, 1]]], np.float32)


def _ctc(x, labels, f):
    labels = jnp.array([labels])
    return jax.jit(f)(jnp.asarray(x), jnp.zeros(x.shape[:2]), labels, jnp.zeros(labels.shape))[0]


def _ctc_excluded(f):
    x = LOGITS.copy()
    x[..., 3] = -INF
    return value_and_gradient(lambda x: _ctc(x, [1, 2], f), x)


def _infeasible(f):
    value, slope = value_and_gradient(lambda x: _ctc(x, [1, 1, 1], f), LOGITS[:, :3])
    return value, jnp.max(jnp.abs(slope))


def _dice(f):
    return jax.jit(partial(f, apply_softmax=False))(HITS[None], THERE[None])


def _by_weights(f):
    def total(w):
        return jnp.sum(f(SCORES[None], RELEVANCE[None], weights=w, where=PAIRS[None]))

    return gradient(total, jnp.ones((1, 3)))[0, 1]


def _masked_pair(f):
    return gradient(lambda s: jnp.sum(f(s, RELEVANCE, where=PAIRS)), SCORES)


def _ntxent_memory(f):
    x = jax.ShapeDtypeStruct((1024, 512), jnp.float32)
    return temporaries(jax.value_and_grad(f), x, jax.ShapeDtypeStruct((1024,), jnp.int32))


def _pairwise_memory(f):
    x = jax.ShapeDtypeStruct((8, 2000), jnp.float32)
    return temporaries(jax.value_and_grad(lambda s, y: jnp.mean(f(s, y))), x, x)


HITS = np.array([[1, 0], [0.75, 0.25], [0.5, 0.5]], np.float32)
THERE = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
_OVERLAP, _SIZES = np.sum(HITS * THERE, 0), np.sum(HITS + THERE, 0)
DICE = np.mean(1 - (_OVERLAP + 1) / (_SIZES / 2 + 1))
CONFIDENT = 20 * np.eye(3, dtype=np.float32)[[[1, 0, 2, 2, 0]]]
_EXACT = lattice(tuple(mpf(float(v)) for v in CONFIDENT.ravel()), (1, 2)).total
SLOPE = -1 / (1 + np.exp(1.5))

FAILURES: list[Failure] = [
    compared(
        "log_cosh of 1e-4",
        5e-9,
        lambda f: f(f32(1e-4), f32(0)),
        {**both("log_cosh"), "keras": lambda x, y: keras.losses.log_cosh(y, x)},
    ),
    compared(
        "Huber loss, second derivative where the error is delta",
        1.0,
        lambda f: jax.jit(jax.hessian(f))(1.0, 0.0),
        both("huber_loss"),
    ),
    compared(
        "Huber loss of a float16 error of 1e4, delta 1e4",
        5e7,
        lambda f: f(*HALF, delta=1e4),
        both("huber_loss"),
    ),
    compared(
        "squared error of a float16 error of 1e4", 1e8, lambda f: f(*HALF), both("squared_error")
    ),
    *(
        compared(
            f"{name} of shapes (2, 1) and (2,)",
            "ValueError",
            lambda f: f(jnp.zeros((2, 1)), jnp.zeros(2)),
            both(name),
        )
        for name in ("huber_loss", "hinge_loss")
    ),
    compared(
        "absolute error, gradient at an exact fit",
        0.0,
        lambda f: summed_slope(f, f32(1), f32(1)),
        {
            OURS: jaxloss.absolute_error,
            "keras": lambda x, y: keras.losses.mean_absolute_error(y, x),
        },
    ),
    compared(
        "cosine similarity of 0, 0 and 3, 4; gradient",
        (0.0, 0.0, 0.0),
        lambda f: jax.value_and_grad(f)(f32(0, 0), DIRECTION),
        COSINE,
    ),
    *(
        compared(
            f"cosine similarity of parallel vectors of length {length:g}, 5",
            1.0,
            lambda f, n=length: f(_of_length(n), DIRECTION),
            COSINE,
        )
        for length in (1e-25, 1e20)
    ),
    compared(
        "cosine similarity of parallel float16 vectors of length 300",
        1.0,
        lambda f: f(_of_length(300, jnp.float16), _of_length(300, jnp.float16)),
        COSINE,
    ),
    compared(
        "KL divergence of target 0, 1 and log-predictions -inf, 0",
        0.0,
        lambda f: f(f32(-INF, 0), f32(0, 1)),
        both("kl_divergence"),
    ),
    compared(
        "KL divergence, gradient by a target that is 0",
        "-inf, or a huge number for it",
        lambda f: jax.grad(f, 1)(jnp.log(f32(0.5, 0.5)), f32(0, 1))[0],
        both("kl_divergence"),
        holds=lambda got: got < -1e30,
    ),
    compared("dice loss of probabilities, under jit", DICE, _dice, both("dice_loss")),
    *(
        compared(
            f"triplet margin loss of degree {degree:g}; anchor 0, positive 1, negative 8",
            0.0,
            lambda f, p=degree: f(f32(0), f32(1), f32(8), -1, p, 1.0),
            both("triplet_margin_loss"),
        )
        for degree in (1, 3, 1.5)
    ),
    compared(
        "ntxent without positives",
        0.0,
        lambda f: jax.jit(f)(EMBEDDINGS, jnp.arange(4)),
        both("ntxent"),
    ),
    compared(
        "ntxent, gradient at a row of zeros",
        "at most 1",
        lambda f: gradient(lambda x: f(x, jnp.array([0, 0, 1, 1])), EMBEDDINGS.at[0].set(0))[0],
        both("ntxent"),
        holds=lambda got: np.abs(got) <= 1,
    ),
    compared(
        "ntxent of 1024 x 512, MB that value and gradient need",
        "at most 30",
        _ntxent_memory,
        both("ntxent"),
        holds=lambda got: got <= 30,
    ),
    compared(
        "ranking softmax loss, gradient by the weight of a masked item that is NaN",
        0.0,
        _by_weights,
        {**both("ranking_softmax_loss"), "rax": lambda *a, **k: rax.softmax_loss(*a, **k)},
    ),
    compared(
        "pairwise logistic loss, gradient with NaN at a masked item",
        (-SLOPE, 0.0, SLOPE),
        _masked_pair,
        {
            OURS: jaxloss.pairwise_logistic_loss,
            "rax": lambda *a, **k: rax.pairwise_logistic_loss(*a, **k),
        },
    ),
    compared(
        "pairwise logistic loss of 8 lists of 2000, MB that value and gradient need",
        "at most 30",
        _pairwise_memory,
        {
            OURS: jaxloss.pairwise_logistic_loss,
            "rax": lambda *a, **k: rax.pairwise_logistic_loss(*a, **k),
        },
        holds=lambda got: got <= 30,
    ),
    compared(
        "CTC loss of a confident prediction",
        -np.log1p(-float(1 - _EXACT)),
        lambda f: _ctc(CONFIDENT, [1, 2], f),
        both("ctc_loss"),
    ),
    compared(
        "CTC loss with an unused class of logit -inf; gradient",
        "finite",
        _ctc_excluded,
        both("ctc_loss"),
        holds=np.isfinite,
    ),
    compared(
        "CTC loss of a label that is no class",
        NAN,
        lambda f: _ctc(LOGITS, [1, -1], f),
        both("ctc_loss"),
    ),
    compared(
        "CTC loss of more labels than frames; largest gradient",
        (INF, 0.0),
        _infeasible,
        both("ctc_loss"),
    ),
]
