"""What the Gram of a row costs: bytes in the cache, and time of both steps.

On a finished run of the demo, whose teacher and cached rows are read:

  python tests/benchmarks/gram.py --workdir=runs/demo

Bytes are those of the array `gram` of a cache as it lies on disk, its index
included. Times are of all cores that this process used, so that other work on
the machine counts for little: medians of steps with a Gram and without, taking
turns.
"""

import argparse
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import statistics
import tempfile
import time

import jax
import numpy as np

from analogjax.cache import batches, logit_cache, sampling, teacher_programs
from analogjax.config import loading, schema
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.models import hf_import
from analogjax.run import run as assemble
from analogjax.training import programs

_DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
_POSITIONS, _LAYERS = (16, 32, 64), (1, 2, 4)
_TIMED = ((0, 1), (16, 2), (64, 4))  # Positions and depths; 0: none.
_TEACHER_ROWS = 4
_PARTS = ("bytes", "teacher", "student")


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--rows", type=int, default=64)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument(
    "--parts", nargs="+", choices=_PARTS, default=list(_PARTS)
  )
  args = parser.parse_args(argv)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  cache = logit_cache.open_cache(args.workdir / assemble.CACHE)
  folder = args.workdir / assemble.TEACHER
  cfg = hf_import.read_config(folder, dtype="float32")
  with jax.set_mesh(mesh):
    params = hf_import.read_parameters(folder, cfg, mesh, dtype=cfg.dtype)
    if "bytes" in args.parts:
      _print_bytes(cache, cfg, params, mesh, args.rows)
    if "teacher" in args.parts:
      _print_teacher(cache, cfg, params, mesh, args.rounds)
    if "student" in args.parts:
      _print_student(cache, mesh, args.rounds)
  return 0


def _print_bytes(cache, cfg, params, mesh, num_rows) -> None:
  rows = cache.read(np.arange(num_rows)).rows
  L = cache.manifest.sequence_length
  print(f"{num_rows} rows of {L} tokens; bytes a token:\n")
  print("| positions | depths | before | on disk | deviation of a cosine |")
  print("|---|---|---|---|---|")
  for Z in _LAYERS:
    step = teacher_programs.make_hidden_step(cfg, mesh, gram_layers=Z)
    for M in _POSITIONS:
      pieces = []
      for start in range(0, num_rows, 8):
        part = rows_lib.Rows(*(field[start : start + 8] for field in rows))
        batch = batches.with_positions(batches.from_rows(part), part, M, 0)
        pieces.append(np.asarray(step(params, batch)[1]))
      codes_RZP = np.concatenate(pieces)
      size = _bytes_on_disk(cache.manifest, rows, codes_RZP, M, Z)
      before, deviation = codes_RZP.size / num_rows / L, codes_RZP.std() / 127
      on_disk = size / num_rows / L
      print(f"| {M} | {Z} | {before:.2f} | {on_disk:.2f} | {deviation:.2f} |")


def _bytes_on_disk(m, rows, codes_RZP, M: int, Z: int) -> int:
  """Of the array alone; the records beside it are empty."""
  R, L = len(codes_RZP), m.sequence_length
  m = dataclasses.replace(
    m,
    **dict(kind="topk", tau=None, top_k=1, num_replicas=1),
    **dict(num_rows=R, rows_per_object=32, gram_positions=M),
    gram_depths=tuple((i + 1) / Z for i in range(Z)),
  )
  zeros = np.zeros((R, 1, L, 1))
  records = sampling.Records(
    ids_BMLK=zeros.astype(np.int32),
    codes_BMLK=zeros.astype(np.uint8),
    logprobs_BMLK=zeros.astype(np.float32),
    log_tail_BL=np.zeros((R, L), np.float32),
    entropy_BL=np.zeros((R, L), np.float32),
    label_logprob_BL=np.zeros((R, L), np.float32),
    inclusion_BL=np.zeros((R, L), np.uint8),
    gram_BZP=codes_RZP,
  )
  with tempfile.TemporaryDirectory() as folder:
    made = logit_cache.create(folder, m)
    for part in made.objects():
      cut = slice(part.start, part.stop)
      of_part = jax.tree.map(lambda a, cut=cut: a[cut], (rows, records))
      made.write(part.start, *of_part)
    return made.bytes_by_array(made.objects())["gram"]


def _print_teacher(cache, cfg, params, mesh, rounds) -> None:
  """A step of the demo's cache stage, of fewer rows."""
  section = _sections().cache
  rows = cache.read(np.arange(_TEACHER_ROWS)).rows
  keys_B2 = sampling.row_keys(rows_lib.rows_digests(rows), 0)
  arms = {}
  for M, Z in _TIMED:
    step = teacher_programs.make_teacher_step(
      cfg,
      mesh,
      sampler=sampling.Threshold(tau=section.tau),
      capture=sampling.Capture(),
      num_replicas=1,
      temperature=1.0,
      chunk=section.chunk,
      gram_layers=Z,
    )
    batch = batches.from_rows(rows)
    if M:
      batch = batches.with_positions(batch, rows, M, 0)
    on_mesh = sharding.put_rows((batch, keys_B2), mesh)
    arms[M, Z] = lambda step=step, at=on_mesh: step(params, *at)
  _print_times("a teacher step", arms, rounds)


def _print_student(cache, mesh, rounds) -> None:
  """A step of the demo's phase `distill`, on records of its cache."""
  arms = {}
  for M, Z in _TIMED:
    sections = _sections(
      f"cache.gram_positions={M or 2}",
      f"cache.gram_layers={Z}",
      f"train.distill.loss.gram_weight={float(M > 0)}",
    )
    phase = sections.train.phase["distill"]
    training = programs.make_training(
      phase,
      assemble.student_config(sections),
      mesh,
      seed=0,
      teacher_softcap=None,
    )
    entries = cache.read(np.arange(phase.batch_rows))
    batch = batches.from_entries(entries._replace(gram=None))
    if M:
      batch = batches.with_positions(batch, entries.rows, M, 0)
      codes = np.zeros((phase.batch_rows, Z, M * (M - 1) // 2), np.int8)
      batch = batch._replace(gram=batch.gram._replace(codes_BZP=codes))
    state = [training.start()]
    batch = sharding.put_rows(batch, mesh)

    def run(step=training.step, state=state, batch=batch):
      state[0], metrics = step(state[0], batch)
      return metrics

    arms[M, Z] = run
  _print_times("a training step", arms, rounds)


def _print_times(title, arms, rounds) -> None:
  for run in arms.values():
    jax.block_until_ready(run())
  seconds = {arm: [] for arm in arms}
  for _ in range(rounds):
    for arm, run in arms.items():
      began = time.process_time()
      jax.block_until_ready(run())
      seconds[arm].append(time.process_time() - began)
  base = seconds[0, 1]
  print(f"\n{title}: {statistics.median(base):.3f} s of CPU without a Gram")
  for (M, Z), found in seconds.items():
    if M:
      ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
      print(f"  {M} positions, {Z} depths: {ratio:.3f} of that")


def _sections(*overrides: str) -> schema.Sections:
  pairs = [tuple(o.split("=", 1)) for o in overrides]
  return schema.to_sections(loading.load(_DEMO, pairs))


if __name__ == "__main__":
  raise SystemExit(main())
