"""Read a sequence without an alignment: CTC learns which frames belong to which label.

    python examples/ctc.py --steps 300 --out ctc.png

Every utterance has 24 frames and 2 to 5 labels. Nobody says where a label is: a label lasts for a
few frames, with noise and silence between. The picture has the probability of each label, frame
by frame, for one utterance; the blank is label 0.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxloss

FRAMES, LONGEST, CLASSES, FEATURES = 24, 5, 5, 8
OPTIMIZER = optax.adam(1e-2)
LOSS = jaxloss.Loss(jaxloss.ctc_loss)
SOUNDS = np.random.default_rng(7).normal(size=(CLASSES, FEATURES))


def utterances(rng: np.random.Generator, n: int):
    """Frames, their paddings, labels, their paddings."""
    x = rng.normal(size=(n, FRAMES, FEATURES)) * 0.5
    labels = np.zeros((n, LONGEST), np.int32)
    lengths = rng.integers(2, LONGEST + 1, n)
    for i, length in enumerate(lengths):
        labels[i, :length] = rng.integers(1, CLASSES, length)
        starts = 4 * np.arange(length) + rng.integers(0, 2, length)
        for start, label in zip(starts, labels[i], strict=False):
            x[i, start : start + rng.integers(2, 4)] += SOUNDS[label]
    paddings = (np.arange(LONGEST) >= lengths[:, None]).astype(np.float32)
    return x.astype(np.float32), np.zeros((n, FRAMES), np.float32), labels, paddings


def forward(params, x):
    return jnp.tanh(x @ params["hidden"] + params["bias"]) @ params["out"]


@jax.jit
def step(params, state, x, x_paddings, labels, label_paddings):
    def objective(params):
        return LOSS(forward(params, x), x_paddings, labels, label_paddings)

    value, gradient = jax.value_and_grad(objective)(params)
    updates, state = OPTIMIZER.update(gradient, state)
    return optax.apply_updates(params, updates), state, value


def read(params, x) -> list[list[int]]:
    """The best label of each frame, without repetitions and blanks."""
    best = np.asarray(jnp.argmax(forward(params, x), -1))
    kept = (best != 0) & (best != np.pad(best, ((0, 0), (1, 0)))[:, :-1])
    return [row[keep].tolist() for row, keep in zip(best, kept, strict=True)]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="CTC on sequences without an alignment.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="ctc.png")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    params = {
        "hidden": jnp.asarray(rng.normal(size=(FEATURES, 32)), jnp.float32) / 3,
        "bias": jnp.asarray(rng.normal(size=32), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(32, CLASSES)), jnp.float32) / 6,
    }
    state, losses = OPTIMIZER.init(params), []
    for _ in range(args.steps):
        params, state, value = step(params, state, *utterances(rng, 32))
        losses.append(float(value))
    x, _, labels, paddings = utterances(np.random.default_rng(1), 200)
    truth = [row[pad == 0].tolist() for row, pad in zip(labels, paddings, strict=True)]
    right = float(np.mean([a == b for a, b in zip(read(params, x), truth, strict=True)]))

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    for label, row in enumerate(np.asarray(jax.nn.softmax(forward(params, x[0]))).T):
        axes.plot(
            row, label="blank" if label == 0 else f"label {label}", ls=":" if label == 0 else "-"
        )
    axes.set(xlabel="frame", ylabel="probability", title=f"labels {truth[0]}")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(args.out, dpi=150)
    result = {"first": losses[0], "last": losses[-1], "right": right}
    print(result)
    return result


if __name__ == "__main__":
    main()
