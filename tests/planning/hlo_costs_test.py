"""Tests for analogjax/planning/hlo_costs.py."""

import functools

import jax
import jax.numpy as jnp
import pytest

from analogjax.planning import hlo, hlo_costs


def compiled(fn, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
  return jax.jit(fn).lower(*arguments).compile()


def costs(program):
  parsed = hlo.parse(program.as_text())
  return hlo_costs.matrix_flops(parsed), hlo_costs.accessed_bytes(parsed)


def layer(x_BD, w_DF):
  return jnp.tanh(x_BD @ w_DF)


def test_as_xla_counts_where_nothing_is_repeated():
  def fn(x_BD, v_DF, w_FD):
    return layer(layer(x_BD, v_DF), w_FD).sum(0)

  program = compiled(fn, (256, 512), (512, 1024), (1024, 512))
  theirs = program.cost_analysis()
  flops, moved = costs(program)
  assert flops == 2 * 2 * 256 * 512 * 1024
  assert flops == pytest.approx(theirs["flops"], rel=0.05)
  assert moved == pytest.approx(theirs["bytes accessed"], rel=0.05)


def test_a_loop_counts_as_often_as_it_runs():
  def fn(x_BD, w_YDD):
    return jax.lax.scan(lambda x, w: (layer(x, w), None), x_BD, w_YDD)[0]

  found = [costs(compiled(fn, (256, 512), (Y, 512, 512))) for Y in (3, 12)]
  assert [flops for flops, _ in found] == [
    2 * Y * 256 * 512 * 512 for Y in (3, 12)
  ]
  # A run takes its layer out of all layers, and reads it; x goes
  # through the product and through tanh.
  (_, few), (_, many) = found
  each = 4 * (3 * 512 * 512 + 4 * 256 * 512)
  assert (many - few) / 9 == pytest.approx(each, rel=0.01)
  # A body that holds a loop itself.
  twice = functools.partial(jax.lax.fori_loop, 0, 5)

  def nested(x_BD, w_YDD):
    return twice(lambda i, x: fn(x, w_YDD), x_BD)

  flops, _ = costs(compiled(nested, (256, 512), (3, 512, 512)))
  assert flops == 5 * 3 * 2 * 256 * 512 * 512


# A TPU's compiler's form of products, from programs for a v5p: heads are a side
# of a window, forward and backward, and most of the padded one meets nothing.
# The kernels are those of splash attention.
TPU = """
HloModule jit_step, is_scheduled=true

ENTRY %main (a: bf16[8192,1024]) -> bf16[8192,512] {
  %a = bf16[8192,1024]{1,0} parameter(0)
  %w = bf16[1024,512]{1,0} parameter(1)
  %c.1 = bf16[8192,512]{1,0:T(8,128)(2,1)} convolution(%a, %w), \
dim_labels=bf_io->bf
  %x = bf16[1,8192,4096]{2,1,0} parameter(2)
  %q = bf16[4096,8,128]{2,1,0} parameter(3)
  %c.2 = bf16[8192,8,128]{2,1,0} convolution(%x, %q), \
window={size=8 pad=7_7 rhs_reversal=1}, dim_labels=0bf_i0o->b0f
  %y = bf16[8192,8,128]{2,1,0} parameter(4)
  %o = bf16[8,128,4096]{2,1,0} parameter(5)
  %c.3 = bf16[8192,4096,1]{1,0,2} convolution(%y, %o), window={size=8}, \
dim_labels=b0f_0io->bf0
  %mask = s8[1,16,16]{2,1,0} parameter(6)
  %queries = bf16[4,8,8192,128]{3,2,1,0} parameter(7)
  %splash_mha_fwd_segmented_residuals.3 = bf16[4,8,8192,128]{3,2,1,0} \
custom-call(%mask, %queries), custom_call_target="tpu_custom_call"
  %splash_mha_dkv_segmented_no_residuals.1 = bf16[4,8,8192,128]{3,2,1,0} \
custom-call(%mask, %queries), custom_call_target="tpu_custom_call"
  ROOT %r = bf16[8192,512]{1,0} copy(%c.1)
}
"""


def test_products_of_a_tpu():
  matrix = 2 * 8192 * 1024 * 512
  heads = 2 * 2 * 8192 * 4096 * 8 * 128
  # 17 / 32 of the scores lie in blocks at or below the diagonal.
  product = 2 * 4 * 8 * 8192 * 8192 * 128 * 17 / 32
  found = hlo_costs.matrix_flops(hlo.parse(TPU))
  assert found == matrix + heads + (2 + 4) * product


NESTED = """
HloModule jit_step, is_scheduled=true

%one_layer (w: f32[32,64,64], i: s32[]) -> f32[64,64] {
  %w = f32[32,64,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = f32[1,64,64]{2,1,0} dynamic-slice(%w, %i, %zero, %zero), \
dynamic_slice_sizes={1,64,64}
  ROOT %flat = f32[64,64]{1,0} bitcast(%part)
}

%product (w.1: f32[32,64,64], i.1: s32[], x: f32[128,64]) -> f32[128,64] {
  %w.1 = f32[32,64,64]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %x = f32[128,64]{1,0} parameter(2)
  %layer = f32[64,64]{1,0} fusion(%w.1, %i.1), kind=kLoop, calls=%one_layer
  ROOT %dot = f32[128,64]{1,0} dot(%x, %layer), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
}

%put (all: f32[32,128,64], i.2: s32[], y: f32[128,64]) -> f32[32,128,64] {
  %all = f32[32,128,64]{2,1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %y = f32[128,64]{1,0} parameter(2)
  %zero.1 = s32[] constant(0)
  %row = f32[1,128,64]{2,1,0} bitcast(%y)
  ROOT %written = f32[32,128,64]{2,1,0} dynamic-update-slice(%all, %row, \
%i.2, %zero.1, %zero.1)
}

ENTRY %main (a: f32[32,64,64], b: s32[]) -> f32[32,128,64] {
  %a = f32[32,64,64]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %near = f32[128,64]{1,0:T(8,128)S(1)} parameter(2)
  %kept = f32[32,128,64]{2,1,0} parameter(3)
  %fusion.1 = f32[128,64]{1,0} fusion(%a, %b, %near), kind=kOutput, \
calls=%product
  ROOT %fusion.2 = f32[32,128,64]{2,1,0} fusion(%kept, %b, %fusion.1), \
kind=kLoop, calls=%put
}
"""


def test_a_slice_within_fusions_is_not_the_whole():
  """Nor are arrays on the chip; an index has four bytes."""
  layer, row, index = 4 * 64 * 64, 4 * 128 * 64, 4
  product = layer + index + row  # And x, which is near.
  put = row + index + row
  found = hlo_costs.accessed_bytes(hlo.parse(NESTED))
  assert found == product + put
