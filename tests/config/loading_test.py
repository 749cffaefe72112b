"""Tests for analogjax/config/loading.py."""

import errno
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from analogjax.config import loading

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"


def load(*overrides):
  return loading.load(DEMO, [tuple(o.split("=", 1)) for o in overrides])


def failure(file, overrides=()):
  with pytest.raises(ValueError) as info:
    loading.load(file, overrides)
  return str(info.value)


@pytest.fixture
def write(tmp_path):
  def write(text, name="mine.py"):
    path = tmp_path / name
    path.write_text(text)
    return path

  return write


def variant(body):
  """The text of a config that changes the demo's."""
  return (
    "import runpy\n"
    "def get_config():\n"
    f"  cfg = runpy.run_path({str(DEMO)!r})['get_config']()\n"
    f"  {body}\n"
    "  return cfg\n"
  )


# Files.


def test_missing_file_names_its_neighbours(write):
  path = write("", "student_from_teacher.py")
  text = failure(path.with_name("student_from_teachr.py"))
  assert "student_from_teachr.py: no such config file" in text
  assert f"Did you mean {path}?" in text
  assert "Configs in" in failure(path.with_name("zzz"))
  assert "There is no folder" in failure(path.parent / "a" / "b" / "x.py")


def test_missing_folder_names_the_same_file_in_another(tmp_path):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "demo.py").write_text("")
  text = failure(tmp_path / "config" / "demo.py")
  assert f"did you mean {tmp_path / 'configs' / 'demo.py'}?" in text


def test_a_folder_is_not_a_config(tmp_path):
  assert "no such config file" in failure(tmp_path)


def test_file_without_get_config(write):
  assert "has no get_config()" in failure(write("config = {}\n"))


def test_get_config_that_returns_something_else(write):
  text = failure(write("def get_config():\n  return {}\n"))
  assert "must return an ml_collections.ConfigDict, found dict" in text


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("x = 1\ndef get_config(:\n", ", line 2: SyntaxError: "),
    ("import no_such_thing\n", ", line 1: ModuleNotFoundError: No module"),
    (
      "def get_config():\n  return f(1)\n\ndef f(x):\n  return x / 0\n",
      ", line 5: ZeroDivisionError: division by zero",
    ),
  ],
)
def test_failing_file_names_the_line(write, text, expected):
  path = write(text)
  assert failure(path).startswith(f"{path}{expected}")


def test_misspelt_field_in_a_file_names_file_and_field(write):
  path = write(variant("cfg.cache.taau = 1.0"))
  text = failure(path)
  expected = "cache.taau: there is no such field. Did you mean cache.tau?"
  assert text == f"{path}, line 4: {expected}"


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    (
      'cfg.cache.num_rows = "64"',
      "cache.num_rows: expected int, found '64' of type str.",
    ),
    (
      "cfg.train.distill.update(num_stps=3)",
      "train.distill.num_stps: there is no such field. Did you mean"
      " train.distill.num_steps?",
    ),
    ("cfg.mesh = 8", "mesh: expected a section (a dict, or the path of a TOML"),
    ("cfg.mesh = dict(dat=8)", "mesh.dat: there is no such field. Did you mea"),
    ("cfg.train.distil = 3", "train.distil: there is no such field. Did you"),
    (
      "cfg.trian.distill.seed = 1",
      "AttributeError: trian: there is no such field. Did you mean train?",
    ),
    (
      "cfg.student.rope_scaling = dict(kind='linear'); x = "
      "cfg.student.rope_scaling.factor",
      "AttributeError: student.rope_scaling.factor: not set yet, has no def",
    ),
    ("cfg.release.about = 'x.toml'", "{folder}/x.toml: expected a TOML file, "),
    ("cfg.plan.prices = 'old'", "plan.prices: expected one of analogjax (2026"),
  ],
)
def test_a_wrong_line_of_a_file_is_named(write, line, expected):
  path = write(variant(line))
  expected = expected.format(folder=path.parent)
  text = failure(path)
  assert text.removeprefix(f"{path}, line 4: ").startswith(expected), text


def test_a_config_may_import_its_neighbour_and_sees_its_edits(write):
  base = write(variant("pass"), "base.py")
  text = "import base\ndef get_config():\n  return base.get_config()\n"
  path = write(text)
  assert loading.load(path, []).cache.seed == 0
  # Within the same second and of the same length: no cache may hide it.
  base.write_text(variant("cfg.cache.seed = 7").replace("pass", ""))
  assert loading.load(path, []).cache.seed == 7


def test_result_is_locked():
  cfg = load()
  with pytest.raises(AttributeError):
    cfg.cache.taw = 0.1


# Overrides.


@pytest.mark.parametrize(
  ("override", "expected"),
  [
    ("cache.num_rows=1_000", 1000),
    ("cache.num_rows=1e3", 1000),
    ("cache.num_rows=1.5e3", 1500),
    ("cache.num_rows=+8", 8),
    ("mesh.data=-1", -1),
    ("cache.tau=1", 1.0),
    ("cache.tau=4e-2", 0.04),
    ("student.tie_embeddings=false", False),
    ("student.tie_embeddings=0", False),
    ("student.mlp_bias=True", True),
    ("student.mlp_bias=1", True),
    (
      "train.phases=pretrain,control,distill",
      ("pretrain", "control", "distill"),
    ),
    ("measure.phases=control", ("control",)),
    ("measure.phases=control,", ("control",)),
    ("train.distill.optimizer.learning_rate=1", 1.0),
  ],
)
def test_override_is_read_as_the_type_of_the_field(override, expected):
  rest = ["mesh.fsdp=1"] if "mesh" in override else []
  value = load(override, *rest)
  for name in override.split("=")[0].split("."):
    value = value[name]
  assert value == expected
  assert type(value) is type(expected)


@pytest.mark.parametrize(
  ("override", "expected"),
  [
    ("student.D=1.5", "expected a whole number"),
    ("student.D=64.0", "expected a whole number"),
    ("student.D=1.5e0", "expected a whole number"),
    ("student.D=1e99", "expected a whole number"),
    ("student.D=", "expected a whole number"),
    ("student.D=0x10", "expected a whole number"),
    ("student.D=True", "expected a whole number"),
    ("student.mlp_bias=yes", "expected true, false, 1 or 0, found 'yes'"),
    ("student.mlp_bias=", "expected true, false, 1 or 0, found ''"),
    ("cache.tau=nan", "expected a finite number, found 'nan'"),
    ("cache.tau=0,04", "expected a finite number, found '0,04'"),
    ("cache=0.04", "is a section; expected --config.cache.NAME=VALUE for one"),
    ("teacher.gguf=x", "is a section; expected --config.teacher.gguf.NAME"),
    ("data.arguments=x", "is a section; expected --config.data.arguments.NA"),
    (
      "measure.domains=x",
      "is a section; expected --config.measure.domains.NAME=VALUE for one of"
      " matplotlib, numpy, optax, or the path of a TOML file, or a JSON object",
    ),
    (
      "safety.teacher_only=x",
      "is a section; expected the path of a TOML file, or a JSON object such as"
      ' {"name": "value"}, found \'x\'.',
    ),
    ("safety.teacher_only={x", "expected JSON, found '{x'."),
    (
      'measure.parts=("output",)',
      "expected names with commas between them, as in"
      " --config.measure.parts=output, found",
    ),
    ("cache.tau.x=1", "there is no such field"),
    ("=1", "there is no such field"),
    ("cache.=1", "there is no such field"),
    ("data.arguments.new=1", "there is no such field"),
  ],
)
def test_wrong_override_is_named(override, expected):
  path, text = override.split("=", 1)
  assert failure(DEMO, [(path, text)]).startswith(
    f"--config.{path}: {expected}"
  )


def test_unknown_override_suggests_the_right_section():
  text = failure(DEMO, [("student.tau", "0.1")])
  assert text.startswith("--config.student.tau: there is no such field.")
  assert "cache.tau" in text
  text = failure(DEMO, [("train.distil.num_steps", "3")])
  assert "Did you mean train.distill.num_steps" in text


HOSTILE = [
  "",
  " ",
  "two words",
  "'single' \"double\"",
  "$(touch pwned) `id` ${HOME}",
  "a=b==c",
  "--config.cache.tau=1",
  "a,b",
  "../..\\x",
  "{teacher} {0} %s",
  "line\nbreak\ttab",
  "\u00e9\u4e2d\U0001f600",
  "None",
  "1",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_arrives_unchanged(text):
  cfg = loading.load(DEMO, [("data.arguments.tokenizer", text)])
  assert cfg.data.arguments.tokenizer == text


def test_a_price_can_be_set_whatever_the_order():
  h100 = load("plan.h100.watts=700", "plan.prices=2026_11").plan.h100
  assert h100.watts == 700.0
  assert h100.dollars_per_hour == load().plan.h100.dollars_per_hour > 0
  with pytest.raises(ValueError, match="plan.h1000.watts: there is no such"):
    load("plan.h1000.watts=700")


def test_last_override_of_a_path_wins():
  assert load("cache.seed=1", "cache.seed=2").cache.seed == 2


def test_overrides_are_checked_together():
  cfg = load("cache.batch_rows=5", "cache.rows_per_object=10")
  assert (cfg.cache.batch_rows, cfg.cache.rows_per_object) == (5, 10)
  assert failure(DEMO, [("cache.batch_rows", "5")]).startswith(
    "cache.batch_rows: expected a divisor of rows_per_object=32, found 5."
  )


def test_references_follow_an_override():
  assert load("data.L=128").data.arguments.L == 128


def test_free_form_values(write):
  path = write(
    variant("cfg.data.arguments = dict(n=(1, 2), e=(), o=None, m=(1, 'a'))")
  )
  cfg = loading.load(path, [("data.arguments.n", "3,4,5")])
  assert cfg.data.arguments.n == (3, 4, 5)
  cfg = loading.load(path, [("data.arguments.e", "x,y")])
  assert cfg.data.arguments.e == ("x", "y")
  assert "expected a whole number" in failure(path, [("data.arguments.n", "a")])
  # A value without a type, or with several, is written as JSON.
  cfg = loading.load(path, [("data.arguments.o", '{"a": 1}')])
  assert cfg.data.arguments.o.a == 1
  cfg = loading.load(path, [("data.arguments.m", '[2, "b", null]')])
  assert cfg.data.arguments.m == (2, "b", None)
  assert "expected JSON" in failure(path, [("data.arguments.m", "1,")])


def test_sections_and_free_form_fields_can_be_set_as_a_whole(tmp_path):
  assert load("data.arguments={}").data.arguments.to_dict() == {}
  domains = load('measure.domains={"a": {"only": ["x/"]}}').measure.domains
  assert domains.a.only == ("x/",)
  cfg = load("teacher.gguf=none", "teacher.path=x")
  assert cfg.teacher.gguf is None
  file = tmp_path / "about.toml"
  file.write_text('name = "n"\nlanguages = ["de"]\n')
  scaling = ("kind=linear", "factor=2")
  cfg = load(*(f"student.rope_scaling.{part}" for part in scaling))
  assert cfg.student.rope_scaling.factor == 2.0


def test_a_whole_number_in_a_float_field_can_become_a_fraction(write):
  path = write(variant("cfg.release.update(dict(max_shard_gb=5))"))
  cfg = loading.load(path, [("release.max_shard_gb", "2.5")])
  assert cfg.release.max_shard_gb == 2.5


# The saved config.


def test_saved_config_is_equal_when_read_again(tmp_path, write, capsys):
  path = write(variant("cfg.data.arguments.files = ['a', ('b', 1.5, None)]"))
  cfg = loading.load(path, [("cache.tau", "0.1")])
  workdir = tmp_path / "runs" / "new"
  loading.save_resolved(cfg, workdir)
  again = loading.read_resolved(workdir)
  assert again.to_dict() == cfg.to_dict()
  assert again.cache.tau == 0.1
  assert again.data.arguments.files == ("a", ("b", 1.5, None))
  assert [p.name for p in workdir.iterdir()] == ["config.json"]
  loading.save_resolved(again, workdir)
  assert [p.name for p in workdir.iterdir()] == ["config.json"]
  assert capsys.readouterr() == ("", "")


def test_a_changed_config_keeps_the_old_one_and_names_the_change(
  tmp_path, capsys
):
  loading.save_resolved(load(), tmp_path)
  loading.save_resolved(load("cache.tau=0.1", "cache.seed=3"), tmp_path)
  assert capsys.readouterr().err.splitlines() == [
    f"{tmp_path}/config.json: changed (before: config.1.json)",
    "  cache.tau 0.04 -> 0.1",
    "  cache.seed 0 -> 3",
  ]
  loading.save_resolved(load("cache.tau=0.2"), tmp_path)
  taus = {
    path.name: json.loads(path.read_text())["cache"]["tau"]
    for path in tmp_path.iterdir()
  }
  assert taus == {
    "config.1.json": 0.04,
    "config.2.json": 0.1,
    "config.json": 0.2,
  }


def test_damaged_or_missing_saved_config(tmp_path):
  with pytest.raises(ValueError, match="found no file; run that stage"):
    loading.read_resolved(tmp_path)
  (tmp_path / "config.json").write_text('{"cache": ')
  with pytest.raises(ValueError, match=r"config\.json: expected the JSON of a"):
    loading.save_resolved(load(), tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(ValueError, match=r"config\.json: teacher.path: missing"):
    loading.read_resolved(tmp_path)


def test_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
  loading.save_resolved(load(), tmp_path)
  before = (tmp_path / "config.json").read_bytes()

  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")  # Names no file.

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError) as info:
    loading.save_resolved(load("cache.tau=0.1"), tmp_path)
  assert info.value.errno == errno.ENOSPC
  assert info.value.filename == str(tmp_path / "config.1.json")
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
  assert (tmp_path / "config.json").read_bytes() == before


def test_what_a_killed_run_left_of_a_json_file_is_removed(tmp_path):
  code = """
import os, pathlib, signal, sys
from analogjax.config import loading as config_files
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
config_files.write_json(pathlib.Path(sys.argv[1]) / "a.json", {})
"""
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)], check=False
  )
  assert done.returncode == -signal.SIGKILL
  (tmp_path / "b.json").write_text("{}")
  assert len(list(tmp_path.iterdir())) == 2
  loading.remove_unfinished(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["b.json"]
