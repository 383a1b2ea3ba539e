"""What is to go warns for two minor versions first, and then has to be taken out.

`docs/releases.md` is the policy. Nothing is deprecated while no function here is used.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])
# Minor versions in which something still works, the one that deprecates it included.
VERSIONS = 2


def removed_in(since: str) -> str:
    """The version without what `since` deprecated."""
    major, minor = (int(number) for number in since.split(".")[:2])
    return f"{major}.{minor + VERSIONS}"


def deprecated(since: str, instead: str) -> Callable[[Function], Function]:
    """Declare a function deprecated: calling it warns, and says what to use."""

    def decorate(fn: Function) -> Function:
        @functools.wraps(fn)
        def warned(*args: Any, **kwargs: Any) -> Any:
            _warn(f"{fn.__name__} is", since, f"use {instead}", stacklevel=3)
            return fn(*args, **kwargs)

        return cast(Function, warned)

    return decorate


def renamed(since: str, names: Mapping[str, str]) -> Callable[[Function], Function]:
    """Declare old names of keyword arguments, each with its new one."""

    def decorate(fn: Function) -> Function:
        @functools.wraps(fn)
        def warned(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{fn.__name__} got {new!r} and {old!r}, its former name")
                _warn(f"{fn.__name__}({old}=) is", since, f"use {new}=", stacklevel=3)
                kwargs[new] = kwargs.pop(old)
            return fn(*args, **kwargs)

        return cast(Function, warned)

    return decorate


def _warn(what: str, since: str, instead: str, stacklevel: int) -> None:
    message = f"{what} deprecated since jaxloss {since} and gone in {removed_in(since)}; {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
