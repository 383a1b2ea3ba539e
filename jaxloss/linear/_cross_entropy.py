"""The cross-entropy of a linear layer, without its logits."""

import math
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict, Unpack, get_args, overload

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxloss._core import checks
from jaxloss._core.declare import takes
from jaxloss._core.reduce import Reduction, check_reduction, reduce_losses
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.split import total_classes
from jaxloss._mean import Mean
from jaxloss.linear import _formulas, _operands, _targets
from jaxloss.linear._formulas import LinearStatistics
from jaxloss.linear._head import Head, logits_dtype, vocab_size
from jaxloss.linear._live import can_skip, skipping
from jaxloss.linear._operands import AxisName
from jaxloss.linear._rule import reduced
from jaxloss.linear._sharding import automatic, groups
from jaxloss.linear._stored import StoredSweep
from jaxloss.linear._sweep import PlatformSweep, Sweep
from jaxloss.linear._targets import LabelRest, WeightedLabels
from jaxloss.linear._tokens import TokenSweep
from jaxloss.linear._vocab import VocabSweep

Implementation = Literal["tokens", "stored", "vocab", "pallas_tpu", "dense"]


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
    label_weights: ArrayLike | None
    label_rest: LabelRest


@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Literal["parts"],
    return_statistics: Literal[False] = False,
    **settings: Unpack[_Settings],
) -> Mean: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Reduction = "mean",
    return_statistics: Literal[False] = False,
    **settings: Unpack[_Settings],
) -> Array: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Literal["parts"],
    return_statistics: Literal[True],
    **settings: Unpack[_Settings],
) -> tuple[Mean, LinearStatistics]: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    reduction: Reduction = "mean",
    return_statistics: Literal[True],
    **settings: Unpack[_Settings],
) -> tuple[Array, LinearStatistics]: ...
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
    label_weights: ArrayLike | None = None,
    label_rest: LabelRest = "none",
    return_statistics: bool = False,
) -> Array | Mean | tuple[Array | Mean, LinearStatistics]:
    r"""Softmax cross-entropy of the logits `hidden @ weight + bias`, which never exist at once.

    With x the logits of one token, k its label, V the number of classes that are not excluded, c
    `logit_softcap`, s `label_smoothing` and w `class_weights`:

        x <- c * tanh(x / c)
        loss = (1 - s) * w_k * nll_k + s / V * sum_j w_j * nll_j + z_loss * logsumexp(x)**2

    where `nll = -log_softmax(x)`: `softmax_cross_entropy_with_integer_labels` of the logits, in
    value and all derivatives, forward and reverse, by all operands. With `label_weights` q, of K
    labels k a token, r = max(1 - sum_k q_k, 0) the mass that they lack, j the other classes and
    p = softmax(x), what stands for `w_k * nll_k` is by `label_rest`

        none: nll = sum_k w_k * q_k * nll_k
        uniform: nll = sum_k w_k * q_k * nll_k + r / (V - K) * sum_j w_j * nll_j
        proportional: nll = sum_k q_k * nll_k - r * log(1 - sum_k p_k)

    where the last has all other classes as one: r is shared as the model itself shares it.

    Args:
        hidden: what the last layer takes, floating, [..., D].
        weight: of the last layer, floating, [D, V]; [V, D] with `vocab_first`. Matmuls are done in
            the dtypes of `hidden` and `weight`, and accumulate in float32 (float64 for float64).
        labels: integers in [0, V), of the shape of `hidden` without its last axis; [..., K] with
            `label_weights`. Any other label makes the loss NaN; under `jax.experimental.checkify`
            it is reported.
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
        ignore_index: tokens with this label are masked; with `label_weights`, labels that fill up
            the K, and tokens that have no other.
        label_smoothing: s in [0, 1].
        z_loss: weight of the squared log-normaliser.
        logit_softcap: c, positive; logits stay in (-c, c), but for -inf.
        class_weights: V weights, at least 0; they multiply the loss and do not normalise it.
        chunk_size: how many tokens ("vocab": classes) to take at once. The default makes logits of
            64 MiB ("stored", "vocab": 32), but takes no fewer than min(D, 1024) ("stored":
            min(D / 2, 1024)), so that matmuls stay large.
        implementation: how value and gradients share time and memory; see below. By default
            "tokens" on CPUs, or wherever `chunk_size` is given; otherwise "stored" on GPUs and
            TPUs, or "tokens" where more than a quarter of the tokens do not count; "pallas_tpu" on
            TPUs with one core, for a large vocabulary and operands that are not split over devices,
            unless in `shard_map`.
        axis_name: inside `shard_map`, the mesh axes over which the vocabulary of `weight`, `bias`,
            `class_where` and `class_weights` is split; labels are those of the whole vocabulary.
        label_weights: of K labels a token, at least 0, [..., K]: the top-k probabilities that a
            teacher saved, or the shares of mixed labels. They need not sum to one, and are
            differentiable. A negative one makes the token's loss NaN.
        label_rest: what becomes of the rest of a token's mass, r: "none", "uniform" (over the
            classes that are not excluded), or "proportional", which has no `class_weights`.
        return_statistics: whether to return a pair, of the loss and a `LinearStatistics` of the
            tokens, from the same sweep; it has no derivative (`jax.value_and_grad(...,
            has_aux=True)` takes the pair as it is).

    Returns:
        The loss in nats, in float32 (float64 for float64 operands): one number, or for reduction
        "none" one a token, or for "parts" a `jaxloss.Mean`. An empty or fully masked batch gives 0.
        The statistics are those of `linear_statistics`, 0 for masked tokens, with `z_loss`: what
        that adds to the loss, reduced in the same way. Of several labels, `log_prob` is the sum by
        their weights, and `correct` of the heaviest.

    Raises:
        TypeError: hidden or weight are not floating point, labels not integers, `where` not
            boolean; "pallas_tpu" does not take the dtypes.
        ValueError: shapes do not match; an unknown reduction or implementation; a setting out of
            its range; with `axis_name`, a weight that is not split over it; "pallas_tpu" without a
            TPU.

    Reverse mode by a reduced loss only scales gradients that were formed together with the value,
    in float32 where operands are float16, so that a loss scale comes in time; by reduction "none"
    it computes the logits of each chunk once more. Derivatives beyond the first are those of
    "tokens", whatever the implementation.

    Implementations, with their temporary memory in bytes for value and both gradients, at most,
    beside operands and results. There are N tokens, D features, V classes and chunks of C, and
    operands of b bytes a number. The first three need `8 N D` as well.

    - "tokens": `8 C V + 4 D V`, the logits of a chunk of tokens and their gradient, and the
      weight's gradient, which is accumulated in float32. Three matmuls; two if only one of `hidden`
      and `weight` is differentiated. Tokens that do not count, by `where`, `ignore_index` or a
      weight of 0, are put behind the others, and chunks of them alone are not computed; that takes
      up to `4 N D` more. It needs tokens that stay on their device: on one, or in `shard_map`
      without `axis_name`. For any reduction, and the one to take to save memory.
    - "stored": `b M V + 8 C V`, the gradient of M tokens' logits in the dtype of the operands, from
      which one matmul makes each gradient. M is N, up to max(2 D, 8192); more tokens are divided
      into groups, over which the weight's gradient is accumulated: `4 D V` more. The same
      matmuls. The fastest where main memory is the limit, as on accelerators. In half precision it
      needs a third of what all logits and their gradient need, and for M <= 2 D no more than
      "tokens"; in float32 half, and twice as much. Not for reduction "none".
    - "vocab": `8 C N`, the logits of a block of classes. Four matmuls. The least memory on every
      platform, for a vocabulary or a batch that leaves no room for the others. Not for reduction
      "none"; a weight that is split over devices belongs in `shard_map`, with `axis_name`.
    - "pallas_tpu": `4 N D` for hidden in bfloat16, and a few numbers a token; logits never leave
      the chip. Four matmuls, as kernels for TPUs, in float32 and bfloat16. Not for reduction
      "none", and without `chunk_size`; operands that are split over devices belong in `shard_map`.
    - "dense": all logits at once, plainly: `8 N V`. For a small vocabulary.

    With `label_weights` a chunk has the targets of all its classes as well, `4 C V` bytes more, and
    there are no "vocab" and "pallas_tpu".

    References:
        Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024,
        arXiv:2411.09009; Hsu et al., Liger Kernel, 2024, arXiv:2410.10989; for several labels,
        Hinton et al., 2015, arXiv:1503.02531; Zhang et al., mixup, 2017, arXiv:1710.09412.

    >>> import jax.numpy as jnp, jaxloss
    >>> hidden = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> weight = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> labels = jnp.array([0, 1])
    >>> print(jaxloss.linear_cross_entropy(hidden, weight, labels, reduction="none"))
    [4.1223e-09 2.3954e-01]
    >>> loss, stats = jaxloss.linear_cross_entropy(hidden, weight, labels, return_statistics=True)
    >>> print(loss, stats.correct)
    0.119772 [ True  True]
    >>> best, saved = jnp.array([[0], [1]]), jnp.array([[0.75], [0.5]])
    >>> for rest in ("none", "uniform", "proportional"):
    ...     print(jaxloss.linear_cross_entropy(
    ...         hidden, weight, best, label_weights=saved, label_rest=rest
    ...     ))
    0.0598862
    3.11977
    2.85984
    """
    parts = reduction == "parts"
    reduction = "sum" if parts else reduction
    check_reduction(reduction)
    _check_implementation(implementation, reduction, label_weights is not None)
    _check_labels(label_weights, label_rest, class_weights)
    head = _operands.head(hidden, weight, vocab_first, axis_name)
    shape = head.hidden.shape[:-1]
    local_vocab, dtype = vocab_size(head, vocab_first), logits_dtype(head)
    classes = total_classes(local_vocab, _operands.class_axis(axis_name))
    targets = _operands.targets_of(labels, label_weights, shape, classes, dtype, ignore_index)
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
    out = _linear_cross_entropy(
        head, targets, settings, weights, where,
        vocab_first=vocab_first, reduction=reduction, ignore_index=ignore_index,
        chunk_size=checks.chunk_size(chunk_size), implementation=implementation,
        chip=_chip(implementation, reduction, head, local_vocab, chunk_size), axis_name=axis_name,
        label_rest=label_rest, return_statistics=return_statistics,
    )  # fmt: skip
    if parts:
        where = _operands.live_tokens(where, targets, ignore_index)
        mean = partial(_operands.mean_of_tokens, where=where, shape=shape)
        if not return_statistics:
            return mean(out)
        loss, statistics = out
        return mean(loss), statistics._replace(z_loss=mean(statistics.z_loss))
    return out


def _check_labels(label_weights: Any, label_rest: str, class_weights: Any) -> None:
    names = get_args(LabelRest)
    if label_rest not in names:
        raise ValueError(f"label_rest must be one of {names}, got {label_rest!r}")
    if label_weights is None and label_rest != "none":
        raise ValueError(f"label_rest={label_rest!r} is of labels with label_weights; give those")
    if label_rest == "proportional" and class_weights is not None:
        raise ValueError(
            "label_rest='proportional' is of all other classes together, which have no "
            "class_weights; leave these out, or take label_rest='uniform'"
        )


def _check_implementation(implementation: str | None, reduction: str, weighted: bool) -> None:
    names = get_args(Implementation)
    if implementation is not None and implementation not in names:
        raise ValueError(f"implementation must be None or one of {names}, got {implementation!r}")
    if implementation in ("stored", "vocab", "pallas_tpu") and reduction == "none":
        raise ValueError(
            f"implementation={implementation!r} forms gradients together with one number, so it "
            "has no reduction='none'; leave implementation out"
        )
    if implementation in ("vocab", "pallas_tpu") and weighted:
        raise ValueError(
            f"implementation={implementation!r} is for one label a token, not for label_weights; "
            "leave implementation out"
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
        "axis_name", "label_rest", "return_statistics",
    ),
)  # fmt: skip
def _linear_cross_entropy(head, labels, *settings, reduction, return_statistics, **static):
    formula = partial(
        _formula, reduction=reduction, groups=groups(head.hidden),
        return_statistics=return_statistics, **static,
    )  # fmt: skip
    token = labels.labels[..., 0] if isinstance(labels, WeightedLabels) else labels
    number = token if reduction == "none" else None
    of_tokens = LinearStatistics(token, token, token, token, token, number)
    out = (number, of_tokens) if return_statistics else number
    return automatic(formula, out, head, labels, *settings)


def _formula(
    head, labels, settings, weights, where,
    *, vocab_first, reduction, ignore_index, chunk_size, implementation, chip, axis_name, groups,
    label_rest, return_statistics,
):  # fmt: skip
    shape = head.hidden.shape[:-1]
    weights, live = _operands.flatten(weights, where)
    labels = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape) :]), labels)
    live = _operands.live_tokens(live, labels, ignore_index)
    local_vocab, axis = vocab_size(head, vocab_first), _operands.class_axis(axis_name)
    classes = total_classes(local_vocab, axis)
    heads = (_operands.flatten_tokens(head),)
    dead = _operands.dead(live, weights, heads, labels, classes, ignore_index)
    heads, labels = _operands.without(dead, heads, labels, classes, ignore_index)
    n, features = heads[0].hidden.shape

    several = isinstance(labels, WeightedLabels)
    formula = _formulas.cross_entropy
    if several:
        formula = partial(_targets.cross_entropy, rest=label_rest)
    collect = _targets.statistics if return_statistics else None
    whole = TokenSweep(formula, axis, n, vocab_first, statistics_of_logits=collect)
    if implementation == "dense":
        losses, statistics = whole.each_token(heads, labels, settings)
        losses = reduce_losses(losses, reduction, weights=weights, where=live)
    else:
        size = n // groups, features, local_vocab
        sweep = _sweep(implementation, chip, chunk_size, size, whole, 3 if several else 2)
        # A token of weight zero has statistics.
        counts = return_statistics and weights is not None
        if not counts and can_skip(sweep, heads[0].hidden, live, weights):
            sweep = skipping(sweep)
        losses, statistics = reduced(
            sweep, heads, labels, settings, reduction, weights, live, groups
        )
    losses = losses.reshape(shape) if reduction == "none" else losses
    if not return_statistics:
        return losses
    statistics = _operands.finished(statistics, labels, dead, shape)
    z_loss = _z_loss(settings.z_loss, statistics.logsumexp.reshape(-1), reduction, weights, live)
    z_loss = z_loss.reshape(shape) if reduction == "none" else z_loss
    return losses, statistics._replace(z_loss=z_loss)


def _z_loss(
    z_loss: Array | None,
    lse: Array,
    reduction: Reduction,
    weights: Array | None,
    where: Array | None,
) -> Array:
    """What the z-loss adds to the loss, without a derivative."""
    each = jnp.zeros_like(lse) if z_loss is None else z_loss * lse**2
    return lax.stop_gradient(reduce_losses(each, reduction, weights=weights, where=where))


def _sweep(
    implementation: str | None,
    chip: Any,
    chunk_size: int | None,
    size: tuple[int, int, int],
    whole: TokenSweep,
    arrays: int,
) -> Sweep:
    """For operands of `size`: how many tokens, features and classes a device has.

    `whole` is the sweep in one chunk; a chunk has so many arrays of the size of its logits.
    """
    n, features, _ = size
    of_tokens = None if implementation == "vocab" else chunk_size
    chunk = _operands.chunk_of_tokens(of_tokens, *size, arrays=arrays)
    tokens = replace(whole, chunk_size=chunk)
    if implementation == "vocab":
        return VocabSweep(tokens, _operands.block_of_classes(chunk_size, *size))
    if implementation == "tokens" or n == 0:
        return tokens
    group = _operands.stored_group(n, features)
    # Its chunks do not read and write the weight's gradient, and so may be shorter.
    short = _operands.chunk_of_tokens(chunk_size, group, *size[1:], arrays=arrays, share=2)
    stored = StoredSweep(tokens, short, group)
    if implementation == "stored":
        return stored
    kernels = None if chip is None else _kernels(tokens, chip)
    if implementation == "pallas_tpu" and kernels is not None:
        return kernels
    # Whoever says how many tokens to take at once does so to save memory.
    if chunk_size is not None or not isinstance(n, int) or chunk >= group:
        return tokens
    return PlatformSweep(tokens, tokens, tpu=kernels or stored, gpu=stored)


def _kernels(tokens: TokenSweep, chip: Any) -> Sweep:
    from jaxloss.linear._pallas_tpu import TpuSweep

    return TpuSweep(tokens, chip)
