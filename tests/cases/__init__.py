"""The case table: one row a loss and setting. Tests, benchmarks and docs iterate it."""

from tests.cases import (
    binary,
    categorical,
    contrastive,
    direction,
    divergence,
    experts,
    fenchel_young,
    focal,
    likelihood,
    linear,
    margin,
    metric,
    overlap,
    policy,
    preference,
    ranking,
    regression,
    sequence,
)
from tests.cases._case import Case

# As the modules of the library, each with the rows of its losses.
FAMILIES = (
    binary,
    categorical,
    focal,
    regression,
    direction,
    likelihood,
    margin,
    fenchel_young,
    divergence,
    overlap,
    contrastive,
    metric,
    ranking,
    sequence,
    linear,
    preference,
    policy,
    experts,
)
CASES: list[Case] = [case for family in FAMILIES for case in family.CASES]
# One row of each function: enough where its settings, which are operands, make no difference.
FIRST_ROWS: list[Case] = list({case.function: case for case in reversed(CASES)}.values())
