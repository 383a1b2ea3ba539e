"""The case table: one row a loss and setting. Tests, benchmarks and docs iterate it."""

from tests.cases import binary, categorical
from tests.cases._case import Case

CASES: list[Case] = [*binary.CASES, *categorical.CASES]
