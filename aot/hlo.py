"""Reading a compiler's optimised HLO: its kernels, what each moves and computes, and how often.

XLA's own `cost_analysis` counts the body of a loop once, and says nothing for a GPU. Here each
kernel is counted as often as it runs, for every target by the same rules:

- A kernel is an instruction that runs on its own: a fusion, a matmul, a reduction, a copy.
  Tuples, bitcasts and arithmetic on single numbers are none.
- It reads its operands and writes its results, once each. Of an operand that it only slices or
  gathers from, itself or converted, it reads that much; of an array that it updates in place, by a
  slice or by a scatter, it writes the update.
- An array in on-chip memory (`S(1)` in a TPU's layouts) moves no bytes.
- The arithmetic is that written in the fused computation: one flop for each element of an
  elementwise result and each that is reduced, 2 m n k for a matmul.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b(pred|token|opaque|bf16|[fsuc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
_OPCODE = re.compile(r"([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%([\w.\-]+)")

_VIEWS = {"bitcast", "get-tuple-element", "reshape", "copy-done", "slice-done"}
_NO_KERNEL = _VIEWS | {
    "parameter", "constant", "tuple", "after-all", "partition-id", "replica-id",
    "opt-barrier", "optimization-barrier", "add-dependency", "domain", "copy-start",
    "slice-start",
    "async-start", "async-update", "async-done", "while", "conditional", "call",
}  # fmt: skip
_SOME = {"dynamic-slice", "slice", "gather"}
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # Which operand is the update.
_TRANSCENDENTAL = {
    "exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "power",
    "sqrt", "rsqrt", "cbrt", "sine", "cosine", "tan", "erf", "atan2",
}  # fmt: skip
_FLOP = {
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "compare",
    "select", "clamp", "remainder", "floor", "ceil", "sign", "and", "or", "not",
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Shape:
    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.dtype) if self.dtype in _BITS else re.search(r"\d+", self.dtype)
        bits = int(bits[0]) if isinstance(bits, re.Match) else bits or 0
        return self.size * max(bits, 1) // 8 if bits else 0


@dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result, its leaves
    operands: tuple[str, ...]
    text: str  # from the opcode on
    root: bool

    @property
    def size(self) -> int:
        return sum(s.size for s in self.shapes)

    def called(self) -> list[str]:
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.text)
        return _CALLED.findall(self.text) + (_NAME.findall(branches[1]) if branches else [])


@dataclass(frozen=True)
class Kernel:
    """One instruction that runs by itself, `runs` times in the program."""

    name: str
    opcode: str
    runs: int
    reads: tuple[int, ...]  # bytes, of each operand
    writes: tuple[int, ...]  # of each result
    flops: int
    matmuls: tuple[int, ...]  # flops of each
    dtype: str | None  # of what the matmuls multiply, "f32 exactly" at the highest precision
    transcendentals: int
    cycles: int  # as a TPU's compiler estimates
    # Bytes that it moves, where that is said; else each operand and result once.
    said: int | None = None
    opaque: bool = False  # whether nothing says what it does

    @property
    def bytes(self) -> int:
        return sum(self.reads) + sum(self.writes) if self.said is None else self.said


@dataclass(frozen=True)
class Collective:
    kind: str
    runs: int
    bytes: int


class Program:
    """An optimised HLO module, from the text of a compiled program.

    With `on_chip`, arrays in on-chip memory count as those in main memory do: where small arrays
    stand for large ones, which do not fit there.
    """

    def __init__(self, text: str, on_chip: bool = False) -> None:
        self.on_chip = on_chip
        self.computations: dict[str, dict[str, Instruction]] = {}
        body: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                body = self.computations[head[2]] = {}
                if head[1]:
                    self.entry = head[2]
            elif (found := _instruction(line)) is not None:
                body[found.name] = found

    @cached_property
    def kernels(self) -> list[Kernel]:
        return [
            self._kernel(body, i, runs)
            for body, i, runs in self._running(self.entry, 1)
            if i.opcode not in _NO_KERNEL and not _is_scalar(body, i) and not _is_buffer(i)
        ]

    @cached_property
    def collectives(self) -> list[Collective]:
        return [
            Collective(kind, runs, _sent(i))
            for _, i, runs in self._running(self.entry, 1)
            if (kind := i.opcode.removesuffix("-start")) in COLLECTIVES
        ]

    @property
    def opaque(self) -> bool:
        """Whether it calls a kernel that does not say what it costs."""
        return any(kernel.opaque for kernel in self.kernels)

    def total(self, of: Callable[[Kernel], float]) -> float:
        """Of all kernels, each counted as often as it runs."""
        return sum(kernel.runs * of(kernel) for kernel in self.kernels)

    def sweeps(self, size: int) -> list[Kernel]:
        """The kernels that read or write some array of at least so many bytes from end to end."""
        return [k for k in self.kernels if max((*k.reads, *k.writes), default=0) >= size]

    def written(self, size: int) -> list[Kernel]:
        """The kernels that write an array of at least so many bytes."""
        return [k for k in self.kernels if max(k.writes, default=0) >= size]

    def _running(self, name: str, runs: int) -> Iterator[tuple[dict, Instruction, int]]:
        body = self.computations[name]
        for i in body.values():
            yield body, i, runs
            if i.opcode == "while":
                inside = re.search(r"body=%([\w.\-]+)", i.text)
                assert inside is not None
                yield from self._running(inside[1], runs * self._trips(i))
            elif i.opcode in ("call", "conditional", "async-start"):
                for called in i.called():
                    yield from self._running(called, runs)

    def _trips(self, loop: Instruction) -> int:
        if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.text):
            return int(known[1])
        condition = re.search(r"condition=%([\w.\-]+)", loop.text)
        assert condition is not None
        numbers = [
            int(found[1])
            for i in self.computations[condition[1]].values()
            if i.opcode == "constant" and (found := re.match(r"constant\((\d+)\)", i.text))
        ]
        # What a loop over chunks compares its counter with; one run if that is not known.
        return max(numbers, default=1)

    def _moved(self, shape: Shape) -> int:
        return shape.bytes if self.on_chip or not shape.on_chip else 0

    def _kernel(self, body: dict[str, Instruction], i: Instruction, runs: int) -> Kernel:
        inside = [self.computations[c] for c in i.called()] if i.opcode == "fusion" else []
        shapes = [_shape_of(body, name) for name in i.operands]
        reads = [sum(map(self._moved, of)) for of in shapes]
        writes = [self._moved(s) for s in i.shapes]
        for fused in inside:
            reads = [self._read_of(fused, n, whole) for n, whole in enumerate(reads)]
            writes = _written_of(fused, writes)
        if i.opcode in _SOME:
            reads[0] = min(reads[0], sum(writes))
        if (update := _IN_PLACE.get(i.opcode)) is not None:
            reads, writes = [0, *reads[1:]], [reads[update]]
        if '"tpu_custom_call"' in i.text:
            return _custom(i, runs, reads, writes)
        arithmetic = list(self._arithmetic(body, i))
        matmuls = tuple(flops for kind, flops, _ in arithmetic if kind == "matmul")
        dtypes = [dtype for kind, _, dtype in arithmetic if kind == "matmul"]
        return Kernel(
            i.name, i.opcode, runs, tuple(reads), tuple(writes),
            sum(n for kind, n, _ in arithmetic if kind != "transcendental"), matmuls,
            dtypes[0] if dtypes else None,
            sum(n for kind, n, _ in arithmetic if kind == "transcendental"), _cycles(i),
        )  # fmt: skip

    def _read_of(self, fused: dict[str, Instruction], n: int, whole: int) -> int:
        """Bytes that a fusion reads of its n-th operand, of `whole` bytes."""
        parameter, some = _named(fused, n), 0
        if parameter is None:
            return 0
        for user, name in self._users(fused, parameter):
            if user.opcode in _SOME and user.operands[0] == name:
                some += user.size * whole // max(fused[parameter].size, 1)
            elif user.opcode == "fusion":
                inner = self.computations[user.called()[0]]
                some += self._read_of(inner, user.operands.index(name), whole)
            elif user.opcode not in _IN_PLACE or user.operands[0] != name:
                return whole
        return min(some, whole)

    def _users(self, fused: dict[str, Instruction], name: str) -> list[tuple[Instruction, str]]:
        """What uses a value, itself, a view of it or converted, and as which operand."""
        users = []
        for i in fused.values():
            if name in i.operands:
                seen = self._is_view(i) or i.opcode == "convert"
                users += self._users(fused, i.name) if seen else [(i, name)]
        return users

    def _is_view(self, i: Instruction) -> bool:
        if i.opcode != "fusion":
            return i.opcode in _VIEWS
        # A TPU's compiler wraps the bitcast of a matmul's operand in a fusion.
        inner = self.computations[i.called()[0]].values()
        return all(j.opcode == "parameter" or self._is_view(j) for j in inner)

    def _arithmetic(self, body: dict[str, Instruction], i: Instruction) -> Iterator[tuple]:
        """(kind, count, dtype of the operands), of an instruction and what is fused into it."""
        if i.opcode == "fusion":
            for called in i.called():
                fused = self.computations[called]
                for inner in fused.values():
                    yield from self._arithmetic(fused, inner)
        elif (flops := _matmul(body, i)) is not None:
            exact = "operand_precision={highest" in i.text
            dtype = _shape_of(body, i.operands[0])[0].dtype
            yield "matmul", flops, f"{dtype} exactly" if exact else dtype
        elif i.opcode in _TRANSCENDENTAL:
            yield "transcendental", i.size, None
        elif i.opcode in ("reduce", "reduce-window"):
            # Once for each element, what merges two.
            size = sum(s.size for s in _shape_of(body, i.operands[0]))
            merge = self.computations[i.called()[0]]
            for one in merge.values():
                for kind, n, dtype in self._arithmetic(merge, one):
                    yield kind, n * size, dtype
        elif i.opcode in _FLOP:
            yield "flop", i.size, None


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    rest = found[3]
    # The shape has no letter in front of a parenthesis but in layouts, such as T(8,128).
    bare = re.sub(r"\{[^{}]*\}", lambda m: "_" * len(m[0]), rest)
    opcode = _OPCODE.search(bare)
    if opcode is None:
        return None
    start, depth, end = opcode.end(), 1, opcode.end()
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    shapes = tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), "S(" in layout)
        for dtype, dims, layout in _SHAPE.findall(rest[: opcode.start()])
    )
    operands = tuple(_NAME.findall(rest[start:end]))
    return Instruction(
        found[2], opcode[1], shapes, operands, rest[opcode.start() :], bool(found[1])
    )


def _cycles(i: Instruction) -> int:
    found = re.search(r'"estimated_cycles":"(\d+)"', i.text)
    return int(found[1]) if found else 0


def _custom(i: Instruction, runs: int, reads: list[int], writes: list[int]) -> Kernel:
    """A Pallas kernel: what it costs, it has to say itself."""
    cost = re.search(r'"cost_estimate":\{([^}]*)\}', i.text)
    said = {name: int(n) for name, n in re.findall(r'"(\w+)":"?(\d+)', cost[1])} if cost else {}
    flops = said.get("flops", 0)
    return Kernel(
        i.name, i.opcode, runs, tuple(reads), tuple(writes), flops, (flops,), None,
        said.get("transcendentals", 0), _cycles(i), said.get("bytes_accessed"), not said,
    )  # fmt: skip


def _shape_of(body: dict[str, Instruction], name: str) -> tuple[Shape, ...]:
    return body[name].shapes if name in body else ()


def _is_scalar(body: dict[str, Instruction], i: Instruction) -> bool:
    """Arithmetic on single numbers, which a TPU leaves to its scalar core."""
    of = [s for name in i.operands for s in _shape_of(body, name)]
    return i.opcode != "fusion" and all(s.size <= 1 for s in (*of, *i.shapes))


def _is_buffer(i: Instruction) -> bool:
    return i.opcode == "custom-call" and '"AllocateBuffer"' in i.text


def _matmul(body: dict[str, Instruction], i: Instruction) -> int | None:
    """Flops, if the instruction is a matmul in one of the forms that compilers write."""
    if i.opcode == "convolution":
        labels = re.search(r"dim_labels=(\w+)_", i.text)
        assert labels is not None
        # Of a batch of matmuls a TPU makes a convolution over an axis that is spread out by zeros.
        sizes = _window(i.text, "size")
        spread = _window(i.text, "lhs_dilate") or [1] * len(sizes)
        taps = [-(-n // apart) for n, apart in zip(sizes, spread, strict=True)]
        features = _shape_of(body, i.operands[0])[0].dims[labels[1].index("f")]
        return 2 * i.size * features * math.prod(taps)
    if i.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.text)
        assert contracted is not None
        dims = _shape_of(body, i.operands[0])[0].dims
        return 2 * i.size * math.prod(dims[int(n)] for n in contracted[1].split(",") if n)
    if i.opcode == "custom-call" and "gemm" in i.text:
        a, b = (math.prod(_shape_of(body, name)[0].dims) for name in i.operands[:2])
        # (m k) (k n) (m n) is the square of m k n.
        return 2 * math.isqrt(a * b * i.shapes[0].size)
    return None


def _window(text: str, name: str) -> list[int]:
    """A property of a convolution's window, of each of its dimensions."""
    found = re.search(rf"window=\{{[^}}]*\b{name}=([\dx]+)", text)
    return [int(n) for n in found[1].split("x")] if found else []


def _named(fused: dict[str, Instruction], n: int) -> str | None:
    """The n-th parameter of a computation."""
    return next((p.name for p in fused.values() if p.text.startswith(f"parameter({n})")), None)


def _written_of(fused: dict[str, Instruction], writes: list[int]) -> list[int]:
    """Bytes that a fusion writes: of an array that it updates in place, the update."""
    root = next(i for i in fused.values() if i.root)
    results = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(writes):
        return writes
    return [
        min(whole, sum(s.bytes for s in _shape_of(fused, updated)))
        if (updated := _update(fused, result)) is not None
        else whole
        for result, whole in zip(results, writes, strict=True)
    ]


def _update(fused: dict[str, Instruction], i: Instruction) -> str | None:
    """What an instruction puts into an array that comes from outside of its fusion."""
    i = _viewed(fused, i)
    if i.opcode not in _IN_PLACE:
        return None
    into = _viewed(fused, fused[i.operands[0]])
    return i.operands[_IN_PLACE[i.opcode]] if into.opcode == "parameter" else None


def _viewed(fused: dict[str, Instruction], i: Instruction) -> Instruction:
    while i.opcode in _VIEWS and i.operands[0] in fused:
        i = fused[i.operands[0]]
    return i


def _sent(i: Instruction) -> int:
    """Bytes of what a collective gives; of a started one, whose shapes begin with its operands."""
    shapes = [s for s in i.shapes if s.dims]
    if i.opcode.endswith("-start") and i.opcode != "all-reduce-start":
        shapes = shapes[len(shapes) // 2 :]
    return sum(s.bytes for s in shapes)
