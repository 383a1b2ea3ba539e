"""Train a flax nnx network whose hidden layers report how active they are, to keep them sparse.

    python examples/nnx_sparse.py --epochs 20

The layers sow their penalties, `nnx.capture` collects those of one call, and
`jaxloss.total_loss` adds them to the loss of the predictions. Once without and once with the
penalty; the handwritten digits come with scikit-learn.
"""

import argparse
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from rich import print
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxloss

BATCH = 64
LOSS = jaxloss.Loss(jaxloss.softmax_cross_entropy_with_integer_labels)


class Activity(nnx.Variable):
    """Summed activations of a layer, averaged over the batch."""


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(64, 128, rngs=rngs)
        self.second = nnx.Linear(128, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        for layer in (self.first, self.second):
            x = nnx.relu(layer(x))
            self.sow(Activity, "activity", jnp.mean(jnp.sum(x, -1)))
        return self.out(x)


def objective(model: Network, x: Array, y: Array, scale: Array) -> Array:
    logits, activity = nnx.capture(model, Activity)(x)
    return jaxloss.total_loss(LOSS(logits, y), activity, scale=scale)


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer, x: Array, y: Array, scale: Array) -> None:
    optimizer.update(model, nnx.grad(objective)(model, x, y, scale))


def train(data: Sequence[Array], scale: float, epochs: int) -> dict[str, float]:
    x, x_test, y, y_test = data
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for _ in track(range(epochs), description=f"penalty {scale:g}"):
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH]
        for batch in order.reshape(-1, BATCH):
            step(model, optimizer, x[batch], y[batch], jnp.asarray(scale))
    logits, activity = nnx.capture(model, Activity)(x_test)
    return {
        "accuracy": float(jnp.mean(logits.argmax(-1) == y_test)),
        "activity": float(jaxloss.total_loss(0.0, activity)),
    }


def main(argv: Sequence[str] | None = None) -> dict[float, dict[str, float]]:
    parser = argparse.ArgumentParser(description="Sparse hidden layers in flax nnx.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--penalty", type=float, default=0.01, help="factor of the activity")
    args = parser.parse_args(argv)

    pixels, digits = load_digits(return_X_y=True)
    data = train_test_split(pixels / 16, digits, stratify=digits, random_state=0)
    runs = {
        scale: train([jnp.asarray(a) for a in data], scale, args.epochs)
        for scale in (0.0, args.penalty)
    }
    table = Table("penalty", "test accuracy", "summed activations of an image")
    for scale, run in runs.items():
        table.add_row(f"{scale:g}", f"{run['accuracy']:.1%}", f"{run['activity']:.1f}")
    print(table)
    return runs


if __name__ == "__main__":
    main()
