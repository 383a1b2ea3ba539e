"""What is compiled: losses of models' shapes, by this library, plain JAX and others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from benchmarks import peers
from jaxloss.linear._cross_entropy import Implementation
from tests.cases import FIRST_ROWS

TABLE = {case.function: case.naive for case in FIRST_ROWS}

Shape = jax.ShapeDtypeStruct
Loss = Callable[..., Array]


@dataclass(frozen=True)
class Program:
    """A loss, one number, of the operands of its case; what is compiled is it and its gradients."""

    name: str
    # Makes the loss for a mesh of devices.
    loss: Callable[[Mesh], Loss]
    needs: str | None = None  # a package
    only: str | None = None  # "tpu"


@dataclass(frozen=True)
class Case:
    name: str
    shapes: Callable[[Mesh], tuple[Shape, ...]]
    programs: tuple[Program, ...]
    differentiated: tuple[int, ...] = (0,)
    devices: int = 1
    # The matmuls of value and gradients, of (rows, inner, columns).
    matmuls: tuple[tuple[int, int, int], ...] = ()
    classes: int = 0  # integer operands are below it
    paddings: tuple[int, ...] = ()  # operands that are all zeros

    def step(self, program: Program, mesh: Mesh) -> Callable[..., Any]:
        """The value and the gradients."""
        loss = program.loss(mesh)

        def step(*operands):
            # tokamax asks for the kind of the default device, in reverse mode too.
            with jax.default_device(mesh.devices.flat[0] if program.needs == "tokamax" else None):
                return jax.value_and_grad(loss, self.differentiated)(*operands)

        return step


def installed(program: Program) -> bool:
    return program.needs is None or peers.installed(program.needs)


def _mean(loss: Loss) -> Loss:
    return lambda *operands: jnp.mean(loss(*operands))


def _ours(loss: Loss, **settings: Any) -> Program:
    return Program("jaxloss", lambda mesh: _mean(partial(loss, **settings)))


def _naive(loss: Loss) -> Program:
    return Program("naive", lambda mesh: _mean(loss))


def _optax(loss: Callable[[Any, Any], Loss]) -> Program:
    def make(mesh: Mesh) -> Loss:
        import optax

        return _mean(loss(optax, jnp))

    return Program("optax", make, needs="optax")


# The last layer of a language model, in bfloat16.

HEADS = {
    "gemma2_2b": (8192, 2304, 256000),
    "gemma2_2b_32k_tokens": (32768, 2304, 256000),
    "llama3_8b": (8192, 4096, 128256),
    "qwen3_8b": (8192, 4096, 151936),
}


def naive_head(hidden: Array, weight: Array, labels: Array) -> Array:
    return _naive_of_logits((hidden @ weight).astype(jnp.float32), labels)


def _naive_of_logits(x: Array, labels: Array) -> Array:
    return jax.nn.logsumexp(x, 1) - jnp.take_along_axis(x, labels[:, None], 1)[:, 0]


def _optax_head(optax: Any, _: Any) -> Loss:
    def loss(hidden, weight, labels):
        logits = (hidden @ weight).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    return loss


def _linear(implementation: Implementation) -> Program:
    loss = partial(jaxloss.linear_cross_entropy, implementation=implementation)
    only = "tpu" if "tpu" in implementation else None
    return Program(f"jaxloss {implementation}", lambda mesh: loss, only=only)


def _tokamax(implementation: Any, name: str) -> Program:
    def make(mesh: Mesh) -> Loss:
        tokamax = peers.module("tokamax")

        def loss(hidden, weight, labels):
            return tokamax.linear_softmax_cross_entropy_loss(
                hidden, labels, weight, reduction="mean", implementation=implementation
            )

        return loss

    only = "tpu" if "tpu" in implementation else None
    return Program(f"tokamax {name}", make, needs="tokamax", only=only)


def _head(name: str, n: int, d: int, v: int) -> Case:
    def shapes(mesh: Mesh) -> tuple[Shape, ...]:
        bf16 = jnp.bfloat16
        return Shape((n, d), bf16), Shape((d, v), bf16), Shape((n,), jnp.int32)

    sweeps = tuple(_linear(name) for name in get_args(Implementation) if name != "dense")
    others = (
        _naive(naive_head),
        _optax(_optax_head),
        _tokamax("xla", "XLA"),
        _tokamax("mosaic_tpu", "Pallas"),
    )
    matmuls = (n, d, v), (n, v, d), (d, n, v)
    return Case(name, shapes, (*sweeps, *others), (0, 1), matmuls=matmuls, classes=v)


# The same, split over devices.


def _split_head(name: str, n: int, d: int, v: int, by: str, devices: int = 4) -> Case:
    specs = (P("x"), P(), P("x")) if by == "tokens" else (P(), P(None, "x"), P())

    def shapes(mesh: Mesh) -> tuple[Shape, ...]:
        of = ((n, d), jnp.bfloat16), ((d, v), jnp.bfloat16), ((n,), jnp.int32)
        return tuple(
            Shape(shape, dtype, sharding=NamedSharding(mesh, spec))
            for (shape, dtype), spec in zip(of, specs, strict=True)
        )

    def ours(implementation: Implementation, mesh: Mesh) -> Loss:
        def of_tokens(hidden, weight, labels):
            total = jaxloss.linear_cross_entropy(
                hidden, weight, labels, reduction="sum", implementation=implementation
            )
            return jax.lax.psum(total, "x") / n

        of_classes = partial(
            jaxloss.linear_cross_entropy, implementation=implementation, axis_name="x"
        )
        loss = of_tokens if by == "tokens" else of_classes
        return jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P())

    programs = (
        Program("jaxloss tokens", partial(ours, "tokens")),
        Program("jaxloss stored", partial(ours, "stored")),
        Program("jaxloss vocab", partial(ours, "vocab")),
        # Left to XLA: automatic sharding.
        _naive(naive_head),
    )
    return Case(f"{name}_split_{by}", shapes, programs, (0, 1), devices)


# Losses of what the model returns.


def _plain(
    name: str, of: tuple[tuple[tuple[int, ...], Any], ...], *programs: Program, **of_case: Any
) -> Case:
    return Case(name, lambda mesh: tuple(Shape(*s) for s in of), programs, **of_case)


def _softmax(name: str, n: int, classes: int) -> Case:
    return _plain(
        name,
        (((n, classes), jnp.float32), ((n,), jnp.int32)),
        _ours(jaxloss.softmax_cross_entropy_with_integer_labels),
        _naive(TABLE["softmax_cross_entropy_with_integer_labels"]),
        _optax(lambda optax, jnp: optax.softmax_cross_entropy_with_integer_labels),
        classes=classes,
    )


def _normalised(x: Array) -> Array:
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def _all_pairs(x: Array, y: Array) -> tuple[Array, Array]:
    """Logits and labels of each image with each text."""
    logits = 10 * jnp.einsum(
        "nd,md->nm", _normalised(x), _normalised(y), preferred_element_type=jnp.float32
    )
    return logits - 10, jnp.eye(len(x), dtype=jnp.float32)


def _siglip(name: str, n: int, d: int) -> Case:
    def naive(x, y):
        logits, labels = _all_pairs(x, y)
        return jnp.sum(jax.nn.softplus(-(2 * labels - 1) * logits), 1)

    def of_optax(optax, jnp):
        return lambda x, y: jnp.sum(optax.sigmoid_binary_cross_entropy(*_all_pairs(x, y)), 1)

    of = (((n, d), jnp.float32), ((n, d), jnp.float32))
    programs = _ours(jaxloss.siglip_loss), _naive(naive), _optax(of_optax)
    matmuls = (n, d, n), (n, n, d), (n, n, d)
    return _plain(name, of, *programs, differentiated=(0, 1), matmuls=matmuls)


def _ctc(name: str, n: int, frames: int, labels: int, classes: int) -> Case:
    return _plain(
        name,
        (
            ((n, frames, classes), jnp.float32),
            ((n, frames), jnp.float32),
            ((n, labels), jnp.int32),
            ((n, labels), jnp.float32),
        ),
        _ours(jaxloss.ctc_loss),
        _optax(lambda optax, jnp: optax.ctc_loss),
        classes=classes,
        paddings=(1, 3),
    )


def _elementwise(name: str, n: int) -> Case:
    return _plain(
        name,
        (((n,), jnp.float32), ((n,), jnp.float32)),
        _ours(jaxloss.sigmoid_binary_cross_entropy),
        _naive(TABLE["sigmoid_binary_cross_entropy"]),
        _optax(lambda optax, jnp: optax.sigmoid_binary_cross_entropy),
    )


def _cases() -> Iterator[Case]:
    for name, sizes in HEADS.items():
        yield _head(name, *sizes)
    for by in ("tokens", "vocab"):
        yield _split_head("gemma2_2b", *HEADS["gemma2_2b"], by=by)
    yield _softmax("vit_classifier", 4096, 1000)
    yield _softmax("softmax_32k_classes", 8192, 32000)
    yield _siglip("siglip_batch", 8192, 768)
    yield _ctc("ctc_batch", 64, 1000, 100, 1024)
    yield _elementwise("sigmoid_64m", 2**26)


CASES = {case.name: case for case in _cases()}
