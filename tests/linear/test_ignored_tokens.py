"""Tokens that do not count are not computed, and change nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss.linear import _formulas, _live, _tokens
from jaxloss.linear._head import Head
from jaxloss.linear._rule import weighted_total
from jaxloss.linear._stored import StoredSweep
from jaxloss.linear._sweep import Need, PlatformSweep
from tests.devices import mesh
from tests.linear.test_cross_entropy import N, V, assert_close, operands, value_and_gradients

CE = jaxloss.linear_cross_entropy
SCATTERED = np.arange(N) % 3 == 1
KEPT = {
    "scattered": SCATTERED,
    "a run": np.arange(N) < 6,
    "all": np.ones(N, bool),
    "none": np.zeros(N, bool),
    "the last": np.arange(N) == N - 1,
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("how", ["where", "ignore_index", "weights"])
@pytest.mark.few(6)
def test_the_others_alone(name, how):
    hidden, weight, labels = operands()
    kept = KEPT[name]
    masks = {
        "where": {"where": kept},
        "ignore_index": {"ignore_index": -1},
        "weights": {"weights": np.float32(kept), "reduction": "weighted_mean"},
    }[how]
    given = np.where(kept, labels, -1) if how == "ignore_index" else labels
    got = value_and_gradients(partial(CE, chunk_size=4), given, **masks)(hidden, weight, {})
    alone = value_and_gradients(CE, labels[kept])(hidden[kept], weight, {})
    value, (dh, dw, _) = got
    assert not np.any(np.asarray(dh)[~kept])
    assert_close((value, (dh[kept], dw, {})), alone, 2e-6)


def chunks_computed(kept, way=_live.LiveSweep):
    """How often the loss of a chunk's logits runs."""
    runs = []

    def loss(logits, labels, shared, axis):
        jax.debug.callback(lambda: runs.append(1))
        return jnp.sum(logits[0], axis)

    hidden, weight, labels = operands()
    tokens = _tokens.TokenSweep(loss, 1, 4, vocab_first=False)
    coefficients = jnp.asarray(kept, jnp.float32)
    assert _live.can_skip(tokens, jnp.asarray(hidden), coefficients)
    sweep, need = way(tokens), Need((True,), (True,), None, False)
    heads = (Head(jnp.asarray(hidden), jnp.asarray(weight)),)
    run = jax.jit(partial(sweep.total_and_gradients, need))
    total, gradients = run(heads, jnp.asarray(labels), None, coefficients)
    jax.effects_barrier()
    np.testing.assert_allclose(total, np.sum(hidden[kept] @ weight), rtol=1e-5)
    want = np.where(kept[:, None], np.sum(weight, 1), 0)
    np.testing.assert_allclose(gradients.hidden[0], want, rtol=1e-5)
    return len(runs)


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.few(3)
def test_chunks_without_a_token_that_counts_are_not_computed(name):
    assert chunks_computed(KEPT[name]) == -(-KEPT[name].sum() // 4)


def on_accelerators(tokens):
    """The default there."""
    stored = StoredSweep(tokens, 4, N)
    skipping = _live.skipping(PlatformSweep(tokens, tokens, tpu=stored, gpu=stored))
    assert skipping.others == _live.LiveSweep(tokens) and skipping.tpu == skipping.gpu
    return skipping.gpu


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.few(2)
def test_accelerators_skip_them_where_they_are_many(name):
    kept = KEPT[name]
    few = kept.sum() < 0.75 * N
    assert chunks_computed(kept, on_accelerators) == -(-(kept.sum() if few else N) // 4)


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.few(2)
def test_gradients_on_accelerators(name):
    hidden, weight, labels = map(jnp.asarray, operands())
    tokens = _tokens.TokenSweep(_formulas.cross_entropy, 1, 4, vocab_first=False)

    def total(sweep, h, w):
        coefficients = jnp.float32(KEPT[name])
        operands = (Head(h, w),), labels, _formulas.Settings(), coefficients
        return weighted_total(sweep, *operands)[0]

    step = jax.value_and_grad(total, (1, 2))
    ways = on_accelerators(tokens), tokens
    got, want = (jax.jit(partial(step, sweep))(hidden, weight) for sweep in ways)
    assert_close(got, want, 2e-6)


def test_derivatives_by_weights_of_zero_are_the_losses():
    hidden, weight, labels = operands()
    losses = CE(hidden, weight, labels, reduction="none")

    @jax.jit
    def by_weights(w):
        return jax.grad(lambda w: CE(hidden, weight, labels, weights=w, reduction="sum"))(w)

    np.testing.assert_allclose(by_weights(jnp.zeros(N)), losses, rtol=2e-6)
    # Also where a gradient by others is differentiated by the weights.
    fused = partial(CE, labels=labels, reduction="sum", chunk_size=4)

    def slope(w, chunk_size):
        loss = lambda h: fused(h, weight, weights=w, chunk_size=chunk_size)
        return jnp.sum(jax.grad(loss)(hidden) * np.cos(hidden))

    some = jnp.float32(SCATTERED)
    got, want = (jax.jit(jax.grad(partial(slope, chunk_size=c)))(some) for c in (4, N))
    assert_close(got, want, 2e-6)
    assert np.all(np.asarray(got) != 0)


def test_on_each_device_its_own():
    """In `shard_map`, where devices go through chunks of different number."""
    hidden, weight, labels = operands(n=64, v=V)
    kept = np.arange(64) < 20

    def local(h, w, y, kept):
        total = CE(h, w, y, where=kept, reduction="sum", chunk_size=2)
        return jax.lax.psum(total, "d")

    specs = P("d"), P(), P("d"), P("d")
    split = jax.shard_map(local, mesh=mesh(d=8), in_specs=specs, out_specs=P())
    got = jax.jit(jax.value_and_grad(split, (0, 1)))(hidden, weight, labels, kept)
    plain = partial(CE, labels=labels, where=kept, reduction="sum", implementation="dense")
    want = jax.jit(jax.value_and_grad(plain, (0, 1)))(hidden, weight)
    assert_close(got, want, 2e-6)


def test_tokens_that_xla_splits_over_devices_stay_there():
    hidden, weight, labels = operands(n=64, v=V)
    rows = jax.NamedSharding(mesh(d=8), P("d"))
    fused = jax.value_and_grad(partial(CE, ignore_index=1, chunk_size=16), (0, 1))
    placed = [jax.device_put(x, rows) for x in (hidden, labels)]
    text = jax.jit(fused).lower(placed[0], weight, placed[1]).compile().as_text() or ""
    assert "all-gather" not in text and "all-to-all" not in text
