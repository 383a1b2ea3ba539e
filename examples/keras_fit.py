"""Fit a Keras model with losses of jaxloss: an object, a function of logits, and a name.

    python examples/keras_fit.py --epochs 20

The first two take the logits of a last layer without activation, the third the probabilities
of a softmax. A quarter of the training labels are missing, marked by -1, which only the first
loss knows how to leave out; the others have to be given weights of zero for them. The
handwritten digits come with scikit-learn.
"""

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("KERAS_BACKEND", "jax")  # Before Keras is imported.

import keras
import numpy as np
from rich import print
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxloss
from jaxloss.keras import as_keras_loss, get

MISSING = -1


def network(activation: str | None) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    hidden, out = layers.Dense(128, "relu"), layers.Dense(10, activation)
    return keras.Sequential([keras.Input((64,)), hidden, out])


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="compile and fit with losses of jaxloss.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--verbose", type=int, default=2, help="Keras's: 0, 1 or 2")
    args = parser.parse_args(argv)

    pixels, digits = load_digits(return_X_y=True)
    pixels, digits = (pixels / 16).astype("float32"), digits.astype("int32")
    x, x_test, y, y_test = train_test_split(pixels, digits, stratify=digits, random_state=0)
    missing = np.random.default_rng(0).uniform(size=len(y)) < 0.25
    y = np.where(missing, MISSING, y).astype("int32")

    cross_entropy = jaxloss.softmax_cross_entropy_with_integer_labels
    losses = {
        "object": (as_keras_loss(jaxloss.Loss(cross_entropy, ignore_index=MISSING)), None),
        "function": (as_keras_loss(cross_entropy), None),
        "name": (as_keras_loss(get("sparse_categorical_crossentropy")), "softmax"),
    }
    accuracies = {}
    for name, (loss, activation) in losses.items():
        model = network(activation)
        model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
        weights = None if name == "object" else (~missing).astype("float32")
        fit = {"batch_size": 64, "epochs": args.epochs, "verbose": args.verbose}
        model.fit(x, y, sample_weight=weights, **fit)
        # The metric of Keras takes the class of the highest logit or probability.
        accuracies[name] = float(model.evaluate(x_test, y_test, verbose=args.verbose)[1])

    table = Table("loss by", "test accuracy")
    for name, accuracy in accuracies.items():
        table.add_row(name, f"{accuracy:.1%}")
    print(table)
    return accuracies


if __name__ == "__main__":
    main()
