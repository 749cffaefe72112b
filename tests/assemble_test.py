"""Tests for analogjax/assemble.py that need no teacher."""

from pathlib import Path

from analogjax import assemble, config, config_files
from analogjax.models import families, layers

DEMO = Path(__file__).parents[1] / "configs" / "demo.py"
SCALING = dict(
  **dict(kind="llama3", factor=8.0, original_max_positions=512),
  **dict(low_freq_factor=1.0, high_freq_factor=4.0),
)


def sections(**student):
  cfg = config_files.load(DEMO, ())
  with cfg.unlocked():
    cfg.student.update(student)
  return config.to_sections(cfg)


def test_the_student_has_the_shape_of_the_config():
  found = assemble.student_config(sections())
  assert found.num_parameters == 3_342_912  # 49,152 x 64 + 4 layers + norm.
  assert (found.D, found.Y, found.H, found.rope_scaling) == (64, 4, 16, None)


def test_the_students_rope_scaling_reaches_model_and_export():
  found = assemble.student_config(sections(rope_scaling=SCALING))
  assert found.rope_scaling == layers.RopeScaling(**SCALING)
  written = families.to_hf_config(found, dtype="float32")
  again = families.from_hf_config(written, dtype="float32", where="x")
  assert again == found


def test_what_changes_numbers_is_part_of_the_identity():
  before = assemble.student_identity(sections())
  assert assemble.student_identity(sections(rope_scaling=SCALING)) != before
  assert assemble.student_identity(sections(remat="full")) == before
  assert assemble.student_identity(sections(size_window="warn")) == before
