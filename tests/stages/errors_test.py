"""Effects of bad input on `analogjax` and on its files, from end to end."""

import gc
import importlib
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import ml_dtypes  # noqa: F401  Teaches numpy bfloat16.
import numpy as np
import pytest
import safetensors.numpy
import tiny_pair

from analogjax import main
from analogjax.cache import logit_cache
from analogjax.workdir import metrics

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]


class Bench:
  """Calls `analogjax` in this process on the tiny pair and own pipeline."""

  def __init__(self, tiny, folder, capsys=None):
    self.teacher, self.folder, self._capsys = tiny.teacher, folder, capsys
    self.config = folder / "errors.py"
    values = {
      "cache.num_rows": 24,
      "cache.batch_rows": 8,  # One for each of the simulated devices.
      "measure.batch_rows": 8,
      "measure.phases": "distill",
      "train.phases": "distill",
      "train.distill.init_from": "",
      "train.distill.num_steps": 6,
      "train.distill.batch_rows": 8,
      "train.distill.checkpoint_every_steps": 2,
      "train.distill.keep_checkpoints": 3,
      "train.distill.optimizer.decay_steps": 2,
    }
    own = [f"--config.{key}={value}" for key, value in values.items()]
    self.overrides = (*tiny.overrides, *own)

  def arguments(self, command, workdir, *more):
    paths = [f"--config={self.config}", f"--workdir={workdir}"]
    return [command, *paths, *self.overrides, *more]

  def run(self, command, workdir, *more):
    """The output of a successful command."""
    assert main.main(self.arguments(command, workdir, *more)) == 0
    return self._capsys.readouterr().out if self._capsys else ""

  def refuse(self, command, workdir, *more, says):
    """A command is refused in one line that has these parts in this order."""
    before = kept(workdir)
    self._capsys.readouterr()
    assert main.main(self.arguments(command, workdir, *more)) == 2
    err = self._capsys.readouterr().err
    # A config that differs from the one before is announced and kept.
    changed = re.compile(r"  \S+ .* -> |.*config\.json: changed")
    lines = [s for s in err.splitlines() if not changed.match(s)]
    assert len(lines) == 1, err
    assert lines[0].startswith(f"analogjax {command}: error: "), err
    at = 0
    for part in says:
      assert str(part) in lines[0][at:], (part, lines[0])
      at = lines[0].index(str(part), at) + len(str(part))
    assert kept(workdir) == before


def kept(workdir):
  """Every file of a workdir except configs and lock, by bytes; folders."""
  return {
    path.relative_to(workdir): path.read_bytes() if path.is_file() else None
    for path in workdir.rglob("*")
    if not path.name.startswith(("config.", "run.lock"))
  }


def edit_weights(folder, change):
  """Rewrites a teacher's weights after `change` of the dict of arrays."""
  path = folder / "model.safetensors"
  weights = safetensors.numpy.load_file(path)
  change(weights)
  safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  """The config and the pipeline, which can be imported."""
  folder = tmp_path_factory.mktemp("errors")
  tiny_pair.write_lab(folder, "errors", num_rows=40)
  sys.path.insert(0, str(folder))
  yield folder
  sys.path.remove(str(folder))


@pytest.fixture
def faults(folder):
  faults = importlib.import_module("errors_rows").FAULTS
  yield faults
  faults.clear()


@pytest.fixture
def bench(tiny, folder, capsys):
  return Bench(tiny, folder, capsys)


@pytest.fixture(scope="session")
def cached_once(tiny, folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("cached") / "run"
  Bench(tiny, folder).run("cache", workdir)
  return workdir


@pytest.fixture(scope="session")
def trained_once(tiny, folder, cached_once, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("trained") / "run"
  shutil.copytree(cached_once, workdir)
  Bench(tiny, folder).run("train", workdir)
  return workdir


@pytest.fixture
def workdir(tmp_path):
  return tmp_path / "run"


@pytest.fixture
def cached(cached_once, workdir):
  return shutil.copytree(cached_once, workdir)


@pytest.fixture
def trained(trained_once, workdir):
  return shutil.copytree(trained_once, workdir)


@pytest.fixture
def teacher(bench, tmp_path):
  """A separate teacher, to be damaged; `--config` for it."""
  folder = shutil.copytree(bench.teacher, tmp_path / "teacher")
  return folder, f"--config.teacher.path={folder}"


# One value.


@pytest.mark.parametrize(
  ("values", "says"),
  [
    ("cache.tua=0.1", ["--config.cache.tua", "no such field", "n cache.tau?"]),
    (
      "cache.num_rows=many",
      ["--config.cache.num_rows", "expected a whole number", "'many'"],
    ),
    (
      "teacher.path=/nowhere/lost",
      ["/nowhere/lost", "expected a Hugging Face folder", "found no such"],
    ),
    (
      f"teacher.sha256={'0' * 64}",
      ["teacher.sha256: expected", "0" * 64, "/teacher", "Fetch it again"],
    ),
    (
      f"teacher.path= teacher.gguf.sha256={'0' * 64}",
      [".gguf: expected sha256", "0" * 64, "found b179c9", "Reinstall"],
    ),
    ("student.V=400", ["student.V=400", "384 entries", "set student.V=384"]),
    (
      "data.L=129 student.max_positions=129",
      ["data.L=129", "context is 128", "set data.L to that or less"],
    ),
    (
      "student.D=16 student.size_window=refuse",
      ["student: ", "outside the window", "--config.student.size_window=warn"],
    ),
    (
      "data.pipeline=errors_row:stream",
      ["config.data.pipeline", "no module 'errors_row'", "PYTHONPATH"],
    ),
    (
      "data.pipeline=errors_rows:stream_",
      ["config.data.pipeline", "no function 'stream_'", "Did you mean 'stream"],
    ),
  ],
)
def test_a_value_that_cannot_be(bench, workdir, values, says):
  overrides = [f"--config.{value}" for value in values.split()]
  bench.refuse("cache", workdir, *overrides, says=says)


def test_a_misspelt_field_in_the_file(bench, workdir, tmp_path):
  bench.config = tmp_path / "typo.py"
  text = (bench.folder / "errors.py").read_text()
  typo = '  cfg.cache.unlock()\n  cfg.cache["tua"] = 0.1\n  return cfg'
  bench.config.write_text(text.replace("  return cfg", typo))
  bench.refuse(
    "cache",
    workdir,
    says=["typo.py, line 11: cache.tua: there is no such field", "cache.tau?"],
  )
  assert not workdir.exists()


# The teacher and the student.


def test_a_teacher_without_its_tokenizer(bench, workdir, teacher):
  folder, override = teacher
  (folder / "tokenizer.json").unlink()
  bench.refuse(
    "cache",
    workdir,
    override,
    says=[folder / "tokenizer.json", "expected", "no such file", "Copy it"],
  )


def test_truncated_weights_leave_no_cache_of_them(bench, workdir, teacher):
  folder, override = teacher
  path = folder / "model.safetensors"
  whole = path.read_bytes()
  path.write_bytes(whole[:-1000])
  says = [path, "not a whole safetensors file", len(whole) - 1000, "again"]
  bench.refuse("cache", workdir, override, says=says)
  # A cache of the damaged teacher would refuse the mended one.
  path.write_bytes(whole)
  bench.run("cache", workdir, override)


def test_a_size_outside_the_window_may_only_be_warned_of(bench, workdir):
  out = bench.run("cache", workdir, "--config.student.D=16")
  assert "warning: student.size_window='warn': " in out
  assert "outside the window" in out and "cannot be released" in out


def test_nan_in_the_weights(bench, workdir, teacher):
  folder, override = teacher

  def spoil(weights):
    weights["model.embed_tokens.weight"][7] = np.nan

  edit_weights(folder, spoil)
  assert main.main(bench.arguments("cache", workdir, override)) == 2
  err = bench._capsys.readouterr().err
  assert "the teacher's logits for row 0 are NaN or infinite" in err
  assert "Check the checkpoint" in err
  cache = logit_cache.open_cache(workdir / "cache")
  assert not cache.committed().any()


# The user's pipeline.


def test_domains_of_another_pipeline_are_refused_before_the_cache(
  bench, workdir, tmp_path
):
  bench.config = tmp_path / "domains.py"
  text = (bench.folder / "errors.py").read_text()
  bench.config.write_text(text.replace("  cfg.measure.domains = dict()\n", ""))
  bench.refuse(
    "cache",
    workdir,
    says=["measure.domains.matplotlib: config.data.arguments does not fit"],
  )


@pytest.mark.parametrize(
  ("fault", "says"),
  [
    (
      lambda fields: fields["text"],
      ["errors_rows:stream", "at row 12: KeyError: 'text'", "line 12"],
    ),
    (
      lambda fields: fields | {"tokens": np.full(32, 384)},
      [
        *("errors_rows:stream", "row 12: token id 384 at position 0"),
        *("384 tokens (0 to 383)", "Tokenise with the teacher's tokenizer"),
      ],
    ),
  ],
)
def test_a_bad_row_stops_there_and_the_mended_pipeline_goes_on(
  bench, workdir, faults, cached_once, fault, says
):
  faults[12] = fault
  assert main.main(bench.arguments("cache", workdir)) == 2
  line = bench._capsys.readouterr().err
  assert line.count("\n") == 1
  for part in says:
    assert part in line
  committed = logit_cache.open_cache(workdir / "cache").committed()
  assert committed.tolist() == [True] * 8 + [False] * 16

  before = kept(workdir / "cache")
  faults.clear()
  bench.run("cache", workdir)
  after, undisturbed = (
    kept(workdir / "cache"),
    kept(cached_once / "cache"),
  )
  assert after == undisturbed
  first = Path("tokens/c/0/0")
  assert before[first] == after[first]


def test_a_stream_that_ends_early(bench, workdir):
  override = "--config.data.arguments.num_rows=20"
  out = bench.run("cache", workdir, override)
  says = "cache: the pipeline ends after 20 rows; the config asks for 24."
  assert says in out and "Going on with 20." in out
  cache = logit_cache.open_cache(workdir / "cache")
  assert cache.manifest.num_rows == 20 and cache.committed().all()
  before = kept(workdir)
  assert "cache: complete." in bench.run("cache", workdir, override)
  assert kept(workdir) == before


def test_rows_by_index_are_those_of_the_stream(bench, workdir, cached_once):
  override = "--config.data.pipeline=errors_rows:indexed"
  bench.run("cache", workdir, override)
  for name in ("cache", "held_out"):
    ours, theirs = (
      logit_cache.open_cache(folder / name) for folder in (workdir, cached_once)
    )
    indices = range(ours.manifest.num_rows)
    assert ours.committed().all()
    np.testing.assert_array_equal(
      ours.digests(indices), theirs.digests(indices)
    )
  says = "cache: the pipeline ends after 20 rows; the config asks for 24."
  few = "--config.data.arguments.num_rows=20"
  assert says in bench.run("cache", workdir.with_name("few"), override, few)


# Results of earlier stages.


@pytest.mark.parametrize(
  ("override", "says"),
  [
    ("cache.tau=0.05", ["tau=0.04", "0.05"]),
    ("cache.seed=7", ["seed=0", "7"]),
    ("cache.rows_per_object=16", ["rows_per_object=8", "16"]),
    ("data.pipeline=errors_rows:other", ["stream'", "errors_rows:other"]),
    ("data.arguments.first=1", ["pipeline_fingerprint"]),
    ("data.arguments.num_rows=41", ["pipeline_fingerprint"]),
  ],
)
def test_a_cache_of_another_config(bench, cached, override, says):
  override = f"--config.{override}"
  says = ["the logit cache was written with", *says, "Use another --workdir"]
  bench.refuse("cache", cached, override, says=says)
  from_rows = ["--config.train.distill.rows=pipeline"]
  from_rows += ["--config.train.distill.loss.alpha=0"]
  if "rows_per_object" not in override:  # It changes no number.
    bench.refuse("train", cached, override, *from_rows, says=says)


def test_a_cache_of_another_teacher_or_tokenizer(bench, trained, teacher):
  folder, override = teacher

  def touch(weights):
    weights["model.norm.weight"][0] += 1

  edit_weights(folder, touch)
  for command in ("cache", "train", "measure"):
    bench.refuse(
      command,
      trained,
      override,
      says=["written with teacher_digest=", "Use another --workdir"],
    )
  shutil.copy(bench.teacher / "model.safetensors", folder)
  tokenizer = folder / "tokenizer.json"
  tokenizer.write_text(tokenizer.read_text() + "\n")
  for command in ("cache", "train", "measure"):
    bench.refuse(
      command,
      trained,
      override,
      says=["written with tokenizer_digest=", "Use another --workdir"],
    )


def test_stages_before_their_inputs(bench, workdir, cached_once):
  no_cache = ["run/", "no logit cache here", "run 'analogjax cache' first"]
  bench.refuse("train", workdir, says=no_cache)
  bench.refuse("measure", workdir, says=no_cache)
  says = ["no checkpoint of step 6", "'distill'", "run 'analogjax train' first"]
  bench.refuse("export", workdir, says=says)
  shutil.copytree(cached_once, workdir, dirs_exist_ok=True)
  bench.refuse("measure", workdir, says=says)
  # A cache that is not complete.
  shutil.rmtree(workdir / "cache" / "digest" / "c" / "1")
  says = ["8 of 24 rows are not cached", "first is 8", "run 'analogjax cache'"]
  bench.refuse("train", workdir, says=says)


# Checkpoints.


@pytest.mark.parametrize(
  ("override", "says"),
  [
    (
      "train.distill.optimizer.learning_rate=0.01",
      ["train.distill.optimizer.learning_rate is 0.003 there and 0.01 now"],
    ),
    ("student.seed=1", ["student.seed is 0 there and 1 now"]),
    # Weights of another shape are not damaged weights.
    ("student.D=16", ["student.D is 8 there and 16 now"]),
  ],
)
def test_checkpoints_of_another_config(bench, trained, override, says):
  override = f"--config.{override}"
  says = ["train/distill", "another config", *says, "another --workdir"]
  bench.refuse("train", trained, override, says=says)
  if "student" in override:
    bench.refuse("measure", trained, override, says=says)
    bench.refuse("export", trained, override, says=says)


def largest_file(folder):
  files = [path for path in folder.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 255
  path.write_bytes(data)


# Where several reads fail, orbax leaves all but one to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_is_passed_over(
  bench, trained, trained_once, caplog, damage
):
  checkpoints = trained / "train" / "distill" / "checkpoints"
  damage(largest_file(checkpoints / "6"))
  damaged = kept(checkpoints / "6")
  if damage is cut:
    # Readers report the problem and leave it. (The flipped bit is in a moment
    # of the optimizer, which the export does not use.)
    says = ["step 6 is damaged", "Run 'analogjax train'"]
    bench.refuse("export", trained, says=says)
  out = bench.run("train", trained)
  assert "train distill: continuing after step 4." in out
  assert f"{checkpoints}: the checkpoint of step 6 is damaged" in caplog.text
  aside = checkpoints.with_name("checkpoints_damaged") / "6"
  assert kept(aside) == damaged
  curves = [
    [
      record
      for record in metrics.read(workdir / "train/distill")
      if "speed/tokens_per_second" not in record
    ]
    for workdir in (trained, trained_once)
  ]
  assert curves[0] == curves[1]
  bench.run("export", trained)
  gc.collect()


# The mesh.


def test_a_mesh_that_does_not_fit(bench, cached):
  bench.refuse(
    "cache",
    cached,
    "--config.cache.batch_rows=4",
    says=["cache.batch_rows=4", "8 devices", "use a multiple of 8"],
  )
  bench.refuse(
    "train",
    cached,
    "--config.train.distill.batch_rows=12",
    says=["train.distill.batch_rows=12", "8 devices", "use a multiple of 8"],
  )
  bench.refuse(
    "cache",
    cached,
    *("--config.mesh.data=3", "--config.mesh.fsdp=1"),
    says=["mesh: data=3", "8 devices", "must be 8"],
  )


# The disk.

_ON_A_SMALL_DISK = """
import json, os, pathlib, subprocess, sys
from analogjax import main
from analogjax.cache import logit_cache

workdir = pathlib.Path(sys.argv[1])
def mount(options):
  command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", workdir]
  subprocess.run(command, check=True)
def look():
  done = logit_cache.open_cache(workdir / "cache").committed()
  first = workdir / "cache/tokens/c/0/0"
  return dict(done=int(done.sum()), first=first.stat().st_mtime_ns)

mount("size=600k")
codes = [main.main(sys.argv[2:])]
looks = [look()]
mount("remount,size=64m")
codes += [main.main(sys.argv[2:])]
looks += [look()]
pathlib.Path(sys.argv[0]).write_text(json.dumps([codes, looks]))
"""


@pytest.mark.skipif(
  not tiny_pair.can_mount(), reason="needs unshare -rm, to mount"
)
def test_a_full_disk_while_caching(bench, workdir, tmp_path):
  workdir.mkdir()
  script = tmp_path / "script.py"
  script.write_text(_ON_A_SMALL_DISK)
  more = ["--config.cache.num_rows=200", "--config.data.arguments.num_rows=400"]
  arguments = bench.arguments("cache", workdir, *more)
  done = subprocess.run(
    ["unshare", "-rm", sys.executable, script, workdir, *arguments],
    env=os.environ | {"PYTHONPATH": f"{ROOT}:{bench.folder}"},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  codes, (full, room) = json.loads(script.read_text())
  assert codes == [2, 0], done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith("analogjax cache: error: ")
  assert "No space left on device" in line and str(workdir) in line
  assert "again" in line
  assert 0 < full["done"] < 200
  assert room["done"] == 200
  assert room["first"] == full["first"]


# Measurements.


def another_tokenizer(folder):
  path = folder / "tokenizer.json"
  path.write_text(path.read_text() + " ")


def another_vocabulary(folder):
  path = folder / "config.json"
  values = json.loads(path.read_text()) | {"vocab_size": 383}
  path.write_text(json.dumps(values))


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (another_tokenizer, ["tokenizer.json: expected the teacher's tokenizer"]),
    (another_vocabulary, ["a vocabulary of 383, expected the teacher's 384"]),
    (shutil.rmtree, ["earlier"]),
  ],
)
def test_a_folder_that_cannot_be_compared(
  bench, trained, tmp_path, change, says
):
  folder = shutil.copytree(bench.teacher, tmp_path / "earlier")
  change(folder)
  override = f"--config.measure.folders=earlier={folder}"
  bench.refuse("measure", trained, override, says=says)


def test_rows_that_would_count_twice(bench, trained):
  # A row has an interval's weight once.
  override = "--config.measure.fit_rows=1000"
  says = [
    "measure.fit_rows=1000: the pipeline has",
    "different rows; set fit_r",
  ]
  bench.refuse("measure", trained, override, says=says)
  bench.refuse("measure", trained, "--only=outputs", says=["--only: expected"])
