"""Verifies every claim of a bundle from its bytes, without a network.

Nothing in the bundle is trusted, and nothing in it is run. See docs/verify.md.
"""

from collections.abc import Iterable
from pathlib import Path

from analogjax.bundle import folder, layout, manifest
from analogjax.verify import (
  deep as verify_deep,
  documents,
  files,
  measurements,
  model,
  record,
  regulator as verify_regulator,
  rules as rules_lib,
)
from analogjax.verify.rules import About, Check, Report, Rule
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
    verifier: whose signature is expected; None accepts any signer.
    regulator: the folder that the regulator received, or None.
    deep: runs the model on the bundle's rows; the machine must be large enough.

  Raises:
    ValueError: the folder does not exist or is not a bundle. Whatever is wrong
      inside a bundle is in the report instead.
  """
  tree = folder.open_tree(bundle)
  if not {manifest.FILE, manifest.SIGNATURE, layout.RECORD} & set(tree.files):
    raise ValueError(_not_a_bundle(bundle))
  evidence = rules_lib.Evidence(
    tree,
    verifier=verifier,
    regulator=None if regulator is None else folder.open_tree(regulator),
    deep=deep,
  )
  checks = rules_lib.run(rules(regulator=regulator is not None), evidence)
  return Report(checks, _about(evidence, checks))


def rules(*, regulator: bool) -> list[Rule]:
  """Every rule, in the order of the report."""
  return [
    *files.RULES,
    *record.RULES,
    *model.RULES,
    *measurements.RULES,
    *documents.RULES,
    *verify_deep.RULES,
    *(verify_regulator.RULES if regulator else ()),
  ]


def _not_a_bundle(path: Path) -> str:
  text = f"{path}: this is not a bundle: it has no {manifest.FILE}"
  inner = path / "bundle"
  if (inner / manifest.FILE).is_file():
    return f"{text}. Did you mean {inner}?"
  return f"{text}; expected the folder that `analogjax release` writes."


def _about(evidence: rules_lib.Evidence, checks: Iterable[Check]) -> About:
  """Identifies the bundle, only by facts that passed their check."""
  found = {check.id: check for check in checks}

  def passed(key: str) -> bool:
    return found[key].status == rules_lib.VERIFIED

  key, signer = "", "unknown, because the signature did not pass"
  if passed("signature"):
    key = files.signed(evidence).identity.hint
    signer = "not checked, because neither --key nor --chain was given"
    if evidence.verifier is not None:
      signer = found["signer"].evidence
  if not passed("record"):
    return About(key_sha256=key, signer=signer)
  model_, gates = evidence.record["model"], evidence.record["gates"]
  return About(
    **{
      name: rules_lib.told(model_[name], 100)
      for name in ("name", "version", "provider", "released_on")
    },
    key_sha256=key,
    signer=signer,
    waived={
      rules_lib.told(gate["id"], 40): rules_lib.told(gate["waiver"])
      for gate in gates
      if gate["waiver"] is not None
    },
  )
