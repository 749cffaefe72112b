"""What a release is made of: facts, gates, files, and what they give away."""

from collections.abc import Callable, Mapping, Sequence
import datetime
from pathlib import Path
import tempfile
from typing import Any

from analogjax.bundle import (
  commitments,
  layout,
  licences,
  record,
  rows as held_out,
)
from analogjax.config import loading, schema, window
from analogjax.data import rows as rows_lib
from analogjax.documents import render
from analogjax.evaluation import sources
from analogjax.fidelity import document as fidelity_document
from analogjax.leaks import Leak, lint
from analogjax.release import facts as releases, gates, public_config
from analogjax.run.run import Run
from analogjax.safety import document as safety_document
from analogjax.workdir import costs, files as files_lib

BUNDLE, REGULATOR = "bundle", "regulator"
OPENINGS = "openings.json"


class Contents:
  """All that goes out, once it is known how the gates are judged."""

  def __init__(
    self,
    resolved: Mapping[str, Any],
    run: Run,
    rows: rows_lib.Rows | None,
  ):
    """Collects every fact.

    Args:
      resolved: the config as JSON values.
      run: measured, evaluated and exported.
      rows: the held-out ones, if they go along.

    Raises:
      ValueError: what is there is not of this config; names the file.
    """
    self._rows, self._resolved = rows, resolved
    self._run, sections, workdir = run, run.config, run.workdir
    options = sections.release
    self._export = releases.open_export(run)
    released_on = options.date or datetime.date.today().isoformat()
    self._licence = _licence(sections, released_on)
    self._config = loading.to_json(public_config.project(resolved))
    self._measured = _read(workdir / "fidelity.json", fidelity_document.read)
    self._evaluated = _read(workdir / "safety.json", safety_document.read)
    # As they are published; without them a gate fails.
    self._fidelity = self._safety = None
    if self._measured is not None:
      self._fidelity = fidelity_document.public(self._measured)
    if self._evaluated is not None:
      _check_thresholds(sections, self._evaluated)
      self._safety = safety_document.public(self._evaluated)
    self._facts = self._collect(released_on)

  def _collect(self, released_on: str) -> dict[str, Any]:
    """Every fact but how the gates were judged."""
    run, sections = self._run, self._run.config
    model = releases.model_facts(run, self._export, released_on)
    model["licence"] = {
      "spdx": self._licence.spdx,
      "name": self._licence.name,
      "category": self._licence.category,
      "text_sha256": self._licence.text_sha256,
    }
    parameters = model["parameters"]["total"]
    frontier = releases.frontier_facts(run, parameters)
    frontier["window"] = window.RECORD
    frontier |= _commitments(frontier, run.workdir / REGULATOR / OPENINGS)
    # Of the rows to train on, where they were cached.
    cache = run.cache(run.cache_names[0])
    self._fingerprint = cache.manifest.pipeline_fingerprint
    spent = releases.cost_facts(run, model["weights_bytes"])
    theirs = sections.release.frontier.pipeline_fingerprint
    facts = {
      "model": model,
      "frontier": frontier,
      "pair": {
        "same_family": frontier["family"] == model["family"],
        "same_tokenizer": (
          self._export.files["tokenizer.json"] == run.teacher.tokenizer_digest
        ),
        "same_data": theirs == self._fingerprint if theirs else None,
      },
      "data": releases.data_facts(run, cache.manifest, self._export),
      "distillation": releases.distillation_facts(run),
      "training": {
        **releases.training_facts(run),
        "wall_seconds": releases.wall_seconds(run),
      },
      "cost_in_full": spent,
      "repro": releases.repro_facts(run, self._config, self._quick_stages()),
      "mof": _openness(sections, self._licence),
      "not_recorded": _gaps(spent),
    }
    if self._fidelity is not None:
      text = loading.to_json(self._fidelity)
      facts["fidelity"] = releases.fidelity_facts(self._fidelity, text)
    if self._safety is not None:
      text = loading.to_json(self._safety)
      facts["safety"] = releases.safety_facts(self._safety, text)
    return facts

  def _quick_stages(self) -> list[str]:
    asked = {
      "measure": self._fidelity and self._fidelity["inputs"]["quick"],
      "safety": self._safety and self._safety["quick"],
    }
    return [stage for stage, is_quick in asked.items() if is_quick]

  def judge(self, leaks: Sequence[Leak]) -> list[dict[str, Any]]:
    model, frontier = self._facts["model"], self._facts["frontier"]
    source = self._export.receipt["source"]
    # What follows from the gates will be there.
    missing = [
      path
      for path in record.missing(self._facts)
      if not path.startswith(("gates", "cost."))
    ]
    evidence = gates.Evidence(
      parameters=model["parameters"]["total"],
      active_parameters=model["parameters"]["active"],
      frontier_parameters=frontier["parameters"],
      frontier_active_parameters=frontier["active_parameters"],
      deployed_on=frontier["deployed_on"],
      released_on=model["released_on"],
      config=files_lib.read_json(self._export.folder / "config.json"),
      frontier_config=files_lib.read_json(
        self._run.teacher.folder / "config.json"
      ),
      tokenizer_sha256=self._export.files["tokenizer.json"],
      frontier_tokenizer_sha256=self._run.teacher.tokenizer_digest,
      pipeline_fingerprint=self._fingerprint,
      frontier_pipeline_fingerprint=(
        self._run.config.release.frontier.pipeline_fingerprint
      ),
      licence=self._licence,
      missing=missing,
      student=gates.Student(
        phase=source["phase"],
        step=source["step"],
        fingerprint=sources.fingerprint_of(source["fingerprints"]),
      ),
      teacher_digest=self._run.teacher.digest,
      fidelity=self._measured,
      safety=self._evaluated,
      leaks=leaks,
    )
    return gates.judge(evidence, dict(self._run.config.release.waivers))

  def _record(self, judged: list[dict[str, Any]], view: str) -> dict[str, Any]:
    return record.project(self._judged_facts(judged), view)

  def _judged_facts(self, judged: list[dict[str, Any]]) -> dict[str, Any]:
    """All facts, with those that follow from the gates."""
    within = {"id": "size", "verdict": gates.PASSED}
    parameters = None
    if any(within.items() <= gate.items() for gate in judged):
      parameters = self._facts["model"]["parameters"]["total"]
    told = costs.public(self._facts["cost_in_full"], parameters)
    return {**self._facts, "cost": told, "gates": judged}

  def files(self, judged: list[dict[str, Any]]) -> dict[str, bytes | Path]:
    """Path in the bundle -> what it holds."""
    public = self._record(judged, record.PUBLIC)
    rendered = render.render(
      public, fidelity=self._fidelity or {}, safety=self._safety or {}
    )
    texts = {
      **rendered,
      "record.json": record.to_text(public),
      "fidelity.json": loading.to_json(self._fidelity),
      "safety.json": loading.to_json(self._safety),
      "repro/config.json": self._config,
      "LICENSE": self._licence.text,
      "model/LICENSE": self._licence.text,
    }
    files: dict[str, bytes | Path] = {
      path: text.encode() for path, text in texts.items()
    }
    for name in self._export.files:
      files[f"model/{name}"] = self._export.folder / name
    if self._rows is not None:
      files[layout.ROWS] = held_out.to_bytes(self._rows)
    return files

  def for_regulator(self, judged: list[dict[str, Any]]) -> dict[str, str]:
    value = self._record(judged, record.REGULATOR)
    texts = render.render(
      value, fidelity=self._fidelity or {}, safety=self._safety or {}
    )
    return {**texts, "record.json": record.to_text(value)}

  def lint(self, files: Mapping[str, bytes | Path]) -> list[Leak]:
    """What every byte that goes out tells, but for signature and manifest."""
    private = releases.secrets(self._run, self._facts, self._resolved)
    with tempfile.TemporaryDirectory(dir=self._run.workdir) as scratch:
      folder = Path(scratch)
      for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
          # Weights are large, and a name for the same bytes is enough.
          (folder / path).hardlink_to(content)
        else:
          (folder / path).write_bytes(content)
      return lint(folder, private)


def _licence(sections: schema.Sections, released_on: str) -> licences.Licence:
  options = sections.release
  text = ""
  if options.licence == licences.OTHER:
    try:
      text = Path(options.licence_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise ValueError(
        f"release.licence_file={options.licence_file!r}: expected the licence's"
        f" text in UTF-8, cannot read it: {error}."
      ) from None
  return licences.find(
    options.licence,
    holder=options.about.provider,
    year=int(released_on[:4]),
    name=options.licence_name,
    text=text,
  )


def _read(path: Path, read: Callable[[Path], Any]) -> dict[str, Any] | None:
  """What is in a file; None where there is none, which a gate will say."""
  return read(path) if path.exists() else None


def _check_thresholds(
  sections: schema.Sections, evaluated: Mapping[str, Any]
) -> None:
  """Refuses verdicts by thresholds that the config does not have any more."""
  stated = sections.safety.thresholds
  for test in evaluated["tests"]:
    if test["model"] != evaluated["inputs"]["analog"]:
      continue
    wanted = stated.get(test["metric"])
    if test["threshold"] != wanted:
      raise ValueError(
        f"safety.json: {test['id']} was judged by the threshold"
        f" {test['threshold']}, safety.thresholds now has {wanted}; run"
        " 'analogjax safety' with this config, which measures nothing anew."
      )


def _commitments(facts: Mapping[str, Any], kept: Path) -> dict[str, Any]:
  """Commitments and openings; those of a release before are kept."""
  values = {
    name: commitments.canonical(facts[name])
    for name in ("parameters", "active_parameters", "deployed_on", "name")
  }
  before = files_lib.read_json(kept) if kept.exists() else {}
  made, openings = commitments.make(values, before)
  return {"commitments": made, "openings": openings}


def _openness(sections: schema.Sections, licence: licences.Licence) -> str:
  """Which components of the Model Openness Framework a bundle has.

  Source: White et al., "The Model Openness Framework" (arXiv:2403.13784).
  """
  if licence.category != licences.IS_PERMISSIVE:
    return "none of its classes: the licence is not a permissive one"
  # Of seven: architecture, parameters, evaluation results, model card, data
  # card. Technical report and sample outputs are not there.
  further = "evaluation data" if sections.release.shares_rows else ""
  listed = " and ".join(filter(None, ("training code", further)))
  return (
    "five of the seven components of Class III (no technical report, no sample"
    f" outputs); of Class II {listed}"
  )


def _gaps(spent: Mapping[str, Any]) -> list[str]:
  """What is not known, without what would tell more than that."""
  gaps = ["Personal data and copyright in the data were not examined here."]
  if spent["missing"]:
    gaps.append("Some costs are not known; the regulator's record lists them.")
  if costs.METERED not in spent["energy"]["method"]:
    gaps.append("Energy was estimated, not measured.")
  return gaps
