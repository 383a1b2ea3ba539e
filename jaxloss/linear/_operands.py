"""The linear losses' arguments, checked and converted, and their default sizes of chunks."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxloss._core import checks, inputs
from jaxloss._core.mapped import varying
from jaxloss._core.reduce import count, per_example
from jaxloss._core.split import ClassAxis, Split
from jaxloss._mean import Mean
from jaxloss.linear._formulas import LinearStatistics, TokenStatistics
from jaxloss.linear._head import Head
from jaxloss.linear._targets import ABSENT, WeightedLabels, heaviest

AxisName = str | tuple[str, ...] | None

# What a chunk's logits and their gradients may take, in bytes.
_CHUNK_BYTES = 128 * 2**20
# With fewer tokens (or fewer than the layer has features) the matmuls of a chunk would wait for the
# weight and its gradient, which every chunk reads and writes: 8 bytes for 2 * tokens flops, where a
# TPU v5e does 240 flops a byte and an H100 295.
_MIN_TOKENS = 1024
# The gradients of this many tokens' logits are stored at once; the weight's gradient, accumulated
# over more of them, then costs little.
_GROUP_TOKENS = 8192


def head(
    hidden: ArrayLike, weight: ArrayLike, vocab_first: bool, axis_name: AxisName, prefix: str = ""
) -> Head:
    h_name, w_name = f"{prefix}hidden", f"{prefix}weight"
    h, w = checks.floating(h_name, hidden), checks.floating(w_name, weight)
    features = 1 if vocab_first else 0
    if w.ndim != 2 or h.ndim < 1 or h.shape[-1] != w.shape[features] or 0 in w.shape:
        order = "[V, D], as vocab_first=True says" if vocab_first else "[D, V]"
        hint = "" if vocab_first else "; for a weight of [V, D], say vocab_first=True"
        raise ValueError(
            f"{h_name} of shape {h.shape} do not match {w_name} of shape {w.shape}: expected "
            f"{h_name} of [..., D] and {w_name} of {order}{hint}"
        )
    check_split(w_name, w, axis_name, "vocabulary's")
    return Head(h, w)


def check_split(name: str, w: Array, axis_name: AxisName, of: str) -> None:
    """Whether what has one entry for each class is split over devices, as `axis_name` says."""
    names = {axis_name} if isinstance(axis_name, str) else set(axis_name or ())
    if not names <= varying(w):
        raise ValueError(
            f"with axis_name={axis_name!r}, {name} must be split over it: call the loss "
            f"inside shard_map, with check_vma=True, with the {of} axis of {name} "
            f"in its in_specs; here it differs over {sorted(varying(w)) or 'no axis'}"
        )


def class_axis(axis_name: AxisName) -> ClassAxis:
    return 1 if axis_name is None else Split(1, axis_name)


def labels_of(
    labels: ArrayLike,
    shape: tuple[int, ...],
    classes: int,
    ignore_index: int | None = None,
    name: str = "hidden",
) -> Array:
    y = checks.integers("labels", labels, "soft labels need softmax_cross_entropy and its logits")
    if y.shape != shape:
        raise ValueError(
            f"labels of shape {y.shape} do not match {name} of shape {(*shape, 'D')}: expected "
            f"labels of shape {shape}"
        )
    return inputs.reported_labels(y, classes, ignore_index)


def targets_of(
    labels: ArrayLike,
    weights: ArrayLike | None,
    shape: tuple[int, ...],
    classes: int,
    dtype: DTypeLike,
    ignore_index: int | None,
) -> Array | WeightedLabels:
    if weights is None:
        return labels_of(labels, shape, classes, ignore_index)
    y = checks.integers("labels", labels, "their weights are label_weights")
    q = checks.numeric("label_weights", weights, dtype)
    if y.ndim != len(shape) + 1 or y.shape[:-1] != shape or q.shape != y.shape:
        raise ValueError(
            f"labels of shape {y.shape} and label_weights of shape {q.shape} do not match hidden "
            f"of shape {(*shape, 'D')}: expected K labels a token, both of shape {(*shape, 'K')}"
        )
    return WeightedLabels(inputs.reported_labels(y, classes, ignore_index), q)


def live_tokens(where: Array | None, labels: Any, ignore_index: int | None) -> Array | None:
    """The mask of tokens, without those that have no label but ignored ones."""
    if ignore_index is None or not isinstance(labels, WeightedLabels):
        return inputs.not_ignored(where, labels, ignore_index)
    kept = jnp.any(labels.labels != ignore_index, -1)
    return kept if where is None else where & kept


def of_tokens(
    name: str, x: ArrayLike | None, shape: tuple[int, ...], dtype: DTypeLike
) -> Array | None:
    if x is None:
        return None
    x = checks.boolean(name, x) if dtype == jnp.bool_ else checks.numeric(name, x, dtype)
    return per_example(name, x, shape)


def mean_of_tokens(total: Array, where: Array | None, shape: tuple[int, ...]) -> Mean:
    """The total over the tokens that are not masked, with their number."""
    return Mean(total, count(jax.ShapeDtypeStruct(shape, total.dtype), where))


def flatten_tokens(head: Head) -> Head:
    """With one axis of tokens."""
    return Head(head.hidden.reshape(-1, head.hidden.shape[-1]), head.weight)


def flatten(*each_token: Array | None) -> list[Any]:
    """With one axis of tokens, for what has one entry per token."""
    return [None if x is None else x.reshape(-1) for x in each_token]


def bias_of(
    bias: ArrayLike | None,
    class_where: ArrayLike | None,
    local_vocab: int,
    dtype: DTypeLike,
    name: str = "bias",
) -> Array | None:
    """The bias, which is -inf for a class that is excluded."""
    b = checks.of_classes(name, bias, "weight", local_vocab, dtype)
    live = checks.of_classes("class_where", class_where, "weight", local_vocab, jnp.bool_)
    return b if live is None else jnp.where(live, 0 if b is None else b, -jnp.inf).astype(dtype)


def softcap(cap: ArrayLike | None, dtype: DTypeLike, name: str = "logit_softcap") -> Array | None:
    return None if cap is None else checks.positive(name, cap, dtype)


def temperature(value: ArrayLike, dtype: DTypeLike) -> Array | None:
    if isinstance(value, (int, float)) and value == 1:
        return None
    return checks.positive("temperature", value, dtype)


def dead(
    live: Array | None,
    weights: Array | None,
    heads: tuple[Head, ...],
    labels: Any,
    classes: int,
    ignore_index: int | None = None,
) -> Array | None:
    """Tokens whose contents must not matter: masked, or of weight zero and without a loss."""
    masked = None if live is None else ~live
    if weights is None:
        return masked
    # The loss is also the derivative by a weight of zero, so it is kept where there is one.
    if isinstance(labels, WeightedLabels):
        bad = ((labels.labels < 0) | (labels.labels >= classes)) & (labels.labels != ignore_index)
        useless = jnp.any(bad, 1)
    else:
        useless = (labels < 0) | (labels >= classes)
    for head in heads:
        useless |= ~jnp.all(jnp.isfinite(head.hidden), 1)
    useless &= weights == 0
    return useless if masked is None else masked | useless


def without(
    dead: Array | None,
    heads: tuple[Head, ...],
    labels: Any,
    classes: int,
    ignore_index: int | None = None,
) -> tuple[tuple[Head, ...], Any]:
    """Replace the contents of dead tokens by harmless ones; invalid labels stay invalid."""
    several = isinstance(labels, WeightedLabels)
    given = labels.labels if several else labels
    # Not `jnp.clip(given, -1, classes)`: unsigned labels know no -1.
    y = jnp.where((given >= 0) & (given < classes), given, classes).astype(jnp.int32)
    if several and ignore_index is not None:
        y = jnp.where(given == ignore_index, ABSENT, y)
    if dead is None:
        return heads, labels._replace(labels=y) if several else y
    heads = tuple(Head(jnp.where(dead[:, None], 0, h), w) for h, w in heads)
    if several:
        return heads, WeightedLabels(*(jnp.where(dead[:, None], 0, x) for x in (y, labels.weights)))
    return heads, jnp.where(dead, 0, y)


def finished(
    columns: TokenStatistics, labels: Any, dead: Array | None, shape: tuple[int, ...]
) -> LinearStatistics:
    """What sweeps collected, as it is returned: 0 for dead tokens."""
    argmax = columns.argmax.astype(jnp.int32)
    out = LinearStatistics(*columns[:3], argmax, argmax == heaviest(labels))
    if dead is not None:
        out = jax.tree.map(lambda x: jnp.where(dead, jnp.zeros_like(x), x), out)
    return jax.tree.map(lambda x: x.reshape(shape), out)


def chunk_of_tokens(
    size: int | None, n: int, features: int, local_vocab: int, arrays: int = 2, share: int = 1
) -> int:
    """How many of `n` tokens to take at once.

    `arrays` of the size of a chunk's logits, in float32, exist at the same time. They, and a
    number of features, are divided by `share`.
    """
    if not isinstance(n, int):  # Exported, it is a symbol: the last chunk is padded.
        return size or _MIN_TOKENS
    if size is not None:
        return min(size, max(n, 1))
    most = _CHUNK_BYTES // (4 * arrays * local_vocab * share)
    return _even(max(most, min(_MIN_TOKENS, features // share), 1), n)


def stored_group(n: int, features: int) -> int:
    """For how many of `n` tokens to store the gradient of the logits at once.

    In half precision, those of 2 * features tokens are as large as the gradient of the weight in
    float32, which the token sweep holds.
    """
    most = max(2 * features, _GROUP_TOKENS)
    return _even(most, n) if isinstance(n, int) else most


def _even(most: int, n: int) -> int:
    """A size of at most `most` of the parts of `n`, without a rest where that is cheap."""
    most = min(most, max(n, 1))
    count = -(-n // most)
    even = next((c for c in range(max(count, 1), 2 * count) if n % c == 0), count)
    return -(-n // max(even, 1)) or 1


def block_of_classes(size: int | None, n: int, features: int, local_vocab: int) -> int:
    """How many classes of this device to take at once, with `n` tokens."""
    if size is not None:
        return min(size, local_vocab)
    # Exported, the number of tokens is a symbol.
    most = _CHUNK_BYTES // 4 // (4 * max(n, 1)) if isinstance(n, int) else 1
    return min(max(most, min(_MIN_TOKENS, features), 1), local_vocab)


def has_short_chunks(n: int, features: int, local_vocab: int) -> bool:
    """Whether there are several chunks, each with as few tokens as the matmuls allow."""
    if not isinstance(n, int):
        return False
    chunk = chunk_of_tokens(None, n, features, local_vocab)
    return chunk < n and chunk <= _MIN_TOKENS
