"""Distil a classifier of digits: a student with few labels learns from a teacher's logits.

    python examples/distillation.py --epochs 40 --out distillation.png

The teacher has seen all labels. The student has labels for 50 digits only, but may look at all
images: once it learns from its labels alone, once also from what the teacher says of every image,
at a temperature of 4. The data comes with scikit-learn.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxloss

BATCH, LABELLED, UNKNOWN = 50, 50, -1
OPTIMIZER = optax.adam(3e-3)
LABELS = jaxloss.Loss(jaxloss.softmax_cross_entropy_with_integer_labels, ignore_index=UNKNOWN)
TEACHER = jaxloss.Loss(jaxloss.distillation_loss, temperature=4.0)


def forward(params: dict[str, Array], x: Any) -> Array:
    return jax.nn.relu(x @ params["hidden"]) @ params["out"]


def train(objective: Callable[..., Array], width: int, data: Sequence[Any], epochs: int):
    rng = np.random.default_rng(0)
    params = {
        "hidden": jnp.asarray(rng.normal(size=(64, width)) / 8, jnp.float32),
        "out": jnp.asarray(rng.normal(size=(width, 10)) / np.sqrt(width), jnp.float32),
    }
    state = OPTIMIZER.init(params)

    @jax.jit
    def step(params, state, *batch):
        gradient = jax.grad(objective)(params, *batch)
        updates, state = OPTIMIZER.update(gradient, state)
        return optax.apply_updates(params, updates), state

    for _ in range(epochs):
        order = rng.permutation(len(data[0]))
        for i in range(0, len(order) - BATCH + 1, BATCH):
            batch = (array[order[i : i + BATCH]] for array in data)
            params, state = step(params, state, *batch)
    return params


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Distillation with few labels.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", default="distillation.png")
    args = parser.parse_args(argv)
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x.astype(np.float32) / 16, y, random_state=0)
    few = np.where(np.arange(len(y)) < LABELLED, y, UNKNOWN)

    def by_labels(params, x, y):
        return LABELS(forward(params, x), y)

    def by_both(params, x, y, logits):
        student = forward(params, x)
        return LABELS(student, y) + TEACHER(student, logits)

    teacher = train(by_labels, 256, (x, y), args.epochs)
    data = x, few, np.asarray(forward(teacher, x))
    trained = {
        "teacher": teacher,
        "student, labels": train(by_labels, 32, data[:2], args.epochs),
        "student, distilled": train(by_both, 32, data, args.epochs),
    }
    scores = {
        name: float(np.mean(np.argmax(forward(params, x_test), -1) == y_test))
        for name, params in trained.items()
    }
    figure = Figure(figsize=(5, 2), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(scores), list(scores.values()))
    axes.set(xlabel="accuracy on digits that none has seen", xlim=(0, 1))
    axes.invert_yaxis()
    figure.savefig(args.out, dpi=150)
    print(scores)
    return scores


if __name__ == "__main__":
    main()
