"""Exact derivatives of a formula by all of its operands, and the scale of their errors.

A `Jet` is a number with its gradient and Hessian by some variables, and of each of these how much
rounding may add to it, in ulps: half of one of every sum and product, a whole one of every
function, as the formula then magnifies them. An operand itself has no error. So a formula that is
written once, as the paper has it, gives a row its exact results and their condition scales.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from mpmath import mp, mpf

from tests.cases._case import Case, Model, Terms

ZERO = mpf(0)


@dataclass(frozen=True)
class Jet:
    """The derivatives of each order by sorted indices, () being the value, and their errors."""

    of: dict[tuple[int, ...], mpf]
    error: dict[tuple[int, ...], mpf]

    @property
    def value(self) -> mpf:
        return self.of[()]

    def __add__(self, other: Any) -> "Jet":
        other, of, error = constant(other), {}, {}
        for k in self.of.keys() | other.of.keys():
            of[k] = self.of.get(k, ZERO) + other.of.get(k, ZERO)
            rounding = abs(of[k]) / 2 if k in self.of and k in other.of else ZERO
            error[k] = self.error.get(k, ZERO) + other.error.get(k, ZERO) + rounding
        return Jet(of, error)

    def __neg__(self) -> "Jet":
        return Jet({k: -v for k, v in self.of.items()}, self.error)

    def __sub__(self, other: Any) -> "Jet":
        return self + -constant(other)

    def __rsub__(self, other: Any) -> "Jet":
        return constant(other) - self

    def __mul__(self, other: Any) -> "Jet":
        other, of, error = constant(other), {}, {}
        for i, a in self.of.items():
            for j, b in other.of.items():
                if len(i) + len(j) > 2:
                    continue
                k = tuple(sorted(i + j))
                # Each of two different indices is once in the one factor, once in the other.
                times = 2 if len(i) == len(j) == 1 and i == j else 1
                of[k] = of.get(k, ZERO) + times * a * b
                e = abs(a) * other.error.get(j, ZERO) + abs(b) * self.error.get(i, ZERO)
                error[k] = error.get(k, ZERO) + times * (e + abs(a * b) / 2)
        return Jet(of, error)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> "Jet":
        return self * function(constant(other), lambda x: [1 / x, -1 / x**2, 2 / x**3, -6 / x**4])

    def __rtruediv__(self, other: Any) -> "Jet":
        return constant(other) / self


def constant(x: Any) -> Jet:
    return x if isinstance(x, Jet) else Jet({(): mpf(x)}, {(): ZERO})


def held(x: Jet) -> Jet:
    """Without derivatives."""
    return Jet({(): x.of[()]}, {(): x.error[()]})


def variables(values: Sequence[mpf]) -> list[Jet]:
    return [Jet({(): v, (i,): mpf(1)}, {(): ZERO}) for i, v in enumerate(values)]


def function(x: Jet, derivatives: Callable[[mpf], Sequence[Any]]) -> Jet:
    """Of one number, by its value and its first three derivatives, each a number or its terms."""
    terms = [t if isinstance(t, tuple) else (t,) for t in derivatives(x.value)]
    f, f1, f2, _ = (sum(t) for t in terms)
    # How far each is off: by its own rounding, and by that of where it is taken.
    size = [sum(map(abs, t)) for t in terms]
    e, e1, e2 = (size[i] + size[i + 1] * x.error[()] for i in range(3))
    of, error = {(): f}, {(): e}
    slopes = {i: (v, x.error.get(i, ZERO)) for i, v in x.of.items() if len(i) == 1}
    for k, v in x.of.items():
        if k:
            of[k] = f1 * v
            error[k] = e1 * abs(v) + abs(f1) * x.error.get(k, ZERO)
    for i, (a, ea) in slopes.items():
        for j, (b, eb) in slopes.items():
            if i <= j:
                k = i + j
                of[k] = of.get(k, ZERO) + f2 * a * b
                more = e2 * abs(a * b) + abs(f2) * (ea * abs(b) + eb * abs(a))
                error[k] = error.get(k, ZERO) + more
    return Jet(of, error)


def exp(x: Jet) -> Jet:
    return function(x, lambda x: [mp.exp(x)] * 4)


def expm1(x: Jet) -> Jet:
    return function(x, lambda x: [mp.expm1(x), *[mp.exp(x)] * 3])


def log(x: Jet) -> Jet:
    return function(x, lambda x: [mp.log(x), 1 / x, -1 / x**2, 2 / x**3])


def log1p(x: Jet) -> Jet:
    return function(x, lambda x: [mp.log1p(x), 1 / (1 + x), -1 / (1 + x) ** 2, 2 / (1 + x) ** 3])


def sqrt(x: Jet) -> Jet:
    return function(x, lambda x: [r := mp.sqrt(x), 1 / (2 * r), -1 / (4 * r**3), 3 / (8 * r**5)])


def sigmoid(x: Jet) -> Jet:
    return function(x, _slopes)


def softplus(x: Jet) -> Jet:
    return function(x, lambda x: [mp.log1p(mp.exp(x)), *_slopes(x)[:3]])


def _slopes(x: mpf) -> list[Any]:
    """The sigmoid and its derivatives."""
    p, q = 1 / (1 + mp.exp(-x)), 1 / (1 + mp.exp(x))
    pq = p * q
    return [p, pq, (pq * q, -pq * p), (pq * q * q, -4 * pq * pq, pq * p * p)]


def drawn(operands: int, *settings: float) -> Callable[..., Any]:
    """Of a model: batches of so many operands, and settings that all have in common."""

    def sample(rng, n):
        x = rng.normal(size=(operands, n, 1024)).astype(np.float32)
        return tuple(x), tuple(map(np.float32, settings))

    return sample


def terms_of(exact: Callable[..., Jet]) -> Callable[..., list[mpf]]:
    """`terms(x, y, *index)` of a derivative of `exact(variables, y)`, as the table has them."""

    @functools.cache
    def jet_of(_precision, x, y):
        return exact(variables(x), y)

    def terms(x, y, *index):
        jet = jet_of(mp.prec, tuple(x), y if isinstance(y, int) else tuple(y))
        value, scale = (part.get(tuple(sorted(index)), ZERO) for part in (jet.of, jet.error))
        extra = max(scale - abs(value), ZERO) / 2
        return [value, extra, -extra]

    return terms


def jets_case(name: str, fn: Any, naive: Any, exact: Any, points: Any, **fields: Any) -> Case:
    """A row of `exact(variables, target)`, of predictions [n] with integer or unused targets."""
    terms = terms_of(exact)
    derivatives = {"value": terms, "gradient": terms, "hessian": terms}
    return Case(name=name, fn=fn, naive=naive, points=points, sizes=(), **derivatives | fields)


def both_case(name: str, fn: Any, naive: Any, exact: Any, points: Any, **fields: Any) -> Case:
    """A row of `exact([*predictions, *targets], _)`."""
    terms = terms_of(exact)
    derivatives = {
        "value": lambda x, y: terms([*x, *y], ()),
        "gradient": lambda x, y, i: terms([*x, *y], (), i),
        "hessian": lambda x, y, i, j: terms([*x, *y], (), i, j),
        "target_gradient": lambda x, y, i: terms([*x, *y], (), len(x) + i),
    }
    return Case(name=name, fn=fn, naive=naive, points=points, **derivatives | fields)


def numbers_case(name: str, fn: Any, naive: Any, exact: Any, points: Any, **fields: Any) -> Case:
    """A row of an elementwise loss, of `exact(prediction, target)`."""
    of_both = terms_of(lambda z, _: exact(*z))

    def terms(x, y, *index):
        return of_both([x[0], y[0]], (), *index)

    return Case(
        name=name,
        fn=fn,
        naive=naive,
        points=points,
        value=terms,
        gradient=terms,
        hessian=terms,
        target_gradient=lambda x, y, _: terms(x, y, 1),
        size=None,
        **fields,
    )


@dataclass(frozen=True, kw_only=True)
class OperandsCase(Case):
    """Of a loss of several operands: so many lie in the prediction, so many in the target."""

    of: tuple[int, int]
    # The derivatives by all of them, in this order.
    of_all: Callable[..., Terms]
    # Whether those by the target, twice or mixed, are to be exact as well.
    mixed: bool


def operands_case(
    name: str,
    fn: Callable[..., Any],
    naive: Callable[..., Any],
    exact: Callable[..., Jet],
    points: Sequence[tuple[Sequence[float], Sequence[float]]],
    *,
    of: tuple[int, int],
    sample: Callable[..., Any],
    **fields: Any,
) -> OperandsCase:
    """A row of a loss of several operands.

    `fn`, `naive` and `exact` take all of them. `sample(rng, n)` draws those of a model.
    """
    (first, second), size = of, max(of)
    mixed = second > 0 and "hessian" not in fields

    def unpacked(f):
        def call(x, y):
            x, y = jnp.asarray(x), jnp.asarray(y)
            return f(*(x[..., i] for i in range(first)), *(y[..., i] for i in range(second)))

        return call

    of_all = terms_of(lambda z, _: exact(*z))

    def terms(x, y, *index):
        return of_all([*x[:first], *y[:second]], (), *index)

    def of_prediction(x, y, *index):
        return terms(x, y, *index) if max(index) < first else [ZERO]

    fields = {
        "predictions": "real",
        "targets": "real",
        "value": terms,
        "gradient": of_prediction,
        "hessian": of_prediction,
        "target_gradient": lambda x, y, i: terms(x, y, first + i) if i < second else [ZERO],
    } | fields
    return OperandsCase(
        name=name,
        of=of,
        mixed=mixed,
        of_all=lambda operands, *index: of_all(operands, (), *index),
        fn=unpacked(fn),
        naive=unpacked(naive),
        points=[tuple(np.float32((*v, *(0,) * (size - len(v)))) for v in p) for p in points],
        size=size,
        sizes=(),
        model=Model(
            fn=lambda x, y: fn(*x, *y),
            naive=lambda x, y: naive(*x, *y),
            sample=sample,
            sizes=(16, 1024, 4096),
        ),
        **fields,
    )
