"""Penalties from inside a model: `add_loss` of Keras; flax linen, flax nnx and equinox."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_iris

import jaxloss
from jaxloss.keras import as_keras_loss

pytestmark = pytest.mark.usefixtures("implicit_promotions")

FLOWERS, SPECIES = load_iris(return_X_y=True)
FLOWERS = ((FLOWERS - FLOWERS.mean(0)) / FLOWERS.std(0)).astype("f")
SPECIES = SPECIES.astype(np.int32)
cross_entropy = jaxloss.softmax_cross_entropy_with_integer_labels
LOSS = jaxloss.Loss(cross_entropy)
RATE = 0.05  # of a hidden unit being active


def close(got, want, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def sparsity(hidden):
    """How far the mean activations of sigmoid units are from `RATE`, summed over the units."""
    return jnp.sum(jaxloss.binary_cross_entropy(jnp.mean(hidden, 0), jnp.full(16, RATE)))


# Keras


class Sparse(keras.layers.Layer):
    def call(self, hidden):
        self.add_loss(sparsity(hidden))
        return hidden


def keras_model(*between):
    keras.utils.set_random_seed(0)
    hidden, out = keras.layers.Dense(16, "sigmoid"), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((4,)), hidden, *between, out])
    model.compile(keras.optimizers.SGD(0.5), as_keras_loss(cross_entropy))
    return model


def by_hand(weights, penalty=sparsity):
    w1, b1, w2, b2 = weights
    hidden = jax.nn.sigmoid(FLOWERS @ w1 + b1)
    return LOSS(hidden @ w2 + b2, SPECIES) + penalty(hidden)


def test_add_loss_is_in_the_total_and_in_the_gradient_once():
    model = keras_model(Sparse())
    before = [jnp.array(v.value) for v in model.trainable_variables]
    for _ in range(2):
        model(FLOWERS)
        assert len(model.losses) == 1
        close(model.evaluate(FLOWERS, SPECIES, batch_size=150, verbose=0), by_hand(before))
    model.fit(FLOWERS, SPECIES, batch_size=150, verbose=0)
    gradient, data_only = jax.grad(by_hand)(before), jax.grad(by_hand)(before, lambda h: 0.0)
    assert np.abs(gradient[0] - data_only[0]).max() > 0.01
    for old, slope, new in zip(before, gradient, model.trainable_variables, strict=True):
        close(old - 0.5 * slope, new.value)


def test_add_loss_is_not_divided_by_the_batch():
    class Summed(keras.layers.Layer):
        def call(self, hidden):
            self.add_loss(jnp.sum(hidden))
            return hidden

    class Averaged(keras.layers.Layer):
        def call(self, hidden):
            self.add_loss(jnp.mean(jnp.sum(hidden, -1)))
            return hidden

    def penalty(layer, batch):
        data = keras_model().evaluate(FLOWERS, SPECIES, batch_size=150, verbose=0)
        return keras_model(layer).evaluate(FLOWERS, SPECIES, batch_size=batch, verbose=0) - data

    whole = penalty(Averaged(), 150)
    close(penalty(Averaged(), 75), whole)
    close(penalty(Summed(), 150), 150 * whole)
    close(penalty(Summed(), 75), 75 * whole)


def test_activity_regularizer_is_divided_by_the_batch():
    def total(hidden):
        return 0.1 * jnp.sum(jaxloss.absolute_error(hidden))

    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(16, "sigmoid", activity_regularizer=total)
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])
    model.compile("sgd", as_keras_loss(cross_entropy))
    want = by_hand(
        [jnp.array(v.value) for v in model.trainable_variables], lambda h: total(h) / 150
    )
    for batch in (150, 75):
        close(model.evaluate(FLOWERS, SPECIES, batch_size=batch, verbose=0), want)


# The others: each gives `params, total`, with `total(params, x, y, scale)`.


def linen():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            hidden = nn.sigmoid(nn.Dense(16)(x))
            self.sow("losses", "sparsity", sparsity(hidden))
            return nn.Dense(3)(hidden)

    model = Network()
    # `init` sows too: only the parameters are kept, or the penalties would pile up.
    params = model.init(jax.random.key(0), FLOWERS)["params"]

    def total(params, x, y, scale):
        logits, sown = model.apply({"params": params}, x, mutable=["losses"])
        return jaxloss.total_loss(LOSS(logits, y), sown["losses"], scale=scale)

    return params, total


class Penalty(nnx.Variable):
    pass


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.out = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.sigmoid(self.hidden(x))
        self.sow(Penalty, "sparsity", sparsity(hidden))
        return self.out(hidden)


def nnx_():
    graph, params = nnx.split(NnxNetwork(nnx.Rngs(0)), nnx.Param)

    def total(params, x, y, scale):
        logits, penalties = nnx.capture(nnx.merge(graph, params), Penalty)(x)
        return jaxloss.total_loss(LOSS(logits, y), penalties, scale=scale)

    return params, total


class EquinoxNetwork(eqx.Module):
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, key):
        hidden, out = jax.random.split(key)
        self.hidden = eqx.nn.Linear(4, 16, key=hidden)
        self.out = eqx.nn.Linear(16, 3, key=out)

    def __call__(self, x):
        hidden = jax.nn.sigmoid(jax.vmap(self.hidden)(x))
        return jax.vmap(self.out)(hidden), {"sparsity": sparsity(hidden)}


def equinox():
    params, static = eqx.partition(EquinoxNetwork(jax.random.key(0)), eqx.is_array)

    def total(params, x, y, scale):
        logits, penalties = eqx.combine(params, static)(x)
        return jaxloss.total_loss(LOSS(logits, y), penalties, scale=scale)

    return params, total


@pytest.mark.parametrize("framework", [linen, nnx_, equinox])
@pytest.mark.few(1)
def test_penalties_from_inside(framework):
    params, total = framework()
    data = (FLOWERS, SPECIES)
    step = jax.jit(jax.value_and_grad(total))

    value, gradient = step(params, *data, 0.1)
    plain, plain_gradient = step(params, *data, 0.0)
    penalty = step(params, *data, 1.0)[0] - plain
    assert penalty > 1
    close(value, plain + 0.1 * penalty)
    # Nothing is left over from one call to the next, compiled or not.
    for _ in range(2):
        assert step(params, *data, 0.1)[0] == value
    first, second = total(params, *data, 0.1), total(params, *data, 0.1)
    assert first == second
    close(first, value)
    # The gradient has the penalty in it: as differences of the total say, along a direction.
    penalty_gradient = jax.tree.map(lambda g, p: (g - p) / 0.1, gradient, plain_gradient)
    length = optax.tree.norm(penalty_gradient)
    assert length > 0.1
    moved = jax.tree.map(lambda p, g: p - 1e-2 * g / length, params, penalty_gradient)
    change = step(moved, *data, 1.0)[0] - step(moved, *data, 0.0)[0] - penalty
    close(change, -1e-2 * length, rtol=0.05)

    optimizer = optax.adam(0.05)

    @jax.jit
    def train(scale):
        def update(_, carry):
            p, state = carry
            updates, state = optimizer.update(jax.grad(total)(p, *data, scale), state)
            return optax.apply_updates(p, updates), state

        p, _ = jax.lax.fori_loop(0, 100, update, (params, optimizer.init(params)))
        loss = step(p, *data, 0.0)[0]
        return loss, step(p, *data, 1.0)[0] - loss

    (loss, dense), (sparse_loss, sparse) = train(0.0), train(0.1)
    entropy = -RATE * np.log(RATE) - (1 - RATE) * np.log(1 - RATE)  # The least there can be.
    assert loss < 0.1 and sparse_loss < 0.2
    assert sparse - 16 * entropy < 0.5 * (dense - 16 * entropy)


def test_linen_without_mutable_and_with_what_init_sowed():
    """The two mistakes that `docs/training.md` warns of."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("losses", "one", jnp.ones(()))
            return x

    model = Network()
    sown = model.init(jax.random.key(0), FLOWERS)
    assert list(sown) == ["losses"]
    np.testing.assert_array_equal(model.apply({}, FLOWERS), FLOWERS)  # The penalty is dropped.
    _, twice = model.apply(sown, FLOWERS, mutable=["losses"])
    _, once = model.apply({}, FLOWERS, mutable=["losses"])
    assert jaxloss.total_loss(0.0, twice) == 2
    assert jaxloss.total_loss(0.0, once) == 1
