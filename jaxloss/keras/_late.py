"""What is to be done once a module is imported, by whomever, and not before."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any


def when_imported(name: str, then: Callable[[], None]) -> None:
    """Call `then` after the import of a module; now, if it has been imported."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Once(name, then))


class _Once(MetaPathFinder):
    """Finds nothing itself, but has what is found tell when it was executed."""

    def __init__(self, name: str, then: Callable[[], None]):
        self.name, self.then = name, then

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:  # Not installed, or not a module.
            sys.meta_path.insert(0, self)
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module):
            loader.exec_module = execute
            execute(module)
            self.then()

        loader.exec_module = exec_module
        return spec
