"""Statistics of each token's logits, and distillation, for a linear layer."""

from functools import partial
from typing import Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxloss._core import checks, inputs
from jaxloss._core.declare import takes
from jaxloss._core.reduce import Reduction, check_reduction
from jaxloss._core.rules import jit_when_eager
from jaxloss._core.split import total_classes
from jaxloss._mean import Mean
from jaxloss.linear import _formulas, _operands
from jaxloss.linear._formulas import LinearStatistics
from jaxloss.linear._head import logits_dtype, vocab_size
from jaxloss.linear._operands import AxisName
from jaxloss.linear._rule import per_token, reduced
from jaxloss.linear._sharding import automatic, groups
from jaxloss.linear._tokens import TokenSweep


def linear_statistics(
    hidden: ArrayLike,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    vocab_first: bool = False,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    ignore_index: int | None = None,
    logit_softcap: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> LinearStatistics:
    r"""Log-probability of the label, log-sum-exp, entropy and argmax of each token's logits.

    For policy gradients, preference losses, distillation and metrics, from one sweep over chunks
    of tokens. With x the logits `hidden @ weight + bias` of one token and k its label:

        log_prob = log_softmax(x)_k
        logsumexp = log sum_j exp(x_j)
        entropy = -sum_j p_j * log p_j, for p = softmax(x)
        argmax = the first j with the largest x_j

    Args:
        hidden, weight, labels, bias, vocab_first, where, class_where, ignore_index, logit_softcap,
            axis_name: see `linear_cross_entropy`.
        chunk_size: how many tokens to take at once. By default as many as make logits of 25 MiB,
            but not fewer than min(D, 1024): gradients need five arrays of a chunk's logits, where
            `linear_cross_entropy` needs two.

    Returns:
        A named tuple of four arrays of the shape of `labels`: the first three in nats, in float32
        (float64 for float64 operands), the last of integers. All are 0 for masked tokens.

    Raises:
        TypeError, ValueError: see `linear_cross_entropy`.

    The first three are differentiable, to any order, forward and reverse; reverse mode computes
    the logits of each chunk once more. For a mean of `log_prob` alone, `linear_cross_entropy` is
    a matmul cheaper.

    References:
        Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290; Ahmadian et al.,
        Back to Basics: Revisiting REINFORCE, 2024, arXiv:2402.14740.

    >>> import jax.numpy as jnp, jaxloss
    >>> hidden, weight = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> stats = jaxloss.linear_statistics(hidden, weight, jnp.array([0]))
    >>> print(stats.log_prob, stats.entropy, stats.argmax)
    [-1.4076] [0.8324] [1]
    """
    head = _operands.head(hidden, weight, vocab_first, axis_name)
    shape = head.hidden.shape[:-1]
    local_vocab, dtype = vocab_size(head, vocab_first), logits_dtype(head)
    classes = total_classes(local_vocab, _operands.class_axis(axis_name))
    labels = _operands.labels_of(labels, shape, classes, ignore_index)
    settings = _formulas.Settings(
        bias=_operands.bias_of(bias, class_where, local_vocab, dtype),
        softcap=_operands.softcap(logit_softcap, dtype),
    )
    where = _operands.of_tokens("where", where, shape, jnp.bool_)
    where = inputs.not_ignored(where, labels, ignore_index)
    return _linear_statistics(
        head, labels, settings, where,
        vocab_first=vocab_first, chunk_size=checks.chunk_size(chunk_size), axis_name=axis_name,
    )  # fmt: skip


@partial(jit_when_eager, static_argnames=("vocab_first", "chunk_size", "axis_name"))
def _linear_statistics(head, labels, *settings, **static):
    out = LinearStatistics(labels, labels, labels, labels)
    return automatic(partial(_statistics_formula, **static), out, head, labels, *settings)


def _statistics_formula(head, labels, settings, where, *, vocab_first, chunk_size, axis_name):
    shape = labels.shape
    labels, where = _operands.flatten(labels, where)
    local_vocab, axis = vocab_size(head, vocab_first), _operands.class_axis(axis_name)
    dead = None if where is None else ~where
    classes = total_classes(local_vocab, axis)
    heads, labels = _operands.without(dead, (_operands.flatten_tokens(head),), labels, classes)
    size = _operands.chunk_of_tokens(chunk_size, *heads[0].hidden.shape, local_vocab, arrays=5)
    sweep = TokenSweep(_formulas.statistics, axis, size, vocab_first)
    columns = per_token(sweep, heads, labels, settings)
    if dead is not None:
        columns = jax.tree.map(lambda column: jnp.where(dead, 0, column), columns)
    columns = columns._replace(argmax=columns.argmax.astype(jnp.int32))
    return jax.tree.map(lambda column: column.reshape(shape), columns)


class _Settings(TypedDict, total=False):
    """The keyword arguments of `linear_distillation` but for the reduction."""

    divergence: Literal["kl", "js"]
    temperature: ArrayLike
    bias: ArrayLike | None
    teacher_bias: ArrayLike | None
    logit_softcap: ArrayLike | None
    teacher_logit_softcap: ArrayLike | None
    vocab_first: bool
    weights: ArrayLike | None
    where: ArrayLike | None
    class_where: ArrayLike | None
    chunk_size: int | None
    axis_name: AxisName


@overload
def linear_distillation(
    hidden: ArrayLike,
    weight: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_weight: ArrayLike,
    *,
    reduction: Literal["parts"],
    **settings: Unpack[_Settings],
) -> Mean: ...
@overload
def linear_distillation(
    hidden: ArrayLike,
    weight: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_weight: ArrayLike,
    *,
    reduction: Reduction = "mean",
    **settings: Unpack[_Settings],
) -> Array: ...
@takes(
    unreduced={"reduction": "none"},
    hidden="row",
    weight="shared",
    teacher_hidden="row",
    teacher_weight="shared",
)
def linear_distillation(
    hidden: ArrayLike,
    weight: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_weight: ArrayLike,
    *,
    divergence: Literal["kl", "js"] = "kl",
    temperature: ArrayLike = 1.0,
    bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    logit_softcap: ArrayLike | None = None,
    teacher_logit_softcap: ArrayLike | None = None,
    vocab_first: bool = False,
    reduction: Reduction | Literal["parts"] = "mean",
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> Array | Mean:
    r"""Divergence of a student's next-token distribution from a teacher's, without their logits.

    With x and y the logits `hidden @ weight + bias` of student and teacher, T the temperature,
    p = softmax(x / T) and t = softmax(y / T):

        kl: loss = T**2 * KL(t || p)
        js: loss = T**2 * (KL(p || m) + KL(t || m)) / 2, for m = (p + t) / 2

    Args:
        hidden, weight, bias: the student's last layer; see `linear_cross_entropy`.
        teacher_hidden, teacher_weight, teacher_bias: the teacher's, over the same tokens and
            classes; its features may be other ones. Where the teacher is frozen, wrap them in
            `jax.lax.stop_gradient`, or do not differentiate by them: that costs no matmul.
        divergence: "kl" or "js".
        logit_softcap, teacher_logit_softcap: of the student's and the teacher's logits; see
            `linear_cross_entropy`.
        temperature: T, positive.
        vocab_first, reduction, weights, where, axis_name: see `linear_cross_entropy`.
        class_where: booleans, [V]; classes that neither of the two has.
        chunk_size: how many tokens to take at once; see `linear_cross_entropy`.

    Returns:
        The loss in nats, in float32 (float64 for float64 operands): one number, or for reduction
        "none" one a token, or for "parts" a `jaxloss.Mean`.

    Raises:
        TypeError, ValueError: see `linear_cross_entropy`.

    References:
        Hinton et al., 2015, arXiv:1503.02531; Agarwal et al., On-Policy Distillation of Language
        Models, 2023, arXiv:2306.13649.

    >>> import jax.numpy as jnp, jaxloss
    >>> hidden, weight = jnp.array([[1.0]]), jnp.array([[1.0, 0.0, 0.0]])
    >>> teacher = jnp.array([[3.0, 1.0, 0.0]])
    >>> print(jaxloss.linear_distillation(hidden, weight, hidden, teacher, temperature=2.0))
    0.296607
    """
    parts = reduction == "parts"
    reduction = "sum" if parts else reduction
    check_reduction(reduction)
    if divergence not in ("kl", "js"):
        raise ValueError(f"divergence must be 'kl' or 'js', got {divergence!r}")
    student = _operands.head(hidden, weight, vocab_first, axis_name)
    teacher = _operands.head(teacher_hidden, teacher_weight, vocab_first, axis_name, "teacher_")
    shape, of_teacher = student.hidden.shape[:-1], teacher.hidden.shape[:-1]
    local_vocab, dtype = vocab_size(student, vocab_first), logits_dtype(student, teacher)
    if shape != of_teacher or local_vocab != vocab_size(teacher, vocab_first):
        raise ValueError(
            f"teacher_hidden of shape {(*of_teacher, 'D')} and teacher_weight of shape "
            f"{teacher.weight.shape} do not match the student's, {(*shape, 'D')} and "
            f"{student.weight.shape}: expected the same tokens and the same classes"
        )
    pair = _formulas.Pair(
        checks.positive("temperature", temperature, dtype),
        _operands.bias_of(bias, class_where, local_vocab, dtype),
        _operands.bias_of(teacher_bias, class_where, local_vocab, dtype, "teacher_bias"),
        _operands.softcap(logit_softcap, dtype),
        _operands.softcap(teacher_logit_softcap, dtype, "teacher_logit_softcap"),
    )
    weights = _operands.of_tokens("weights", weights, shape, dtype)
    where = _operands.of_tokens("where", where, shape, jnp.bool_)
    loss = _linear_distillation(
        (student, teacher), pair, weights, where,
        divergence=divergence, vocab_first=vocab_first, reduction=reduction,
        chunk_size=checks.chunk_size(chunk_size), axis_name=axis_name,
    )  # fmt: skip
    return _operands.mean_of_tokens(loss, where, student.hidden[..., 0]) if parts else loss


@partial(
    jit_when_eager,
    static_argnames=("divergence", "vocab_first", "reduction", "chunk_size", "axis_name"),
)
def _linear_distillation(heads, *settings, reduction, **static):
    hidden = heads[0].hidden
    formula = partial(_distillation_formula, reduction=reduction, groups=groups(hidden), **static)
    return automatic(formula, hidden[..., 0] if reduction == "none" else None, heads, *settings)


def _distillation_formula(
    heads, pair, weights, where,
    *, divergence, vocab_first, reduction, chunk_size, axis_name, groups,
):  # fmt: skip
    shape = heads[0].hidden.shape[:-1]
    weights, where = _operands.flatten(weights, where)
    heads = tuple(map(_operands.flatten_tokens, heads))
    labels = jnp.zeros(heads[0].hidden.shape[0], jnp.int32)  # There are none.
    dead = _operands.dead(where, weights, heads, labels, 1)
    heads, labels = _operands.without(dead, heads, labels, 1)
    features = min(head.hidden.shape[1] for head in heads)
    local_vocab, axis = vocab_size(heads[0], vocab_first), _operands.class_axis(axis_name)
    size = _operands.chunk_of_tokens(chunk_size, labels.shape[0] // groups, features, local_vocab)
    formula = _formulas.kl if divergence == "kl" else _formulas.js
    sweep = TokenSweep(formula, axis, size, vocab_first)
    losses = reduced(sweep, heads, labels, pair, reduction, weights, where, groups)
    return losses.reshape(shape) if reduction == "none" else losses
