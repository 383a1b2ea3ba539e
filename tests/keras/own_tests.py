"""Runs the loss tests that Keras is installed with, on `jaxloss.keras`; prints what failed.

Its outcomes are read by `test_keras_own_tests.py`, which starts it in a process of its own.
"""

import json
import os

os.environ["KERAS_BACKEND"] = "jax"

import keras.src.losses
import keras.src.losses.loss
import keras.src.losses.losses
import keras.src.saving
import pytest

import jaxloss.keras


class Recorder:
    """What failed, and how many passed."""

    def __init__(self):
        self.passed, self.failed = [], {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("/")[-1]
        if report.failed:
            self.failed[name] = str(report.longrepr)[-2000:]
        elif report.when == "call" and report.passed:
            self.passed.append(name)


def main() -> None:
    theirs = keras.src.losses
    for name in jaxloss.keras.__all__:
        for module in (theirs, theirs.losses, theirs.loss):
            if hasattr(module, name):
                setattr(module, name, getattr(jaxloss.keras, name))
    # Those of Keras find its own classes and registered ones only.
    keras.src.saving.serialize_keras_object = jaxloss.keras.serialize
    keras.src.saving.deserialize_keras_object = jaxloss.keras.deserialize
    recorder = Recorder()
    files = [theirs.losses.__file__, theirs.loss.__file__]
    files = [os.path.splitext(file)[0] + "_test.py" for file in files]
    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short"]
    pytest.main([*options, "--rootdir", os.path.dirname(files[0]), *files], [recorder])
    print(json.dumps({"passed": recorder.passed, "failed": recorder.failed}))


if __name__ == "__main__":
    main()
