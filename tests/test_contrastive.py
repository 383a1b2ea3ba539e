"""Contrastive losses on whole batches: brute force, blocks, memory, masks, devices, corners."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from mpmath import mp, mpf

import jaxloss
from jaxloss._core.vectors import unit_vector
from tests.devices import mesh
from tests.test_transforms import close, derivatives, quick


def compiled(mode):
    """A mode of differentiation whose result is one program: faster than operation by operation."""
    return lambda f: quick(mode(f))


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
}
TARGETS = dict.fromkeys(TOWERS, Y) | dict.fromkeys(LABELLED, LABELS)
LOSSES = TOWERS | LABELLED
EVERY = pytest.mark.parametrize("name", LOSSES)
# The others are made of the same blocks.
EVERY_BLOCK = pytest.mark.parametrize(
    "name", ["info_nce", "siglip_loss", "ntxent", "supervised", "circle_loss"]
)


def cosines(x, y):
    x, y = (np.float64(a) for a in (x, y))
    return (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T


def brute_force(name, x, y):
    """In float64 and in loops, from the formulas of the papers."""
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

    return quick(run)


@EVERY
@pytest.mark.parametrize("chunk_size", [None, 7])
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
def test_rows_of_a_device_meet_those_of_all(name, chunk_size):
    loss, y = LOSSES[name], TARGETS[name]
    options = {"axis_name": "i", "chunk_size": chunk_size}

    def on_each(x, y, where):
        losses = loss(x, y, where=where, **options)
        return losses[None] if losses.ndim == 0 else losses

    split = jax.shard_map(on_each, mesh=mesh(i=8), in_specs=P("i"), out_specs=P("i"))
    whole = functools.partial(loss, where=MASK)
    add = jnp.sum if name == "ntxent" else lambda losses: losses
    close(quick(lambda x: add(split(x, y, MASK)))(X), whole(X, y), 1e-4, 1e-5)

    def sums(f):
        return quick(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(f(x)))))

    close(sums(lambda x: add(split(x, y, MASK)))(X), sums(lambda x: whole(x, y))(X), 1e-4, 1e-5)


def test_gradient_inside_of_shard_map():
    """Of a device's share: its rows of the gradient of the whole loss."""

    def on_each(x, y):
        return jax.grad(lambda x: jaxloss.ntxent(x, y, axis_name="i"))(x)

    split = jax.shard_map(on_each, mesh=mesh(i=8), in_specs=P("i"), out_specs=P("i"))
    close(quick(split)(X, LABELS), grad(jaxloss.ntxent)(X, LABELS), 1e-4)


def temporaries(loss, x, y):
    """Bytes that the loss and its gradients need beyond arguments and results."""
    x = jax.ShapeDtypeStruct(x, jnp.float32)
    by = (0,) if y is jnp.int32 else (0, 1)
    y = jax.ShapeDtypeStruct(x.shape[:1], y) if y is jnp.int32 else x
    step = jax.value_and_grad(lambda *args: jnp.sum(loss(*args)), by)
    return jax.jit(step).lower(x, y).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("chunk_size", [None, 128])
def test_memory_of_ntxent(chunk_size):  # optax: 6.45 GB
    loss = functools.partial(jaxloss.ntxent, chunk_size=chunk_size)
    assert temporaries(loss, (1024, 512), jnp.int32) <= 20e6


@pytest.mark.parametrize("name", TOWERS)
def test_memory_of_towers(name):  # One array of batch times batch is 268 MB.
    loss = functools.partial(TOWERS[name], chunk_size=128)
    assert temporaries(loss, (8192, 64), jnp.float32) <= 40e6


@pytest.mark.parametrize("name", LABELLED)
def test_memory_of_blocks(name):
    loss = functools.partial(LABELLED[name], chunk_size=128)
    assert temporaries(loss, (8192, 64), jnp.int32) <= 60e6


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.grad])
def test_memory_of_second_derivatives(mode):
    loss = functools.partial(jaxloss.info_nce, chunk_size=128)
    shape = jax.ShapeDtypeStruct((8192, 64), jnp.float32)

    def along(x, y, v):
        slope = lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(loss(x, y)))(x) * v)
        if mode is jax.grad:
            return jax.grad(slope)(x)
        return jax.jvp(slope, (x,), (v,))[1]

    program = jax.jit(along).lower(shape, shape, shape).compile()
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
        for *modes, difference in quick(lambda x: derivatives(losses, x, v, w))(x):
            close(modes, [modes[0]] * len(modes), 1e-9, 1e-12)
            close(difference, modes[0], 1e-5, 1e-6)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_tails(chunk_size):
    """Where all but the positive are far below, the loss is a tiny number, not 0."""
    x = np.float32([[1, 0], [-1, 0.125], [1, 0.03125]])[:2]
    y = np.float32([[1, 0.0625], [-1, 0]])

    def exact(i):
        def cosine(a, b):
            a, b = ([mpf(float(v)) for v in r] for r in (a, b))
            lengths = [mp.sqrt(sum(v * v for v in r)) for r in (a, b)]
            return sum(u * v for u, v in zip(a, b, strict=True)) / lengths[0] / lengths[1]

        gap = (cosine(x[i], y[1 - i]) - cosine(x[i], y[i])) / mpf(float(np.float32(0.07)))
        return float(mp.log1p(mp.exp(gap)))

    got = jaxloss.info_nce(x, y, chunk_size=chunk_size)
    # An ulp of a cosine is a fourteenth of that in the exponent.
    np.testing.assert_allclose(got, [exact(0), exact(1)], rtol=8 * 2 / 0.07 * 1.2e-7)
    assert np.all(np.asarray(got) < 1e-11) and np.all(np.asarray(got) > 0)
    both = np.concatenate([x, y])
    for loss in (jaxloss.ntxent, jaxloss.supervised_contrastive_loss):
        losses = loss(both, np.array([0, 1, 0, 1]), chunk_size=chunk_size)
        assert np.all((losses > 0) & (losses < 1e-11))
    assert np.any(grad(lambda x: jnp.sum(jaxloss.info_nce(x, y)))(x) != 0)


def test_ntxent_agrees_with_optax():
    ours = value_and_grad(jaxloss.ntxent)
    theirs = value_and_grad(optax.losses.ntxent)
    for args in ((X, LABELS), (X, LABELS, 0.5)):
        got = ours(*args)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            close(got, theirs(*args), 1e-4, 1e-5)


def test_without_positives():  # optax: NaN
    alone = np.arange(B)
    assert jaxloss.ntxent(X, alone) == 0
    for name in LABELLED:
        np.testing.assert_array_equal(LABELLED[name](X, alone), 0)
        gradient = grad(lambda x, f=LABELLED[name]: jnp.sum(f(x, alone)))(X)
        np.testing.assert_array_equal(gradient, 0)


@EVERY
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


@EVERY_BLOCK
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


@pytest.mark.parametrize("name", ["info_nce", "siglip_loss", "ntxent", "supervised"])
def test_learned_settings(name):
    """Temperature and bias have derivatives, also in blocks, and in their own dtype."""
    loss, y = LOSSES[name].func, TARGETS[name]

    def of(log_t, x=X, **options):
        return jnp.sum(loss(x, y, temperature=jnp.exp(log_t), **options))

    with jax.enable_x64(True):
        at, x = np.float64(-0.5), np.float64(X)
        numeric = (of(at + 1e-5, x) - of(at - 1e-5, x)) / 2e-5
    for options in ({}, {"chunk_size": 7}):
        slope = jax.jit(jax.grad(functools.partial(of, **options)))
        np.testing.assert_allclose(slope(np.float32(at)), numeric, rtol=1e-5)
        assert slope(jnp.asarray(at, jnp.bfloat16)).dtype == jnp.bfloat16
    if name == "siglip_loss":
        by_bias = grad(lambda b: jnp.sum(loss(X, y, bias=b)))(jnp.float32(-2))
        s = 10 * cosines(X, Y) - 2
        want = np.sum(np.where(EYE, -1 / (1 + np.exp(s)), 1 / (1 + np.exp(-s))))
        np.testing.assert_allclose(by_bias, want, rtol=1e-5)


def test_half_precision():
    for name, loss in LOSSES.items():
        x = X.astype(jnp.bfloat16)
        y = TARGETS[name] if name in LABELLED else Y.astype(jnp.bfloat16)
        y32 = y if name in LABELLED else y.astype(np.float32)
        got = loss(x, y)
        assert got.dtype == jnp.float32
        close(got, loss(x.astype(np.float32), y32), 1e-5)


def test_inner_products():
    x, y = X / 4, Y / 4
    s = np.float64(x) @ np.float64(y).T
    got = jaxloss.info_nce(x, y, temperature=0.5, normalize=False)
    e = np.exp(s / 0.5)
    np.testing.assert_allclose(got, -np.log(np.diag(e) / e.sum(1)), rtol=1e-5)
    got = jaxloss.siglip_loss(x, y, temperature=2.0, bias=0.5, normalize=False)
    losses = np.log1p(np.exp(np.where(EYE, -1, 1) * (2 * s + 0.5)))
    np.testing.assert_allclose(got, losses.sum(1), rtol=1e-5)


def keras_circle(x, y, references, labels, diagonal, gamma=80, margin=0.4):
    """What `keras.losses.circle` computes, in float64."""
    d = np.maximum(1 - np.float64(x) @ np.float64(references).T, 0)
    out = np.zeros(len(x))
    for i, row in enumerate(d):
        alike = labels == y[i]
        keep = np.ones(len(row), bool)
        if diagonal and i < len(row):
            keep[i] = False
        p, q = row[alike & keep], row[~alike]
        pull = -gamma * np.maximum(margin + p, 0) * (margin - p)
        push = gamma * np.maximum(1 + margin - q, 0) * (1 - margin - q)
        if len(p) and len(q):
            exponent = np.logaddexp.reduce(pull) + np.logaddexp.reduce(push)
            out[i] = np.logaddexp(0, exponent)
    return out


def test_circle_loss_of_keras():
    loss = functools.partial(jaxloss.circle_loss, normalize=False, detach_weights=False)
    x, y = X / 4, Y[: B - 4] / 4
    labels = LABELS[4:]
    np.testing.assert_allclose(loss(x, LABELS), keras_circle(x, LABELS, x, LABELS, True), rtol=2e-5)
    for diagonal in (True, False):
        got = loss(
            x,
            LABELS,
            reference_embeddings=y,
            reference_labels=labels,
            remove_diagonal=diagonal,
            chunk_size=9,
        )
        want = keras_circle(x, LABELS, y, labels, diagonal)
        np.testing.assert_allclose(got, want, rtol=2e-5)
    # Without a word about the diagonal, references are another set.
    plain = loss(x, LABELS, reference_embeddings=y, reference_labels=labels)
    np.testing.assert_allclose(plain, got, rtol=1e-6)
    whole = loss(x, LABELS, reference_embeddings=x, reference_labels=LABELS)
    np.testing.assert_allclose(whole, loss(x, LABELS, remove_diagonal=False), rtol=1e-6)


def test_circle_loss_detaches_its_weights():
    """Its derivative is that with the weights written in as numbers."""
    with jax.enable_x64(True):
        x = np.float64(X)
        s = cosines(X, X)
        pull, push = np.maximum(1.4 - s, 0), np.maximum(s + 0.4, 0)
        alike = LABELS[:, None] == LABELS[None, :]

        def held(x):
            u = x / np.linalg.norm(x, axis=1)[:, None]
            s = u @ u.T
            e = np.exp(-8 * pull * (s - 0.6)), np.exp(8 * push * (s - 0.4))
            attraction = np.where(alike & ~EYE, e[0], 0).sum(1)
            return np.log1p(attraction * np.where(alike, 0, e[1]).sum(1)).sum()

        loss = lambda x: jnp.sum(jaxloss.circle_loss(x, LABELS, gamma=8.0))
        v = np.float64(Y)
        difference = (held(x + 1e-6 * v) - held(x - 1e-6 * v)) / 2e-6
        np.testing.assert_allclose(loss(x), held(x), rtol=1e-12)
        np.testing.assert_allclose(jax.jvp(loss, (x,), (v,))[1], difference, rtol=1e-7)
        np.testing.assert_allclose(np.sum(grad(loss)(x) * v), difference, rtol=1e-7)


A = np.float32([[0.5, -1, 2], [1, 1, 1], [0, 3, 0]])
POS, NEG = A + np.float32([0.5, -0.25, 1]), A - np.float32([0.25, 0, 2])


@pytest.mark.parametrize("degree", [1, 1.5, 2, 3, 4, 7.25])
def test_triplet_degrees(degree):  # optax at 1, 1.5, 3: 8.0, NaN, NaN
    def distance(a, b):
        return (np.sum(np.abs(np.float64(a) - b) ** degree, -1) + 1e-6) ** (1 / degree)

    want = np.maximum(distance(A, POS) - distance(A, NEG) + 3, 0)
    loss = jaxloss.triplet_margin_loss
    np.testing.assert_allclose(loss(A, POS, NEG, -1, degree, 3.0), want, rtol=1e-6)
    np.testing.assert_allclose(loss(A, POS, NEG, -1, jnp.float32(degree), 3.0), want, rtol=1e-6)
    with jax.enable_x64(True):
        f = lambda a: jnp.sum(loss(a, np.float64(POS), np.float64(NEG), -1, degree, 3.0))
        at, v = np.float64(A), RNG.normal(size=A.shape)
        gradient = grad(f)
        # Not along the axis where anchor and negative are equal, a kink at degree 1.
        v[:, 1] = 0
        difference = (f(at + 1e-6 * v) - f(at - 1e-6 * v)) / 2e-6
        np.testing.assert_allclose(np.sum(gradient(at) * v), difference, rtol=1e-6)
        change = (gradient(at + 1e-6 * v) - gradient(at - 1e-6 * v)) / 2e-6
        curvature = jax.jvp(gradient, (at,), (v,))[1]
        np.testing.assert_allclose(curvature, change, rtol=1e-5, atol=1e-6)
    if degree in (2, 4):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            theirs = optax.losses.triplet_margin_loss(A, POS, NEG, -1, degree, 3.0)
        np.testing.assert_allclose(loss(A, POS, NEG, -1, degree, 3.0), theirs, rtol=1e-5)


@pytest.mark.parametrize("degree", [1, 1.5, 2, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_triplet_at_a_distance_of_zero(degree, eps):
    f = lambda a: jaxloss.triplet_margin_loss(a, A[0], NEG[0], -1, degree, 3.0, eps)
    distance = lambda a: jaxloss.triplet_margin_loss(a, A[0], a, -1, degree, 1.0, eps)
    np.testing.assert_array_equal(grad(distance)(A[0]), [0, 0, 0])
    for derivative in (grad(f), jacfwd(f), hessian(f)):
        assert np.all(np.isfinite(derivative(A[0])))
    if degree == 2 and eps:
        second = hessian(distance)(A[0])
        np.testing.assert_allclose(second, np.eye(3) / np.sqrt(1e-6), rtol=1e-5)


def test_triplet_at_its_margin():
    f = lambda a: jaxloss.triplet_margin_loss(a, np.float32([2, 0]), np.float32([-1, 0]), eps=0.0)
    # 2 - 1 = margin less two, then at it: (2 - a) - (a + 1) + 1 = 0 at a = 1.
    assert f(np.float32([1, 0])) == 0
    np.testing.assert_array_equal(grad(f)(np.float32([1, 0])), [-1, 0])
    np.testing.assert_array_equal(grad(f)(np.float32([0.5, 0])), [-2, 0])


def test_triplet_shapes_and_mask():
    loss = functools.partial(jaxloss.triplet_margin_loss, margin=3.0)
    want = loss(A, POS, NEG)
    np.testing.assert_allclose(loss(A.T, POS.T, NEG.T, axis=0), want, rtol=1e-6)
    np.testing.assert_allclose(loss(A[:1], POS, NEG), loss(np.repeat(A[:1], 3, 0), POS, NEG))
    live = np.array([True, False, True])
    poisoned = np.where(live[:, None], A, np.float32(np.nan))
    np.testing.assert_allclose(loss(poisoned, POS, NEG, where=live), np.where(live, want, 0))
    f = lambda a: jnp.sum(loss(a, POS, NEG, where=live))
    assert np.all(np.isfinite(grad(f)(poisoned)))
    assert np.all(np.isfinite(hessian(f)(poisoned)))


def test_triplet_degree_has_a_derivative():
    f = lambda q: jnp.sum(jaxloss.triplet_margin_loss(A, POS, NEG, -1, q, 3.0))
    difference = (f(np.float32(2.55)) - f(np.float32(2.45))) / 0.1
    np.testing.assert_allclose(grad(f)(np.float32(2.5)), difference, rtol=1e-2)


def test_unit():
    of = lambda x: unit_vector(x, 0)
    for scale in (1e-37, 1e-25, 1.0, 1e20, 1e37):
        x = np.float32([0.6, -0.8, 0]) * np.float32(scale)
        np.testing.assert_allclose(unit_vector(x, 0), [0.6, -0.8, 0], rtol=3e-7)
        projection = np.eye(3) - np.outer([0.6, -0.8, 0], [0.6, -0.8, 0])
        for jacobian in (jacfwd(of)(x), jacrev(of)(x)):
            np.testing.assert_allclose(np.float64(jacobian) * scale, projection, atol=1e-6)
    # XLA rewrites what it knows to be constant.
    constant = quick(lambda: unit_vector(X * np.float32(1e-25), 1))()
    np.testing.assert_allclose(constant, unit_vector(X, 1), rtol=1e-6)
    zero = np.zeros(3, np.float32)
    for derivative in (of, jacfwd(of), jacrev(of), hessian(of)):
        np.testing.assert_array_equal(derivative(zero), 0)
    for bad in (np.nan, np.inf):
        assert np.isnan(np.sum(unit_vector(np.float32([bad, 1, 2]), 0)))
    with jax.enable_x64(True):
        x, v, w = np.float64(X[0]), np.float64(X[1]), np.float64(X[2])
        plain = lambda x: jnp.sum(x / jnp.sqrt(jnp.sum(x * x)) * w)
        ours = lambda x: jnp.sum(unit_vector(x, 0) * w)
        for _ in range(3):
            np.testing.assert_allclose(ours(x), plain(x), rtol=1e-12)
            np.testing.assert_allclose(grad(ours)(x), grad(plain)(x), rtol=1e-11)
            along = lambda f: lambda x: jax.jvp(f, (x,), (v,))[1]
            ours, plain = along(ours), along(plain)


MESSAGES = {
    "rank": (lambda: jaxloss.info_nce(X[0], X[0]), ValueError, r"\(8,\)"),
    "towers": (lambda: jaxloss.siglip_loss(X, Y[1:]), ValueError, r"\(24, 8\).*\(23, 8\)"),
    "labels": (lambda: jaxloss.ntxent(X, LABELS[1:]), ValueError, r"\(23,\).*\(24, 8\)"),
    "float labels": (lambda: jaxloss.ntxent(X, X[:, 0]), TypeError, "int32"),
    "integers": (lambda: jaxloss.info_nce(LABELS[:, None], X[:, :1]), TypeError, "astype"),
    "where": (lambda: jaxloss.info_nce(X, Y, where=MASK[1:]), ValueError, r"\(23,\)"),
    "mask": (lambda: jaxloss.info_nce(X, Y, where=LABELS), TypeError, "boolean"),
    "temperature": (lambda: jaxloss.info_nce(X, Y, temperature=0), ValueError, "temperature"),
    "vector": (lambda: jaxloss.info_nce(X, Y, temperature=X[0]), ValueError, "temperature"),
    "chunk": (lambda: jaxloss.ntxent(X, LABELS, chunk_size=0), ValueError, "chunk_size"),
    "margin": (lambda: jaxloss.circle_loss(X, LABELS, margin=1.5), ValueError, "margin"),
    "references": (
        lambda: jaxloss.circle_loss(X, LABELS, reference_embeddings=Y),
        ValueError,
        "reference_labels",
    ),
    "features": (
        lambda: jaxloss.circle_loss(
            X, LABELS, reference_embeddings=Y[:, 1:], reference_labels=LABELS
        ),
        ValueError,
        r"\(24, 8\).*\(24, 7\)",
    ),
    "degree": (lambda: jaxloss.triplet_margin_loss(A, POS, NEG, -1, 0.5), ValueError, "degree"),
    "triplets": (lambda: jaxloss.triplet_margin_loss(A, POS[:2], NEG), ValueError, r"\(2, 3\)"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_errors_name_what_came(name):
    call, error, match = MESSAGES[name]
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("name", LOSSES)
def test_settings_are_keywords(name):
    parameters = list(inspect.signature(LOSSES[name].func).parameters.values())
    positional = 3 if name == "ntxent" else 2
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[positional:])


def test_triplets_with_nan_survive_a_reduction():
    """XLA's CPU reductions drop a NaN in a maximum."""
    a, p, n = np.random.default_rng(0).normal(size=(3, 4096, 8)).astype(np.float32)
    a[5, 3] = np.nan

    def mean(a):
        return jnp.mean(jaxloss.triplet_margin_loss(a, p, n))

    assert np.isnan(jax.jit(mean)(a))
    gradient = jax.jit(jax.grad(mean))(a)
    assert np.all(np.isnan(gradient[5])) and np.isnan(gradient).sum() == 8


def test_matmuls_are_exact_unless_a_user_asks_for_less():
    def text():
        return jax.jit(lambda x, y: jaxloss.siglip_loss(x, y)).lower(X, Y).as_text()

    assert "HIGHEST" in text()
    with jax.default_matmul_precision("default"):
        assert "HIGHEST" not in text()
