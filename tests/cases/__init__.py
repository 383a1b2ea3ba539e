"""The case table: one row a loss and setting. Tests, benchmarks and docs iterate it."""

from tests.cases import (
    angular,
    binary,
    boxes,
    categorical,
    contrastive,
    crps,
    decorrelation,
    direction,
    dispersion,
    divergence,
    experts,
    fenchel_young,
    focal,
    likelihood,
    linear,
    lovasz,
    margin,
    metric,
    overlap,
    policy,
    preference,
    ranking,
    regression,
    robust,
    sequence,
    survival,
    transducer,
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
    lovasz,
    contrastive,
    decorrelation,
    metric,
    ranking,
    sequence,
    transducer,
    linear,
    preference,
    policy,
    experts,
    boxes,
    robust,
    dispersion,
    crps,
    angular,
    survival,
)
CASES: list[Case] = [case for family in FAMILIES for case in family.CASES]
# One row of each function: enough where its settings, which are operands, make no difference.
FIRST_ROWS: list[Case] = list({case.function: case for case in reversed(CASES)}.values())
# One row of each kind: enough for what the shared pieces do for all losses of a family.
FIRST_OF_EACH_KIND: list[Case] = [
    next(case for case in family.CASES if case.integer == integer)
    for family in FAMILIES
    for integer in sorted({case.integer for case in family.CASES})
]
