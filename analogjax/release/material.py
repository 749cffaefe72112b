"""The inputs of a release: the files of a workdir, read and checked."""

from collections.abc import Callable, Mapping
import dataclasses
import datetime
import functools
from pathlib import Path
from typing import Any

from analogjax.bundle import licences
from analogjax.config import loading, schema
from analogjax.data import rows as rows_lib
from analogjax.fidelity import document as fidelity_document
from analogjax.release import public_config
from analogjax.run.run import Run
from analogjax.safety import document as safety_document
from analogjax.workdir import files as files_lib

Document = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
  """The inputs of a release; `read` makes it.

  Attributes:
    run: measured, evaluated and exported.
    resolved: its config as JSON values.
    rows: the held-out rows, if they are released.
    released_on: YYYY-MM-DD.
    licence: with its text.
    receipt: export.json.
    fidelity: fidelity.json; None: there is none, and a gate fails.
    safety: safety.json; the same holds.
  """

  run: Run
  resolved: Mapping[str, Any]
  rows: rows_lib.Rows | None
  released_on: str
  licence: licences.Licence
  receipt: Mapping[str, Any]
  fidelity: Document | None
  safety: Document | None

  @property
  def files(self) -> Mapping[str, str]:
    """Files of the exported model, with their SHA-256."""
    return self.receipt["files"]

  @functools.cached_property
  def published_config(self) -> str:
    """The text of repro/config.json."""
    return loading.to_json(public_config.project(self.resolved))

  @functools.cached_property
  def published(self) -> dict[str, Document]:
    """The public fidelity.json and safety.json, as far as they exist."""
    found = {}
    if self.fidelity is not None:
      found["fidelity"] = fidelity_document.public(self.fidelity)
    if self.safety is not None:
      found["safety"] = safety_document.public(self.safety)
    return found


def read(
  run: Run, resolved: Mapping[str, Any], rows: rows_lib.Rows | None
) -> Material:
  """Reads the inputs of a release.

  Raises:
    ValueError: a file of the workdir belongs to another config; names the file.
  """
  sections = run.config
  released_on = sections.release.date or datetime.date.today().isoformat()
  safety = _read(run.workdir / "safety.json", safety_document.read)
  if safety is not None:
    _check_thresholds(sections, safety)
  return Material(
    run=run,
    resolved=resolved,
    rows=rows,
    released_on=released_on,
    licence=read_licence(sections, released_on),
    receipt=_read_export(run),
    fidelity=_read(run.workdir / "fidelity.json", fidelity_document.read),
    safety=safety,
  )


def _read(path: Path, read: Callable[[Path], Any]) -> Document | None:
  return read(path) if path.exists() else None


def _read_export(run: Run) -> Mapping[str, Any]:
  """The receipt of this config's export, whose every byte was checked.

  Raises:
    ValueError: there is none, it is of something else, or it was changed.
  """
  folder, path = run.export_folder, run.workdir / "export.json"
  again = "run 'analogjax export' with this config and workdir first."
  if not path.is_file() or not folder.is_dir():
    raise ValueError(f"{folder}: there is no export; {again}")
  receipt = files_lib.read_json(path)
  source, release = receipt["source"], run.config.release
  wanted = {
    "phase": release.phase,
    "step": run.config.train.phase[release.phase].num_steps,
    "teacher_digest": run.teacher.digest,
    "dtype": release.dtype,
  }
  for name, value in wanted.items():
    if source.get(name) != value:
      raise ValueError(
        f"{folder}: the export's {name} is {source.get(name)!r}, this config's"
        f" is {value!r}; {again}"
      )
  names = {p.name for p in folder.iterdir()}
  if odd := sorted(names ^ set(receipt["files"])):
    raise ValueError(f"{folder / odd[0]}: not as it was exported; {again}")
  for name, digest in receipt["files"].items():
    if files_lib.file_sha256(folder / name) != digest:
      raise ValueError(f"{folder / name}: changed since its export; {again}")
  return receipt


def read_licence(
  sections: schema.Sections, released_on: str
) -> licences.Licence:
  """The licence of the config; raises ValueError if its text is missing."""
  options, text = sections.release, ""
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


def _check_thresholds(sections: schema.Sections, evaluated: Document) -> None:
  """Refuses verdicts by thresholds that the config no longer has."""
  stated = sections.safety.thresholds
  for test in evaluated["tests"]:
    wanted = stated.get(test["metric"])
    is_ours = test["model"] == evaluated["inputs"]["analog"]
    if is_ours and test["threshold"] != wanted:
      raise ValueError(
        f"safety.json: {test['id']} was judged by the threshold"
        f" {test['threshold']}, safety.thresholds now has {wanted}; run"
        " 'analogjax safety' with this config, which measures nothing anew."
      )
