"""The formulas of docstrings as TeX.

A docstring has its formulas as indented lines that read like Python: `sum_j y_j * log(p_j)`. Here
they are parsed, as an arithmetic of names, functions, sums and a few English words, and written as
TeX. Columns that are two spaces or more apart are set as columns: a formula and its condition.
What is prose rather than a formula gives None, and stays as it was typed.
"""

import re
from dataclasses import dataclass

_GREEK = (
    "alpha beta gamma delta epsilon eta theta kappa lambda mu nu pi rho sigma tau phi omega "
    "Omega Delta"
)
GREEK = frozenset(_GREEK.split())
# Functions that TeX knows by name; others are set upright.
KNOWN = {"log", "exp", "max", "min", "tanh", "sinh", "cosh", "sin", "cos", "arctan", "arg", "inf"}
BIG = {
    "sum": r"\sum",
    "prod": r"\prod",
    "max": r"\max",
    "min": r"\min",
    "mean": r"\operatorname{mean}",
}
# Functions that take what follows without parentheses, as in `log sigmoid(x)`.
PREFIX = {"log", "exp"}
_PROSE = (
    "an and another are at between but by ending every first for if in is it its j's largest "
    "likewise no not nothing number of or other others over pairs than that the them this to "
    "under where whether which with elsewhere otherwise batch empty both all each"
)
PROSE = frozenset(_PROSE.split())
RELATIONS = {
    "=": "=", "<=": r"\le", ">=": r"\ge", "<": "<", ">": ">", "!=": r"\ne", "<-": r"\leftarrow",
    "||": r"\,\|\,", ":": ":", "~": r"\sim",
}  # fmt: skip
TOKEN = re.compile(
    r"\s*(?P<token>\d+(?:\.\d+)?(?:e-?\d+)?|[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*'?"
    r"|\*\*|\|\||<=|>=|!=|<-|_[A-Za-z0-9]+|_(?=\()|[-+*/()\[\]|=<>,;:.~])"
)
# More words than that, of those that no sum has, make a line a sentence.
WORDS = 4
OF_SUMS = {"sum", "over", "of", "in", "the", "pairs", "with", "and"}
# A setting, as the condition of a formula.
SETTING = re.compile(r"([a-z_]+=[\w.]+)(.*)")


class NotAFormula(ValueError):
    pass


@dataclass(frozen=True)
class Piece:
    """TeX, and what may be done to it: how tightly it holds together, what it is."""

    tex: str
    # Of the loosest operator in it: 0 a relation or prose, 1 a sum, 2 a product, 3 what is whole.
    tight: int = 3
    kind: str = ""
    # What is inside of parentheses.
    inner: str = ""

    @property
    def bare(self) -> str:
        return self.inner or self.tex


def tex(block: str) -> str | None:
    """TeX of the lines of a block, for display; None if it is not a formula."""
    try:
        rows = [row for line in _joined(block) for row in _rows(line)]
    except NotAFormula:
        return None
    if not rows:
        return None
    if len(rows) == 1:
        return rows[0].replace("&", "")
    return "\\begin{aligned}\n" + " \\\\[4pt]\n".join(rows) + "\n\\end{aligned}"


def _joined(block: str) -> list[str]:
    """The lines, each with those that continue it: indented deeper, or after an operator."""
    lines = [line for line in block.rstrip().splitlines() if line.strip()]
    if not lines:
        return []
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    out: list[str] = []
    for line in (line[margin:] for line in lines):
        if out and (line.startswith(" ") or re.search(r"[-+*/(=] *$", out[-1])):
            out[-1] = f"{out[-1].rstrip()} {line.strip()}"
        else:
            out.append(line.rstrip())
    return out


def _rows(line: str) -> list[str]:
    """One row; or one for each formula, if a line has several with their conditions."""
    columns = re.split(r" {2,}", line)
    if len(columns) < 4:
        return [_row(columns)]
    pairs = zip(columns[2::2], columns[3::2], strict=False)
    return [_row(columns[:2]), *(_row(["", *pair]) for pair in pairs)]


def _row(columns: list[str]) -> str:
    formula, *others = columns
    if not formula:
        value, condition = others
        return rf"& \phantom{{=}} {_condition(value)} && \quad {_condition(condition)}"
    line = "  ".join(columns)
    if sum(word in PROSE - OF_SUMS for word in re.findall(r"[a-z']+", formula)) > WORDS:
        raise NotAFormula(line)
    out = _aligned(formula)
    for column in others:
        out += r" && \quad " if column is others[0] else r"\quad "
        out += _condition(column)
    return out


def _condition(text: str) -> str:
    setting = SETTING.fullmatch(text)
    if setting:
        return rf"\texttt{{{_escaped(setting[1])}}}" + (
            _condition(setting[2]) if setting[2] else ""
        )
    words = re.findall(r"(?<![A-Za-z_])[A-Za-z]{3,}(?![A-Za-z_])", text)
    plain = [w for w in words if w not in PROSE | KNOWN and w not in BIG and w not in GREEK]
    if len(plain) > 1 or text.startswith(" ("):
        return rf"\text{{{_escaped(text)}}}"
    return (
        Parser(text.lstrip(", ")).whole().tex if text[0] != "," else rf",\ {_condition(text[2:])}"
    )


def _aligned(formula: str) -> str:
    """With a mark before the relation of the formula, on which lines are aligned."""
    label = re.match(r"([A-Za-z]\w*): (.*)", formula)
    if label:
        name = rf"\text{{{_escaped(label[1])}}}"
        left, relation, right = _split(label[2])
        body = f"{left} {relation} {right}" if relation else right
        return rf"{name}\colon\quad & {body}"
    left, relation, right = _split(formula)
    return f"{left} &{relation} {right}" if relation else f"& {right}"


def _split(formula: str) -> tuple[str, str, str]:
    parser = Parser(formula)
    first = parser.sum()
    if parser.next in RELATIONS and parser.next != "||":
        relation = RELATIONS[parser.take()]
        return first.tex, relation, parser.whole().tex
    return "", "", Parser(formula).whole().tex


def _escaped(text: str) -> str:
    return re.sub(r"([_&%#{}$])", r"\\\1", text).replace("**", "^")


class Parser:
    """Precedence climbing; every method returns the TeX of what it took."""

    def __init__(self, text: str):
        self.tokens: list[str] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                raise NotAFormula(text)
            # `f(x)_i`, without a space: the index of what is before it.
            self.tokens.append(found["token"])
            at = found.end()
        self.at = 0
        # Of absolute values that are open: then a bar closes one.
        self.bars = 0

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.next
        if not token or (expected is not None and token != expected):
            raise NotAFormula(f"{expected} in {' '.join(self.tokens)}")
        self.at += 1
        return token

    def whole(self) -> Piece:
        out = self.phrase()
        if self.next:
            raise NotAFormula(" ".join(self.tokens))
        return out

    def phrase(self) -> Piece:
        """Expressions and words, with commas between some of them."""
        parts = [self.relation()]
        while self.next and self.next not in (")", "]") and not (self.next == "|" and self.bars):
            if self.next in ",;:.":
                mark = self.take()
                parts.append(Piece(mark + r"\ " if self.next else mark, 0))
            else:
                parts.append(self.relation())
        if len(parts) == 1:
            return parts[0]
        out = ""
        for part in parts:
            spaced = out and not part.tex.startswith((",", ";", ".", r"\text"))
            out += (
                r"\ " if spaced and not out.endswith((" ", "}")) else " " if spaced else ""
            ) + part.tex
        return Piece(out, 0)

    def relation(self) -> Piece:
        left = self.sum()
        while self.next in RELATIONS or (self.next == "in" and left.kind != "word"):
            sign = r"\in" if self.next == "in" else RELATIONS[self.next]
            self.take()
            left = Piece(f"{left.tex} {sign} {self.sum().tex}", 0)
        return left

    def sum(self) -> Piece:
        left = self.product()
        while self.next in ("+", "-"):
            left = Piece(f"{left.tex} {self.take()} {self.product().tex}", 1)
        return left

    def product(self) -> Piece:
        if self.next == "-":
            self.take()
            return Piece(f"-{self.product().tex}", 1)
        left = self.power()
        while self.next in ("*", "/"):
            if self.take() == "/":
                left = Piece(rf"\frac{{{left.bare}}}{{{self.factor().bare}}}", kind="fraction")
            else:
                right = self.factor()
                dot = (left.kind == "number" and right.kind in ("number", "paren")) or (
                    left.kind == "name" and right.kind == "paren"
                )
                between = r" \cdot " if dot or right.tex[0].isdigit() else r"\, "
                left = Piece(
                    left.tex + between + right.tex, 2, right.kind if right.kind == "big" else ""
                )
        return left

    def factor(self) -> Piece:
        """What stands after `*` or `/`: a sum reaches to the end of its product."""
        if self.next == "-":
            self.take()
            inner = self.factor()
            return Piece(f"(-{inner.tex})", kind="paren", inner=f"-{inner.tex}")
        return self.power()

    def power(self) -> Piece:
        base = self.postfix()
        if self.next == "**":
            self.take()
            sign = "-" if self.next == "-" and self.take() else ""
            exponent = self.power()
            if base.kind == "fraction":
                base = Piece(rf"\left({base.tex}\right)")
            return Piece(f"{{{base.tex}}}^{{{sign}{exponent.bare}}}", kind="power")
        return base

    def postfix(self) -> Piece:
        out = self.primary()
        while True:
            if self.next == "_":  # x_(i - 1)
                self.take()
                self.take("(")
                out = Piece(f"{{{out.tex}}}_{{{self.parenthesis().inner}}}", kind=out.kind)
            elif self.next.startswith("_"):
                out = Piece(f"{{{out.tex}}}_{{{_index(self.take()[1:])}}}", kind=out.kind)
            elif self.next == "." and self.tokens[self.at + 1 : self.at + 2]:
                self.take()
                out = Piece(rf"{out.tex}\mathrm{{.{_escaped(self.take())}}}", kind=out.kind)
            else:
                return out

    def primary(self) -> Piece:
        token = self.take()
        if token[0].isdigit():
            mantissa, _, exponent = token.partition("e")
            if not exponent:
                return Piece(token, kind="number")
            shown = f"10^{{{int(exponent)}}}"
            return Piece(shown if mantissa == "1" else rf"{mantissa} \cdot {shown}", kind="number")
        if token == "(":
            return self.parenthesis()
        if token == "[":
            inner = self.phrase().tex
            self.take("]")
            return Piece(rf"\left[{inner}\right]")
        if token == "|":
            self.bars += 1
            inner = self.phrase().tex
            self.bars -= 1
            self.take("|")
            return Piece(rf"\left|{inner}\right|")
        if token[0].isalpha():
            return self.named(token)
        raise NotAFormula(token)

    def parenthesis(self) -> Piece:
        # (1 if a else 0) is Iverson's bracket.
        if self.tokens[self.at : self.at + 2] == ["1", "if"]:
            self.at += 2
            inner = self.relation().tex
            self.take("else")
            self.take("0")
            self.take(")")
            return Piece(rf"\left[{inner}\right]")
        inner = self.phrase().tex
        self.take(")")
        return Piece(rf"\left({inner}\right)", kind="paren", inner=inner)

    def named(self, token: str) -> Piece:
        head, _, index = token.partition("_")
        if token in PROSE:
            return Piece(rf"\text{{ {token} }}", 0, "word")
        if head in BIG and (index or self.next in ("over", "of")):
            return self.big(BIG[head], index)
        if token in PREFIX and self.next not in ("(", "", ")", ",", "=", "**"):
            argument = self.power()
            return Piece(rf"\{token} {argument.tex}")
        if self.next == "(":
            self.take()
            inner = self.phrase().tex if self.next != ")" else ""
            self.take(")")
            return self.call(token, inner)
        if self.next == "[":
            self.take()
            inner = self.phrase().tex
            self.take("]")
            return Piece(f"{_name(token)}_{{{inner}}}", kind="name")
        return Piece(_name(token), kind="name")

    def call(self, name: str, inner: str) -> Piece:
        if name == "exp" and len(inner) < 24 and r"\frac" not in inner and "^" not in inner:
            return Piece(f"e^{{{inner}}}", kind="call")
        if name == "sqrt":
            return Piece(rf"\sqrt{{{inner}}}", kind="call")
        if name == "abs":
            return Piece(rf"\left|{inner}\right|", kind="call")
        return Piece(rf"{_function(name)}\left({inner}\right)", kind="call")

    def big(self, sign: str, index: str) -> Piece:
        """`sum_j x`, `sum over j in S of x`, `sum of x over the pairs with j > i`."""
        below = _index(index) if index else ""
        if self.next == "over":
            self.take()
            below = self.until("of")
            self.take("of")
        elif self.next == "of":
            self.take()
        body = self.product()
        if not below and self.next == "over":
            self.take()
            below = self.until("")
        return Piece(f"{sign}_{{{below}}} {body.tex}" if below else f"{sign} {body.tex}", 2, "big")

    def until(self, end: str) -> str:
        inner: list[str] = []
        depth = 0
        while self.next and (self.next != end or depth):
            token = self.take()
            depth += (token in "([") - (token in ")]")
            inner.append(token)
        while inner and inner[0] == "the":
            inner.pop(0)
        parser = Parser("")
        parser.tokens = inner
        return parser.whole().tex


def _function(name: str) -> str:
    if name in KNOWN:
        return rf"\{name}"
    if len(name) == 1 or name in GREEK:
        return _name(name)
    head, _, index = name.partition("_")
    if len(head) == 1 and len(index) <= 2 and index:
        return _name(name)
    return rf"\operatorname{{{_escaped(name)}}}"


def _name(name: str) -> str:
    head, _, index = name.partition("_")
    short = len(head) == 1 or head in GREEK
    if not index:
        if head in GREEK:
            return rf"\{head}"
        return head if short else rf"\mathrm{{{_escaped(head)}}}"
    if (short and len(index) <= 3) or (short and index in GREEK) or len(index) == 1:
        return f"{_name(head)}_{{{_index(index)}}}"
    return rf"\mathrm{{{_escaped(name)}}}"


def _index(index: str) -> str:
    if index in GREEK:
        return rf"\{index}"
    return index if len(index) <= 3 else rf"\mathrm{{{_escaped(index)}}}"
