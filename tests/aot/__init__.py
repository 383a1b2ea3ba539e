"""Of the targets, those whose compiler is installed."""

import pytest

from aot import targets


def target(name):
    """The target, if its compiler is installed. Compilers take long to load: one worker each."""
    extra = "jax_cuda12_plugin" if name == "h100" else "libtpu"
    group = pytest.mark.xdist_group("aot-gpu" if name == "h100" else "aot-tpu")
    missing = targets.missing(targets.TARGETS[name]) is not None
    skip = pytest.mark.skipif(missing, reason=f"{extra} is not installed")
    return pytest.param(name, marks=[group, skip])


def others(name):
    return pytest.param(*target(name).values, marks=[*target(name).marks, pytest.mark.slow])


TARGETS = pytest.mark.parametrize("name", [target("v5e"), target("h100")])
EVERY_TARGET = pytest.mark.parametrize(
    "name", [target("v5e"), target("h100"), others("v5p"), others("v6e")]
)
