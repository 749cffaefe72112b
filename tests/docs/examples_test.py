"""The examples in the pages run.

Fenced blocks of Python carry one more word: file=NAME: a file of that name; it
is imported, and other blocks may use it.
  run: runs as it stands, in a folder that holds those files.
  config: lines of a get_config(); what they make of the demo's is checked.
  exported: runs where a run has left its export (lab_guide_test.py).
The reader in docs/cache_format.md is run by cache_format_test.py.
"""

import importlib
import inspect
import shutil
import subprocess

from docs_pages import all_blocks
import numpy as np
import pytest

from analogjax import main
from analogjax.config import loading, schema
from analogjax.data import pipeline
from analogjax.models import hf_import

BLOCKS = all_blocks()
PYTHON = [b for b in BLOCKS if b.language == "python"]


def marked(mark):
  found = [b for b in PYTHON if b.marks == (mark,)]
  return pytest.mark.parametrize("block", found, ids=lambda b: b.where)


def test_every_block_of_python_is_marked():
  for block in PYTHON:
    kind = [m.partition("=")[0] for m in block.marks]
    known = (["file"], ["run"], ["config"], ["exported"])
    assert kind in known, block.where
    assert max(map(len, block.text.splitlines())) <= 80, block.where


@pytest.mark.usefixtures("desk")
@marked("run")
def test_block_runs(block):
  names = {"__name__": "__main__"}
  exec(compile(block.text, block.where, "exec"), names)


@pytest.mark.usefixtures("desk")
@marked("config")
def test_block_of_a_config_is_valid(block):
  cfg = loading.load("configs/demo.py", []).unlock()
  exec(compile(block.text, block.where, "exec"), {"cfg": cfg})
  data = schema.to_sections(cfg).data
  module, _, name = data.pipeline.partition(":")
  function = getattr(importlib.import_module(module), name)
  for arguments in (data.arguments, data.held_out_arguments):
    inspect.signature(function).bind(**{**data.arguments, **arguments})
  assert data.arguments["L"] == data.L


@pytest.mark.usefixtures("desk")
def test_the_readme_s_pipeline_gives_rows():
  cfg = loading.load("configs/ours.py", [])
  for more, expected in ({}, 3), (cfg.data.held_out_arguments.to_dict(), 2):
    arguments = {**cfg.data.arguments.to_dict(), **more}
    source = pipeline.open_pipeline(
      cfg.data.pipeline, arguments, L=cfg.data.L, V=cfg.student.V
    )
    assert source.random_access and source.num_rows == expected
  rows = source.read([1])
  # Token 4096 is 96 of its document of 1,000, which begins this row.
  np.testing.assert_array_equal(rows.tokens_BL[0, [0, 904, 905]], [96, 0, 1])
  np.testing.assert_array_equal(rows.segments_BL[0, [0, 904, 905]], [1, 1, 2])
  np.testing.assert_array_equal(
    rows.positions_BL[0, [0, 904, 905]], [0, 904, 0]
  )


@pytest.mark.usefixtures("desk")
def test_the_readme_s_config_is_planned(capsys):
  assert main.main(["plan", "--config=configs/ours.py"]) == main.OK
  out = capsys.readouterr().out
  assert "inside the window" in " ".join(out.split())
  assert "64 devices" in out and "Will be refused" not in out


@pytest.mark.usefixtures("desk")
def test_the_renamed_pipeline_gives_rows():
  source = pipeline.open_pipeline(
    "lab_renamed:packed_rows", {"path": "x", "split": "train"}, L=8, V=10
  )
  assert source.num_rows == 5
  np.testing.assert_array_equal(source.read([3]).positions_BL[0], range(8))


def test_the_digest_of_a_teacher_by_sha256sum(tmp_path, monkeypatch):
  (line,) = {
    line
    for block in BLOCKS
    for line in block.text.splitlines()
    if line.startswith("sha256sum")
  }
  for name in ("config.json", "model.safetensors"):
    (tmp_path / name).write_text(name)
  if not shutil.which("sha256sum"):
    pytest.skip("there is no sha256sum on this machine")
  found = subprocess.check_output(line, shell=True, text=True, cwd=tmp_path)
  assert found.split()[0] == hf_import.folder_digest(tmp_path)
