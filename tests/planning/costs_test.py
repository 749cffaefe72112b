"""Tests for analogjax/planning/costs.py."""

import dataclasses

import pytest

from analogjax.config.plan import PriceConfig
from analogjax.planning import costs, roofline, topologies


def bound(stage, seconds, mfu=0.5):
  return roofline.Bound(
    stage=stage,
    compute=seconds,
    memory=None,
    fast=0.0,
    slow=0.0,
    mfu=mfu,
    is_whole=True,
  )


def bounds(**seconds):
  stages = {name.replace("_", "."): s for name, s in seconds.items()}
  return {stage: bound(stage, s) for stage, s in stages.items()}


@pytest.fixture
def by_stage(load, smollm):
  """(bounds, overrides) -> costs by stage, on eight H100."""

  def make(found, *overrides, name="gpu:h100:8", price=None):
    sections = load(*overrides)
    if price is not None:
      plan = dataclasses.replace(sections.plan, chip={"h100": price})
      sections = dataclasses.replace(sections, plan=plan)
    listed = costs.stage_costs(sections, smollm, topologies.parse(name), found)
    return sections, {cost.stage: cost for cost in listed}

  return make


def test_a_phase_by_hand(by_stage):
  _, found = by_stage(
    bounds(train_distill=3.0), "plan.efficiency=0.5", "plan.pue=1.5"
  )
  cost = found["train.distill"]
  assert list(found) == ["train.distill"]
  assert cost.step_seconds == 6.0 and cost.mfu == 0.25
  assert cost.tokens == 160 * 32 * 256
  assert cost.tokens_per_second == pytest.approx(32 * 256 / 6)
  assert cost.seconds == 960 and cost.days == pytest.approx(960 / 86_400)
  assert cost.device_hours == pytest.approx(960 / 3600 * 8)
  assert cost.dollars == pytest.approx(960 / 3600 * 8 * 12.29)
  # A DGX H100 has 10.2 kW.
  assert cost.kwh == pytest.approx(960 / 3600 * 10.2 * 1.5)


def test_the_cache_and_measuring_are_forward_passes(by_stage, smollm):
  sections, found = by_stage(bounds(cache=2.0), "plan.efficiency=1")
  # 352 rows in batches of 32.
  assert found["cache"].seconds == 11 * 2.0
  assert found["cache"].tokens == 352 * 256
  assert found["measure"].mfu == found["cache"].mfu == 0.5
  more = by_stage(
    bounds(cache=2.0), "plan.efficiency=1", "measure.phases=distill"
  )[1]
  assert more["measure"].seconds < found["measure"].seconds
  # Half of the peak of float32 for the teacher and two students.
  forward = costs.sizes.forward_flops_per_token
  flops = forward(smollm, 256) + 2 * forward(sections.student, 256)
  flops *= 32 * 256
  assert found["measure"].seconds == pytest.approx(flops / (8 * 494.7e12 / 2))


def test_a_live_teacher_is_a_part_of_each_step(by_stage):
  found = bounds(train_distill=3.0, train_distill_teacher=1.0)
  found["train.distill"] = bound("train.distill", 3.0, mfu=0.2)
  _, by = by_stage(found, "plan.efficiency=1")
  assert by["train.distill"].step_seconds == 4.0
  assert by["train.distill"].mfu == pytest.approx((3 * 0.2 + 1 * 0.5) / 4)


def test_a_price_that_is_not_known_is_no_zero(by_stage):
  zero = PriceConfig(dollars_per_hour=0.0)
  for price, name in ((zero, "gpu:h100:8"), (None, "gpu:gb200:8")):
    _, found = by_stage(bounds(train_distill=1.0), name=name, price=price)
    assert found["train.distill"].dollars is None
    assert costs.total(list(found.values())).dollars is None


def test_watts_of_the_config_count(by_stage):
  _, found = by_stage(
    bounds(train_distill=3600.0),
    *("plan.pue=1", "plan.efficiency=1"),
    price=PriceConfig(watts=500),
  )
  assert found["train.distill"].kwh == pytest.approx(160 * 8 * 0.5)


def test_the_total_adds_up(by_stage):
  _, found = by_stage(bounds(cache=1.0, train_control=2.0, train_distill=3.0))
  total = costs.total(list(found.values()))
  for field in ("seconds", "device_hours", "dollars", "kwh", "tokens"):
    parts = [getattr(cost, field) for cost in found.values()]
    assert getattr(total, field) == pytest.approx(sum(parts))
  assert total.mfu == pytest.approx(0.3)  # 0.5 of the peak, at 0.6 of that.
  assert costs.total([]) is None


def test_traffic_of_the_cache_by_hand(by_stage):
  sections, found = by_stage(
    bounds(cache=2.0, train_distill=3.0), "plan.efficiency=1"
  )
  traffic = costs.cache_traffic(sections, list(found.values()))
  # 320 and 32 rows in objects of 32, of 15 arrays each.
  assert traffic.objects == 11 * 15
  per_row = traffic.bytes / 352
  assert per_row == pytest.approx(256 * 27.9, rel=0.01)
  assert traffic.bytes_per_object == pytest.approx(traffic.bytes / 165)
  assert traffic.write_requests_per_second == 165 / 22
  assert traffic.write_bytes_per_second == traffic.bytes / 22
  # 32 rows every three seconds, each of them one read of every array.
  reads = traffic.read_requests_per_second
  assert reads == {"distill": pytest.approx(32 * 15 / 3)}
  assert traffic.read_bytes_per_second["distill"] == pytest.approx(
    32 / 3 * per_row
  )
  gb_months = traffic.bytes / 1e9 * 2
  reads = 2 * (160 * 32 * 15 + 165)  # distill and control.
  dollars = gb_months * 0.023 + reads * 0.4e-6 + 165 * 5e-6
  assert traffic.dollars == pytest.approx(dollars)


def test_large_objects_make_few_requests(by_stage):
  sections, found = by_stage(bounds(cache=2.0), "cache.rows_per_object=64")
  traffic = costs.cache_traffic(sections, list(found.values()))
  assert traffic.objects == (5 + 1) * 15
  alone = costs.cache_traffic(sections, [])
  assert alone.write_requests_per_second is None
  assert alone.read_requests_per_second == {}


def test_table_1_of_the_paper(load):
  """Its rows, from its hours: p5.48xlarge at $98.32 for eight GPUs."""
  sections = load(
    # A Llama of 8 billion.
    *("student.D=4096", "student.Y=32", "student.N=32", "student.G=8"),
    *("student.H=128", "student.F=14336", "student.V=128256"),
    *("student.tie_embeddings=false", "release.dtype=bfloat16"),
  )
  hours = {"train.pretrain": 5700, "train.distill": 1000}
  listed = [
    costs.StageCost(
      stage=stage,
      tokens=1,
      step_seconds=1.0,
      tokens_per_second=1.0,
      mfu=0.4,
      seconds=1.0,
      device_hours=number,
      dollars=number * 98.32 / 8,
      kwh=1.0,
    )
    for stage, number in hours.items()
  ]
  traffic = costs.cache_traffic(sections, listed)
  rows = {row.step: row for row in costs.table_1(sections, listed, traffic)}
  scratch = rows["Train analog model from scratch"]
  assert scratch.device_hours == 5700 and round(scratch.dollars) == 70_053
  distill = rows["Distill frontier model to analog"]
  assert distill.device_hours == 1000 and round(distill.dollars) == 12_290
  # 10 TB at 0.09 and 10 TB at 0.085 a GB; 16 GB for 36 months. The paper has
  # 1,813.
  hosting = rows["Weight hosting and bandwidth"].dollars
  assert hosting == pytest.approx(1792 + 8.03 * 2 * 0.023 * 36, abs=0.1)
  assert abs(hosting - 1813) < 10
  assert rows["Teacher inference"].dollars is None
  assert not rows["Teacher inference"].is_paper_s
  assert rows["Total analog cost"].dollars is None
  assert rows["Phases to compare with"].stages == ("train.control",)
  assert rows["Safety fine-tune/RLHF"].note == "not built"


def test_phases_beside_the_release_are_not_in_the_total(by_stage):
  found = bounds(
    cache=1.0, train_pretrain=2.0, train_control=4.0, train_distill=8.0
  )
  sections, by = by_stage(found)
  traffic = costs.cache_traffic(sections, list(by.values()))
  rows = {
    row.step: row for row in costs.table_1(sections, list(by.values()), traffic)
  }
  whole = rows["Total analog cost"]
  hours = sum(c.device_hours for s, c in by.items() if s != "train.control")
  assert whole.device_hours == pytest.approx(hours)
  parts = [r.dollars for step, r in rows.items() if "Phases" not in step]
  assert whole.dollars == pytest.approx(sum(parts) - whole.dollars)
  # Another release, another table.
  released = dataclasses.replace(
    sections,
    release=dataclasses.replace(sections.release, phase="pretrain"),
    # Which is no reference then.
    safety=dataclasses.replace(
      sections.safety, phases=("control",), reference="control"
    ),
  )
  rows = costs.table_1(released, list(by.values()), traffic)
  assert rows[-1].stages == ("train.control", "train.distill")
  assert rows[1].stages == () and rows[1].dollars == 0
