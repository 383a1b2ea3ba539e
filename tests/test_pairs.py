"""Losses of the pairs of a batch, contrastive and metric: brute force, blocks, memory, masks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from tests.devices import mesh
from tests.programs import as_users
from tests.test_transforms import close, derivatives


def compiled(mode):
    """A mode of differentiation whose result is one program: faster than operation by operation."""
    return lambda f: jax.jit(mode(f))


grad, value_and_grad = compiled(jax.grad), compiled(jax.value_and_grad)
jacfwd, jacrev, hessian = compiled(jax.jacfwd), compiled(jax.jacrev), compiled(jax.hessian)

B, D = 24, 8
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, B, D)).astype(np.float32)
LABELS = RNG.integers(0, 7, B).astype(np.int32)
LABELS[5] = 99  # Alone with its label.
MASK = RNG.uniform(size=B) < 0.7
EYE = np.eye(B, dtype=bool)

TOWERS = {
    "info_nce": functools.partial(jaxloss.info_nce, temperature=0.3),
    "info_nce, symmetric": functools.partial(jaxloss.info_nce, temperature=0.3, symmetric=True),
    "siglip_loss": functools.partial(jaxloss.siglip_loss, temperature=5.0, bias=-3.0),
}
LABELLED = {
    "ntxent": functools.partial(jaxloss.ntxent, temperature=0.3),
    "supervised": functools.partial(jaxloss.supervised_contrastive_loss, temperature=0.3),
    "circle_loss": functools.partial(jaxloss.circle_loss, gamma=8.0, detach_weights=False),
    "circle_loss, detached": functools.partial(jaxloss.circle_loss, gamma=8.0),
    "batch_hard": functools.partial(jaxloss.batch_hard_triplet_loss, margin=0.5),
}
TARGETS = dict.fromkeys(TOWERS, Y) | dict.fromkeys(LABELLED, LABELS)
LOSSES = TOWERS | LABELLED
EVERY = pytest.mark.parametrize("name", LOSSES)
# The others are made of the same blocks.
BLOCKS = ["info_nce", "siglip_loss", "ntxent", "supervised", "circle_loss", "batch_hard"]
EVERY_BLOCK = pytest.mark.parametrize("name", BLOCKS)


def cosines(x, y):
    x, y = (np.float64(a) for a in (x, y))
    return (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T


def brute_force(name, x, y):
    """In float64 and in loops, from the formulas of the papers."""
    if name == "batch_hard":
        return batch_hard(np.float64(x), y)
    s = cosines(x, y if name in TOWERS else x)
    n = len(s)
    if name == "siglip_loss":
        z = 2 * np.eye(n) - 1
        return np.log1p(np.exp(-z * (5 * s - 3))).sum(1)
    e = np.exp(s / 0.3)
    if name in TOWERS:
        rows, columns = (-np.log(np.diag(e) / e.sum(axis)) for axis in (1, 0))
        return rows if name == "info_nce" else (rows + columns) / 2
    alike = [[j for j in range(n) if y[j] == y[i] and j != i] for i in range(n)]
    apart = [[j for j in range(n) if y[j] != y[i]] for i in range(n)]
    if name == "ntxent":
        losses = [
            -np.log(e[i, p] / (e[i, p] + e[i, apart[i]].sum())) for i in range(n) for p in alike[i]
        ]
        return np.mean(losses) if losses else 0.0
    if name == "supervised":
        total = [e[i].sum() - e[i, i] for i in range(n)]
        nll = [[-np.log(e[i, p] / total[i]) for p in alike[i]] for i in range(n)]
        return np.array([np.mean(v) if v else 0 for v in nll])
    m, out = 0.4, np.zeros(n)
    for i in range(n):
        pull = sum(np.exp(-8 * max(0, 1 + m - s[i, p]) * (s[i, p] - 1 + m)) for p in alike[i])
        push = sum(np.exp(8 * max(0, s[i, q] + m) * (s[i, q] - m)) for q in apart[i])
        out[i] = np.log1p(pull * push)
    return out


def batch_hard(x, y, margin=0.5):
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    pairs = (y[:, None] == y[None]) & ~np.eye(len(y), dtype=bool)
    far, near = np.where(pairs, d, -np.inf).max(1), np.where(y[:, None] == y, np.inf, d).min(1)
    return np.where(np.isfinite(far - near), np.maximum(margin + far - near, 0), 0)


def total(loss):
    def of(x, y):
        losses = loss(x, y)
        weights = jnp.arange(1, losses.size + 1, dtype=losses.dtype).reshape(losses.shape)
        return jnp.sum(weights * losses) / B

    return of


def everything(loss, by_targets=False):
    """The losses, their tangents, and the gradient by the embeddings with its tangents."""

    def run(x, y, v):
        gradient = jax.grad(total(loss))
        tangents = jax.jvp(lambda x: loss(x, y), (x,), (v,))
        by_y = [jax.grad(total(loss), 1)(x, y)] if by_targets else []
        return *tangents, *jax.jvp(lambda x: gradient(x, y), (x,), (v,)), *by_y

    return jax.jit(run)


@EVERY
@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.few(8)
def test_against_brute_force(name, chunk_size):
    loss, y = functools.partial(LOSSES[name], chunk_size=chunk_size), TARGETS[name]
    np.testing.assert_allclose(loss(X, y), brute_force(name, X, y), rtol=2e-5)
    with jax.enable_x64(True):
        y = y if name in LABELLED else np.float64(y)
        np.testing.assert_allclose(loss(np.float64(X), y), brute_force(name, X, y), rtol=1e-13)


@pytest.mark.slow
@EVERY_BLOCK
def test_blocks_of_any_size_are_the_whole(name):
    loss, y = LOSSES[name], TARGETS[name]
    want = everything(loss)(X, y, Y)
    close(everything(functools.partial(loss, chunk_size=10))(X, y, Y), want, 1e-4, 1e-5)
    for chunk_size in (1, B - 1, B, 1000):
        close(loss(X, y, chunk_size=chunk_size), want[0])


@EVERY_BLOCK
@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.few(4)
def test_masked_rows_do_not_exist(name, chunk_size):
    loss, y, towers = LOSSES[name], TARGETS[name], name in TOWERS

    def masked(x, y):
        losses = loss(x, y, where=MASK, chunk_size=chunk_size)
        return losses if losses.ndim == 0 else losses[MASK]

    want = everything(loss, towers)(X[MASK], y[MASK], Y[MASK])
    run = everything(masked, towers)
    for poison in (0.5, np.nan, np.inf):
        bad = lambda a, poison=poison: np.where(MASK[:, None], a, np.float32(poison))
        got = run(bad(X), bad(y) if towers else y, Y)
        close(got[:2], want[:2], 1e-4, 1e-5)
        for a, b in zip(got[2:], want[2:], strict=True):
            close(a[MASK], b, 1e-4, 1e-5)
            np.testing.assert_array_equal(np.asarray(a)[~MASK], 0)


@EVERY
def test_nothing_but_masked_rows(name):
    np.testing.assert_array_equal(LOSSES[name](X, TARGETS[name], where=np.zeros(B, bool)), 0)


@EVERY
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.few(4)
def test_rows_of_a_device_meet_those_of_all(name, chunk_size):
    loss, y = LOSSES[name], TARGETS[name]
    options = {"axis_name": "i", "chunk_size": chunk_size}

    def on_each(x, y, where):
        losses = loss(x, y, where=where, **options)
        return losses[None] if losses.ndim == 0 else losses

    split = jax.shard_map(on_each, mesh=mesh(i=8), in_specs=P("i"), out_specs=P("i"))
    whole = functools.partial(loss, where=MASK)
    add = jnp.sum if name == "ntxent" else lambda losses: losses
    close(jax.jit(lambda x: add(split(x, y, MASK)))(X), whole(X, y), 1e-4, 1e-5)

    def sums(f):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(f(x)))))

    close(sums(lambda x: add(split(x, y, MASK)))(X), sums(lambda x: whole(x, y))(X), 1e-4, 1e-5)


def test_gradient_inside_of_shard_map():
    """Of a device's share: its rows of the gradient of the whole loss."""

    def on_each(x, y):
        return jax.grad(lambda x: jaxloss.ntxent(x, y, axis_name="i"))(x)

    split = jax.shard_map(on_each, mesh=mesh(i=8), in_specs=P("i"), out_specs=P("i"))
    close(jax.jit(split)(X, LABELS), grad(jaxloss.ntxent)(X, LABELS), 1e-4)


def temporaries(loss, x, y):
    """Bytes that the loss and its gradients need beyond arguments and results."""
    x = jax.ShapeDtypeStruct(x, jnp.float32)
    by = (0,) if y is jnp.int32 else (0, 1)
    y = jax.ShapeDtypeStruct(x.shape[:1], y) if y is jnp.int32 else x
    step = jax.value_and_grad(lambda *args: jnp.sum(loss(*args)), by)
    return as_users(step).lower(x, y).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.few(1)
def test_memory_of_towers(name):  # One array of batch times batch is 268 MB.
    loss = functools.partial(TOWERS[name], chunk_size=128)
    # 4 MB of it are a block of logits that is looked at again if one of them is infinite.
    assert temporaries(loss, (8192, 64), jnp.float32) <= 41e6


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.few(2)
def test_memory_of_blocks(name):
    loss = functools.partial(LABELLED[name], chunk_size=128)
    assert temporaries(loss, (8192, 64), jnp.int32) <= 60e6


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.grad])
@pytest.mark.few(1)
def test_memory_of_second_derivatives(mode):
    loss = functools.partial(jaxloss.info_nce, chunk_size=128)
    shape = jax.ShapeDtypeStruct((8192, 64), jnp.float32)

    def along(x, y, v):
        slope = lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(loss(x, y)))(x) * v)
        if mode is jax.grad:
            return jax.grad(slope)(x)
        return jax.jvp(slope, (x,), (v,))[1]

    program = as_users(along).lower(shape, shape, shape).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 100e6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ntxent", "supervised", "info_nce, symmetric"])
def test_modes_agree(name):
    """Through blocks, to the third order, and with differences."""
    loss = functools.partial(LOSSES[name], chunk_size=3)
    with jax.enable_x64(True):
        x, y = np.float64(X[:4]), np.array([0, 1, 0, 1]) if name in LABELLED else np.float64(Y[:4])
        v, w = RNG.normal(size=(2, *x.shape))
        losses = lambda x: jnp.atleast_1d(loss(x, y))
        for *modes, difference in jax.jit(lambda x: derivatives(losses, x, v, w))(x):
            close(modes, [modes[0]] * len(modes), 1e-9, 1e-12)
            close(difference, modes[0], 1e-5, 1e-6)


def test_without_positives():  # optax: NaN
    alone = np.arange(B)
    assert jaxloss.ntxent(X, alone) == 0
    for name in LABELLED:
        np.testing.assert_array_equal(LABELLED[name](X, alone), 0)
        gradient = grad(lambda x, f=LABELLED[name]: jnp.sum(f(x, alone)))(X)
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "batch_hard"])
@pytest.mark.few(3)
def test_a_row_of_zeros(name):  # optax: a gradient of 2e4
    y, x = TARGETS[name], np.where(np.arange(B)[:, None] == 3, 0, X)
    losses, tangents, gradient, product = everything(LOSSES[name])(x, y, Y)
    for a in (losses, tangents, gradient, product):
        assert np.all(np.isfinite(a))
    np.testing.assert_array_equal(gradient[3], 0)
    # The others are as if its cosines were 0, without an epsilon of their own.
    far = np.concatenate([X, np.zeros_like(X)], 1)
    far[3] = np.eye(2 * D)[-1]
    other = np.concatenate([Y, np.zeros_like(Y)], 1) if name in TOWERS else y
    close(losses, LOSSES[name](far, other), 1e-5)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "batch_hard"])
@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_lengths_do_not_matter(name, scale):
    scale = np.float32(scale)
    y = TARGETS[name]
    by_scale = scale * Y if name in TOWERS else y
    close(LOSSES[name](scale * X, by_scale), LOSSES[name](X, y))
    slope = lambda x, y: grad(lambda x: jnp.sum(LOSSES[name](x, y)))(x)
    close(np.float64(slope(scale * X, by_scale)) * scale, slope(X, y), 1e-4, 1e-5)


@EVERY
def test_nan_is_loud(name):
    bad = np.where(np.arange(B)[:, None] == 3, np.float32(np.nan), X)
    run = value_and_grad(lambda x: jnp.sum(LOSSES[name](x, TARGETS[name])))
    losses, gradient = run(bad)
    assert np.isnan(losses) and np.all(np.isnan(gradient[3]))


@EVERY
@pytest.mark.few(3)
def test_half_precision(name):
    x, loss = X.astype(jnp.bfloat16), LOSSES[name]
    y = TARGETS[name] if name in LABELLED else Y.astype(jnp.bfloat16)
    y32 = y if name in LABELLED else y.astype(np.float32)
    got = loss(x, y)
    assert got.dtype == jnp.float32
    close(got, loss(x.astype(np.float32), y32), 1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_settings_are_keywords(name):
    parameters = list(inspect.signature(LOSSES[name].func).parameters.values())
    positional = 3 if name == "ntxent" else 2
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[positional:])


def test_matmuls_are_exact_unless_a_user_asks_for_less():
    def text():
        return jax.jit(lambda x, y: jaxloss.siglip_loss(x, y)).lower(X, Y).as_text()

    assert "HIGHEST" in text()
    with jax.default_matmul_precision("default"):
        assert "HIGHEST" not in text()
