"""`jaxloss.Loss`: reductions, weights, masks, options; as a value, a pytree and on many devices."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import Loss
from jaxloss._core import reduce
from tests import declared

REDUCTIONS = ("none", "sum", "mean", "weighted_mean")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3)).astype("f")
Y = np.array([0, 2, 1, 1])
SOFT = RNG.dirichlet(np.ones(3), 4).astype("f")
W = np.array([2.0, 0.0, 0.5, 1.0], "f")
M = np.array([True, True, False, True])
integer_ce = jaxloss.softmax_cross_entropy_with_integer_labels


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def close(got, want, rtol=2e-6, atol=1e-7):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=atol), got, want)


def log_softmax(x, axis=-1):
    x = np.asarray(x, "d")
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def reduced(losses, reduction, weights=None, where=None):
    """The definition, in NumPy."""
    w = np.ones_like(losses) if weights is None else np.asarray(weights, "d")
    m = np.ones(losses.shape, bool) if where is None else np.asarray(where)
    w, m = (np.broadcast_to(np.reshape(a, a.shape + (1,) * (losses.ndim - a.ndim)), losses.shape)
            for a in (w, m))  # fmt: skip
    total = w * losses * m
    size = {"sum": 1, "mean": m.sum(), "weighted_mean": (w * m).sum()}
    return total if reduction == "none" else total.sum() / size[reduction]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("where", [None, M], ids=["", "where"])
@pytest.mark.parametrize("weights", [None, W], ids=["", "weights"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.few(16)
def test_reductions(reduction, weights, where, wrap):
    losses = -log_softmax(X)[np.arange(4), Y]
    loss = Loss(integer_ce, reduction)
    got = wrap(lambda x: loss(x, Y, weights=weights, where=where))(X)
    assert got.dtype == jnp.float32
    close(got, reduced(losses, reduction, weights, where))


def test_mean_counts_zero_weights_but_not_masked_or_ignored_examples():
    one = Loss(lambda p, t: p)
    p, t = jnp.full(4, 6.0), jnp.array([0, 7, 1, 7])
    assert one(p, t, weights=jnp.array([1.0, 0, 0, 1])) == 3
    assert one(p, t, where=jnp.array([True, False, False, True])) == 6
    ignoring = Loss(lambda p, t: p, ignore_index=7)
    assert ignoring(p, t, weights=jnp.array([1.0, 1, 0, 1])) == 3
    assert ignoring(p, t, where=jnp.array([True, True, False, True])) == 6
    weighted = Loss(lambda p, t: p, "weighted_mean", ignore_index=7)
    assert weighted(jnp.array([1.0, 9, 4, 9]), t, weights=jnp.array([1.0, 5, 2, 5])) == 3


@pytest.mark.parametrize("shape", [(), (2,), (2, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_and_masks_of_leading_axes(reduction, shape):
    x, y = RNG.normal(size=(2, 3, 5)).astype("f"), np.array([[0, 1, 4], [2, 3, 0]])
    losses = -np.take_along_axis(log_softmax(x), y[..., None], -1)[..., 0]
    w, m = RNG.uniform(0.5, 2, shape).astype("f"), RNG.uniform(size=shape) > 0.4
    loss = Loss(integer_ce, reduction)
    close(loss(x, y, weights=w), reduced(losses, reduction, w))
    m = np.ones(shape, bool) if not m.any() else m
    close(loss(x, y, where=m), reduced(losses, reduction, where=m))
    # One loss an element: a mask of rows covers all of them.
    p = RNG.normal(size=(2, 3)).astype("f")
    square = Loss(lambda p, t: (p - t) ** 2, reduction)
    close(square(p, p[::-1], weights=w, where=m), reduced((p - p[::-1]) ** 2, reduction, w, m))


@pytest.mark.parametrize("shape", [(3,), (2, 2), (3, 2), (2, 3, 1), (1, 2, 3)])
@pytest.mark.parametrize("name", ["weights", "where"])
def test_weights_and_masks_that_do_not_fit(name, shape):
    p = jnp.zeros((2, 3))
    given = jnp.ones(shape, bool if name == "where" else jnp.float32)
    for fn in (lambda p, t: (p - t) ** 2, jaxloss.sigmoid_binary_cross_entropy):
        with pytest.raises(ValueError, match=f"{name} of shape") as error:
            Loss(fn)(p, p, **{name: given})
        assert str(shape) in str(error.value) and str(p.shape) in str(error.value)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("rows", "kwargs"),
    [
        (0, {}),
        (0, {"weights": np.zeros(0, "f"), "where": np.zeros(0, bool)}),
        (2, {"where": np.zeros(2, bool)}),
        (2, {"where": np.zeros((), bool)}),
        (2, {"weights": np.zeros(2, "f")}),
        (2, {"weights": np.ones(2, "f"), "where": np.zeros(2, bool)}),
        (2, {"weights": np.zeros(2, "f"), "where": np.array([True, False])}),
    ],
)
@pytest.mark.few(10)
def test_nothing_left_gives_zero(reduction, rows, kwargs):
    x = jnp.full((rows, 3), jnp.nan if rows else 0.0)

    def f(x, kwargs):
        return jnp.sum(Loss(integer_ce, reduction)(x, jnp.zeros(rows, int), **kwargs))

    value, gradient = jax.jit(jax.value_and_grad(f))(x, kwargs)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(x))
    if "weights" in kwargs and "where" in kwargs and not kwargs["where"].any():
        by_weight = jax.jit(jax.grad(lambda w: f(x, kwargs | {"weights": w})))(kwargs["weights"])
        np.testing.assert_array_equal(by_weight, np.zeros(rows))


def everything(f, x):
    """Value, gradient, both modes' directional derivative and Hessian."""
    v = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    value, pushed = jax.jvp(f, (x,), (v,))
    return value, pushed, jax.jacrev(f)(x), jax.hessian(f)(x)


def square(p, t):
    return jnp.sum((p - t) ** 2, -1)


DEAD = np.array([False, True, True, True])
JUNK = np.array([0, np.nan, np.inf, -np.inf], "f")


# Of each example a loss whatever the others are; a function of yours, which declares nothing.
APART = [
    fn
    for fn in declared.FUNCTIONS
    if not (declared.takes(fn).together or declared.takes(fn).parts({}))
    and not declared.takes(fn).has("shared", "sequence")
]


@pytest.mark.parametrize("fn", [square, *APART], ids=lambda fn: fn.__name__)
@pytest.mark.few(4)
def test_contents_of_dead_examples_change_nothing(fn):
    """In second derivatives either."""
    if fn is square:
        first, *others = X, SOFT
    else:
        first, *others = declared.arguments(fn, np.random.default_rng(3), 4).values()
    loss = Loss(fn)

    def ways(x, others):
        yield loss(x, *others, where=~DEAD)
        yield loss(x, *others, weights=np.where(DEAD, 0, 2).astype("f"))

    @jax.jit
    def results(x, others):
        return everything(lambda x: jnp.stack(list(ways(x, others))), x)

    def spoiled(x, dead=DEAD, junk=JUNK):
        shape = (-1, *(1,) * (x.ndim - 1))
        some = np.where(dead.reshape(shape), junk.reshape(shape), x)
        return some.astype(x.dtype) if x.dtype.kind == "f" else x

    clean = results(first, others)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    close(results(spoiled(first), [spoiled(x) for x in others]), clean)
    # NaN in a live example still is loud.
    loud = results(spoiled(first, ~DEAD, np.full(4, np.nan)), others)
    assert np.isnan(loud[0]).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_weight_of_zero_wins_over_an_infinite_loss(reduction):
    def f(x):
        return jnp.sum(Loss(square, reduction)(x, SOFT, weights=W))

    huge = jnp.where((W == 0)[:, None], 1e30, X)
    assert np.isinf(square(huge, SOFT)[1])
    step = jax.jit(jax.value_and_grad(f))
    close(step(huge), step(X))


@pytest.mark.parametrize("fn", [integer_ce, lambda p, t: square(p, jax.nn.one_hot(t, 3))])
def test_derivatives_by_a_weight_of_zero(fn):
    loss, x, w = Loss(fn, "sum"), jnp.asarray(X), jnp.asarray(W)

    def f(x, w):
        return loss(x, Y, weights=w)

    @jax.jit
    def derivatives(x, w):
        return (
            (jax.grad(f, 1)(x, w), jax.jacfwd(f, 1)(x, w)),
            (jax.jacobian(jax.grad(f, 1))(x, w), jax.jacobian(jax.grad(f), 1)(x, w)),
            jax.grad(lambda w: Loss(fn, "weighted_mean")(x, Y, weights=w))(w),
            jax.jacobian(fn)(x, Y),  # d losses_i / dx
        )

    once, twice, mean, rows = derivatives(x, w)
    close(once, (fn(x, Y), fn(x, Y)))
    close((twice[0], jnp.moveaxis(twice[1], -1, 0)), (rows, rows))
    close(mean, (fn(x, Y) - np.average(fn(x, Y), weights=W)) / W.sum())


def test_class_where():
    classes = np.array([[True, False, True]] * 4)
    x, y = np.where(classes, X, np.nan).astype("f"), np.array([0, 2, 0, 2])
    want = -log_softmax(X[:, [0, 2]])[np.arange(4), y // 2]
    loss = Loss(integer_ce)
    close(loss(x, y, class_where=classes), want.mean())
    close(loss(x, y, class_where=classes, where=M), want[M].mean())
    close(loss(x, y, class_where=classes, weights=W), (want * W).mean())


@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_axis(axis, reduction):
    x = RNG.normal(size=(2, 4, 3)).astype("f")  # (B, C, T)
    y, m = np.array([[0, 1, 3], [2, 2, 0]]), np.array([[True, False, True], [True, True, False]])
    losses = -np.take_along_axis(log_softmax(x, 1), y[:, None], 1)[:, 0]
    loss = Loss(integer_ce, reduction, axis=axis)
    dirty = np.where(m[:, None], x, np.nan).astype("f")
    close(loss(dirty, y, where=m), reduced(losses, reduction, where=m))
    close(loss(dirty, y, weights=m.astype("f")), reduced(losses, reduction, m.astype("d")))
    ignoring = Loss(integer_ce, reduction, axis=axis, ignore_index=-1)
    close(ignoring(dirty, np.where(m, y, -1)), reduced(losses, reduction, where=m))


def test_class_axis_with_a_mask_of_the_batch():
    x, y = RNG.normal(size=(2, 4, 3)).astype("f"), np.array([[0, 1, 3], [2, 2, 0]])
    row = np.array([True, False])
    want = -np.take_along_axis(log_softmax(x, 1), y[:, None], 1)[:, 0]
    x[1] = np.nan
    close(Loss(integer_ce, axis=1)(x, y, where=row), want[0].mean())
    close(Loss(integer_ce, axis=1)(x, y, weights=row.astype("f")), want[0].sum() / 6)


def test_user_callable_with_pytrees():
    def fn(p, t, scale=1.0):
        return scale * (jnp.abs(p["a"] - t["a"]) + jnp.sum(p["b"] - t["b"], (1, 2)))

    p = {"a": jnp.array([1.0, 2, jnp.nan]), "b": jnp.ones((3, 2, 2)).at[2].set(jnp.inf)}
    t = {"a": jnp.zeros(3), "b": jnp.zeros((3, 2, 2))}
    loss, m, w = Loss(fn, scale=2.0), jnp.array([True, True, False]), jnp.array([1.0, 3, 0])
    assert loss(p, t, where=m) == (10 + 12) / 2
    np.testing.assert_array_max_ulp(loss(p, t, weights=w), np.float32((10 + 36) / 3), 1)
    gradient = jax.grad(lambda p: loss(p, t, where=m))(p)
    live = np.array([1.0, 1, 0])
    close(gradient, {"a": live, "b": np.tile(live[:, None, None], (1, 2, 2))})


def test_numpy_and_list_inputs():
    want = Loss(integer_ce)(jnp.asarray(X), jnp.asarray(Y), weights=jnp.asarray(W))
    assert Loss(integer_ce)(X, Y, weights=W) == want
    got = Loss(integer_ce)(X.tolist(), Y.tolist(), weights=W.tolist(), where=M.tolist())
    close(got, Loss(integer_ce)(X, Y, weights=W, where=M))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Loss(3), TypeError, "fn must be callable, got int"),
        (lambda: Loss(integer_ce, "avg"), ValueError, "one of 'none', 'sum', 'mean'.*'avg'"),
        (lambda: Loss(integer_ce, None), ValueError, "None"),
        (lambda: Loss(integer_ce, label_smothing=0.1), TypeError, "mean 'label_smoothing'"),
        (lambda: Loss(square, gama=1), TypeError, "square has no option 'gama'; it takes none"),
        (lambda: Loss(integer_ce, labels=Y), TypeError, "no option 'labels'"),
        (lambda: Loss(lambda p, t: jnp.mean(p - t))(X, X), ValueError, "scalar for a batch"),
        (lambda: Loss(lambda p, t: p > t)(X, X), TypeError, "floating-point losses"),
        (lambda: Loss(lambda p, t: None)(X, X), TypeError, "floating-point losses"),
        (lambda: Loss(square)(X, X, where=np.ones(4)), TypeError, "where must be boolean"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_any_keyword_option_reaches_a_callable_that_takes_them():
    assert Loss(lambda p, t, **kw: p * kw["k"], "sum", k=2.0)(jnp.ones(3), jnp.ones(3)) == 6


def test_is_a_frozen_hashable_value():
    make = lambda **kw: Loss(integer_ce, "sum", axis=1, label_smoothing=0.1, **kw)
    assert make() == make() and hash(make()) == hash(make())
    assert make() != make(ignore_index=0) and make() != make(z_loss=0.1)
    assert Loss(integer_ce) != Loss(integer_ce, "sum")
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().reduction = "mean"


def test_is_a_pytree_of_its_numeric_options():
    cw = jnp.array([1.0, 2, 0.5])
    loss = Loss(integer_ce, axis=-1, ignore_index=-1, label_smoothing=0.1, class_weights=cw)
    leaves, treedef = jax.tree.flatten(loss)
    assert len(leaves) == 2 and leaves[0] is cw and leaves[1] == 0.1
    again = jax.tree.unflatten(treedef, leaves)
    assert type(again) is Loss and jax.tree.structure(again) == treedef
    assert dataclasses.asdict(again)["ignore_index"] == -1
    assert again(X, Y) == loss(X, Y)

    gradient = jax.jit(jax.grad(lambda loss: loss(X, Y)))(loss)
    lp = log_softmax(X)
    nll, c = -lp[np.arange(4), Y], np.asarray(cw, "d")
    by_smoothing = np.mean(-c[Y] * nll - (c * lp).mean(-1))
    by_weights = (0.9 * np.eye(3)[Y] * nll[:, None] - 0.1 / 3 * lp).mean(0)
    options = dict(gradient.options)
    close(options["label_smoothing"], by_smoothing, atol=5e-7)  # A difference of terms of about 1.
    close(options["class_weights"], by_weights)


def call(loss, x, y, w, m):
    return loss(x, y, weights=w, where=m)


def test_jit_and_vmap():
    loss, plain = Loss(integer_ce, label_smoothing=0.1), Loss(integer_ce, "none", z_loss=0.1)
    close(jax.jit(call)(loss, X, Y, W, M), call(loss, X, Y, W, M))
    rows = jax.vmap(call, (None, 0, 0, 0, 0))(plain, X, Y, W, M)
    close(rows, plain(X, Y, weights=W, where=M))
    both = [Loss(integer_ce, z_loss=z) for z in (0.0, 1.0)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *both)
    close(jax.vmap(lambda loss: loss(X, Y))(stacked), jnp.stack([loss(X, Y) for loss in both]))


def test_grad_in_scan_and_remat():
    loss = Loss(integer_ce)

    def step(x, _):
        value, gradient = jax.value_and_grad(loss)(x, Y, weights=W)
        return x - gradient, value

    end, values = jax.jit(lambda x: jax.lax.scan(step, x, length=3))(X)
    x = X
    for value in values:
        close(loss(x, Y, weights=W), value)
        p = np.exp(log_softmax(x)) - np.eye(3)[Y]
        x = x - (W[:, None] * p / 4).astype("f")
    close(end, x)
    remat = jax.jit(jax.grad(jax.checkpoint(lambda x: loss(x, Y, weights=W))))(X)
    close(remat, jax.jit(jax.grad(lambda x: loss(x, Y, weights=W)))(X))


def test_trains_with_optax():
    optax = pytest.importorskip("optax")
    loss, optimiser = Loss(integer_ce, ignore_index=-1), optax.adam(0.1)
    x, y = jnp.asarray(X), jnp.array([0, 2, -1, 1])
    params = jnp.zeros((3, 3))

    @jax.jit
    def step(params, state, loss):
        value, gradient = jax.value_and_grad(lambda p: loss(x @ p, y))(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    with jax.numpy_dtype_promotion("standard"):
        state = optimiser.init(params)
        for i in range(50):
            params, state, value = step(params, state, loss)
            if i == 0:
                close(value, np.log(3))
    assert value < 0.5


@pytest.mark.parametrize("reduction", ["sum", "mean", "weighted_mean"])
@pytest.mark.parametrize("kwargs", [{}, {"where": M}, {"weights": W}, {"weights": W, "where": M}])
@pytest.mark.few(4)
def test_shares_of_mapped_axis_add_up(reduction, kwargs):
    fold = lambda a: jnp.asarray(a).reshape(2, 2, *a.shape[1:])
    share = jax.vmap(Loss(integer_ce, reduction, axis_name="d"), axis_name="d")
    shares = lambda x: jnp.sum(share(fold(x), fold(Y), **jax.tree.map(fold, kwargs)))
    whole = lambda x: Loss(integer_ce, reduction)(x, Y, **kwargs)
    close(*(jax.jit(jax.value_and_grad(f))(X) for f in (shares, whole)))


SHARDED = """
import itertools, jax, jax.numpy as jnp, numpy as np, jaxloss
from jax.sharding import PartitionSpec as P
assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
x, y = jnp.asarray(rng.normal(size=(32, 3)), jnp.float32), jnp.asarray(rng.integers(0, 3, 32))
m = jnp.arange(32) % 4 < jnp.repeat(jnp.array([4, 0, 1, 2, 3, 4, 0, 1]), 4)  # counts differ
x = jnp.where(m[:, None], x, jnp.nan)
w = jnp.asarray(rng.uniform(0, 2, 32), jnp.float32)
fn = jaxloss.softmax_cross_entropy_with_integer_labels
for reduction, ignore in itertools.product(("sum", "mean", "weighted_mean"), (None, -1)):
    one = jaxloss.Loss(fn, reduction, ignore_index=ignore)
    share = jaxloss.Loss(fn, reduction, ignore_index=ignore, axis_name="d")
    labels, mask = (y, m) if ignore is None else (jnp.where(m, y, -1), jnp.ones(32, bool))
    def local(x, w, mask, labels):
        return share(x, labels, weights=w, where=mask)[None]
    def shares(x, w):
        out = jax.shard_map(local, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
        return jnp.sum(out(x, w, mask, labels))
    got = jax.jit(jax.value_and_grad(shares, (0, 1)))(x, w)
    want = jax.value_and_grad(lambda x, w: one(x, labels, weights=w, where=mask), (0, 1))(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), got, want)
plain = jaxloss.Loss(fn, axis_name="d")
mean = lambda x, y: jax.lax.psum(plain(x, y), "d")
got = jax.shard_map(mean, mesh=mesh, in_specs=P("d"), out_specs=P())(jnp.zeros((32, 3)), y)
np.testing.assert_allclose(got, np.log(3), rtol=1e-6)
print("shares add up")
"""


@pytest.mark.slow
def test_shares_of_devices_add_up():
    flags = "--xla_force_host_platform_device_count=8"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    root = pathlib.Path(__file__).parents[1]
    run = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", SHARDED]
    done = subprocess.run(run, env=env, cwd=root, capture_output=True, text=True, timeout=300)
    assert "shares add up" in done.stdout, done.stderr[-2000:]


def test_large_counts():
    shape = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
    assert reduce.count(shape, None) == 2.0**32  # an int32 product would be 0
    where = jnp.ones((500, 40000), bool).at[0, 1:].set(False)  # more than 2**24
    count = reduce.count(jax.ShapeDtypeStruct(where.shape, jnp.float32), where)
    close(count, 500 * 40000 - 39999, rtol=1e-7)


def test_replace_and_repr():
    cw = jnp.array([1.0, 2, 0.5])
    loss = Loss(integer_ce, "sum", axis=1, ignore_index=-1, class_weights=cw)
    for changed in (loss.replace(reduction="mean"), dataclasses.replace(loss, reduction="mean")):
        assert changed.options["class_weights"] is cw and changed.options["axis"] == 1
        assert changed.reduction == "mean" and changed.ignore_index == -1
    assert loss.replace(axis=-1, z_loss=0.1).options == {
        "axis": -1, "z_loss": 0.1, "class_weights": cw,
    }  # fmt: skip
    with pytest.raises(TypeError, match="mean 'label_smoothing'"):
        loss.replace(label_smothing=0.1)
    names = {"Loss": Loss, integer_ce.__name__: integer_ce, "jnp": jnp}
    again = eval(repr(loss), names)
    assert repr(again) == repr(loss) and again(X, Y) == loss(X, Y)
    traced = jax.tree.map(lambda _: None, loss)  # As tools make of a pytree.
    assert jax.tree.structure(traced, is_leaf=lambda x: x is None).num_leaves == 1
