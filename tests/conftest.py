"""Eight CPU devices, and settings under which every test runs."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What was compiled before, by the other worker or in an earlier run, is not compiled again:
# that is most of the time that the tests take.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.cases import FIRST_ROWS  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.default_backend() != "cpu":
    # An accelerator multiplies float32 in less by default.
    jax.config.update("jax_default_matmul_precision", "highest")

settings.register_profile("jaxloss", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("jaxloss")

# Of a function's further rows, those of its settings, only these run every time; and of all
# rows not these modes and tests, which take long and repeat what others show.
ESSENTIAL = {"test_value", "test_gradient", "test_target_gradient", "test_agrees_with_optax"}
# Other names, or thin variants, of a formula that has rows under another function.
SAME_FORMULA = {
    "safe_softmax_cross_entropy",
    "convex_kl_divergence",
    "ctc_loss_with_forward_probs",
    "tversky_loss",
    "jaccard_loss",
    "binary_dice_loss",
    "multiclass_generalized_dice_loss",
}
SLOW_TESTS = {
    "test_eager",
    "test_hessian_in_float64",
    "test_modes_agree_with_each_other_and_with_differences",
    "test_targets_of_another_dtype",
}
# What the shared pieces do for every loss, a row of each kind shows every time; the other
# rows when all is run. That each loss is exact, loud and the same as optax's is always tried.
SHARED = {"test_transforms.py", "test_masks.py", "test_precision.py", "test_checks.py"}
REPRESENTATIVE = {
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_focal_loss",
    "huber_loss",
    "cosine_distance",
    "multiclass_sparsemax_loss",
    "kl_divergence",
    "dice_loss",
    "ntxent",
    "pairwise_logistic_loss",
    "ctc_loss",
    "linear_statistics",
}
SLOW_PARAMETERS = {
    ("mode", "reverse over reverse"),
    ("mode", "reverse over forward"),
    ("mode", "forward over forward"),
    ("name", "checkpoint, saving everything"),
    ("name", "map"),
    ("name", "cond"),
    ("classes", 7),
    ("classes", 1000),
    ("axis", 0),
    ("axis", (1, 2)),
    ("axis", None),
    ("index", 2),
    ("index", 255),
    ("dtype", jnp.bfloat16),
}

# Of these tests, each of whose settings takes seconds, so many settings run every time, evenly
# spread over all of them.
FEW = {
    "test_differentiated_from_outside": 15,
    "test_differentiated_inside": 4,
    "test_axes": 4,
    "test_sizes_against_the_formula_in_float64": 6,
    "test_nan_is_loud_in_its_own_example": 20,
    "test_segments_are_separate_lists": 1,
    "test_rows_of_a_device_meet_those_of_all": 4,
    "test_a_bad_label": 1,
    "test_vocabulary_in_shard_map": 1,
    "test_sharded_classes": 2,
    "test_sharded_batch": 5,
    "test_vmap_over_one_argument": 5,
    "test_donated_inputs": 5,
    "test_shares_of_mapped_axis_add_up": 4,
    "test_contents_of_dead_examples_change_nothing": 5,
    "test_nothing_left_gives_zero": 10,
    "test_masked_rows": 3,
    "test_masking_classes_is_removing_them": 3,
    "test_a_logit_of_minus_infinity_is_a_class_removed": 1,
    "test_half_precision_is_computed_in_float32": 4,
    "test_half_precision_computes_in_float32": 6,
    "test_masked_rows_do_not_exist": 4,
    "test_a_row_of_zeros": 3,
    "test_padding_is_never_counted": 2,
    "test_derivatives_at_masked_items": 3,
    "test_softmax_is_that_of_optax": 3,
    "test_chunks_change_nothing": 1,
    "test_one_frame_is_cross_entropy": 2,
    "test_derivatives_of_all_kinds": 8,
    "test_reductions_in_float32": 4,
    "test_derivatives_are_those_at_the_clip": 2,
    "test_every_class_in_compile": 5,
}


def pytest_collection_modifyitems(items):
    """Mark as slow what repeats, for another setting or mode, what the rest of the table runs."""
    _mark_repetitions(items)
    settings = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            settings.setdefault((item.path, getattr(item, "originalname", None)), []).append(item)
    for (_, test), of in settings.items():
        count = min(FEW.get(test, len(of)), len(of))
        kept = {round((i + 0.5) * len(of) / count - 0.5) for i in range(count)}
        for i, item in enumerate(of):
            if i not in kept:
                item.add_marker(pytest.mark.slow)


def _mark_repetitions(items):
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        case = params.get("case")
        name = getattr(params.get("fn"), "__name__", None) if case is None else case.function
        if name is None:
            continue
        test = item.originalname
        other = item.path.name in SHARED and name not in REPRESENTATIVE
        further = case is not None and (case not in FIRST_ROWS or name in SAME_FORMULA)
        repeats = further and test not in ESSENTIAL
        wide = case is not None and params.get("dtype") is np.float64 and test != "test_value"
        mode = case is not None and any(params.get(p, ...) == v for p, v in SLOW_PARAMETERS)
        if repeats or wide or mode or other or test in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)
