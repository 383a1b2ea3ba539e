"""Train a small network on handwritten digits, then once more from very large logits.

    python examples/digits.py --epochs 30 --out digits.png

The first training has pixels from 0 to 1. The second has pixels from 0 to 255, as if nobody
had divided them: its first logits are in the hundreds, where a cross-entropy written as
`-log(softmax(x)[label])` is NaN. jaxloss trains on from there, though to a lower accuracy than
from scaled pixels. The data comes with scikit-learn.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import print
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxloss

BATCH = 64
OPTIMIZER = optax.adam(1e-3)
BLUE, RED = "#1f6fb4", "#c8372d"


def naive_cross_entropy(logits: Array, label: Array) -> Array:
    """The formula as it is often written; in float32, exp overflows above 88."""
    p = jnp.exp(logits) / jnp.exp(logits).sum()
    return -jnp.log(p[label])


# `Loss` takes any function that returns one loss for each example.
JAXLOSS = jaxloss.Loss(jaxloss.softmax_cross_entropy_with_integer_labels)
NAIVE = jaxloss.Loss(jax.vmap(naive_cross_entropy))


class Run(NamedTuple):
    losses: np.ndarray  # of every step; one row for each epoch
    accuracy: float  # on the test set

    @property
    def nan_step(self) -> int | None:
        """The first step, counted from 1, whose loss is NaN."""
        steps = np.flatnonzero(np.isnan(self.losses))
        return int(steps[0]) + 1 if steps.size else None

    @property
    def last_loss(self) -> float:
        """The mean training loss of the last epoch."""
        return float(self.losses[-1].mean())


def init():
    def layer(key, inputs, outputs):
        w = jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5
        return {"w": w, "b": jnp.zeros(outputs)}

    hidden, out = jax.random.split(jax.random.key(0))
    return {"hidden": layer(hidden, 64, 128), "out": layer(out, 128, 10)}


def mlp(params, x: Array) -> Array:
    h = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return h @ params["out"]["w"] + params["out"]["b"]


@jax.jit
def step(loss: jaxloss.Loss, params, state, x: Array, y: Array):
    value, grads = jax.value_and_grad(lambda p: loss(mlp(p, x), y))(params)
    updates, state = OPTIMIZER.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def train(loss: jaxloss.Loss, data: Sequence[Array], epochs: int, title: str) -> Run:
    x, x_test, y, y_test = data
    params = init()
    state = OPTIMIZER.init(params)
    rng = np.random.default_rng(0)  # Every run sees the same batches in the same order.
    losses = []
    for _ in track(range(epochs), description=f"{title:<24}"):
        # An incomplete last batch is left out, so that the step is compiled only once.
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH]
        for batch in order.reshape(-1, BATCH):
            params, state, value = step(loss, params, state, x[batch], y[batch])
            losses.append(value)
    accuracy = float(jnp.mean(mlp(params, x_test).argmax(-1) == y_test))
    return Run(np.array(losses).reshape(epochs, -1), accuracy)


def draw(ax: Axes, title: str, exact: Run, naive: Run) -> None:
    for name, run, color, style in (("jaxloss", exact, BLUE, "-"), ("naive", naive, RED, "--")):
        middle = np.arange(len(run.losses)) + 0.5
        label = f"{name}, test accuracy {run.accuracy:.1%}"
        ax.plot(middle, run.losses.mean(1), style, color=color, lw=2, label=label)
    if naive.nan_step is not None:
        # NaN has no height: the cross stands where the exact loss of that step is.
        i = naive.nan_step - 1
        at = i / exact.losses.shape[1], exact.losses.flat[i]
        text = f"naive: NaN from step {naive.nan_step}"
        ax.plot(*at, "X", color=RED, ms=11, mec="white")
        ax.annotate(text, at, (12, 0), textcoords="offset points", va="center", color=RED)
    ax.set(title=title, yscale="log", xlabel="epoch", ylabel="mean training loss (nats)")
    ax.legend(frameon=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def main(argv: Sequence[str] | None = None) -> dict[str, float | int | None]:
    parser = argparse.ArgumentParser(description="Train on digits from small and large logits.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", default="digits.png", help="where to save the picture")
    args = parser.parse_args(argv)

    pixels, digits = load_digits(return_X_y=True)
    x, x_test, y, y_test = map(
        jnp.asarray, train_test_split(pixels / 16, digits, stratify=digits, random_state=0)
    )
    small, large = (x, x_test, y, y_test), (255 * x, 255 * x_test, y, y_test)
    exact = train(JAXLOSS, small, args.epochs, "jaxloss, pixels 0 to 1")
    naive = train(NAIVE, small, args.epochs, "naive, pixels 0 to 1")
    exact_large = train(JAXLOSS, large, args.epochs, "jaxloss, pixels 0 to 255")
    naive_large = train(NAIVE, large, args.epochs, "naive, pixels 0 to 255")
    first_logit = float(jnp.abs(mlp(init(), 255 * x)).max())

    # A figure of its own, without pyplot, needs no display.
    fig = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    left, right = fig.subplots(1, 2)
    draw(left, "Pixels from 0 to 1: the two losses agree", exact, naive)
    title = f"Pixels from 0 to 255: first logits up to {first_logit:.0f}"
    draw(right, title, exact_large, naive_large)
    fig.savefig(args.out)

    table = Table(title="Handwritten digits")
    for column in ("pixels", "loss", "test accuracy", "last training loss", "first NaN"):
        table.add_column(column, justify="right")
    for pixels, name, run in (
        ("0 to 1", "jaxloss", exact),
        ("0 to 1", "naive", naive),
        ("0 to 255", "jaxloss", exact_large),
        ("0 to 255", "naive", naive_large),
    ):
        first = "never" if run.nan_step is None else f"step {run.nan_step}"
        table.add_row(pixels, name, f"{run.accuracy:.1%}", f"{run.last_loss:.4f}", first)
    print(table, f"Loss curves: {args.out}")
    return {
        "accuracy": exact.accuracy,
        "naive_accuracy": naive.accuracy,
        "large_first_logit": first_logit,
        "large_accuracy": exact_large.accuracy,
        "large_last_loss": exact_large.last_loss,
        "large_naive_accuracy": naive_large.accuracy,
        "large_naive_nan_step": naive_large.nan_step,
    }


if __name__ == "__main__":
    main()
