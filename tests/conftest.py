"""Eight CPU devices, and settings under which every test runs."""

import gc
import os
from pathlib import Path

from tests.programs import QUICK, share_contexts

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What was compiled before, by the other worker or in an earlier run, is not compiled again:
# that is most of the time that the tests take.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
_FLAGS = f"--xla_force_host_platform_device_count=8 {QUICK}"
if _FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.seconds import (  # noqa: E402, F401
    pytest_addoption,
    pytest_runtest_call,
    pytest_runtest_setup,
    pytest_terminal_summary,
)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.default_backend() != "cpu":
    # An accelerator multiplies float32 in less by default.
    jax.config.update("jax_default_matmul_precision", "highest")

share_contexts()

# What JAX has traced stays, and looking through it again and again took a tenth of the time.
gc.set_threshold(100_000, 50, 50)

settings.register_profile("jaxloss", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("jaxloss")


def pytest_collection_modifyitems(items):
    """Of a test marked `few(n)`, n settings run every time, evenly spread; the others are slow."""
    settings = {}
    for item in items:
        few = item.get_closest_marker("few")
        if few is not None and not item.get_closest_marker("slow"):
            settings.setdefault((item.path, item.originalname), []).append((few.args[0], item))
    for of in settings.values():
        count = min(of[0][0], len(of))
        kept = {round((i + 0.5) * len(of) / count - 0.5) for i in range(count)}
        for i, (_, item) in enumerate(of):
            if i not in kept:
                item.add_marker(pytest.mark.slow)
