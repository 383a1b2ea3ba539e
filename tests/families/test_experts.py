"""Mixtures of experts: what balance costs, masks, selections out of range, several devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

import jaxloss
from tests.devices import mesh

balance, z_loss = jaxloss.load_balancing_loss, jaxloss.router_z_loss
E = 4
X = np.random.default_rng(0).normal(size=(2, 8, E)).astype(np.float32)
TAKEN = np.argsort(X, -1)[..., -2:].astype(np.int32)


def by_hand(x, taken):
    """Of [n, E] and [n, k], in float64."""
    p = np.exp(np.float64(x))
    p /= p.sum(-1, keepdims=True)
    return E * np.sum(np.bincount(taken.ravel(), minlength=E) / taken.size * p.mean(0))


def test_balance_costs_one_whatever_k_is():
    even = np.zeros((E, E), np.float32)
    for k in (1, 2, 3):
        taken = (np.arange(E)[:, None] + np.arange(k)) % E
        assert balance(even, taken) == 1
        assert balance(X[0, :E], taken) == pytest.approx(1)  # By shares that are all alike.
    # Everything to one expert.
    one = np.zeros((5, 1), np.int32)
    assert balance(np.float32([[90, 0, 0, 0]] * 5), one) == E


def test_tokens_of_any_shape():
    want = by_hand(X.reshape(-1, E), TAKEN.reshape(-1, 2))
    np.testing.assert_allclose(balance(X, TAKEN), want, rtol=1e-6)
    np.testing.assert_allclose(balance(X[0, 0], TAKEN[0, 0]), by_hand(X[0, :1], TAKEN[0, :1]))


WHERE = np.arange(16).reshape(2, 8) % 3 > 0


def test_masked_tokens_are_not_there():
    run = jax.jit(jax.value_and_grad(lambda x, taken, where: balance(x, taken, where=where)))
    poisoned = np.where(WHERE[..., None], X, np.nan).astype(np.float32)
    value, gradient = run(poisoned, np.where(WHERE[..., None], TAKEN, -1), WHERE)
    np.testing.assert_allclose(value, by_hand(X[WHERE], TAKEN[WHERE]), rtol=1e-6)
    np.testing.assert_array_equal(gradient[~WHERE], 0)
    alone = jax.grad(balance)(X[WHERE], TAKEN[WHERE])
    np.testing.assert_allclose(gradient[WHERE], alone, rtol=1e-5, atol=1e-7)
    value, gradient = run(poisoned, TAKEN, np.zeros_like(WHERE))
    assert value == 0 and not np.any(gradient)
    loss = jaxloss.Loss(balance)
    np.testing.assert_allclose(loss(poisoned, TAKEN, where=WHERE), balance(X[WHERE], TAKEN[WHERE]))


def test_a_selection_out_of_range():
    run = jax.jit(jax.value_and_grad(balance))
    checked = checkify.checkify(jax.jit(balance))
    for bad in (-1, E):
        taken = TAKEN.copy()
        taken[0, 0, 0] = bad
        value, gradient = run(X, taken)
        assert np.isnan(value) and np.all(np.isnan(gradient))
        assert "selected must be in [0, 4)" in checked(X, taken)[0].get()
    assert checked(X, TAKEN)[0].get() is None


def test_devices_share_their_counts():
    """Each has the loss, and its part of the gradient, of all tokens together."""
    where = np.arange(16) % 5 > 0
    where[:2] = False  # A device without a token.
    x, taken = X.reshape(16, E), TAKEN.reshape(16, 2)

    def one(x, taken, where):
        return balance(x, taken, where=where, axis_name="i")

    split = jax.shard_map(one, mesh=mesh(i=8), in_specs=P("i"), out_specs=P())
    value, gradient = jax.jit(jax.value_and_grad(split))(x, taken, where)
    want, expected = jax.value_and_grad(partial(balance, where=where))(x, taken)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_z_loss_of_masked_tokens_and_experts():
    want = np.log(np.exp(np.float64(X)).sum(-1)) ** 2
    np.testing.assert_allclose(z_loss(X), want, rtol=1e-5)
    poisoned = np.where(WHERE[..., None], X, np.nan).astype(np.float32)
    total = jax.value_and_grad(lambda x: jnp.sum(z_loss(x, where=WHERE)))
    value, gradient = total(poisoned)
    np.testing.assert_allclose(value, want[WHERE].sum(), rtol=1e-6)
    np.testing.assert_array_equal(gradient[~WHERE], 0)
    some = np.array([[[True, True, False, True]]])
    np.testing.assert_allclose(z_loss(X, where=some), z_loss(X[..., [0, 1, 3]]), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: balance(X, TAKEN[0]), ValueError, r"selected of shape \(8, 2\).*\(2, 8, 4\)"),
        (lambda: balance(X, TAKEN.astype(np.float32)), TypeError, "selected must be integers"),
        (lambda: balance(X, TAKEN, where=WHERE[0]), ValueError, r"where of shape \(8,\)"),
    ],
)
def test_errors_name_what_came(call, error, message):
    with pytest.raises(error, match=message):
        call()
