"""Tests for tests/benchmarks/knee.py: the whole script, at toy size."""

import importlib
import json
from pathlib import Path

import pytest


def run(teacher, workdir, *more):
  knee = importlib.import_module("knee")
  arguments = [f"--teacher={teacher}", f"--workdir={workdir}"]
  arguments += "--rows=8 --held_out_rows=4 --pretrain_rows=8 --L=32".split()
  arguments += "--D=8 --Y=1 --learning_rate=0.01".split()
  knee.main([*arguments, *more])
  lines = (workdir / "results.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_the_whole_script(teacher, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(Path(__file__).parent))
  workdir = tmp_path / "knee"
  names = ["hard", "dense", "tau 0.2, 3 replicas"]
  arms = f"--arms={';'.join(names)}"
  first = run(teacher, workdir, arms, "--seeds=1")
  assert [line["arm"] for line in first] == names
  summary = json.loads((workdir / "knee.json").read_text())
  kept = {entry["arm"]: entry["kept"] for entry in summary}
  assert kept["hard"] == 0 and kept["dense"] == 1
  hard, dense, replicas = first
  assert dense["kl"] < hard["kl"]
  assert 3 <= replicas["ids_per_token"] <= 18
  assert replicas["cache_bytes"] == 8 * 32 * replicas["bytes_per_token"]
  assert (workdir / "knee.png").exists() and (workdir / "knee.md").exists()

  # Killed before the last line: it alone is trained again, to the same end.
  results = workdir / "results.jsonl"
  lines = results.read_text().splitlines(keepends=True)
  results.write_text("".join(lines[:-1]))
  again = run(teacher, workdir, arms, "--seeds=1")
  assert again[:-1] == first[:-1]
  assert again[-1]["kl"] == pytest.approx(replicas["kl"], rel=1e-6)
