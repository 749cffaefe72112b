"""Tests for analogjax/stages/reproduce.py."""

import json
import os
from pathlib import Path

import pytest

from analogjax.config import loading
from analogjax.release import public_config
from analogjax.stages import reproduce
from analogjax.verify.reproduce import read_recipe

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
ONE_PHASE = (
  ("train.phases", "distill"),
  ("train.distill.init_from", ""),
  ("measure.phases", "distill"),
)


@pytest.fixture
def bundle(tmp_path):
  """The parts of a bundle that `reproduce` reads."""
  folder = tmp_path / "bundle"
  (folder / "repro").mkdir(parents=True)
  values = loading.load(DEMO, ONE_PHASE).to_dict()
  record = {
    "model": {"family": "llama"},
    "training": {"phases": [{"name": "distill", "teaches": "cached teacher"}]},
    "repro": {"commands": ["analogjax run --config=x --workdir=y"]},
  }
  (folder / "repro" / "config.json").write_text(
    json.dumps(public_config.project(values))
  )
  (folder / "record.json").write_text(json.dumps(record))
  return folder


@pytest.mark.slow
def test_two_toy_runs_are_the_same_and_a_changed_one_is_not(
  bundle, tmp_path, monkeypatch, capsys
):
  # The second run finds what the first compiled.
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  compiled = os.environ["JAX_COMPILATION_CACHE_DIR"]
  monkeypatch.setenv("ANALOGJAX_COMPILATION_CACHE", compiled)
  workdir = tmp_path / "toy"
  assert reproduce.run(bundle, workdir=workdir, check=True) == 0
  said = capsys.readouterr().out
  assert "same     loss trace of distill, 6 records" in said
  assert "same     bytes of model.safetensors" in said
  assert "same     measurement" in said
  assert "the same, bit for bit (7 results)" in said
  assert "DIFFERS" not in said
  # One number of the first run is another one now.
  metrics = workdir / "first" / "train" / "distill" / "metrics.jsonl"
  lines = metrics.read_text().splitlines()
  record = json.loads(lines[-1])
  record["step"] += 1
  lines[-1] = json.dumps(record)
  metrics.write_text("\n".join(lines) + "\n")
  monkeypatch.setattr(reproduce, "_run_stage", lambda *_: None)
  recipe = read_recipe(bundle, {})
  monkeypatch.setattr(reproduce.toy, "write_inputs", lambda *_: None)
  assert reproduce._check(recipe, workdir) == 1
  said = capsys.readouterr().out
  assert "DIFFERS  loss trace of distill" in said
  assert "same     bytes of model.safetensors" in said
  assert "Two toy runs differ (7 results)." in said


def test_without_check_nothing_runs(bundle, monkeypatch, capsys):
  monkeypatch.setattr(reproduce, "_run_stage", None)
  assert reproduce.run(bundle) == 0
  said = capsys.readouterr().out
  assert "stages cache, train, measure, export" in said
  assert "the data: random words" in said


def test_a_stage_that_fails_is_an_error_with_what_it_said(tmp_path):
  (tmp_path / "toy.py").write_text("def get_config():\n  return 3\n")
  with pytest.raises(ValueError, match="reproduce: train ended with code 2"):
    reproduce._run_stage("train", tmp_path, tmp_path / "w")


def test_a_folder_with_files_is_left_alone(bundle, tmp_path):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "a").write_text("mine")
  with pytest.raises(ValueError, match="expected an empty folder"):
    reproduce.run(bundle, workdir=tmp_path / "full", check=True)


def test_what_a_bundle_lacks_is_said(bundle):
  record = json.loads((bundle / "record.json").read_text())
  for change, said in (
    ({"repro": {"commands": ["make"]}}, "repro.commands: expected"),
    ({"model": {"family": "gpt_neox"}}, "model.family: expected one of llama"),
  ):
    (bundle / "record.json").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=said):
      reproduce.run(bundle)
  (bundle / "record.json").unlink()
  with pytest.raises(ValueError, match="record.json: there is no such file"):
    reproduce.run(bundle)


def test_a_link_out_of_the_bundle_is_not_followed(bundle, tmp_path):
  (bundle / "repro").rename(tmp_path / "elsewhere")
  (bundle / "repro").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match="repro/config.json: there is no such"):
    reproduce.run(bundle)
