"""Results of a run and a release: measurements, and a verdict on a bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analogjax.fidelity import document
from analogjax.verify import bundle, rules, trust


def read_fidelity(path: str | Path) -> dict[str, Any]:
  """Reads fidelity.json: how the analog compares with its teacher.

  Args:
    path: the file, or a workdir or bundle that has it.

  Returns:
    The document that docs/fidelity_format.md describes; `claims` has the
    verdicts, and `output`, `similarity`, `steering` and `stitching` the
    numbers, if they were measured.

  Raises:
    ValueError: the file is missing, damaged, or of another version.

  Example:
    >>> found = aj.read_fidelity("runs/demo")
    >>> found["format"], len(found["claims"]) > 0
    ('analogjax.fidelity', True)
  """
  path = Path(path)
  return document.read(path / "fidelity.json" if path.is_dir() else path)


def verify_bundle(
  path: str | Path,
  *,
  key: str | Path | None = None,
  chain: Sequence[str | Path] = (),
  regulator: str | Path | None = None,
  deep: bool = False,
) -> rules.Report:
  """Checks every claim of a released bundle, without a network.

  Args:
    key: PEM file with the public key that should have signed it; without `key`
      and `chain` any signature does, and the report says whose it is.
    chain: PEM files of certificates that vouch for the signer's.
    regulator: the folder that the regulator got beside the bundle.
    deep: also runs the model on the bundle's rows.

  Returns:
    A report. `verdict` is "failed" if any claim failed, or "verified"; `checks`
    has each claim as (id, status, text, evidence); `about` identifies the
    bundle and its signer.

  Raises:
    ValueError: the folder or the key does not exist. Problems of the bundle are
      in the report.

  Example:
    >>> report = aj.verify_bundle("runs/demo/bundle", key="demo.key.pub")
    >>> report.verdict, [x.id for x in report.checks if x.status == "failed"]
    ('verified', [])
  """
  verifier = None
  if key is not None and chain:
    raise ValueError(
      "key, chain: expected one of them, found both; a key is trusted by"
      " itself, a certificate by who vouches for it."
    )
  if key is not None:
    verifier = trust.with_key(Path(key))
  elif chain:
    verifier = trust.with_chain([Path(one) for one in chain])
  return bundle.check(
    Path(path),
    verifier=verifier,
    regulator=None if regulator is None else Path(regulator),
    deep=deep,
  )
