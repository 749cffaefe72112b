"""What of a bundle is so: every claim, by its bytes, without the network.

Nothing in the bundle is trusted, and nothing of it runs. See docs/verify.md.
"""

from pathlib import Path

from analogjax.bundle import folder
from analogjax.verify import (
  deep as verify_deep,
  documents,
  files,
  measurements,
  model,
  record as verify_record,
  regulator as verify_regulator,
  rules as checks,
)
from analogjax.verify.rules import Check, Report, Rule
from analogjax.verify.trust import Verifier

__all__ = ["Check", "Report", "check"]


def check(
  bundle: Path,
  *,
  verifier: Verifier | None = None,
  regulator: Path | None = None,
  deep: bool = False,
) -> Report:
  """Examines every claim of a bundle.

  Args:
    bundle: its folder.
    verifier: whose signature is expected; None: whoever's it is.
    regulator: the folder that the regulator got beside it, or None.
    deep: runs the model on the bundle's rows, which takes a machine for it.

  Raises:
    ValueError: there is no such folder. Whatever is wrong in it is in the
      report.
  """
  other = None if regulator is None else folder.open_tree(regulator)
  evidence = checks.Evidence(
    folder.open_tree(bundle), verifier=verifier, regulator=other, deep=deep
  )
  return checks.run(rules(regulator=other is not None), evidence)


def rules(*, regulator: bool) -> list[Rule]:
  """Every rule in the order in which they are examined.

  Args:
    regulator: whether those of the regulator's folder are among them.
  """
  # Files, the record and the files of weights come first: others need them.
  record, *others = verify_record.rules()
  return [
    *(*files.rules(), record, *model.rules(), *others),
    *(*measurements.rules(), *documents.rules()),
    *verify_deep.rules(),
    *(verify_regulator.rules() if regulator else ()),
  ]
