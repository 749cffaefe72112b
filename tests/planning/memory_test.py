"""Tests for analogjax/planning/memory.py."""

import dataclasses

import pytest

from analogjax.planning import memory, report, topologies


@pytest.fixture
def plan(load, smollm, count):
  """(overrides, topology) -> sections, topology, make."""

  def make(*overrides, name="cpu:8"):
    topology = topologies.parse(name)
    sections = report.on_topology(load(*overrides), smollm, topology)
    return sections, topology, lambda s: count(s, smollm, topology)

  return make


def of_stage(programs, stage):
  return next(p for p in programs if p.stage == stage)


def limited(sections, topology, bytes_of_a_program):
  """A device whose memory lets a program take this many bytes."""
  memory = bytes_of_a_program / sections.plan.memory_fraction
  chip = dataclasses.replace(topology.chip, memory_bytes=memory)
  return dataclasses.replace(topology, chip=chip)


def test_a_program_fits_up_to_its_part_of_the_memory(plan):
  sections, topology, make = plan("plan.memory_fraction=0.5")
  assert memory.limit_bytes(sections, topology) == 4 * 2**30
  program = make(sections)[0]
  size = program.memory_bytes
  assert memory.check(program, size).fits
  fit = memory.check(program, size - 1)
  assert not fit.fits and fit.memory_bytes == size and fit.remedies == ()


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("RESOURCE_EXHAUSTED: Used 101.20G of 95.74G hbm.", 101.2 * 2**30),
    ("Ran out of memory. Used 800.5M of 700M hbm", 800.5 * 2**20),
    # libtpu 0.0.52.
    (
      "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM,"
      " the total memory required for HLO temporaries (47.98G) exceeds"
      " available HBM (15.75G). HLO module: jit_train_step.\nSee elsewhere.",
      47.98 * 2**30 + 1e9 + 2e9,
    ),
    ("RESOURCE_EXHAUSTED: out of memory", None),
  ],
)
def test_what_the_compiler_said_it_needs(plan, text, expected):
  sections, _, make = plan()
  refused = dataclasses.replace(
    make(sections)[0],
    too_large=text,
    argument_bytes=1e9,
    resident_bytes=2e9,
  )
  fit = memory.check(refused, 1e18)
  assert not fit.fits and fit.said == text
  assert fit.memory_bytes == (expected and pytest.approx(expected))


def remedies(plan, smollm, stage, part, *overrides, name="cpu:8"):
  """Remedies by the first field that they set, with `part` of the need."""
  sections, topology, make = plan(*overrides, name=name)
  program = of_stage(make(sections), stage)
  topology = limited(sections, topology, part * program.memory_bytes)
  found = memory.remedies(sections, smollm, topology, program, make)
  for remedy in found:
    changed = memory.with_changes(sections, remedy.changes)
    size = of_stage(make(changed), stage).memory_bytes
    # Worked out, not guessed.
    assert remedy.memory_bytes == size <= part * program.memory_bytes
  return {next(iter(remedy.changes)): remedy for remedy in found}


def test_a_training_step_that_does_not_fit(plan, smollm):
  stage = "train.distill"
  few = ("train.distill.loss.chunk=64", "data.L=1024")
  found = remedies(plan, smollm, stage, 0.7, *few)
  assert found["student.remat"].changes == {"student.remat": "dots"}
  assert found["student.remat"].note == "computes more"
  assert found[f"{stage}.microbatches"].changes[f"{stage}.microbatches"] == 2
  assert found[f"{stage}.batch_rows"].note == "changes the training"
  assert f"{stage}.loss.chunk" not in found  # Logits are not what is large.
  # The mildest that does: half of the parts do not fit any more.
  found = remedies(plan, smollm, stage, 0.45, *few)
  assert found[f"{stage}.microbatches"].changes[f"{stage}.microbatches"] == 4


def test_logits_that_do_not_fit(plan, smollm):
  found = remedies(plan, smollm, "cache", 0.7, "cache.chunk=256")
  assert found["cache.chunk"].changes == {"cache.chunk": 128}
  assert not {"student.remat", "teacher.dtype"} & found.keys()
  found = remedies(plan, smollm, "cache", 0.96, "cache.chunk=256")
  # 67 MB of parameters beside 604 MB of logits.
  assert found["teacher.dtype"].changes == {"teacher.dtype": "bfloat16"}
  assert found["teacher.dtype"].note.startswith("changes the records")


def test_a_mesh_is_one_of_the_machine_s(plan, smollm):
  found = remedies(plan, smollm, "cache", 0.8, "mesh.data=8", "mesh.fsdp=1")
  mesh = found["mesh.data"].changes
  assert set(mesh) == {
    f"mesh.{a}" for a in ("data", "fsdp", "expert", "tensor")
  }
  assert mesh["mesh.data"] * mesh["mesh.fsdp"] == 8 and mesh["mesh.fsdp"] > 1


def test_a_closed_form_that_is_too_low_is_raised(plan, smollm):
  sections, topology, make = plan("train.distill.loss.chunk=64", "data.L=1024")
  counted = of_stage(make(sections), "train.distill")
  compiled = dataclasses.replace(
    counted, temporary_bytes=counted.temporary_bytes + counted.memory_bytes
  )
  limit = 0.7 * compiled.memory_bytes  # More than the closed form counts.
  topology = limited(sections, topology, limit)
  found = memory.remedies(sections, smollm, topology, compiled, make)
  for remedy in found:
    changed = memory.with_changes(sections, remedy.changes)
    size = of_stage(make(changed), "train.distill").memory_bytes
    assert remedy.memory_bytes == pytest.approx(2 * size)
    assert remedy.memory_bytes <= limit
  assert found


def test_where_nothing_helps_nothing_is_proposed(plan, smollm):
  assert remedies(plan, smollm, "train.distill", 1e-4) == {}


def test_changes_are_made_at_once(load):
  sections = load()
  changed = memory.with_changes(
    sections,
    {
      "mesh.data": 2,
      "mesh.fsdp": 4,
      "train.distill.loss.chunk": 32,
      "train.distill.microbatches": 4,
      "student.remat": "full",
    },
  )
  assert (changed.mesh.data, changed.mesh.fsdp) == (2, 4)
  phase = changed.train.phase["distill"]
  assert phase.loss.chunk == 32 and phase.microbatches == 4
  assert changed.student.remat == "full"
  assert changed.train.phase["control"] == sections.train.phase["control"]
  assert sections.train.phase["distill"].microbatches == 1
  with pytest.raises(ValueError, match="microbatches: expected a divisor of"):
    memory.with_changes(sections, {"train.distill.microbatches": 5})
