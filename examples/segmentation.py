"""Segment small discs in noise, where pixels without a label are left out.

    python examples/segmentation.py --steps 200 --out segmentation.png

A tenth of the pixels have no label, marked by 255 as in many data sets. A small convolutional
network is trained twice: with cross-entropy alone, and with the Dice loss beside it, by which a
small disc weighs as much as the large background. Both leave out the pixels without a label. The
picture has an image, its labels, and what each network finds, with the overlap over 32 images.
Data as even as this does not need the Dice loss: both find about as much.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from matplotlib.figure import Figure

import jaxloss

IGNORED, SIZE = 255, 32
OPTIMIZER = optax.adam(1e-2)
CROSS_ENTROPY = jaxloss.Loss(jaxloss.sigmoid_binary_cross_entropy)
DICE = jaxloss.Loss(jaxloss.binary_dice_loss)


def images(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a disc in each, and labels of which some are missing."""
    centre, radius = rng.uniform(8, 24, (n, 2, 1, 1)), rng.uniform(2, 4, (n, 1, 1))
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < radius**2
    noisy = disc + rng.normal(size=disc.shape) * 0.7
    labels = np.where(rng.uniform(size=disc.shape) < 0.1, IGNORED, disc)
    return noisy[..., None].astype(np.float32), labels


def forward(params: list[Array], x: Any) -> Array:
    for i, kernel in enumerate(params):
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x) if i + 1 < len(params) else x - 2.0
    return x[..., 0]


def objective(params: list[Array], x: Any, labels: Any, dice: float) -> Array:
    logits, where = forward(params, x), labels != IGNORED
    targets = jnp.where(where, labels, 0).astype(jnp.float32)
    loss = CROSS_ENTROPY(logits, targets, where=where)
    return loss + dice * DICE(logits, targets, where=where)


@jax.jit
def step(params, state, x, labels, dice):
    value, gradient = jax.value_and_grad(objective)(params, x, labels, dice)
    updates, state = OPTIMIZER.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


def train(steps: int, dice: float) -> list[Array]:
    rng = np.random.default_rng(0)
    shapes = (5, 5, 1, 8), (5, 5, 8, 8), (1, 1, 8, 1)
    params = [
        jnp.asarray(rng.normal(size=s) / np.sqrt(np.prod(s[:3])), jnp.float32) for s in shapes
    ]
    state = OPTIMIZER.init(params)
    for _ in range(steps):
        params, state, _ = step(params, state, *images(rng, 16), dice)
    return params


def overlap(params: list[Array], x: np.ndarray, labels: np.ndarray) -> float:
    """Intersection over union with the disc, of the pixels that have labels."""
    found, there = np.asarray(forward(params, x) > 0) & (labels != IGNORED), labels == 1
    return float((found & there).sum() / (found | there).sum())


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Segmentation with ignored pixels.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="segmentation.png")
    args = parser.parse_args(argv)
    x, labels = images(np.random.default_rng(1), 32)
    trained = {
        name: train(args.steps, dice) for name, dice in (("cross-entropy", 0.0), ("with Dice", 1.0))
    }
    scores = {name: overlap(params, x, labels) for name, params in trained.items()}
    shown = {"image": x[0, ..., 0], "labels": np.where(labels[0] == IGNORED, 0.5, labels[0])}
    shown |= {name: jax.nn.sigmoid(forward(p, x[:1]))[0] for name, p in trained.items()}
    figure = Figure(figsize=(8, 2.4), layout="constrained")
    for axes, (name, picture) in zip(figure.subplots(1, 4), shown.items(), strict=True):
        axes.imshow(picture, cmap="gray")
        axes.set_title(f"{name} {scores[name]:.2f}" if name in scores else name, fontsize=9)
        axes.set_axis_off()
    figure.savefig(args.out, dpi=150)
    print(scores)
    return scores


if __name__ == "__main__":
    main()
