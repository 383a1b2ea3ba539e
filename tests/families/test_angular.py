"""ArcFace and CosFace: what their margins are, where they have a kink, and classes without end."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from tests.cases import angular
from tests.devices import mesh
from tests.programs import as_users
from tests.test_transforms import close, rng

N, D, C = 13, 6, 16
BOTH = pytest.mark.parametrize("loss", [jaxloss.arcface_loss, jaxloss.cosface_loss])


def operands(dtype=np.float32):
    draw = rng()
    x, p = draw.normal(size=(N, D)).astype(dtype), draw.normal(size=(C, D)).astype(dtype)
    return x, p, draw.integers(0, C, N).astype(np.int32)


def total(loss):
    """A sum in which each loss counts by another factor."""
    return lambda x, p, *rest: jnp.sum(jnp.sin(loss(x, p, *rest)))


def turned(theta):
    """Embeddings at an angle to the first of two prototypes, and at a right one to the other."""
    x = jnp.stack([jnp.cos(theta), jnp.sin(theta), 0 * theta], -1)
    return x, jnp.array([[2.0, 0, 0], [0, 0, 0.5]]), jnp.zeros(theta.shape, jnp.int32)


@BOTH
def test_without_a_margin_it_is_the_cross_entropy_of_cosines(loss):
    x, p, k = operands()

    def dense(x, p):
        c = jax.vmap(lambda a: jax.vmap(lambda b: jaxloss.cosine_similarity(a, b))(p))(x)
        return jaxloss.softmax_cross_entropy_with_integer_labels(8 * c, k)

    # Blocks that do not divide the examples.
    ours = lambda x, p: loss(x, p, k, margin=0.0, scale=8.0, chunk_size=5)
    both = (as_users(jax.value_and_grad(total(f), (0, 1))) for f in (ours, dense))
    close(*(f(x, p) for f in both), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("margin", [0.5, np.pi / 2])
def test_arcface_grows_with_the_angle_and_beyond_its_margin(margin):
    theta = np.linspace(0, np.pi, 301, dtype=np.float32)
    theta = theta[np.abs(theta + margin - np.pi) > 1e-6]
    # The other logit is 0 and beside that of the label nothing, so the loss is minus that one.
    target = -jaxloss.arcface_loss(*turned(jnp.asarray(theta)), margin=margin, scale=64.0) / 64
    t = np.float64(theta)
    beyond = t + margin > np.pi
    want = np.where(beyond, np.cos(t) - margin * np.sin(margin), np.cos(t + margin))
    np.testing.assert_allclose(target[want < -0.3], want[want < -0.3], atol=1e-6)
    losses = jaxloss.arcface_loss(*turned(jnp.asarray(theta)), margin=margin, scale=1.0)
    assert np.all(np.diff(losses[1:]) > 0)


@pytest.mark.parametrize("factor", [3.0, -3.0])
def test_arcface_at_cosines_of_one_and_minus_one(factor):
    """As far as rounding tells. The sine of the angle is held, so moving sideways costs nothing."""
    _, p, k = operands()
    x, k = np.float32(factor / 7) * p[k][:2], k[:2]

    def loss(x):
        return jnp.sum(jaxloss.arcface_loss(x, p, k, scale=4.0))

    def by_the_cosine(x):
        u, v = (a / jnp.linalg.norm(a, axis=1, keepdims=True) for a in (x, p))
        c, m = jnp.sum(u * v[k], 1), jnp.float32(0.5)
        target = c * jnp.cos(m) if factor > 0 else c - m * jnp.sin(m)
        others = 4 * u @ v.T - 1e9 * jax.nn.one_hot(k, C)
        return jnp.sum(jax.nn.softplus(jax.nn.logsumexp(others, 1) - 4 * target))

    got, want = (
        as_users(lambda x, f=f: (*jax.value_and_grad(f)(x), jax.hessian(f)(x)))(x)
        for f in (loss, by_the_cosine)
    )
    close(got, want, rtol=1e-3, atol=2e-4)


@BOTH
def test_zeros_have_a_cosine_of_zero(loss):
    x, p = jnp.array([[0.0, 0], [1, 1]]), jnp.array([[1.0, 0], [0, 0], [0, -1]])
    values, pull = jax.vjp(lambda x, p: loss(x, p, jnp.array([0, 1]), scale=4.0), x, p)
    moved = -np.sin(0.5) if loss is jaxloss.arcface_loss else -0.35
    root = np.sqrt(0.5)
    want = np.log1p([2 * np.exp(-4 * moved), sum(np.exp(4 * (c - moved)) for c in (root, -root))])
    np.testing.assert_allclose(values, want, rtol=1e-6)
    of_x, of_p = pull(jnp.ones(2))
    assert np.all(of_x[0] == 0) and np.all(of_p[1] == 0) and np.any(of_p[0] != 0)


@BOTH
def test_bad_labels_are_nan_and_ignored_ones_are_nothing(loss):
    x, p, k = operands()
    k[3], k[5] = C, -1
    x[7] = np.nan
    live, sound = np.arange(N) != 7, np.array([0, 1, 2, 4, 6, 12])

    def losses(x, p, **options):
        return loss(x, p, k, chunk_size=4, where=live, **options)

    values, pull = jax.vjp(partial(losses), x, p)
    gradient = pull(jnp.ones(N))[0]
    bad = np.isin(np.arange(N), [3, 5])
    np.testing.assert_array_equal(np.isnan(values), bad)
    np.testing.assert_array_equal(np.isnan(gradient).all(1), bad)
    ignoring = partial(losses, ignore_index=-1)
    got = jax.grad(lambda x, p: jnp.sum(ignoring(x, p)[sound]), (0, 1))(x, p)
    assert all(np.isfinite(g).all() for g in (got[0][sound], got[0][5], got[0][7]))
    values = ignoring(x, p)
    assert values[5] == values[7] == 0 and np.isnan(values[3])


@pytest.mark.parametrize(
    "loss", [jaxloss.cosface_loss, "linear_cross_entropy"], ids=["cosface", "linear"]
)
def test_unsigned_labels(loss):
    """Of the tokens' sweeps: only those that are no class are NaN."""
    x, p, k = operands()
    if loss == "linear_cross_entropy":
        loss = lambda x, p, k: jaxloss.linear_cross_entropy(x, p.T, k, reduction="none")
    bad = np.where(np.arange(N) == 3, np.uint32(2**32 - 1), k.astype(np.uint32))
    want = np.where(np.arange(N) == 3, np.nan, loss(x, p, k))
    np.testing.assert_array_equal(loss(x, p, bad), want)


@BOTH
def test_derivatives_by_margin_and_scale(loss):
    """Those by the other operands are in the table."""
    with jax.enable_x64(True):
        x, p, k = operands(np.float64)

        def mean(m, s):
            return jnp.mean(loss(x, p, k, margin=m, scale=s))

        for i, g in enumerate(jax.grad(mean, (0, 1))(0.4, 3.0)):
            up, down = np.array([0.4, 3.0]), np.array([0.4, 3.0])
            up[i], down[i] = up[i] + 1e-5, down[i] - 1e-5
            np.testing.assert_allclose(g, (mean(*up) - mean(*down)) / 2e-5, rtol=1e-7)


@BOTH
@pytest.mark.few(1)
def test_classes_split_over_devices(loss):
    x, p, k = operands()

    def of(axis_name):
        def losses(x, p, k):
            return loss(x, p, k, scale=8.0, chunk_size=5, axis_name=axis_name)

        if axis_name is None:
            return losses
        specs = P(), P(axis_name), P()
        return jax.shard_map(losses, mesh=mesh(x=8), in_specs=specs, out_specs=P())

    def step(losses):
        def objective(x, p, k):
            each = losses(x, p, k)
            return jnp.sum(jnp.sin(each)), each

        return as_users(jax.value_and_grad(objective, (0, 1), has_aux=True))

    whole, split = step(of(None)), step(of("x"))
    close(split(x, p, k), whole(x, p, k), rtol=1e-5, atol=1e-6)
    (_, each), _ = split(x, p, np.where(np.arange(N) == 3, C, k))
    np.testing.assert_array_equal(np.isnan(each), np.arange(N) == 3)


def test_prototypes_that_do_not_fit():
    x, p, k = operands()
    with pytest.raises(ValueError, match=r"\(13, 6\).*\(6, 16\).*\[C, D\]"):
        jaxloss.arcface_loss(x, p.T, k)
    with pytest.raises(ValueError, match="margin must be in"):
        jaxloss.arcface_loss(x, p, k, margin=-0.1)
    split = jax.shard_map(
        lambda x, p: jaxloss.arcface_loss(x, p, k, axis_name="x"),
        mesh=mesh(x=8),
        in_specs=P(),
        out_specs=P(),
    )
    with pytest.raises(ValueError, match="prototypes must be split"):
        split(x, p)


def test_cosines_are_exact_to_float32_unless_a_user_says_otherwise():
    x, p, k = operands()

    def matmuls():
        step = jax.value_and_grad(lambda x, p: jnp.sum(jaxloss.arcface_loss(x, p, k)), (0, 1))
        text = jax.jit(step).lower(x, p).as_text()
        return text.count("stablehlo.dot_general"), text.count("[HIGHEST, HIGHEST]")

    assert matmuls() == (4, 4)
    with jax.default_matmul_precision("default"):
        assert matmuls() == (4, 0)


@pytest.mark.slow
def test_memory_of_a_million_classes():
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8192, 256), (1_000_000, 256))]
    labels = jax.ShapeDtypeStruct((8192,), jnp.int32)

    def temporary(loss):
        step = jax.value_and_grad(lambda x, p, k: jnp.mean(loss(x, p, k)), (0, 1))
        compiled = as_users(step).lower(*shapes, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    plain = partial(angular.naive, angular.NAIVE[jaxloss.arcface_loss], 0.5, 64.0)
    assert temporary(jaxloss.arcface_loss) <= 0.05 * temporary(plain)
