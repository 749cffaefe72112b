"""Tests for analogjax/planning/collectives.py."""

import importlib
from pathlib import Path

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest
from tpu import needs_libtpu

from analogjax.cache import teacher_programs
from analogjax.distributed import sharding
from analogjax.planning import collectives, hlo
from analogjax.training import losses

SIZES = dict(data=1, fsdp=4, expert=1, tensor=2)


def by_kind(text):
  """(kind, axes) -> runs, bytes sent by one device, whether both are known."""
  found = collectives.find(hlo.parse(text), SIZES)
  return {
    (one.kind, " x ".join(one.axes)): (one.runs, one.sent_bytes, one.is_whole)
    for one in collectives.by_kind(found)
  }


def test_a_program_of_known_collectives():
  """Counted by hand: three iterations, and a sum over all at the end."""
  mesh = sharding.make_mesh(SIZES)

  def local(x_BD, w_YDF):
    def body(x_BD, w_DF):
      w_DF = jax.lax.all_gather(w_DF, "fsdp", axis=0, tiled=True)
      x_BD = jnp.tanh(x_BD @ w_DF)
      return jax.lax.psum(x_BD, "tensor"), None

    x_BD, _ = jax.lax.scan(body, x_BD, w_YDF)
    x_BD = jax.lax.ppermute(x_BD, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
    return jax.lax.psum(jnp.sum(x_BD), ("fsdp", "tensor"))

  rows, weights = P("fsdp"), P(None, "fsdp")
  shape = jax.ShapeDtypeStruct
  jitted = jax.jit(
    jax.shard_map(
      local, mesh=mesh, in_specs=(rows, weights), out_specs=P(), check_vma=False
    )
  )
  text = (
    jitted.lower(
      shape((8, 16), "float32", sharding=NamedSharding(mesh, rows)),
      shape((3, 16, 16), "float32", sharding=NamedSharding(mesh, weights)),
    )
    .compile()
    .as_text()
  )
  # 4 devices: 3 / 4 of [16, 16] floats; 2 devices: twice a half of [2, 16].
  assert by_kind(text) == {
    ("all-gather", "fsdp"): (3, 3 * 768, True),
    ("all-reduce", "tensor"): (3, 3 * 128, True),
    ("collective-permute", "fsdp"): (1, 128, True),
    ("all-reduce", "fsdp x tensor"): (1, 7, True),
  }


# Output of a TPU's compiler: a loop in steps of two around a permute, within a
# loop of unstated length; a gather in two pieces of one chain; a scatter that
# is written as a reduction.
TEXT = """
HloModule jit_step, is_scheduled=true

%gather_a (p: bf16[1,8]) -> bf16[4,8] {
  %p = bf16[1,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), \
channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, \
frontend_attributes={chain_id="0"}, metadata={op_name="take"}
}

%gather_b (p: bf16[1,8]) -> bf16[4,8] {
  %p.1 = bf16[1,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[4,8]{1,0} all-gather(%p.1), channel_id=7, \
replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, \
frontend_attributes={chain_id="0"}
}

%all-reduce-scatter (input: f32[64,8]) -> f32[16,8] {
  %input = f32[64,8]{1,0} parameter(0)
  %all-reduce.1 = f32[64,8]{1,0} all-reduce(%input), channel_id=3, \
replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  ROOT %dynamic-slice.1 = f32[16,8]{1,0} dynamic-slice(%all-reduce.1)
}

%inner_cond (wide.param: (bf16[4,8], u32[])) -> pred[] {
  %constant.4 = u32[]{:T(128)} constant(5)
  %wide.param = (bf16[4,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %count = u32[]{:T(128)} get-tuple-element(%wide.param), index=1
  ROOT %compare.1 = pred[] compare(%count, %constant.4), direction=LT
}

%inner_body (wide.param.1: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {
  %wide.param.1 = (bf16[4,8]{1,0}, u32[]{:T(128)}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%wide.param.1), index=0
  %count.1 = u32[]{:T(128)} get-tuple-element(%wide.param.1), index=1
  %two = u32[]{:T(128)} constant(2)
  %add.2 = u32[]{:T(128)} add(%count.1, %two)
  %collective-permute-start = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%x), channel_id=4, \
source_target_pairs={{0,2},{2,4},{4,6},{6,0},{1,3},{3,5},{5,7},{7,1}}
  %collective-permute-done = bf16[4,8]{1,0} collective-permute-done(%x)
  ROOT %tuple.1 = (bf16[4,8]{1,0}, /*index=1*/u32[]) \
tuple(%collective-permute-done, %add.2)
}

%outer_cond (param: (s32[])) -> pred[] {
  ROOT %until = pred[] custom-call(%param), custom_call_target="until"
}

%outer_body (param.1: (s32[])) -> (s32[]) {
  %kernel = f32[8]{0} custom-call(%param.1), frontend_attributes={
"about":"{\\"block\\": 512}"
}}, metadata={op_name="splash"}
  %while.1 = (bf16[4,8]{1,0}, u32[]) while(%t), condition=%inner_cond, \
body=%inner_body
  ROOT %reduced = (s32[]) custom-call(%while.1)
}

ENTRY %main (a: bf16[1,8]) -> bf16[4,8] {
  %fusion.1 = bf16[4,8]{1,0} fusion(%a), kind=kCustom, calls=%gather_a
  %fusion.2 = bf16[4,8]{1,0} fusion(%a), kind=kCustom, calls=%gather_b
  %fusion.3 = f32[16,8]{1,0} fusion(%b), kind=kCustom, \
calls=%all-reduce-scatter
  %while.2 = (s32[]) while(%c), condition=%outer_cond, body=%outer_body
  %all-reduce.2 = (f32[], f32[8]{0}) all-reduce(%d, %e), channel_id=9, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, to_apply=%add
  ROOT %all-reduce.3 = f32[8]{0} all-reduce(%d), channel_id=10, \
replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
}
"""


def test_what_a_tpu_makes_of_them():
  assert by_kind(TEXT) == {
    # 64 x 8 floats go in, of 4 devices.
    ("reduce-scatter of all-reduce", "fsdp"): (1, 64 * 8 * 4 * 3 // 4, True),
    # Counted 0, 2, 4 below 5; how often the loop around it runs is not known.
    ("collective-permute", "fsdp"): (3, 3 * 4 * 8 * 2, False),
    ("all-gather", "fsdp"): (1, 4 * 8 * 2 * 3 // 4, True),
    ("all-reduce", "tensor"): (1, 9 * 4, True),
  }


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
    ("[2,4]<=[4,2]T(1,0)", ("fsdp",)),
    ("[4,2]<=[8]", ("tensor",)),
    ("[1,8]<=[8]", ("fsdp", "tensor")),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", ("fsdp",)),
    ("mesh['axis_0'=4,'axis_1'=2] {'axis_1','axis_0'}", ("fsdp", "tensor")),
    ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", ("tensor",)),
    ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ("fsdp",)),
    ("{}", ("fsdp", "tensor")),
  ],
)
def test_groups_of_devices(groups, axes):
  line = (
    f"%x = f32[8]{{0}} all-reduce(%y), replica_groups={groups}, to_apply=%a"
  )
  found = collectives._groups(line, SIZES)
  assert np.unique(np.concatenate(found)).tolist() == list(range(8))
  assert collectives._axes(found, SIZES) == axes


@pytest.mark.medium
@pytest.mark.parametrize(
  ("axes", "kinds"),
  [
    (dict(data=2, fsdp=8, tensor=2), {"all-reduce"}),
    (dict(fsdp=16, tensor=2), {"all-reduce", "all-gather", "reduce-scatter"}),
  ],
  ids=["data", "fsdp"],
)
def test_what_a_training_step_sends_from_slice_to_slice(
  axes, kinds, tmp_path, monkeypatch
):
  """Along data only gradients; along fsdp weights, too."""
  needs_libtpu()
  benchmarks = Path(__file__).parents[1] / "benchmarks"
  monkeypatch.syspath_prepend(str(benchmarks))
  students = importlib.import_module("students")
  topology = topologies.get_topology_desc("v5e:4x4", "tpu", num_slices=2)
  mesh = sharding.make_mesh(axes, list(topology.devices))
  shape = dict(V=1024, D=256, Y=2, N=8, G=4, H=32, F=512, attention="xla")
  training = students.training(
    cfg=students.config("8B", **shape),
    mesh=mesh,
    objective=losses.Objective(chunk=256),
  )
  batch = jax.tree.map(
    lambda x: teacher_programs.shape_of(x, NamedSharding(mesh, sharding.ROWS)),
    students.make_batch("threshold", 32, 128, V=1024),
  )
  with jax.set_mesh(mesh):
    training.step.lower(training.abstract, batch, None).compile(
      compiler_options={
        "xla_dump_to": str(tmp_path),
        "xla_dump_hlo_as_text": True,
      }
    )
  (program,) = tmp_path.glob("*.after_optimizations.txt")
  parsed = hlo.parse(program.read_text("utf-8"))
  found = {
    one.kind: one.sent_bytes
    for one in collectives.by_kind(collectives.between_slices(parsed))
  }
  assert kinds <= set(found)
  if kinds == {"all-reduce"}:
    assert set(found) == kinds
    # A device's weights, in float32 at most and filled up to whole tiles.
    weights = sum(x.size for x in jax.tree.leaves(training.abstract.params))
    assert found["all-reduce"] < 2 * 4 * weights / 16
