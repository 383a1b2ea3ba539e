"""Rows of the losses of a linear layer: the rows of its logits, by the chain rule.

The layer has one feature for each class, times a power of two, so that its logits are exact.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests.cases import categorical, divergence
from tests.cases._case import Case, Model

# The feature, and the factor, of each class.
CLASSES = ((0, 1.0), (1, 1.0), (2, -2.0), (0, 0.5), (1, -1.0))
WEIGHT = np.zeros((3, len(CLASSES)), np.float32)
for _class, (_feature, _factor) in enumerate(CLASSES):
    WEIGHT[_feature, _class] = _factor

HIDDEN = [
    np.float32(row)
    for row in (
        [0.0, -0.0, 0.0],
        [20.0, 0.0, 0.5],
        [1.0, 2.0, -3.0],
        [-60.0, 3.0, -40.0],
        [1e-4, 1e-30, 2.0],
    )
]


def _logits(hidden):
    return [factor * hidden[feature] for feature, factor in CLASSES]


def _of(feature):
    return [(v, factor) for v, (f, factor) in enumerate(CLASSES) if f == feature]


def _layer(h):
    return jnp.asarray(WEIGHT, h.dtype)


FEATURES, VOCABULARY = 256, 16000


def _states(rng, n):
    hidden = rng.normal(size=(n, FEATURES)).astype(np.float32)
    return hidden, rng.normal(size=(FEATURES, VOCABULARY)).astype(np.float32) / np.float32(16)


def _model(fn, dense: Case) -> Model:
    """Of a language model, or of two whose states are compared."""

    def sample(rng, n):
        labels = rng.integers(0, VOCABULARY, n).astype(np.int32)
        return _states(rng, n), labels if dense.integer else _states(rng, n)

    def matmuls(n):
        """The logits, and the gradients by both operands; and the teacher's logits."""
        d, v = FEATURES, VOCABULARY
        return [(n, d, v), (n, v, d), (d, n, v)] + [(n, d, v)] * (not dense.integer)

    return Model(
        fn=lambda x, y: fn(*x, y),
        naive=lambda x, y: jax.vmap(dense.naive)(x[0] @ x[1], y if dense.integer else y[0] @ y[1]),
        sample=sample,
        sizes=(256, 1024, 4096),
        matmuls=matmuls,
    )


def _through_a_layer(dense: Case, name: str, fn, points, model: Model | None = None) -> Case:
    def target(y):
        return y if dense.integer else _logits(y)

    def slope(quantity):
        def terms(h, y, i):
            x = _logits(h), target(y)
            return [s * t for v, s in _of(i) for t in dense.terms(quantity, *x, v)]

        return terms

    def hessian(h, y, i, j):
        x = _logits(h), target(y)
        pairs = [(u, v, s * t) for u, s in _of(i) for v, t in _of(j)]
        return [s * t for u, v, s in pairs for t in dense.terms("hessian", *x, u, v)]

    return replace(
        dense,
        name=name,
        fn=fn,
        naive=lambda h, y: dense.naive(h @ _layer(h), y if dense.integer else y @ _layer(h)),
        value=lambda h, y: dense.value(_logits(h), target(y)),
        gradient=slope("gradient"),
        hessian=hessian,
        target_gradient=None if dense.integer else slope("target_gradient"),
        predictions="real",
        points=points,
        size=3,
        sizes=(),
        optax=None,
        model=model,
    )


def _row(family, name: str) -> Case:
    return next(case for case in family.CASES if case.name == name)


PLAIN = _row(categorical, "softmax_cross_entropy_with_integer_labels")
OPTIONS = _row(categorical, "softmax_cross_entropy_with_integer_labels(all options)")
DISTILLATION = _row(divergence, "distillation_loss(temperature=2)")
LABELLED = [(h, k) for h in HIDDEN for k in range(len(CLASSES))]

CASES = [
    _through_a_layer(
        PLAIN,
        "linear_cross_entropy",
        lambda h, k: jaxloss.linear_cross_entropy(
            h, _layer(h), k, reduction="none", ignore_index=-100
        ),
        LABELLED,
        _model(jaxloss.linear_cross_entropy, PLAIN),
    ),
    _through_a_layer(
        OPTIONS,
        "linear_cross_entropy(all options)",
        lambda h, k: jaxloss.linear_cross_entropy(
            h,
            _layer(h),
            k,
            reduction="none",
            label_smoothing=0.125,
            z_loss=0.25,
            class_weights=jnp.arange(1, len(CLASSES) + 1) / 2,
            ignore_index=-100,
        ),
        LABELLED[::2],
    ),
    _through_a_layer(
        PLAIN,
        "linear_statistics",
        lambda h, k: 0 - jaxloss.linear_statistics(h, _layer(h), k).log_prob,
        LABELLED[1::2],
        _model(lambda h, w, k: -jaxloss.linear_statistics(h, w, k).log_prob, PLAIN),
    ),
    _through_a_layer(
        DISTILLATION,
        "linear_distillation(temperature=2)",
        # A teacher's states are of floating point, as a student's are.
        lambda h, y: jaxloss.linear_distillation(
            h, _layer(h), y.astype(h.dtype), _layer(h), temperature=2.0, reduction="none"
        ),
        list(zip(HIDDEN[1:], HIDDEN[:-1], strict=True)),
        _model(
            lambda h, w, y: jaxloss.linear_distillation(h, w, *y, temperature=2.0), DISTILLATION
        ),
    ),
]
