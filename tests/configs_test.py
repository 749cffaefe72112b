"""Every file in configs/ is a config that can be run."""

import ast
import dataclasses
import json
from pathlib import Path

import jax
import pytest

from analogjax import main
from analogjax.config import loading, schema
from analogjax.models import decoder, sizes
from analogjax.run import identity
from analogjax.training import programs

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.py"))


def test_there_are_configs():
  assert FOLDER / "demo.py" in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_makes_a_student_and_a_train_state(path):
  sections = schema.to_sections(loading.load(path, []))
  cfg = identity.student_config(sections)
  axes = dataclasses.asdict(sections.mesh)
  mesh = jax.sharding.AbstractMesh((1,) * len(axes), tuple(axes))
  student = decoder.abstract_parameters(cfg)
  for name in sections.train.phases:
    phase = sections.train.phase[name]
    training = programs.make_training(
      phase, cfg, mesh, seed=0, teacher_softcap=None
    )
    state = jax.eval_shape(training.init)
    assert jax.tree.leaves(state.params) == jax.tree.leaves(student)
  count = sum(leaf.size for leaf in jax.tree.leaves(student))
  assert count == sizes.count_parameters(sections.student).total


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_is_the_record_of_the_run(path):
  doc = ast.get_docstring(ast.parse(path.read_text()))
  assert doc is not None
  for part in ("What:", "Source:", "Hardware:", "Hours:", "Expected:"):
    assert part in doc, f"{path.name}: the docstring has no line {part}"
  assert f"--config=configs/{path.name}" in doc


def test_demo_student_is_inside_the_size_window():
  student = schema.to_sections(loading.load(FOLDER / "demo.py", [])).student
  count = sizes.count_parameters(student).total
  assert count == 3_342_912  # By hand: V D + 4 (12,288 + 36,864 + 128) + 64.
  assert sizes.check_size_window(count, 134_515_008, policy="refuse") == ""


@pytest.mark.parametrize(
  "path", [p for p in FILES if p.stem != "demo"], ids=lambda path: path.stem
)
def test_a_lab_could_start_from_it(path, capsys):
  """It plans without its checkpoint, and fits on machines that labs have."""
  arguments = ("plan", f"--config={path}", "--topology=gpu:h100:512", "--json")
  assert main.main(arguments) == main.USER_ERROR
  plan = json.loads(capsys.readouterr().out)
  # The pipeline and the checkpoint are the lab's own.
  pipeline, tokenizer = plan["problems"]
  # Another test may have brought in a `lab` without `data`.
  assert "there is no module 'lab" in pipeline
  assert "tokenizer.json: expected the teacher's tokenizer" in tokenizer
  assert plan["size_window"]["inside"]
  (found,) = plan["topologies"]
  assert found["fits"] and found["total"]["dollars"] > 0
