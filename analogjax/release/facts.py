"""Opens a release: every fact of a config and its workdir, private ones too.

What of them is published is for release/record.py to say.
"""

from collections.abc import Collection, Mapping
import dataclasses
import hashlib
import json
import math
from pathlib import Path
import platform
import subprocess
from typing import Any

import analogjax
from analogjax.bundle import folder as walk, safetensors_headers
from analogjax.leaks import DIMENSIONS, Secrets, settings_of
from analogjax.models import (
  families,
  sizes,
)
from analogjax.planning import rates
from analogjax.run import caches, identity
from analogjax.run.run import Run
from analogjax.workdir import costs, files as files_lib, ledger

# Of a model's measurements, those that a record quotes.
_METRICS = (
  *("cross_entropy_nats", "kl_to_teacher_nats", "jensen_shannon_nats"),
  *("top1_agreement", "top5_agreement", "accuracy"),
  "expected_calibration_error",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
  """The Hugging Face folder of the analog, as its receipt has it."""

  folder: Path
  receipt: Mapping[str, Any]

  @property
  def files(self) -> Mapping[str, str]:
    return self.receipt["files"]


def open_export(run: Run) -> Export:
  """The export of this config's phase and teacher, every byte as it was.

  Raises:
    ValueError: there is none, or it is of something else, or it was changed.
  """
  folder, path = run.export_folder, run.workdir / "export.json"
  again = "run 'analogjax export' with this config and workdir first."
  if not path.is_file() or not folder.is_dir():
    raise ValueError(f"{folder}: there is no export; {again}")
  receipt = files_lib.read_json(path)
  source, phase = receipt["source"], run.config.release.phase
  wanted = {
    "phase": phase,
    "step": run.config.train.phase[phase].num_steps,
    "teacher_digest": run.teacher.digest,
    "dtype": run.config.release.dtype,
  }
  for name, value in wanted.items():
    if source.get(name) != value:
      raise ValueError(
        f"{folder}: the export's {name} is {source.get(name)!r}, this config's"
        f" is {value!r}; {again}"
      )
  names = {p.name for p in folder.iterdir()}
  if names != set(receipt["files"]):
    odd = sorted(names ^ set(receipt["files"]))[0]
    raise ValueError(f"{folder / odd}: not as it was exported; {again}")
  for name, digest in receipt["files"].items():
    if files_lib.file_sha256(folder / name) != digest:
      raise ValueError(f"{folder / name}: changed since its export; {again}")
  return Export(folder=folder, receipt=receipt)


def model_facts(run: Run, export: Export, released_on: str) -> dict[str, Any]:
  """Of the analog: section `model` of a record, but for its licence."""
  release, cfg = run.config.release, run.student
  about, dtype = release.about, release.dtype
  named = families.to_hf_config(cfg, dtype=dtype)
  tree = walk.open_tree(export.folder)
  return {
    "name": about.name,
    "version": about.version,
    "provider": about.provider,
    "contact": about.contact,
    "released_on": released_on,
    "languages": list(about.languages),
    "modalities": ["text"],
    "intended_use": about.intended_use,
    "out_of_scope": about.out_of_scope,
    "limitations": about.limitations,
    "family": named["model_type"],
    "parameters": {
      "total": export.receipt["parameters"],
      "active": export.receipt["parameters"],  # Dense.
    },
    "weights_bytes": sum(
      (export.folder / name).stat().st_size
      for name in export.files
      if name.endswith(".safetensors")
    ),
    "dtype": dtype,
    "vocabulary_size": cfg.V,
    "context_tokens": cfg.max_positions,
    "tensors": sum(
      len(safetensors_headers.read(tree, name).tensors)
      for name in export.files
      if name.endswith(".safetensors")
    ),
    "files": dict(sorted(export.files.items())),
    "architecture": sizes.architecture(cfg),
  }


def training_facts(run: Run) -> dict[str, Any]:
  """Of the phases that went into the analog, without `wall_seconds`."""
  found = []
  for name in run.chain:
    phase = run.config.train.phase[name]
    teaches = "hard labels"
    if phase.loss.has_teacher:
      teaches = f"{'live' if phase.runs_teacher else 'cached'} teacher"
    found.append(
      {
        "name": name,
        "teaches": teaches,
        "begins_from": phase.init_from,
        "steps": phase.num_steps,
        "tokens": phase.num_steps * phase.batch_rows * run.config.data.L,
        "loss": dataclasses.asdict(phase.loss),
        "optimizer": dataclasses.asdict(phase.optimizer),
        "batch_rows": phase.batch_rows,
      }
    )
  return {"phases": found}


def data_facts(run: Run, manifest: Any, export: Export) -> dict[str, Any]:
  """Of the data: what the lab says of it, and what the run counted."""
  release, L = run.config.release, run.config.data.L
  tokens = sum(p["tokens"] for p in training_facts(run)["phases"])
  return {
    "sources": {name: dict(source) for name, source in release.sources.items()},
    "curation": release.about.curation,
    "row_tokens": L,
    # A row counts as often as it was trained on.
    "train_rows": tokens // L,
    "train_tokens": tokens,
    "held_out_rows": run.config.cache.held_out_rows,
    "shares_rows": release.shares_rows,
    "tokenizer_sha256": export.files["tokenizer.json"],
    "pipeline_sha256": _sha256(manifest.pipeline_fingerprint.encode()),
  }


def distillation_facts(run: Run) -> dict[str, Any]:
  """Of the cache that it learned from; `used` alone where there is none."""
  phases = [run.config.train.phase[name] for name in run.chain]
  taught = any(phase.loss.has_teacher for phase in phases)
  if not any(phase.reads_records or phase.reads_gram for phase in phases):
    return {"used": taught}
  cache = run.cache(caches.CACHE)
  manifest = cache.manifest
  tokens = manifest.num_rows * manifest.sequence_length
  size = sum(cache.bytes_by_array(cache.objects()).values())
  return {
    "used": taught,
    "record_kind": manifest.kind,
    "temperature": manifest.temperature,
    "cached_rows": manifest.num_rows,
    "cached_tokens": tokens,
    "bytes_per_token": round(size / tokens, 2),
    "gram": bool(manifest.gram_depths),
    "cache_sha256": _sha256(_canonical(manifest.to_attributes())),
    "sampling": {
      name: getattr(manifest, name)
      for name in ("tau", "num_draws", "top_k", "capture", "capture_rate")
    },
  }


def frontier_facts(run: Run, parameters: int) -> dict[str, Any]:
  """Private facts of the frontier model.

  Args:
    run: with the teacher of the analog.
    parameters: of the analog.
  """
  stated, teacher = run.config.release.frontier, run.teacher
  cfg = teacher.cfg
  total = stated.parameters or cfg.num_parameters
  active = stated.active_parameters or total
  outside = files_lib.read_json(teacher.folder / "config.json")
  return {
    "name": stated.name,
    "deployed_on": stated.deployed_on,
    "parameters": total,
    "active_parameters": active,
    "family": stated.family or outside["model_type"],
    "teacher_digest": teacher.digest,
    "architecture": sizes.architecture(cfg),
    "size_ratio": parameters / total,
    "active_ratio": parameters / active,
  }


def fidelity_facts(public: Mapping[str, Any], text: str) -> dict[str, Any]:
  """Of the published fidelity.json and its bytes."""
  analog = public["inputs"]["analog"]
  output = public.get("output")
  metrics = output["models"][analog]["metrics"] if output else {}
  return {
    "sha256": _sha256(text.encode()),
    "quick": public["inputs"]["quick"],
    "analog": analog,
    "metrics": {name: metrics[name] for name in _METRICS if name in metrics},
    "claims": [
      {name: claim[name] for name in ("id", "text", "verdict", "because")}
      for claim in public["claims"]
    ],
  }


def safety_facts(public: Mapping[str, Any], text: str) -> dict[str, Any]:
  """Of the published safety.json and its bytes."""
  return {
    "sha256": _sha256(text.encode()),
    **{name: public[name] for name in ("quick", "verdict", "tests")},
  }


def repro_facts(
  run: Run, public_config: str, quick: Collection[str]
) -> dict[str, Any]:
  """How it was made, and with what.

  Args:
    run: what is released.
    public_config: the text of repro/config.json.
    quick: stages that ran with --quick.
  """
  commit, dirty = _commit()
  config = run.config
  seeds = {"student": config.student.seed, "cache": config.cache.seed}
  seeds |= {
    f"train.{name}": config.train.phase[name].seed for name in run.chain
  }
  stages = ("cache", "train", "measure", "safety", "export", "release")
  return {
    "commit": commit,
    "dirty": dirty,
    "commands": [
      f"analogjax {stage} --config=CONFIG --workdir=WORKDIR"
      + (" --quick" if stage in quick else "")
      + (" --key=KEY" if stage == "release" else "")
      for stage in stages
    ],
    "software": identity.software_versions(),
    "python": platform.python_version(),
    "config_sha256": _sha256(public_config.encode()),
    "seeds": seeds,
  }


def _commit() -> tuple[str | None, bool | None]:
  """Of the checkout that analogjax runs from, and whether it differs from it.

  None, None where it was installed from elsewhere, or git is not there.
  """
  root = Path(analogjax.__file__).parents[1]
  if not (root / ".git").exists():
    return None, None

  def git(*arguments: str) -> str:
    done = subprocess.run(
      ["git", "-C", str(root), *arguments],
      capture_output=True,
      text=True,
      timeout=60,
      check=True,
    )
    return done.stdout.strip()

  try:
    changed = git("status", "--porcelain", "--untracked-files=no", "analogjax")
    return git("rev-parse", "HEAD"), bool(changed)
  except (OSError, subprocess.SubprocessError):
    return None, None


def _canonical(value: Any) -> bytes:
  return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def cost_facts(run: Run, weights_bytes: int) -> dict[str, Any]:
  """All that the ledger says was spent; see release/costs.py."""
  # Else each time that it is released would cost more than the time before.
  entries = [e for e in ledger.entries(run.workdir) if e["stage"] != "release"]
  kinds = {entry["device_kind"] for entry in entries if "device_kind" in entry}
  train, plan = run.config.train, run.config.plan
  size = reads = writes = 0.0
  for name in run.cache_names:
    cache = run.cache(name)
    by_array = cache.bytes_by_array(cache.objects())
    size += sum(by_array.values())
    writes += len(by_array) * len(cache.objects())
    if name == caches.CACHE:
      rows = sum(
        phase.num_steps * phase.batch_rows
        for phase in map(train.phase.get, train.phases)
        if phase is not None and phase.rows == "cache"
      )
      reads += rows * len(by_array)
  return costs.cost(
    entries,
    names=train.phases,
    phases=train.phase,
    released=run.config.release.phase,
    rates=rates.rates(plan, kinds),
    prices=plan,
    weights_bytes=weights_bytes,
    cache=costs.StoredCache(bytes=size, reads=reads, writes=writes),
  )


def wall_seconds(run: Run) -> float:
  """Of the phases that went into the analog, over all restarts."""
  stages = {f"train/{name}" for name in run.chain}
  found = [
    entry["seconds"]
    for entry in ledger.entries(run.workdir)
    if entry["stage"] in stages
  ]
  return round(math.fsum(found), 1)


def secrets(
  run: Run,
  facts: Mapping[str, Any],
  resolved: Mapping[str, Any],
) -> Secrets:
  """What must not be in the bundle, for the leak linter."""
  frontier, model = facts["frontier"], facts["model"]
  config = run.config
  stated = config.release.frontier
  ours = {k: v for k, v in model["architecture"].items() if v is not True}
  places = (
    *(config.teacher.path, str(run.workdir.resolve())),
    *(config.cache.location, config.train.location),
    *(config.cache.s3_endpoint, config.train.s3_endpoint),
    config.cache.import_path,
  )
  module = config.data.pipeline.partition(":")[0]
  own = [] if module.startswith("analogjax.") else [module]
  return Secrets(
    parameters=frontier["parameters"],
    active_parameters=frontier["active_parameters"],
    architecture={
      name: size
      for name, size in frontier["architecture"].items()
      if name in DIMENSIONS
    },
    student={
      "parameters": model["parameters"]["total"],
      "vocabulary_size": model["vocabulary_size"],
      "context_tokens": model["context_tokens"],
      **{name: size for name, size in ours.items() if name in DIMENSIONS},
    },
    names=(frontier["name"],),
    words=(*stated.private_words, *own, frontier["teacher_digest"]),
    paths=tuple(place for place in places if place),
    numbers=settings_of(resolved),
    deployed_on=frontier["deployed_on"],
    released_on=model["released_on"],
  )
