"""Corners of masks, weights and domains that went wrong once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import Loss, tf
from tests.cases import FIRST_ROWS
from tests.programs import as_users
from tests.rows import over
from tests.test_transforms import close

ce = jaxloss.softmax_cross_entropy_with_integer_labels
X = jnp.array([[2.0, 0, 1], [0, 1, 0], [1, 1, 3]])
Y = jnp.array([0, 1, 2])
B2 = jnp.array([True, False])
SEQ = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)  # (B, C, T)
LAB = jnp.array([[0, 1, 3], [2, 2, 0]])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weighted_mean"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_weight_of_a_masked_example(reduction, bad):
    got = Loss(ce, reduction)(
        X, Y, weights=jnp.array([1, bad, 2]), where=jnp.array([True, False, True])
    )
    want = Loss(ce, reduction)(
        X, Y, weights=jnp.array([1.0, 0, 2]), where=jnp.array([True, False, True])
    )
    np.testing.assert_allclose(got, want)


@pytest.mark.parametrize("axis", [-2, 0, 2])
@pytest.mark.parametrize("T", [3, 2])
def test_batch_mask_with_a_class_axis(axis, T):
    x, y = SEQ[..., :T], LAB[:, :T]
    x = jnp.moveaxis(x, 1, axis)
    want = jnp.where(B2[:, None], ce(x, y, axis=axis), 0)
    np.testing.assert_allclose(Loss(ce, "none", axis=axis)(x, y, where=B2), want)


def test_partial_with_a_class_axis():
    x, y = SEQ[:, :3], LAB % 3
    m = jnp.array([[True, False, True], [True, True, False]])
    got = Loss(functools.partial(ce, axis=1), "none")(x, y, where=m)
    np.testing.assert_allclose(got, jnp.where(m, ce(x, y, axis=1), 0))


def test_broadcast_targets_with_a_mask():
    m = jnp.array([True, True, False])
    want = jnp.mean(jaxloss.softmax_cross_entropy(X, jnp.array([[1.0, 0, 0]]))[:2])
    np.testing.assert_allclose(
        Loss(jaxloss.softmax_cross_entropy)(X, jnp.array([[1.0, 0, 0]]), where=m), want
    )
    Loss(jaxloss.sigmoid_binary_cross_entropy)(X[0], jnp.array([1.0]), where=m)
    Loss(ce)(X, jnp.array([1]), weights=jnp.array([1.0, 0, 1]))


def test_bad_label_of_weight_zero_has_no_gradient():
    w = jnp.array([1.0, 0, 2])
    f = lambda x, y: Loss(ce)(x, y, weights=w)
    want = jax.value_and_grad(f)(X, Y)
    got = jax.value_and_grad(f)(X, jnp.array([0, -1, 2]))
    jax.tree.map(np.testing.assert_allclose, got, want)


@pytest.mark.parametrize(
    "dtype,n", [(jnp.float16, 70000), (jnp.bfloat16, 257), (jnp.bfloat16, 1003)]
)
def test_half_precision_losses_of_a_user_callable(dtype, n):
    got = Loss(lambda p, t: (p - t) ** 2, "sum")(jnp.ones(n, dtype), jnp.zeros(n, dtype))
    assert float(got) == n
    mean = Loss(lambda p, t: (p - t) ** 2, "mean")(jnp.ones(n, dtype), jnp.zeros(n, dtype))
    assert mean == 1 and mean.dtype == jnp.float32


def test_structure_does_not_depend_on_leaf_values():
    loss = Loss(ce, label_smoothing=0.1)
    treedef = jax.tree.structure(loss)
    assert jax.tree.structure(jax.tree.unflatten(treedef, [object()])) == treedef
    assert jax.tree.structure(jax.tree.map(lambda _: True, loss)) == treedef


def test_lower_with_abstract_options():
    spec = jax.tree.map(
        lambda _: jax.ShapeDtypeStruct((), jnp.float32), Loss(ce, label_smoothing=0.1)
    )
    jax.jit(lambda loss: loss(X, Y)).lower(spec)


def test_lists():
    assert Loss(ce, ignore_index=-1)([[2.0, 0], [0, 1]], [0, -1]) == Loss(ce)(
        jnp.array([[2.0, 0]]), jnp.array([0])
    )


def test_lists_with_a_user_callable():
    assert Loss(lambda p, t: (p - t) ** 2)([1.0, 2.0], [0.0, 0.0]) == 2.5


@pytest.mark.parametrize(
    "dtype,ignore,bad", [("uint8", -1, 255), ("int8", 255, -1), ("uint16", -1, 65535)]
)
def test_ignore_index_outside_the_label_dtype(dtype, ignore, bad):
    y = np.array([0, 1, bad]).astype(dtype)
    assert np.isnan(Loss(ce, ignore_index=ignore)(X, y))
    assert np.isnan(ce(X, y, ignore_index=ignore)[2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: jaxloss.sigmoid_binary_cross_entropy(
            jnp.zeros(2), jnp.zeros(2), label_smoothing=jnp.full((2, 1), 0.1)
        ),
        lambda: jaxloss.smooth_labels(jnp.eye(3)[:2], jnp.array([0.1, 0.2, 0.3])),
        lambda: jaxloss.smooth_labels(jnp.eye(3)[:2], jnp.full((2, 1, 1), 0.1)),
        lambda: ce(X, Y, label_smoothing=jnp.full(3, 0.1)),
        lambda: ce(X, Y, z_loss=jnp.full(3, 0.1)),
    ],
)
def test_settings_of_a_wrong_shape(call):
    with pytest.raises(ValueError, match="of shape"):
        call()


def test_tf_sparse_label_shape():
    with pytest.raises(ValueError, match=r"\(1,\).*\(3, 3\)|\(3, 3\).*\(1,\)"):
        tf.sparse_softmax_cross_entropy_with_logits(jnp.array([1]), X)


def test_tf_dense_label_shape():
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        tf.softmax_cross_entropy_with_logits(jnp.array([[1.0, 0, 0]]), X)


def test_excluded_class_in_an_example_of_weight_zero():
    x, y = jnp.array([[2.0, 0, -jnp.inf]]), jnp.array([0])
    got = jax.grad(lambda w: Loss(ce, "sum")(x, y, weights=w))(jnp.zeros(1))
    np.testing.assert_allclose(got, ce(x, y))


def test_infinite_loss_of_weight_zero_has_no_gradient():
    w, z = jnp.array([1.0, 0]), jnp.array([1.0, 1])
    f = lambda p: Loss(jaxloss.binary_cross_entropy)(p, z, weights=w)
    got = jax.value_and_grad(f)(jnp.array([0.5, 0.0]))
    jax.tree.map(np.testing.assert_allclose, got, jax.value_and_grad(f)(jnp.array([0.5, 0.5])))
    g = lambda p: Loss(jaxloss.categorical_cross_entropy)(p, jnp.eye(2)[:2], weights=w)
    assert np.isfinite(jax.grad(g)(jnp.array([[0.5, 0.5], [1.0, 0.0]]))).all()


@pytest.mark.parametrize("p", [-0.5, 1.5])
@pytest.mark.parametrize("z", [0.0, 1.0])
def test_gradient_of_a_probability_out_of_the_domain_is_nan(p, z):
    assert np.isnan(jax.grad(jaxloss.binary_cross_entropy)(p, z))
    row = jnp.array([p, 0.5])
    assert np.isnan(jax.grad(jaxloss.categorical_cross_entropy)(row, jnp.array([1.0, 0])))[0]


@over(FIRST_ROWS)
@pytest.mark.few(9)
def test_nan_is_loud_in_its_own_example(case):
    """In a mean and in the gradient, also where XLA's CPU reductions would drop it."""
    # Rows are summed up in another way if they are long.
    for size in [None] if case.elementwise or not case.sizes else [None, 129]:
        _nan_is_loud(case, size)


def _nan_is_loud(case, size):
    x, y = case.random(np.random.default_rng(0), 512, size=size)
    x[(5,) if case.elementwise else (5, 1)] = np.nan
    if case.integer:
        y[5] = 1  # For some, other labels leave out what is NaN.

    def mean(x, y):  # Of a constant y XLA would compute much itself, slowly.
        return jnp.mean(case.fn(x, y))

    assert np.isnan(as_users(mean)(x, y))
    gradient = as_users(jax.grad(mean))(x, y)
    assert np.any(np.isnan(gradient[5]))
    assert not np.any(np.isnan(np.delete(gradient, 5, 0)))
    assert np.isnan(as_users(lambda x, y: jnp.sum(jax.grad(mean)(x, y) ** 2))(x, y))


# With a program of their own on a CPU.
OF_A_CPU = ["cosine_similarity", "cosine_distance", "js_divergence", "distillation_loss"]


@over([case for case in FIRST_ROWS if case.function in OF_A_CPU])
@pytest.mark.few(1)
def test_what_accelerators_run_gives_the_same(case, monkeypatch):
    def both(x, y):
        return jax.jit(jax.value_and_grad(lambda x, y: jnp.sum(case.fn(x, y))))(x, y)

    batch = case.random(np.random.default_rng(0), 64)
    want = both(*batch)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *xs, default, **_: default(*xs))
    close(both(*batch), want)
    test_nan_is_loud_in_its_own_example(case)
