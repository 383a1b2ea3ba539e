"""The accelerators to compile for, and their compilers, none of which needs the accelerator."""

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

# What XLA's GPU compiler wants to know of the GPU that is not there. The figures are those of XLA's
# own description of an H100 SXM, which it makes public to compile without a GPU
# (github.com/openxla/xla, xla/tools/hlo_opt/gpu_specs/h100_sxm.txtpb).
_H100 = Path(__file__).with_name("h100_sxm.txtpb")


@dataclass(frozen=True)
class Target:
    name: str
    topology: str
    # Of one chip: dense matmuls of bfloat16 a second, and main memory.
    flops: float
    bandwidth: float
    memory: float
    clock: float | None = None  # of a TPU: cycles a second, for its compiler's estimates

    @property
    def is_gpu(self) -> bool:
        return self.clock is None

    def peak(self, dtype: str | None) -> float:
        """Flops a second of matmuls of a dtype, as `hlo.Kernel` names it."""
        # JAX multiplies float32 in one pass of bfloat16 on a TPU and as TF32 on an H100; exactly,
        # in six passes, and in the H100's plain float32.
        if self.is_gpu:
            of = {"f32": self.flops / 2, "f32 exactly": 66.9e12}
        else:
            of = {"f32 exactly": self.flops / 6}
        return of.get(dtype or "", self.flops)


# Peaks: cloud.google.com/tpu/docs/v5e, v5p and v6e; NVIDIA's H100 datasheet (SXM, without
# sparsity). A clock follows from the peak, the number of MXUs and their size.
TARGETS = {
    target.name: target
    for target in (
        Target("v5e", "v5e:2x2", 197e12, 819e9, 16 * 2**30, 197e12 / (4 * 2 * 128**2)),
        Target("v5p", "v5p:2x2x1", 459e12, 2765e9, 95 * 2**30, 459e12 / (16 * 128**2)),
        Target("v6e", "v6e:2x2", 918e12, 1640e9, 32 * 2**30, 918e12 / (8 * 256**2)),
        Target("h100", "h100", 989.4e12, 3352e9, 80e9),
    )
}


class Missing(ImportError):
    """A target's compiler is not installed."""


class DoesNotFit(RuntimeError):
    """A program needs more memory than the chip has; `needed` bytes, if the compiler says so."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\)", message)
        self.needed = float(found[1]) * 1024 ** (" KMGT".index(found[2])) if found else None


def missing(target: Target) -> str | None:
    """How to install the target's compiler, if it is not."""
    extra, needs = ("aot-tpu", ["libtpu"])
    if target.is_gpu:
        extra, needs = "aot-gpu", ["jax_cuda12_plugin", "jax_plugins.xla_cuda12"]
    if all(_installed(name) for name in needs):
        return None
    return (
        f"to compile for {target.name}, install its compiler, of jax's own version: "
        f"pip install 'jaxloss[{extra}]'"
    )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@cache
def _topology(target: Target) -> Any:
    if (message := missing(target)) is not None:
        raise Missing(message)
    if target.is_gpu:
        return topologies.get_topology_desc(
            target.topology, "cuda", target_config=_H100.read_text(), topology="1x1x4"
        )
    # Without a TPU there is no metadata server to ask, and several processes may compile at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(target.topology, "tpu")


def mesh(target: Target, names: Sequence[str] = ("x",), sizes: Sequence[int] = (1,)) -> Mesh:
    """Some of the target's devices."""
    devices = np.array(_topology(target).devices[: int(np.prod(sizes))]).reshape(sizes)
    return Mesh(devices, tuple(names), axis_types=(AxisType.Auto,) * len(names))


def compile_for(on: Mesh, program: Callable[..., Any], shapes: Sequence[Any]) -> Any:
    """Compile for the mesh's devices; `shapes` have shardings over it, or none at all."""
    whole = jax.sharding.NamedSharding(on, jax.sharding.PartitionSpec())

    def placed(shape):
        return jax.ShapeDtypeStruct(
            shape.shape, shape.dtype, sharding=getattr(shape, "sharding", None) or whole
        )

    # Pallas kernels ask the mesh of the context for the kind of device.
    with jax.sharding.use_abstract_mesh(on.abstract_mesh):
        lowered = jax.jit(program).lower(*jax.tree.map(placed, tuple(shapes)))
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFit(str(error)) from error
            raise
