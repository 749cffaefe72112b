"""Tests for analogjax/planning/counting.py."""

import pytest

from analogjax.planning import counting, programs, report, topologies


def test_a_gpu_is_counted_as_make_programs_does(load, smollm):
  topology = topologies.parse("gpu:h100:2")
  sections = report.on_topology(load(), smollm, topology)
  counted = counting.count_programs(sections, smollm, topology)
  assert counted == programs.make_programs(sections, smollm, topology)


@pytest.mark.parametrize("name", ["tpu7x:2x2x1", "2*v5e:2x2", "gpu:gb200:8"])
def test_machines_that_are_not_here(load, smollm, name):
  topology = topologies.parse(name)
  sections = report.on_topology(load("mesh.data=2"), smollm, topology)
  found = counting.count_programs(sections, smollm, topology)
  stages = ["cache", "train.pretrain", "train.control", "train.distill"]
  assert [program.stage for program in found] == stages
  assert {program.how for program in found} == {"counted"}
  # Parameters and moments are split over fsdp alone, and float32.
  (last,) = [p for p in found if p.stage == "train.distill"]
  assert last.argument_bytes > 3 * 4 * 3_342_912 / 4
  assert {e.axes for e in last.exchanges} == {("data",), ("fsdp",)}


def test_a_live_teacher_has_a_step_of_its_own(load, smollm):
  topology = topologies.parse("gpu:h100:2")
  sections = load("train.distill.loss.teacher=live", "mesh.fsdp=2")
  found = counting.count_programs(sections, smollm, topology)
  live = found[-2]
  assert live.stage == "train.distill.teacher"
  # The student's state lies beside it.
  assert live.resident_bytes > 3 * 4 * 3_342_912 / 2
  one = report.make_report(
    sections,
    smollm,
    topology,
    count=counting.count_programs,
    make=counting.count_programs,
  )
  (cost,) = [cost for cost in one.costs if cost.stage == "train.distill"]
  parts = one.bounds["train.distill"], one.bounds["train.distill.teacher"]
  efficiency = sections.plan.efficiency
  assert cost.step_seconds == pytest.approx(
    sum(part.seconds for part in parts) / efficiency
  )
