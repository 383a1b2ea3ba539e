"""The room for XLA's CPU backend: it changes what a program writes, and no right number."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxlib import version as jaxlib

from jaxloss._core import passes
from tests.devices import mesh
from tests.programs import as_users

X = jnp.float32([-3.0, -0.0, 0.0, 1e-30, 0.5, 80.0, jnp.inf])
Z = jnp.float32([0.0, 1.0, 0.25, 0.5, 1.0, 0.0, 0.0])


def value(x, z):
    wrong = passes.times(1 - z, jnp.maximum(x, 0)) + passes.times(z, jnp.maximum(-x, 0))
    return wrong + jnp.log1p(jnp.exp(-jnp.abs(x)))


def slope(x, z):
    return (1 - z) * jax.lax.logistic(x) - z * jax.lax.logistic(-x)


def summed(x, z):
    """What a training step makes of a value and a gradient, in passes over the operands."""
    return lambda f: (jnp.sum(f(x, z)), jnp.sum(slope(x, z) ** 2))


def written(formula, *shapes) -> int:
    """Bytes of the arrays that the compiled program writes on its way."""
    return as_users(formula).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_without_a_pass_of_its_own_arrays_are_written():
    """The day that this fails, `passes` can go."""
    shape = jax.ShapeDtypeStruct((512, 1000), jnp.float32)
    full = 4 * 512 * 1000
    assert written(lambda x, z: summed(x, z)(value), shape, shape) >= 2 * full
    assert written(lambda x, z: summed(x, z)(passes.own_pass(value)), shape, shape) < full / 100


def test_what_a_caller_computes_is_written_once():
    shape = jax.ShapeDtypeStruct((512, 1000), jnp.float32)
    full = 4 * 512 * 1000
    plain = written(lambda x, z: summed(x, 0.9 * z + 0.05)(value), shape, shape)
    own = written(lambda x, z: summed(x, 0.9 * z + 0.05)(passes.own_pass(value)), shape, shape)
    assert plain >= 3 * full and own < 1.01 * full


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_the_numbers_are_the_formula_s(wide):
    with jax.enable_x64(wide):
        x, z = (a.astype(jnp.float64 if wide else jnp.float32) for a in (X, Z))
        own = passes.own_pass(value)
        for f in (as_users, jax.vmap, lambda f: as_users(jax.vmap(f)), lambda f: f):
            np.testing.assert_array_equal(f(own)(x, z), f(value)(x, z))
        assert jnp.all(jnp.isnan(own(x * jnp.nan, z)))
        assert own(x[:0], z[:0]).shape == (0,)


def test_operands_may_be_trees_and_integers():
    @passes.own_pass
    def formula(tree, k):
        return tree["a"] * tree["b"][0] + k.astype(jnp.float32)

    a, k = jnp.float32([1, 2]), jnp.int32([3, 4])
    np.testing.assert_array_equal(formula({"a": a, "b": (a, None)}, k), [4.0, 8.0])


def test_one_batch_has_one_one():
    """Under `vmap` over single numbers too the pass writes no array."""
    shape = jax.ShapeDtypeStruct((512_000,), jnp.float32)
    one = jax.vmap(passes.own_pass(value))
    assert written(lambda x, z: summed(x, z)(one), shape, shape) < 4 * 512_000 / 100


def test_in_loops_and_on_devices():
    own, m = passes.own_pass(value), mesh(d=8)
    x, z = jnp.linspace(-3, 3, 16), jnp.linspace(0, 1, 16)
    expected = value(x, z)
    scanned = jax.lax.scan(lambda c, xz: (c, own(*xz)), 0.0, (x, z))[1]
    np.testing.assert_array_equal(scanned, expected)
    spec = PartitionSpec("d")
    mapped = as_users(jax.shard_map(own, mesh=m, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_array_equal(mapped(x, z), expected)
    explicit = mesh(AxisType.Explicit, d=8)
    with jax.set_mesh(explicit):
        put = partial(jax.device_put, device=NamedSharding(explicit, PartitionSpec("d")))
        np.testing.assert_array_equal(as_users(own)(put(x), put(z)), expected)


@pytest.mark.parametrize("n", [1, passes.SHORT, passes.SHORT + 1, 100])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums(n, axis):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(np.moveaxis(rng.normal(size=(5, n)), 1, axis), jnp.float32) for _ in "xw")
    top = jnp.max(x, axis, keepdims=True)

    def terms(x, w, top):
        return jnp.exp(x - top), w, top  # The last is one number a row, and counts n times.

    got = as_users(lambda *a: passes.sums(terms, axis, *a))(x, w, top)
    for g, term in zip(got, terms(x, w, top), strict=True):
        full = jnp.broadcast_to(term, x.shape)
        np.testing.assert_allclose(g, jnp.sum(full, axis, keepdims=True), rtol=1e-5, atol=1e-5)


def test_several_sums_of_long_rows_write_nothing():
    def terms(x, w, top):
        other = passes.step(top - x)
        return jnp.exp(x - top) * other, w * other, 1 - other

    def all_of(x, w):
        return passes.sums(terms, 1, x, w, jnp.max(x, 1, keepdims=True))

    shape = jax.ShapeDtypeStruct((512, 1000), jnp.float32)
    assert written(all_of, shape, shape) < 4 * 512 * 1000 / 50


def test_unless():
    """What is known is not computed on a CPU, and elsewhere as computed."""

    def formula(x):
        return x + 1, 2 * x

    x = jnp.float32([1.0, 2.0])
    for wrap in (lambda f: f, jax.jit):
        for known, expected in ((True, (x, x)), (False, formula(x))):
            run = wrap(lambda known, x: passes.unless(known, (x, x), formula, x))
            np.testing.assert_array_equal(run(jnp.array(known), x), expected)
    each = jax.vmap(lambda known, x: passes.unless(known, (x, x), formula, x))
    np.testing.assert_array_equal(each(jnp.array([True, False]), x), [[1, 3], [1, 4]])


def test_pieces():
    x = jnp.float32([0.0, 1e-38, 1.0, jnp.inf])
    np.testing.assert_array_equal(passes.step(x)[jnp.array([0, 2, 3])], [0, 1, 1])
    assert passes.step(jnp.float32(1e-30)) == 1
    w = jnp.float32([0.0, 0.5])
    np.testing.assert_array_equal(passes.times(w, jnp.float32([jnp.inf, jnp.inf])), [0, jnp.inf])
    np.testing.assert_array_equal(passes.times(w, jnp.float32([2.0**127] * 2)), [0, 2.0**126])
    assert jnp.isnan(passes.nan_of(jnp.float32(jnp.nan))) and passes.nan_of(jnp.float32(-2)) == 0


@pytest.mark.parametrize("shape", [(300, passes.SHORT), (300, 1000), (3, 7), (2, 40, 1000)])
def test_largest_is_loud(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x.reshape(-1, shape[-1])[1, ::2] = -np.inf
    run = as_users(lambda x: passes.largest(x, x.ndim - 1))
    np.testing.assert_array_equal(run(x), np.max(x, -1))
    for entry in (0, 1, shape[-1] // 2, -1):
        for other in (0.0, np.inf, -np.inf):
            y = x.copy()
            y[..., 0, 3], y[..., 0, entry], y[..., 1, 0] = other, np.nan, np.inf
            np.testing.assert_array_equal(run(y), np.max(y, -1))
            np.testing.assert_array_equal(jax.vmap(run)(y) if y.ndim > 2 else run(y), run(y))


def test_sums_of_rows_have_to_be_settled():
    """For jaxlib 0.10.2. The day that no version supported is as wrong, `settled` can go."""
    rng = np.random.default_rng(0)
    p, v = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 48, 5), (240, 48, 5)))
    right = v - np.sum(np.float64(p) * v, -1, keepdims=True)

    def error(settle):
        got = as_users(lambda p, v: v - settle(jnp.sum(p * v, -1, keepdims=True)))(p, v)
        return np.max(np.abs(got - right))

    assert error(passes.settled) < 1e-5
    assert (error(lambda s: s) > 1) == (jaxlib.__version__ == "0.10.2")
