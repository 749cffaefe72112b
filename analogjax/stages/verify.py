"""verify: which claims of a bundle hold, from its bytes, without a network."""

from collections.abc import Sequence
import json
import os
from pathlib import Path

from analogjax.cli import progress
from analogjax.verify import bundle as verify, report as verify_report, trust

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
  verbose: bool = False,
) -> int:
  """Verifies a bundle and prints the results.

  Args:
    key: path of a PEM file with the public key whose signature is expected.
    chain: PEM files of certificates that vouch for the signer's.
    regulator: the folder that the regulator received with the bundle.
    deep: runs the model on the bundle's rows.
    html: where to write a page with the results.
    verbose: prints the evidence for every claim.

  Returns:
    0, or 1 if any claim failed.

  Raises:
    ValueError: a folder or a key does not exist, or the folder is not a bundle.
  """
  if key is not None and chain:
    raise ValueError(
      "--key and --chain: expected one of them, found both; a key is trusted"
      " directly, a certificate because of who vouches for it."
    )
  expected = None
  if key is not None:
    expected = trust.with_key(Path(key))
  elif chain:
    expected = trust.with_chain(chain)
  if html is not None and bundle.resolve() in (
    html.resolve(),
    *html.resolve().parents,
  ):
    raise ValueError(
      f"--html={html}: expected a place outside of the bundle, which holds"
      " only what was signed."
    )
  report = verify.check(
    bundle, verifier=expected, regulator=regulator, deep=deep
  )
  if html is not None:
    try:
      html.write_text(verify_report.render(report), encoding="utf-8")
    except OSError as error:
      reason = os.strerror(error.errno or 0)
      raise ValueError(f"{html}: cannot be written: {reason}.") from None
  if as_json:
    print(json.dumps(report.to_json(), indent=1))
  else:
    verify_report.print_report(report, progress.console(), verbose=verbose)
  return FAILED if report.failed else OK
