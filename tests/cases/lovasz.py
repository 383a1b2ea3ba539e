"""Rows of the Lovász losses. An example is an image, or its pixels times their classes."""

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mpf

import jaxloss
from tests.cases._case import Case, Model
from tests.cases._jets import constant, exp, jets_case

# The labels of five pixels, and logits with ties of several kinds.
BITS = np.int32(
    [[1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 1]]
)
MARGINS = [
    np.float32(row)
    for row in (
        [0.0, -0.0, 0.0, 0.0, 0.0],
        [0.5, -0.25, 3.0, 0.75, -2.0],
        [0.5, -0.5, 0.5, 1.0, -1.0],
        [0.5, 0.25, 0.5, 0.5, -4.0],
        [1e-30, 0.0, 2e-30, -1e-30, 1e-4],
        [1e4, -1e4, 2.0, 40.0, -2.0],
        [30.0, -30.0, 30.0, -30.0, 30.0],
    )
]


def _jaccard(found, missed, size):
    """The loss of taking so many pixels wrongly, of those that are there, and of the others."""
    union = size + missed
    return 1 - mpf(size - found) / union if union else mpf(0)


def _steps(errors, there):
    """How J grows with each pixel, larger errors first; of one error either kind may come first."""
    pixels, size = range(len(errors)), sum(there)
    out = []
    for i in pixels:
        alike = [k for k in pixels if abs(errors[k] - errors[i]) < mpf("1e-40")]
        larger = [k for k in pixels if errors[k] > errors[i] and k not in alike]
        (p, q), (found, missed) = (
            (sum(there[k] for k in some), sum(not there[k] for k in some))
            for some in (alike, larger)
        )
        at = [_jaccard(found + a, missed + b, size) for a, b in ((0, 0), (p, 0), (0, q), (p, q))]
        step = (
            (at[1] - at[0] + at[3] - at[2]) / p if there[i] else (at[2] - at[0] + at[3] - at[1]) / q
        )
        out.append(step / 2)
    return out


def _margins(x, k):
    """Each pixel's sign, margin and weight."""
    signs = [2 * int(v) - 1 for v in BITS[k]]
    margins = [s * v for s, v in zip(signs, x, strict=True)]
    return signs, margins, _steps([-m for m in margins], [s > 0 for s in signs])


def _hinge(x, k):
    _, margins, steps = _margins(x, k)
    pairs = zip(margins, steps, strict=True)
    return [t for m, w in pairs if m < 1 for t in (w, -w * m)]


def _hinge_gradient(x, k, i):
    signs, margins, steps = _margins(x, k)
    side = 1 if margins[i] < 1 else mpf(0.5) if margins[i] == 1 else 0
    return [-signs[i] * steps[i] * side]


def _labelled(loss, labels, *shape):
    """Of one image at a time, with the k-th of the labels."""

    def one(x, k):
        return loss(jnp.reshape(x, (1, *shape)), jnp.asarray(labels)[k][None])[0]

    return jnp.vectorize(one, signature="(n),()->()")


def _naive_steps(errors, there):
    """The errors in decreasing order, and how J grows with each."""
    order = jnp.argsort(-errors, axis=-1)
    errors, there = (jnp.take_along_axis(a, order, -1) for a in (errors, there))
    taken, others = jnp.cumsum(there, -1), jnp.cumsum(1 - there, -1)
    size = jnp.sum(there, -1, keepdims=True)
    loss = 1 - (size - taken) / (size + others)
    return errors, jnp.diff(loss, axis=-1, prepend=jnp.zeros_like(size))


def _naive_hinge(x, z):
    z = z.astype(x.dtype)
    errors, steps = _naive_steps(1 - x * (2 * z - 1), z)
    return jnp.sum(jax.nn.relu(errors) * steps, -1)


PIXELS, CLASSES = 4, 3
LABELS = np.int32([[0, 1, 2, 0], [0, 0, 0, 0], [1, 1, 0, 0], [2, 1, 2, 2], [1, 0, 0, 2]])
LOGITS = [
    np.float32(row)
    for row in (
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, -1, 0.5, 2, 0.25, 0, 0.75, -2, 3, 1.5, 0.125],
        [1, 0, -1, 1, 0, -1, 0, 1, -1, 0, 1, -1],
        [20, 0, -1, 0, 30, 0, 1, 0, 25, 40, 39, -5],
        [60, 0, 1, 61, 0, 2, 0, 50, 1, -70, 2, 1],
    )
]


def _softmax(x, k):
    n = range(CLASSES)
    pixels = [x[CLASSES * i : CLASSES * (i + 1)] for i in range(PIXELS)]
    p = [[1 / sum((exp(b - a) for b in row), constant(0)) for a in row] for row in pixels]
    present = [c for c in n if c in LABELS[k]]

    def of_class(c):
        there = [label == c for label in LABELS[k]]
        errors = [
            sum((row[b] for b in n if b != c), constant(0)) if own else row[c]
            for row, own in zip(p, there, strict=True)
        ]
        weights = _steps([e.value for e in errors], there)
        return sum((w * e for w, e in zip(weights, errors, strict=True)), constant(0))

    return sum((of_class(c) for c in present), constant(0)) / len(present)


def _naive_softmax(x, y):
    p, n = jax.nn.softmax(x), x.shape[-1]
    there = jnp.moveaxis(jax.nn.one_hot(y, n, dtype=x.dtype), -1, 0)
    errors, steps = _naive_steps(jnp.abs(there - jnp.moveaxis(p, -1, 0)), there)
    present = jnp.any(there > 0, -1)
    return jnp.sum(jnp.sum(errors * steps, -1) * present, 0) / jnp.sum(present, 0)


def _images(classes):
    """Images of 128 x 128 pixels."""

    def sample(rng, n):
        if classes is None:
            x = rng.normal(size=(n, 128 * 128)).astype(np.float32)
            return x, rng.integers(0, 2, x.shape).astype(np.float32)
        x = rng.normal(size=(n, 128 * 128, classes)).astype(np.float32)
        return x, rng.integers(0, classes, x.shape[:-1]).astype(np.int32)

    return sample


CASES = [
    Case(
        name="lovasz_hinge_loss",
        fn=_labelled(jaxloss.lovasz_hinge_loss, BITS, 5),
        naive=_labelled(_naive_hinge, BITS, 5),
        value=_hinge,
        gradient=_hinge_gradient,
        hessian=lambda *_: [mpf(0)],
        predictions="real",
        targets="integer",
        points=[(x, k) for x in MARGINS for k in range(len(BITS))],
        sizes=(),
        model=Model(
            fn=jaxloss.lovasz_hinge_loss,
            naive=_naive_hinge,
            sample=_images(None),
            sizes=(1, 16, 64),
        ),
    ),
    jets_case(
        "lovasz_softmax_loss",
        _labelled(jaxloss.lovasz_softmax_loss, LABELS, PIXELS, CLASSES),
        _labelled(_naive_softmax, LABELS, PIXELS, CLASSES),
        _softmax,
        [(x, k) for x in LOGITS[1:] for k in (0, 3)]
        + [(LOGITS[i], k) for i in (0, 2) for k in range(5)],
        predictions="logits",
        targets="integer",
        size=PIXELS * CLASSES,
        model=Model(
            fn=jaxloss.lovasz_softmax_loss,
            naive=_naive_softmax,
            sample=_images(4),
            sizes=(1, 4, 16),
        ),
    ),
]
