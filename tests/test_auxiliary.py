"""`total_loss`: the loss of the predictions and the penalties of the layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import total_loss


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


TREE = {"a": (jnp.array(1.0), None), "b": [jnp.array(0.25, jnp.bfloat16), 2, True], "c": {}}


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("auxiliary", "scale", "want"),
    [
        (TREE, 1.0, 2 + 4.25),
        (TREE, 0.1, 2 + 0.425),
        (TREE, jnp.array(2, jnp.int32), 2 + 8.5),
        ({}, 1.0, 2),
        (None, 1.0, 2),
        ([None, ()], 1.0, 2),
        (0, 1.0, 2),
        (np.float64(3), -1.0, -1),
        ([jnp.inf, jnp.nan, 1.0], 0.0, 2),
    ],
)
def test_values(auxiliary, scale, want, wrap):
    total = wrap(lambda aux, scale: total_loss(jnp.array(2.0), aux, scale=scale))(auxiliary, scale)
    assert total.dtype == jnp.float32 and total.shape == ()
    np.testing.assert_allclose(total, want, rtol=1e-6)


def test_dtypes():
    assert total_loss(jnp.array(1, jnp.float16), [jnp.array(3e4, jnp.float16)] * 3) == 90001
    with jax.enable_x64(True):
        total = total_loss(jnp.array(1.0, jnp.float64), [jnp.array(1e-12, jnp.float64)])
        assert total == 1 + 1e-12
        assert total_loss(jnp.array(1.0, jnp.float32), [jnp.array(1.0)]).dtype == jnp.float32


def test_derivatives():
    def total(data, aux, scale):
        return total_loss(data, aux, scale=scale)

    args = jnp.array(2.0), {"a": jnp.array(3.0), "b": (jnp.array(5.0),)}, jnp.array(0.1)
    data, aux, scale = jax.jit(jax.grad(total, (0, 1, 2)))(*args)
    assert (data, scale) == (1, 8)
    np.testing.assert_allclose(jax.tree.leaves(aux), [0.1, 0.1])
    assert jax.jvp(total, args, args)[1] == pytest.approx(2 + 0.1 * 8 * 2)
    curvature = jax.hessian(lambda x: total(x**2, [x**3], 2.0))(jnp.array(3.0))
    assert curvature == pytest.approx(2 + 2 * 18)
    # Switched off, an infinite penalty has no derivative either.
    assert jax.grad(lambda x: total(x, [1 / (x - 2)], 0.0))(jnp.array(2.5)) == 1
    assert jax.grad(lambda x: total(jnp.array(0.0), [x], 0.0))(jnp.inf) == 0


def test_each_of_a_batch():
    each = jax.vmap(lambda d, a: total_loss(d, [a], scale=2.0))(jnp.arange(3.0), jnp.ones(3))
    np.testing.assert_array_equal(each, [2, 3, 4])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("data", "auxiliary", "scale", "error", "message"),
    [
        (jnp.ones(2), {}, 1.0, ValueError, r"data_loss has shape \(2,\).*reduce it first"),
        (jnp.array(1), {}, 1.0, TypeError, "data_loss must be floating point"),
        (1.0, {"a": jnp.ones(3)}, 1.0, ValueError, r"auxiliary\['a'\] has shape \(3,\).*jnp.mean"),
        (1.0, [0.0, jnp.ones(1)], 1.0, ValueError, r"auxiliary\[1\] has shape \(1,\)"),
        (1.0, [jnp.array(1j)], 1.0, TypeError, r"auxiliary\[0\] must be real"),
        (1.0, [1.0], jnp.ones(2), ValueError, r"scale of shape \(2,\)"),
    ],
)
def test_refused(data, auxiliary, scale, error, message, wrap):
    with pytest.raises(error, match=message):
        wrap(lambda d, a, s: total_loss(d, a, scale=s))(data, auxiliary, scale)
