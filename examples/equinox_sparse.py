"""Train an equinox network that returns how active its hidden layers are, to keep them sparse.

    python examples/equinox_sparse.py --epochs 20

An equinox module is a function of one example: it returns its logits and a tree of penalties.
`jax.vmap` gives one penalty for each example, `jaxloss.total_loss` takes their means. Once
without and once with the penalty; the handwritten digits come with scikit-learn.
"""

import argparse
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from rich import print
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxloss

BATCH = 64
LOSS = jaxloss.Loss(jaxloss.softmax_cross_entropy_with_integer_labels)
OPTIMIZER = optax.adam(2e-3)


class Network(eqx.Module):
    first: eqx.nn.Linear
    second: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key: Array):
        first, second, out = jax.random.split(key, 3)
        self.first = eqx.nn.Linear(64, 128, key=first)
        self.second = eqx.nn.Linear(128, 64, key=second)
        self.out = eqx.nn.Linear(64, 10, key=out)

    def __call__(self, x: Array) -> tuple[Array, dict[str, Array]]:
        first = jax.nn.relu(self.first(x))
        second = jax.nn.relu(self.second(first))
        return self.out(second), {"first": jnp.sum(first), "second": jnp.sum(second)}


def predict(model: Network, x: Array) -> tuple[Array, dict[str, Array]]:
    """Logits of a batch, and the penalties averaged over it, as the data loss is."""
    logits, activity = jax.vmap(model)(x)
    return logits, jax.tree.map(jnp.mean, activity)


def objective(model: Network, x: Array, y: Array, scale: Array) -> Array:
    logits, activity = predict(model, x)
    return jaxloss.total_loss(LOSS(logits, y), activity, scale=scale)


@eqx.filter_jit
def step(model: Network, state: optax.OptState, x: Array, y: Array, scale: Array):
    grads = eqx.filter_grad(objective)(model, x, y, scale)
    updates, state = OPTIMIZER.update(grads, state)
    return eqx.apply_updates(model, updates), state


def train(data: Sequence[Array], scale: float, epochs: int) -> dict[str, float]:
    x, x_test, y, y_test = data
    model = Network(jax.random.key(0))
    state = OPTIMIZER.init(eqx.filter(model, eqx.is_array))
    rng = np.random.default_rng(0)
    for _ in track(range(epochs), description=f"penalty {scale:g}"):
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH]
        for batch in order.reshape(-1, BATCH):
            model, state = step(model, state, x[batch], y[batch], jnp.asarray(scale))
    logits, activity = predict(model, x_test)
    return {
        "accuracy": float(jnp.mean(logits.argmax(-1) == y_test)),
        "activity": float(jaxloss.total_loss(0.0, activity)),
    }


def main(argv: Sequence[str] | None = None) -> dict[float, dict[str, float]]:
    parser = argparse.ArgumentParser(description="Sparse hidden layers in equinox.")
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
