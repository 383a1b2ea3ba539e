"""Learn which pairs belong together, with the batch spread over devices.

    python examples/contrastive.py --out contrastive.png

Two views of the same hidden thing, as an image and its caption, go through two encoders; InfoNCE
pulls the embeddings of a pair together and pushes all others apart. Under `shard_map` each device
has its own part of the batch, and `axis_name` lets its rows meet those of all the others, so the
loss is that of the whole batch. On a CPU, `XLA_FLAGS=--xla_force_host_platform_device_count=4`
makes four devices of one. The picture has the similarity of the pairs after training.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from matplotlib.figure import Figure

import jaxloss

HIDDEN, VIEW, SIZE = 8, 32, 16
OPTIMIZER = optax.adam(1e-2)
WHOLE = jaxloss.Loss(jaxloss.info_nce, temperature=0.1)
SPLIT = jaxloss.Loss(jaxloss.info_nce, temperature=0.1, axis_name="batch")
MIX = np.random.default_rng(7).normal(size=(2, HIDDEN, VIEW))


def pairs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    hidden = rng.normal(size=(n, HIDDEN))
    views = np.tanh(hidden @ MIX) + 0.1 * rng.normal(size=(2, n, VIEW))
    return views[0].astype(np.float32), views[1].astype(np.float32)


def objective(params, x, y, loss):
    return loss(x @ params["left"], y @ params["right"])


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description="Contrastive pairs over devices.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="contrastive.png")
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    names = "left", "right"
    params = {name: jnp.asarray(rng.normal(size=(VIEW, SIZE)) / 6, jnp.float32) for name in names}
    state = OPTIMIZER.init(params)
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=automatic)

    def share(params, x, y):
        # Each device returns its share; the shares add up to the mean.
        return jax.lax.psum(objective(params, x, y, SPLIT), "batch")

    split = jax.shard_map(share, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P())

    @jax.jit
    def step(params, state, x, y):
        value, gradient = jax.value_and_grad(split)(params, x, y)
        updates, state = OPTIMIZER.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    x, y = pairs(rng, 64)
    difference = abs(float(split(params, x, y) - objective(params, x, y, WHOLE)))
    for _ in range(args.steps):
        params, state, _ = step(params, state, *pairs(rng, 64))
    x, y = pairs(np.random.default_rng(1), 64)
    left, right = x @ params["left"], y @ params["right"]
    similar = np.asarray(jaxloss.cosine_similarity(left[:, None], right[None]))
    found = float(np.mean(similar.argmax(1) == np.arange(64)))

    figure = Figure(figsize=(3.6, 3), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(similar, vmin=-1, vmax=1, cmap="RdBu")
    axes.set(xlabel="second view", ylabel="first view", title="cosine similarity")
    figure.colorbar(image)
    figure.savefig(args.out, dpi=150)
    result = {"devices": jax.device_count(), "difference": difference, "found": found}
    print(result)
    return result


if __name__ == "__main__":
    main()
