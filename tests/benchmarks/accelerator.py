"""Training steps on one accelerator: time, utilisation, memory.

It needs only jax, numpy, flax and optax, and no network. Each line of the
tables runs in a separate process, so that one that runs out of memory is
reported, and peak memory is that of the line.

  python tests/benchmarks/accelerator.py --out=runs/accelerator
  python tests/benchmarks/accelerator.py --out=runs/accelerator --only=1B-hard
  python tests/benchmarks/accelerator.py --out=runs/toy --toy
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import datetime
import importlib.metadata
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import time
from typing import Any
import zlib

import stand_ins

# Room for a student of 3 billion on 80 GB; jax's own choice is three quarters.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.93")
MISSING = stand_ins.import_all(
  ("analogjax.training.steps", "analogjax.cache.batches")
)

from accelerator_report import markdown  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
import numpy as np  # noqa: E402
import students  # noqa: E402

from analogjax.cache import teacher_step  # noqa: E402
from analogjax.distributed import devices, sharding  # noqa: E402
from analogjax.models import decoder, sizes  # noqa: E402
from analogjax.training import losses, steps  # noqa: E402

_TIMEOUT_S = 1800  # Of a line, compilation included.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """A line of the table."""

  name: str
  student: str = ""  # Of students.SHAPES; "": the loss alone.
  kind: str = "hard"  # One of students.KINDS, or "plain".
  teacher: str = ""  # In the loop.
  rows: int = 1
  remat: str = "dots"


def _lines():
  for kind in ("plain", "hard", "threshold", "topk"):
    yield Line(name=f"loss-{kind}", kind=kind)
  # Rows for 80 GB.
  for student, teacher, rows, remat in (
    ("135M", "1B", 16, "dots"),
    ("1B", "8B", 4, "dots"),
    ("3B", "", 2, "full"),
  ):
    line = dict(student=student, rows=rows, remat=remat)
    for kind in ("hard", "threshold", "topk"):
      yield Line(name=f"{student}-{kind}", kind=kind, **line)
    if teacher:
      name = f"{student}-live-{teacher}"
      yield Line(name=name, kind="live", teacher=teacher, **line)


LINES = {line.name: line for line in _lines()}
# At toy size all students are the same.
_TOYS = ("loss-plain", "loss-threshold") + tuple(
  name for name in LINES if name.startswith("135M")
)
_QUICK = (
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def main(argv: Sequence[str] | None = None) -> int:
  args = _arguments(argv)
  args.out.mkdir(parents=True, exist_ok=True)
  if args.line:
    found = attempt(lambda: measure(LINES[args.line], args))
    (args.out / f"{args.line}.json").write_text(json.dumps(found))
    return 0
  path = args.out / "accelerator.json"
  results: dict[str, Any] = {"lines": {}}
  if path.exists():
    results = json.loads(path.read_text(encoding="utf-8"))
  results |= {
    "date": datetime.date.today().isoformat(),
    "versions": {name: _version(name) for name in stand_ins.NEEDED},
    "missing": MISSING,
    "arguments": {k: v for k, v in vars(args).items() if k != "out"},
  }
  for name in args.only or (_TOYS if args.toy else LINES):
    found = results["lines"][name] = _in_a_process(name, args, argv)
    print(f"{name}: {json.dumps(found)}", flush=True)
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")
  text = markdown(results)
  path.with_suffix(".md").write_text(text, encoding="utf-8")
  print(text)
  return 0


def _arguments(argv):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=Path, required=True, help="a folder")
  parser.add_argument("--only", action="append", choices=LINES)
  parser.add_argument("--toy", action="store_true", help="for a CPU")
  parser.add_argument("--length", type=int, help="tokens of a row")
  parser.add_argument("--chunk", type=int, help="tokens of logits at a time")
  parser.add_argument("--groups", type=int, help="that are timed")
  parser.add_argument("--group", type=int, help="steps between two waits")
  parser.add_argument("--remat", choices=("none", "dots", "full"))
  parser.add_argument("--attention", default="auto")
  parser.add_argument("--line", choices=LINES, help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  defaults = dict(length=4096, chunk=2048, groups=10, group=5)
  if args.toy:
    defaults = dict(length=64, chunk=32, groups=3, group=2)
  for name, value in defaults.items():
    if getattr(args, name) is None:
      setattr(args, name, value)
  return args


def _in_a_process(name, args, argv) -> dict[str, Any]:
  """The result of a line, or the reason why there is none."""
  path = args.out / f"{name}.json"
  path.unlink(missing_ok=True)
  given = sys.argv[1:] if argv is None else list(argv)
  command = [sys.executable, __file__, *given, f"--line={name}"]
  environment = dict(os.environ)
  if args.toy:  # Almost all of its time is compilation.
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}"
    environment["XLA_FLAGS"] = flags
  try:
    done = subprocess.run(
      command,
      capture_output=True,
      text=True,
      timeout=_TIMEOUT_S,
      env=environment,
    )
  except subprocess.TimeoutExpired:
    return {"status": f"took more than {_TIMEOUT_S} s"}
  if path.exists():
    found = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return found
  if done.returncode < 0:
    return {"status": f"killed by signal {-done.returncode}"}
  return {"status": "failed", "error": done.stderr[-2000:]}


def attempt(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """The measurement, or why it failed."""
  try:
    return {"status": "ok", **measure()}
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    # Words of XLA; allocators of GPUs say it in other ones than TPUs'.
    words = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")
    if isinstance(error, MemoryError) or any(w in str(error) for w in words):
      return {"status": "out of memory", "error": str(error)[:2000]}
    return {"status": "failed", "error": str(error)[:2000]}
  except ValueError as error:  # A shape that this device's kernels refuse.
    return {"status": "failed", "error": str(error)[:2000]}


def measure(line: Line, args) -> dict[str, Any]:
  """Times of a line's steps and the rates that follow."""
  device = jax.devices()[0]
  mesh = sharding.make_mesh({}, [device])
  with jax.set_mesh(mesh):
    prepare = _prepare_step if line.student else _prepare_loss
    run, facts = prepare(line, args, mesh)
    seconds = _time(run, args.groups, args.group)
  value = float(run.value())
  if not np.isfinite(value):
    return {"status": "failed", "error": f"the loss is {value}"}
  peak = devices.peak_flops(device.device_kind, "bfloat16")
  median = statistics.median(seconds)
  stats = device.memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    facts |= dict(peak_bytes=stats["peak_bytes_in_use"], peak_is="measured")
  else:
    facts |= dict(peak_bytes=run.planned_bytes, peak_is="planned")
  return {
    **dataclasses.asdict(line),
    **facts,
    "device": device.device_kind,
    "value": value,
    "seconds": seconds,
    "median_s": median,
    "min_s": min(seconds),
    "p90_s": float(np.quantile(seconds, 0.9)),
    "tokens_per_s": facts["tokens"] / median,
    "peak_flops": peak,
    "of_peak": facts["flops"] / median / peak if peak else None,
  }


def _time(run, groups: int, group: int) -> list[float]:
  """Seconds per step, the mean of each group, waiting only at its ends."""
  run.start()
  run.step()
  run.step()
  jax.block_until_ready(run.out)
  seconds = []
  for _ in range(groups):
    began = time.perf_counter()
    for _ in range(group):
      run.step()
    jax.block_until_ready(run.out)
    seconds.append((time.perf_counter() - began) / group)
  return seconds


class _Steps:
  """A student's training, step by step on one batch."""

  def __init__(self, training, batch, teacher):
    self._training, self._batch = training, batch
    self._teacher = teacher  # batch -> losses.Teacher, or None.
    self.out: Any = None

  def start(self):
    state = self._training.start()
    hidden = self._hidden()
    program = self._training.step.lower(state, self._batch, hidden).compile()
    self._program = program
    self.planned_bytes = _planned(program)
    self.out = state, None

  def step(self):
    self.out = self._program(self.out[0], self._batch, self._hidden())

  def value(self):
    return self.out[1]["loss_nats"]

  def _hidden(self):
    return None if self._teacher is None else self._teacher(self._batch)


def _prepare_step(line: Line, args, mesh):
  cfg = _config(line.student, args, remat=args.remat or line.remat)
  L, chunk = args.length, args.chunk
  rows = 2 if args.toy else line.rows
  host = students.make_batch(line.kind, rows, L, cfg.V)
  batch = sharding.put_rows(host, mesh)
  training = students.training(
    cfg=cfg,
    mesh=mesh,
    objective=losses.Objective(chunk=chunk),
    alpha=0.0 if line.kind == "hard" else 0.9,
  )
  teacher, teacher_flops = None, 0
  if line.teacher:
    teacher_cfg = _config(line.teacher, args)
    teacher = _make_teacher(teacher_cfg, mesh)
    teacher_flops = sizes.forward_flops_per_token(teacher_cfg, L)
  student_flops = sizes.training_flops_per_token(cfg, L)
  tokens = rows * L
  facts = {
    "tokens": tokens,
    "rows": rows,
    "remat": cfg.remat,
    "parameters": sizes.count_parameters(cfg).total,
    "student_flops": tokens * student_flops,
    "teacher_flops": tokens * teacher_flops,
    "flops": tokens * (student_flops + teacher_flops),
  }
  return _Steps(training, batch, teacher), facts


def _make_teacher(cfg, mesh):
  """The work of live.LiveTeacher on the student's mesh, with random weights."""
  graphdef = decoder.graphdef(cfg)

  def draw(path, leaf, where):
    name = jax.tree_util.keystr(path)
    if "scale_D" in name:
      return jnp.ones(leaf.shape, cfg.dtype, device=where)
    key = jax.random.key(zlib.crc32(name.encode()))
    # An array at a time: not two of a teacher's size are there together.
    make = jax.jit(
      lambda key: 0.02 * jax.random.normal(key, leaf.shape, cfg.dtype),
      out_shardings=where,
    )
    return make(key)

  abstract = decoder.abstract_parameters(cfg)
  params = jax.tree_util.tree_map_with_path(
    draw, abstract, sharding.state_shardings(abstract, mesh)
  )
  rows = NamedSharding(mesh, sharding.ROWS)

  def hidden(params, batch):
    return teacher_step.hidden_step(params, batch, graphdef=graphdef)[0]

  jitted = jax.jit(hidden, out_shardings=rows)
  head_VW = steps.head(params, graphdef)
  return lambda batch: losses.Teacher(jitted(params, batch), head_VW)


class _Loss:
  """The loss and its gradient by hidden states and unembedding."""

  def __init__(self, gradient, arguments):
    self._gradient, self._arguments = gradient, arguments
    self.out: Any = None

  def start(self):
    self._program = jax.jit(self._gradient).lower(*self._arguments).compile()
    self.planned_bytes = _planned(self._program)

  def step(self):
    self.out = None  # Or two gradients of a head's size are there together.
    self.out = self._program(*self._arguments)

  def value(self):
    return self.out[0]


def _prepare_loss(line: Line, args, mesh):
  cfg = _config("8B", args)
  T = 128 if args.toy else 8192
  kind = "hard" if line.kind == "plain" else line.kind
  host = students.make_batch(kind, 1, T, cfg.V)
  targets = sharding.put_rows(host, mesh).targets
  key = jax.random.key(0)
  x_BLD = jax.random.normal(key, (1, T, cfg.D), cfg.dtype)
  head_VD = 0.02 * jax.random.normal(key, (cfg.V, cfg.D))

  def ours(x_BLD, head_VD, targets):
    alpha = 0.0 if kind == "hard" else 0.9
    objective = losses.Objective(chunk=args.chunk)
    total, _ = losses.distillation_loss(
      x_BLD, head_VD, targets, alpha, objective
    )
    return total / T

  loss = plain_loss if line.kind == "plain" else ours
  gradient = jax.value_and_grad(loss, argnums=(0, 1))
  # Logits, and the two products of their gradient.
  facts = {"tokens": T, "flops": 3 * 2 * T * cfg.D * cfg.V}
  return _Loss(gradient, (x_BLD, head_VD, targets)), facts


def plain_loss(x_BLD, head_VD, targets):
  """Cross-entropy to the next token, nats per token, from all logits."""
  z_BLV = decoder.unembed(x_BLD, head_VD)
  label_BL1 = jnp.take_along_axis(z_BLV, targets.labels_BL[..., None], -1)
  return jnp.mean(jax.nn.logsumexp(z_BLV, axis=-1) - label_BL1[..., 0])


def _config(name: str, args, **changes) -> decoder.DecoderConfig:
  changes["attention"] = args.attention
  if args.toy:
    changes |= dict(V=512, D=32, Y=2, N=4, G=2, H=8, F=64)
  if args.toy and name == "8B":
    changes |= dict(D=48)
  return students.config(name, **changes)


def _planned(program) -> int:
  """XLA's plan for a program, bytes; without a teacher beside it."""
  memory = program.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "unknown"


if __name__ == "__main__":
  raise SystemExit(main())
