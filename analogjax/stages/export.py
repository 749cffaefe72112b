"""export: writes the analog as a Hugging Face folder."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from analogjax.cli import progress
from analogjax.config import loading, schema
from analogjax.distributed import processes
from analogjax.models import hf_export
from analogjax.run.run import Run
from analogjax.workdir import files, ledger


def run(cfg: ConfigDict, workdir: Path) -> None:
  """Writes workdir/export and its receipt, workdir/export.json.

  The folder appears whole or not at all. An export of the same checkpoint whose
  bytes are unchanged is kept.
  """
  run = Run(schema.to_sections(cfg), workdir)
  release, teacher = run.config.release, run.teacher
  trained = run.read_phase(release.phase)
  source = {
    "phase": release.phase,
    "step": trained.step,
    "fingerprints": trained.fingerprints,
    "teacher_digest": teacher.digest,
    "dtype": release.dtype,
    "max_shard_gb": release.max_shard_gb,
    "keeps_chat_template": release.keeps_chat_template,
  }
  folder, receipt = run.export_folder, workdir / "export.json"
  if processes.first_decides(lambda: _is_done(folder, receipt, source)):
    progress.say(f"export: complete, in {folder}.")
    return
  spent = ledger.Ledger(workdir, "export")
  with jax.set_mesh(run.mesh):
    report = hf_export.write_folder(
      folder,
      run.student,
      trained.params,
      dtype=release.dtype,
      max_shard_bytes=int(release.max_shard_gb * 1e9),
      tokenizer_folder=teacher.folder,
      keeps_chat_template=release.keeps_chat_template,
      metadata={},
    )

  def conclude() -> None:
    assert report is not None
    loading.write_json(receipt, {"source": source, **report})
    spent.append(bytes=report["bytes"])
    progress.say(
      f"export: {report['parameters']:,} parameters, {report['bytes']:,} bytes,"
      f" read back and compared, in {folder}."
    )

  processes.on_first(conclude)


def _is_done(folder: Path, receipt: Path, source: dict[str, Any]) -> bool:
  if not receipt.exists() or not folder.is_dir():
    return False
  written = files.read_json(receipt)
  if written.get("source") != source:
    return False
  names = {p.name for p in folder.iterdir()}
  return names == set(written["files"]) and all(
    files.file_sha256(folder / name) == digest
    for name, digest in written["files"].items()
  )
