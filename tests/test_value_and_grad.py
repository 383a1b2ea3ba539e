"""`value_and_grad`: the whole batch's, however it is cut into microbatches and over devices."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import Loss, Mean, _value_and_grad, value_and_grad
from tests.devices import mesh
from tests.programs import as_users

# Divisible by 8 microbatches on 8 devices, and by 3 on them.
ROWS, LENGTH, FEATURES, CLASSES = 192, 3, 5, 4
RNG = np.random.default_rng(0)
PARAMS = {
    "in": RNG.normal(size=(FEATURES, 7)),
    "out": [RNG.normal(size=(7, CLASSES)), RNG.normal(size=CLASSES)],
}
CE = Loss(jaxloss.softmax_cross_entropy_with_integer_labels, ignore_index=-1)
WEIGHTS = {"pooled": 0.1, "router": np.float32(0.25)}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def batch(microbatches, devices):
    """Rows with unequal counts of labels: some devices and some microbatches have none."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, LENGTH, FEATURES))
    row = np.arange(ROWS)[:, None]
    # The later a row, the longer it is, and what it holds is of another kind too.
    y = np.where(np.arange(LENGTH) < 1 + 3 * row // ROWS, rng.integers(0, CLASSES, (ROWS, 1)), -1)
    x = x + row[:, None] / ROWS
    if microbatches and microbatches > 1:
        y = np.where(row % microbatches == 1, -1, y)
    if devices > 1:
        y = np.where(row // (ROWS // devices) == 1, -1, y)
    return jnp.asarray(x), jnp.asarray(y)


def forward(params, x):
    weight, bias = params["out"]
    hidden = jnp.tanh(x @ params["in"])
    logits = hidden @ weight
    return hidden, logits + jnp.broadcast_to(bias, logits.shape)


def one_term(params, x, y):
    _, logits = forward(params, x)
    return CE.parts(logits, y)


def three_terms(params, x, y):
    """Of tokens, of sequences, and of weights."""
    hidden, logits = forward(params, x)
    pooled = jnp.sum(hidden, (1, 2)) ** 2
    gate = jnp.where(y[:, 0] >= 0, x[:, 0, 0] ** 2, 0)
    return {
        "tokens": CE.parts(logits, y),
        "pooled": Mean.of(pooled, where=jnp.any(y >= 0, 1)),
        "router": Mean.of(jnp.sin(hidden[:, 0, 0]), "weighted_mean", weights=gate),
    }


def packed(params, x, y):
    """Of tokens, of sequences' means and of their sums; a row has several sequences."""
    _, logits = forward(params, x)
    segments = jnp.cumsum(y == 1, -1)
    means, sums = (
        Loss(jaxloss.softmax_cross_entropy_with_integer_labels, reduction, ignore_index=-1)
        for reduction in ("sequence_mean", "sequence_sum")
    )
    return {
        "tokens": CE.parts(logits, y),
        "pooled": means.parts(logits, y, segments=segments),
        "router": sums.parts(logits, y, segments=segments),
    }


def with_metrics(params, x, y):
    right = jnp.argmax(forward(params, x)[1], -1) == y
    accuracy = Mean.of(right, where=y >= 0)
    return three_terms(params, x, y), {"accuracy": [accuracy]}


@partial(jax.jit, static_argnums=0)
def plainly(objective, params, *arrays):
    """The definition: of all rows at once, by `jax.value_and_grad`."""

    def value(params):
        terms = objective(params, *arrays)
        if isinstance(terms, Mean):
            return terms.value
        return sum(float(WEIGHTS.get(name, 1)) * term.value for name, term in terms.items())

    return jax.value_and_grad(value)(params)


def mean_of_means(objective, microbatches, devices, *arrays):
    """What training code does by mistake: averages of parts, averaged."""

    def parts(x):
        x = x.reshape(devices, -1, microbatches, *x.shape[1:])
        return jnp.swapaxes(x, 1, 2).reshape(devices * microbatches, -1, *x.shape[3:])

    each = jax.jit(jax.vmap(partial(plainly, objective, PARAMS)))(*map(parts, arrays))
    return jax.tree.map(lambda x: jnp.mean(x, 0), each)


def distance(got, want):
    """The largest relative difference of value and gradient, as vectors."""

    def of(a, b):
        return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)))

    return jax.tree.leaves(jax.tree.map(of, got, want))


def evaluate(objective, microbatches, devices, kind, arrays, **options):
    if isinstance(kind, bool):
        step = value_and_grad(objective, microbatches=microbatches, axis_name="d", **options)
        specs = P(), P("d"), P("d")
        step = jax.shard_map(
            step, mesh=mesh(d=devices), in_specs=specs, out_specs=P(), check_vma=kind
        )
        return jax.jit(step)(PARAMS, *arrays)
    step = jax.jit(value_and_grad(objective, microbatches=microbatches, **options))
    if devices == 1:
        return step(PARAMS, *arrays)
    grid = mesh(kind, d=devices)
    arrays = [jax.device_put(x, NamedSharding(grid, P("d"))) for x in arrays]
    with jax.set_mesh(grid):
        return step(jax.device_put(PARAMS, NamedSharding(grid, P())), *arrays)


CUTS = [(m, d, True) for m in (None, 2, 3, 8) for d in (1, 2, 8) if m or d > 1]
# Without types of what varies, and with the batch split by its sharding.
CUTS += [(m, 8, kind) for m in (None, 3) for kind in (False, AxisType.Auto, AxisType.Explicit)]


@pytest.mark.parametrize(("microbatches", "devices", "kind"), CUTS, ids=str)
@pytest.mark.parametrize("objective", [one_term, three_terms, packed])
@pytest.mark.few(9)
def test_is_that_of_the_whole_batch(objective, microbatches, devices, kind):
    arrays = batch(microbatches, devices)
    options = {} if objective is one_term else {"weights": WEIGHTS}
    got = evaluate(objective, microbatches, devices, kind, arrays, **options)
    want = plainly(objective, PARAMS, *arrays)
    assert max(distance(got, want)) < 1e-12
    wrong = mean_of_means(objective, microbatches or 1, devices, *arrays)
    assert min(distance(wrong, want)) > 0.01


@pytest.mark.parametrize("kind", [True, AxisType.Auto], ids=str)
@pytest.mark.parametrize("microbatches", [None, 3])
def test_terms_and_metrics(microbatches, kind):
    arrays = batch(microbatches, 8)
    (value, (terms, metrics)), gradient = evaluate(
        with_metrics, microbatches, 8, kind, arrays, weights=WEIGHTS, has_aux=True
    )
    assert max(distance((value, gradient), plainly(three_terms, PARAMS, *arrays))) < 1e-12
    assert max(distance((terms, metrics), jax.jit(with_metrics)(PARAMS, *arrays))) < 1e-12
    assert isinstance(terms["tokens"], Mean) and isinstance(metrics["accuracy"][0], Mean)
    assert int(metrics["accuracy"][0].size) == np.sum(arrays[1] >= 0) > 0


def test_terms_without_a_size_are_zero():
    def objective(params, x, y):
        return three_terms(params, x, y) | {"none": Mean.of(x[:, 0, 0] / 0, where=y[:, 0] > 99)}

    arrays = batch(None, 1)
    for microbatches in (None, 2):
        step = jax.jit(value_and_grad(objective, weights=WEIGHTS, microbatches=microbatches))
        got = step(PARAMS, *arrays)
        assert max(distance(got, plainly(three_terms, PARAMS, *arrays))) < 1e-12
        value, gradient = step(PARAMS, arrays[0], jnp.full_like(arrays[1], -1))
        assert value == 0 and not any(jnp.any(g) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("microbatches", [None, 2])
def test_weights(microbatches):
    arrays = batch(None, 1)

    def value(weights):
        step = value_and_grad(three_terms, weights=weights, microbatches=microbatches)
        return step(PARAMS, *arrays)

    terms = three_terms(PARAMS, *arrays)
    schedule = {"tokens": jnp.array(2, jnp.int32), "router": jnp.array(0.5, jnp.bfloat16)}
    want = 2 * terms["tokens"].value + terms["pooled"].value + 0.5 * terms["router"].value
    for got in (value(schedule), jax.jit(value)(schedule)):
        np.testing.assert_allclose(got[0], want, rtol=1e-13)

    def infinite(params, x, y):
        return three_terms(params, x, y) | {"off": Mean(jnp.inf * jnp.sum(params["in"]), 1)}

    off = value_and_grad(infinite, weights=WEIGHTS | {"off": 0}, microbatches=microbatches)
    off = jax.jit(off)
    assert max(distance(off(PARAMS, *arrays), plainly(three_terms, PARAMS, *arrays))) < 1e-12


def test_a_penalty_of_the_parameters_counts_once():
    def penalty(params):
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    def objective(params, x, y):
        return {"loss": one_term(params, x, y), "decay": Mean(penalty(params), 1)}

    arrays = batch(2, 8)
    want = jax.jit(jax.value_and_grad(lambda p: one_term(p, *arrays).value + penalty(p)))(PARAMS)
    for kind in (True, False, AxisType.Auto):
        assert max(distance(evaluate(objective, 2, 8, kind, arrays), want)) < 1e-12


def test_as_jax_value_and_grad():
    """Which arguments are parameters, and in which form the gradient comes."""
    arrays = batch(2, 1)

    def objective(x, inner, y, outer, scale=1.0):
        mean = one_term({"in": inner, "out": outer}, x, y)
        return Mean(scale * mean.total, mean.size)

    args = arrays[0], PARAMS["in"], arrays[1], PARAMS["out"]
    for argnums in ((3, 1), (-1, 1), [1, 3]):
        plain = jax.value_and_grad(lambda *args: 2 * objective(*args).value, argnums)
        for microbatches in (None, 2):
            step = value_and_grad(objective, argnums, microbatches=microbatches)
            got, want = jax.jit(partial(step, scale=2.0))(*args), jax.jit(plain)(*args)
            assert jax.tree.structure(got) == jax.tree.structure(want)
            assert max(distance(got, want)) < 1e-12
    assert value_and_grad(objective).__name__ == "objective"


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_gradients_of_half_precision_add_up_in_float32(dtype):
    # 1 + 2**-12, where 1 alone is left if parts are added up in half precision.
    parts = jnp.array([1.0] + 256 * [2.0**-12] + 255 * [0.0], dtype)[:, None]

    def objective(params, x):
        return Mean(jnp.sum(params * x[0]), 1 / 512)

    value, gradient = jax.jit(value_and_grad(objective, microbatches=512))(
        jnp.ones(1, dtype), parts
    )
    assert gradient.dtype == dtype and value.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, jnp.array([1.0625], dtype))


@pytest.mark.parametrize("microbatches", [None, 2])
@pytest.mark.parametrize("wrap", [jax.checkpoint, jax.jit, lambda f: f])
@pytest.mark.few(2)
def test_can_be_differentiated_again(wrap, microbatches):
    arrays = batch(2, 1)
    step = value_and_grad(wrap(three_terms), weights=WEIGHTS, microbatches=microbatches)
    gradient = lambda p: step(p, *arrays)[1]
    plain = lambda p: plainly(three_terms, p, *arrays)[1]
    v = jax.tree.map(np.cos, PARAMS)
    got, want = (jax.jit(partial(jax.jvp, f))((PARAMS,), (v,)) for f in (gradient, plain))
    assert max(distance(got, want)) < 1e-11
    inner = lambda f: (
        lambda p: sum(jnp.sum(a * b) for a, b in zip(*map(jax.tree.leaves, (f(p), v)), strict=True))
    )
    assert max(distance(*(jax.jit(jax.grad(inner(f)))(PARAMS) for f in (gradient, plain)))) < 1e-11
    # By what the sizes are made of: learned weights of examples.
    by_weights = [
        jax.jit(jax.grad(lambda x, f=f: f(three_terms, PARAMS, x, arrays[1])))(arrays[0])
        for f in (
            lambda objective, *args: value_and_grad(
                wrap(objective), weights=WEIGHTS, microbatches=microbatches
            )(*args)[0],
            lambda *args: plainly(*args)[0],
        )
    ]
    assert max(distance(*by_weights)) < 1e-11


def test_in_scan_and_vmap():
    arrays = batch(2, 1)
    step = value_and_grad(one_term, microbatches=2)

    def descend(params, _):
        value, gradient = step(params, *arrays)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

    _, values = jax.lax.scan(descend, jax.tree.map(jnp.asarray, PARAMS), length=3)
    assert values[2] < values[1] < values[0]
    several = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    got = jax.jit(jax.vmap(step, (0, None, None)))(several, *arrays)
    want = jax.jit(step)(jax.tree.map(lambda p: 2 * p, PARAMS), *arrays)
    assert max(distance(jax.tree.map(lambda x: x[1], got), want)) < 1e-12


def test_over_an_axis_of_vmap():
    arrays = batch(2, 8)
    step = value_and_grad(three_terms, weights=WEIGHTS, microbatches=2, axis_name="d")
    folded = [x.reshape(8, -1, *x.shape[1:]) for x in arrays]
    got = jax.jit(jax.vmap(step, (None, 0, 0), axis_name="d", out_axes=None))(PARAMS, *folded)
    assert max(distance(got, plainly(three_terms, PARAMS, *arrays))) < 1e-12


def test_over_the_devices_of_pmap():
    arrays = batch(2, 8)
    step = value_and_grad(three_terms, weights=WEIGHTS, microbatches=2, axis_name="d")
    folded = [x.reshape(8, -1, *x.shape[1:]) for x in arrays]
    got = jax.pmap(step, "d", in_axes=(None, 0, 0), out_axes=None)(PARAMS, *folded)
    assert max(distance(got, plainly(three_terms, PARAMS, *arrays))) < 1e-12


def test_parameters_that_differ_over_the_devices():
    """Sharded parameters: the gradient by each part stays with its device."""
    arrays = batch(2, 8)
    sharded = {"in": RNG.normal(size=(8, FEATURES, 7)), "out": PARAMS["out"]}

    def own(params, x, y):
        return one_term(params | {"in": params["in"][0]}, x, y)

    def gathered(params, x, y):
        whole = jax.lax.all_gather(params["in"], "d", tiled=True)
        return one_term(params | {"in": jnp.sum(whole, 0)}, x, y)

    specs = {"in": P("d"), "out": P()}
    for objective in (own, gathered):
        step = value_and_grad(objective, microbatches=2, axis_name="d")
        step = jax.shard_map(
            step, mesh=mesh(d=8), in_specs=(specs, P("d"), P("d")), out_specs=(P(), specs)
        )
        got = jax.jit(step)(sharded, *arrays)

        def whole(params, objective=objective):
            inner = params["in"]
            if objective is gathered:
                return one_term(params | {"in": jnp.sum(inner, 0)}, *arrays).value
            x, y = (a.reshape(8, -1, *a.shape[1:]) for a in arrays)
            each = [one_term(params | {"in": inner[i]}, x[i], y[i]) for i in range(8)]
            return sum(each).value

        assert max(distance(got, jax.jit(jax.value_and_grad(whole))(sharded))) < 1e-12


@pytest.mark.parametrize("kind", [True, AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_linear_loss(kind):
    def objective(params, x, y, reduction="parts"):
        hidden, _ = forward(params, x)
        loss = partial(jaxloss.linear_cross_entropy, weight=params["out"][0], ignore_index=-1)
        return loss(hidden, labels=y, reduction=reduction, chunk_size=8)

    arrays = batch(3, 8)
    got = evaluate(objective, 3, 8, kind, arrays)
    want = jax.jit(jax.value_and_grad(partial(objective, reduction="mean")))(PARAMS, *arrays)
    np.testing.assert_array_equal(got[1]["out"][1], 0)
    got[1]["out"].pop(), want[1]["out"].pop()
    assert max(distance(got, want)) < 1e-12


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx", reason="needs jaxloss[examples]")
    x, y = batch(2, 1)

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(FEATURES, 7, rngs=rngs, param_dtype=jnp.float64)
            self.out = nnx.Linear(7, CLASSES, rngs=rngs, param_dtype=jnp.float64)
            self.calls = nnx.Variable(jnp.array(0))

        def __call__(self, x):
            return self.out(nnx.tanh(self.hidden(x)))

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = Model(nnx.Rngs(0))
        graph, params, rest = nnx.split(model, nnx.Param, ...)

        def objective(params, x, y):
            return CE.parts(nnx.merge(graph, params, rest)(x), y)

        got = jax.jit(value_and_grad(objective, microbatches=2))(params, x, y)
        want = nnx.value_and_grad(lambda model: CE(model(x), y))(model)
        assert max(distance(*(jax.tree.leaves(r) for r in (got, want)))) < 1e-12
        optax = pytest.importorskip("optax", reason="needs jaxloss[examples]")
        optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        optimizer.update(model, got[1])
        assert CE(model(x), y) < got[0]


def test_equinox():
    eqx = pytest.importorskip("equinox", reason="needs jaxloss[examples]")
    x, y = batch(2, 1)
    model = eqx.nn.MLP(FEATURES, CLASSES, 7, 1, jnp.tanh, key=jax.random.key(0))

    def objective(params, static, x, y):
        logits = jax.vmap(jax.vmap(eqx.combine(params, static)))(x)
        return CE.parts(logits, y)

    @eqx.filter_jit
    def step(model, x, y):
        params, static = eqx.partition(model, eqx.is_inexact_array)
        fixed = lambda params, x, y: objective(params, static, x, y)
        return value_and_grad(fixed, microbatches=2)(params, x, y)

    got = step(model, x, y)
    want = eqx.filter_value_and_grad(
        lambda m: objective(*eqx.partition(m, eqx.is_array), x, y).value
    )
    assert max(distance(*(jax.tree.leaves(r) for r in (got, want(model))))) < 1e-12
    assert jax.tree.structure(eqx.apply_updates(model, got[1])) == jax.tree.structure(model)


def test_beside_optax():
    """`MultiSteps` and `microbatch` average what they are given; sums and sizes they add up."""
    optax = pytest.importorskip("optax", reason="needs jaxloss[examples]")
    arrays = batch(2, 1)
    want = plainly(one_term, PARAMS, *arrays)[1]
    half = [[a[i::2] for a in arrays] for i in range(2)]
    with jax.numpy_dtype_promotion("standard"):
        # A step of several calls, each of which is a whole batch.
        steps = optax.MultiSteps(optax.sgd(1.0), 2)
        state = steps.init(PARAMS)
        for rows in (arrays, arrays):
            gradient = value_and_grad(one_term, microbatches=2)(PARAMS, *rows)[1]
            update, state = steps.update(gradient, state)
        assert max(distance(jax.tree.map(jnp.negative, update), want)) < 1e-6
        # Of the two halves, one has nothing that counts: it halves the gradient.
        state = steps.init(PARAMS)
        for rows in half:
            gradient = plainly(one_term, PARAMS, *rows)[1]
            update, state = steps.update(gradient, state)
        wrong = max(distance(jax.tree.map(jnp.negative, update), want))
        assert wrong == pytest.approx(0.5, abs=1e-6)

        def sums(params, x, y):
            total, pull = jax.vjp(lambda p: one_term(p, x, y), params)
            return total, pull(Mean(jnp.ones(()), jnp.zeros(())))[0]

        mean, total = optax.microbatching.microbatch(sums, (1, 2), ROWS // 2)(PARAMS, *arrays)
        assert max(distance(jax.tree.map(lambda g: g / mean.size, total), want)) < 1e-12


def hlo(step, *args):
    return as_users(step).lower(*args).compile()


def matmuls(text):
    return len(re.findall(r"= \S+ (?:dot|custom-call)\(", text))


@pytest.mark.parametrize("microbatches", [2, 8])
@pytest.mark.parametrize("wrap", [jax.checkpoint, jax.jit, lambda f: f])
def test_the_first_pass_has_no_model(wrap, microbatches):
    arrays = batch(microbatches, 1)
    cut = _value_and_grad._cut(arrays, microbatches)

    def first_pass(objective):
        def terms_of(params, batch):
            return {"": objective(*params, *batch)}, None

        parts = _value_and_grad._Parts(terms_of, {}, None)
        return matmuls(hlo(parts.sizes_of_all, (PARAMS,), cut).as_text())

    assert first_pass(wrap(one_term)) == 0
    assert matmuls(hlo(wrap(one_term), PARAMS, *arrays).as_text()) == 2

    def model_decides(params, x, y):
        hidden, logits = forward(params, x)
        return Mean.of(hidden[:, 0, 0], where=jnp.argmax(logits[:, 0], -1) == 1)

    # A size that is made of the model's outputs costs the first pass a forward.
    assert first_pass(wrap(model_decides)) == 2
    step = jax.jit(value_and_grad(wrap(model_decides), microbatches=microbatches))
    got = step(PARAMS, *arrays)
    assert max(distance(got, plainly(model_decides, PARAMS, *arrays))) < 1e-12


def linear_parts(weight, hidden, labels):
    loss = partial(jaxloss.linear_cross_entropy, reduction="parts", ignore_index=-1)
    return {"": loss(hidden, weight, labels, chunk_size=8)}


def linear_terms(weight, hidden, labels):
    out = jaxloss.linear_statistics(hidden, weight, labels, ignore_index=-1, chunk_size=8)
    return {
        "cross_entropy": Mean.of(-out.log_prob, where=labels >= 0),
        "z_loss": Mean.of(out.logsumexp**2, where=labels >= 0),
    }


@pytest.mark.parametrize("terms_of", [linear_parts, linear_terms])
def test_the_first_pass_has_no_sweep_of_a_linear_loss(terms_of):
    hidden, labels = batch(2, 1)
    weight = RNG.normal(size=(FEATURES, CLASSES))
    parts = _value_and_grad._Parts(lambda p, b: (terms_of(p, *b), None), {}, None)
    cut = _value_and_grad._cut((hidden, labels), 2)
    assert matmuls(hlo(parts.sizes_of_all, weight, cut).as_text()) == 0
    assert matmuls(hlo(terms_of, weight, hidden, labels).as_text()) == 1


def test_the_first_pass_through_a_scan_over_layers():
    arrays = batch(2, 1)
    layers = RNG.normal(size=(3, 7, 7))

    def objective(params, x, y):
        layers, params = params
        first = jnp.tanh(x @ params["in"])
        hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), first, layers)
        return CE.parts(hidden @ params["out"][0], y)

    counts = [
        matmuls(hlo(value_and_grad(objective, microbatches=m), (layers, PARAMS), *arrays).as_text())
        for m in (None, 2)
    ]
    assert counts[0] == counts[1]


def test_microbatches_save_memory():
    x = jnp.ones((1024, 256), jnp.float32)
    params = [jnp.ones((256, 256), jnp.float32) / 256] * 4

    def objective(params, x):
        for weight in params:
            x = jnp.tanh(x @ weight)
        return Mean.of(jnp.sum(x, -1))

    whole, cut = (
        hlo(value_and_grad(objective, microbatches=m), params, x).memory_analysis()
        for m in (None, 8)
    )
    gradients = 4 * 256 * 256 * 4
    assert cut.temp_size_in_bytes < whole.temp_size_in_bytes / 3 + gradients


def test_devices_send_each_other_the_gradient_once():
    arrays = batch(2, 8)
    step = value_and_grad(three_terms, microbatches=2, axis_name="d")
    step = jax.shard_map(step, mesh=mesh(d=8), in_specs=(P(), P("d"), P("d")), out_specs=P())
    text = hlo(step, PARAMS, *arrays).as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
    sent = re.findall(r"= (.*?) all-reduce(?:-start)?\(", text)
    shape = "[5,7]"  # Of the parameters "in".
    assert sum(types.count(shape) for types in sent) == 1
    # Split by sharding, a batch stays where it is, in microbatches too.
    arrays = [jax.device_put(a, NamedSharding(mesh(d=8), P("d"))) for a in arrays]
    text = hlo(value_and_grad(three_terms, microbatches=2), PARAMS, *arrays).as_text()
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)


@pytest.mark.parametrize("microbatches", [None, 2])
@pytest.mark.parametrize(
    ("objective", "error", "message"),
    [
        (lambda p, x, y: jnp.sum(x), TypeError, "must return its terms, a jaxloss.Mean"),
        (lambda p, x, y: {}, TypeError, "must return its terms"),
        (lambda p, x, y: {"a": 1.0}, TypeError, "must return its terms"),
        (lambda p, x, y: (Mean(), {}), TypeError, "must return its terms"),
        (lambda p, x, y: Mean(jnp.sum(x, 0), 1), ValueError, r"total of shape \(3, 5\)"),
        (
            lambda p, x, y: {"a": Mean(jnp.sum(x), jnp.sum(p["in"]))},
            ValueError,
            "the size of the term 'a' has a derivative by the parameters",
        ),
    ],
)
def test_refused_objectives(objective, error, message, microbatches):
    with pytest.raises(error, match=message):
        value_and_grad(objective, microbatches=microbatches)(PARAMS, *batch(None, 1))


@pytest.mark.parametrize("microbatches", [None, 2])
@pytest.mark.parametrize("wrap", [jax.checkpoint, jax.jit])
def test_sizes_that_depend_on_parameters(wrap, microbatches):
    def objective(params, x, y, constant=False):
        size = jnp.sum(jax.nn.sigmoid(forward(params, x)[1]))
        return Mean(jnp.sum(x), jax.lax.stop_gradient(size) if constant else size)

    step = value_and_grad(wrap(objective), microbatches=microbatches)
    with pytest.raises(ValueError, match="size of the objective has a derivative"):
        step(PARAMS, *batch(None, 1))
    fixed = value_and_grad(wrap(partial(objective, constant=True)), microbatches=microbatches)
    assert fixed(PARAMS, *batch(None, 1))[0] > 0


@pytest.mark.parametrize(
    ("options", "args", "error", "message"),
    [
        ({"microbatches": 0}, (), ValueError, "microbatches must be at least 1"),
        ({"weights": 2.0}, (), TypeError, "weights must be a dictionary"),
        ({"weights": {"pool": 1}}, (), ValueError, "weights has 'pool'.*'pooled'"),
        ({"weights": {"pooled": np.ones(2)}}, (), ValueError, r"weights\['pooled'\] of shape"),
        ({"microbatches": 5}, (), ValueError, r"=5 does not divide the 192 rows.*add 3 masked"),
        ({"microbatches": 2}, (np.ones(3), np.ones(2)), ValueError, r"args\[2\] of shape \(2,\)"),
        ({"microbatches": 2}, (np.ones(2), 3), ValueError, r"args\[2\] is a scalar.*keyword"),
        ({"argnums": 3}, (), ValueError, "argnums=3"),
        ({"argnums": (0, -3)}, (), ValueError, "distinct"),
        ({"has_aux": True}, (), TypeError, r"must return \(terms, metrics\)"),
        ({"axis_name": "d"}, (), NameError, "d"),
    ],
)
def test_refused(options, args, error, message):
    with pytest.raises(error, match=message):
        value_and_grad(three_terms, **options)(PARAMS, *(args or batch(None, 1)))


def test_refused_parameters_metrics_and_names():
    arrays = batch(None, 1)
    with pytest.raises(TypeError, match="callable"):
        value_and_grad(3.0)
    for microbatches in (None, 2):
        with pytest.raises(TypeError, match="int"):
            value_and_grad(lambda p, x, y: Mean(jnp.sum(x), 1), microbatches=microbatches)(
                3, *arrays
            )
        with pytest.raises(TypeError, match=r"metrics\['loss'\] must be a jaxloss.Mean"):
            value_and_grad(
                lambda p, x, y: (one_term(p, x, y), {"loss": jnp.sum(x)}),
                microbatches=microbatches,
                has_aux=True,
            )(PARAMS, *arrays)
        with pytest.raises(ValueError, match="one without a name"):
            value_and_grad(one_term, weights={"tokens": 2}, microbatches=microbatches)(
                PARAMS, *arrays
            )
    with pytest.raises(ValueError, match="microbatches needs a batch"):
        value_and_grad(lambda p: Mean(p, 1), microbatches=2)(1.0)
