"""How the tests compile: quickly, and as users do where that is what a test is about.

Nearly all the time of the tests is XLA's, and most of that goes into making a program fast
which then runs once. So `conftest.py` puts `QUICK` into `XLA_FLAGS`: a third of the time. What
shows the last digits, or reads a program, its memory or its speed, compiles by `as_users`.
"""

import threading
from importlib.metadata import version
from typing import Any

OLD = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12)

# Each with what it is by default.
_SETTINGS: dict[str, tuple[Any, Any]] = {
    "xla_backend_optimization_level": (0, 3),
    "xla_cpu_parallel_codegen_split_count": (1, 32),
}
if OLD:  # Later ones do not know it.
    _SETTINGS["xla_cpu_use_fusion_emitters"] = (False, True)

QUICK = " ".join(f"--{name}={str(value).lower()}" for name, (value, _) in _SETTINGS.items())
_USERS = {name: default for name, (_, default) in _SETTINGS.items()}


def as_users(fn, **options):
    """`jax.jit`, by the compiler's own settings."""
    import jax  # Not before `QUICK` is set.

    return jax.jit(fn, compiler_options=_USERS, **options)


def share_contexts() -> None:
    """Lower programs in one context of MLIR, as JAX does from 0.12 on.

    Making one takes longer than a small program, and there are thousands: a quarter of the time
    of tests that run operation by operation.
    """
    if not OLD:
        return
    from jax._src.interpreters import mlir

    make, own = mlir.make_ir_context, threading.local()

    def shared():
        own.uses = getattr(own, "uses", 0) + 1
        if own.uses % 100 == 1:  # What a context knows of types and places only grows.
            own.context = make()
        return own.context

    mlir.make_ir_context = shared
