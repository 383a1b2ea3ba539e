"""Margin losses: kinks and smooth corners, shapes, printed values.

What they have in common with the sparsemax loss is tested in `tests/test_scores.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from tests.cases import CASES

f32 = lambda *v: jnp.array(v, jnp.float32)


@pytest.mark.parametrize(
    ("fn", "kink", "slope"), [(jaxloss.hinge_loss, 1.0, -0.5), (jaxloss.perceptron_loss, 0.0, -0.5)]
)
def test_kinks_have_the_mean_of_their_sides(fn, kink, slope):
    for t in (1.0, -1.0):
        assert jax.grad(fn)(t * kink, t) == t * slope
        assert jax.jvp(lambda x, t=t: fn(x, t), (t * kink,), (1.0,))[1] == t * slope
        assert fn(t * kink, t) == 0


def test_smooth_corners():
    for x, second in ((1.0, 1.0), (0.5, 2.0), (1.5, 0.0)):
        assert jax.grad(jax.grad(jaxloss.squared_hinge_loss))(x, 1.0) == second


OF_SIGNS = [case for case in CASES if case.targets == "sign"]


@pytest.mark.parametrize("case", OF_SIGNS, ids=str)
@pytest.mark.parametrize("bad", [0.0, 0.5, jnp.nan, 2.0])
def test_targets_that_are_no_signs_are_reported(case, bad):
    x, t = f32(0.5, 2.0, -1.0), f32(1, bad, -1)
    total = lambda x, t: jnp.sum(case.fn(x, t))
    for f in (case.fn, jax.grad(total), jax.grad(total, 1)):
        checked = checkify.checkify(jax.jit(f))
        assert checked(x, f32(1, -1, -1))[0].get() is None
        assert "targets must be -1 or 1, but reach" in checked(x, t)[0].get()
    masked = checkify.checkify(lambda x, t, where: case.fn(x, t, where=where))
    assert masked(x, t, jnp.array([True, False, True]))[0].get() is None
    assert masked(x, t, jnp.array([False, True, True]))[0].get()
    assert "-1 or 1" in checkify.checkify(case.fn)(x, jnp.array([True, False, True]))[0].get()


def test_shapes_do_not_spread():  # optax: silently (2, 2)
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2,\)"):
        jaxloss.hinge_loss(jnp.zeros((2, 1)), jnp.ones(2))


def test_categorical_hinge_of_keras():
    """Its documentation: 1.2 and 1.6 for these, a mean of 1.4."""
    y, p = f32(0, 1, 0, 0).reshape(2, 2), f32(0.6, 0.4, 0.4, 0.6).reshape(2, 2)
    np.testing.assert_allclose(jaxloss.categorical_hinge_loss(p, y), [1.2, 1.6], rtol=1e-6)
    # And where all scores are negative: 2.0, by the zero in the label's place.
    assert jaxloss.categorical_hinge_loss(f32(-1, -3), f32(1, 0)) == 2
