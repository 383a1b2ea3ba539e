"""How a compiled program is read."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from aot import hlo, targets
from tests.aot import TARGETS
from tests.programs import as_users

Shape = jax.ShapeDtypeStruct


def test_reads_a_loop_as_often_as_it_runs():
    def program(x, w):
        return lax.scan(lambda sums, row: (sums + jnp.tanh(row @ w), None), jnp.zeros((8, 64)), x)

    compiled = as_users(program).lower(jnp.zeros((5, 8, 32)), jnp.zeros((32, 64))).compile()
    assert hlo.Program(compiled.as_text()).total(lambda k: sum(k.matmuls)) == 5 * 2 * 8 * 32 * 64


@TARGETS
def test_reads_a_batch_of_matmuls(name):
    """Of which a TPU's compiler makes one convolution."""
    mesh = targets.mesh(targets.TARGETS[name])
    shapes = Shape((64, 200, 128), jnp.float32), Shape((64, 100, 128), jnp.float32)
    compiled = targets.compile_for(mesh, partial(jnp.einsum, "btk,bmk->btm"), shapes)
    flops = hlo.Program(compiled.as_text()).total(lambda k: sum(k.matmuls))
    assert flops == 2 * 64 * 200 * 100 * 128


TEXT = """HloModule example

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  %c = f32[] exponential(%b)
  ROOT %sum = f32[] add(%a, %c)
}

%fused (p0: bf16[4,8,16], p1: s32[], p2: f32[4,8]) -> (f32[8], f32[4,8]) {
  %p0 = bf16[4,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = bf16[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %flat = bf16[8,16]{1,0} bitcast(%row)
  %wide = f32[8,16]{1,0} convert(%flat)
  %exp = f32[8,16]{1,0} exponential(%wide)
  %start = f32[] constant(0)
  %sums = f32[8]{0} reduce(%exp, %start), dimensions={1}, to_apply=%add
  %p2 = f32[4,8]{1,0} parameter(2)
  %one = f32[1,8]{1,0} bitcast(%sums)
  %put = f32[4,8]{1,0} dynamic-update-slice(%p2, %one, %p1, %zero)
  ROOT %both = (f32[8]{0}, f32[4,8]{1,0}) tuple(%sums, %put)
}

%body (s: (s32[], bf16[4,8,16], f32[4,8])) -> (s32[], bf16[4,8,16], f32[4,8]) {
  %s = (s32[], bf16[4,8,16]{2,1,0}, f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[4,8,16]{2,1,0} get-tuple-element(%s), index=1
  %out = f32[4,8]{1,0} get-tuple-element(%s), index=2
  %step = s32[] constant(1)
  %next = s32[] add(%i, %step)
  %f = (f32[8]{0:T(128)S(1)}, f32[4,8]{1,0}) fusion(%x, %i, %out), kind=kLoop, calls=%fused
  %new = f32[4,8]{1,0} get-tuple-element(%f), index=1
  ROOT %t = (s32[], bf16[4,8,16]{2,1,0}, f32[4,8]{1,0}) tuple(%next, %x, %new)
}

%test (s.1: (s32[], bf16[4,8,16], f32[4,8])) -> pred[] {
  %s.1 = (s32[], bf16[4,8,16]{2,1,0}, f32[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %n = s32[] constant(4)
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (x.1: bf16[4,8,16], w.1: bf16[8,32]) -> f32[4,32] {
  %x.1 = bf16[4,8,16]{2,1,0} parameter(0)
  %w.1 = bf16[8,32]{1,0} parameter(1)
  %zero.1 = s32[] constant(0)
  %empty = f32[4,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %init = (s32[], bf16[4,8,16]{2,1,0}, f32[4,8]{1,0}) tuple(%zero.1, %x.1, %empty)
  %loop = (s32[], bf16[4,8,16]{2,1,0}, f32[4,8]{1,0}) while(%init), condition=%test, body=%body
  %rows = f32[4,8]{1,0} get-tuple-element(%loop), index=2
  %product = f32[4,32]{1,0} convolution(%rows, %w.1), dim_labels=bf_io->bf
  ROOT %whole = f32[4,32]{1,0} all-reduce(%product), channel_id=1, to_apply=%add
}
"""


def test_reads_kernels_off_the_text():
    program = hlo.Program(TEXT)
    fusion, product, reduced = program.kernels
    assert fusion.runs == 4
    # One row of the first operand, one index, and nothing of what is updated in place.
    assert fusion.reads == (8 * 16 * 2, 4, 0)
    # The sums stay on the chip; of the other result one row is written.
    assert fusion.writes == (0, 8 * 4)
    assert hlo.Program(TEXT, on_chip=True).kernels[0].writes == (8 * 4, 8 * 4)
    # Each element has an exponential of its own and one where it is added to the others.
    assert (fusion.transcendentals, fusion.flops) == (2 * 8 * 16, 8 * 16)
    assert product.matmuls == (2 * 4 * 32 * 8,)
    assert product.bytes == 4 * 8 * 4 + 8 * 32 * 2 + 4 * 32 * 4
    assert reduced.opcode == "all-reduce"
    assert program.collectives == [hlo.Collective("all-reduce", 1, 4 * 32 * 4)]
    assert program.total(lambda k: 1) == 6
    assert not program.opaque


WRAPPED = """HloModule example

%bitcasts (q: bf16[4,8,16]) -> bf16[32,16] {
  %q = bf16[4,8,16]{2,1,0} parameter(0)
  ROOT %flat = bf16[32,16]{1,0} bitcast(%q)
}

%slices (r: bf16[4,8,16]) -> bf16[1,8,16] {
  %r = bf16[4,8,16]{2,1,0} parameter(0)
  ROOT %first = bf16[1,8,16]{2,1,0} slice(%r), slice={[0:1], [0:8], [0:16]}
}

%fused (p0: bf16[4,8,16], p1: bf16[16,32], p2: bf16[4,8,16]) -> f32[32,32] {
  %p0 = bf16[4,8,16]{2,1,0} parameter(0)
  %rows = bf16[32,16]{1,0} fusion(%p0), kind=kLoop, calls=%bitcasts
  %p1 = bf16[16,32]{1,0} parameter(1)
  %p2 = bf16[4,8,16]{2,1,0} parameter(2)
  %part = bf16[1,8,16]{2,1,0} fusion(%p2), kind=kLoop, calls=%slices
  ROOT %product = f32[32,32]{1,0} convolution(%rows, %p1), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[4,8,16], w: bf16[16,32], y: bf16[4,8,16]) -> f32[32,32] {
  %x = bf16[4,8,16]{2,1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  %y = bf16[4,8,16]{2,1,0} parameter(2)
  ROOT %f = f32[32,32]{1,0} fusion(%x, %w, %y), kind=kOutput, calls=%fused
}
"""


def test_an_operand_that_a_nested_fusion_only_bitcasts_is_read_whole():
    """And one that it slices in part."""
    (product,) = hlo.Program(WRAPPED).kernels
    assert product.reads == (4 * 8 * 16 * 2, 16 * 32 * 2, 8 * 16 * 2)


PUT = """HloModule example

%gathers (p0: bf16[64,1000], p1: s32[64,2]) -> f32[64] {
  %p0 = bf16[64,1000]{1,0} parameter(0)
  %wide = f32[64,1000]{1,0} convert(%p0)
  %p1 = s32[64,2]{1,0} parameter(1)
  ROOT %own = f32[64]{0} gather(%wide, %p1), slice_sizes={1,1}
}

%scatters (q0: bf16[64,1000], q1: s32[64,2], q2: f32[64]) -> bf16[64,1000] {
  %q0 = bf16[64,1000]{1,0} parameter(0)
  %q1 = s32[64,2]{1,0} parameter(1)
  %q2 = f32[64]{0} parameter(2)
  %half = bf16[64]{0} convert(%q2)
  ROOT %put = bf16[64,1000]{1,0} scatter(%q0, %q1, %half), to_apply=%last
}

%of_zeros (r1: s32[64,2], r2: bf16[64]) -> bf16[64,1000] {
  %zero = bf16[] constant(0)
  %zeros = bf16[64,1000]{1,0} broadcast(%zero), dimensions={}
  %r1 = s32[64,2]{1,0} parameter(0)
  %r2 = bf16[64]{0} parameter(1)
  ROOT %put.1 = bf16[64,1000]{1,0} scatter(%zeros, %r1, %r2), to_apply=%last
}

ENTRY %main (x: bf16[64,1000], i: s32[64,2], h: bf16[64]) -> bf16[64,1000] {
  %x = bf16[64,1000]{1,0} parameter(0)
  %i = s32[64,2]{1,0} parameter(1)
  %h = bf16[64]{0} parameter(2)
  %labels = f32[64]{0} fusion(%x, %i), kind=kLoop, calls=%gathers
  %new = bf16[64,1000]{1,0} fusion(%x, %i, %labels), kind=kInput, calls=%scatters
  %bare = bf16[64,1000]{1,0} scatter(%new, %i, %h), to_apply=%last
  ROOT %fresh = bf16[64,1000]{1,0} fusion(%i, %h), kind=kInput, calls=%of_zeros
}
"""


def test_a_scatter_writes_what_it_puts_and_a_gather_reads_what_it_takes():
    gathers, scatters, bare, fresh = hlo.Program(PUT).kernels
    assert gathers.reads == (64 * 2, 64 * 2 * 4)  # bfloat16 as it is read, not as converted
    assert (scatters.reads, scatters.writes) == ((0, 64 * 2 * 4, 64 * 4), (64 * 2,))
    assert (bare.reads, bare.writes) == ((0, 64 * 2 * 4, 64 * 2), (64 * 2,))
    # Zeros of its own have to be written.
    assert fresh.writes == (64 * 1000 * 2,)
