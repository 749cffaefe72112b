"""The contents of a release: the judged gates, the files, and their leaks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import tempfile
from typing import Any

from analogjax.bundle import layout, record, rows as held_out
from analogjax.config import loading
from analogjax.documents import render
from analogjax.evaluation import sources
from analogjax.leaks import Leak, lint
from analogjax.release import demo_texts, facts as facts_lib, gates
from analogjax.release.material import Material
from analogjax.workdir import files as files_lib, public_costs

BUNDLE = "bundle"
Gates = list[dict[str, Any]]  # As gates.judge returns them.


class Contents:
  """Everything that is released, once the gates are judged."""

  def __init__(self, material: Material):
    self._material = material
    self._facts = facts_lib.collect(material)

  def judge(self, leaks: Sequence[Leak]) -> Gates:
    material, run, facts = self._material, self._material.run, self._facts
    model, frontier = facts["model"], facts["frontier"]
    source = material.receipt["source"]
    evidence = gates.Evidence(
      parameters=(model["parameters"]["total"], frontier["parameters"]),
      active_parameters=(
        model["parameters"]["active"],
        frontier["active_parameters"],
      ),
      released_on=material.released_on,
      deployed_on=frontier["deployed_on"],
      configs=(
        files_lib.read_json(run.export_folder / "config.json"),
        files_lib.read_json(run.teacher.folder / "config.json"),
      ),
      tokenizers=(
        material.files["tokenizer.json"],
        run.teacher.tokenizer_digest,
      ),
      pipelines=facts_lib.pipelines(run),
      licence=material.licence,
      # Facts that follow from the gates will be there.
      missing=[
        line
        for line in record.missing(facts)
        if not line.startswith(("gates", "cost."))
      ],
      demos=demo_texts.copied(run.config, run.export_folder / "tokenizer.json"),
      checkpoint=gates.Checkpoint(
        phase=source["phase"],
        step=source["step"],
        fingerprint=sources.fingerprint_of(source["fingerprints"]),
        teacher_digest=run.teacher.digest,
      ),
      fidelity=material.fidelity,
      safety=material.safety,
      leaks=leaks,
    )
    return gates.judge(evidence, dict(run.config.release.waivers))

  def _documents(self, judged: Gates, view: str) -> dict[str, str]:
    """The record of a view, and the documents rendered from it."""
    is_inside = any(
      (gate["id"], gate["verdict"]) == ("size", gates.PASSED) for gate in judged
    )
    total = self._facts["model"]["parameters"]["total"]
    told = public_costs.public(
      self._facts["cost_in_full"], total if is_inside else None
    )
    facts = {**self._facts, "cost": told, "gates": judged}
    value, published = record.project(facts, view), self._material.published
    return {
      **render.render(
        value,
        fidelity=published.get("fidelity", {}),
        safety=published.get("safety", {}),
      ),
      layout.RECORD: record.to_text(value),
    }

  def files(self, judged: Gates) -> dict[str, bytes | Path]:
    """Path in the bundle -> content."""
    material = self._material
    texts = {
      **self._documents(judged, record.PUBLIC),
      **{
        f"{name}.json": loading.to_json(value)
        for name, value in material.published.items()
      },
      "repro/config.json": material.published_config,
      "LICENSE": material.licence.text,
      "model/LICENSE": material.licence.text,
    }
    files: dict[str, bytes | Path] = {
      path: text.encode() for path, text in texts.items()
    }
    for name in material.files:
      files[f"model/{name}"] = material.run.export_folder / name
    if material.rows is not None:
      files[layout.ROWS] = held_out.to_bytes(material.rows)
    return files

  def for_regulator(self, judged: Gates) -> dict[str, str]:
    """Name in the regulator's folder -> text."""
    return self._documents(judged, record.REGULATOR)

  def lint(self, files: Mapping[str, bytes | Path]) -> list[Leak]:
    """Leaks in every released byte, except signature and manifest."""
    material = self._material
    private = facts_lib.secrets(material.run, self._facts, material.resolved)
    with tempfile.TemporaryDirectory(dir=material.run.workdir) as scratch:
      folder = Path(scratch)
      for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
          # Weights are large, and a link to the same bytes is enough.
          (folder / path).hardlink_to(content)
        else:
          (folder / path).write_bytes(content)
      return lint(folder, private)
