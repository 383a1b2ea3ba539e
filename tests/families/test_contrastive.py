"""Contrastive losses: tails, learned temperatures, inner products, optax's numbers and its memory.

What all losses of pairs have in common is tested in `tests/test_pairs.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from mpmath import mp, mpf

import jaxloss
from tests.devices import mesh
from tests.test_pairs import (
    EYE,
    LABELS,
    LOSSES,
    MASK,
    TARGETS,
    X,
    Y,
    cosines,
    grad,
    temporaries,
    value_and_grad,
)
from tests.test_transforms import close


@pytest.mark.parametrize("chunk_size", [None, 128])
@pytest.mark.few(1)
def test_memory_of_ntxent(chunk_size):  # optax: 6.45 GB
    loss = functools.partial(jaxloss.ntxent, chunk_size=chunk_size)
    assert temporaries(loss, (1024, 512), jnp.int32) <= 20e6


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


def test_inner_products():
    x, y = X / 4, Y / 4
    s = np.float64(x) @ np.float64(y).T
    got = jaxloss.info_nce(x, y, temperature=0.5, normalize=False)
    e = np.exp(s / 0.5)
    np.testing.assert_allclose(got, -np.log(np.diag(e) / e.sum(1)), rtol=1e-5)
    got = jaxloss.siglip_loss(x, y, temperature=2.0, bias=0.5, normalize=False)
    losses = np.log1p(np.exp(np.where(EYE, -1, 1) * (2 * s + 0.5)))
    np.testing.assert_allclose(got, losses.sum(1), rtol=1e-5)


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
}


@pytest.mark.parametrize("name", MESSAGES)
def test_errors_name_what_came(name):
    call, error, match = MESSAGES[name]
    with pytest.raises(error, match=match):
        call()


QUEUE = np.random.default_rng(7).normal(size=(16, X.shape[1])).astype(np.float32)
IDS = (np.arange(len(X)) % 9).astype(np.int32)
nce = functools.partial(jaxloss.info_nce, temperature=0.3)


def with_more_keys(x, y, queue, ids, live):
    """Query by query, in float64, and the losses of the keys that pick among the queries."""
    out = []
    for a, b, more in ((x, y, queue), (y, x, queue[:0])):
        e, extra = np.exp(cosines(a, b) / 0.3), np.exp(cosines(a, more) / 0.3)
        counted = EYE | ((ids[:, None] != ids) & live)
        out.append(np.log((e * counted).sum(1) + extra.sum(1)) - np.log(np.diagonal(e)))
    return np.where(live, out[0], 0), np.where(live, out[1], 0)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_extra_keys_and_ids(chunk_size):
    for ids, live in ((IDS, MASK), (np.arange(len(X)), np.ones_like(MASK)), (0 * IDS, MASK)):
        forward, backward = with_more_keys(X, Y, QUEUE, ids, live)
        options = {"extra_keys": QUEUE, "ids": ids, "where": live, "chunk_size": chunk_size}
        close(nce(X, Y, **options), forward, 1e-5)
        close(nce(X, Y, symmetric=True, **options), (forward + backward) / 2, 1e-5)
    # An id of 0 is not that of the extra keys, and nothing but the own key is left without them.
    np.testing.assert_array_equal(nce(X, Y, ids=0 * IDS), 0)
    close(nce(X, Y, extra_keys=QUEUE[:0]), nce(X, Y))


def test_extra_keys_have_derivatives():
    total = lambda x, y, more: jnp.sum(nce(x, y, extra_keys=more, ids=IDS))
    by_x, by_y, by_more = jax.jit(jax.grad(total, (0, 1, 2)))(X, Y, QUEUE)
    v = np.ones_like(QUEUE)
    with jax.enable_x64(True):
        f = lambda t: total(np.float64(X), np.float64(Y), QUEUE + t * np.float64(v))
        np.testing.assert_allclose(np.sum(by_more), (f(1e-5) - f(-1e-5)) / 2e-5, rtol=1e-4)
    assert np.any(by_x) and np.any(by_y)
    held = jax.grad(lambda more: total(X, Y, jax.lax.stop_gradient(more)))(QUEUE)
    assert not np.any(held)


def test_extra_keys_of_all_devices():
    def on_each(x, y, more, ids, where):
        return nce(x, y, extra_keys=more, ids=ids, where=where, axis_name="i", chunk_size=2)

    split = jax.shard_map(on_each, mesh=mesh(i=8), in_specs=P("i"), out_specs=P("i"))
    want = functools.partial(nce, extra_keys=QUEUE, ids=IDS, where=MASK)

    def sums(f):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(f(x)))))(X)

    close(sums(lambda x: split(x, Y, QUEUE, IDS, MASK)), sums(lambda x: want(x, Y)), 1e-4, 1e-5)


def test_extra_keys_in_a_loss():
    loss = jaxloss.Loss(jaxloss.info_nce, temperature=0.3)
    got = loss(X, Y, where=MASK, extra_keys=QUEUE, ids=IDS)
    close(got, nce(X, Y, where=MASK, extra_keys=QUEUE, ids=IDS)[MASK].mean())


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, r"queries of shape \(24, 8\) and extra_keys of shape \(16, 3\)",
         {"extra_keys": QUEUE[:, :3]}),
        (ValueError, r"extra_keys of shape \(8,\)", {"extra_keys": QUEUE[0]}),
        (ValueError, r"ids of shape \(3,\)", {"ids": IDS[:3]}),
        (TypeError, "ids must be integers", {"ids": IDS.astype(np.float32)}),
    ],
)  # fmt: skip
def test_wrong_extra_keys_and_ids(error, message, options):
    with pytest.raises(error, match=message):
        nce(X, Y, **options)
