"""Checking and converting what the linear losses take, and the size of a chunk."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxloss._core import checks, inputs
from jaxloss._core.reduce import per_example
from jaxloss._core.split import ClassAxis, Split
from jaxloss.linear._sharding import varying
from jaxloss.linear._tokens import Head

AxisName = str | tuple[str, ...] | None

# Logits in one chunk, in bytes of float32. Fewer rows than `_ROWS` (or than the layer has
# features) would have the matmuls wait for the weight and for its gradient, which each chunk
# reads and writes anew: 8 bytes against 2 * rows flops, where a TPU v5e has 240 flops a byte and
# an H100 295.
_BYTES = 64 * 2**20
_ROWS = 1024


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
    if axis_name is not None:
        names = {axis_name} if isinstance(axis_name, str) else set(axis_name)
        if not names <= varying(w):
            raise ValueError(
                f"with axis_name={axis_name!r}, {w_name} must be split over it: call the loss "
                f"inside shard_map, with check_vma=True, with the vocabulary's axis of {w_name} "
                f"in its in_specs; here it differs over {sorted(varying(w)) or 'no axis'}"
            )
    return Head(h, w)


def vocabulary(head: Head, vocab_first: bool) -> int:
    """The number of classes on this device."""
    return head.weight.shape[0 if vocab_first else 1]


def class_axis(axis_name: AxisName) -> ClassAxis:
    return 1 if axis_name is None else Split(1, axis_name)


def labels_of(
    labels: ArrayLike, shape: tuple[int, ...], classes: int, ignore_index: int | None = None
) -> Array:
    y = checks.integers("labels", labels, "soft labels need softmax_cross_entropy and its logits")
    if y.shape != shape:
        raise ValueError(
            f"labels of shape {y.shape} do not match hidden of shape {(*shape, 'D')}: expected "
            f"labels of shape {shape}"
        )
    inputs.check_labels(y, classes, ignore_index)
    return y


def of_tokens(
    name: str, x: ArrayLike | None, shape: tuple[int, ...], dtype: DTypeLike
) -> Array | None:
    if x is None:
        return None
    x = checks.boolean(name, x) if dtype == jnp.bool_ else checks.numeric(name, x, dtype)
    return per_example(name, x, shape)


def rows(head: Head) -> Head:
    """With the tokens along one axis."""
    return Head(head.hidden.reshape(-1, head.hidden.shape[-1]), head.weight)


def flat(*of_tokens: Array | None) -> list[Any]:
    """Along one axis of tokens."""
    return [None if x is None else x.reshape(-1) for x in of_tokens]


def softcap(cap: ArrayLike | None, dtype: DTypeLike) -> Array | None:
    return None if cap is None else checks.positive("logit_softcap", cap, dtype)


def dead(
    live: Array | None,
    weights: Array | None,
    heads: tuple[Head, ...],
    labels: Array,
    classes: int,
) -> Array | None:
    """Tokens whose contents may not be seen: masked, or of weight zero and without a loss."""
    masked = None if live is None else ~live
    if weights is None:
        return masked
    # The derivative by a weight of zero is the loss, so only a useless one is replaced.
    useless = (labels < 0) | (labels >= classes)
    for head in heads:
        useless |= ~jnp.all(jnp.isfinite(head.hidden), 1)
    useless &= weights == 0
    return useless if masked is None else masked | useless


def without(
    dead: Array | None, heads: tuple[Head, ...], labels: Array, classes: int
) -> tuple[tuple[Head, ...], Array]:
    """Give tokens that do not count harmless contents; labels that are none stay so."""
    labels = jnp.clip(labels, -1, classes).astype(jnp.int32)
    if dead is None:
        return heads, labels
    heads = tuple(Head(jnp.where(dead[:, None], 0, h), w) for h, w in heads)
    return heads, jnp.where(dead, 0, labels)


def chunk_of_tokens(size: int | None, n: int, features: int, here: int) -> int:
    """How many tokens to take at once, of n; where that is free, so that none is filled up."""
    if size is not None:
        return min(size, max(n, 1))
    most = min(max(_BYTES // (4 * here), min(_ROWS, features), 1), max(n, 1))
    count = -(-n // most)
    even = next((c for c in range(max(count, 1), 2 * count) if n % c == 0), count)
    return -(-n // max(even, 1)) or 1


def block_of_classes(size: int | None, n: int, features: int, here: int) -> int:
    """How many classes to take at once, of those on this device."""
    if size is not None:
        return min(size, here)
    return min(max(_BYTES // 2 // (4 * max(n, 1)), min(_ROWS, features), 1), here)


def short_chunks(n: int, features: int, here: int) -> bool:
    """Whether there are several chunks, which have as few tokens as the matmuls allow."""
    chunk = chunk_of_tokens(None, n, features, here)
    return chunk < n and chunk <= _ROWS
