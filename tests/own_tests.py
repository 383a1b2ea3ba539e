"""Runs the loss tests that Keras or optax is installed with, on ours; prints what failed.

In a process of its own, as the functions and classes of a whole package are replaced.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def outcome(suite: str) -> tuple[dict[str, str], set[str]]:
    """What failed, with what was said, and what passed."""
    command = [sys.executable, "-m", __name__, suite]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    failed, passed = json.loads(run.stdout.splitlines()[-1])
    return failed, set(passed)


def check(suite: str, expected: set[str], at_least: int) -> None:
    """That all of them pass but those expected to fail, and that they are so many."""
    failed, passed = outcome(suite)
    unexpected = {k: v for k, v in failed.items() if k not in expected}
    assert not unexpected, json.dumps(unexpected, indent=1)
    assert set(failed) == expected and not expected & passed
    assert len(passed) > at_least


class Recorder:
    def __init__(self):
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("/")[-1]
        if report.failed:
            self.failed[name] = str(report.longrepr)[-2000:]
        elif report.when == "call" and report.passed:
            self.passed.append(name)


def replaced(ours: Any, *modules: Any) -> None:
    """What modules share with ours by name is ours in them."""
    for module in modules:
        for name in ours.__all__:
            if hasattr(module, name):
                setattr(module, name, getattr(ours, name))


def of_keras() -> list[Path]:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras.src.losses
    import keras.src.saving

    import jaxloss.keras

    theirs = keras.src.losses
    replaced(jaxloss.keras, theirs, theirs.losses, theirs.loss)
    # Those of Keras find its own classes and registered ones only.
    keras.src.saving.serialize_keras_object = jaxloss.keras.serialize
    keras.src.saving.deserialize_keras_object = jaxloss.keras.deserialize
    files = [Path(module.__file__) for module in (theirs.losses, theirs.loss)]
    return [file.with_name(f"{file.stem}_test.py") for file in files]


def of_optax() -> list[Path]:
    import optax

    import jaxloss

    theirs = [module for name, module in sys.modules.items() if name.startswith("optax.losses")]
    replaced(jaxloss, optax, *theirs)
    return sorted(Path(optax.losses.__file__).parent.glob("*_test.py"))


def main(suite: str) -> None:
    files = {"keras": of_keras, "optax": of_optax}[suite]()
    recorder = Recorder()
    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    pytest.main([*options, f"--rootdir={files[0].parent}", *map(str, files)], [recorder])
    print(json.dumps([recorder.failed, recorder.passed]))


if __name__ == "__main__":
    main(sys.argv[1])
