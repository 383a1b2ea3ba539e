"""The README's table of facts: `python -m benchmarks.facts` prints it, `--write` puts it in.

Speed: the programs are compiled, then run in turn; each timed run follows one of the same
program that is not timed, because a program that frees large arrays slows down the next. The
numbers are medians, and ratios of runs interleaved in one process.
"""

import argparse
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxloss

README = Path(__file__).parent.parent / "README.md"
MARKS = "<!-- facts -->\n", "<!-- /facts -->"

Loss = Callable[[Any, Any], Any]
Row = tuple[str, ...]


def naive_sigmoid(x, z):
    return jnp.maximum(x, 0) - x * z + jnp.log1p(jnp.exp(-jnp.abs(x)))


def naive_softmax(x, k):
    return -jnp.take_along_axis(jax.nn.log_softmax(x), k[:, None], 1)[:, 0]


BINARY: dict[str, Loss] = {
    "jaxloss": jaxloss.sigmoid_binary_cross_entropy,
    "optax": optax.sigmoid_binary_cross_entropy,
    "naive": naive_sigmoid,
}
SOFTMAX: dict[str, Loss] = {
    "jaxloss": jaxloss.softmax_cross_entropy_with_integer_labels,
    "optax": optax.softmax_cross_entropy_with_integer_labels,
    "naive": naive_softmax,
}


def exactness() -> list[Row]:
    """One number a row, where the formulas differ."""

    def row(what: str, losses: dict[str, Loss], quantity: Callable[[Loss], Any]) -> Row:
        cells = (f"{float(quantity(losses[name])):.4g}" for name in ("jaxloss", "optax", "naive"))
        return (what, *cells)

    sure, one = jnp.array([[20.0, 0.0]]), jnp.array([0])

    def slope(x: float, z: float):
        return lambda f: jax.grad(f)(x, z)

    def curvature(f):
        return jax.grad(jax.grad(f))(30.0, 1.0)

    return [
        row("softmax loss of [20, 0], label 0 (2.061e-09)", SOFTMAX, lambda f: f(sure, one)[0]),
        row(
            "its gradient at the label (-2.061e-09)",
            SOFTMAX,
            lambda f: jax.grad(lambda x: f(x, one)[0])(sure)[0, 0],
        ),
        row(
            "softmax loss of float16 zeros, 128,256 classes (11.76)",
            SOFTMAX,
            lambda f: f(jnp.zeros((1, 128256), jnp.float16), one)[0],
        ),
        row("softmax loss of label -1 (an error)", SOFTMAX, lambda f: f(sure, one - 1)[0]),
        row("sigmoid gradient at logit 0, label 0 (0.5)", BINARY, slope(0.0, 0.0)),
        row(
            "sigmoid loss at logit inf, label 1 (0)",
            BINARY,
            lambda f: f(jnp.array(jnp.inf), jnp.array(1.0)),
        ),
        row("sigmoid 2nd derivative at logit 30 (9.358e-14)", BINARY, curvature),
    ]


def consumed(f: Loss):
    """The mean and its gradient, used where it is made, as in a training step."""

    def program(x, y):
        value, gradient = jax.value_and_grad(lambda x: f(x, y).mean())(x)
        return value, jnp.sum(gradient * gradient)

    return program


def returned(f: Loss):
    return lambda x, y: jax.value_and_grad(lambda x: f(x, y).mean())(x)


def medians(programs: dict[str, Any], args: Sequence[Any], repeats: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            jax.block_until_ready(program(*args))
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(s)) for name, s in seconds.items()}


def speed(scale: int, repeats: int) -> list[Row]:
    cases: list[tuple[str, dict[str, Loss], tuple[int, ...]]] = [
        ("sigmoid", BINARY, (2**24 // scale,)),
        *(
            ("integer softmax", SOFTMAX, (n // scale, c))
            for n, c in ((2048, 32000), (65536, 1000), (1048576, 10))
        ),
    ]
    rows: list[Row] = []
    for name, losses, shape in track(cases, description="timing", console=Console(stderr=True)):
        x = 3 * jax.random.normal(jax.random.key(0), shape)
        labels = jax.random.randint(jax.random.key(1), shape[:1], 0, shape[-1])
        y = labels if len(shape) > 1 else (labels % 2).astype(jnp.float32)
        for kind in (consumed, returned):
            programs = {k: jax.jit(kind(f)).lower(x, y).compile() for k, f in losses.items()}
            time_of = medians(programs, (x, y), repeats)
            size = " x ".join(f"{s:,}" for s in shape)
            cells = (f"{time_of[k] / time_of['optax']:.2f}" for k in ("jaxloss", "optax", "naive"))
            rows.append((f"{name}, {size}, gradient {kind.__name__}", *cells))
    return rows


def markdown(title: str, rows: list[Row]) -> str:
    lines = [f"| {title} | jaxloss | optax {optax.__version__} | naive |", "|---|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description="Measure the README's table of facts.")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    parser.add_argument("--scale", type=int, default=1, help="divide the batch sizes by this")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args(argv)

    device = jax.devices()[0].device_kind
    where = f"{device.upper()} with jax {jax.__version__}, Python {platform.python_version()}"
    tables = {
        "float32 (exact value)": exactness(),
        "time, value and gradient, optax = 1": speed(args.scale, args.repeats),
    }
    text = f"Measured on a {where} by `python -m benchmarks.facts`:\n"
    for title, rows in tables.items():
        shown = Table(title, "jaxloss", "optax", "naive")
        for row in rows:
            shown.add_row(*row)
        Console().print(shown)
        text += "\n" + markdown(title, rows)
    if args.write:
        start, end = MARKS
        body = re.escape(start) + ".*" + re.escape(end)
        readme = README.read_text()
        README.write_text(re.sub(body, lambda _: start + text + end, readme, flags=re.DOTALL))
    return [row for rows in tables.values() for row in rows]


if __name__ == "__main__":
    main()
