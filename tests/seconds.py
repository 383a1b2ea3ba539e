"""`pytest --seconds`: where the time of the tests goes, summed over losses, tests and files.

Seconds of the processor, on all its cores: those of the clock depend on what else runs.
"""

import time
from collections import defaultdict
from itertools import chain

import pytest
from rich.console import Console
from rich.table import Table

SHOWN = 30


def pytest_addoption(parser):
    parser.addoption("--seconds", action="store_true", help="sum durations over losses and tests")


def loss_of(item) -> str | None:
    """The public function that a test is about, by its parameters."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    case, fn = params.get("case"), params.get("fn")
    return getattr(case, "function", None) or getattr(getattr(fn, "func", fn), "__name__", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    item.started = time.process_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    finally:
        # The workers of xdist send these along with their reports.
        seconds = time.process_time() - item.started
        item.user_properties += [("loss", loss_of(item)), ("seconds", seconds)]


def pytest_terminal_summary(terminalreporter):
    if not terminalreporter.config.getoption("seconds"):
        return
    sums = {title: defaultdict(list) for title in ("loss", "test", "file")}
    for report in chain.from_iterable(terminalreporter.stats.values()):
        said = dict(getattr(report, "user_properties", ()))
        if (
            getattr(report, "when", None) != "call" or "seconds" not in said
        ):  # As of doctests of the package.
            continue
        file, _, test = report.nodeid.partition("::")
        sums["file"][file].append(said["seconds"])
        sums["test"][f"{file}::{test.partition('[')[0]}"].append(said["seconds"])
        if said["loss"]:
            sums["loss"][said["loss"]].append(said["seconds"])
    for title, of in sums.items():
        _print(title, of)


def _print(title, of):
    total = sum(map(sum, of.values()))
    table = Table("seconds", "tests", title, title=f"By {title}: {total:.0f} seconds in all")
    largest = sorted(of.items(), key=lambda entry: -sum(entry[1]))
    for name, durations in largest[:SHOWN]:
        table.add_row(f"{sum(durations):.1f}", str(len(durations)), name)
    Console(width=120).print(table)
