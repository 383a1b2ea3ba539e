"""Rows of the overlap losses. A row of pixels of one class, or of pixels times classes, is one
example: the functions themselves take batches of images with classes last."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mpmath import mpf

import jaxloss
from tests.cases import _jets as jets
from tests.cases._case import Case, Model, sigmoid

# All of three pixels: each other size costs every test another compilation.
ONE_CLASS = [
    (np.float32(x), np.float32(t))
    for x, t in (
        ([30.0, -30.0, 50.0], [1.0, 0.0, 1.0]),
        ([-30.0, 30.0, 2.0], [1.0, 0.0, 0.0]),
        ([0.0, -0.0, 0.0], [1.0, 0.0, 0.5]),
        ([12.0, -17.0, 40.0], [1.0, 0.0, 1.0]),
        ([-2.0, -9.0, -30.0], [0.0, 0.0, 0.0]),
        ([1.5, -0.25, 3.0], [0.25, 0.9, 0.001]),
        ([80.0, -1.0, -80.0], [0.0, 1.0, 1.0]),
    )
]
PROBABILITIES = [
    (np.float32(p), np.float32(t))
    for p, t in (
        ([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]),
        ([1e-20, 0.9999999, 0.0], [0.0, 1.0, 0.0]),
        ([0.25, 0.5, 1.0], [1.0, 0.0, 0.5]),
        ([0.0, 0.75, 0.001], [0.5, 0.0, 0.0]),
    )
]
# Three pixels of two classes each; differences of logits that are exact.
TWO_CLASSES = [
    (np.float32(x), np.float32(t))
    for x, t in (
        ([0.0, 0.0, 2.0, -1.0, -0.5, 3.0], [1, 0, 1, 0, 0, 1]),
        ([20.0, 0.0, -12.0, 4.0, 9.0, 0.0], [1, 0, 0, 1, 1, 0]),
        ([20.0, 0.0, -12.0, 4.0, 9.0, 0.0], [0, 1, 0, 1, 0, 1]),
        ([1.0, 0.25, 0.0, 4.0, -3.0, 0.5], [0.25, 0.75, 0.5, 0.5, 0.125, 0.875]),
    )
]


def _of_class(x, t, i):
    """The class of entry i, of two."""
    own = slice(i // 3 * 3, i // 3 * 3 + 3)
    return _of_logits(x[own], t[own])


def _pair(i):
    """The pixels of two classes that overlap, one after the other."""
    return zip(ONE_CLASS[i], ONE_CLASS[i + 1], strict=True)


def _sums(p, q, t):
    """TP, FP and FN, from probabilities and their complements."""
    rows = list(zip(p, q, t, strict=True))
    return (
        sum(a * c for a, _, c in rows),
        sum(a * (1 - c) for a, _, c in rows),
        sum(b * c for _, b, c in rows),
    )


class _Terms:
    """Terms of wrong / (wrong + right), with wrong = a FP + b FN and right = TP + s.

    `dp` and `ddp` are terms of the derivatives of each probability by its own prediction.
    """

    def __init__(self, p, q, t, dp, ddp, a=0.5, b=0.5, s=1.0):
        self.a, self.b, self.t, self.dp, self.ddp = mpf(a), mpf(b), t, dp, ddp
        tp, self.fp, self.fn = _sums(p, q, t)
        self.right, self.wrong = tp + mpf(s), self.a * self.fp + self.b * self.fn
        self.whole = self.right + self.wrong

    def value(self):
        return [self.a * self.fp / self.whole, self.b * self.fn / self.whole]

    def _by_p(self, i):
        """Terms of the derivatives of wrong and right by the probability of a pixel."""
        return [self.a * (1 - self.t[i]), -self.b * self.t[i]], self.t[i]

    def _slope(self, i, dp):
        wrong, right = self._by_p(i)
        terms = [*(self.right * w for w in wrong), -self.wrong * right]
        return [term * d / self.whole**2 for term in terms for d in dp]

    def gradient(self, i):
        return self._slope(i, self.dp[i])

    def hessian(self, i, j):
        (wrong_i, right_i), (wrong_j, right_j) = self._by_p(i), self._by_p(j)
        mixed = [w * right_j for w in wrong_i] + [w * right_i for w in wrong_j]
        terms = [
            *(-2 * self.right * v * w for v in wrong_i for w in wrong_j),
            *(self.wrong * m for m in mixed),
            *(-self.right * m for m in mixed),
            2 * self.wrong * right_i * right_j,
        ]
        dp = sum(self.dp[i]) * sum(self.dp[j])
        both = [term * dp / self.whole**3 for term in terms]
        return both + (self._slope(i, self.ddp[i]) if i == j else [])


def _of_logits(x, t, **options):
    p, q = [sigmoid(v) for v in x], [sigmoid(-v) for v in x]
    pq = list(zip(p, q, strict=True))
    return _Terms(
        p, q, t, [[a * b] for a, b in pq], [[a * b**2, -b * a**2] for a, b in pq], **options
    )


def _of_probabilities(p, t, **options):
    return _Terms(p, [1 - v for v in p], t, [[mpf(1)]] * len(p), [[mpf(0)]] * len(p), **options)


def _by_class(x, t):
    """The two classes' terms, of the softmax of pairs of logits."""
    first = [a - b for a, b in zip(x[::2], x[1::2], strict=True)]
    return [
        _of_logits(first, t[::2]).value(),
        _of_logits([-v for v in first], t[1::2]).value(),
    ]


def _mean_of_classes(x, t):
    return [term / 2 for terms in _by_class(x, t) for term in terms]


def _weighed_classes(x, t):
    rare = [1 / (sum(t[c::2]) ** 2 + mpf("1e-7")) for c in range(2)]
    terms = zip(rare, _by_class(x, t), strict=True)
    return [w / sum(rare) * term for w, of_class in terms for term in of_class]


def _row(fn, **options):
    """The last axis are pixels, of one class; all others are the batch."""
    return lambda x, t: fn(x[..., None], t[..., None], axis=-2, **options)


def _flat(fn, to, **options):
    """As a batch of images shaped `to`."""

    def of(x, t):
        losses = fn(x.reshape(-1, *to), t.reshape(-1, *to), **options)
        return losses.reshape(x.shape[:-1])

    return of


def _one_by_one(fn, to):
    """For a loss that takes the batch together."""

    def of(x, t):
        losses = jax.vmap(lambda a, b: fn(a[None], b[None]))(x.reshape(-1, *to), t.reshape(-1, *to))
        return losses.reshape(x.shape[:-1])

    return of


def _naive(p, t, a=0.5, b=0.5, s=1.0, axis=-1):
    tp, found, there = (jnp.sum(v, axis) for v in (p * t, p, t))
    return 1 - (tp + s) / (tp + a * (found - tp) + b * (there - tp) + s)


def _naive_classes(x, t):
    p, t = jax.nn.softmax(x.reshape(-1, 3, 2)), t.reshape(-1, 3, 2)
    return jnp.mean(_naive(p, t, axis=1), -1).reshape(x.shape[:-1])


def _weighed(x, t):
    weights = 1 / (jnp.sum(t, 1) ** 2 + 1e-7)
    weights = weights / jnp.sum(weights, -1, keepdims=True)
    return jnp.sum(weights * _naive(jax.nn.softmax(x), t, axis=1), -1)


def _naive_weighed(x, t):
    return _weighed(x.reshape(-1, 3, 2), t.reshape(-1, 3, 2)).reshape(x.shape[:-1])


def _segmentation(rng, n):
    """Images of 128 x 128 pixels, each of one of four classes."""
    x = rng.normal(size=(n, 128 * 128, 4)).astype(np.float32)
    return x, np.eye(4, dtype=np.float32)[rng.integers(0, 4, x.shape[:-1])]


def _model(loss, naive=None, sample=_segmentation, **options) -> Model:
    def softmax(x, t):
        return jnp.mean(_naive(jax.nn.softmax(x), t, axis=1, **options), -1)

    return Model(fn=loss, naive=naive or softmax, sample=sample, sizes=(4, 64, 256))


def _binary_model() -> Model:
    def sample(rng, n):
        x, y = _segmentation(rng, n)
        return x[..., 0], y[..., 0]

    def naive(x, t):
        return _naive(jax.nn.sigmoid(x), t, axis=1)

    return _model(jaxloss.binary_dice_loss, naive, sample)


def _one_class_case(
    name, fn, *, of=_of_logits, optax_fn=None, points=ONE_CLASS, model=None, **options
) -> Case:
    """Sigmoids, or probabilities, of the pixels of one class."""
    of_probabilities = of is _of_probabilities
    return Case(
        name=name,
        fn=fn,
        naive=lambda x, t: _naive(x if of_probabilities else jax.nn.sigmoid(x), t, **options),
        value=lambda x, t: of(x, t, **options).value(),
        gradient=lambda x, t, i: of(x, t, **options).gradient(i),
        hessian=lambda x, t, i, j: of(x, t, **options).hessian(i, j),
        predictions="probability" if of_probabilities else "logits",
        targets="probability",
        points=points,
        # A second derivative by two logits has four sigmoids of one ulp each, of both pixels.
        ulps=4 if of_probabilities else 8,
        optax=optax_fn,
        model=model,
    )


def _focal_case(name, a, b, s, gamma) -> Case:
    """A root of the loss of one class."""

    def exact(v, _):
        x, t = v[:3], v[3:]
        p, q = [jets.sigmoid(u) for u in x], [jets.sigmoid(-u) for u in x]
        tp, fp, fn = _sums(p, q, t)
        wrong = a * fp + b * fn
        return jets.exp(jets.log(wrong / (wrong + tp + s)) * (1 / gamma))

    def naive(x, t):
        return _naive(jax.nn.sigmoid(x), t, a, b, s) ** (1 / gamma)

    terms = jets.terms_of(exact)
    return Case(
        name=name,
        fn=_row(jaxloss.tversky_loss, alpha=a, beta=b, smooth=s, gamma=gamma),
        naive=naive,
        value=lambda x, t: terms([*x, *t], ()),
        gradient=lambda x, t, i: terms([*x, *t], (), i),
        hessian=lambda x, t, i, j: terms([*x, *t], (), i, j),
        target_gradient=lambda x, t, i: terms([*x, *t], (), 3 + i),
        predictions="logits",
        targets="probability",
        points=ONE_CLASS,
        size=3,
        sizes=(),
    )


CASES = [
    _one_class_case(
        "dice_loss",
        _row(jaxloss.dice_loss),
        optax_fn=_row(optax.losses.dice_loss),
        model=_model(jaxloss.dice_loss),
    ),
    Case(
        name="dice_loss(two classes)",
        fn=_flat(jaxloss.dice_loss, (3, 2)),
        naive=_naive_classes,
        value=_mean_of_classes,
        predictions="logits",
        targets="probability",
        points=TWO_CLASSES,
        size=6,
        sizes=(),
    ),
    Case(
        name="dice_loss(activation='sigmoid', class_axis)",
        fn=_flat(partial(jaxloss.dice_loss, activation="sigmoid", class_axis=1), (2, 3)),
        naive=lambda x, t: jnp.mean(
            _naive(*(jnp.reshape(a, (*x.shape[:-1], 2, 3)) for a in (jax.nn.sigmoid(x), t))), -1
        ),
        value=lambda x, t: [
            term / 2 for c in (0, 3) for term in _of_logits(x[c : c + 3], t[c : c + 3]).value()
        ],
        gradient=lambda x, t, i: [term / 2 for term in _of_class(x, t, i).gradient(i % 3)],
        hessian=lambda x, t, i, j: (
            [term / 2 for term in _of_class(x, t, i).hessian(i % 3, j % 3)]
            if i // 3 == j // 3
            else []
        ),
        predictions="logits",
        targets="probability",
        points=[(np.append(*x), np.append(*t)) for x, t in map(_pair, (0, 1, 4, 5))],
        size=6,
        sizes=(),
        ulps=8,  # As of one class: four sigmoids of one ulp each in a second derivative.
    ).variant_of("dice_loss"),
    _one_class_case(
        "dice_loss(apply_softmax=False)",
        _row(jaxloss.dice_loss, apply_softmax=False),
        of=_of_probabilities,
        points=PROBABILITIES,
    ),
    _one_class_case(
        "tversky_loss",
        _row(jaxloss.tversky_loss, alpha=0.25, beta=0.75, smooth=0.5),
        model=_model(partial(jaxloss.tversky_loss, alpha=0.25, beta=0.75), a=0.25, b=0.75),
        a=0.25,
        b=0.75,
        s=0.5,
    ).variant_of("dice_loss"),
    _focal_case("tversky_loss(gamma=2)", 0.25, 0.75, 0.5, 2.0),
    _one_class_case(
        "jaccard_loss",
        _row(jaxloss.jaccard_loss, smooth=0.0),
        model=_model(jaxloss.jaccard_loss, a=1.0, b=1.0),
        a=1.0,
        b=1.0,
        s=0.0,
    ).variant_of("dice_loss"),
    _one_class_case(
        "binary_dice_loss",
        lambda x, t: _flat(jaxloss.binary_dice_loss, x.shape[-1:])(x, t),
        points=ONE_CLASS[3:],
        model=_binary_model(),
    ).variant_of("dice_loss"),
    Case(
        name="multiclass_generalized_dice_loss",
        fn=_one_by_one(jaxloss.multiclass_generalized_dice_loss, (3, 2)),
        naive=_naive_weighed,
        value=_weighed_classes,
        predictions="logits",
        targets="probability",
        points=TWO_CLASSES,
        size=6,
        sizes=(),
        model=_model(jaxloss.multiclass_generalized_dice_loss, _weighed),
    ).variant_of("dice_loss"),
]
