"""Fit a logistic regression by Newton's method: the Hessian is right also where labels are certain.

    python examples/hessian.py --steps 12 --out hessian.png

Every rule of a loss can be differentiated again, so `jax.hessian` is exact. Newton's method needs
some ten steps where gradient descent needs thousands; the picture has the size of the gradient
after each. The data, breast cancer, comes with scikit-learn.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

import jaxloss

LOSS = jaxloss.Loss(jaxloss.sigmoid_binary_cross_entropy)
DECAY = 1e-3


def main(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description="Newton's method with the Hessian of a loss.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", default="hessian.png")
    args = parser.parse_args(argv)
    x, y = load_breast_cancer(return_X_y=True)
    x = np.pad(StandardScaler().fit_transform(x), ((0, 0), (0, 1)), constant_values=1.0)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y)

    def objective(weight):
        return LOSS(x @ weight, y) + DECAY * jnp.sum(weight**2)

    slope = jax.grad(objective)

    @jax.jit
    def newton(weight):
        return weight - jnp.linalg.solve(jax.hessian(objective)(weight), slope(weight))

    @jax.jit
    def descent(weight):
        return weight - slope(weight)

    sizes: dict[str, list[float]] = {}
    for name, step in (("Newton", newton), ("gradient descent", descent)):
        weight = jnp.zeros(x.shape[1])
        sizes[name] = [float(jnp.linalg.norm(slope(weight)))]
        for _ in range(args.steps):
            weight = step(weight)
            sizes[name].append(float(jnp.linalg.norm(slope(weight))))

    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axes = figure.subplots()
    for name, curve in sizes.items():
        axes.semilogy(curve, "o-", ms=3, label=name)
    axes.set(xlabel="step", ylabel="size of the gradient")
    axes.legend(frameon=False)
    figure.savefig(args.out, dpi=150)
    print({name: curve[-1] for name, curve in sizes.items()})
    return sizes


if __name__ == "__main__":
    main()
