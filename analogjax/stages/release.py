"""release: writes the signed bundle, and beside it the regulator's folder.

The bundle appears complete or not at all. Before that, the leak linter reads
every byte of it, and every gate has passed or has been waived with a reason.
"""

from collections.abc import Mapping, Sequence
import functools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import rich.table

from analogjax.bundle import signature, writer
from analogjax.cli import progress
from analogjax.config import loading, schema
from analogjax.data import rows as rows_lib
from analogjax.distributed import processes
from analogjax.evaluation import sources
from analogjax.leaks import Leak
from analogjax.release import contents, gates, material
from analogjax.release.contents import BUNDLE
from analogjax.release.facts import REGULATOR
from analogjax.run.run import Run
from analogjax.workdir import ledger


def run(
  cfg: ConfigDict,
  workdir: Path,
  *,
  key: str | None = None,
  password: Path | None = None,
  certificates: Sequence[Path] = (),
) -> None:
  """Writes workdir/bundle, which is public, and workdir/regulator.

  Args:
    workdir: measured, evaluated and exported.
    key: path of the private key that signs, or the URI of a key on a token;
      None: nothing is released.
    certificates: the key's own first, then its issuers'; for a key on a token,
      its public key.

  Raises:
    ValueError: a gate that does not pass, a fact that is missing, a leak, or a
      key that cannot be used; nothing is written.
  """
  if key is None:
    progress.say(
      "release: no --key, so there is no bundle; `analogjax release --key=FILE`"
      " makes it."
    )
    return
  signer = processes.on_first(
    functools.partial(_signer, key, password, certificates)
  )
  run = Run(schema.to_sections(cfg), workdir)
  run.teacher  # noqa: B018 (opened by all processes together)
  rows = None
  if run.config.release.shares_rows:
    rows = sources.read_held_out(run)  # By all.
  processes.on_first(lambda: _release(cfg, run, rows=rows, signer=signer))


def check(
  cfg: ConfigDict,
  workdir: Path,
  *,
  key: str | None = None,
  password: Path | None = None,
  certificates: Sequence[Path] = (),
) -> None:
  """Checks the key, before anything in the workdir changes.

  Raises:
    ValueError: a key that cannot be used.
  """
  # A token may ask for its PIN, and is opened once.
  if key is not None and not key.startswith("pkcs11:"):
    processes.on_first(functools.partial(_signer, key, password, certificates))


def _signer(
  key: str, password: Path | None, certificates: Sequence[Path]
) -> signature.Signer:
  if not key.startswith("pkcs11:"):
    return signature.with_key(
      Path(key), password_file=password, certificates=certificates
    )
  if len(certificates) != 1:
    raise ValueError(
      "--certificate: expected the public key of the token's key, a PEM file,"
      f" found {len(certificates)} files."
    )
  return signature.with_token(key, certificates[0])


def _release(
  cfg: ConfigDict,
  run: Run,
  *,
  rows: rows_lib.Rows | None,
  signer: signature.Signer,
) -> None:
  workdir = run.workdir
  spent = ledger.Ledger(workdir, "release")
  resolved = json.loads(json.dumps(cfg.to_dict()))
  release = contents.Contents(material.read(run, resolved, rows))
  leaks: list[Leak] = []
  # The public evidence of a gate is in the documents that are linted. So first
  # as if nothing were found; if something is, and that is waived, once more.
  for is_last in (False, True):
    judged = release.judge(leaks)
    if stops := gates.failed(judged):
      _print(judged)
      raise ValueError("\n".join([f"{len(stops)} gates fail.", *stops]))
    files = release.files(judged)
    found = release.lint(files)
    known = {leak[:2] for leak in leaks}
    if {leak[:2] for leak in found} <= known:
      break
    if is_last or "leaks" not in run.config.release.waivers:
      raise ValueError(_listed(found))
    leaks = found
  _print(judged)
  writer.write(workdir / BUNDLE, files=files, signer=signer)
  _write_regulators(workdir / REGULATOR, release.for_regulator(judged))
  # All files of the folder, as `verify` counts them, with what signs them.
  written = [p for p in (workdir / BUNDLE).rglob("*") if p.is_file()]
  size = sum(p.stat().st_size for p in written)
  spent.append(bytes=size)
  progress.say(
    f"release: {len(written)} files, {size:,} bytes, manifest and signature"
    f" included, in {workdir / BUNDLE}; the regulator's in"
    f" {workdir / REGULATOR}."
  )


def _print(judged: Sequence[Mapping[str, Any]]) -> None:
  table = rich.table.Table(title="gates of the release")
  for title in ("gate", "verdict", "evidence"):
    table.add_column(title)
  for gate in judged:
    evidence = gate["evidence"]
    if gate["waiver"] is not None:
      evidence += f" Waived: {gate['waiver']}"
    table.add_row(gate["id"], gate["verdict"], evidence)
  progress.console().print(table)


def _listed(leaks: Sequence[Leak]) -> str:
  """The findings, for the lab alone: they quote what must not go out."""
  lines = [
    f"{leak.file}, {leak.where}: {leak.rule}: {leak.what}" for leak in leaks
  ]
  return "\n".join(
    [
      f"release gate leaks: {len(leaks)} findings in what would go out."
      " docs/leaks.md says how to mend each; or set release.waivers.leaks to"
      " the reason why they may stay.",
      *lines,
    ]
  )


def _write_regulators(folder: Path, texts: Mapping[str, str]) -> None:
  """Writes the regulator's folder, the openings first: others need them."""
  folder.mkdir(exist_ok=True)
  for name, text in sorted(
    texts.items(), key=lambda item: item[0][0].isupper()
  ):
    loading.write_text(folder / name, text)
