"""The TPU kernels: interpreted, against the formula; lowered and compiled for TPUs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss.linear import _formulas, _pallas_tpu
from jaxloss.linear._formulas import Settings
from jaxloss.linear._head import Head
from jaxloss.linear._pallas_tpu import TpuSweep
from jaxloss.linear._sweep import Need
from jaxloss.linear._tokens import TokenSweep
from tests import devices
from tests.linear.test_cross_entropy import (
    assert_close,
    operands,
    settings,
    value_and_gradients,
    written_out,
)

fused = partial(jaxloss.linear_cross_entropy, implementation="pallas_tpu")
# So little memory that a block has 128 tokens and classes.
SMALL = _pallas_tpu.Chip(2**20, wins=True, interpret=True)
N, D, V = 300, 5, 300


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(_pallas_tpu, "CHIP_FOR_TESTS", SMALL)


def exact(labels, *arrays, **static):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), arrays)
        return value_and_gradients(written_out, labels, **static)(*wide)


@pytest.mark.parametrize(
    "names",
    [("bias", "logit_softcap"), ("label_smoothing",), ("z_loss",), tuple(settings())],
    ids="-".join,
)
def test_options(names):
    hidden, weight, labels = operands(n=N, v=V)
    given = {k: x for k, x in settings(n=N, v=V).items() if k in names}
    static = {"reduction": "weighted_mean" if "weights" in names else "mean"}
    got = value_and_gradients(fused, labels, **static)(hidden, weight, given)
    # The derivative by the smoothing is a difference of losses some fifty times its size.
    assert_close(got, exact(labels, hidden, weight, given, **static), 2e-5)


@pytest.mark.parametrize(
    ("shape", "dtypes", "vocab_first"),
    [
        ((1, 1, 1), ("f4", "f4"), False),
        ((13, 50, 129), ("f4", "f4"), True),
        ((N, D, V), ("bfloat16", "bfloat16"), False),
        ((256, 8, 256), ("bfloat16", "bfloat16"), True),
        ((130, 7, 100), ("bfloat16", "f4"), False),
        # Weights that a TPU keeps the other way round.
        ((20, 128, 130), ("f4", "f4"), False),
        ((20, 7, 256), ("f4", "f4"), True),
    ],
    ids=str,
)
@pytest.mark.few(4)
def test_shapes_and_dtypes(shape, dtypes, vocab_first):
    n, d, v = shape
    hidden, weight, labels = operands(n=n, d=d, v=v)
    hidden, weight = jnp.asarray(hidden, dtypes[0]), jnp.asarray(weight, dtypes[1])
    value, (dh, dw, _) = value_and_gradients(fused, labels, vocab_first=vocab_first)(
        hidden, weight.T if vocab_first else weight, {}
    )
    dw = dw.T if vocab_first else dw
    assert (value.dtype, dh.dtype, dw.dtype) == (jnp.float32, hidden.dtype, weight.dtype)
    expected = exact(labels, hidden, weight, {})
    np.testing.assert_allclose(value, expected[0], rtol=2e-6, atol=1e-7)
    got = jax.tree.map(lambda x: np.asarray(x, np.float64), (dh, dw))
    assert_close(got, expected[1][:2], 5e-6 if dtypes[0] == "f4" else 2**-7)


@pytest.mark.parametrize("n", [100, 200])
def test_transfers_are_waited_for(n, monkeypatch):
    # Here a transfer happens when it is waited for, and memory holds NaN before.
    late = pltpu.InterpretParams(dma_execution_mode="on_wait", detect_races=True)
    monkeypatch.setattr(_pallas_tpu, "CHIP_FOR_TESTS", SMALL._replace(interpret=late))
    hidden, weight, labels = operands(n=n, v=V)
    shared = Settings()
    need = Need((True,), (True,), shared, False)
    tokens = TokenSweep(_formulas.cross_entropy, 1, n, vocab_first=False)
    sweep = TpuSweep(tokens, _pallas_tpu.CHIP_FOR_TESTS)
    value, out = jax.jit(
        lambda h, w, y: sweep.total_and_gradients(
            need, (Head(h, w),), y, shared, jnp.full(n, 1 / n)
        )
    )(hidden, weight, labels)
    expected = exact(labels, hidden, weight, {})
    assert_close((value, *out.hidden, *out.weight), (expected[0], *expected[1][:2]), 5e-6)


@pytest.mark.parametrize("v", [1, 2, 3, 100, 127, 128, 129, 255, 300])
def test_zero_weights_give_the_logarithm_of_the_vocabulary(v):
    hidden, weight, labels = np.ones((2, 1), np.float32), np.zeros((1, v), np.float32), [0, v - 1]
    got = fused(hidden, weight, np.int32(labels))
    assert abs(got - np.float32(np.log(v))) <= np.spacing(np.float32(np.log(v)))


def test_tails():
    hidden = np.float32([[20, 0]])
    weight = np.zeros((2, V), np.float32)
    weight[0, 200] = 1
    value, (dh, _, _) = value_and_gradients(fused, np.int32([200]))(hidden, weight, {})
    tail = (V - 1) * np.exp(-20)
    np.testing.assert_allclose((value, -dh[0, 0]), tail, rtol=2e-6)


def test_masked_and_bad_labels():
    hidden, weight, labels = operands(n=N, v=V)
    kept = np.arange(N) % 3 > 0
    expected = exact(labels[kept], hidden[kept], weight, {})
    hidden[~kept] = np.nan
    value, (dh, dw, _) = value_and_gradients(fused, labels, where=kept)(hidden, weight, {})
    assert_close((value, dh[kept], dw), (expected[0], *expected[1][:2]), 5e-6)
    assert np.all(np.asarray(dh[~kept]) == 0)
    labels[3], labels[200] = V, -1
    value, (dh, _, _) = value_and_gradients(fused, labels)(operands(n=N)[0], weight, {})
    assert np.isnan(value)
    assert list(np.flatnonzero(np.isnan(dh).all(1))) == [3, 200]


def test_a_bias_of_minus_infinity_excludes_its_classes():
    hidden, weight, labels = operands(n=40, v=V)
    labels %= 200
    given = {
        "bias": np.where(np.arange(V) < 200, 0, -np.inf).astype(np.float32),
        "logit_softcap": np.float32(3),
    }
    value, (dh, dw, _) = value_and_gradients(fused, labels)(hidden, weight, given)
    fewer = {"bias": given["bias"][:200], "logit_softcap": given["logit_softcap"]}
    expected = exact(labels, hidden, weight[:, :200], fewer)
    assert_close((value, dh, dw[:, :200]), (expected[0], *expected[1][:2]), 5e-6)
    assert np.all(np.asarray(dw[:, 200:]) == 0)


def test_one_gradient_costs_no_more_than_it():
    hidden, weight, labels = operands(n=40, v=V)
    for argnums, count in (((), 1), ((0,), 2), ((1,), 2), ((0, 1), 3)):
        loss = lambda h, w: fused(h, w, labels)
        both = jax.value_and_grad(loss, argnums) if argnums else loss
        text = str(jax.make_jaxpr(both)(hidden, weight))
        # One is in the first pass, and the logits again in the second.
        assert text.count("dot_general") == count + bool(argnums), argnums


def test_second_derivatives_are_those_of_the_sweep_over_tokens():
    hidden, weight, labels = operands(n=20, v=V)
    v = jax.tree.map(lambda x: np.cos(3 * x), (hidden, weight))

    def product(implementation):
        loss = partial(
            jaxloss.linear_cross_entropy, implementation=implementation, label_smoothing=0.1
        )
        gradient = jax.grad(lambda h, w: loss(h, w, labels), (0, 1))
        return jax.jit(lambda: jax.jvp(gradient, (hidden, weight), v))()

    assert_close(product("pallas_tpu"), product("tokens"), 5e-6)


def test_vmap_and_no_tokens():
    hidden, weight, labels = operands(n=20, v=V)
    both = jnp.stack([weight, 2 * weight])
    gradient = jax.value_and_grad(lambda w: fused(hidden, w, labels))
    got = jax.jit(jax.vmap(gradient))(both)
    for i in range(2):
        expected = exact(labels, hidden, both[i], {})
        assert_close(jax.tree.map(lambda x, i=i: x[i], got), (expected[0], expected[1][1]), 5e-6)
    assert fused(hidden[:0], weight, labels[:0]) == 0


LARGE = {"n": 4096, "d": 512, "v": 40000}


def shapes(n, d, v, dtype="bfloat16", **_):
    types = ((n, d), dtype), ((d, v), dtype), ((n,), "int32")
    return [jax.ShapeDtypeStruct(*of) for of in types]


def both(**options):
    loss = partial(jaxloss.linear_cross_entropy, **options)
    return jax.jit(jax.value_and_grad(loss, (0, 1)))


@pytest.fixture
def tpu(monkeypatch):
    monkeypatch.setattr(_pallas_tpu, "CHIP_FOR_TESTS", _pallas_tpu.Chip(2**27, wins=True))
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def kernels_in(text):
    return text.count("tpu_custom_call")


def test_lowers_for_a_tpu(tpu):
    for dtype, options in (("bfloat16", {}), ("float32", {"z_loss": 0.1, "label_smoothing": 0.1})):
        traced = both(implementation="pallas_tpu", **options).trace(*shapes(1000, 100, 1003, dtype))
        assert kernels_in(traced.lower(lowering_platforms=("tpu",)).as_text()) == 2


def test_lowers_with_statistics_for_a_tpu(tpu):
    loss = partial(fused, return_statistics=True)
    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    alone = jax.jit(
        partial(jaxloss.linear_statistics, implementation="pallas_tpu", temperature=2.0)
    )
    for run, number in ((step, 2), (alone, 1)):
        traced = run.trace(*shapes(1000, 100, 1003, "bfloat16"))
        assert kernels_in(traced.lower(lowering_platforms=("tpu",)).as_text()) == number


def test_lowers_with_the_vocabulary_split_over_devices(tpu):
    traced = split_over_vocabulary(devices.mesh(v=2)).trace(*shapes(300, 40, 2000))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert kernels_in(text) == 2 and "all_gather" not in text


def split_over_vocabulary(mesh):
    loss = partial(fused, axis_name="v")
    specs = P(), P(None, "v"), P()
    loss = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P())
    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def test_what_is_left_free(tpu, monkeypatch):
    def kernels(platform="tpu", of=LARGE, **options):
        traced = both(**options).trace(*shapes(**of))
        return kernels_in(traced.lower(lowering_platforms=(platform,)).as_text())

    assert kernels() == 2
    # Where the program runs is known only when it is lowered.
    assert kernels("cpu") == 0
    # Chunks of many tokens, or one, do not wait for the memory; and a wish is one.
    assert kernels(of=LARGE | {"v": 4000}) == kernels(of=LARGE | {"n": 300}) == 0
    assert kernels(chunk_size=512) == kernels(implementation="tokens") == 0
    assert kernels(of=LARGE | {"dtype": "float16"}) == 0
    # XLA cannot split a kernel over devices.
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert kernels() == 0


def test_left_free_on_another_platform(tpu):
    hidden, weight, labels = operands(n=600, d=4, v=33000)
    expected = both(implementation="tokens")(hidden, weight, labels)
    assert_close(both()(hidden, weight, labels), expected, 1e-6)


def test_errors(monkeypatch):
    hidden, weight, labels = operands()
    with pytest.raises(ValueError, match="no chunk_size"):
        fused(hidden, weight, labels, chunk_size=8)
    with pytest.raises(ValueError, match="'pallas_tpu' forms gradients together"):
        fused(hidden, weight, labels, reduction="none")
    with pytest.raises(TypeError, match="float32 or bfloat16, got float16 and float32"):
        fused(np.float16(hidden), weight, labels)
    with pytest.raises(ValueError, match=r"hidden of shape \(1, 5000\) are too long"):
        fused(np.ones((1, 5000), np.float32), np.ones((5000, 1), np.float32), np.int32([0]))
    monkeypatch.setattr(_pallas_tpu, "CHIP_FOR_TESTS", None)
    with pytest.raises(
        ValueError, match=f"is for a TPU, and this program for {jax.default_backend()}"
    ):
        fused(hidden, weight, labels)


TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
HEADS = {
    "awkward": (1000, 100, 1003),
    "Gemma-2 2B": (8192, 2304, 256000),
    "Llama-3 8B": (8192, 4096, 128256),
    "Qwen2.5 7B": (8192, 3584, 152064),
    "GPT-2": (8192, 768, 50257),
}


@pytest.fixture
def described(monkeypatch):
    """The devices of a TPU that is not there."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setattr(_pallas_tpu, "CHIP_FOR_TESTS", None)

    def mesh(target, count):
        name = TOPOLOGIES[target]
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
        return Mesh(np.array(topology.devices[:count]), ("v",))

    return mesh


@pytest.mark.parametrize(
    ("target", "name"),
    [
        pytest.param(
            target, name,
            marks=[] if (target, name) == ("v5e", "awkward") else [pytest.mark.slow],
        )
        for target in TOPOLOGIES for name in HEADS
    ],
)  # fmt: skip
def test_compiles_for_a_tpu(target, name, described):
    mesh = described(target, 1)
    n, d, v = HEADS[name]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        whole = NamedSharding(mesh, P())
        operands = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole) for x in shapes(n, d, v)]
        memory = both(implementation="pallas_tpu").lower(*operands).compile().memory_analysis()
    if name == "awkward":
        return
    # Gradients in bfloat16; and that of hidden in float32, beside numbers for each token.
    assert memory.output_size_in_bytes <= 2 * d * (n + v) + 2**20
    assert memory.temp_size_in_bytes <= 4 * n * d + 2048 * n
    if name == "Gemma-2 2B":
        assert memory.temp_size_in_bytes <= 0.01 * 12.6e9


def test_compiles_with_the_vocabulary_split_over_devices(described):
    mesh = described("v5e", 4)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        specs = P(), P(None, "v"), P()
        operands = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            for x, spec in zip(shapes(300, 40, 2000), specs, strict=True)
        ]
        text = split_over_vocabulary(mesh).lower(*operands).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text
