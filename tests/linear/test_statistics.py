"""`linear_statistics` and `linear_distillation`, against dense formulas in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss.linear import LinearStatistics
from tests.devices import mesh
from tests.programs import as_users
from tests.test_transforms import close, rng

N, D, V = 11, 5, 13
slow = pytest.mark.slow
exact = partial(close, rtol=1e-9, atol=1e-10)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def operands(dtype=np.float64, n=N, vocab_first=False):
    draw = rng()
    hidden, weight = draw.normal(size=(n, D)), draw.normal(size=(D, V))
    bias = draw.normal(size=V)
    labels = jnp.asarray(draw.integers(0, V, n).astype(np.int32))
    weight = weight.T if vocab_first else weight
    return *(jnp.asarray(2 * a, dtype) for a in (hidden, weight, bias)), labels


def logits_of(hidden, weight, bias=None, vocab_first=False, cap=None):
    x = hidden @ (weight.T if vocab_first else weight)
    x = x if bias is None else x + jnp.broadcast_to(bias, x.shape)
    return x if cap is None else cap * jnp.tanh(x / cap)


def dense(
    hidden, weight, labels,
    *, bias=None, vocab_first=False, where=None, logit_softcap=None, temperature=1.0,
):  # fmt: skip
    x = logits_of(hidden, weight, bias, vocab_first, logit_softcap) / temperature
    log_p = jax.nn.log_softmax(x)
    out = LinearStatistics(
        jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0],
        jax.nn.logsumexp(x, -1),
        -jnp.sum(jnp.exp(log_p) * log_p, -1),
        jnp.argmax(x, -1),
        jnp.argmax(x, -1).astype(jnp.int32) == labels,
    )
    if where is None:
        return out
    return jax.tree.map(lambda a: jnp.where(where, a, jnp.zeros_like(a)), out)


def mixed(out):
    """One number that depends on each statistic of each token in its own way."""
    by = np.random.default_rng(1).normal(size=(3, *out.log_prob.shape))
    return sum(jnp.sum(jnp.asarray(c, x.dtype) * x) for c, x in zip(by, out[:3], strict=True))


def sweep(statistics, labels, **settings):
    """Statistics, and gradients of a mix of them by hidden, weight and bias: one program."""

    def total(hidden, weight, bias):
        out = statistics(hidden, weight, labels, bias=bias, **settings)
        return mixed(out), out

    def run(*args):
        gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(*args)
        return out, gradients

    return jax.jit(run)


chunked = partial(jaxloss.linear_statistics, chunk_size=4)
SETTINGS = {
    "in one piece": {"chunk_size": None},
    "one token a chunk": {"chunk_size": 1},
    "vocab_first": {"vocab_first": True},
    "softcap": {"logit_softcap": 2.0},
    "where": {"where": np.arange(N) % 3 != 1},
    "temperature": {"temperature": 1.5, "logit_softcap": 2.0},
    "vocab": {"implementation": "vocab", "temperature": 1.5, "vocab_first": True},
    "dense": {"implementation": "dense", "chunk_size": None},
}


# Statistics.


@pytest.mark.parametrize("name", SETTINGS)
def test_statistics_and_gradients(name, x64):
    settings = {"chunk_size": 4, **SETTINGS[name]}
    *args, labels = operands(vocab_first="vocab_first" in settings)
    got = sweep(jaxloss.linear_statistics, labels, **settings)(*args)
    for name in {"chunk_size", "implementation"} & {*settings}:
        del settings[name]
    exact(got, sweep(dense, labels, **settings)(*args))


def test_float32_against_float64():
    *args, labels = operands(np.float32)
    got = sweep(chunked, labels)(*args)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(got)}
    assert dtypes == {"float32", "int32", "bool"}
    with jax.enable_x64(True):
        args = [jnp.asarray(np.asarray(a), jnp.float64) for a in args]
        close(got, sweep(dense, labels)(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.few(4)
def test_half_precision_is_computed_in_float32():
    *args, labels = operands(jnp.bfloat16)
    out, gradients = sweep(chunked, labels)(*args)
    assert {x.dtype for x in out[:3]} == {jnp.dtype(jnp.float32)}
    assert {g.dtype for g in gradients} == {jnp.dtype(jnp.bfloat16)}
    want, wide = sweep(chunked, labels)(*(a.astype(jnp.float32) for a in args))
    close(out, want, rtol=1e-5)
    close(jax.tree.map(np.float32, gradients), wide, rtol=2e-2, atol=2e-2)


def test_leading_axes():
    hidden, weight, bias, labels = operands(np.float32, n=6)
    want = jax.jit(chunked)(hidden, weight, labels, bias=bias)
    got = jax.jit(chunked)(hidden.reshape(2, 3, D), weight, labels.reshape(2, 3), bias=bias)
    close(got, jax.tree.map(lambda x: x.reshape(2, 3), want))
    one = jax.jit(chunked)(hidden[0], weight, labels[0], bias=bias)
    close(one, jax.tree.map(lambda x: x[0], want))


@pytest.mark.parametrize("axis_name", [None, "v"], ids=["", "over devices"])
def test_argmax_is_the_first_of_the_largest(axis_name):
    x = np.zeros((4, 16), np.float32)
    x[1, [5, 11]], x[2, [2, 15]], x[3, [14, 15]] = 1, 3, 2
    hidden, labels = jnp.eye(4), jnp.zeros(4, jnp.int32)
    run = partial(chunked, axis_name=axis_name)
    if axis_name:
        run = over_vocabulary(run, weights=(1,), count=3)
    np.testing.assert_array_equal(run(hidden, jnp.asarray(x), labels).argmax, [0, 5, 2, 14])


def one_token(weight, label=0):
    return jaxloss.linear_statistics(jnp.ones((1, 1)), weight[None], jnp.array([label]))


def test_a_confident_label_keeps_its_tail():
    run = jax.jit(jax.value_and_grad(lambda w: one_token(w).log_prob[0]))
    value, gradient = run(jnp.array([30.0, 0.0, 0.0]))
    tail = 2 * np.exp(-30)
    np.testing.assert_allclose(value, -tail, rtol=1e-6)
    np.testing.assert_allclose(gradient, [tail, -tail / 2, -tail / 2], rtol=1e-6)


def test_a_common_offset_moves_only_the_normaliser():
    # Multiples of 1/1024, which float32 holds at 1e4.
    logits = np.round(1024 * rng().normal(size=V)) / 1024
    here, there = (jax.jit(one_token)(jnp.asarray(logits + by, jnp.float32)) for by in (0, 1e4))
    close((here.log_prob, here.entropy), (there.log_prob, there.entropy), rtol=1e-6)
    np.testing.assert_allclose(there.logsumexp - here.logsumexp, 1e4, rtol=1e-6)
    assert here.argmax == there.argmax


def test_bounds_of_the_entropy():
    run = jax.jit(jax.value_and_grad(lambda w: one_token(w).entropy[0]))
    for n in (1, 7, 300):
        np.testing.assert_allclose(run(jnp.zeros(n))[0], np.log(n), rtol=2e-7)
    value, gradient = run(jnp.array([0.0, -jnp.inf, 0.0]))
    np.testing.assert_allclose(value, np.log(2), rtol=2e-7)
    np.testing.assert_array_equal(gradient, [0, 0, 0])


def test_masked_tokens_are_zero_whatever_they_hold():
    hidden, weight, bias, labels = operands(np.float32)
    where = jnp.arange(N) % 3 != 1
    want = sweep(chunked, labels, where=where)(hidden, weight, bias)
    labels = jnp.where(where, labels, -100)
    hidden = jnp.where(where[:, None], hidden, jnp.nan)
    got = sweep(chunked, labels, where=where)(hidden, weight, bias)
    close(got, want, rtol=0, atol=0)
    for column in (*got[0][:5], got[1][0]):
        np.testing.assert_array_equal(column[~where], 0)


@pytest.mark.parametrize("where", [None, np.arange(N) % 3 != 1])
def test_ignored_tokens_are_masked(where):
    *args, labels = operands(np.float32)
    ignored = jnp.arange(N) % 4 == 0
    kept = ~ignored if where is None else ~ignored & where
    got = sweep(chunked, jnp.where(ignored, -7, labels), where=where, ignore_index=-7)(*args)
    close(got, sweep(chunked, labels, where=kept)(*args))


def test_a_bad_label_is_loud_in_its_own_row():
    *args, labels = operands(np.float32)
    labels = labels.at[2].set(V).at[5].set(-1)
    out, gradients = sweep(chunked, labels)(*args)
    bad = np.isin(np.arange(N), [2, 5])
    np.testing.assert_array_equal(np.isnan(out.log_prob), bad)
    np.testing.assert_array_equal(np.isnan(gradients[0]), np.broadcast_to(bad[:, None], (N, D)))
    assert np.isfinite(out.logsumexp).all()
    assert np.isfinite(out.entropy).all()


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_tokens(n):
    *args, labels = operands(np.float32, n=n)
    out, gradients = sweep(chunked, labels)(*args)
    assert {column.shape for column in out[:5]} == {(n,)}
    assert all(np.isfinite(g).all() for g in gradients)


# Every transformation, of both functions.

NAMES = pytest.mark.parametrize("name", ["statistics", "kl", pytest.param("js", marks=slow)])


def tempered(x, temperature):
    return jax.nn.log_softmax(x / temperature)


def dense_distillation(
    hidden, weight, teacher_hidden, teacher_weight,
    *, divergence="kl", beta=0.5, alpha=0.1, temperature=1.0, bias=None, teacher_bias=None,
    vocab_first=False, reduction="mean", weights=None, where=None, logit_softcap=None,
    teacher_logit_softcap=None,
):  # fmt: skip
    x = logits_of(hidden, weight, bias, vocab_first, logit_softcap)
    y = logits_of(teacher_hidden, teacher_weight, teacher_bias, vocab_first, teacher_logit_softcap)
    log_p, log_t = tempered(x, temperature), tempered(y, temperature)
    p, t = jnp.exp(log_p), jnp.exp(log_t)

    def kl(a, b):
        return jnp.sum(a * jnp.log(a / b), -1)

    m = beta * t + (1 - beta) * p
    losses = {
        "kl": kl(t, p),
        "reverse_kl": kl(p, t),
        "js": beta * kl(t, m) + (1 - beta) * kl(p, m),
        "skew_kl": kl(t, alpha * t + (1 - alpha) * p),
        "skew_reverse_kl": kl(p, alpha * p + (1 - alpha) * t),
        "total_variation": jnp.sum(jnp.abs(p - t), -1) / (2 * temperature),
    }[divergence]
    losses = temperature**2 * losses
    weights = jnp.ones_like(losses) if weights is None else weights
    live = jnp.ones(losses.shape, bool) if where is None else where
    losses, weights = jnp.where(live, weights * losses, 0), jnp.where(live, weights, 0)
    size = {"none": 1, "sum": 1, "mean": jnp.sum(live), "weighted_mean": jnp.sum(weights)}
    total = losses if reduction == "none" else jnp.sum(losses)
    return total / jnp.asarray(size[reduction], total.dtype)


def two_heads(dtype=np.float64, vocab_first=False):
    """Student and teacher, of different features: hidden and weight of each, then biases."""
    hidden, weight, bias, _ = operands(dtype, vocab_first=vocab_first)
    draw = np.random.default_rng(1)
    shapes = (N, 7), (V, 7) if vocab_first else (7, V), (V,)
    teacher = [jnp.asarray(draw.normal(size=shape), dtype) for shape in shapes]
    return hidden, weight, *teacher[:2], bias, teacher[2]


def distillation_of(loss, **settings):
    return lambda h, w, th, tw, b, tb: loss(h, w, th, tw, bias=b, teacher_bias=tb, **settings)


def distillation_pair(divergence):
    settings = {"divergence": divergence, "temperature": 1.5}
    return (
        distillation_of(jaxloss.linear_distillation, chunk_size=4, **settings),
        distillation_of(dense_distillation, **settings),
    )


def subject(name):
    """A function, its dense formula, and their floating operands."""
    if name == "statistics":
        *args, labels = operands()
        pair = (lambda h, w, b, f=f: mixed(f(h, w, labels, bias=b)) for f in (chunked, dense))
        return *pair, args
    return *distillation_pair(name), list(two_heads())


def directions(args, seed=3):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.normal(size=a.shape), a.dtype) for a in args]


def every(args):
    return tuple(range(len(args)))


def hvp_forward_over_reverse(f, args, v):
    return jax.jvp(jax.grad(f, every(args)), tuple(args), tuple(v))[1]


def hvp_reverse_over_reverse(f, args, v):
    inner = lambda *a: sum(
        jnp.sum(g * d) for g, d in zip(jax.grad(f, every(args))(*a), v, strict=True)
    )
    return jax.grad(inner, every(args))(*args)


def hvp_reverse_over_forward(f, args, v):
    return jax.grad(lambda *a: jax.jvp(f, a, tuple(v))[1], every(args))(*args)


def third(f, args, v):
    second = lambda *a: jax.jvp(lambda *b: jax.jvp(f, b, tuple(v))[1], a, tuple(v))[1]
    return jax.grad(second, every(args))(*args)


MODES = {
    "jvp": lambda f, args, v: jax.jvp(f, tuple(args), tuple(v)),
    "hessian": lambda f, args, v: jax.hessian(f, (0, 1))(*args),
    "reverse over reverse": hvp_reverse_over_reverse,
}
FURTHER_MODES = {
    "linearize": lambda f, args, v: jax.linearize(f, *args)[1](*v),
    "jacfwd": lambda f, args, v: jax.jacfwd(f, 1)(*args),
    "forward over reverse": hvp_forward_over_reverse,
    "reverse over forward": hvp_reverse_over_forward,
    "third": third,
    "checkpoint": lambda f, args, v: jax.grad(jax.checkpoint(f), every(args))(*args),
}


def agree(mode, name):
    got, want, args = subject(name)
    run = lambda f: jax.jit(partial(mode, f))(args, directions(args))
    exact(run(got), run(want))


@NAMES
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.few(3)
def test_derivatives(name, mode, x64):
    agree(MODES[mode], name)


@slow
@NAMES
@pytest.mark.parametrize("mode", FURTHER_MODES)
def test_further_derivatives(name, mode, x64):
    agree(FURTHER_MODES[mode], name)


@NAMES
def test_vmap(name, x64):
    got, want, args = subject(name)
    stacked = [jnp.stack([a, -a / 2]) for a in args]
    run = lambda f: jax.jit(jax.vmap(jax.value_and_grad(f, every(args))))(*stacked)
    exact(run(got), run(want))


@slow
@NAMES
def test_vmap_over_each_operand(name, x64):
    got, want, args = subject(name)
    for i in every(args):
        axes = [0 if j == i else None for j in every(args)]
        stacked = [jnp.stack([a, -a / 2]) if j == i else a for j, a in enumerate(args)]
        run = lambda f, axes=axes: jax.jit(jax.vmap(jax.value_and_grad(f, every(args)), axes))
        exact(run(got)(*stacked), run(want)(*stacked))


# Distillation.

WEIGHTS = np.linspace(0, 2, N)
DIVERGENCES = pytest.mark.parametrize("divergence", ["kl", pytest.param("js", marks=slow)])
DISTILLATIONS = {
    "cold": {"temperature": 0.25, "logit_softcap": 2.0, "teacher_logit_softcap": 3.0},
    "none": {"reduction": "none", "weights": WEIGHTS},
    "all": {
        "weights": WEIGHTS,
        "where": np.arange(N) % 4 != 1,
        "reduction": "weighted_mean",
        "temperature": 2.0,
        "vocab_first": True,
    },
    "plain": {},
    "sum": {"reduction": "sum"},
    "where": {"where": np.arange(N) % 3 != 1},
    "weights": {"weights": WEIGHTS},
    "weighted_mean": {"weights": WEIGHTS, "reduction": "weighted_mean"},
}
ROWS = [pytest.param(n, marks=[slow] * (i > 2), id=n) for i, n in enumerate(DISTILLATIONS)]


@pytest.mark.parametrize("divergence", ["kl", "js"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.few(3)
def test_distillation(name, divergence, x64):
    settings = {"divergence": divergence, **DISTILLATIONS[name]}
    heads = two_heads(vocab_first="vocab_first" in settings)
    by = jnp.asarray(np.linspace(1, 2, N)) if name == "none" else 1

    def value_and_gradients(loss):
        run = distillation_of(loss, **settings)
        return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(by * run(*a)), every(heads)))(*heads)

    got = value_and_gradients(partial(jaxloss.linear_distillation, chunk_size=4))
    exact(got, value_and_gradients(dense_distillation))


FURTHER = {
    "reverse_kl": {"divergence": "reverse_kl"},
    "js": {"divergence": "js", "beta": 0.25},
    "skew_kl": {"divergence": "skew_kl"},
    "skew_reverse_kl": {"divergence": "skew_reverse_kl", "alpha": 0.3},
    "total_variation": {"divergence": "total_variation"},
}


@pytest.mark.parametrize("name", FURTHER)
def test_further_divergences(name, x64):
    settings = {"temperature": 1.5, "logit_softcap": 4.0, "weights": WEIGHTS, **FURTHER[name]}
    heads = two_heads()

    def orders(f, *args):
        return jax.value_and_grad(f, every(args))(*args), hvp_forward_over_reverse(
            f, args, directions(args)
        )

    fused = distillation_of(partial(jaxloss.linear_distillation, chunk_size=4), **settings)
    got = jax.jit(partial(orders, fused))(*heads)
    exact(got, jax.jit(partial(orders, distillation_of(dense_distillation, **settings)))(*heads))


@pytest.mark.parametrize("divergence", ["js", "skew_kl", "skew_reverse_kl"])
def test_derivatives_by_beta_and_alpha(divergence, x64):
    heads, name = two_heads()[:4], "beta" if divergence == "js" else "alpha"

    def orders(loss):
        of = lambda w: loss(*heads, divergence=divergence, **{name: w})
        return jax.jit(lambda w: (of(w), jax.grad(of)(w), jax.grad(jax.grad(of))(w)))(0.3)

    exact(orders(partial(jaxloss.linear_distillation, chunk_size=4)), orders(dense_distillation))


@pytest.mark.parametrize("name", ["js", "skew_kl", "skew_reverse_kl"])
def test_a_student_close_to_its_teacher_keeps_its_digits(name):
    x = np.float32(rng().normal(size=(1, V)))
    y = x + np.float32(1e-3) * np.float32(np.cos(np.arange(V)))
    run = lambda h, w, th, tw: jaxloss.linear_distillation(h, w, th, tw, **FURTHER[name])
    one = np.eye(V, dtype=np.float32)
    value, gradient = jax.jit(jax.value_and_grad(run))(x, one, y, one)
    with jax.enable_x64(True):
        wide = jnp.float64(x), jnp.eye(V), jnp.float64(y), jnp.eye(V)
        want = jax.value_and_grad(partial(dense_distillation, **FURTHER[name]))(*wide)
    # The logits themselves differ by 1e-3, of which float32 keeps four digits.
    np.testing.assert_allclose(value, want[0], rtol=2e-4)
    np.testing.assert_allclose(gradient, want[1], atol=2e-4 * np.abs(want[1]).max())


@pytest.mark.parametrize("name", FURTHER)
def test_a_class_that_only_one_of_both_has(name):
    """The divergence is finite but for a reverse KL, and so are its derivatives."""
    bias = jnp.array([0.0, -jnp.inf, 0.0, -jnp.inf])
    teacher_bias = jnp.array([0.0, 0.0, -jnp.inf, -jnp.inf])
    run = lambda w: jaxloss.linear_distillation(
        jnp.ones((1, 1)), w, jnp.ones((1, 1)), 2 * w, bias=bias, teacher_bias=teacher_bias,
        **FURTHER[name],
    )  # fmt: skip
    value, gradient = jax.jit(jax.value_and_grad(run))(jnp.array([[0.1, 0.2, 0.3, 0.4]]))
    assert np.isinf(value) if name == "reverse_kl" else np.isfinite(value)
    assert not np.isnan(gradient).any()
    assert gradient[0, 3] == 0


def test_errors_of_divergences():
    h, w = jnp.ones((2, 3)), jnp.ones((3, 5))
    run = partial(jaxloss.linear_distillation, h, w, h)
    with pytest.raises(ValueError, match=r"student has 5 classes .* teacher 4"):
        run(jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"beta must be inside .* take divergence='kl'"):
        run(w, divergence="js", beta=0.0)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        run(w, divergence="skew_kl", alpha=1.5)
    with pytest.raises(ValueError, match=r"one of .*'total_variation'"):
        run(w, divergence="tv")


def test_temperature_and_weights_are_differentiable(x64):
    heads = two_heads()

    def run(loss, temperature, weights):
        return loss(*heads[:4], temperature=temperature, weights=weights)

    args = jnp.asarray(1.5), jnp.asarray(WEIGHTS)
    for divergence in ("kl", "js"):
        got, want = (
            jax.jit(jax.grad(partial(run, partial(loss, divergence=divergence)), (0, 1)))(*args)
            for loss in (partial(jaxloss.linear_distillation, chunk_size=4), dense_distillation)
        )
        exact(got, want)


@DIVERGENCES
def test_float32_distillation_against_float64(divergence):
    narrow = two_heads(np.float32)
    run = distillation_of(jaxloss.linear_distillation, divergence=divergence, chunk_size=4)
    got = jax.jit(jax.value_and_grad(run, (0, 1)))(*narrow)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in narrow]
        want = jax.value_and_grad(
            distillation_of(dense_distillation, divergence=divergence), (0, 1)
        )
        close(got, jax.jit(want)(*wide), rtol=3e-5, atol=3e-6)


@DIVERGENCES
def test_a_student_that_equals_its_teacher(divergence):
    hidden, weight, _, _ = operands(np.float32)
    run = lambda h, w: jaxloss.linear_distillation(
        h, w, hidden, weight, divergence=divergence, temperature=2.0, chunk_size=4
    )
    value, gradients = jax.jit(jax.value_and_grad(run, (0, 1)))(hidden, weight)
    np.testing.assert_allclose(value, 0, atol=1e-7)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


@DIVERGENCES
@pytest.mark.parametrize("kind", ["where", "weights"])
def test_tokens_that_do_not_count_change_nothing(kind, divergence):
    hidden, weight, teacher_hidden, teacher_weight, *_ = two_heads(np.float32)
    live = jnp.arange(N) % 3 != 1
    settings = {"where": live} if kind == "where" else {"weights": live.astype(jnp.float32)}
    run = lambda h, w, th, tw: jaxloss.linear_distillation(
        h, w, th, tw, divergence=divergence, chunk_size=4, **settings
    )
    grads = jax.jit(jax.value_and_grad(run, (0, 1, 2, 3)))
    bad = [jnp.where(live[:, None], a, jnp.nan) for a in (hidden, teacher_hidden)]
    want = grads(hidden, weight, teacher_hidden, teacher_weight)
    close(grads(bad[0], weight, bad[1], teacher_weight), want, rtol=0, atol=0)


def dots(f, *args):
    """How many matmuls of the size of the logits a compiled program has."""
    return as_users(f).lower(*args).compile().as_text().count(" dot(")


@DIVERGENCES
def test_what_is_frozen_costs_no_matmul(divergence):
    heads = two_heads(np.float32)[:4]
    loss = partial(jaxloss.linear_distillation, divergence=divergence)
    count = lambda argnums: dots(jax.value_and_grad(loss, argnums), *heads)
    assert dots(loss, *heads) == 2
    assert count((0, 1)) == 4
    assert count((0,)) == count((1,)) == 3
    assert count((0, 1, 2, 3)) == 6
    stopped = lambda h, w, th, tw: loss(h, w, *map(jax.lax.stop_gradient, (th, tw)))
    assert dots(jax.value_and_grad(stopped, (0, 1, 2, 3)), *heads) == 4


def test_statistics_cost_one_matmul_forward_and_four_with_gradients():
    hidden, weight, _, labels = operands(np.float32)
    run = lambda h, w: mixed(jaxloss.linear_statistics(h, w, labels))
    assert dots(run, hidden, weight) == 1
    assert dots(jax.value_and_grad(run, (0, 1)), hidden, weight) <= 4
    assert dots(jax.value_and_grad(run), hidden, weight) <= 3


@pytest.mark.parametrize("name", ["statistics", pytest.param("distillation", marks=slow)])
def test_memory_falls_with_the_chunk(name):
    n, d, v = 512, 16, 4096
    h, w = jnp.zeros((n, d)), jnp.zeros((d, v))
    labels = jnp.zeros(n, jnp.int32)

    def temporary(chunk_size):
        run = {
            "statistics": lambda h, w: jnp.sum(
                jaxloss.linear_statistics(h, w, labels, chunk_size=chunk_size).log_prob
            ),
            "distillation": lambda h, w: jaxloss.linear_distillation(
                h, w, 2 * h, 2 * w, chunk_size=chunk_size
            ),
        }[name]
        compiled = as_users(jax.value_and_grad(run, (0, 1))).lower(h, w).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(32) < temporary(512) / 4


def test_default_chunks_take_the_same_memory_as_those_of_the_cross_entropy():
    """Its gradients need more arrays of a chunk's logits, so a chunk has fewer tokens."""
    shapes = [
        jax.ShapeDtypeStruct(*of) for of in (((2048, 32), "float32"), ((32, 32000), "float32"))
    ]
    labels = jnp.zeros(2048, jnp.int32)

    def statistics(h, w):
        out = jaxloss.linear_statistics(h, w, labels)
        return jnp.mean(out.logsumexp**2 - out.log_prob)

    def temporary(run):
        compiled = as_users(jax.value_and_grad(run, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    logits = 4 * 2048 * 32000 / 2**20
    # Beside 128 MiB for the logits and their gradients, those of the weight.
    assert temporary(statistics) < 150 < 2 * logits / 3
    assert temporary(lambda h, w: jaxloss.linear_cross_entropy(h, w, labels)) < 150


# Over devices.


def over_vocabulary(fn, weights, count):
    """`fn` of `count` operands, of which those in `weights` have their last axis split."""
    specs = tuple(P(None, "v") if i in weights else P() for i in range(count))
    return jax.jit(jax.shard_map(fn, mesh=mesh(v=8), in_specs=specs, out_specs=P()))


@NAMES
def test_vocabulary_over_devices(name, x64):
    draw = np.random.default_rng(2)
    arrays = [jnp.asarray(draw.normal(size=s)) for s in [(N, D), (D, 24), (N, 7), (7, 24)]]
    labels = jnp.asarray(draw.integers(0, 24, N), jnp.int32)
    if name == "statistics":
        arrays, weights = arrays[:2], (1,)
        loss = lambda h, w, **axis: mixed(chunked(h, w, labels, **axis))
    else:
        weights = (1, 3)
        loss = partial(jaxloss.linear_distillation, divergence=name, chunk_size=4)
    split = over_vocabulary(partial(loss, axis_name="v"), weights, len(arrays))
    run = lambda f: jax.jit(jax.value_and_grad(f, every(arrays)))(*arrays)
    exact(run(split), run(loss))


# A loss of a user's own.


def dpo_loss(hidden, weight, reference_hidden, reference_weight, tokens, mask, beta):
    """Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290, equation 7.

    All arrays but the weights have a leading axis of size 2, the chosen and the rejected
    responses, then one of pairs and one of tokens.
    """

    def log_probs(hidden, weight):
        stats = jaxloss.linear_statistics(hidden, weight, tokens, where=mask, chunk_size=4)
        return jnp.sum(stats.log_prob, -1)

    reference = jax.lax.stop_gradient(log_probs(reference_hidden, reference_weight))
    chosen, rejected = log_probs(hidden, weight) - reference
    margins = beta * (chosen - rejected)
    return jnp.mean(jaxloss.sigmoid_binary_cross_entropy(margins, jnp.ones_like(margins)))


def dense_dpo(hidden, weight, reference_hidden, reference_weight, tokens, mask, beta):
    total = 0.0
    for pair in range(tokens.shape[1]):
        ratio = []
        for which in (0, 1):
            policy = jax.nn.log_softmax(hidden[which, pair] @ weight)
            reference = jax.nn.log_softmax(reference_hidden[which, pair] @ reference_weight)
            at = np.flatnonzero(mask[which, pair])
            of = tokens[which, pair][at]
            ratio.append(jnp.sum(policy[at, of]) - jnp.sum(reference[at, of]))
        total = total - jnp.log(1 / (1 + jnp.exp(-beta * (ratio[0] - ratio[1]))))
    return total / tokens.shape[1]


def preferences(dtype):
    pairs, length, draw = 3, 5, np.random.default_rng(4)
    hidden, reference = draw.normal(size=(2, 2, pairs, length, D))
    weight, reference_weight = draw.normal(size=(2, D, V))
    tokens = draw.integers(0, V, (2, pairs, length)).astype(np.int32)
    lengths = draw.integers(1, length + 1, (2, pairs, 1))
    arrays = (jnp.asarray(a, dtype) for a in (hidden, weight, reference, reference_weight))
    return *arrays, tokens, np.arange(length) < lengths


def test_dpo(x64):
    *arrays, tokens, mask = preferences(np.float64)
    run = lambda loss: lambda h, w: loss(h, w, *arrays[2:], tokens, mask, 0.3)
    both = lambda f, args, v: (
        jax.value_and_grad(f, (0, 1))(*args),
        hvp_forward_over_reverse(f, args, v),
    )
    args = arrays[:2], directions(arrays[:2])
    exact(*(jax.jit(partial(both, run(f)))(*args) for f in (dpo_loss, dense_dpo)))


def test_dpo_in_float32():
    *arrays, tokens, mask = preferences(np.float32)
    loss = lambda f: lambda h, w: f(h, w, *arrays[2:], tokens, mask, 0.3)
    got = jax.jit(jax.value_and_grad(loss(dpo_loss), (0, 1)))(*arrays[:2])
    with jax.enable_x64(True):
        arrays = [jnp.asarray(np.asarray(a), jnp.float64) for a in arrays]
        want = jax.jit(jax.value_and_grad(loss(dense_dpo), (0, 1)))(*arrays[:2])
        close(got, want, rtol=1e-5, atol=1e-6)
