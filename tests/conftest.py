"""Eight CPU devices, and settings under which every test runs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.cases import FIRST_ROWS  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Of a function's further rows, those of its settings, only these run every time; and of all
# rows not these modes and tests, which take long and repeat what others show.
ESSENTIAL = {"test_value", "test_gradient", "test_target_gradient", "test_agrees_with_optax"}
SLOW_TESTS = {
    "test_hessian_in_float64",
    "test_modes_agree_with_each_other_and_with_differences",
    "test_targets_of_another_dtype",
}
SLOW_PARAMETERS = {
    ("mode", "reverse over reverse"),
    ("mode", "reverse over forward"),
    ("mode", "forward over forward"),
    ("name", "checkpoint, saving everything"),
    ("name", "map"),
    ("name", "cond"),
    ("no_jit", True),
    ("classes", 7),
    ("classes", 1000),
}


def pytest_collection_modifyitems(items):
    """Mark as slow what repeats, for another setting or mode, what the rest of the table runs."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        case = params.get("case")
        if case is None:
            continue
        repeats = case not in FIRST_ROWS and item.originalname not in ESSENTIAL
        in_a_slow_mode = any(
            pair in SLOW_PARAMETERS for pair in params.items() if pair[0] != "case"
        )
        if repeats or in_a_slow_mode or item.originalname in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)
