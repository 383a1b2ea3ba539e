"""`Mean`: totals and sizes add up, and only its value divides."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import Loss, Mean
from tests.devices import mesh

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype("f")
Y = np.array([0, 2, 1, -1, 1, 0])
W = np.array([1.0, 0.0, 0.5, 3.0, 2.0, 0.25], "f")
M = np.array([True, True, False, True, True, False])
ce = jaxloss.softmax_cross_entropy_with_integer_labels


def close(got, want, rtol=2e-6):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=1e-7), got, want)


def test_adds_up():
    a, b = Mean(2.0, 1), Mean(jnp.array(3.0), jnp.array(9))
    for total in (a + b, sum([a, b]), sum((a, Mean(), b), Mean()), 0 + a + b):
        assert isinstance(total, Mean)
        assert (total.total, total.size, total.value) == (5, 10, 0.5)
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(TypeError):
        2.0 + a


@pytest.mark.parametrize("total", [1, True, np.float16(1), jnp.ones((), jnp.bfloat16), 1.0])
def test_at_least_float32(total):
    mean = Mean(total, np.int8(3))
    assert mean.total.dtype == mean.size.dtype == mean.value.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = Mean(jnp.ones((), jnp.float64), 3)
        assert wide.total.dtype == wide.size.dtype == wide.value.dtype == jnp.float64


def test_nothing_counts():
    value = jax.value_and_grad(lambda t, n: Mean(t, n).value, (0, 1))
    assert jax.jit(value)(3.0, 0.0) == (0, (0, 0))
    assert value(3.0, 2.0) == (1.5, (0.5, -0.75))
    assert Mean().value == 0
    np.testing.assert_array_equal(Mean(jnp.arange(3.0), jnp.array([0, 2, 4])).value, [0, 0.5, 0.5])
    np.testing.assert_array_equal(Mean(jnp.arange(3.0), 2).value, [0, 0.5, 1])


def test_as_a_tree():
    mean = Mean(3.0, 4.0)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(mean)]
    assert paths == [".total", ".size"]
    assert jax.jit(lambda m: m + m)(mean).value == 0.75
    assert jax.tree.map(lambda _: "axis", mean).total == "axis"
    carry, _ = jax.lax.scan(lambda m, x: (m + Mean(x, 1), None), Mean(), jnp.arange(5.0))
    assert (carry.total, carry.size) == (10, 5)
    stacked = jax.vmap(lambda x: Mean(x, 2))(jnp.arange(3.0))
    np.testing.assert_array_equal(stacked.value, [0, 0.5, 1])
    assert jax.tree.map(jnp.sum, stacked).value == 0.5
    with pytest.raises(AttributeError):
        mean.total = 0.0  # ty: ignore


def test_over_mapped_axes():
    shares = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 9.0])
    means = jax.vmap(lambda t, n: Mean(t, n).psum("d"), axis_name="d")(*shares)
    close(means.value, np.full(3, 0.6))

    def local(x):
        return Mean.of(x, where=x > 1).psum("d")

    whole = jax.shard_map(local, mesh=mesh(d=8), in_specs=P("d"), out_specs=P())
    got = jax.jit(whole)(jnp.arange(16.0))
    assert (got.total, got.size) == (119, 14)


@pytest.mark.parametrize("kwargs", [{}, {"where": M}, {"weights": W}, {"where": M, "weights": W}])
@pytest.mark.parametrize("reduction", ["mean", "weighted_mean"])
@pytest.mark.few(3)
def test_parts_of_a_loss(reduction, kwargs):
    loss = Loss(ce, reduction, ignore_index=-1)

    def cut(x, parts):
        parts = [slice(i, j) for i, j in zip((0, *parts), (*parts, 6), strict=True)]
        of = [{k: v[part] for k, v in kwargs.items()} for part in parts]
        zipped = zip(parts, of, strict=True)
        return sum(loss.parts(x[part], Y[part], **of) for part, of in zipped).value

    whole = jax.jit(jax.value_and_grad(lambda x: loss(x, Y, **kwargs)))(X)
    of_parts = jax.jit(jax.value_and_grad(cut), static_argnums=1)
    for parts in ((), (2,), (3, 4, 4)):
        close(of_parts(X, parts), whole)
    # Values of examples, by the same reduction.
    each = Loss(ce, "none", ignore_index=-1)(X, Y)
    where = kwargs.get("where", True) & (Y >= 0)
    close(Mean.of(each, reduction, **kwargs | {"where": where}).value, whole[0])


@pytest.mark.parametrize("implementation", ["tokens", "vocab", "dense"])
@pytest.mark.parametrize("kwargs", [{}, {"where": M}, {"weights": W}, {"ignore_index": 1}])
@pytest.mark.few(3)
def test_parts_of_a_linear_loss(kwargs, implementation):
    hidden, weight, labels = X, RNG.normal(size=(3, 5)).astype("f"), abs(Y)
    fn = partial(jaxloss.linear_cross_entropy, labels=labels, implementation=implementation)
    parts = partial(fn, reduction="parts", **kwargs)
    got = parts(hidden, weight)
    assert isinstance(got, Mean) and got.total.dtype == got.size.dtype == jnp.float32
    whole = jax.jit(jax.value_and_grad(partial(fn, **kwargs), (0, 1)))(hidden, weight)
    close(jax.jit(jax.value_and_grad(lambda *x: parts(*x).value, (0, 1)))(hidden, weight), whole)
    assert got.size == {"where": 4, "ignore_index": 3}.get(next(iter(kwargs), ""), 6)


def test_parts_of_a_distillation():
    weight = RNG.normal(size=(3, 5)).astype("f")
    fn = partial(jaxloss.linear_distillation, X, weight, 2 * X, weight)
    for kwargs in ({}, {"where": M}, {"weights": W}):
        got = fn(reduction="parts", **kwargs)
        close(got.value, fn(**kwargs))
        assert got.size == (4 if "where" in kwargs else 6)


def test_contents_of_what_is_masked_do_not_matter():
    values = jnp.array([1.0, jnp.nan, 3.0])
    where = jnp.array([True, False, True])
    assert Mean.of(values, where=where).value == 2
    assert Mean.of(values, "weighted_mean", weights=jnp.array([1, 0, 3])).value == 2.5
    assert Mean.of(jnp.array([[1, 2], [3, 4]]), where=jnp.array([False, True])).value == 3.5
    assert Mean.of(np.array([True, False])).value == 0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Mean(jnp.ones(2), jnp.ones(3)), ValueError, r"size of shape \(3,\).*\(2,\)"),
        (lambda: Mean(1.0, jnp.ones(3)), ValueError, r"size of shape \(3,\).*\(\)"),
        (lambda: Mean(1j), TypeError, "total must be real"),
        (lambda: Mean.of(X, where=np.ones(3, bool)), ValueError, "where of shape"),
        (lambda: Mean.of(X, where=np.ones(6)), TypeError, "where must be boolean"),
        (lambda: Mean.of(X, weights=np.ones(3)), ValueError, "weights of shape"),
        (lambda: Mean.of(X, "sum"), ValueError, "no mean, so it has no size"),
        (lambda: Mean.of(X, "average"), ValueError, "reduction must be one of"),
        (lambda: Loss(ce, "none").parts(X, Y), ValueError, "no mean, so it has no size"),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
