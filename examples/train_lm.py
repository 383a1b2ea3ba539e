"""Train a small language model on Python's own library, without ever holding its logits.

    python examples/train_lm.py --steps 150 --out lm.png

The text is the source of the standard library, cut into a vocabulary of 32,000 byte pairs; the
model is a small causal transformer whose embeddings are also its last layer. One training step
is compiled twice, with optax's loss of all logits and with `jaxloss.linear_cross_entropy`, and
compared in memory and time; then the model is trained with the latter.
"""

import argparse
import sysconfig
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from matplotlib.figure import Figure
from rich import print
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import jaxloss

HEADS = 4
BLUE, RED = "#1f6fb4", "#c8372d"


def fused(hidden: Array, embedding: Array, labels: Array) -> Array:
    return jaxloss.linear_cross_entropy(hidden, embedding, labels, vocab_first=True)


def plain(hidden: Array, embedding: Array, labels: Array) -> Array:
    logits = hidden @ embedding.T
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


LOSSES: dict[str, Callable[..., Array]] = {"plain": plain, "jaxloss": fused}


class Block(nnx.Module):
    def __init__(self, features: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(HEADS, features, decode=False, rngs=rngs)
        self.up = nnx.Linear(features, 4 * features, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        mask = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class Transformer(nnx.Module):
    """From tokens to what the last layer takes, not to its logits."""

    def __init__(self, vocab: int, length: int, features: int, layers: int, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.tokens = nnx.Embed(vocab, features, embedding_init=small, rngs=rngs)
        self.places = nnx.Embed(length, features, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(features, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(features, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        x = self.tokens(tokens) + self.places(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def library(megabytes: float) -> list[str]:
    """Files of Python's library but for its tests, in an order that mixes its packages."""
    root, files, size = Path(sysconfig.get_path("stdlib")), [], 0
    skip = {"site-packages", "dist-packages", "test", "tests", "encodings", "idlelib"}
    paths = sorted(path for path in root.rglob("*.py") if not skip & set(path.parts))
    for i in np.random.default_rng(0).permutation(len(paths)):
        files.append(paths[i].read_text("utf-8", errors="replace"))
        size += len(files[-1])
        if size > megabytes * 1e6:
            break
    return files


def byte_pairs(files: Sequence[str], vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(files, trainer)
    return tokenizer


def stream(tokenizer: Tokenizer, files: Sequence[str]) -> np.ndarray:
    """The tokens of all files, each followed by the one that ends it."""
    end = tokenizer.token_to_id("<end>")
    return np.concatenate([[*text.ids, end] for text in tokenizer.encode_batch(files)])


def batches(tokens: np.ndarray, count: int, size: int, length: int) -> np.ndarray:
    """Random windows, each one longer than the model sees: inputs and labels overlap."""
    starts = np.random.default_rng(0).integers(len(tokens) - length, size=(count, size))
    return tokens[starts[..., None] + np.arange(length + 1)].astype(np.int32)


class Training(NamedTuple):
    """A training step as a function of parameters, the optimizer's state and a batch."""

    graph: Any
    optimizer: optax.GradientTransformation
    loss: Callable[..., Array]

    def value(self, params: Any, batch: Array) -> Array:
        model = nnx.merge(self.graph, params)
        return self.loss(model(batch[:, :-1]), model.tokens.embedding[...], batch[:, 1:])

    def step(self, params: Any, state: Any, batch: Array) -> tuple[Any, Any, Array]:
        value, gradients = jax.value_and_grad(self.value)(params, batch)
        updates, state = self.optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value


class Cost(NamedTuple):
    megabytes: float  # temporary, by the compiler's account
    seconds: float  # of one step, the median
    loss: float  # of the first step


def compare(steps: dict[str, Any], args: tuple[Any, ...], rounds: int) -> dict[str, Cost]:
    """Time the compiled steps in turn, so that whatever else the machine does meets both."""
    seconds = {name: [] for name in steps}
    losses = {}
    for _ in track(range(rounds + 1), description="comparing the two losses"):
        for name, step in steps.items():
            start = time.perf_counter()
            *_, value = jax.block_until_ready(step(*args))
            seconds[name].append(time.perf_counter() - start)
            losses[name] = float(value)
    return {
        name: Cost(
            step.memory_analysis().temp_size_in_bytes / 1e6,
            float(np.median(seconds[name][1:])),  # The first round warms up.
            losses[name],
        )
        for name, step in steps.items()
    }


def draw(losses: np.ndarray, held_out: dict[int, float], vocab: int, out: str) -> None:
    # A figure of its own, without pyplot, needs no display.
    fig = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    ax = fig.subplots()
    ax.plot(np.arange(1, len(losses) + 1), losses, color=BLUE, lw=1.2, label="training batches")
    ax.plot(
        *zip(*held_out.items(), strict=True), "o-", color=RED, lw=1, ms=4, label="held-out files"
    )
    ax.axhline(np.log(vocab), color="0.4", ls=":", lw=1.2, label=f"guessing: log {vocab:,}")
    ax.set(
        title="A small transformer on the source of Python's library",
        xlabel="training step",
        ylabel="cross-entropy (nats per token)",
        xlim=(0, None),
    )
    ax.legend(frameon=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a small language model without holding its logits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=150, help="training steps")
    parser.add_argument("--vocab", type=int, default=32_000, help="byte pairs to cut text into")
    parser.add_argument("--megabytes", type=float, default=6, help="how much text to read")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens in a sequence")
    parser.add_argument("--features", type=int, default=128, help="of a token")
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks")
    parser.add_argument("--rounds", type=int, default=5, help="steps to time of each loss")
    parser.add_argument("--out", default="lm.png", help="where to save the picture")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args, console = parse(argv), Console()
    with console.status("cutting the text into byte pairs"):
        files = library(args.megabytes)
        tokenizer = byte_pairs(files, args.vocab)
        few = max(len(files) // 20, 1)
        test, text = stream(tokenizer, files[:few]), stream(tokenizer, files[few:])
    vocab = tokenizer.get_vocab_size()
    print(f"{len(files)} files, {len(text):,} tokens to train on, {vocab:,} byte pairs")

    sizes = vocab, args.length, args.features, args.layers
    graph, params = nnx.split(nnx.jit(lambda: Transformer(*sizes, nnx.Rngs(0)))())
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, max(args.steps // 10, 1), args.steps)
    optimizer = optax.adamw(schedule)
    state = optimizer.init(params)
    size = args.batch, args.length
    data, unseen = batches(text, args.steps, *size), jnp.asarray(batches(test, 2, *size))

    trainings = {name: Training(graph, optimizer, loss) for name, loss in LOSSES.items()}
    first = params, state, jnp.asarray(data[0])
    steps = {
        name: jax.jit(training.step).lower(*first).compile() for name, training in trainings.items()
    }
    costs = compare(steps, first, args.rounds)
    table = Table(title=f"One training step, {args.batch * args.length:,} tokens x {vocab:,}")
    for column in ("loss", "temporary memory", "time", "first value"):
        table.add_column(column, justify="right")
    for name, cost in costs.items():
        row = f"{cost.megabytes:,.1f} MB", f"{1e3 * cost.seconds:,.0f} ms", f"{cost.loss:.6f}"
        table.add_row(name, *row)
    print(table)

    evaluate = jax.jit(
        lambda p: jnp.mean(jax.lax.map(partial(trainings["jaxloss"].value, p), unseen))
    )
    losses, held_out = [], {0: float(evaluate(params))}
    every = max(args.steps // 20, 1)
    for i, batch in enumerate(track(data, description="training"), 1):
        params, state, value = steps["jaxloss"](params, state, jnp.asarray(batch))
        losses.append(float(value))
        if i % every == 0 or i == args.steps:
            held_out[i] = float(evaluate(params))
    draw(np.array(losses), held_out, vocab, args.out)
    print(f"held-out loss {held_out[0]:.3f} to {held_out[args.steps]:.3f}; picture: {args.out}")
    return {"costs": costs, "losses": losses, "held_out": held_out, "vocab": vocab}


if __name__ == "__main__":
    main()
