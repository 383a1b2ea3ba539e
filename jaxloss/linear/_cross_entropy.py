"""The cross-entropy of a linear layer, without its logits."""

import math
from functools import partial
from typing import Any, Literal, TypedDict, Unpack, get_args, overload

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.reduce import Reduction, check_reduction, reduce_losses
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.split import ClassAxis, total_classes
from jaxloss._mean import Mean
from jaxloss.linear import _formulas, _operands
from jaxloss.linear._head import Head, logits_dtype, logits_of, vocab_size
from jaxloss.linear._live import LiveSweep, can_skip
from jaxloss.linear._operands import AxisName
from jaxloss.linear._rule import reduced
from jaxloss.linear._sharding import automatic, groups
from jaxloss.linear._sweep import PlatformSweep, Sweep
from jaxloss.linear._tokens import TokenSweep
from jaxloss.linear._vocab import VocabSweep

Implementation = Literal["tokens", "vocab", "pallas_tpu", "dense"]


class _Settings(TypedDict, total=False):
    """The keyword arguments of `linear_cross_entropy` but for the reduction."""

    bias: ArrayLike | None
    vocab_first: bool
    weights: ArrayLike | None
    where: ArrayLike | None
    class_where: ArrayLike | None
    ignore_index: int | None
    label_smoothing: ArrayLike
    z_loss: ArrayLike
    logit_softcap: ArrayLike | None
    class_weights: ArrayLike | None
    chunk_size: int | None
    implementation: Implementation | None
    axis_name: AxisName


@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Literal["parts"],
    **settings: Unpack[_Settings],
) -> Mean: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Reduction = "mean",
    **settings: Unpack[_Settings],
) -> Array: ...
@takes(unreduced={"reduction": "none"}, hidden="row", weight="shared", labels="labels")
def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    vocab_first: bool = False,
    reduction: Reduction | Literal["parts"] = "mean",
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    logit_softcap: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    chunk_size: int | None = None,
    implementation: Implementation | None = None,
    axis_name: AxisName = None,
) -> Array | Mean:
    r"""Softmax cross-entropy of the logits `hidden @ weight + bias`, which never exist at once.

    With x the logits of one token, k its label, V the number of classes that are not excluded, c
    `logit_softcap`, s `label_smoothing` and w `class_weights`:

        x <- c * tanh(x / c)
        loss = (1 - s) * w_k * nll_k + s / V * sum_j w_j * nll_j + z_loss * logsumexp(x)**2

    where `nll = -log_softmax(x)`: `softmax_cross_entropy_with_integer_labels` of the logits, in
    value and all derivatives, forward and reverse, by all operands.

    Args:
        hidden: what the last layer takes, floating, [..., D].
        weight: of the last layer, floating, [D, V]; [V, D] with `vocab_first`. Matmuls are done in
            the dtypes of `hidden` and `weight`, and accumulate in float32 (float64 for float64).
        labels: integers in [0, V), of the shape of `hidden` without its last axis. Any other label
            makes the loss NaN; under `jax.experimental.checkify` it is reported.
        bias: [V]; -inf excludes a class.
        vocab_first: whether the weight is [V, D], as a table of embeddings is.
        reduction: "mean" (over the tokens that are not masked), "weighted_mean" (over the sum of
            their weights), "sum", or "none"; "parts" for the mean as a `jaxloss.Mean`, whose total
            and size add up over microbatches and devices.
        weights: of the tokens, of the shape of `labels` or of its leading axes. A token of weight
            zero adds nothing, even if it holds NaN, but counts in "mean".
        where: booleans, likewise; a masked token adds nothing and does not count.
        class_where: booleans, [V]; a class that is False is excluded, as one that pads the
            vocabulary. What it has of the weight must be finite, and gets a gradient of 0.
        ignore_index: tokens with this label are masked.
        label_smoothing: s in [0, 1].
        z_loss: weight of the squared log-normaliser.
        logit_softcap: c, positive; logits stay in (-c, c), but for -inf.
        class_weights: V weights, at least 0; they multiply the loss and do not normalise it.
        chunk_size: how many tokens ("vocab": classes) to take at once. By default as many as make
            logits of 64 MiB ("vocab": 32), but not fewer than min(D, 1024), for matmuls that stay
            large.
        implementation: by default "tokens"; on a TPU with one core, for a large vocabulary and
            operands that are not split over devices unless in `shard_map`, "pallas_tpu".

            - "tokens": chunks of tokens, three matmuls for value and gradients (two if `hidden`
              or `weight` is not differentiated). Temporary memory, in bytes, at most
              8 * chunk_size * V for logits and their gradients, 4 * D * V for the gradient of the
              weight while it adds up, and 8 * N * D. Tokens that do not count, by `where`,
              `ignore_index` or a weight of 0, are put behind the others, and chunks of them alone
              are not computed; that takes up to 4 * N * D more. It needs tokens that stay on their
              device: on one, or in `shard_map` without `axis_name`.
            - "vocab": blocks of the vocabulary, four matmuls; a block of the weight's gradient
              is written once, in its own dtype. Temporary memory at most 8 * chunk_size * N and
              8 * N * D. Not for reduction "none"; a weight split over devices belongs
              in `shard_map`, with `axis_name`.
            - "pallas_tpu": TPU kernels, four matmuls, for float32 and bfloat16. Logits never leave
              the chip. Temporary memory 4 * N * D for hidden in bfloat16, and a few numbers a
              token. Not for reduction "none", and without chunk_size; operands split over devices
              belong in `shard_map`. Derivatives beyond the first are those of "tokens".
            - "dense": all logits at once, plainly.
        axis_name: inside `shard_map`, the mesh axes over which the vocabulary of `weight`, `bias`,
            `class_where` and `class_weights` is split; labels are those of the whole vocabulary.

    Returns:
        The loss in nats, in float32 (float64 for float64 operands): one number, or for reduction
        "none" one a token, or for "parts" a `jaxloss.Mean`. An empty or fully masked batch gives 0.

    Raises:
        TypeError: hidden or weight are not floating point, labels not integers, `where` not
            boolean; "pallas_tpu" does not take the dtypes.
        ValueError: shapes do not match; an unknown reduction or implementation; a setting out of
            its range; with `axis_name`, a weight that is not split over it; "pallas_tpu" without a
            TPU.

    Reverse mode by a reduced loss only scales gradients that were formed together with the value,
    in float32 where operands are float16, so that a loss scale comes in time; by reduction "none"
    it computes the logits of each chunk once more.

    References:
        Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024,
        arXiv:2411.09009; Hsu et al., Liger Kernel, 2024, arXiv:2410.10989.

    >>> import jax.numpy as jnp, jaxloss
    >>> hidden = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> weight = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> labels = jnp.array([0, 1])
    >>> print(jaxloss.linear_cross_entropy(hidden, weight, labels, reduction="none"))
    [4.1223e-09 2.3954e-01]
    """
    parts = reduction == "parts"
    reduction = "sum" if parts else reduction
    check_reduction(reduction)
    _check_implementation(implementation, reduction)
    head = _operands.head(hidden, weight, vocab_first, axis_name)
    shape = head.hidden.shape[:-1]
    local_vocab, dtype = vocab_size(head, vocab_first), logits_dtype(head)
    classes = total_classes(local_vocab, _operands.class_axis(axis_name))
    labels = _operands.labels_of(labels, shape, classes, ignore_index)
    class_weights = checks.of_classes("class_weights", class_weights, "weight", local_vocab, dtype)
    settings = _formulas.Settings(
        bias=_operands.bias_of(bias, class_where, local_vocab, dtype),
        softcap=_operands.softcap(logit_softcap, dtype),
        class_weights=class_weights,
        smoothing=checks.optional(
            "label_smoothing", label_smoothing, checks.scalar, dtype, checks.SHARE
        ),
        z_loss=checks.optional("z_loss", z_loss, checks.scalar, dtype),
    )
    weights = _operands.of_tokens("weights", weights, shape, dtype)
    where = _operands.of_tokens("where", where, shape, jnp.bool_)
    loss = _linear_cross_entropy(
        head, labels, settings, weights, where,
        vocab_first=vocab_first, reduction=reduction, ignore_index=ignore_index,
        chunk_size=checks.chunk_size(chunk_size), implementation=implementation,
        chip=_chip(implementation, reduction, head, local_vocab, chunk_size), axis_name=axis_name,
    )  # fmt: skip
    return _operands.mean_of_tokens(loss, where, labels, ignore_index) if parts else loss


def _check_implementation(implementation: str | None, reduction: str) -> None:
    names = get_args(Implementation)
    if implementation is not None and implementation not in names:
        raise ValueError(f"implementation must be None or one of {names}, got {implementation!r}")
    if implementation in ("vocab", "pallas_tpu") and reduction == "none":
        raise ValueError(
            f"implementation={implementation!r} forms gradients together with one number, so it "
            "has no reduction='none'; leave implementation out"
        )


def _chip(
    implementation: str | None,
    reduction: str,
    head: Head,
    local_vocab: int,
    chunk_size: int | None,
) -> Any:
    """The TPU to run the kernels on, if they are asked for or better than the other sweeps."""
    asked = implementation == "pallas_tpu"
    free = implementation is None and chunk_size is None and reduction != "none"
    *tokens, features = head.hidden.shape
    short = _operands.has_short_chunks(math.prod(tokens), features, local_vocab)
    if not asked and not (free and short):
        return None
    # Importing Pallas takes a while.
    from jaxloss.linear import _pallas_tpu

    if asked:
        return _pallas_tpu.required_chip(head, chunk_size)
    return _pallas_tpu.preferred_chip(head)


@partial(
    jit_when_eager,
    static_argnames=(
        "vocab_first", "reduction", "ignore_index", "chunk_size", "implementation", "chip",
        "axis_name",
    ),
)  # fmt: skip
def _linear_cross_entropy(head, labels, *settings, reduction, **static):
    formula = partial(_formula, reduction=reduction, groups=groups(head.hidden), **static)
    return automatic(formula, labels if reduction == "none" else None, head, labels, *settings)


def _formula(
    head, labels, settings, weights, where,
    *, vocab_first, reduction, ignore_index, chunk_size, implementation, chip, axis_name, groups,
):  # fmt: skip
    shape = labels.shape
    labels, weights, live = _operands.flatten(labels, weights, where)
    live = inputs.not_ignored(live, labels, ignore_index)
    local_vocab, axis = vocab_size(head, vocab_first), _operands.class_axis(axis_name)
    classes = total_classes(local_vocab, axis)
    heads = (_operands.flatten_tokens(head),)
    dead = _operands.dead(live, weights, heads, labels, classes)
    heads, labels = _operands.without(dead, heads, labels, classes)

    if implementation == "dense":
        logits = (logits_of(heads[0], vocab_first),)
        losses = _formulas.cross_entropy(logits, labels, settings, axis)
        losses = reduce_losses(losses, reduction, weights=weights, where=live)
    else:
        size = labels.shape[0] // groups, heads[0].hidden.shape[1], local_vocab
        sweep = _sweep(implementation, chip, chunk_size, size, axis, vocab_first)
        if can_skip(sweep, heads[0].hidden, live, weights):
            sweep = LiveSweep(sweep)
        losses = reduced(sweep, heads, labels, settings, reduction, weights, live, groups)
    return losses.reshape(shape) if reduction == "none" else losses


def _sweep(
    implementation: str | None,
    chip: Any,
    chunk_size: int | None,
    size: tuple[int, int, int],
    axis: ClassAxis,
    vocab_first: bool,
) -> Sweep:
    """For operands of `size`: how many tokens, features and classes a device has."""
    of_tokens = None if implementation == "vocab" else chunk_size
    chunk = _operands.chunk_of_tokens(of_tokens, *size)
    tokens = TokenSweep(_formulas.cross_entropy, axis, chunk, vocab_first)
    if implementation == "vocab":
        return VocabSweep(tokens, _operands.block_of_classes(chunk_size, *size))
    if chip is None or size[0] == 0:
        return tokens
    from jaxloss.linear._pallas_tpu import TpuSweep

    kernels = TpuSweep(tokens, chip)
    return kernels if implementation == "pallas_tpu" else PlatformSweep(tokens, tpu=kernels)
