"""The programs that are timed: the same work for each library, compiled, and checked equal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import layers
from benchmarks.works import OURS, TORCH, Size, Work

Program = Callable[..., Any]
K = TypeVar("K")
T = TypeVar("T")

RATE = 0.1
LIMIT = "limit"


@dataclass(frozen=True)
class Run:
    """A program and its operands, ready to be timed."""

    start: Callable[[], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready

    def __call__(self) -> Any:
        return self.wait(self.start())


def mean_of(loss: Program) -> Program:
    return lambda x, y: jnp.mean(loss(x, y))


def _inner(a: Any, b: Any) -> Any:
    products = jax.tree.map(lambda u, v: jnp.sum(u * v), a, b)
    return sum(jax.tree.leaves(products))


def forward(loss: Program) -> Program:
    return mean_of(loss)


def returned(loss: Program) -> Program:
    """The value, and the gradient as a fresh array."""
    return jax.value_and_grad(mean_of(loss))


def consumed(loss: Program) -> Program:
    """The value, and the sum of the squares of the gradient."""

    def program(x, y):
        value, gradient = jax.value_and_grad(mean_of(loss))(x, y)
        return value, _inner(gradient, gradient)

    return program


def step(loss: Program) -> Program:
    """A training step of optax whose parameters are the predictions."""
    import optax

    optimizer = optax.sgd(RATE)

    def program(x, y):
        value, gradient = jax.value_and_grad(mean_of(loss))(x, y)
        updates, _ = optimizer.update(gradient, optimizer.init(x))
        return value, optax.apply_updates(x, updates)

    return program


# The first is the headline: of a loss over a layer, whose weights take the predictions' place.
HEADLINE = "layer"
MODES = {
    HEADLINE: returned,
    "consumed": consumed,
    "returned": returned,
    "step": step,
    "forward": forward,
}


def lowered(loss: Program, mode: str, batch: tuple[Any, Any]) -> jax.stages.Lowered:
    return jax.jit(MODES[mode](loss)).lower(*batch)


def tensor(batch: Any, device: str = "cpu") -> Any:
    """The arrays as tensors of the same numbers."""
    torch = import_module(TORCH)

    def one(a):
        if a.dtype == jnp.int32:
            return torch.from_numpy(np.array(a, np.int64)).to(device)
        # NumPy and torch do not know each other's bfloat16.
        return torch.from_numpy(np.array(a, np.float32)).to(device, getattr(torch, a.dtype.name))

    return jax.tree.map(one, batch)


def of_torch(loss: Program, mode: str, batch: tuple[Any, Any]) -> Run:
    torch = import_module(TORCH)

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    x, y = tensor(batch, device)
    leaves = jax.tree.leaves(x)

    def program():
        if mode == "forward":
            with torch.no_grad():
                return loss(x, y).mean()
        for leaf in leaves:
            leaf.requires_grad_(True)
        value = loss(x, y).mean()
        gradients = torch.autograd.grad(value, leaves)
        value = value.detach()
        if mode == "consumed":
            return value, sum((g * g).sum() for g in gradients)
        if mode == "step":
            return value, [(a - RATE * g).detach() for a, g in zip(leaves, gradients, strict=True)]
        return value, gradients

    def wait(results):
        if device == "cuda":
            torch.cuda.synchronize()
        return results

    return Run(program, wait)


def preparation(peer: str, loss: Program, mode: str, batch: tuple[Any, Any]) -> Callable[[], Run]:
    """Trace the program; what is returned compiles it, in whichever thread."""
    if peer == TORCH:
        return lambda: of_torch(loss, mode, batch)
    program = lowered(loss, mode, batch)

    def finish():
        compiled = program.compile()
        return Run(lambda: compiled(*batch))

    return finish


def side_by_side(
    prepare: Mapping[K, Callable[[], Callable[[], T]]],
) -> dict[K, T | Exception]:
    """Trace one after another, compile at the same time; of those that fail, why."""
    jobs: dict[K, Future[T]] = {}
    out: dict[K, T | Exception] = {}
    with ThreadPoolExecutor() as pool:
        for key, traced in prepare.items():
            try:
                jobs[key] = pool.submit(traced())
            except Exception as error:  # A peer that fails is a result too.
                out[key] = error
    for key, job in jobs.items():
        error = job.exception()
        out[key] = error if isinstance(error, Exception) else job.result()
    return out


def runner(peer: str, loss: Program, mode: str, batch: tuple[Any, Any]) -> Run:
    return preparation(peer, loss, mode, batch)()


def limit(work: Work, size: Size, mode: str, batch: tuple[Any, Any]) -> Run:
    """What cannot be saved: the matmuls; or to read what there is and write the gradient."""
    shapes = list(work.matmuls(size.rows)) if work.matmuls is not None else []
    if mode == HEADLINE and work.layered:
        shapes += layers.matmuls(batch)
    if shapes:
        return matmuls([*shapes[:1], *shapes[3:]] if mode == "forward" else shapes, jnp.float32)
    writes = len(jax.tree.leaves(batch[0])) if mode in ("returned", "step") else 0
    return stream(jax.tree.leaves(batch), writes)


def matmuls(shapes: Iterable[tuple[int, int, int]], dtype: Any) -> Run:
    """Bare ones, of (rows, inner, columns)."""
    key = jax.random.key(0)

    @cache
    def some(*shape):
        return jax.random.normal(key, shape, dtype)

    pairs = [(some(n, d), some(d, v)) for n, d, v in shapes]
    program = jax.jit(lambda pairs: [a @ b for a, b in pairs]).lower(pairs).compile()
    return Run(lambda: program(pairs))


def stream(leaves: Sequence[Any], writes: int) -> Run:
    """Read each array once, and write as many of them."""

    def copy(*leaves):
        read = [jnp.sum(a) for a in leaves[writes:]]
        return read, [a * 2 for a in leaves[:writes]]

    program = jax.jit(copy).lower(*leaves).compile()
    return Run(lambda: program(*leaves))


def differences(runs: dict[str, Run | Exception]) -> dict[str, float | str]:
    """How far each one's value and gradient are from ours, relative to the largest entry."""
    ours = runs[OURS]
    if isinstance(ours, Exception):
        raise ours
    expected = _numbers(ours())
    out: dict[str, float | str] = {}
    for peer, run in runs.items():
        try:
            if isinstance(run, Exception):
                raise run
            got = _numbers(run())
            out[peer] = max(difference(a, b) for a, b in zip(expected, got, strict=True))
        except Exception as error:  # A peer that fails is a result too.
            out[peer] = brief(error)
    return out


def further(a: dict[str, float | str], b: dict[str, float | str]) -> dict[str, float | str]:
    """Of each library the larger difference, or why there is none."""

    def larger(u: float | str, v: float | str) -> float | str:
        if isinstance(u, str) or isinstance(v, str):
            return u if isinstance(u, str) else v
        return max(u, v)

    return {peer: larger(a.get(peer, 0.0), of) for peer, of in b.items()}


def brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100] if lines else ''}"


def _numbers(result: Any) -> list[jax.Array]:
    """Also of tensors, on JAX's device."""
    leaves = jax.tree.leaves(result)
    return [a if isinstance(a, jax.Array) else jnp.asarray(a.cpu().numpy()) for a in leaves]


def difference(a: jax.Array, b: jax.Array) -> float:
    """The largest, relative to the largest entry of `a`."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return float(jnp.max(jnp.abs(a - b))) / max(float(jnp.max(jnp.abs(a))), 1e-30)
