"""Reports of what goes wrong: those of `debug_check`, without the effect that makes calls slow."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss._core import reports
from tests.devices import mesh
from tests.rows import each_formula

X = jnp.linspace(1, 8, 8)
GOOD, BAD = jnp.arange(8), jnp.arange(8).at[2].set(-3).at[5].set(9)
ROWS = P("i")


def debug_check(x, ok, message, **numbers):
    checkify.debug_check(ok, message, **numbers)
    return x


def loss(report, x, y):
    """Of predictions and labels: reports labels that are negative, and predictions above 100."""
    y = report(y, jnp.all(y >= 0), "{low} is negative", low=jnp.min(y))
    ok = jnp.all(x <= 100)
    x = report(x, ok, "{high} is large, and so are {all}", high=jnp.max(x), all=jnp.sum(x))
    return x**2 * (1 + y).astype(x.dtype)


def summed(f):
    return lambda x, y: jnp.sum(f(x, y))


def scanned(f):
    return lambda x, y: lax.scan(lambda carry, xy: (carry, f(*xy)), 0.0, (x, y))[1]


def looped(f):
    return lambda x, y: lax.fori_loop(0, 3, lambda i, x: x + f(x, y - i), x)


def branched(f):
    return lambda x, y: lax.cond(x[0] > 0, f, lambda x, _: x, x, y)


def mapped(f):
    return jax.shard_map(f, mesh=mesh(i=8), in_specs=ROWS, out_specs=ROWS)


TRANSFORMATIONS = {
    "none": lambda f: f,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "vmap of vmap": lambda f: lambda x, y: jax.vmap(jax.vmap(f, (None, 0)), (0, None))(x, y),
    "vmap over one": lambda f: jax.vmap(f, (0, None)),
    "grad": lambda f: jax.grad(summed(f)),
    "grad of vmap": lambda f: jax.grad(summed(jax.vmap(f))),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f)),
    "jvp": lambda f: lambda x, y: jax.jvp(lambda x: f(x, y), (x,), (x,)),
    "linearize": lambda f: lambda x, y: jax.linearize(lambda x: f(x, y), x)[1](x),
    "hessian": lambda f: jax.hessian(summed(f)),
    "scan": scanned,
    "grad of scan": lambda f: jax.grad(summed(scanned(f))),
    "while": looped,
    "cond": branched,
    "remat": lambda f: jax.grad(summed(jax.checkpoint(f))),
    "remat of scan": lambda f: jax.grad(summed(scanned(jax.checkpoint(f)))),
    "shard_map": mapped,
    "grad of shard_map": lambda f: jax.grad(summed(mapped(f))),
    "shard_map of vmap": lambda f: mapped(jax.vmap(f)),
}
DROPPED = "grad of scan", "remat of scan"
EVERY = pytest.mark.parametrize("name", TRANSFORMATIONS)


@EVERY
@pytest.mark.parametrize("wrap", [lambda f: f, pytest.param(jax.jit, marks=pytest.mark.slow)])
def test_what_debug_check_reports(name, wrap):
    def checked(report):
        return jax.jit(checkify.checkify(wrap(TRANSFORMATIONS[name](partial(loss, report)))))

    ours, theirs = checked(reports.report), checked(debug_check)
    for x, y in product((X, 30 * X), (GOOD, BAD)):
        (got, out), (want, wanted) = ours(x, y), theirs(x, y)
        jax.tree.map(np.testing.assert_array_equal, out, wanted)
        # Of a loop that is differentiated from outside, JAX drops what has an effect.
        assert got.get() == want.get() or (name in DROPPED and want.get() is None)
        assert (got.get() is None) == (x is X and y is GOOD) or name == "while"


@EVERY
@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.few(4))])
def test_the_numbers_are_the_same_without_checkify(name, eager):
    def both(x, y):
        plain = TRANSFORMATIONS[name](lambda x, y: x**2 * (1 + y).astype(x.dtype))
        return TRANSFORMATIONS[name](partial(loss, reports.report))(x, y), plain(x, y)

    got, want = (both if eager else jax.jit(both))(X, BAD)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_outside_of_checkify_too():
    """What is mapped or differentiated is the checked function."""
    for wrap in (jax.jit, jax.vmap, lambda f: jax.jit(jax.vmap(f)), scanned):
        got = wrap(checkify.checkify(partial(loss, reports.report)))(X, BAD)[0].get()
        want = wrap(checkify.checkify(partial(loss, debug_check)))(X, BAD)[0].get()
        assert got == want and "-3 is negative" in got


def test_other_checks_are_not_reported():
    f = partial(loss, reports.report)
    assert checkify.checkify(f, errors=checkify.float_checks)(X, BAD)[0].get() is None
    both = checkify.checkify(f, errors=checkify.float_checks | checkify.user_checks)
    assert "-3 is negative" in both(X, BAD)[0].get()


def test_explicit_sharding():
    explicit = mesh(AxisType.Explicit, i=8)
    f = partial(loss, reports.report)
    with jax.set_mesh(explicit):
        x, y = (jax.device_put(a, NamedSharding(explicit, ROWS)) for a in (X, BAD))
        for wrap in (lambda f: f, jax.vmap, lambda f: jax.grad(summed(jax.vmap(f)))):
            out = jax.jit(wrap(f))(x, y)
            assert jax.typeof(out).sharding.spec == ROWS
            np.testing.assert_array_equal(out, jax.jit(wrap(f))(X, BAD))


def test_export():
    f = jax.jit(jax.value_and_grad(summed(partial(loss, reports.report))))
    exported = jax.export.export(f, platforms=["cpu", "tpu", "cuda"])(X, BAD)
    jax.tree.map(np.testing.assert_array_equal, exported.call(X, BAD), f(X, BAD))


@each_formula
def test_no_loss_has_an_effect(case):
    x, y = case.random(np.random.default_rng(0), 4)
    for f in (case.fn, jax.grad(lambda x, y: jnp.sum(case.fn(x, y)))):
        assert not jax.make_jaxpr(f)(x, y).effects


def test_checkify_is_where_it_was():
    """If a version of JAX moves its rules, reports are effects again: find the new place."""
    assert reports.KNOWN_TO_CHECKIFY


def test_without_the_rules_reports_are_debug_checks(monkeypatch):
    monkeypatch.setattr(reports, "KNOWN_TO_CHECKIFY", False)
    f = partial(loss, reports.report)
    assert jax.make_jaxpr(f)(X, BAD).effects
    assert checkify.checkify(f)(X, BAD)[0].get() == "-3 is negative (`check` failed)"
