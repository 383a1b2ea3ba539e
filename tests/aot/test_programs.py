"""What the compilers for accelerators make of the losses.

The tests need the extras `aot-tpu` and `aot-gpu`, and none of the machines.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from aot import hlo, measure, targets
from aot.programs import CASES, HEADS
from benchmarks.works import OURS, works
from tests.aot import EVERY_TARGET, TARGETS, target

Shape = jax.ShapeDtypeStruct


# Models' shapes, at full size: compiling allocates nothing.


def head(name, model, implementation):
    program = next(p for p in CASES[model].programs if p.name == f"jaxloss {implementation}")
    return measure.row(targets.TARGETS[name], CASES[model], program)


def plain_bytes(n, _, v):
    """The plain program's logits in float32, and their gradient or themselves in bfloat16."""
    return 6 * n * v


@pytest.mark.slow
@EVERY_TARGET
@pytest.mark.parametrize(
    ("model", "implementation", "share"),
    [
        ("gemma2_2b", "tokens", 0.25),
        ("gemma2_2b", "vocab", 0.02),
        ("gemma2_2b_32k_tokens", "tokens", 0.07),
    ],
)
def test_memory_of_a_large_head(name, model, implementation, share):
    n, d, v = HEADS[model]
    row = head(name, model, implementation)
    assert row["temporary_bytes"] <= share * plain_bytes(n, d, v)
    # The loss and gradients in bfloat16, up to the tiles of a TPU's layouts.
    gradients = 2 * (n * d + d * v)
    assert gradients <= row["output_bytes"] <= 1.001 * gradients + 2**16
    assert row["matmul_flops"] == 2 * n * d * v * {"tokens": 3, "vocab": 4}[implementation]


# By the TPU compiler's estimate, of the sweep over tokens.
SHARES_OF_CYCLES = {"gemma2_2b": {"v5e": 0.8, "v5p": 0.82, "v6e": 0.81},
                    "llama3_8b": {"v5e": 0.72, "v5p": 0.74, "v6e": 0.67}}  # fmt: skip


@pytest.mark.slow
@EVERY_TARGET
@pytest.mark.parametrize("model", SHARES_OF_CYCLES)
def test_stored_gradients_of_a_large_head(name, model):
    """In memory they are hardly more than one array of logits in bfloat16."""
    n, d, v = HEADS[model]
    stored, tokens = (head(name, model, way) for way in ("stored", "tokens"))
    # The weight and its gradient are there in another layout as well.
    layouts = 4 * d * v if name == "v6e" else 0
    assert stored["temporary_bytes"] <= 1.01 * (2 * n * v + layouts)
    assert stored["matmul_flops"] == 3 * 2 * n * d * v
    if tokens["compiler_seconds"] is not None:
        share = stored["compiler_seconds"] / tokens["compiler_seconds"]
        assert share <= SHARES_OF_CYCLES[model][name]


@pytest.mark.slow
@TARGETS
def test_stored_gradients_split_by_xla_gather_nothing(name):
    """Whatever is split; and with tokens split the gradient of the weight travels once."""
    n, d, v = 8192, 512, 32000
    mesh = targets.mesh(targets.TARGETS[name], sizes=(4,))
    for h, w in ((P("x"), P()), (P(), P(None, "x")), (P(None, "x"), P("x"))):
        of = ((n, d), jnp.bfloat16, h), ((d, v), jnp.bfloat16, w), ((n,), jnp.int32, P(*h[:1]))
        shapes = [Shape(s, dtype, sharding=NamedSharding(mesh, p)) for s, dtype, p in of]
        loss = partial(jaxloss.linear_cross_entropy, implementation="stored")
        compiled = targets.compile_for(mesh, jax.value_and_grad(loss, (0, 1)), shapes)
        sent = hlo.Program(compiled.as_text()).collectives
        assert {one.kind for one in sent} == {"all-reduce"}
        if h == P("x"):
            assert compiled.memory_analysis().temp_size_in_bytes <= 2 * n * v
            assert sum(one.runs for one in sent if one.bytes >= 2 * d * v) == 1


@pytest.mark.slow
@TARGETS
def test_memory_of_the_plain_program(name):
    """Which is what the shares above are of."""
    program = next(p for p in CASES["gemma2_2b"].programs if p.name == "naive")
    row = measure.row(targets.TARGETS[name], CASES["gemma2_2b"], program)
    plain = plain_bytes(*HEADS["gemma2_2b"])
    assert plain <= row["temporary_bytes"] <= 1.01 * plain


@pytest.mark.slow
@TARGETS
def test_tokens_split_over_devices_take_no_more_than_on_one(name):
    """Nor does the gradient of the weight travel more than once."""
    case = CASES["gemma2_2b_split_tokens"]
    row = measure.row(targets.TARGETS[name], case, case.programs[0])
    assert row["temporary_bytes"] <= 0.25 * plain_bytes(*HEADS["gemma2_2b"])
    assert row["collectives"] == "2 all-reduce"


@pytest.mark.slow
@EVERY_TARGET
def test_memory_of_ctc_is_less_than_the_logits(name):
    """Two numbers for a state and two for a label of each frame; nothing is padded to tiles."""
    case = CASES["ctc_batch"]
    row = measure.row(targets.TARGETS[name], case, case.programs[0])
    batch, frames, classes = case.shapes(None)[0].shape
    logits = 4 * batch * frames * classes
    assert row["temporary_bytes"] < 0.75 * logits
    assert row["output_bytes"] < 1.001 * logits
    # In both directions of the recursion.
    assert row["launches"] < 11.5 * frames


# Chunks of logits, as the GPU's and the TPU's compiler walk through them.

ROWS, FEATURES, CLASSES = 512, 768, 32768


def chunks(name):
    """The kernels of a chunk that touch all of its logits, in bfloat16 or float32."""

    def loss(hidden, weight, labels):
        return jaxloss.linear_cross_entropy(hidden, weight, labels, chunk_size=ROWS)

    bf16, n = jnp.bfloat16, 4 * ROWS
    shapes = Shape((n, FEATURES), bf16), Shape((FEATURES, CLASSES), bf16), Shape((n,), jnp.int32)
    step = jax.value_and_grad(loss, (0, 1))
    mesh = targets.mesh(targets.TARGETS[name])
    program = hlo.Program(targets.compile_for(mesh, step, shapes).as_text(), on_chip=True)
    logits = {2 * ROWS * CLASSES, 4 * ROWS * CLASSES}
    return [k for k in program.kernels if k.runs == 4 and logits & {*k.reads, *k.writes}]


@pytest.mark.parametrize("name", [target("h100")])
def test_a_chunk_on_a_gpu_is_three_matmuls_and_three_sweeps(name):
    """For the maximum, the sum, the gradient; a row is longer than a block's memory."""
    kernels = chunks(name)
    logits = 4 * ROWS * CLASSES
    flops = 2 * ROWS * FEATURES * CLASSES
    assert [k.matmuls for k in kernels] == [(flops,), (), (), (), (flops,), (flops,)]
    (first, *statistics, gradient), last = kernels[:4], kernels[4:]
    assert logits in first.writes
    assert all(logits in k.reads and max(k.writes) < logits / 64 for k in statistics)
    assert logits in gradient.reads and gradient.writes == (logits // 2,)
    assert all(logits // 2 in k.reads and logits not in k.reads for k in last)


@pytest.mark.slow
@pytest.mark.parametrize("name", [target("v5e")])
def test_a_chunk_on_a_tpu_is_three_matmuls_and_one_sweep(name):
    """The first matmul finds the maximum, and the others form the gradient as they read."""
    kernels = chunks(name)
    logits = 4 * ROWS * CLASSES
    flops = 2 * ROWS * FEATURES * CLASSES
    assert [k.matmuls for k in kernels] == [(flops,), (), (flops,), (flops,)]
    first, total, *last = kernels
    assert logits in first.writes
    assert logits in total.reads and max(total.writes) < logits / 64
    assert all(logits in k.reads and logits not in k.writes for k in last)


@pytest.mark.parametrize("name", [target("h100")])
def test_classes_split_over_devices_send_numbers_of_rows(name):
    """Also where XLA finds how to merge the parts of a row that devices have."""
    mesh = targets.mesh(targets.TARGETS[name], sizes=(4,))
    rows, classes = 1024, 32000
    logits = Shape((rows, classes), jnp.float32, sharding=NamedSharding(mesh, P(None, "x")))
    loss = returned(jaxloss.softmax_cross_entropy_with_integer_labels)
    compiled = targets.compile_for(mesh, loss, [logits, Shape((rows,), jnp.int32)])
    sent = sum(c.runs * c.bytes for c in hlo.Program(compiled.as_text()).collectives)
    assert 0 < sent <= 16 * 4 * rows


# Losses of arrays.

ELEMENTS = ((2**20,), jnp.float32), ((2**20,), jnp.float32)
SOFT = ((8192, 8192), jnp.float32), ((8192, 8192), jnp.float32)  # More than a TPU keeps on chip.
LABELS = ((1024, 4096), jnp.float32), ((1024,), jnp.int32)

# How often value and gradient look at arrays of the size of the predictions.
LOOKS = {
    "sigmoid_binary_cross_entropy": (ELEMENTS, 1),
    "huber_loss": (ELEMENTS, 1),
    "hinge_loss": (ELEMENTS, 1),
    "poisson_nll": (ELEMENTS, 1),
    "kl_divergence": (SOFT, 1),
    # The largest entries of both, their norms, their product and the gradient; one of these
    # looks gives the difference as well.
    "cosine_similarity": (SOFT, 6),
    "cosine_distance": (SOFT, 6),
    # The largest logit, the sum, the gradient.
    "softmax_cross_entropy_with_integer_labels": (LABELS, 3),
    # And the labels of the other classes, where one class is far ahead.
    "softmax_cross_entropy": (SOFT, 4),
}


def returned(loss):
    return jax.value_and_grad(lambda x, y: jnp.mean(loss(x, y)))


def consumed(loss):
    def program(x, y):
        value, gradient = returned(loss)(x, y)
        return value, jnp.sum(gradient * gradient)

    return program


@TARGETS
@pytest.mark.parametrize("loss", LOOKS)
@pytest.mark.parametrize("use", [returned, consumed])
@pytest.mark.few(6)
def test_looks_at_the_predictions_as_seldom_as_can_be(name, loss, use):
    of, looks = LOOKS[loss]
    if (name, loss, use) == ("h100", "softmax_cross_entropy", consumed):
        pytest.skip("XLA writes out the gradient before it adds up its squares")
    mesh = targets.mesh(targets.TARGETS[name])
    step = use(getattr(jaxloss, loss))
    compiled = targets.compile_for(mesh, step, [Shape(*s) for s in of])
    size = 4 * int(np.prod(of[0][0]))
    program = hlo.Program(compiled.as_text(), on_chip=True)
    if (name, loss, use) == ("h100", "kl_divergence", consumed):
        looks += 1  # A sum over rows and one over all are kernels of their own.
    assert len(program.sweeps(size)) <= looks
    # Nothing of that size but the gradient, were it only one bit for each prediction.
    assert len(program.written(size // 8)) == (1 if use is returned else 0)
    assert compiled.memory_analysis().temp_size_in_bytes < size / 64


ROWS_OF_HALF = 8192
ROWS_OF_CLASSES = [w for w in works() if w.case.model is None and not w.case.elementwise]
# Their loop looks at float32 logits again and again.
IN_FLOAT32 = {"multiclass_sparsemax_loss", "entmax15_loss", "entmax_loss"}


@TARGETS
@pytest.mark.parametrize("work", ROWS_OF_CLASSES, ids=str)
@pytest.mark.few(2)
def test_half_precision_is_not_written_out_in_float32(name, work):
    n, case = ROWS_OF_HALF, work.case
    x = Shape((n, n), jnp.bfloat16)
    y = Shape((n,), jnp.int32) if case.integer else x
    mesh = targets.mesh(targets.TARGETS[name])
    compiled = targets.compile_for(mesh, returned(work.losses[OURS]), [x, y])
    written = hlo.Program(compiled.as_text(), on_chip=True).written(4 * n * n)
    assert bool(written) == (work.name in IN_FLOAT32)


@pytest.mark.slow
@EVERY_TARGET
def test_integer_labels_of_a_large_vocabulary_in_half_precision(name):
    """The logits are read three times, and their gradient is written."""
    rows, classes = 8192, 128256
    mesh = targets.mesh(targets.TARGETS[name])
    loss = returned(jaxloss.softmax_cross_entropy_with_integer_labels)
    shapes = [Shape((rows, classes), jnp.bfloat16), Shape((rows,), jnp.int32)]
    compiled = targets.compile_for(mesh, loss, shapes)
    assert compiled.memory_analysis().temp_size_in_bytes < 2**20
    if name != "h100":  # XLA's estimate for a GPU is another.
        assert compiled.cost_analysis()["bytes accessed"] <= 1.01 * 4 * 2 * rows * classes
