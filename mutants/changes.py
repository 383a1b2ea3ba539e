"""Small changes of Python source, each of which a test should notice."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

OTHER: dict[type, str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.Lt: "<=",
    ast.LtE: ">",
    ast.Gt: ">=",
    ast.GtE: "<",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.And: "or",
    ast.Or: "and",
}
TWINS = {
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "any": "all",
    "all": "any",
    "log1p": "log",
    "expm1": "exp",
}


@dataclass(frozen=True)
class Change:
    module: str
    line: int
    kind: str
    start: int  # Of the characters replaced.
    stop: int
    before: str
    after: str

    def __str__(self):
        short = [" ".join(text.split()) for text in (self.before, self.after)]
        return f"{self.module}:{self.line} {self.kind}: {short[0]} -> {short[1]}"

    def applied(self, source: str) -> str:
        assert source[self.start : self.stop] == self.before
        return source[: self.start] + self.after + source[self.stop :]


def changes(module: str, source: str) -> Iterator[Change]:
    """All changes of a module, in the order of its lines."""
    text = Text(source)
    for node in _computing(ast.parse(source)):
        for kind, part, after in _of(node, text.of):
            start, stop = text.span(part)
            yield Change(module, part.lineno, kind, start, stop, source[start:stop], after)


class Text:
    """Source, by the nodes of its tree."""

    def __init__(self, source: str):
        self.source = source
        self.lines = source.splitlines(keepends=True)
        self.starts = list(accumulate(map(len, self.lines), initial=0))

    def span(self, part: ast.expr) -> tuple[int, int]:
        assert part.end_lineno is not None and part.end_col_offset is not None
        return (
            self._position(part.lineno, part.col_offset),
            self._position(part.end_lineno, part.end_col_offset),
        )

    def _position(self, line: int, column: int) -> int:
        # Columns count bytes.
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def of(self, part: ast.expr) -> str:
        start, stop = self.span(part)
        return self.source[start:stop]


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute: not types, messages, decorators or docstrings."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _computing(child)


def _of(node: ast.AST, plain: Callable[[Any], str]) -> Iterator[tuple[str, ast.expr, str]]:
    """The changes of a node: what kind, the part that is replaced, and by what."""

    def text(part) -> str:
        return f"({plain(part)})"

    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OTHER:
            yield "another operator", node, f"({text(left)} {OTHER[type(op)]} {text(right)})"
            yield "an operand dropped", node, text(left)
            if isinstance(op, (ast.Add, ast.Mult, ast.BitAnd, ast.BitOr)):
                yield "an operand dropped", node, text(right)
        case ast.UnaryOp(op=ast.USub() | ast.Invert() | ast.Not(), operand=operand):
            if not isinstance(operand, ast.Constant):
                yield "a sign dropped", node, text(operand)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OTHER:
            yield "another comparison", node, f"({text(left)} {OTHER[type(op)]} {text(right)})"
        case ast.BoolOp(op=op, values=[left, right]):
            yield "another operator", node, f"({text(left)} {OTHER[type(op)]} {text(right)})"
        case ast.Constant(value=bool(value)):
            yield "another number", node, str(not value)
        case ast.Constant(value=int(value)):
            yield "another number", node, str(value + 1)
        case ast.Constant(value=float(value)):
            yield "another number", node, str(2 * value or 1.0)
        case ast.IfExp(body=body, orelse=other, test=test):
            yield "branches swapped", node, f"({text(other)} if {text(test)} else {text(body)})"
        case ast.If(test=test):
            yield "a condition negated", test, f"(not {text(test)})"
        case ast.Attribute(attr=name) if name in TWINS:
            yield "another function", node, plain(node).removesuffix(name) + TWINS[name]
        case ast.Call(func=func, args=[_, _, *_], keywords=keywords) if _swappable(node):
            args = [plain(a) for a in node.args]
            swapped = args[1], args[0], *args[2:]
            if ast.unparse(func).endswith("where") and len(args) == 3:
                swapped = args[0], args[2], args[1]
            rest = [plain(k) for k in keywords]
            yield "operands swapped", node, f"{plain(func)}({', '.join([*swapped, *rest])})"


def _swappable(call: ast.Call) -> bool:
    """Of two arrays, as far as that can be seen: anything else would only be a crash."""
    first, second = call.args[:2]
    kinds = ast.Name, ast.Attribute, ast.BinOp, ast.UnaryOp, ast.Call
    arrays = isinstance(first, kinds) and isinstance(second, kinds)
    words = "axis", "partial", "map", "zip", "getattr", "isinstance", "shape", "dtype"
    said = ast.unparse(ast.Tuple([call.func, first, second]))
    same = ast.unparse(first) == ast.unparse(second)
    starred = any(isinstance(a, ast.Starred) for a in call.args)
    return arrays and not same and not starred and not any(word in said for word in words)
