"""Tests for analogjax/planning/report.py, its tables and its picture."""

import dataclasses
import io
import json

import matplotlib.image
import pytest
import rich.console

from analogjax.planning import (
  closed_form,
  picture,
  report,
  tables,
  topologies,
)

STAGES = ["cache", "train.pretrain", "train.control", "train.distill"]


@pytest.fixture
def make(load, smollm, count):
  """(topology, overrides) -> Report."""

  def make(name, *overrides, memory=None, searches=False, change=None):
    topology = topologies.parse(name)
    if memory is not None:
      chip = dataclasses.replace(topology.chip, memory_bytes=memory)
      topology = dataclasses.replace(topology, chip=chip)

    def changed(*args):
      return [change(program) for program in count(*args)]

    return report.make_report(
      load(*overrides),
      smollm,
      topology,
      count=count,
      make=changed if change else count,
      searches=searches,
    )

  return make


def shown(*reports, gates=(), width=80):
  out = io.StringIO()
  console = rich.console.Console(file=out, width=width)
  tables.print_reports(reports, gates, console)
  return out.getvalue()


def test_a_report_says_all_of_every_stage(make):
  one = make("gpu:h100:8")
  assert one.mesh == dict(data=1, fsdp=8, expert=1, tensor=1)
  assert [p.stage for p in one.programs] == STAGES
  assert [f.stage for f in one.fits] == STAGES and one.is_whole
  assert list(one.bounds) == STAGES
  assert [c.stage for c in one.costs] == [*STAGES, "measure"]
  assert one.price == 12.29
  assert one.total.dollars == pytest.approx(one.total.device_hours * 12.29)


def test_the_teacher_s_dtype_is_that_of_its_step(make):
  full, half = (
    make("gpu:h100:8", f"teacher.dtype={dtype}").bounds
    for dtype in ("float32", "bfloat16")
  )
  assert full["cache"].compute == pytest.approx(2 * half["cache"].compute)
  assert full["train.distill"] == half["train.distill"]


def test_json_holds_what_the_tables_show(make):
  found = json.loads(json.dumps(report.to_json(make("gpu:h100:8"))))
  assert found["topology"]["devices"] == 8
  assert found["topology"]["chip"]["source"].startswith("NVIDIA")
  stage = found["stages"][3]
  assert stage["stage"] == "train.distill" and stage["fits"]
  bound = stage["bound"]
  assert bound["step_seconds"] == max(bound["seconds"].values())
  assert bound["seconds"][bound["binds"]] == bound["step_seconds"]
  parts = ("argument", "temporary", "output", "code")
  assert stage["memory_bytes"] == sum(stage[f"{p}_bytes"] for p in parts)
  assert stage["exchanges"][0]["axes"] == ["fsdp"]
  assert found["total"]["days"] == found["total"]["seconds"] / 86_400
  steps = [row["step"] for row in found["table_1"]]
  assert steps[0] == "Train analog model from scratch"
  assert found["search"] is None


def refused(program):
  if program.stage != "train.distill":
    return program
  return dataclasses.replace(
    program, too_large="Used 99.5G of 8G hbm\nthe second line"
  )


def test_a_program_that_the_compiler_refused(make):
  one = make("gpu:h100:8", change=refused)
  assert not one.is_whole and "train.distill" not in one.bounds
  assert [c.stage for c in one.costs] == [*STAGES[:3], "measure"]
  found = json.loads(json.dumps(report.to_json(one)))
  assert not found["fits"] and found["stages"][3]["bound"] is None
  (row,) = [r for r in one.table_1 if r.step.startswith("Distill")]
  assert row.device_hours is None and row.dollars is None
  text = shown(one)
  assert "Does not fit: train.distill." in text
  assert "Used 99.5G of 8G hbm" in text and "second line" not in text
  # The compiler asks for more than the closed form counts.
  assert one.fits[3].memory_bytes == 99.5 * 2**30
  assert one.fits[3].remedies[0].factor > 100
  assert "counted times " in text


def test_where_no_change_is_enough_that_is_said(make):
  assert "No single change" in shown(make("gpu:h100:8", memory=1e6))


def test_what_would_make_it_fit_is_printed(make):
  room = max(p.memory_bytes for p in make("gpu:h100:8").programs)
  one = make("gpu:h100:8", memory=0.9 * room / 0.92)
  (fit,) = [fit for fit in one.fits if not fit.fits]
  assert fit.stage == "cache"
  text = " ".join(shown(one).split())
  assert "Would fit with --config.cache.chunk=32" in text
  assert "Where not everything fits, totals are of the stages" in text


def test_tables_fit_80_columns(make):
  reports = [make(name) for name in ("gpu:h100:8", "cpu:8", "2*v5e:2x2")]
  text = shown(*reports, make("v5p:2x2x1", searches=True))
  assert "\u2026" not in text  # Rich cuts a cell short with it.
  assert max(map(len, text.splitlines())) <= 80
  for part in ("v5p:2x2x1", "2*v5e:2x2", "train.distill", "Search: "):
    assert part in text


def test_machines_stand_side_by_side(make):
  names = ("gpu:h100:8", "gpu:a100:4")
  text = shown(*map(make, names)).splitlines()
  head = next(line for line in text if all(name in line for name in names))
  (devices,) = [x for x in text if x.split()[:1] == ["devices"]]
  assert devices.split() == ["devices", "8", "4"]
  assert text.index(head) < text.index(devices)


def test_what_is_counted_is_not_made_to_see_whether_it_fits(make):
  found = make("gpu:h100:8", memory=1e6, searches=True).search
  assert found.trials == () and found.counted > 0
  assert "Nothing was found that fits" in shown(
    make("gpu:h100:8", memory=1e6, searches=True)
  )


def test_seconds_have_a_unit_that_suits_them(make):
  short, long = shown(make("gpu:h100:8")), shown(make("cpu:1"))
  assert "step, ms" in short and "step, s " not in short
  assert "step, s " in long


def test_the_same_exchanges_are_shown_once(make):
  text = shown(make("gpu:h100:8"))
  assert text.count("all-gather") == 2 and text.count("(the same)") == 2


def test_gates(load, smollm):
  def passes(*overrides, model=smollm):
    found = report.gates(load(*overrides), model)
    return {gate["gate"]: gate["passes"] for gate in found}

  good = {"size window": True, "family": True, "same data": None}
  assert passes() == good | {"distilled": True}
  assert not passes("student.D=8")["size window"]
  assert not passes("release.phase=control")["distilled"]
  larger = dataclasses.replace(smollm, V=50_000)
  assert not passes(model=larger)["family"]
  (family,) = [
    gate
    for gate in report.gates(load("student.mlp_bias=true"), smollm)
    if gate["gate"] == "family"
  ]
  assert family["passes"] and "MLP biases" in family["because"]


def test_a_live_teacher_with_devices_of_its_own(load, smollm):
  sections = load("train.distill.loss.teacher=live")
  mesh = dataclasses.replace(sections.mesh, fsdp=1)
  sections = dataclasses.replace(
    sections, teacher=dataclasses.replace(sections.teacher, mesh=mesh)
  )
  with pytest.raises(ValueError, match="teacher.mesh: a plan for a topology"):
    report.on_topology(sections, smollm, topologies.parse("cpu:8"))


def test_the_picture_has_a_line_for_each(make, tmp_path):
  reports = [make("gpu:h100:8"), make("cpu:8", change=refused)]
  picture.draw(reports, tmp_path / "a.png")
  height, width, _ = matplotlib.image.imread(tmp_path / "a.png").shape
  assert (height, width) == (2 * 418, 1540)


def test_what_needs_no_machines_is_printed_as_before(load, smollm):
  plan = closed_form.make_outline(load(), smollm)
  assert "memory_bytes_per_device" not in plan
  out = io.StringIO()
  tables.print_outline(plan, rich.console.Console(file=out, width=80))
  assert "134,515,008" in out.getvalue()


@pytest.mark.parametrize(
  ("seconds", "expected"),
  [
    (0.5, "0.5 seconds"),
    (192, "3.2 minutes"),
    (36_000, "10 hours"),
    (2_690_000, "31 days"),
    (86_400_000, "1,000 days"),
  ],
)
def test_the_picture_rounds_durations(seconds, expected):
  assert picture.duration(seconds) == expected


def test_no_header_is_cut_in_a_narrow_terminal(make):
  out = io.StringIO()
  console = rich.console.Console(file=out, width=40)
  tables.print_reports([make("gpu:h100:8")], [], console)
  assert "\u2026" not in out.getvalue()
  for header in ("compute", "tokens/s", "device-hours", "arguments"):
    assert header in out.getvalue()
