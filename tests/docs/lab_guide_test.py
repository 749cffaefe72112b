"""The lab guide's pipeline, config and commands make an analog.

The test uses a tiny teacher instead of the guide's, and sizes that suit it.
"""

import os
from pathlib import Path
import shutil
import subprocess
import sys

from docs_pages import ROOT, all_blocks, commands_of
import numpy as np
import pytest
import tiny_pair

from analogjax.cache import logit_cache
from analogjax.data import pipeline
from analogjax.workdir import files

GUIDE = "docs/lab_guide.md"
EXPORTED = [b for b in all_blocks() if b.marks == ("exported",)]


def open_source(L):
  return pipeline.open_pipeline(
    "lab_documents:packed_rows",
    {"paths": "docs/*.md", "tokenizer": "{teacher}", "L": L},
    L=L,
    V=49_152,
    substitutions={"teacher": "runs/demo/teacher"},
  )


@pytest.mark.medium
@pytest.mark.usefixtures("desk")
def test_a_stream_from_worker_processes_resumes_exactly():
  first, again = open_source(64), open_source(64)
  first.read(range(10))
  again.restore(10, first.state(10))
  expected, found = first.read(range(10, 30)), again.read(range(10, 30))
  np.testing.assert_array_equal(found.tokens_BL, expected.tokens_BL)
  np.testing.assert_array_equal(found.segments_BL, expected.segments_BL)
  assert expected.tokens_BL.any()


@pytest.mark.medium
@pytest.mark.usefixtures("desk")
def test_the_guide_s_pipeline_packs_and_cuts_no_document_that_fits():
  L, end = 64, 0  # The desk's tokenizer has <|endoftext|> first.
  rows = open_source(L).read(range(100))
  counts = [np.bincount(row)[1:] for row in rows.segments_BL]
  assert max(map(len, counts)) > 1
  for tokens, lengths in zip(rows.tokens_BL, counts, strict=True):
    for last, length in zip(np.cumsum(lengths) - 1, lengths, strict=True):
      # The end of a document, or a piece of one that is longer than a row.
      assert tokens[last] == end or length == L


@pytest.mark.slow
def test_the_guide_makes_an_analog(desk):
  folder = desk / "tiny"
  folder.mkdir()
  compiled = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  tiny = tiny_pair.make_tiny(folder, compiled)
  shutil.rmtree(desk / "runs/demo/teacher")
  shutil.copytree(tiny.teacher, desk / "runs/demo/teacher")
  sizes = [x for x in tiny.overrides if "teacher.path" not in x]
  sizes += [
    "--config.data.arguments.L=32",
    "--config.train.phases=pretrain,distill",
    "--config.measure.phases=distill",
    *(
      f"--config.train.{name}.keep_best_checkpoints=0"
      for name in ("pretrain", "control", "distill")
    ),
  ]

  text = (ROOT / GUIDE).read_text("utf-8")
  [words] = {c.words for c in commands_of(GUIDE, text) if "run" in c.words}
  environment = tiny.environment()
  environment["PYTHONPATH"] += f"{os.pathsep}."
  done = subprocess.run(
    [sys.executable, "-m", "analogjax.main", *words[1:], *sizes],
    env=environment,
    cwd=desk,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout + done.stderr

  cache = logit_cache.open_cache(desk / "runs/lab/cache")
  assert cache.manifest.num_rows == 46 and cache.committed().all()
  summary = files.read_json(desk / "runs/lab/summary.json")
  assert set(summary["models"]) == {"teacher", "distill"}

  shutil.copytree(desk / "runs/lab/export", desk / "runs/demo/export")
  for block in EXPORTED:
    exec(compile(block.text, block.where, "exec"), {})


def test_there_is_an_example_that_loads_an_export():
  assert [b.page for b in EXPORTED] == ["docs/tutorial.md"]
