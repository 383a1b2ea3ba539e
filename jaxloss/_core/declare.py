"""What a loss takes, said once beside the function, for tools; calls and types do not change."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

Kind = Literal[
    "entries",
    "row",
    "number",
    "labels",
    "list",
    "pixels",
    "embeddings",
    "members",
    "sequence",
    "shared",
]
Function = TypeVar("Function", bound=Callable[..., Any])

# What its entries may be, and a harmless one of each, in a row of n classes. An example that does
# not count is filled with it: it is inside the domain, and no derivative is infinite there.
FILL: dict[str, Callable[[int], float]] = {
    "real": lambda n: 0.5,
    "logits": lambda n: 0.5,
    "positive": lambda n: 0.5,
    "probability": lambda n: 0.5,
    "sign": lambda n: 1.0,
    "bit": lambda n: 0.0,
    "distribution": lambda n: 1 / max(n, 1),
    "log distribution": lambda n: -math.log(max(n, 2)),
    "integer": lambda n: 0,
    "padding": lambda n: 0.0,
    "box": lambda n: 0.5,
}


@dataclass(frozen=True)
class Operand:
    """What differs from example to example, or `shared`, what all examples have in common."""

    kind: Kind
    of: str


@dataclass(frozen=True)
class Declaration:
    operands: Mapping[str, Operand]
    # The options by which the function returns one loss for each example.
    unreduced: Mapping[str, Any]
    # The options by which entries along the last axis are parts of one example.
    parts_by: Mapping[str, Any]

    def has(self, *kinds: Kind) -> bool:
        return any(operand.kind in kinds for operand in self.operands.values())

    @property
    def together(self) -> bool:
        """Whether examples meet each other: then a mask of examples is the function's `where`."""
        return self.has("embeddings", "members")

    def parts(self, options: Mapping[str, Any]) -> bool:
        """Whether an example has parts, as items or pixels, which the function's `where` masks."""
        return self.has("list", "pixels") or any(
            options.get(name) == value for name, value in self.parts_by.items()
        )

    def named(self, kind: Kind) -> str | None:
        return next((name for name, operand in self.operands.items() if operand.kind == kind), None)


def takes(
    *,
    unreduced: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
    **operands: str | tuple[str, str],
) -> Callable[[Function], Function]:
    """Declare what a loss function takes, for `jaxloss.Loss` and for tools.

    With it `Loss` knows which arguments have one value for each example, and may be given when
    it is called, by position or name, and what a mask of examples means for each. A function
    without a declaration takes predictions and targets.

    Args:
        unreduced: options by which the function returns one loss for each example, where by
            default it returns fewer.
        parts: options by which it returns one loss for all entries along the last axis, as for
            the tokens of a sequence; its own `where` then masks these.
        **operands: of each argument that differs from example to example, what it is; or a
            pair, that and what its entries are.

            - "entries": an elementwise loss has a value for each;
            - "row": the classes, or features, of an example lie along `axis`, an option of the
              function, or along its default, or the last axis;
            - "number": one for each example, beside an operand with rows;
            - "labels": integers, one for each example; `ignore_index` is one of these;
            - "list", "pixels": the items of a list lie along the last axis, the pixels of an
              image along all but the first; the function's own `where` masks them;
            - "embeddings": rows of features, which meet each other; the function's own `where`
              masks examples;
            - "members": of a cohort along the last axis, who meet each other likewise but have a
              loss each;
            - "sequence": all axes but the first belong to an example;
            - "shared": all examples have it in common, as the weight of a layer.

            Entries are "real", "logits", "positive", "probability", "sign", "bit",
            "distribution", "log distribution", "integer", "padding" (zeros, then ones) or "box"
            (the four numbers of one).

    Returns:
        A decorator, which returns the function itself.

    Raises:
        ValueError: the function has no such argument, or an operand is no such thing.

    >>> import jax.numpy as jnp, jaxloss
    >>> @jaxloss.takes(rates="entries", targets="entries", exposure="entries")
    ... def rate_error(rates, targets, exposure):
    ...     return (rates * exposure - targets) ** 2
    >>> loss = jaxloss.Loss(rate_error)
    >>> exposure = jnp.array([2.0, jnp.nan])
    >>> print(loss(jnp.ones(2), jnp.zeros(2), exposure, where=jnp.array([True, False])))
    4.0
    """
    declared = {name: _operand(name, what) for name, what in operands.items()}
    declaration = Declaration(declared, dict(unreduced or {}), dict(parts or {}))

    def declare(fn: Function) -> Function:
        known = inspect.signature(fn).parameters
        for name in (*declared, *declaration.unreduced, *declaration.parts_by):
            if name not in known:
                raise ValueError(f"{fn.__name__} takes no {name!r}; it takes {', '.join(known)}")
        setattr(fn, _ATTRIBUTE, declaration)
        return fn

    return declare


_ATTRIBUTE = "__jaxloss_takes__"


def declaration(fn: Any) -> Declaration | None:
    """What a function, or a `functools.partial` of one by keywords, is declared to take."""
    if isinstance(fn, functools.partial) and not fn.args:
        fn = fn.func
    return getattr(fn, _ATTRIBUTE, None)


def _operand(name: str, what: str | tuple[str, str]) -> Operand:
    kind, of = (what, "integer" if what == "labels" else "real") if isinstance(what, str) else what
    for given, known in ((kind, get_args(Kind)), (of, FILL)):
        if given not in known:
            raise ValueError(f"{name} cannot be {given!r}: it is one of {', '.join(known)}")
    return Operand(cast(Kind, kind), of)
