"""What the losses are declared to take, and that `Loss` wraps each of them by it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import Loss
from tests import declared
from tests.cases import CASES
from tests.declared import FUNCTIONS, takes

LIVE = np.array([True, False, True, True, False, True])
EACH = pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)


def test_every_loss_of_the_table_is_declared():
    """But what returns something else, from which losses are made."""
    functions = {getattr(jaxloss, case.function, None) for case in CASES} - {None}
    losses = {fn for fn in functions if inspect.signature(fn).return_annotation is jax.Array}
    assert losses <= set(FUNCTIONS)


@EACH
def test_integer_labels_are_declared(fn):
    """What takes integers but refuses floats has labels, and the other way round."""
    batch = declared.arguments(fn, np.random.default_rng(0), 4)
    name = takes(fn).named("labels")
    for key, x in batch.items():
        if takes(fn).operands[key].kind in ("labels", "entries", "row"):
            try:
                fn(**batch | {key: jnp.asarray(x, jnp.float32)})
                refused = False
            except TypeError:
                refused = True
            assert refused == (key == name)


def dead(batch, operands):
    """The batch with junk where it is not live."""

    def junk(key, x):
        if operands[key].kind == "shared":
            return x
        live = LIVE.reshape(-1, *(1,) * (x.ndim - 1))
        return np.where(live, x, np.nan if x.dtype.kind == "f" else -1).astype(x.dtype)

    return {key: junk(key, x) for key, x in batch.items()}


def alone(batch, operands):
    """The live part of the batch."""
    return {k: x if operands[k].kind == "shared" else x[LIVE] for k, x in batch.items()}


def value_and_gradients(loss, batch, masks):
    floats = {k: x for k, x in batch.items() if x.dtype.kind == "f"}

    def total(floats):
        losses = loss(**batch | floats, **masks)
        return jnp.sum(losses**2), losses

    (_, losses), gradients = jax.value_and_grad(total, has_aux=True)(floats)
    return losses, gradients


def ways_not_to_count(fn, loss, batch):
    """Losses with masks by which only what is live counts."""
    yield loss, {"where": LIVE}
    if jax.eval_shape(loss, **batch).ndim:
        yield loss, {"weights": LIVE.astype(np.float32)}
    else:
        with pytest.raises(ValueError, match="already reduced"):
            loss(**batch, weights=LIVE.astype(np.float32))
    if takes(fn).named("labels"):
        yield loss.replace(ignore_index=-1), {}


@pytest.mark.parametrize(
    "every", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["every argument", ""]
)
@EACH
def test_an_example_that_does_not_count_is_not_there(fn, every):
    """Whatever it holds: the others' losses and gradients are those of the others alone."""
    operands = takes(fn).operands
    batch, whole = (
        declared.arguments(fn, np.random.default_rng(1), 6, every=every) for every in (every, True)
    )
    if not every and len(batch) == len(whole):
        pytest.skip("all of its arguments are operands")
    loss = others = Loss(fn, "none")
    if "weights" in batch:  # Of items; the call has weights of lists.
        loss = Loss(fn, "none", weights=batch.pop("weights"))
        others = loss.replace(weights=loss.options["weights"][LIVE])
    given = dead(batch, operands)
    ways = list(ways_not_to_count(fn, loss, given))

    @jax.jit
    def run(batch, rest):
        return value_and_gradients(others, rest, {}), [
            value_and_gradients(loss, batch, masks) for loss, masks in ways
        ]

    (want, expected), results = run(given, alone(batch, operands))
    for got, gradients in results:
        if want.ndim:
            np.testing.assert_array_equal(np.asarray(got)[~LIVE], 0)
            got = np.asarray(got)[LIVE]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        for key, gradient in gradients.items():
            gradient = np.asarray(gradient)
            if operands[key].kind != "shared":
                np.testing.assert_array_equal(gradient[~LIVE], 0)
                gradient = gradient[LIVE]
            np.testing.assert_allclose(gradient, expected[key], rtol=1e-4, atol=1e-5)


@EACH
def test_operands_by_position_and_by_name(fn):
    batch = declared.arguments(fn, np.random.default_rng(2), 4)
    loss = Loss(fn, "sum")
    by_position = [k for k in inspect.signature(fn).parameters if k in batch]
    assert loss(*(batch[k] for k in by_position)) == loss(**batch)


@pytest.mark.parametrize(
    "fn", [fn for fn in FUNCTIONS if takes(fn).parts({})], ids=lambda fn: fn.__name__
)
def test_parts_are_masked_by_the_function(fn):
    rng = np.random.default_rng(3)
    batch = declared.arguments(fn, rng, 4)
    shape = next(iter(batch.values())).shape
    # A pixel has a row of classes, unless it is a bit.
    bits = any(operand.of == "bit" for operand in takes(fn).operands.values())
    of_classes = takes(fn).has("pixels") and not bits
    some = rng.uniform(size=shape[:-1] if of_classes else shape) < 0.7
    some[1] = False
    losses = fn(**batch, **takes(fn).unreduced, where=some)
    want = losses if losses.ndim == 0 else losses[np.array([0, 2, 3])].mean()
    np.testing.assert_allclose(Loss(fn)(**batch, where=some), want, rtol=1e-6)


def test_of_examples_that_meet_each_other_the_masked_are_no_partners():
    """The values by hand: a softmax of 1 and 0, and so log(1 + 1 / e)."""
    same = float(np.log1p(np.exp(-1)))
    x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    contrastive = Loss(
        jaxloss.supervised_contrastive_loss, "none", ignore_index=-1, temperature=1.0
    )
    got = contrastive(x, jnp.array([0, 0, 1, -1]))
    np.testing.assert_allclose(got, [same, same, 0, 0], rtol=1e-6)
    pairs = Loss(jaxloss.info_nce, "none", temperature=1.0)
    for given in ({"where": LIVE[[0, 2, 1]]}, {"weights": np.float32([1, 1, 0])}):
        got = pairs(jnp.eye(3).at[2].set(jnp.nan), jnp.eye(3), **given)
        np.testing.assert_allclose(got, [same, same, 0], rtol=1e-6)


def test_a_mask_of_another_kind_is_refused_with_the_way():
    x = jnp.zeros((4, 3))
    rows, pairs = Loss(jaxloss.softmax_cross_entropy), Loss(jaxloss.info_nce)
    with pytest.raises(ValueError, match=r"where of shape \(4, 3\).*class_where"):
        rows(x, x, where=jnp.ones((4, 3), bool))
    with pytest.raises(TypeError, match=r"info_nce has no mask of classes.*where"):
        pairs(x, x, class_where=jnp.ones((4, 3), bool))
    with pytest.raises(TypeError, match="huber_loss takes predictions, targets, delta"):
        Loss(jaxloss.huber_loss)(x, x, x, x)
    with pytest.raises(TypeError, match="ignore_index is for integer labels, which huber_loss"):
        Loss(jaxloss.huber_loss, ignore_index=-1)(x, x)


def test_declarations_are_checked():
    def fn(scores, targets):
        return scores - targets

    with pytest.raises(ValueError, match="fn takes no 'labels'; it takes scores, targets"):
        jaxloss.takes(scores="row", labels="labels")(fn)
    with pytest.raises(ValueError, match=r"scores cannot be 'rows': it is one of .*row"):
        jaxloss.takes(scores="rows")
    with pytest.raises(ValueError, match="scores cannot be 'reals'"):
        jaxloss.takes(scores=("row", "reals"))
    assert jaxloss.takes(scores="row")(fn) is fn
