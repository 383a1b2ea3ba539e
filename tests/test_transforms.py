"""Every loss under every transformation: the same values and derivatives as without it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.cases import CASES, FIRST_ROWS
from tests.devices import mesh
from tests.programs import as_users
from tests.rows import each_kind, each_kind_of_function, follows_its_kind, over, slow

BATCH = 16


def rng():
    return np.random.default_rng(0)


def close(got, want, rtol=1e-5, atol=1e-6):
    check = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol, equal_nan=False)
    jax.tree.map(check, got, want)


def argnums(case):
    """What a loss can be differentiated by: predictions, and targets unless integers."""
    return (0,) if case.integer else (0, 1)


def sweep(case, fn=None):
    """The losses of a batch and the gradients of their sum, as one function of the batch."""
    fn = case.fn if fn is None else fn

    def run(x, y):
        def total(*args):
            losses = fn(*args)
            return jnp.sum(losses), losses

        grads, losses = jax.grad(total, argnums(case), has_aux=True)(x, y)
        return losses, grads

    return run


@functools.cache
def plain(name):
    case = next(c for c in CASES if c.name == name)
    x, y = case.random(rng(), BATCH)
    return x, y, jax.jit(sweep(case))(x, y)


def scanned(fn):
    return lambda x, y: lax.scan(lambda carry, row: (carry, fn(*row)), (), (x, y))[1]


def branched(fn):
    return lambda x, y: lax.cond(jnp.sum(x) < 1e9, fn, lambda x, y: jnp.zeros(BATCH), x, y)


def sharded(fn):
    return jax.shard_map(fn, mesh=mesh(i=8), in_specs=P("i"), out_specs=P("i"))


def remat(policy):
    return functools.partial(jax.checkpoint, policy=getattr(jax.checkpoint_policies, policy))


# Differentiated from outside, so that the transformation meets the derivative rules.
TRANSFORMATIONS = {
    "vmap": jax.vmap,
    "checkpoint, saving everything": remat("everything_saveable"),
    "checkpoint, saving nothing": remat("nothing_saveable"),
    "scan": scanned,
    "map": lambda fn: lambda x, y: lax.map(lambda row: fn(*row), (x, y)),
    "cond": branched,
    "shard_map": sharded,
}
SELDOM = dict.fromkeys(("checkpoint, saving everything", "map", "cond"), slow)
NAMES = [pytest.param(name, marks=SELDOM.get(name, ())) for name in TRANSFORMATIONS]


@each_kind_of_function
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.few(15)
def test_differentiated_from_outside(case, name):
    x, y, want = plain(case.name)
    close(jax.jit(sweep(case, TRANSFORMATIONS[name](case.fn)))(x, y), want)


@each_kind
@pytest.mark.few(4)
def test_differentiated_inside(case):
    x, y, want = plain(case.name)
    one = sweep(case)
    close(jax.jit(jax.vmap(one))(x, y), want)
    close(jax.jit(sharded(one))(x, y), want)
    jitted = jax.jit(one)
    rows = [jitted(a, b) for a, b in zip(x, y, strict=True)]
    close(jax.tree.map(lambda *leaves: np.stack(leaves), *rows), want)


@each_kind_of_function
@pytest.mark.few(5)
def test_vmap_over_one_argument(case):
    x, y, _ = plain(case.name)
    fn = jax.jit(case.fn)
    close(jax.jit(jax.vmap(case.fn, (0, None)))(x, y[0]), fn(x, np.repeat(y[:1], BATCH, 0)))
    if not case.integer:
        close(jax.jit(jax.vmap(case.fn, (None, 0)))(x[0], y), fn(np.repeat(x[:1], BATCH, 0), y))


@slow
@over(FIRST_ROWS)
@pytest.mark.parametrize(
    ("no_jit", "nans"), [(True, False), (False, True)], ids=["disable_jit", "debug_nans"]
)
def test_eager(case, no_jit, nans):
    x, y, want = plain(case.name)
    with jax.disable_jit(no_jit), jax.debug_nans(nans):
        close(sweep(case)(x, y), want)


@each_kind_of_function
@pytest.mark.few(5)
def test_donated_inputs(case):
    x, y, want = plain(case.name)
    assert isinstance(x, np.ndarray)  # What is compared with came from NumPy inputs.
    close(jax.jit(sweep(case), donate_argnums=0)(jnp.array(x), y), want)


@each_kind_of_function
@pytest.mark.few(6)
def test_while_loop(case):
    x, y, (losses, _) = plain(case.name)
    x, y = jnp.asarray(x), jnp.asarray(y)

    def step(i, out):
        return out.at[i].set(case.fn(x[i], y[i]))

    loop = jax.jit(lambda n: lax.fori_loop(0, n, step, jnp.zeros(BATCH)))  # A while_loop.
    close(loop(BATCH), losses)


def derivatives(f, a, v, w):
    """Of losses `f` at `a`: totals of first derivatives, and of third ones along v, v and w.

    The last of either is a central difference of a lower derivative.
    """

    def along(f, v):
        return lambda a: jax.jvp(f, (a,), (v,))[1]

    def difference(f, v):
        return (f(a + 1e-5 * v) - f(a - 1e-5 * v)) / 2e-5

    def total(a):
        return jnp.sum(f(a))

    curvature = along(along(total, v), v)
    first = [
        jnp.sum(jax.grad(total)(a) * v),
        jnp.sum(jnp.sum(jax.jacfwd(f)(a), 0) * v),
        jnp.sum(jnp.sum(jax.jacrev(f)(a), 0) * v),
        along(total, v)(a),
        jax.linearize(total, a)[1](v),
        difference(total, v),
    ]
    third = [
        jnp.sum(along(along(jax.grad(total), v), v)(a) * w),
        jnp.sum(jax.grad(curvature)(a) * w),
        along(curvature, w)(a),
        difference(curvature, w),
    ]
    return first, third


@slow
@over([c for c in CASES if c.differences])
def test_modes_agree_with_each_other_and_with_differences(case):
    with jax.enable_x64(True):
        x, y = case.random(rng(), 3, dtype=np.float64)
        losses = [lambda a: case.fn(a, y), lambda a: case.fn(x, a)]
        for i in argnums(case):
            a = (x, y)[i]
            v, w = rng().normal(size=(2, *a.shape))
            for *modes, difference in jax.jit(functools.partial(derivatives, losses[i]))(a, v, w):
                assert np.isfinite(modes[0])
                close(modes, [modes[0]] * len(modes), 1e-9, 1e-12)
                close(difference, modes[0], 1e-5, 1e-6)


@each_kind
def test_an_empty_batch(case):
    x, y = case.random(rng(), 0)
    losses, grads = jax.eval_shape(sweep(case), x, y)
    assert losses.shape == (0,)
    assert [g.shape for g in grads] == [a.shape for a in (x, y)[: len(grads)]]


@each_kind_of_function
@pytest.mark.few(5)
def test_sharded_batch(case):
    x, y, want = plain(case.name)
    rows = NamedSharding(mesh(i=8), P("i"))
    close(jax.jit(sweep(case), in_shardings=rows)(x, y), want)


@over([c for c in FIRST_ROWS if not c.elementwise and c.sizes], follows_its_kind)
@pytest.mark.few(2)
def test_sharded_classes(case):
    x, y = case.random(rng(), 3, size=32)
    eight = mesh(i=8)
    columns, whole = NamedSharding(eight, P(None, "i")), NamedSharding(eight, P())
    target = whole if case.integer else columns
    got = jax.jit(sweep(case), in_shardings=(columns, target))(x, y)
    close(got, jax.jit(sweep(case))(x, y))


@over([c for c in CASES if c.sizes], follows_its_kind)
@pytest.mark.parametrize("classes", [1, 129, *(pytest.param(n, marks=slow) for n in (7, 1000))])
@pytest.mark.few(6)
def test_sizes_against_the_formula_in_float64(case, classes):
    if classes not in case.sizes:
        pytest.skip("more than a row of this loss can have")
    x, y = case.random(rng(), 13, size=classes)
    got = as_users(sweep(case))(x, y)
    with jax.enable_x64(True):
        x, y = np.asarray(x, np.float64), y if case.integer else np.float64(y)
        naive = jax.vmap(case.naive)
        # With one class some of the formulas are 0 * inf where the derivative is zero.
        want = jax.tree.map(np.nan_to_num, jax.jit(sweep(case, naive))(x, y))
    close(got, want, 2e-5, 1e-6)
