"""How exact values, gradients and second derivatives are, of ours and of others.

Each loss is evaluated at the points of its row of the case table, one example at a time, and
compared with mpmath. An error is counted in ulps of the dtype of the inputs on the condition
scale, as the tests count it. A result that is not finite where the exact one is counts apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.programs import brief, tensor
from benchmarks.works import NAIVE, OURS, TORCH, Work
from tests.cases._case import Case
from tests.cases._exact import groups, reference, ulps

Function = Callable[..., Any]

QUANTITIES: dict[str, Callable[[Function], Function]] = {
    "value": lambda loss: loss,
    "gradient": jax.grad,
    "hessian": jax.hessian,
}
# Of points, in a quick run.
FEW = 4


def rows(
    work: Work, *, dtypes: tuple[str, ...] = ("float32", "bfloat16"), quick: bool = False
) -> Iterator[dict[str, Any]]:
    for dtype in dtypes[:1] if quick else dtypes:
        case = _few(work.case) if quick else work.case
        case = _representable(case, dtype)
        for quantity in list(QUANTITIES)[:2] if quick else QUANTITIES:
            about = {"loss": work.name, "dtype": dtype}
            exact = reference(case, quantity, dtype)
            for peer, loss in _losses(work).items():
                row = {**about, "quantity": quantity, "peer": peer}
                try:
                    got = _results(peer, loss, quantity, case, dtype)
                    yield row | errors(got, exact, dtype)
                except Exception as error:  # Such as: there is no second derivative.
                    yield row | {"error": brief(error)}


def errors(got: np.ndarray, exact: list[tuple[Any, Any]], dtype: str) -> dict[str, Any]:
    """In ulps, of the finite results among those that should be."""
    largest = float(jnp.finfo(dtype).max)
    pairs = zip(got.tolist(), exact, strict=True)
    apart = [ulps(a, b, scale, dtype) for a, (b, scale) in pairs if abs(b) <= largest]
    finite = [e for e in apart if np.isfinite(e)]
    out: dict[str, Any] = {"count": len(apart), "not_finite": len(apart) - len(finite)}
    names = {"worst": 1.0, "median": 0.5}
    return out | {k: float(np.quantile(finite, q)) if finite else None for k, q in names.items()}


def _losses(work: Work) -> dict[str, Function]:
    """Those that take the points. What peers of a model's loss take is a model's batch."""
    case = work.case
    if case.model is None:
        return work.losses
    naive = case.naive if case.elementwise else jax.vmap(case.naive)
    return {OURS: case.fn, NAIVE: naive} | ({"optax": case.optax} if case.optax else {})


def _results(peer: str, loss: Function, quantity: str, case: Case, dtype: str) -> np.ndarray:
    """In the order of the references."""
    points = list(groups(case, dtype))
    if peer == TORCH:
        return np.concatenate([_of_torch(loss, quantity, *tensor(p)) for p in points])

    def one(x, y):
        # A batch of one, of which a mean is the same as a sum.
        return jnp.sum(loss(x[None], y[None]))

    each = jax.vmap(QUANTITIES[quantity](one))
    results = jax.jit(lambda points: [each(x, y) for x, y in points])(points)
    return np.concatenate([np.asarray(r, np.float64).ravel() for r in results])


def _of_torch(loss: Function, quantity: str, x: Any, y: Any) -> np.ndarray:
    torch = import_module(TORCH)

    def at(x, y):
        def one(x):
            return loss(x[None], y[None]).sum()

        if quantity == "hessian":
            return torch.autograd.functional.hessian(one, x)
        x.requires_grad_(True)
        value = one(x)
        return value.detach() if quantity == "value" else torch.autograd.grad(value, x)[0]

    results = [at(a.clone(), b) for a, b in zip(x, y, strict=True)]
    return torch.stack(results).double().numpy().ravel()


def _few(case: Case) -> Case:
    """Some points, of one size, so that there is one small program."""
    size = np.size(case.points[-1][0])
    points = [p for p in case.points if np.size(p[0]) == size]
    step = max(1, len(points) // FEW)
    return replace(case, name=f"{case.name}, few points", points=points[::step])


def _representable(case: Case, dtype: str) -> Case:
    """Without points that rounding to `dtype` would move to a kink, a tie or a pole."""

    def numbers(x, y, of):
        a = [np.ravel(v).astype(of).astype(np.float64) for v in ([x] if case.integer else [x, y])]
        return np.unique(np.concatenate([*a, [-1, 0, 1]]))

    def stays(x, y):
        with np.errstate(over="ignore"):
            rounded = numbers(x, y, jnp.dtype(dtype))
        same = len(rounded) == len(numbers(x, y, np.float32))
        return same and bool(np.all(np.isfinite(rounded)))

    if jnp.dtype(dtype).itemsize >= 4:
        return case
    points = [p for p in case.points if stays(*p)]
    return replace(case, name=f"{case.name}, {dtype}", points=points)
