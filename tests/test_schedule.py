"""Reading the static schedule of TPU kernels."""

import importlib.util
import re

import pytest

schedule = pytest.importorskip("benchmarks.aot.schedule")


def bundles(*lines):
    return "".join(f"{at:#6x} {line}\n" for at, line in enumerate(lines))


def matmuls(count, dtype="bf16"):
    return [f"  : > {{ %1 = vmatmul.{dtype}.gmra.mxu{i % 4} %v0 }}" for i in range(count)]


IDLE = "  : > { %v1 = vadd.f32 %v0 }"
BRANCH = "  : > { %209 = sbr.rel (!%p10) target = $region7 }"
END = "PF: > { %v2 = vadd.f32 %v0 } /* Start/End empty region 7 :: Start region 8 */"
OUTER = "  : > { %18 = sbr.rel (%p16) target = $region3 }"
LAST = "PF: > { %v2 = vadd.f32 %v0 } /* Start/End empty region 3 */"


def test_conditions_and_cycles():
    text = bundles(IDLE, OUTER, IDLE, *matmuls(8), IDLE, BRANCH, *[IDLE] * 70, END, IDLE, LAST)
    whole, inner = schedule.regions(text)
    # Eight matmuls of 16 rows keep four MXUs busy for 32 cycles, and what is outside is added.
    assert (whole.mxu_cycles, whole.bundles, whole.cycles) == (32, 13, 32 + 3 + 2)
    assert (inner.mxu_cycles, inner.bundles, inner.cycles) == (0, 70, 70)
    # A few bundles under a condition are a part of what is around them.
    text = bundles(IDLE, OUTER, *matmuls(8, "f32"), BRANCH, *[IDLE] * 5, END, *[IDLE] * 60, LAST)
    (whole,) = schedule.regions(text)
    assert (whole.mxu_cycles, whole.bundles, whole.cycles) == (16, 75, 16 + 67)


def test_estimate_of_a_kernel():
    half = schedule.F(1, 2)
    kernel = schedule.Kernel("k", lambda a, b: [1, half], lambda grid, shape: 4000, lambda *_: 1000)
    grid = "  : > { dma.hbm_to_vmem iteration_bounds: (5, 2) }"
    text = bundles(OUTER, grid, *matmuls(8), BRANCH, *[IDLE] * 70, END, LAST)
    got = schedule.read(kernel, text, (1, 1, 1), 10.0, 100.0)
    assert got.grid == (5, 2) and got.matmuls == 32.0
    assert got.schedule == 10 * (32 + 2 + 1 + 35) / 10 + 10
    assert got.memory == 40.0 and got.seconds == got.schedule
    with pytest.raises(
        ValueError, match=re.escape("2 conditions, of [11, 70] bundles; expected 1")
    ):
        schedule.read(schedule.Kernel("k", lambda a, b: [1], max), text, (1, 1, 1), 1.0, 1.0)


@pytest.mark.slow
def test_the_kernels_at_gemmas_shape():
    pytest.importorskip("libtpu")
    first, second = schedule.estimate("jaxloss pallas_tpu")
    assert first.seconds <= 1.1 * first.matmuls and second.seconds <= 1.05 * second.matmuls
    if importlib.util.find_spec("tokamax"):
        theirs = sum(kernel.seconds for kernel in schedule.estimate("tokamax Pallas"))
        assert first.seconds + second.seconds <= 0.9 * theirs
