"""A tiny pair on real text: the demo's config, shrunk by overrides."""

import dataclasses
import json
import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys
from typing import Any

import jax
import models
import pytest
import tokenizers

from analogjax import main
from analogjax.distributed import cluster, sharding
from analogjax.models import decoder, hf_export
from analogjax.training import loop
from analogjax.workdir import metrics

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.py"
# Modules that make processes lighter.
ON_PATH = Path(__file__).parent / "on_path"

TEACHER = models.tiny(V=384, D=48, Y=3, H=12, F=96, max_positions=128)

# Runs a stage after a patch that kills the process at a chosen moment.
_KILLER = """
import os, signal, sys
from analogjax import main
{patch}
sys.exit(main.main(sys.argv[1:]))
"""

# One of several; a patch sees which one as `me`.
_PROCESS = """
import os, signal, sys, time
import jax
jax.config.update("jax_num_cpu_devices", {devices})
from analogjax import main
me = int(os.environ.get("ANALOGJAX_PROCESS_ID", 0))
{patch}
sys.exit(main.main(sys.argv[1:]))
"""


@dataclasses.dataclass(frozen=True)
class Tiny:
  """Runs `analogjax` on the tiny pair in a process of its own."""

  teacher: Path
  config: Path
  overrides: tuple[str, ...]
  compilation_cache: Path

  def command(self, command, workdir, *more):
    arguments = [command, f"--config={self.config}", f"--workdir={workdir}"]
    return [*arguments, *self.overrides, *more]

  def environment(self):
    return os.environ | {
      "ANALOGJAX_COMPILATION_CACHE": str(self.compilation_cache),
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": f"{ROOT}{os.pathsep}{ON_PATH}",
      "COLUMNS": "200",
    }

  def run(self, command, workdir, *more, patch="", check=True):
    done = subprocess.run(
      [
        sys.executable,
        "-c",
        _KILLER.format(patch=patch),
        *self.command(command, workdir, *more),
      ],
      env=self.environment(),
      capture_output=True,
      text=True,
      timeout=300,
    )
    if check:
      assert done.returncode == 0, done.stdout + done.stderr
    return done

  def start(self, command, workdir, *more):
    return subprocess.Popen(
      [sys.executable, "-m", "analogjax.main"]
      + self.command(command, workdir, *more),
      env=self.environment(),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )

  def start_processes(
    self, arguments, *, count=2, devices=2, patch="", path=None
  ):
    """Starts `analogjax` as one job of several processes.

    Args:
      devices: in all.
      patch: code that each runs first.
      path: a folder to import from.
    """
    environment = self.environment()
    if path is not None:
      environment["PYTHONPATH"] += f":{path}"
    address = f"localhost:{free_port()}"
    job = {"ANALOGJAX_COORDINATOR": address, "ANALOGJAX_NUM_PROCESSES": count}
    script = _PROCESS.format(devices=devices // count, patch=patch)
    return [
      subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment
        | {k: str(v) for k, v in (job | {"ANALOGJAX_PROCESS_ID": i}).items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(count)
    ]

  def finish(self, processes, code=0):
    """Waits; [(stdout, stderr)] of processes that end with this code."""
    try:
      said = [process.communicate(timeout=280) for process in processes]
    finally:
      for process in processes:
        process.kill()
    assert [p.returncode for p in processes] == [code] * len(processes), said
    return said


def write_config(path, base, *lines):
  """Writes a config file: the file `base`, changed by lines of Python."""
  changes = "".join(f"  {line}\n" for line in lines)
  path.write_text(
    f"import runpy\n\n\ndef get_config():\n"
    f"  cfg = runpy.run_path({str(base)!r})['get_config']()\n"
    f"{changes}  return cfg\n"
  )
  return path


# A pipeline of a lab's own; a test breaks its rows through FAULTS.
_ROWS = """
import grain
import numpy as np

FAULTS = {{}}  # Row -> (its fields) -> what is there instead.

def row(index):
  rng = np.random.default_rng(index)
  fields = {fields}
  return FAULTS.get(index, lambda fields: fields)(fields)

def indexed(num_rows, first=0):
  return grain.MapDataset.range(first, first + num_rows).map(row)

def stream(num_rows, first=0):
  return indexed(num_rows, first).to_iter_dataset()

def other(num_rows, first=0):
  return stream(num_rows, first)
"""
_FIELDS = """dict(
    tokens=rng.integers(0, 384, 32), segments=np.repeat([1, 2], [20, 12])
  )"""


def write_lab(folder, name, *, num_rows, rows="stream", fields=_FIELDS):
  """Writes a lab's config and pipeline, as {name}.py and {name}_rows.py.

  Args:
    folder: their place; several processes need it on their path.
    num_rows: rows of the data. Held-out rows are those from 1000 on.
    rows: `stream`, or `indexed` for rows that are read by index.
    fields: Python for the fields of a row, from `index` and `rng`.
  """
  (folder / f"{name}_rows.py").write_text(_ROWS.format(fields=fields))
  return write_config(
    folder / f"{name}.py",
    DEMO,
    f"cfg.data.pipeline = '{name}_rows:{rows}'",
    "cfg.measure.domains = dict()",
    f"cfg.data.arguments = dict(num_rows={num_rows}, first=0)",
    "cfg.data.held_out_arguments = dict(first=1000)",
  )


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def content(workdir, *names):
  """Every file below these folders of a workdir, or all, with its bytes."""
  return {
    path.relative_to(workdir): path.read_bytes()
    for folder in ([workdir / name for name in names] or [workdir])
    for path in folder.rglob("*")
    if path.is_file()
  }


def can_mount():
  """Whether this user may mount folders in a separate namespace."""
  probe = ["unshare", "-rm", "true"]
  return shutil.which("unshare") and not subprocess.call(
    probe, stderr=subprocess.DEVNULL
  )


def _texts():
  """The standard library's docstrings and comments: real text, always there."""
  folder = Path(os.__file__).parent
  for name in sorted(p.name for p in folder.glob("*.py"))[:120]:
    yield (folder / name).read_text(encoding="utf-8", errors="replace")[:6000]


def make_tiny(folder, compilation_cache):
  """Makes the pair, in a separate folder."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=TEACHER.V,
    special_tokens=["<|endoftext|>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  texts = list(_texts())
  tokenizer.train_from_iterator(texts, trainer)
  assert tokenizer.get_vocab_size() == TEACHER.V
  source = folder / "tokenizer"
  source.mkdir()
  tokenizer.save(str(source / "tokenizer.json"))
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|endoftext|>",
  }
  (source / "tokenizer_config.json").write_text(json.dumps(settings))
  (source / "config.json").write_text(json.dumps({"eos_token_id": 0}))

  mesh = sharding.make_mesh({}, devices=jax.devices()[:1])
  params = decoder.init_parameters(TEACHER, 0)
  # Random logits of some size: a head and a tail at every position.
  embed = params["embed_VD"]
  params["embed_VD"] = embed.replace(embed.get_value() * 15)
  with jax.set_mesh(mesh):
    hf_export.write_folder(
      folder / "teacher",
      TEACHER,
      params,
      dtype="float32",
      max_shard_bytes=10**9,
      tokenizer_folder=source,
      keeps_chat_template=False,
      metadata={},
    )
  text = folder / "text.jsonl"
  text.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
  config = write_config(
    folder / "tiny.py",
    DEMO,
    "cfg.data.pipeline = 'analogjax.data.text:jsonl'",
    "cfg.measure.domains = dict()",
    f"cfg.data.arguments = dict(path={str(text)!r}, tokenizer='{{teacher}}')",
    "cfg.data.arguments.update(L=32, end_token='<|endoftext|>', split='train')",
    "cfg.data.arguments.update(held_out_every=8, seed=0)",
  )
  return Tiny(
    teacher=folder / "teacher",
    config=config,
    overrides=_overrides(folder / "teacher"),
    compilation_cache=compilation_cache,
  )


def _overrides(teacher):
  values = {
    "teacher.path": teacher,
    "student.V": TEACHER.V,
    "student.D": 8,
    "student.Y": 1,
    "student.N": 2,
    "student.G": 1,
    "student.H": 4,
    "student.F": 16,
    "student.max_positions": 64,
    "student.size_window": "warn",
    "data.L": 32,
    "cache.num_rows": 46,  # The last object holds 6 of its 8 rows.
    "cache.held_out_rows": 8,
    "cache.batch_rows": 4,
    "cache.rows_per_object": 8,
    "cache.chunk": 16,
    "measure.parts": "output",  # The others have tests of their own.
    "measure.batch_rows": 4,
    "measure.fit_rows": 4,
    "measure.resamples": 100,
    "safety.parts": "extraction",
    "safety.phases": "",
    "safety.reference": "",
    "safety.batch_rows": 4,
    "safety.prefix_tokens": 4,
    "safety.suffix_tokens": 4,
    "safety.rows": 8,
    "safety.resamples": 100,
  }
  for phase in ("pretrain", "control", "distill"):
    values |= {
      f"train.{phase}.num_steps": 12,
      f"train.{phase}.batch_rows": 4,
      f"train.{phase}.checkpoint_every_steps": 4,
      f"train.{phase}.eval_every_steps": 6,
      f"train.{phase}.log_every_steps": 1,
      f"train.{phase}.loss.chunk": 32,
      f"train.{phase}.optimizer.warmup_steps": 2,
      f"train.{phase}.optimizer.decay_steps": 4,
    }
  return tuple(f"--config.{k}={v}" for k, v in values.items())


@dataclasses.dataclass
class Seen:
  """Data that went through a phase, by step."""

  code: int = 0
  batches: dict = dataclasses.field(default_factory=dict)
  states: dict = dataclasses.field(default_factory=dict)  # As saved.


@dataclasses.dataclass(frozen=True)
class Lab:
  """Trains one phase for 12 steps of 8 rows, over and over 24 cached rows."""

  tiny: Tiny
  folder: Path  # To import from.
  cached: Path  # A workdir in which nothing was trained.
  rows: Any  # The module of the pipeline.

  values = {
    "student.G": 2,  # tensor=2 divides it.
    "cache.num_rows": 24,
    "cache.batch_rows": 8,
    "cache.gram_positions": 8,
    "cache.gram_layers": 1,
    "train.phases": "distill",
    "train.distill.loss.gram_weight": 0.5,
    "train.distill.init_from": "",
    "train.distill.batch_rows": 8,
    "train.distill.keep_checkpoints": 9,
    "measure.phases": "distill",
  }
  # Where the rows come from, by overrides.
  sources = {
    "cache": (),
    "stream": (
      "train.distill.rows=pipeline",
      "train.distill.loss.alpha=0",
      "train.distill.loss.gram_weight=0",
    ),
  }

  def arguments(self, command, workdir, *values):
    """Arguments of the command line; `values` are overrides."""
    own = [f"--config.{key}={value}" for key, value in self.values.items()]
    given = [f"--config.{value}" for value in values]
    config = self.folder / "lab.py"
    paths = [f"--config={config}", f"--workdir={workdir}"]
    return [command, *paths, *self.tiny.overrides, *own, *given]

  def fresh(self, workdir):
    """A workdir with caches, in which nothing was trained."""
    return shutil.copytree(self.cached, workdir)

  def train(self, workdir, *values, devices=8, at=None, flags=()):
    """Trains in this process, with the caches of `cached`.

    Args:
      workdir: created, with the caches, if missing.
      values: overrides.
      devices: number of simulated devices of the mesh.
      at: step -> function that is called when its batch was read.
      flags: of the command line, other than overrides.
    """
    if not workdir.exists():
      self.fresh(workdir)
    seen, at = Seen(), at or {}
    take, save = loop.Phase._next, loop.Phase._save
    make_mesh = sharding.make_mesh

    def watched_next(self, ahead, step):
      batch = take(self, ahead, step)
      seen.batches[step] = jax.device_get(batch)
      at.get(step, lambda: None)()
      return batch

    def watched_save(self, step, state, *rest):
      seen.states[step] = jax.device_get(state)
      save(self, step, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
      patch.setenv(
        "ANALOGJAX_COMPILATION_CACHE", str(self.tiny.compilation_cache)
      )
      patch.setattr(loop.Phase, "_next", watched_next)
      patch.setattr(loop.Phase, "_save", watched_save)
      patch.setattr(
        sharding,
        "make_mesh",
        lambda axes, _=None: make_mesh(axes, jax.devices()[:devices]),
      )
      # A thread that hangs would keep pytest from ending.
      patch.setattr(cluster, "exit_now", sys.exit)
      arguments = self.arguments("train", workdir, *values)
      try:
        seen.code = main.main([*arguments, *flags])
      except SystemExit as left:
        seen.code = left.code
    return seen

  def curve(self, workdir):
    """Records of the phase, without its speeds."""
    return [
      record
      for record in metrics.read(workdir / "train" / "distill")
      if "speed/tokens_per_second" not in record
    ]

  def losses(self, workdir):
    """Losses and Grams of each step and of each evaluation."""
    return {
      (record["step"], name): value
      for record in self.curve(workdir)
      for name, value in record.items()
      if name.endswith(("_nats", "/gram"))
    }
