"""Tokens, vocabulary or features split over devices: the same result, and no gathered weight."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxloss
from jaxloss.linear import _operands
from tests.devices import mesh
from tests.linear.test_cross_entropy import assert_close, operands, settings
from tests.programs import as_users

P = PartitionSpec
N, D, V = 64, 16, 80
HIDDEN, WEIGHT, LABELS = operands(n=N, d=D, v=V)
OPTIONS = {k: v for k, v in settings(n=N, v=V).items() if k in ("bias", "class_weights")}
# How hidden and weight are split over a mesh of 4 x 2 devices.
SPLITS = {
    "tokens": (P("d"), P()),
    "vocabulary": (P(), P(None, "m")),
    "features": (P(None, "m"), P("m")),
    "tokens and vocabulary": (P("d"), P(None, "m")),
}


def loss(hidden, weight, options, labels=LABELS, **static):
    return jaxloss.linear_cross_entropy(
        hidden, weight, labels, **options, label_smoothing=0.1, z_loss=0.01, **static
    )


def reference(options):
    return jax.value_and_grad(loss, (0, 1, 2))(HIDDEN, WEIGHT, options, implementation="dense")


def collectives(fn, *args):
    """Kinds and shapes of what devices send each other."""
    text = as_users(fn).lower(*args).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
    return {(kind, shape) for types, kind in found for shape in re.findall(r"\[([\d,]*)\]", types)}


@pytest.mark.parametrize(
    "static",
    [
        {"chunk_size": 32},
        {"implementation": "stored", "chunk_size": 32},
        {"implementation": "vocab", "chunk_size": 4},
    ],
)
@pytest.mark.few(1)
def test_vocabulary_in_shard_map(static):
    specs = P(), P(None, "x"), {name: P("x") for name in OPTIONS}

    def local(hidden, weight, options):
        return loss(hidden, weight, options, axis_name="x", **static)

    eight = mesh(x=8)
    whole = jax.shard_map(local, mesh=eight, in_specs=specs, out_specs=P())
    outside = jax.value_and_grad(whole, (0, 1, 2))
    inside = jax.shard_map(
        jax.value_and_grad(local, (0, 1, 2)), mesh=eight, in_specs=specs, out_specs=(P(), specs)
    )
    for gradients in (outside, inside):
        got = jax.jit(gradients)(HIDDEN, WEIGHT, OPTIONS)
        assert_close(got, reference(OPTIONS), 5e-6)
    sent = collectives(outside, HIDDEN, WEIGHT, OPTIONS)
    assert {kind for kind, _ in sent} == {"all-reduce"}
    # Statistics of tokens, numbers, and the gradient of hidden: nothing of the vocabulary's size.
    assert all(shape == f"{N},{D}" or not re.search(rf"\b({V}|{V // 8}|{D})\b", shape)
               for _, shape in sent)  # fmt: skip


def test_vocabulary_in_shard_map_one_loss_a_token_and_statistics():
    eight = mesh(x=8)
    specs = P(), P(None, "x")

    def losses(hidden, weight):
        each = jaxloss.linear_cross_entropy(
            hidden, weight, LABELS, reduction="none", chunk_size=16, axis_name="x"
        )
        return each, jaxloss.linear_statistics(hidden, weight, LABELS, axis_name="x")

    split = jax.shard_map(losses, mesh=eight, in_specs=specs, out_specs=P())

    def total(losses):
        def total(*operands):
            each, stats = losses(*operands)
            return jnp.sum(jnp.cos(each)) + jnp.sum(stats.entropy * stats.log_prob), stats.argmax

        return jax.value_and_grad(total, (0, 1), has_aux=True)

    def whole(hidden, weight):
        each = jaxloss.linear_cross_entropy(hidden, weight, LABELS, reduction="none")
        return each, jaxloss.linear_statistics(hidden, weight, LABELS)

    got = jax.jit(total(split))(HIDDEN, WEIGHT)
    assert_close(got, total(whole)(HIDDEN, WEIGHT), 5e-6)


@pytest.mark.parametrize("sweep", ["tokens", "stored", "vocab"])
def test_tokens_in_shard_map(sweep):
    def local(hidden, labels, weight):
        part = loss(hidden, weight, {}, labels, reduction="sum", implementation=sweep, chunk_size=4)
        return jax.lax.psum(part, "x") / N

    split = jax.shard_map(local, mesh=mesh(x=8), in_specs=(P("x"), P("x"), P()), out_specs=P())
    value, (dh, dw) = jax.jit(jax.value_and_grad(split, (0, 2)))(HIDDEN, LABELS, WEIGHT)
    expected, gradients = reference({})
    assert_close((value, dh, dw), (expected, *gradients[:2]), 5e-6)


def placed(kind, split):
    hidden, weight = SPLITS[split]
    m = mesh(kind, d=4, m=2)
    specs = (hidden, weight, P(*hidden[:1]))
    operands = zip((HIDDEN, WEIGHT, LABELS), specs, strict=True)
    return m, [jax.device_put(x, NamedSharding(m, spec)) for x, spec in operands]


def of_operands(way):
    options = {"reduction": "none"} if way == "none" else {"implementation": way}

    def mean(hidden, weight, labels):
        return jnp.mean(loss(hidden, weight, {}, labels, chunk_size=16, **options))

    return jax.value_and_grad(mean, (0, 1))


WAYS = pytest.mark.parametrize(
    "way", ["tokens", "stored", pytest.param("none", marks=pytest.mark.slow)]
)


@WAYS
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.few(2)
def test_automatic(split, way):
    _, args = placed(AxisType.Auto, split)
    expected, gradients = reference({})
    got = jax.jit(of_operands(way))(*args)
    assert_close(got, (expected, gradients[:2]), 5e-6)
    assert not any(kind == "all-gather" for kind, _ in collectives(of_operands(way), *args))


@WAYS
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.few(2)
def test_explicit(split, way):
    m, args = placed(AxisType.Explicit, split)
    expected, gradients = reference({})
    with jax.set_mesh(m):
        got = jax.jit(of_operands(way))(*args)
        assert_close(got, (expected, gradients[:2]), 5e-6)
        for x, g in zip(args[:2], got[1], strict=True):
            assert jax.typeof(g).sharding.spec == jax.typeof(x).sharding.spec
        sent = collectives(of_operands(way), *args)
    assert not any(kind == "all-gather" for kind, _ in sent)


def test_explicit_tokens_add_up_their_gradients_once():
    m, args = placed(AxisType.Explicit, "tokens")
    with jax.set_mesh(m):
        text = as_users(of_operands("tokens")).lower(*args).compile().as_text()
    bodies = [part for part in text.split("\n\n") if "all-reduce(" in part]
    assert len(bodies) == 1 and "ENTRY" in bodies[0]


def test_stored_gradients_of_split_tokens_are_multiplied_and_added_up_once():
    _, args = placed(AxisType.Auto, "tokens")
    text = as_users(of_operands("stored")).lower(*args).compile().as_text()
    bodies = [part for part in text.split("\n\n") if re.search(rf"\[{D},{V}\].*all-reduce\(", part)]
    assert len(bodies) == 1 and "ENTRY" in bodies[0]


def mapped(split, **static):
    """In `shard_map`, tokens or the vocabulary split; and its operands."""
    hidden, weight = SPLITS[split]

    def local(hidden, weight, labels):
        part = loss(hidden, weight, {}, labels, reduction="sum", **static)
        return jax.lax.psum(part, "d") if split == "tokens" else part

    m, specs = mesh(d=4, m=2), (hidden, weight, P(*hidden[:1]))
    return m, jax.shard_map(local, mesh=m, in_specs=specs, out_specs=P())


@pytest.mark.parametrize(
    ("how", "split", "static"),
    [
        ("shard_map", "vocabulary", {"axis_name": "m"}),
        ("shard_map", "tokens", {}),
        ("shard_map", "tokens", {"ignore_index": 3}),
        (AxisType.Auto, "vocabulary", {}),
        (AxisType.Explicit, "tokens", {}),
    ],
)
def test_accelerators_store_gradients_by_default(how, split, static, monkeypatch):
    monkeypatch.setattr(_operands, "_CHUNK_BYTES", 0)
    monkeypatch.setattr(_operands, "_MIN_TOKENS", 8)
    if how == "shard_map":
        (m, of), args = mapped(split, **static), (HIDDEN, WEIGHT, LABELS)
    else:
        (m, args), of = placed(how, split), lambda h, w, y: loss(h, w, {}, y)
    with jax.set_mesh(m):
        traced = jax.jit(jax.value_and_grad(of, (0, 1))).trace(*args)
        cuda, cpu = (traced.lower(lowering_platforms=(on,)).as_text() for on in ("cuda", "cpu"))
    n = N if split == "vocabulary" else N // 4
    v = V // 2 if split == "vocabulary" and how == "shard_map" else V
    stored = re.compile(rf"tensor<(4x)?{n // 8}x8x{v}xf32>")
    assert stored.search(cuda) and not stored.search(cpu)


def test_memory_of_a_split_vocabulary():
    n, d, v = 512, 32, 16384
    specs = P(), P(None, "x")

    def local(hidden, weight):
        labels = jnp.zeros(n, jnp.int32)
        return jaxloss.linear_cross_entropy(hidden, weight, labels, chunk_size=128, axis_name="x")

    def temporary(devices):
        m = mesh(x=devices)
        split = jax.shard_map(local, mesh=m, in_specs=specs, out_specs=P())
        shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (d, v)))
        compiled = as_users(jax.value_and_grad(split, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) <= temporary(1) / 6


def test_a_weight_that_is_not_split_is_an_error():
    def local(hidden, weight):
        return jaxloss.linear_cross_entropy(hidden, weight, LABELS, axis_name="x")

    split = jax.shard_map(
        local, mesh=mesh(x=8), in_specs=(P(), P(None, "x")), out_specs=P(),
        check_vma=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="check_vma=True"):
        split(HIDDEN, WEIGHT)
