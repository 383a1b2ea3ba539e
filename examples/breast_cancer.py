"""Find a rare class: a binary cross-entropy without weights, and weighted in two ways.

    python examples/breast_cancer.py --epochs 300 --splits 10

Each training set keeps only 12 malignant tumours among some 180 benign ones; each test set
keeps all of its own. The data comes with scikit-learn.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from rich import print
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import jaxloss

MALIGNANT = 12
OPTIMIZER = optax.adam(1e-2)


def split(seed: int):
    """Return standardised features and labels (1 = malignant), to train on and to test on."""
    x, y = load_breast_cancer(return_X_y=True)
    y = 1 - y  # scikit-learn has 1 = benign; here the positive class is the rare one.
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.5, stratify=y, random_state=seed)
    malignant = np.random.default_rng(seed).permutation(np.flatnonzero(y == 1))
    x, y = np.delete(x, malignant[MALIGNANT:], 0), np.delete(y, malignant[MALIGNANT:])
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), y, scaler.transform(x_test), y_test


def linear(params, x: Array) -> Array:
    return x @ params["w"] + params["b"]


# A `Loss` is a pytree with `pos_weight` as a leaf: another weight needs no compilation.
@jax.jit
def step(loss: jaxloss.Loss, params, state, x: Array, y: Array, weights: Array | None):
    grads = jax.grad(lambda p: loss(linear(p, x), y, weights=weights))(params)
    updates, state = OPTIMIZER.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(loss: jaxloss.Loss, x: Array, y: Array, weights: Array | None, epochs: int):
    params = {"w": jnp.zeros(x.shape[1]), "b": jnp.zeros(())}
    state = OPTIMIZER.init(params)
    for _ in range(epochs):
        params, state = step(loss, params, state, x, y, weights)
    return params


def measure(epochs: int, seed: int) -> dict[str, list[float]]:
    """Train on one split with each loss: recall, precision and balanced accuracy of the test."""
    x, y, x_test, y_test = map(jnp.asarray, split(seed))
    rarity = jnp.sum(y == 0) / jnp.sum(y == 1)
    bce = jaxloss.sigmoid_binary_cross_entropy
    losses = {
        "no weights": (jaxloss.Loss(bce), None),
        "pos_weight": (jaxloss.Loss(bce, pos_weight=rarity), None),
        # The same but for the divisor: the sum of the weights, not the number of examples.
        "weights": (jaxloss.Loss(bce, "weighted_mean"), jnp.where(y == 1, rarity, 1.0)),
    }
    scores = {}
    for name, (loss, weights) in losses.items():
        found = linear(train(loss, x, y, weights, epochs), x_test) > 0
        scores[name] = [
            recall_score(y_test, found),
            precision_score(y_test, found),
            balanced_accuracy_score(y_test, found),
        ]
    return scores


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description="Weight a rare class.")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--splits", type=int, default=10, help="random splits to average over")
    args = parser.parse_args(argv)

    splits = track(range(args.splits), description="splits")
    runs = [measure(args.epochs, seed) for seed in splits]

    names = ["recall", "precision", "balanced accuracy"]
    table = Table(title=f"Malignant tumours: mean and deviation of {args.splits} splits")
    table.add_column("loss")
    for column in names:
        table.add_column(column, justify="right")
    result = {}
    for loss in runs[0]:
        scores = np.array([run[loss] for run in runs])
        mean, deviation = scores.mean(0), scores.std(0)
        pairs = zip(mean, deviation, strict=True)
        table.add_row(loss, *(f"{m:.3f} ± {d:.3f}" for m, d in pairs))
        result[loss] = dict(zip(names, mean.tolist(), strict=True))
    print(table)
    return result


if __name__ == "__main__":
    main()
