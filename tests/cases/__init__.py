"""The case table: one row a loss and setting. Tests, benchmarks and docs iterate it."""

from tests.cases import binary, categorical, divergence, margin, ranking, regression
from tests.cases._case import Case

CASES: list[Case] = [
    case
    for family in (binary, categorical, regression, margin, divergence, ranking)
    for case in family.CASES
]
