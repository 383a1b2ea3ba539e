"""What a row of the case table says, and the exact arithmetic it is written in.

The exact formula is written in mpmath as a list of terms. Their sum is the reference; the sum
of their absolute values is the condition scale on which errors are counted in ulps. A term
with `exp(a - b)` in it also carries `amplify(a - b)`: rounding that difference is amplified
by the exponential, whatever is done afterwards. A row that states no terms for a derivative
has each term of its value differentiated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mpmath import mp, mpf

mp.dps = 50

Row = list[mpf]
Terms = Sequence[mpf]
Rng = np.random.Generator


def _distribution(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    x = 0.05 + rng.uniform(size=shape)
    return x / x.sum(-1, keepdims=True)


def _box(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """One in any format."""
    corner = rng.uniform(size=(*shape[:-1], 2))
    return np.concatenate([corner, corner + 0.1 + rng.uniform(size=corner.shape)], -1)


# What predictions and targets may be, and a well-behaved sample of it. The "logits" are real
# numbers of which -inf excludes a class; "integer" targets are labels of the entries of a row.
SAMPLES: dict[str, Callable[[Rng, tuple[int, ...]], np.ndarray]] = {
    "logits": lambda rng, shape: rng.normal(size=shape) * 2,
    "real": lambda rng, shape: rng.normal(size=shape) * 2,
    "positive": lambda rng, shape: np.exp(rng.normal(size=shape)),
    "probability": lambda rng, shape: 1 / (1 + np.exp(-2 * rng.normal(size=shape))),
    "sign": lambda rng, shape: rng.choice([-1.0, 1.0], size=shape),
    "bit": lambda rng, shape: rng.choice([0.0, 1.0], size=shape),
    "distribution": _distribution,
    "log distribution": lambda rng, shape: np.log(_distribution(rng, shape)),
    "box": _box,
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """The loss and its naive formula as a model calls them: what benchmarks time.

    A row needs one where its own functions are shaped for exact arithmetic.
    """

    fn: Callable[..., Any]
    naive: Callable[..., Any]
    # A batch of that size: predictions, of which gradients are taken, and targets.
    sample: Callable[[Rng, int], tuple[Any, Any]]
    # Batch sizes to time, the middle one in full.
    sizes: Sequence[int]
    # Multiplications and additions of value and gradient that cannot be avoided: matmuls of
    # (rows, inner, columns), for what is not bound by memory.
    matmuls: Callable[[int], Sequence[tuple[int, int, int]]] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    # The loss: (predictions, targets) -> one value for each example.
    fn: Callable[..., Any]
    # The formula as a user would write it in jax.numpy, for the canary and the benchmarks.
    naive: Callable[..., Any]
    # Exact terms of one example: its predictions and its target as lists of mpf (or an int).
    value: Callable[[Row, Any], Terms]
    # Of what `SAMPLES` names; targets may also be "integer".
    predictions: str
    targets: str
    # Examples at which to be exact: (predictions, target), predictions of shape [] or [n].
    points: Sequence[tuple[np.ndarray, Any]]
    # Entries in the row that is one example, None for an elementwise loss; and the sizes, other
    # than that, on which it is tried.
    size: int | None = 5
    sizes: Sequence[int] = (1, 7, 129, 1000, 32000)
    # Derivatives by predictions, twice, and by targets; None to have `value` differentiated.
    gradient: Callable[[Row, Any, int], Terms] | None = None
    hessian: Callable[[Row, Any, int, int], Terms] | None = None
    target_gradient: Callable[[Row, Any, int], Terms] | None = None
    ulps: float = 4
    # Whether the derivatives are those of the value: not where a factor is held.
    differences: bool = True
    # The function of which this is another name, or a thin variant.
    same_formula_as: str | None = None
    # The function in optax of which this is a drop-in replacement, if optax is right.
    optax: Callable[..., Any] | None = None
    model: Model | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def function(self) -> str:
        """The public name; a row's own name also has its settings, in brackets."""
        return self.name.split("(")[0]

    def variant_of(self, function: str) -> "Case":
        return replace(self, same_formula_as=function)

    @property
    def elementwise(self) -> bool:
        return self.size is None

    @property
    def integer(self) -> bool:
        return self.targets == "integer"

    def random(self, rng: Rng, *batch: int, size: int | None = None, dtype: Any = np.float32):
        """A well-behaved batch: predictions and targets, a row of `size` entries."""
        size = size or self.size
        row = () if size is None else (size,)
        x = SAMPLES[self.predictions](rng, (*batch, *row)).astype(dtype)
        if self.integer:
            return x, rng.integers(0, self.classes(*row), batch).astype(np.int32)
        return x, SAMPLES[self.targets](rng, (*batch, *row)).astype(dtype)

    def classes(self, size: int) -> int:
        """How many integer labels there are for a row of this size."""
        return size if self.sizes else 5

    def terms(self, quantity: str, x: Row, y: Any, *index: int) -> Terms:
        """The exact terms of "value", "gradient", "hessian" or "target_gradient"."""
        stated = getattr(self, quantity)
        if stated is not None:
            return stated(x, y, *index)
        if quantity == "target_gradient":
            return _differentiated(lambda v: self.value(x, v), y, *index)
        return _differentiated(lambda v: self.value(v, y), x, *index)


def _differentiated(terms: Callable[[Row], Terms], at: Row, *index: int) -> Terms:
    order = tuple(index.count(i) for i in range(len(at)))

    def term(k, value):
        slope = mp.diff(lambda *v: terms(list(v))[k], tuple(at), order)
        noise = mpf("1e-40") * max(1, abs(value))
        return slope if abs(slope) > noise else mpf(0)

    return [term(k, value) for k, value in enumerate(terms(at))]


def softplus(x: mpf) -> mpf:
    return mp.log1p(mp.exp(x))


def sigmoid(x: mpf) -> mpf:
    return 1 / (1 + mp.exp(-x))


def amplify(difference: mpf) -> mpf:
    return 1 + abs(difference)


def spread(terms, by):
    """The terms, and two that cancel, so that the scale of the sum is `by` times as large."""
    extra = sum((abs(t) for t in terms), mpf(0)) * (by - 1) / 2
    return [*terms, extra, -extra]
