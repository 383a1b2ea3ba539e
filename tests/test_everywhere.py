"""Every loss, by its declaration: split over devices, exported, and under debug flags."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests import declared
from tests.declared import FUNCTIONS, takes
from tests.devices import mesh
from tests.programs import as_users

each = pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)


def value_and_gradients(fn):
    """Of all floating arguments, of losses of each example where there are such."""

    def run(floats, others):
        def total(floats):
            losses = fn(**floats, **others, **takes(fn).unreduced)
            return jnp.sum(losses), losses

        (_, losses), gradients = jax.value_and_grad(total, has_aux=True)(floats)
        return losses, gradients

    return run


def batch_of(fn, n, every=False):
    batch = declared.arguments(fn, np.random.default_rng(n), n, every=every)
    floats = {k: x for k, x in batch.items() if x.dtype.kind == "f"}
    return floats, {k: x for k, x in batch.items() if k not in floats}


def close(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-6), got, want)


@pytest.mark.few(14)
@each
def test_finite_results_pass_the_debug_flags(fn):
    with jax.debug_nans(True), jax.debug_infs(True):
        jax.jit(value_and_gradients(fn))(*batch_of(fn, 4))


@pytest.mark.few(14)
@each
def test_finite_results_pass_the_debug_flags_eagerly(fn):
    with jax.debug_nans(True), jax.debug_infs(True):
        value_and_gradients(fn)(*batch_of(fn, 4))


@pytest.mark.few(9)
@each
def test_an_eager_call_compiles_only_once(fn, caplog):
    """Nor does its gradient: a branch or a reduction made anew would be, at each step."""
    run, batch = value_and_gradients(fn), batch_of(fn, 4)
    run(*batch)
    with jax.log_compiles():
        run(*batch)
    compiled = [record.getMessage() for record in caplog.records]
    assert not [message for message in compiled if message.startswith("Compiling")]


def symbolic(fn, batch):
    """The batch with an unknown number of examples."""
    (b,) = export.symbolic_shape("b")

    def abstract(name, x):
        shape = x.shape if takes(fn).operands[name].kind == "shared" else (b, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype)

    return [{k: abstract(k, x) for k, x in part.items()} for part in batch]


def split(fn, batch, mesh):
    """The batch with its examples over all devices."""

    def put(name, x):
        spec = P() if takes(fn).operands[name].kind == "shared" else P("batch")
        return jax.device_put(x, NamedSharding(mesh, spec))

    return [{k: put(k, x) for k, x in part.items()} for part in batch]


@pytest.mark.few(9)
@each
def test_exported_with_a_symbolic_batch(fn):
    run = jax.jit(value_and_gradients(fn))
    again = export.export(run)(*symbolic(fn, batch_of(fn, 4)))
    for n in (4, 7):
        close(again.call(*batch_of(fn, n)), run(*batch_of(fn, n)))


@pytest.mark.few(9)
@each
def test_explicit_sharding_of_the_batch(fn):
    batch, eight = batch_of(fn, jax.device_count()), mesh(AxisType.Explicit, batch=8)
    run = value_and_gradients(fn)
    want = jax.jit(run)(*batch)
    with jax.set_mesh(eight):
        close(jax.tree.map(np.asarray, jax.jit(run)(*split(fn, batch, eight))), want)


@pytest.mark.few(12)
@each
def test_further_arguments_pass_where_shapes_or_shardings_are_types(fn):
    """Traced only: with every operand, weights of classes and the reduction that it has."""
    known = inspect.signature(fn).parameters
    further = {"class_weights": np.ones(declared.CLASSES, "f"), "label_smoothing": 0.25}
    options = {k: v for k, v in further.items() if k in known and k not in takes(fn).operands}

    def run(floats, others):
        return jax.grad(lambda floats: jnp.sum(fn(**floats, **others, **options)))(floats)

    batch, eight = batch_of(fn, jax.device_count(), every=True), mesh(AxisType.Explicit, batch=8)
    jax.eval_shape(run, *symbolic(fn, batch))
    with jax.set_mesh(eight):
        jax.eval_shape(run, *split(fn, batch, eight))


@pytest.mark.few(6)
@each
def test_many_tangents_at_once(fn):
    """As in a Hessian: more numbers than one thread takes, where `passes.settled` is needed."""
    floats, others = batch_of(fn, 8)
    x, *rest = floats.items()

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(fn(**x, **dict(rest), **others, **takes(fn).unreduced)))(
            x
        )

    x = dict([x])
    count = 50_000 // sum(a.size for a in x.values())
    tangents = jax.tree.map(lambda a: jax.random.normal(jax.random.key(0), (count, *a.shape)), x)

    def along(tangent):
        return jax.jvp(gradient, (x,), (tangent,))[1]

    some = slice(None, None, count // 5)
    got = as_users(jax.vmap(along))(tangents)
    want = as_users(lambda t: jax.lax.map(along, t))(jax.tree.map(lambda t: t[some], tangents))
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g[some], w, rtol=1e-4, atol=1e-4 * abs(w).max()),
        got,
        want,
    )
