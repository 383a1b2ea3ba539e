"""Exact results of the table's points, and errors of computed ones in ulps of their scale."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mpf

from tests.cases._case import Case

RANKS = {"value": 0, "gradient": 1, "target_gradient": 1, "hessian": 2}


def exactly(a) -> list:
    return [mpf(float(v)) for v in np.ravel(a)]


def target(case: Case, y):
    return int(y) if case.integer else exactly(y)


def groups(case: Case, dtype) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The case's points in arrays, one pair for each number of classes."""
    by_size: dict[int, list] = {}
    for x, y in case.points:
        by_size.setdefault(np.size(x), []).append((x, y))
    for points in by_size.values():
        kind = np.int32 if case.integer else dtype
        x = jnp.asarray(np.stack([p for p, _ in points]), dtype)
        yield x, jnp.asarray(np.stack([np.asarray(t, kind) for _, t in points]))


_REFERENCES: dict[tuple, list[tuple[mpf, mpf]]] = {}


def reference(case: Case, quantity: str, dtype: Any = np.float32) -> list[tuple[mpf, mpf]]:
    """Exact results and their scales, in the order of `groups`, flattened."""
    # The points are numbers of float32, so of float64 too.
    key = case.name, quantity, jnp.dtype(dtype).name if jnp.dtype(dtype).itemsize < 4 else ""
    if key not in _REFERENCES:
        _REFERENCES[key] = [
            _summed(case.terms(quantity, exactly(x), target(case, y), *index))
            for xs, ys in groups(case, dtype if key[-1] else np.float32)
            for x, y in zip(np.asarray(xs), np.asarray(ys), strict=True)
            for index in np.ndindex(*(x.size,) * RANKS[quantity])
        ]
    return _REFERENCES[key]


def _summed(terms) -> tuple[mpf, mpf]:
    return sum(terms, mpf(0)), sum((abs(t) for t in terms), mpf(0))


def ulps(got: float, exact: mpf, scale: mpf, dtype) -> float:
    """The error of `got` in ulps of the scale, less what a few terms may flush to zero."""
    info = jnp.finfo(dtype)
    largest, tiny = float(info.max), float(info.tiny)
    if abs(exact) > largest:  # By a target it may be a huge number instead.
        return 0.0 if got * math.copysign(1, exact) >= largest / 8 else math.inf
    if not math.isfinite(got):
        return math.nan
    error = max(abs(mpf(got) - exact) - 4 * tiny, mpf(0))
    _, exponent = math.frexp(min(max(scale, tiny), largest))
    return float(error / mpf(math.ldexp(float(info.eps), exponent - 1)))
