"""The programs that are timed: the same work for each library, compiled, and checked equal."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.works import OURS, Work

Program = Callable[..., Any]
Run = Callable[[], Any]

RATE = 0.1
TORCH = "torch"
LIMIT = "limit"


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
    """The value and the gradient, which is used where it is made, as by a layer below."""

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


MODES = {"forward": forward, "returned": returned, "consumed": consumed, "step": step}


def compiled(loss: Program, mode: str, batch: tuple[Any, Any]) -> jax.stages.Compiled:
    return jax.jit(MODES[mode](loss)).lower(*batch).compile()


def tensor(batch: Any) -> Any:
    """The arrays as tensors of the same numbers."""
    torch = import_module(TORCH)

    def one(a):
        if a.dtype == jnp.int32:
            return torch.from_numpy(np.array(a, np.int64))
        # NumPy and torch do not know each other's bfloat16.
        return torch.from_numpy(np.array(a, np.float32)).to(getattr(torch, a.dtype.name))

    return jax.tree.map(one, batch)


def of_torch(loss: Program, mode: str, batch: tuple[Any, Any]) -> Run:
    torch = import_module(TORCH)

    x, y = tensor(batch)
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

    return program


def runner(peer: str, loss: Program, mode: str, batch: tuple[Any, Any]) -> Run:
    """What runs it once, and returns when it is done."""
    if peer == TORCH:
        return of_torch(loss, mode, batch)
    program = compiled(loss, mode, batch)
    return lambda: jax.block_until_ready(program(*batch))


def limit(work: Work, size: int, mode: str, batch: tuple[Any, Any]) -> Run:
    """What cannot be saved: the matmuls; or to read what there is and write the gradient."""
    if work.matmuls is not None:
        shapes = work.matmuls(size)
        pairs = [(jnp.ones((n, d)), jnp.ones((d, v))) for n, d, v in shapes]
        if mode == "forward":
            pairs = pairs[:1] + pairs[3:]
        program = jax.jit(lambda pairs: [a @ b for a, b in pairs]).lower(pairs).compile()
        return lambda: jax.block_until_ready(program(pairs))

    leaves = jax.tree.leaves(batch)
    writes = len(jax.tree.leaves(batch[0])) if mode in ("returned", "step") else 0

    def stream(*leaves):
        read = [jnp.sum(a) for a in leaves[writes:]]
        return read, [a * 2 for a in leaves[:writes]]

    program = jax.jit(stream).lower(*leaves).compile()
    return lambda: jax.block_until_ready(program(*leaves))


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
            out[peer] = max(_difference(a, b) for a, b in zip(expected, got, strict=True))
        except Exception as error:  # A peer that fails is a result too.
            out[peer] = brief(error)
    return out


def brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100] if lines else ''}"


def _numbers(result: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(result)]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-30))
