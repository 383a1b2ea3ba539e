"""Several losses in one: penalties of the layers, and tasks with learned weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import Mean, total_loss, uncertainty_weighting, value_and_grad


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


def test_weights_by_name_and_terms():
    weights = {"a": 2, "b": jnp.array(0.5, jnp.bfloat16)}
    for wrap in (lambda f: f, jax.jit):
        total, terms = wrap(
            lambda aux, weights: total_loss(2.0, aux, scale=0.5, weights=weights, return_terms=True)
        )({"a": [1.0, 3.0], "b": jnp.array(8.0), "c": (0.5, None), "d": None}, weights)
        assert total == 2 + 0.5 * (2 * 4 + 0.5 * 8 + 0.5)
        assert terms == {"data_loss": 2, "a": 4, "b": 8, "c": 0.5}
    total, terms = total_loss(2.0, [1.0, 3.0], scale=0.5, return_terms=True)
    assert total == 4 and terms == {"data_loss": 2, "auxiliary": 4}
    assert total_loss(2.0, {}, return_terms=True) == (2, {"data_loss": 2})
    # Zero switches off, by name too; and a derivative by weights is the term.
    off = lambda w: total_loss(2.0, {"a": jnp.inf, "b": 3.0}, weights={"a": 0, "b": w})
    assert jax.value_and_grad(off)(2.0) == (8, 3)


def test_means_stand_for_their_values():
    aux = {"a": Mean(6.0, 3), "b": [Mean(), 1.0]}
    total, terms = total_loss(Mean(3.0, 2), aux, weights={"a": 10}, return_terms=True)
    assert total == 1.5 + 20 + 1 and terms == {"data_loss": 1.5, "a": 2, "b": 1}


@pytest.mark.parametrize(
    ("auxiliary", "weights", "error", "message"),
    [
        ([1.0], {"a": 1}, TypeError, "auxiliary must be a dictionary, got list"),
        ({"a": 1.0}, {"b": 1}, ValueError, "weights has 'b', but auxiliary has 'a'"),
        ({"a": 1.0}, {"a": jnp.ones(2)}, ValueError, r"weights\['a'\] of shape \(2,\)"),
        ({"data_loss": 1.0}, None, ValueError, "the name of the loss of the predictions"),
        ({"a": Mean(jnp.ones(2), 1)}, None, ValueError, r"auxiliary\['a'\] has shape \(2,\)"),
    ],
)
def test_refused_weights(auxiliary, weights, error, message):
    with pytest.raises(error, match=message):
        total_loss(1.0, auxiliary, weights=weights)


def test_uncertainty_weighting():
    terms = {"depth": Mean(8.0, 4), "class": Mean(3.0, 6), "decay": Mean(5.0, 1)}
    s = {"depth": 0.7, "class": jnp.array(-0.4, jnp.bfloat16).astype(jnp.float32)}

    def value(s):
        return sum(term.value for term in uncertainty_weighting(terms, s).values())

    got, gradient = jax.jit(jax.value_and_grad(value))(s)
    want = 5 + sum(
        np.exp(-float(s[k])) * float(terms[k].value) + float(s[k]) / 2 for k in ("depth", "class")
    )
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for name, derivative in gradient.items():
        by_hand = 0.5 - np.exp(-float(s[name])) * float(terms[name].value)
        np.testing.assert_allclose(derivative, by_hand, rtol=1e-5)
    # At its minimum the variance is twice the loss.
    best = jax.grad(lambda s: uncertainty_weighting(terms, {"depth": s})["depth"].value)
    assert abs(best(jnp.log(4.0))) < 1e-6
    # A task of which a batch has nothing moves neither the model nor its variance.
    nothing = lambda s: uncertainty_weighting({"a": Mean()}, {"a": s})["a"].value
    assert jax.value_and_grad(nothing)(0.3) == (0, 0)


def test_uncertainty_weighting_of_parts():
    """Parts of a batch with different shares of the tasks add up to the whole."""
    x = jnp.linspace(-1, 2, 12)
    of_first = jnp.arange(12) % 4 != 1
    params = {"w": jnp.array(0.5), "s": {"a": jnp.array(0.3), "b": jnp.array(-0.2)}}

    def objective(params, x, of_first):
        losses = (params["w"] * x - 1) ** 2
        terms = {"a": Mean.of(losses, where=of_first), "b": Mean.of(losses**2, where=~of_first)}
        return uncertainty_weighting(terms, params["s"])

    def plain(params):
        return sum(term.value for term in objective(params, x, of_first).values())

    got = value_and_grad(objective, microbatches=4)(params, x, of_first)
    want = jax.value_and_grad(plain)(params)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5), got, want)


def test_refused_tasks():
    with pytest.raises(TypeError, match="term 'a' must be a"):
        uncertainty_weighting({"a": 1.0}, {})
    with pytest.raises(ValueError, match="log_variances has 'b', but the terms are 'a'"):
        uncertainty_weighting({"a": Mean(1.0, 1)}, {"b": 0.0})
    with pytest.raises(ValueError, match=r"log_variances\['a'\] of shape \(2,\)"):
        uncertainty_weighting({"a": Mean(1.0, 1)}, {"a": jnp.zeros(2)})
