"""Collects every fact of a release, including private ones.

bundle/record.py says which of them are published.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
import math
from pathlib import Path
import platform
import subprocess
from typing import Any

import analogjax
from analogjax.bundle import (
  commitments,
  folder as walk,
  licences,
  safetensors_headers,
)
from analogjax.bundle.record_fields import CACHED, LIVE
from analogjax.config import loading, window
from analogjax.leaks import DIMENSIONS, Secrets, settings_of
from analogjax.models import families, sizes
from analogjax.release.material import Material
from analogjax.run import caches, identity
from analogjax.run.run import Run
from analogjax.workdir import costs, files as files_lib, ledger

REGULATOR = "regulator"  # The folder beside the bundle.
# Measurements of a model that a record quotes.
_METRICS = (
  "cross_entropy_nats",
  "kl_to_teacher_nats",
  "jensen_shannon_nats",
  "top1_agreement",
  "top5_agreement",
  "accuracy",
  "expected_calibration_error",
)
# Statements of the config that a record copies.
_ABOUT = (
  "name",
  "version",
  "provider",
  "contact",
  "intended_use",
  "out_of_scope",
  "limitations",
)


def collect(material: Material) -> dict[str, Any]:
  """Every fact of a release except how the gates were judged."""
  run, published = material.run, material.published
  model = _model(material)
  frontier = _frontier(run, model["parameters"]["total"])
  spent = _cost(run, model["weights_bytes"])
  ours, theirs = pipelines(run)
  tokenizer = material.files["tokenizer.json"]
  facts = {
    "model": model,
    "frontier": frontier,
    "pair": {
      "same_family": frontier["family"] == model["family"],
      "same_tokenizer": tokenizer == run.teacher.tokenizer_digest,
      "same_data": theirs == ours if theirs else None,
    },
    "data": _data(run, tokenizer),
    "distillation": _distillation(run),
    "training": {"phases": _phases(run), "wall_seconds": _wall_seconds(run)},
    "cost_in_full": spent,
    "repro": _repro(material),
    "mof": _openness(material),
    "not_recorded": _gaps(spent),
  }
  if "fidelity" in published:
    facts["fidelity"] = _fidelity(published["fidelity"])
  if "safety" in published:
    facts["safety"] = _safety(published["safety"])
  return facts


def pipelines(run: Run) -> tuple[str, str]:
  """Fingerprints of the analog's and the frontier model's rows, or ""."""
  # The rows to train on, if they were cached.
  manifest = run.cache(run.cache_names[0]).manifest
  theirs = run.config.release.frontier.pipeline_fingerprint
  return manifest.pipeline_fingerprint, theirs


def _model(material: Material) -> dict[str, Any]:
  run = material.run
  release, cfg, folder = run.config.release, run.student, run.export_folder
  about, licence = release.about, material.licence
  tree = walk.open_tree(folder)
  weights = [n for n in material.files if n.endswith(".safetensors")]
  headers = [safetensors_headers.read(tree, name) for name in weights]
  parameters = material.receipt["parameters"]
  return {
    **{name: getattr(about, name) for name in _ABOUT},
    "languages": list(about.languages),
    "modalities": ["text"],
    "released_on": material.released_on,
    "licence": {
      "spdx": licence.spdx,
      "name": licence.name,
      "category": licence.category,
      "text_sha256": licence.text_sha256,
    },
    "family": families.to_hf_config(cfg, dtype=release.dtype)["model_type"],
    "parameters": {"total": parameters, "active": parameters},  # Dense.
    "weights_bytes": sum((folder / name).stat().st_size for name in weights),
    "dtype": release.dtype,
    "vocabulary_size": cfg.V,
    "context_tokens": cfg.max_positions,
    "tensors": sum(len(header.tensors) for header in headers),
    "files": dict(sorted(material.files.items())),
    "architecture": sizes.architecture(cfg),
  }


def _phases(run: Run) -> list[dict[str, Any]]:
  """The phases that lead to the analog."""
  found = []
  for name in run.chain:
    phase = run.config.train.phase[name]
    teaches = "hard labels"
    if phase.loss.has_teacher:
      teaches = LIVE if phase.runs_teacher else CACHED
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
  return found


def _data(run: Run, tokenizer_sha256: str) -> dict[str, Any]:
  """The lab's statements about the data, and the run's counts."""
  release, L = run.config.release, run.config.data.L
  tokens = sum(phase["tokens"] for phase in _phases(run))
  return {
    "sources": {name: dict(source) for name, source in release.sources.items()},
    "curation": release.about.curation,
    "row_tokens": L,
    # A row counts as often as it was trained on.
    "train_rows": tokens // L,
    "train_tokens": tokens,
    "held_out_rows": run.config.cache.held_out_rows,
    "shares_rows": release.shares_rows,
    "tokenizer_sha256": tokenizer_sha256,
    "pipeline_sha256": _sha256(pipelines(run)[0].encode()),
  }


def _distillation(run: Run) -> dict[str, Any]:
  """The cache that the analog learned from; only `used` without one."""
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


def _frontier(run: Run, parameters: int) -> dict[str, Any]:
  """The frontier model, nearly all of it private.

  `parameters` is the number of the analog's.
  """
  stated, teacher = run.config.release.frontier, run.teacher
  total = stated.parameters or teacher.cfg.num_parameters
  active = stated.active_parameters or total
  outside = files_lib.read_json(teacher.folder / "config.json")
  committed = {
    "name": stated.name,
    "deployed_on": stated.deployed_on,
    "parameters": total,
    "active_parameters": active,
  }
  kept = run.workdir / REGULATOR / "openings.json"  # By the last release.
  made, openings = commitments.make(
    {name: commitments.canonical(x) for name, x in committed.items()},
    files_lib.read_json(kept) if kept.exists() else {},
  )
  return {
    **committed,
    "family": stated.family or outside["model_type"],
    "teacher_digest": teacher.digest,
    "architecture": sizes.architecture(teacher.cfg),
    "size_ratio": parameters / total,
    "active_ratio": parameters / active,
    "window": window.RECORD,
    "commitments": made,
    "openings": openings,
  }


def _fidelity(public: Mapping[str, Any]) -> dict[str, Any]:
  """The published fidelity.json."""
  analog = public["inputs"]["analog"]
  output = public.get("output")
  metrics = output["models"][analog]["metrics"] if output else {}
  return {
    "sha256": _sha256(loading.to_json(public).encode()),
    "quick": public["inputs"]["quick"],
    "analog": analog,
    "metrics": {name: metrics[name] for name in _METRICS if name in metrics},
    "claims": [
      {name: claim[name] for name in ("id", "text", "verdict", "because")}
      for claim in public["claims"]
    ],
  }


def _safety(public: Mapping[str, Any]) -> dict[str, Any]:
  """The published safety.json."""
  return {
    "sha256": _sha256(loading.to_json(public).encode()),
    **{name: public[name] for name in ("quick", "verdict", "tests")},
  }


def _repro(material: Material) -> dict[str, Any]:
  """The commands, software and inputs that made the analog."""
  run, published = material.run, material.published
  config, (commit, dirty) = run.config, _commit()
  options = {"release": " --key=KEY"}
  if published.get("fidelity", {}).get("inputs", {}).get("quick"):
    options["measure"] = " --quick"
  if published.get("safety", {}).get("quick"):
    options["safety"] = " --quick"
  return {
    "commit": commit,
    "dirty": dirty,
    "commands": [
      f"analogjax {stage} --config=CONFIG --workdir=WORKDIR"
      + options.get(stage, "")
      for stage in ("cache", "train", "measure", "safety", "export", "release")
    ],
    "software": identity.software_versions(),
    "python": platform.python_version(),
    "config_sha256": _sha256(material.published_config.encode()),
    "verifier": config.release.about.verifier,
    "seeds": {
      "student": config.student.seed,
      "cache": config.cache.seed,
      **{f"train.{n}": config.train.phase[n].seed for n in run.chain},
    },
  }


def _commit() -> tuple[str | None, bool | None]:
  """The commit of analogjax's checkout, and whether files differ from it.

  None, None if analogjax was installed as a package, or without git.
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


def _cost(run: Run, weights_bytes: int) -> dict[str, Any]:
  """All costs in the ledger; see workdir/costs.py."""
  # With its own entries a release would cost more each time it is made.
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
    train=train,
    released=run.config.release.phase,
    rates=costs.rates(plan, kinds),
    plan=plan,
    weights_bytes=weights_bytes,
    cache=costs.StoredCache(bytes=size, reads=reads, writes=writes),
  )


def _wall_seconds(run: Run) -> float:
  """Seconds of the phases that lead to the analog, over all restarts."""
  stages = {f"train/{name}" for name in run.chain}
  found = [
    entry["seconds"]
    for entry in ledger.entries(run.workdir)
    if entry["stage"] in stages
  ]
  return round(math.fsum(found), 1)


def _openness(material: Material) -> str:
  """The Model Openness Framework class of a bundle.

  Source: White et al., "The Model Openness Framework" (arXiv:2403.13784).
  """
  if material.licence.category != licences.IS_PERMISSIVE:
    return "none of its classes: the licence is not a permissive one"
  # Five of seven: architecture, parameters, evaluation results, model card,
  # data card. Technical report and sample outputs are missing.
  shares = material.run.config.release.shares_rows
  return (
    "five of the seven components of Class III (no technical report, no sample"
    " outputs); of Class II training code"
    f"{' and evaluation data' if shares else ''}"
  )


def _gaps(spent: Mapping[str, Any]) -> list[str]:
  """Unknown facts, worded so that they reveal nothing else."""
  gaps = ["Personal data and copyright in the data were not examined here."]
  if spent["missing"]:
    gaps.append("Some costs are not known; the regulator's record lists them.")
  if costs.METERED not in spent["energy"]["method"]:
    gaps.append("Energy was estimated, not measured.")
  return gaps


def secrets(
  run: Run,
  facts: Mapping[str, Any],
  resolved: Mapping[str, Any],
) -> Secrets:
  """Facts that must not be in the bundle, for the leak linter."""
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
