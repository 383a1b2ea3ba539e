"""Over which rows of the case table a test runs, and over which of them every time.

The others run when all is run, `pytest -m "slow or not slow"`.
"""

from collections.abc import Callable, Iterable

import pytest

from tests.cases import CASES, FIRST_OF_EACH_KIND, FIRST_ROWS
from tests.cases._case import Case

slow = pytest.mark.slow


def repeats(case: Case) -> bool:
    """Whether another row shows the same formula: a further setting, or another name of it."""
    return case not in FIRST_ROWS or case.same_formula_as is not None


def follows_its_kind(case: Case) -> bool:
    """Whether what the shared pieces do for it, they do for another row likewise."""
    return case not in FIRST_OF_EACH_KIND


def marks(case: Case, seldom: Callable[[Case], bool]) -> list[pytest.MarkDecorator]:
    # Rows stay with a worker, which works out their exact results once.
    group = pytest.mark.xdist_group(case.name)
    return [group, slow] if seldom(case) else [group]


def over(cases: Iterable[Case], seldom: Callable[[Case], bool] = lambda case: False):
    rows = [pytest.param(c, marks=marks(c, seldom)) for c in cases]
    return pytest.mark.parametrize("case", rows, ids=str)


# What is a loss's own: all rows, or one of each formula.
every_row = over(CASES)
each_formula = over(CASES, repeats)
# What the shared pieces do for all of them: one row of each kind.
each_kind = over(CASES, follows_its_kind)
each_kind_of_function = over(FIRST_ROWS, follows_its_kind)
