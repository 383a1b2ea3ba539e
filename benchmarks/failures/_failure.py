"""One thing that is computed by us and by others, and what is right."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from benchmarks.programs import brief
from benchmarks.works import OURS

Loss = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Failure:
    what: str
    # Numbers; or the name of an exception; or what `holds` checks, in words.
    right: Any
    ours: Callable[[], Any]
    # By library, or "formula of" one that cannot be installed beside the others.
    peers: dict[str, Callable[[], Any]]
    holds: Callable[[np.ndarray], Any] | None = None
    # Of the largest number that is right; where that is 0, of 1.
    tolerance: float = 1e-3
    # The function of ours that it is about, for its page; by default the one that `ours` is.
    loss: str | None = None

    def holds_for(self, got: np.ndarray | str) -> bool:
        if isinstance(got, str):
            return got.startswith(f"{self.right}:")
        if self.holds is not None:
            return got.size > 0 and bool(np.all(self.holds(got)))
        if isinstance(self.right, str):
            return False
        right = np.atleast_1d(np.asarray(self.right, np.float64))
        sizes = np.abs(right[np.isfinite(right)])
        within = self.tolerance * (np.max(sizes, initial=0.0) or 1.0)
        same = got.shape == right.shape
        return same and np.allclose(got, right, rtol=0, atol=within, equal_nan=True)


def compared(
    what: str,
    right: Any,
    quantity: Callable[[Loss], Any],
    losses: dict[str, Loss],
    **settings: Any,
) -> Failure:
    """The same quantity of the losses, ours among them."""
    runs = {who: (lambda loss=loss: quantity(loss)) for who, loss in losses.items()}
    ours = runs.pop(OURS)
    settings = {"loss": _public_name(losses[OURS]), **settings}
    return Failure(what=what, right=right, ours=ours, peers=runs, **settings)


def _public_name(loss: Loss) -> str | None:
    """Of a function of ours, or of one that is called by a lambda or a partial."""
    loss = getattr(loss, "func", loss)
    code = getattr(inspect.unwrap(loss), "__code__", None)
    names = (getattr(loss, "__name__", ""), *(code.co_names if code else ()))
    return next((name for name in names if name in jaxloss.__all__), None)


def evaluated(run: Callable[[], Any]) -> np.ndarray | str:
    """All numbers of the result; or what was raised."""
    try:
        leaves = jax.tree.leaves(run())
    except Exception as error:  # It is what this is about.
        return brief(error)
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves])


def shown(result: Any) -> str:
    if isinstance(result, str):
        return result
    numbers = np.ravel(result)
    return ", ".join(f"{float(v):.4g}" for v in numbers) if numbers.size else "nothing"


def f32(*values: Any) -> jax.Array:
    return jnp.array(values, jnp.float32)


def gradient(f: Loss, x: Any) -> Any:
    return jax.jit(jax.grad(f))(x)


def value_and_gradient(f: Loss, x: Any) -> Any:
    return jax.jit(jax.value_and_grad(f))(x)


def summed_slope(loss: Loss, x: Any, y: Any) -> Any:
    """The gradient of the sum of the losses."""
    return gradient(lambda x: jnp.sum(loss(x, y)), x)


def temporaries(step: Loss, *args: Any) -> float:
    """MB beside arguments and results; only compiled."""
    used: Any = jax.jit(step).lower(*args).compile().memory_analysis()
    return used.temp_size_in_bytes / 1e6
