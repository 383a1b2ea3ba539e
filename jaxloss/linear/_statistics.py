"""Statistics of each token's logits, and distillation, for a linear layer."""

from functools import partial
from typing import Literal, TypedDict, Unpack, get_args, overload

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

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
from jaxloss.linear._vocab import VocabSweep

Implementation = Literal["tokens", "vocab", "pallas_tpu", "dense"]
Divergence = Literal["kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "total_variation"]
_DIVERGENCES = {
    "kl": _formulas.kl,
    "reverse_kl": _formulas.reverse_kl,
    "js": _formulas.js,
    "skew_kl": _formulas.skewed_kl,
    "skew_reverse_kl": _formulas.skewed_reverse_kl,
    "total_variation": _formulas.total_variation,
}


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
    temperature: ArrayLike = 1.0,
    chunk_size: int | None = None,
    implementation: Implementation | None = None,
    axis_name: AxisName = None,
) -> LinearStatistics:
    r"""Log-probability of the label, log-sum-exp, entropy and best class of each token's logits.

    For policy gradients, preference losses, distillation and metrics, from one sweep over chunks
    of tokens. With x the logits `hidden @ weight + bias` of one token, divided by `temperature`,
    and k its label:

        log_prob = log_softmax(x)_k
        logsumexp = log sum_j exp(x_j)
        entropy = -sum_j p_j * log p_j, for p = softmax(x)
        argmax = the first j with the largest x_j
        correct = whether that is k

    Args:
        hidden, weight, labels, bias, vocab_first, where, class_where, ignore_index, logit_softcap,
            axis_name: see `linear_cross_entropy`.
        temperature: positive, as that of the policy that sampled the labels; it divides what
            `logit_softcap` returns.
        chunk_size: how many tokens to take at once. By default as many as make logits of 25 MiB,
            but not fewer than min(D, 1024): gradients need five arrays of a chunk's logits, where
            `linear_cross_entropy` needs two. For "vocab", how many classes.
        implementation: "tokens", the default; "vocab" or "pallas_tpu", see `linear_cross_entropy`,
            of which the values need one matmul and next to no memory, while derivatives are those
            of "tokens"; "dense", all logits at once.

    Returns:
        A named tuple of arrays of the shape of `labels`: the first three in nats, in float32
        (float64 for float64 operands), then integers and booleans. All are 0 for masked tokens.
        (A sixth entry, `z_loss`, is None here.)

    Raises:
        TypeError, ValueError: see `linear_cross_entropy`.

    The first three are differentiable, to any order, forward and reverse; reverse mode computes
    the logits of each chunk once more. For a mean of `log_prob` alone, `linear_cross_entropy` is
    a matmul cheaper, and with `return_statistics=True` returns these, without derivatives, from
    its own sweep.

    References:
        Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290; Ahmadian et al.,
        Back to Basics: Revisiting REINFORCE, 2024, arXiv:2402.14740.

    >>> import jax.numpy as jnp, jaxloss
    >>> hidden, weight = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> stats = jaxloss.linear_statistics(hidden, weight, jnp.array([0]))
    >>> print(stats.log_prob, stats.entropy, stats.argmax)
    [-1.4076] [0.8324] [1]
    """
    _check_implementation(implementation)
    head = _operands.head(hidden, weight, vocab_first, axis_name)
    shape = head.hidden.shape[:-1]
    local_vocab, dtype = vocab_size(head, vocab_first), logits_dtype(head)
    classes = total_classes(local_vocab, _operands.class_axis(axis_name))
    labels = _operands.labels_of(labels, shape, classes, ignore_index)
    settings = _formulas.Settings(
        bias=_operands.bias_of(bias, class_where, local_vocab, dtype),
        softcap=_operands.softcap(logit_softcap, dtype),
        temperature=_operands.temperature(temperature, dtype),
    )
    where = _operands.of_tokens("where", where, shape, jnp.bool_)
    where = inputs.not_ignored(where, labels, ignore_index)
    chip = None
    if implementation == "pallas_tpu":
        from jaxloss.linear import _pallas_tpu  # Importing Pallas takes a while.

        chip = _pallas_tpu.required_chip(head, chunk_size)
    return _linear_statistics(
        head, labels, settings, where,
        vocab_first=vocab_first, chunk_size=checks.chunk_size(chunk_size), axis_name=axis_name,
        implementation=implementation, chip=chip,
    )  # fmt: skip


def _check_implementation(implementation: str | None) -> None:
    names = get_args(Implementation)
    if implementation is not None and implementation not in names:
        raise ValueError(
            f"implementation must be None or one of {names}, got {implementation!r}: statistics "
            f"have no gradient to store"
        )


@partial(
    jit_when_eager,
    static_argnames=("vocab_first", "chunk_size", "axis_name", "implementation", "chip"),
)
def _linear_statistics(head, labels, *settings, **static):
    out = LinearStatistics(labels, labels, labels, labels, labels)
    return automatic(partial(_statistics_formula, **static), out, head, labels, *settings)


def _statistics_formula(
    head, labels, settings, where, *, vocab_first, chunk_size, axis_name, implementation, chip
):
    shape = labels.shape
    labels, where = _operands.flatten(labels, where)
    local_vocab, axis = vocab_size(head, vocab_first), _operands.class_axis(axis_name)
    dead = None if where is None else ~where
    classes = total_classes(local_vocab, axis)
    heads, labels = _operands.without(dead, (_operands.flatten_tokens(head),), labels, classes)
    n, features = heads[0].hidden.shape
    size = n, features, local_vocab
    of_tokens = None if implementation == "vocab" else chunk_size
    chunk = _operands.chunk_of_tokens(of_tokens, *size, arrays=5)
    chunk = n if implementation == "dense" else chunk
    sweep = tokens = TokenSweep(_formulas.statistics, axis, chunk, vocab_first)
    if implementation == "vocab":
        sweep = VocabSweep(tokens, _operands.block_of_classes(chunk_size, *size))
    elif chip is not None:
        from jaxloss.linear._pallas_tpu import TpuSweep

        sweep = TpuSweep(tokens, chip)
    columns, _ = per_token(sweep, heads, labels, settings)
    return _operands.finished(columns, labels, dead, shape)


class _Settings(TypedDict, total=False):
    """The keyword arguments of `linear_distillation` but for the reduction."""

    divergence: Divergence
    beta: ArrayLike
    alpha: ArrayLike
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
    divergence: Divergence = "kl",
    beta: ArrayLike = 0.5,
    alpha: ArrayLike = 0.1,
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
        reverse_kl: loss = T**2 * KL(p || t)
        js: loss = T**2 * (beta * KL(t || m) + (1 - beta) * KL(p || m)),
            for m = beta * t + (1 - beta) * p
        skew_kl: loss = T**2 * KL(t || alpha * t + (1 - alpha) * p)
        skew_reverse_kl: loss = T**2 * KL(p || alpha * p + (1 - alpha) * t)
        total_variation: loss = T * sum_j |p_j - t_j| / 2

    Gradients by x of a divergence that is quadratic where p and t are close fall as 1 / T**2, and
    those of the total variation as 1 / T: the factors keep their size.

    Args:
        hidden, weight, bias: the student's last layer; see `linear_cross_entropy`.
        teacher_hidden, teacher_weight, teacher_bias: the teacher's, over the same tokens and
            classes; its features may be other ones. Where the teacher is frozen, wrap them in
            `jax.lax.stop_gradient`, or do not differentiate by them: that costs no matmul.
        divergence: one of the above. "kl" makes the student cover all that the teacher does,
            "reverse_kl" lets it choose; the others are between, or bounded.
        beta: of "js", the teacher's share, inside (0, 1). Near 0 the divergence is beta times
            "kl", near 1 it is 1 - beta times "reverse_kl".
        alpha: of the skewed ones, inside (0, 1).
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
        TypeError, ValueError: see `linear_cross_entropy`; for vocabularies of different sizes too.

    Where the student excludes a class that the teacher has, "kl" is infinite, and in the opposite
    case "reverse_kl"; the others are finite. The derivative of the total variation is 0 at p = t.
    Of teachers that saved their largest probabilities, take
    `linear_cross_entropy(label_weights=...)`.

    References:
        Hinton et al., 2015, arXiv:1503.02531; Agarwal et al., On-Policy Distillation of Language
        Models, 2023, arXiv:2306.13649; Ko et al., DistiLLM, 2024, arXiv:2402.03898; Wen et al.,
        f-Divergence Minimization for Sequence-Level Knowledge Distillation, 2023,
        arXiv:2307.15190.

    >>> import jax.numpy as jnp, jaxloss
    >>> hidden, weight = jnp.array([[1.0]]), jnp.array([[1.0, 0.0, 0.0]])
    >>> teacher = jnp.array([[3.0, 1.0, 0.0]])
    >>> print(jaxloss.linear_distillation(hidden, weight, hidden, teacher, temperature=2.0))
    0.296607
    """
    parts = reduction == "parts"
    reduction = "sum" if parts else reduction
    check_reduction(reduction)
    if divergence not in _DIVERGENCES:
        raise ValueError(f"divergence must be one of {(*_DIVERGENCES,)}, got {divergence!r}")
    student = _operands.head(hidden, weight, vocab_first, axis_name)
    teacher = _operands.head(teacher_hidden, teacher_weight, vocab_first, axis_name, "teacher_")
    shape, of_teacher = student.hidden.shape[:-1], teacher.hidden.shape[:-1]
    local_vocab, dtype = vocab_size(student, vocab_first), logits_dtype(student, teacher)
    of_its_own = vocab_size(teacher, vocab_first)
    if local_vocab != of_its_own:
        raise ValueError(
            f"the student has {local_vocab} classes (weight of shape {student.weight.shape}) and "
            f"the teacher {of_its_own} (teacher_weight of shape {teacher.weight.shape}): a "
            f"divergence is of one vocabulary. If one only has padding more, cut that off, or pad "
            f"the other and say which classes there are in class_where"
        )
    if shape != of_teacher:
        raise ValueError(
            f"teacher_hidden of shape {(*of_teacher, 'D')} do not match the student's, "
            f"{(*shape, 'D')}: expected the same tokens"
        )
    pair = _formulas.Pair(
        checks.positive("temperature", temperature, dtype),
        _operands.bias_of(bias, class_where, local_vocab, dtype),
        _operands.bias_of(teacher_bias, class_where, local_vocab, dtype, "teacher_bias"),
        _operands.softcap(logit_softcap, dtype),
        _operands.softcap(teacher_logit_softcap, dtype, "teacher_logit_softcap"),
        _mixture(divergence, beta, alpha, dtype),
    )
    weights = _operands.of_tokens("weights", weights, shape, dtype)
    where = _operands.of_tokens("where", where, shape, jnp.bool_)
    loss = _linear_distillation(
        (student, teacher), pair, weights, where,
        divergence=divergence, vocab_first=vocab_first, reduction=reduction,
        chunk_size=checks.chunk_size(chunk_size), axis_name=axis_name,
    )  # fmt: skip
    return _operands.mean_of_tokens(loss, where, shape) if parts else loss


def _mixture(divergence: str, beta: ArrayLike, alpha: ArrayLike, dtype: DTypeLike) -> Array | None:
    """The share of one distribution in the mixture; None for halves, or where there is none."""
    of = {"beta": beta, "alpha": alpha}
    shares = {name: checks.scalar(name, x, dtype, checks.SHARE) for name, x in of.items()}
    if divergence == "js":
        name, limits = "beta", "take divergence='kl' or 'reverse_kl' for the limits"
    elif divergence.startswith("skew"):
        name, limits = "alpha", "at 0 it is divergence='kl' or 'reverse_kl'"
    else:
        return None
    value = of[name]
    if isinstance(value, (int, float)) and value in (0, 1):
        raise ValueError(f"{name} must be inside (0, 1), got {value}; {limits}")
    halves = name == "beta" and isinstance(value, float) and value == 0.5
    return None if halves else shares[name]


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
    arrays = 2 if divergence == "kl" else 5
    size = labels.shape[0] // groups, features, local_vocab
    chunk = _operands.chunk_of_tokens(chunk_size, *size, arrays=arrays)
    sweep = TokenSweep(_DIVERGENCES[divergence], axis, chunk, vocab_first)
    losses, _ = reduced(sweep, heads, labels, pair, reduction, weights, where, groups)
    return losses.reshape(shape) if reduction == "none" else losses
