"""verify: what of a bundle is so, by its bytes, without the network."""

from collections.abc import Sequence
import json
import os
from pathlib import Path

from analogjax.cli import progress
from analogjax.verify import bundle as verify, report as verify_page, trust

OK, FAILED = 0, 1


def run(
  bundle: Path,
  *,
  key: str | None = None,
  chain: Sequence[Path] = (),
  regulator: Path | None = None,
  deep: bool = False,
  as_json: bool = False,
  html: Path | None = None,
) -> int:
  """Prints what was found, line by line or as JSON.

  Args:
    bundle: the folder of a release.
    key: path of a PEM file with the public key whose signature is expected.
    chain: PEM files of certificates that vouch for the signer's.
    regulator: the folder that the regulator got beside the bundle.
    deep: runs the model on the bundle's rows.
    as_json: prints JSON, for programs.
    html: where a page goes that says the same.

  Returns:
    0, or 1 if any claim failed.

  Raises:
    ValueError: a folder or a key that is not there; names it.
  """
  if key is not None and chain:
    raise ValueError(
      "--key and --chain: expected one of them, found both; a key is trusted by"
      " itself, a certificate by who vouches for it."
    )
  expected = None
  if key is not None:
    expected = trust.with_key(Path(key))
  elif chain:
    expected = trust.with_chain(chain)
  if html is not None:
    _check_outside(html, bundle)
  report = verify.check(
    bundle, verifier=expected, regulator=regulator, deep=deep
  )
  if html is not None:
    _write(html, verify_page.render(report))
  if as_json:
    print(json.dumps(report.to_json(), indent=1))
  else:
    verify_page.print_report(report, progress.console())
  return FAILED if report.failed else OK


def _check_outside(html: Path, bundle: Path) -> None:
  """The page would be a file more in what was just verified."""
  if bundle.resolve() in (html.resolve(), *html.resolve().parents):
    raise ValueError(
      f"--html={html}: expected a place outside of the bundle,"
      " which holds what was signed and nothing else."
    )


def _write(path: Path, text: str) -> None:
  try:
    path.write_text(text, encoding="utf-8")
  except OSError as error:
    reason = os.strerror(error.errno or 0)
    raise ValueError(f"{path}: cannot be written: {reason}.") from None
