"""Tests for analogjax/planning/compile_jobs.py."""

import dataclasses
import json

import jax
import pytest
from tpu import needs_libtpu

from analogjax.planning import compile_jobs, program_cost

PROGRAM = program_cost.ProgramCost(
  stage="train.distill",
  how="compiled for v5p:4x4x4",
  tokens=2,
  flops=3.5,
  executed_flops=None,
  accessed_bytes=4.0,
  argument_bytes=5,
  temporary_bytes=6,
  output_bytes=7,
  code_bytes=8,
  largest=(("logits of a chunk", 6.0), ("batch", 5.0)),
  exchanges=(
    program_cost.Exchange(
      kind="all-gather",
      axes=("data", "fsdp"),
      runs=2,
      sent_bytes=9.0,
      is_whole=False,
    ),
  ),
  too_large="no room",
  compile_seconds=1.5,
  resident_bytes=1.0,
)

# One phase, from the beginning.
DISTILL = (
  *("train.phases=distill", "train.distill.init_from="),
  "measure.phases=distill",
)


@pytest.fixture(autouse=True)
def compile_fast():
  """The compared values do not depend on how well the code is optimized."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def test_every_program_of_a_run_and_each_once(
  sections, teacher, machine, tmp_path
):
  parts = "train.distill.microbatches=2"
  cfg, said = sections(*DISTILL, "mesh.fsdp=2", parts), []
  make = lambda: compile_jobs.make_programs(  # noqa: E731
    cfg, teacher, machine("cpu:2", 2), folder=tmp_path, say=said.append
  )
  found = make()
  stages = [program.stage for program in found]
  assert stages == ["cache", "train.distill", "train.distill.eval"]
  assert len(said) == len(found)
  _, train, of_eval = found
  # Half a batch on half the devices; parameters and two moments, float32.
  student = 512 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 64) + 32
  state = dict(train.largest)
  assert state["parameters"] == state["first moments"] == 4 * student / 2
  assert train.tokens == 8 * 64
  assert train.memory_bytes > train.argument_bytes > 3 * 4 * student / 2
  assert {e.axes for e in train.exchanges} == {("fsdp",)}
  assert all(e.is_whole and e.sent_bytes > 0 for e in train.exchanges)
  # The moments are on the device during an evaluation.
  assert of_eval.resident_bytes == pytest.approx(2 * 4 * student / 2, rel=0.01)
  # A second time all is there.
  said.clear()
  assert make() == found and not said


def test_programs_that_differ_in_constants_are_compiled_once(
  sections, teacher, machine
):
  said = []
  found = compile_jobs.make_programs(
    sections(
      *("train.control.optimizer.learning_rate=1e-4", "train.control.seed=7"),
      *("train.control.num_steps=99", "train.control.optimizer.b2=0.9"),
      "train.phases=pretrain,control",
      *("measure.phases=control", "release.phase=control"),
    ),
    teacher,
    machine("cpu:1", 1),
    say=said.append,
  )
  assert [p.stage for p in found] == [
    "cache",
    "train.pretrain",
    "train.control",
  ]
  assert len(said) == 2


@pytest.mark.medium
def test_more_devices_than_there_are_here(sections, teacher, machine):
  """A separate process simulates them."""
  rows = ("cache.batch_rows=16", "train.distill.batch_rows=16")
  cfg = sections(*DISTILL, *rows, "mesh.fsdp=16")
  assert len(jax.devices()) < 16
  found = compile_jobs.make_programs(cfg, teacher, machine("cpu:16", 16))
  assert [p.stage for p in found] == ["cache", "train.distill"]
  assert all(p.temporary_bytes > 0 for p in found)


def test_a_live_teacher(sections, teacher, machine):
  cfg = sections(*DISTILL, "train.distill.loss.teacher=live")
  found = compile_jobs.make_programs(cfg, teacher, machine("cpu:1", 1))
  _, of_teacher, of_student = found
  assert of_teacher.stage == "train.distill.teacher"
  # Each is on the device of the other; the unembedding is an argument of both.
  params = dict(of_teacher.largest)["teacher's parameters"]
  assert params == 4 * teacher.num_parameters
  head = 4 * teacher.V * teacher.D
  rows = dict(of_student.largest)["batch"]  # One at work, three around it.
  assert of_student.resident_bytes == params - head + 3 * rows
  assert dict(of_student.largest)["teacher's unembedding"] == head
  names = ("parameters", "first moments", "second moments", "counts")
  state = sum(dict(of_student.largest)[name] for name in names)
  # Arguments that the teacher's step does not read are there all the same.
  assert of_teacher.resident_bytes >= state + head
  assert (
    of_teacher.argument_bytes + of_teacher.resident_bytes
    == state + params + 4 * rows
  )


@pytest.mark.parametrize(
  ("overrides", "number", "message"),
  [
    (["mesh.fsdp=3"], 4, "fsdp=3, .* does not match the 4 devices"),
    (["mesh.tensor=4"], 4, "tensor=4 does not divide G=2 .dimension G of"),
    (["train.distill.batch_rows=6", "mesh.data=4"], 4, "distill.batch_rows=6"),
    (["cache.batch_rows=2", "mesh.data=4"], 4, "cache.batch_rows=2"),
    (["student.attention=splash"], 1, "needs a TPU .found cpu."),
  ],
)
def test_what_cannot_be(sections, teacher, machine, overrides, number, message):
  with pytest.raises(ValueError, match=message):
    compile_jobs.make_programs(
      sections(*DISTILL, *overrides), teacher, machine(f"cpu:{number}", number)
    )


def test_without_libtpu(sections, teacher, machine, monkeypatch):
  monkeypatch.setenv("TPU_LIBRARY_PATH", "/nowhere/libtpu.so")
  with pytest.raises(ValueError, match="no file /nowhere/libtpu.so. Install"):
    compile_jobs.make_programs(
      sections(), teacher, machine("v5e:2x2", 4, chip="v5e")
    )


def test_a_compiler_that_gives_up(sections, teacher, machine, monkeypatch):
  """As libtpu does on some programs; see docs/experiments.md."""

  def give_up(program, platform):
    raise jax.errors.JaxRuntimeError("INTERNAL: Value is not placed.")

  monkeypatch.setattr(compile_jobs.compiled, "compile_text", give_up)
  message = "cache: the compiler for cpu:1 gives up.*Value is not placed"
  with pytest.raises(ValueError, match=message):
    compile_jobs.make_programs(sections(*DISTILL), teacher, machine("cpu:1", 1))


@pytest.fixture
def libtpu():
  needs_libtpu()


@pytest.mark.medium
def test_for_several_slices_of_tpus(sections, teacher, machine, libtpu):
  del libtpu
  slices = dataclasses.replace(
    machine("2*v5e:2x2", 4, chip="v5e"), shape=(2, 2), num_slices=2
  )
  cfg = sections(*DISTILL, "mesh.data=2", "mesh.fsdp=4")
  of_cache, train = compile_jobs.make_programs(cfg, teacher, slices)
  assert of_cache.how == train.how == "compiled for 2*v5e:2x2"
  assert train.code_bytes > 0 and train.temporary_bytes > 0
  assert dict(train.largest)["parameters"] > 0
  assert ("fsdp",) in {e.axes for e in train.exchanges}
  # The data axis counts the slices: gradients go between them, once.
  between = [e for e in train.exchanges if not e.axes]
  assert {e.kind for e in between} == {"all-reduce"}
  gradient = dict(train.largest)["parameters"]
  assert 0.5 * gradient < sum(e.sent_bytes for e in between) < 8 * gradient
  assert not [e for e in of_cache.exchanges if not e.axes]


@pytest.mark.medium
def test_what_does_not_fit_a_tpu(sections, teacher, machine, libtpu):
  del libtpu
  cfg = sections(
    *DISTILL,
    *("student.V=32000", "student.D=4096", "student.F=16384", "student.Y=8"),
    *("student.max_positions=2048", "data.L=2048"),
    "train.distill.batch_rows=64",
  )
  teacher = dataclasses.replace(teacher, V=32_000)
  of_cache, train = compile_jobs.make_programs(
    cfg, teacher, dataclasses.replace(machine("v5e:1x1", 1, chip="v5e"))
  )
  assert not of_cache.too_large
  assert "HBM" in train.too_large and "15.75G" in train.too_large
  # Parameters and two moments, float32. What is too large is known as well.
  assert train.argument_bytes > 3 * 4 * 1.5e9
  assert train.temporary_bytes > 2**34
  assert train.largest[0][0] == "activations kept for the backward pass"


@pytest.mark.parametrize("name", ["v5e:9x9", "v0:2x2"])
def test_a_topology_that_libtpu_does_not_know(
  sections, teacher, machine, libtpu, name
):
  del libtpu
  with pytest.raises(ValueError, match=f"{name}: libtpu knows no such"):
    compile_jobs.make_programs(
      sections(*DISTILL), teacher, machine(name, 81, chip="v5e")
    )


def test_what_is_kept_comes_back(tmp_path):
  folder = tmp_path / "new" / "folder"
  compile_jobs.write_result(folder, "a", PROGRAM)
  assert compile_jobs.read_result(folder, "a") == PROGRAM
  assert compile_jobs.read_result(folder, "b") is None
  compile_jobs.write_result(None, "a", PROGRAM)  # Nowhere.
  assert compile_jobs.read_result(None, "a") is None


@pytest.mark.parametrize(
  "text", ["", "{", "[]", "null", "{}", '{"program": {}}', '{"program": [1]}']
)
def test_a_damaged_file_is_not_there(tmp_path, text):
  compile_jobs.write_result(tmp_path, "a", PROGRAM)
  (tmp_path / "a.json").write_text(text)
  assert compile_jobs.read_result(tmp_path, "a") is None


def test_a_file_of_another_version_is_not_there(tmp_path):
  value = dataclasses.asdict(PROGRAM) | {"temperature": 3}
  (tmp_path / "a.json").write_text(json.dumps({"program": value}))
  assert compile_jobs.read_result(tmp_path, "a") is None


def test_the_key_is_of_everything_that_a_program_depends_on():
  keys = {
    compile_jobs.result_key({"L": 1}, ""),
    compile_jobs.result_key({"L": 2}, ""),
    compile_jobs.result_key({"L": 1}, "libtpu.so 3"),
  }
  assert len(keys) == 3
  assert compile_jobs.result_key(
    {"a": 1, "b": 2}, ""
  ) == compile_jobs.result_key({"b": 2, "a": 1}, "")
