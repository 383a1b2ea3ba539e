"""What a row of the case table says, and the exact arithmetic it is written in.

The exact formulas are written in mpmath as lists of terms. Their sum is the reference; the
sum of their absolute values is the condition scale on which errors are counted in ulps. A
term with `exp(a - b)` in it also carries `amplify(a - b)`: rounding that difference is
amplified by the exponential, whatever is done afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpmath import mp, mpf

mp.dps = 50

Row = list[mpf]
Terms = Sequence[mpf]


@dataclass(frozen=True)
class Case:
    name: str
    # The loss: (predictions, targets) -> one value for each example.
    fn: Callable[..., Any]
    # The formula as a user would write it in jax.numpy, for the canary and the benchmarks.
    naive: Callable[..., Any]
    # Exact terms of one example: its predictions and its target as lists of mpf (or an int).
    value: Callable[[Row, Any], Terms]
    gradient: Callable[[Row, Any, int], Terms]
    hessian: Callable[[Row, Any, int, int], Terms]
    # By a target; None for integers.
    target_gradient: Callable[[Row, Any, int], Terms] | None
    # "logits" or "probabilities", and "binary", "dense" or "integer".
    predictions: str
    targets: str
    # Examples at which to be exact: (predictions, target), predictions of shape [] or [C].
    points: Sequence[tuple[np.ndarray, Any]]
    ulps: float = 8
    # The function in optax of which this is a drop-in replacement, if optax is right.
    optax: Callable[..., Any] | None = None

    def __str__(self) -> str:
        return self.name

    def random(self, rng: np.random.Generator, *batch: int, dtype: Any = np.float32):
        """A well-behaved batch: predictions and targets."""
        classes = () if self.targets == "binary" else (5,)
        x = rng.normal(size=(*batch, *classes)) * 2
        if self.predictions == "probabilities":
            x = 1 / (1 + np.exp(-x))
            x = x if self.targets == "binary" else x / x.sum(-1, keepdims=True)
        if self.targets == "integer":
            return x.astype(dtype), rng.integers(0, 5, batch).astype(np.int32)
        y = rng.uniform(size=(*batch, *classes))
        y = y if self.targets == "binary" else y / y.sum(-1, keepdims=True)
        return x.astype(dtype), y.astype(dtype)


def softplus(x: mpf) -> mpf:
    return mp.log1p(mp.exp(x))


def sigmoid(x: mpf) -> mpf:
    return 1 / (1 + mp.exp(-x))


def amplify(difference: mpf) -> mpf:
    return 1 + abs(difference)
