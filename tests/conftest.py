"""Eight CPU devices, and settings under which every test runs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests.cases import FIRST_ROWS  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

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
# Whether JAX's transformations meet what a rule is made of: one row of each family shows that
# every time, the other rows when all is run.
TRANSFORMATIONS = {
    "test_differentiated_from_outside",
    "test_differentiated_inside",
    "test_vmap_over_one_argument",
    "test_donated_inputs",
    "test_while_loop",
    "test_sharded_batch",
    "test_sizes_against_the_formula_in_float64",
    "test_size_one_labels_and_masks",
}
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


def pytest_collection_modifyitems(items):
    """Mark as slow what repeats, for another setting or mode, what the rest of the table runs."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        case = params.get("case")
        if case is None:
            continue
        test = item.originalname
        further = case not in FIRST_ROWS or case.function in SAME_FORMULA
        repeats = further and test not in ESSENTIAL
        wide = params.get("dtype") is np.float64 and test != "test_value"
        mode = any(params.get(name, ...) == value for name, value in SLOW_PARAMETERS)
        other = test in TRANSFORMATIONS and case.function not in REPRESENTATIVE
        if repeats or wide or mode or other or test in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)
