"""Train a small language model on Python's own library, without ever holding its logits.

    python examples/train_lm.py --steps 150 --microbatches 2 --out lm.png

The text is the source of the standard library, cut into a vocabulary of 32,000 byte pairs; the
model is a small causal transformer whose embeddings are also its last layer. A row packs several
files, which do not see each other. The loss has two terms, cross-entropy and z-loss, and comes,
with perplexity and accuracy, from one sweep of `jaxloss.linear_statistics`;
`jaxloss.value_and_grad` runs it in microbatches, whose numbers of tokens differ. One training
step is compiled twice, with optax's loss of all logits of a microbatch and with this one, and
compared in memory and time; then the model is trained with the latter.
"""

import argparse
import sysconfig
import time
from collections.abc import Callable, Sequence
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
from rich.progress import Progress, TextColumn, track
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import jaxloss

Terms = dict[str, jaxloss.Mean]

HEADS = 4
END = 0  # The token that ends a file.
WEIGHTS = {"z_loss": 1e-4}
BLUE, RED = "#1f6fb4", "#c8372d"


def fused(
    hidden: Array, embedding: Array, labels: Array, where: Array, chunk: int | None
) -> tuple[Terms, Terms]:
    """Terms of the loss, and metrics, from statistics of logits that never exist at once."""
    sweep = jaxloss.linear_statistics(
        hidden, embedding, labels, vocab_first=True, where=where, chunk_size=chunk
    )
    terms = {
        "cross_entropy": jaxloss.Mean.of(-sweep.log_prob, where=where),
        "z_loss": jaxloss.Mean.of(sweep.logsumexp**2, where=where),
    }
    return terms, jaxloss.classification_metrics(sweep, labels, where=where)


def plain(
    hidden: Array, embedding: Array, labels: Array, where: Array, chunk: int | None
) -> tuple[Terms, Terms]:
    logits = hidden @ embedding.T
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    terms = {
        "cross_entropy": jaxloss.Mean.of(losses, where=where),
        "z_loss": jaxloss.Mean.of(jax.nn.logsumexp(logits, -1) ** 2, where=where),
    }
    return terms, {}


LOSSES: dict[str, Callable[..., tuple[Terms, Terms]]] = {"plain": plain, "jaxloss": fused}


class Block(nnx.Module):
    def __init__(self, features: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(HEADS, features, decode=False, rngs=rngs)
        self.up = nnx.Linear(features, 4 * features, rngs=rngs)
        self.down = nnx.Linear(4 * features, features, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None) -> Array:
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
        ended = jnp.cumsum(tokens == END, -1)
        file = ended - (tokens == END)
        same = nnx.make_attention_mask(file, file, jnp.equal)
        mask = nnx.combine_masks(nnx.make_causal_mask(tokens), same)
        for block in self.blocks:
            x = block(x, mask)
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
    assert tokenizer.token_to_id("<end>") == END
    return np.concatenate([[*text.ids, END] for text in tokenizer.encode_batch(files)])


def batches(tokens: np.ndarray, count: int, size: int, length: int) -> np.ndarray:
    """Random windows, each one longer than the model sees: inputs and labels overlap."""
    starts = np.random.default_rng(0).integers(len(tokens) - length, size=(count, size))
    return tokens[starts[..., None] + np.arange(length + 1)].astype(np.int32)


class Training(NamedTuple):
    """A training step as a function of parameters, the optimizer's state and a batch."""

    graph: Any
    optimizer: optax.GradientTransformation
    loss: Callable[..., tuple[Terms, Terms]]
    microbatches: int
    chunk: int | None  # of tokens

    def objective(self, params: Any, batch: Array) -> tuple[Terms, Terms]:
        model = nnx.merge(self.graph, params)
        tokens, labels = batch[:, :-1], batch[:, 1:]
        # How a file begins cannot be told from the one before.
        operands = model(tokens), model.tokens.embedding[...], labels, tokens != END
        return self.loss(*operands, self.chunk)

    def step(self, params: Any, state: Any, batch: Array) -> tuple[Any, Any, Array, Terms]:
        whole = jaxloss.value_and_grad(
            self.objective, weights=WEIGHTS, microbatches=self.microbatches, has_aux=True
        )
        (value, (_, metrics)), gradients = whole(params, batch)
        updates, state = self.optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, metrics


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
            _, _, value, _ = jax.block_until_ready(step(*args))
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


def totals(means: Sequence[Terms]) -> dict[str, float]:
    """The values of metrics over several steps: the Means add up, and are divided here."""
    first, *rest = means
    return {name: float(sum((m[name] for m in rest), mean).value) for name, mean in first.items()}


def draw(logged: dict[str, np.ndarray], held_out: dict[int, Any], vocab: int, out: str) -> None:
    # A figure of its own, without pyplot, needs no display.
    fig = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    fig.suptitle("A small transformer on the source of Python's library")
    units = {"loss": "cross-entropy (nats per token)", "accuracy": "accuracy (of the next token)"}
    for ax, (name, unit) in zip(fig.subplots(1, 2), units.items(), strict=True):
        steps = np.arange(1, len(logged[name]) + 1)
        ax.plot(steps, logged[name], color=BLUE, lw=1.2, label="training batches")
        unseen = [metrics[name] for metrics in held_out.values()]
        ax.plot([*held_out], unseen, "o-", color=RED, lw=1, ms=4, label="held-out files")
        if name == "loss":
            guess = f"guessing: log {vocab:,}"
            ax.axhline(np.log(vocab), color="0.4", ls=":", lw=1.2, label=guess)
        ax.set(xlabel="training step", ylabel=unit, xlim=(0, None))
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
    parser.add_argument("--microbatches", type=int, default=2, help="parts of a batch")
    parser.add_argument("--chunk", type=int, help="tokens with logits at once, None for jaxloss's")
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

    trainings = {
        name: Training(graph, optimizer, loss, args.microbatches, args.chunk)
        for name, loss in LOSSES.items()
    }
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

    of_batch = trainings["jaxloss"].objective
    evaluate = jax.jit(lambda p: [of_batch(p, batch)[1] for batch in unseen])
    logged, held_out = [], {0: totals(evaluate(params))}
    every = max(args.steps // 20, 1)
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[log]}")) as progress:
        bar = progress.add_task("training", total=args.steps, log="")
        for i, batch in enumerate(data, 1):
            params, state, _, metrics = steps["jaxloss"](params, state, jnp.asarray(batch))
            logged.append(metrics)
            progress.advance(bar)
            if i % every == 0 or i == args.steps:
                held_out[i] = totals(evaluate(params))
                now = totals(logged[-every:])
                log = f"perplexity {now['perplexity']:,.1f}, accuracy {now['accuracy']:.1%}"
                progress.update(bar, log=log)
    curves = {name: np.array([float(m[name].value) for m in logged]) for name in logged[0]}
    draw(curves, held_out, vocab, args.out)
    table = Table(title="Held-out files")
    for column in ("step", "loss", "perplexity", "accuracy"):
        table.add_column(column, justify="right")
    for i in (0, args.steps):
        of = held_out[i]
        row = f"{of['loss']:.3f}", f"{of['perplexity']:,.1f}", f"{of['accuracy']:.1%}"
        table.add_row(str(i), *row)
    print(table)
    print(f"picture: {args.out}")
    return {"costs": costs, "logged": curves, "held_out": held_out, "vocab": vocab}


if __name__ == "__main__":
    main()
