"""Tests for analogjax/stages/safety.py, on the tiny pair."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from analogjax.config import loading, schema
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.evaluation import sources
from analogjax.run.run import Run
from analogjax.safety import canaries, document
from analogjax.stages import safety
from analogjax.workdir import ledger

pytestmark = pytest.mark.medium

MARK = "zebraquartz"  # In every prompt; nowhere else may it be.


@pytest.fixture(scope="module")
def distilled(training, tmp_path_factory):
  """A workdir with a phase `distill`, and its data."""
  workdir = tmp_path_factory.mktemp("distilled") / "run"
  return workdir, training.train(workdir)


@pytest.fixture
def trained(distilled):
  return distilled[0]


@pytest.fixture
def prompt_files(tmp_path):
  folder = tmp_path / "prompts"
  folder.mkdir()
  for name in ("harmful", "harmless"):
    lines = [f"{MARK} {name} {i}" for i in range(4)]
    (folder / f"{name}.txt").write_text("\n".join(lines))
  return folder


def make_config(training, *values):
  arguments = training.arguments("train", "workdir", *values)[3:]
  overrides = [a.removeprefix("--config.").split("=", 1) for a in arguments]
  return loading.load(
    training.folder / "lab.py", [tuple(pair) for pair in overrides]
  )


def refusals(folder):
  return (
    f"safety.harmful={folder / 'harmful.txt'}",
    f"safety.harmless={folder / 'harmless.txt'}",
    "safety.parts=refusal,membership,extraction",
    "safety.prompts=3",
    "safety.answer_tokens=4",
    "safety.template={prompt}",
  )


@pytest.fixture
def mesh(monkeypatch):
  """A mesh of one of the simulated devices."""
  make = sharding.make_mesh
  monkeypatch.setattr(
    sharding, "make_mesh", lambda axes, _=None: make(axes, jax.devices()[:1])
  )


def test_it_leaves_a_document_and_goes_on_where_it_was(
  training, trained, prompt_files, mesh, tmp_path, capfd, caplog
):
  workdir = shutil.copytree(trained, tmp_path / "run")
  cfg = make_config(training, *refusals(prompt_files))
  safety.run(cfg, workdir, only=("refusal",))
  first = document.read(workdir / "safety.json")
  assert {t["family"] for t in first["tests"]} == {"refusal"}
  # Its thresholds of other parts were not measured.
  assert first["verdict"] == "failed" and "not measured" in first["because"]
  part = workdir / "safety" / "refusal.json"
  before = part.stat().st_mtime_ns
  safety.run(cfg, workdir)
  assert part.stat().st_mtime_ns == before
  value = document.read(workdir / "safety.json")
  assert {t["family"] for t in value["tests"]} == {
    *("extraction", "membership", "refusal"),
  }
  models = {(t["family"], t["model"]) for t in value["tests"]}
  assert {family for family, model in models if model == "teacher"} == {
    "refusal"
  }
  assert models - {("refusal", "teacher")} == {
    *(("extraction", "distill"), ("refusal", "distill")),
    *(("membership", "distill"), ("membership", "random")),
  }
  spent = ledger.totals(workdir)["safety"]
  assert spent["tokens"] > 1000 and spent["flops"] > 0
  written = (workdir / "safety.json").stat().st_mtime_ns
  safety.run(cfg, workdir)
  assert (workdir / "safety.json").stat().st_mtime_ns == written
  # With other inputs all parts are measured again; the teacher is left out.
  safety.run(cfg, workdir, quick=True, only=("extraction",))
  quick = document.read(workdir / "safety.json")
  assert quick["quick"]
  assert {t["family"] for t in quick["tests"]} == {"extraction"}
  # No prompt was written or printed anywhere, nor where the files are.
  said = capfd.readouterr()
  texts = [said.out, said.err, caplog.text]
  for path in workdir.rglob("*"):
    if path.is_file() and path.stat().st_mtime_ns >= before:
      texts.append(path.read_bytes().decode("utf-8", "replace"))
  assert len(texts) > 6 and "safety refusal" in said.out
  for text in texts:
    assert MARK not in text and str(prompt_files) not in text
  files = value["details"]["refusal"]["lists"]["harmful"]
  assert files["files"][0]["name"] == "harmful.txt" and files["tried"] == 3


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    (["safety.parts=canaries"], "safety.parts: 'canaries' needs rows that"),
    (["safety.phases=control"], "safety.phases: 'control' is not one of tra"),
    (["safety.batch_rows=0"], "safety.batch_rows: expected a positive number"),
    (["safety.prefix_tokens=90"], "safety.prefix_tokens: expected documents"),
    (
      ["safety.parts=refusal", "safety.harmful=nowhere.txt"],
      "safety.harmful: nowhere.txt: expected a file of prompts, cannot be",
    ),
  ],
)
def test_what_cannot_be_is_said(
  training, trained, mesh, tmp_path, values, expected
):
  with pytest.raises(ValueError) as info:
    safety.run(make_config(training, *values), trained)
  assert str(info.value).startswith(expected), info.value


def test_a_part_that_is_not_there_is_named(training, trained):
  with pytest.raises(ValueError, match="--only: expected one of safety.parts"):
    safety.run(make_config(training), trained, only=("canaries",))


def test_the_rows_of_members_are_those_that_were_trained_on(
  training, distilled
):
  trained, seen = distilled
  # As if it had stopped there, before it had seen all rows.
  short = ("num_steps=2", "optimizer.warmup_steps=1", "optimizer.decay_steps=1")
  sections = schema.to_sections(
    make_config(training, *(f"train.distill.{value}" for value in short))
  )
  run = Run(sections, trained)
  trained_on = {
    row.tobytes()
    for step in (1, 2)
    for row in np.asarray(seen.batches[step].tokens_BL)
  }
  assert len(trained_on) == 16

  def read(number):
    return sources.read_trained(run, "distill", number, 0)

  some = read(10)
  digests = {d.tobytes() for d in rows_lib.rows_digests(some)}
  assert len(digests) == len(some.tokens_BL) == 10
  assert {row.tobytes() for row in some.tokens_BL} < trained_on
  assert {row.tobytes() for row in read(1000).tokens_BL} == trained_on


def test_rows_of_a_stream_are_its_first_ones(training):
  sections = schema.to_sections(
    make_config(training, *training.sources["stream"])
  )
  run = Run(sections, training.cached)
  rows = sources.read_trained(run, "distill", 10, 0)
  wanted = [training.rows.row(i)["tokens"] for i in range(10)]
  np.testing.assert_array_equal(rows.tokens_BL, wanted)


def test_canaries_are_those_of_the_config(training):
  """And the rows of its pipeline have them, except held-out ones."""
  values = dict(
    tokens=8, ids=(300, 384), copies=(1, 3), each=2, rows=40, seed=1
  )
  cfg = make_config(training, "safety.parts=canaries").unlock()
  cfg.data.pipeline = canaries.SPEC
  cfg.data.arguments = dict(
    pipeline="lab_rows:stream", canaries=values, num_rows=44, first=0
  )
  cfg.data.held_out_arguments = dict(canaries=dict(), first=1000)
  sections = schema.to_sections(cfg)
  found = safety._planted(sections, sections.safety)
  chosen = canaries.settings(json.loads(json.dumps(found)))
  assert chosen == canaries.settings(values)
  run = Run(sections, training.cached)
  plan = canaries.plan(chosen)
  for held_out, first in ((False, 0), (True, 1000)):
    source = run.open_rows(held_out=held_out)
    rows = source.read(range(44))
    plain = [training.rows.row(first + i)["tokens"] for i in range(44)]
    differs = {i for i in range(44) if (rows.tokens_BL[i] != plain[i]).any()}
    assert differs == (set() if held_out else set(plan.rows))


def test_what_is_published_has_no_paths(training):
  options = schema.to_sections(make_config(training)).safety
  options = dataclasses.replace(
    options, folders=("b=/some/where",), teacher_only={"path": "/data"}
  )
  found = safety.published(options)
  assert found["folders"] == ["b"] and found["teacher_only"] is True
  text = json.dumps(found)
  assert "where" not in text and "/data" not in text and "garak" not in text
