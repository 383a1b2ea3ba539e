"""Teach a small language model to sort digits: badly by examples, then better by rewards and pairs.

    python examples/post_training.py --steps 100 --out post_training.png

A prompt is a few digits, a response the same digits in order. A small transformer is first trained,
for too short a time, on right responses. From there it is improved twice, each time with the
trained one as its reference: by GRPO, from the rewards of its own responses, which a program
checks (`clipped_surrogate_loss`, `group_advantages`, and `kl_estimate` as a penalty); and by DPO,
from pairs of a right and a wrong response of the first model (`dpo_loss`). The picture has reward
and divergence from the reference over the steps, the table what it was before and is after.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax
from matplotlib.figure import Figure
from rich import print
from rich.progress import Progress, TextColumn
from rich.table import Table

import jaxloss

END = 10  # The token between a prompt and its response.
HEADS, GROUP = 4, 8
BLUE, RED = "#1f6fb4", "#c8372d"

surrogate = jaxloss.Loss(jaxloss.clipped_surrogate_loss, "sequence_mean")
penalty = jaxloss.Loss(jaxloss.kl_estimate, "sequence_mean")
divergence = jaxloss.Loss(jaxloss.kl_estimate, "sequence_sum")
preference = jaxloss.Loss(jaxloss.dpo_loss, beta=1.0)


class Block(nnx.Module):
    def __init__(self, features: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(HEADS, features, decode=False, rngs=rngs)
        self.up = nnx.Linear(features, 4 * features, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x: Array, mask: Array) -> Array:
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    def __init__(self, length: int, features: int, layers: int, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(END + 1, features, rngs=rngs)
        self.places = nnx.Embed(length, features, rngs=rngs)
        self.blocks = nnx.List([Block(features, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)
        self.out = nnx.Linear(features, END, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        """Logits of the digit after each token."""
        x = self.tokens(tokens) + self.places(jnp.arange(tokens.shape[1]))
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.out(self.norm(x))


class Policy(NamedTuple):
    """The model as functions of its parameters."""

    graph: Any
    digits: int

    def prompts(self, key: Array, count: int) -> Array:
        return jax.random.randint(key, (count, self.digits), 0, END)

    def log_probs(self, params: Any, tokens: Array) -> Array:
        """Of the tokens of the responses."""
        logits = nnx.merge(self.graph, params)(tokens[:, :-1])[:, self.digits :]
        labels = tokens[:, self.digits + 1 :]
        return -jaxloss.softmax_cross_entropy_with_integer_labels(logits, labels)

    def responses(self, params: Any, prompts: Array, key: Array) -> Array:
        """Prompts with sampled responses."""
        model, n = nnx.merge(self.graph, params), self.digits

        def one_more(i: Array, tokens: Array) -> Array:
            logits = model(tokens)[:, i]
            digits = jax.random.categorical(jax.random.fold_in(key, i), logits)
            return tokens.at[:, i + 1].set(digits)

        tokens = jnp.pad(prompts, ((0, 0), (0, n + 1))).at[:, n].set(END)
        return lax.fori_loop(n, 2 * n, one_more, tokens)


def rewards_of(tokens: Array) -> Array:
    """1 for the digits in order, else 0."""
    n = tokens.shape[1] // 2
    in_order = jnp.sort(tokens[:, :n], -1)
    return jnp.all(tokens[:, n + 1 :] == in_order, -1).astype(jnp.float32)


def answered(prompts: Array) -> Array:
    """Prompts with their right responses."""
    ends = jnp.full((len(prompts), 1), END)
    return jnp.concatenate([prompts, ends, jnp.sort(prompts, -1)], -1)


Step = Callable[[Any, Any, Array], tuple[Any, Any]]


def updating(
    objective: Callable[..., Array], optimizer: optax.GradientTransformation
) -> Callable[..., tuple[Any, Any]]:
    def update(params: Any, state: Any, *batch: Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(objective)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    return update


def pretraining(policy: Policy, optimizer: Any, prompts: int) -> Step:
    def objective(params: Any, tokens: Array) -> Array:
        return -policy.log_probs(params, tokens).mean()

    update = updating(objective, optimizer)
    return lambda params, state, key: update(
        params, state, answered(policy.prompts(key, prompts * GROUP))
    )


def grpo(policy: Policy, reference: Any, optimizer: Any, prompts: int) -> Step:
    """A group of responses to each prompt, and two updates from their rewards."""

    def objective(params: Any, tokens: Array, old: Array, advantages: Array) -> Array:
        new = policy.log_probs(params, tokens)
        kl = penalty(new, lax.stop_gradient(policy.log_probs(reference, tokens)))
        return surrogate(new, old, advantages) + 0.02 * kl

    update = updating(objective, optimizer)

    def step(params: Any, state: Any, key: Array) -> tuple[Any, Any]:
        asked, sampled = jax.random.split(key)
        repeated = jnp.repeat(policy.prompts(asked, prompts), GROUP, 0)
        tokens = policy.responses(params, repeated, sampled)
        advantages = jaxloss.group_advantages(rewards_of(tokens).reshape(-1, GROUP)).ravel()
        old = policy.log_probs(params, tokens)

        def again(_: Array, both: tuple[Any, Any]) -> tuple[Any, Any]:
            return update(*both, tokens, old, advantages)

        return lax.fori_loop(0, 2, again, (params, state))

    return step


def dpo(policy: Policy, reference: Any, optimizer: Any, pairs: Array, size: int) -> Step:
    """Pairs of right and wrong responses, [pairs, 2, tokens], some of them at a time."""

    def objective(params: Any, batch: Array) -> Array:
        def totals(params: Any) -> Array:
            of_both = policy.log_probs(params, batch.reshape(-1, batch.shape[-1])).sum(-1)
            return of_both.reshape(-1, 2).T

        return preference(*totals(params), *lax.stop_gradient(totals(reference)))

    update = updating(objective, optimizer)

    def step(params: Any, state: Any, key: Array) -> tuple[Any, Any]:
        return update(params, state, pairs[jax.random.randint(key, (size,), 0, len(pairs))])

    return step


def pairs_of(policy: Policy, params: Any, prompts: int) -> Array:
    """A right and a wrong response to each prompt to which the model had both."""
    asked, sampled = jax.random.split(jax.random.key(2))
    repeated = jnp.repeat(policy.prompts(asked, prompts), GROUP, 0)
    tokens = jax.jit(policy.responses)(params, repeated, sampled)
    right = rewards_of(tokens).reshape(-1, GROUP)
    of_both = np.flatnonzero((right.max(1) == 1) & (right.min(1) == 0))
    ends = jnp.stack([right.argmax(1), right.argmin(1)], 1)[of_both]
    groups = tokens.reshape(-1, GROUP, tokens.shape[1])[of_both]
    return jnp.take_along_axis(groups, ends[..., None], 1)


class Scores(NamedTuple):
    reward: float
    kl: float  # from the reference, in nats a response


def evaluating(policy: Policy, reference: Any) -> Callable[[Any], Scores]:
    prompts = policy.prompts(jax.random.key(3), 512)

    @jax.jit
    def scores(params: Any) -> tuple[Array, Array]:
        tokens = policy.responses(params, prompts, jax.random.key(4))
        both = (policy.log_probs(p, tokens) for p in (params, reference))
        return rewards_of(tokens).mean(), divergence(*both)

    return lambda params: Scores(*map(float, scores(params)))


def training(
    name: str, step: Step, optimizer: Any, params: Any, steps: int, evaluate: Any = None
) -> tuple[Any, dict[int, Scores]]:
    """Parameters after the steps, and scores on the way."""
    state, run = optimizer.init(params), jax.jit(step)
    scores = {} if evaluate is None else {0: evaluate(params)}
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[log]}")) as progress:
        bar = progress.add_task(f"{name:<11}", total=steps, log="")
        for i in range(1, steps + 1):
            params, state = run(params, state, jax.random.fold_in(jax.random.key(1), i))
            progress.advance(bar)
            if evaluate is not None and (i % max(steps // 10, 1) == 0 or i == steps):
                scores[i] = evaluate(params)
                progress.update(bar, log=f"reward {scores[i].reward:.1%}, KL {scores[i].kl:.3f}")
    return params, scores


def draw(runs: dict[str, dict[int, Scores]], out: str) -> None:
    # A figure of its own, without pyplot, needs no display.
    fig = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    fig.suptitle("A small transformer that sorts digits, after a short pre-training")
    labels = {"reward": "responses that are right", "kl": "KL from the reference (nats a response)"}
    for ax, (field, label) in zip(fig.subplots(1, 2), labels.items(), strict=True):
        for (name, scores), color, mark in zip(runs.items(), (BLUE, RED), "os", strict=True):
            values = [getattr(score, field) for score in scores.values()]
            ax.plot([*scores], values, f"{mark}-", color=color, ms=4, lw=1.5, label=name)
        ax.set(xlabel="training step", ylabel=label, xlim=(0, None), ylim=(0, None))
        ax.legend(frameon=False)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Improve a small language model by GRPO and by DPO.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--digits", type=int, default=6, help="of a prompt")
    parser.add_argument("--pretraining", type=int, default=50, help="steps of the first model")
    parser.add_argument("--steps", type=int, default=100, help="steps of GRPO, and of DPO")
    parser.add_argument("--prompts", type=int, default=32, help="in a batch")
    parser.add_argument("--pairs", type=int, default=2000, help="prompts to make pairs of")
    parser.add_argument("--features", type=int, default=64, help="of a token")
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks")
    parser.add_argument("--out", default="post_training.png", help="where to save the picture")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse(argv)
    sizes = 2 * args.digits + 1, args.features, args.layers
    graph, params = nnx.split(nnx.jit(lambda: Transformer(*sizes, nnx.Rngs(0)))())
    policy = Policy(graph, args.digits)
    adam = optax.adam(1e-3)
    step = pretraining(policy, adam, args.prompts)
    first, _ = training("examples", step, adam, params, args.pretraining)

    evaluate, slow = evaluating(policy, first), optax.adam(3e-4)
    pairs = pairs_of(policy, first, args.pairs)
    steps = {
        "GRPO": grpo(policy, first, slow, args.prompts),
        "DPO": dpo(policy, first, slow, pairs, args.prompts * GROUP // 2),
    }
    runs = {
        name: training(name, step, slow, first, args.steps, evaluate)[1]
        for name, step in steps.items()
    }
    draw(runs, args.out)
    table = Table(title=f"{args.digits} digits in order")
    for column in ("", "reward", "KL from the first"):
        table.add_column(column, justify="right")
    before, *after = (runs["GRPO"][0], *(scores[args.steps] for scores in runs.values()))
    for name, score in zip(("before", *runs), (before, *after), strict=True):
        table.add_row(name, f"{score.reward:.1%}", f"{score.kl:.3f}")
    print(table)
    print(f"DPO from {len(pairs)} pairs; picture: {args.out}")
    return {"runs": runs, "pairs": len(pairs)}


if __name__ == "__main__":
    main()
