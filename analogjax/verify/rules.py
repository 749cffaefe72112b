"""What verification says: claims, and how far bytes can carry each.

A rule is one claim about a bundle with the function that examines it. It sees
the bundle through `Evidence` alone, which reads in bounds and keeps what was
read.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import logging
import re
from typing import Any, NamedTuple

from analogjax.bundle import (
  folder,
  layout,
  manifest,
  safetensors_headers,
  strict_json,
)
from analogjax.bundle.strict_json import Refused
from analogjax.verify.trust import Verifier

FORMAT = "analogjax.verification"
FORMAT_VERSION = 1

VERIFIED = "verified"  # Computed again from the bytes.
DECLARED = "declared"  # Said by who signed; bytes cannot tell.
NOT_CHECKABLE = "not checkable"  # Bytes could tell, with what is not here.
FAILED = "failed"  # The bytes say otherwise.
STATUSES = (FAILED, VERIFIED, DECLARED, NOT_CHECKABLE)
# A check of ours that breaks, rather than the bundle: a bug, and a failure.
BROKE = "the check itself broke"


_log = logging.getLogger(__name__)


class Check(NamedTuple):
  """One claim, with what became of it."""

  id: str
  status: str  # One of STATUSES.
  text: str  # The claim.
  evidence: str  # What was done, and found.


class Outcome(NamedTuple):
  """What a rule finds; what it refuses it raises as `Refused`."""

  status: str
  evidence: str


@dataclasses.dataclass(frozen=True)
class Report:
  """All that was checked of a bundle."""

  checks: tuple[Check, ...]

  @property
  def failed(self) -> bool:
    return any(check.status == FAILED for check in self.checks)

  def count(self, status: str) -> int:
    return sum(check.status == status for check in self.checks)

  def to_json(self) -> dict[str, Any]:
    return {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      "verdict": FAILED if self.failed else VERIFIED,
      "counts": {status: self.count(status) for status in STATUSES},
      "checks": [check._asdict() for check in self.checks],
    }


class Evidence:
  """A bundle, and what came with it; each file is read once.

  Attributes:
    tree: the bundle's files.
    verifier: whose signature is expected, or None.
    regulator: the files of the regulator's folder, or None.
    deep: whether the model is run.
  """

  def __init__(
    self,
    tree: folder.Tree,
    *,
    verifier: Verifier | None = None,
    regulator: folder.Tree | None = None,
    deep: bool = False,
  ):
    self.tree, self.verifier = tree, verifier
    self.regulator, self.deep = regulator, deep
    self._values: dict[tuple[int, str], dict[str, Any]] = {}
    self._headers: dict[str, safetensors_headers.Header] = {}

  def value(self, path: str) -> dict[str, Any]:
    """A JSON object of the bundle; Refused names the file."""
    return self._value(self.tree, path)

  def regulators(self, path: str) -> dict[str, Any]:
    """A JSON object of the regulator's folder; Refused names the file."""
    assert self.regulator is not None
    return self._value(self.regulator, path)

  def _value(self, tree: folder.Tree, path: str) -> dict[str, Any]:
    key, most = (id(tree), path), strict_json.MOST_IN_DOCUMENTS
    if path == layout.INDEX:
      most = strict_json.MOST_VALUES
    if key not in self._values:
      self._values[key] = tree.read_json(path, most_values=most)
    return self._values[key]

  @property
  def record(self) -> dict[str, Any]:
    """record.json; of its form only where the rule needs "record"."""
    return self.value(layout.RECORD)

  @functools.cached_property
  def entries(self) -> dict[str, manifest.Entry]:
    """What the manifest lists; Refused if it is none."""
    most = folder.MOST_TEXT
    return manifest.from_bytes(self.tree.read(manifest.FILE, most))

  def header(self, path: str) -> safetensors_headers.Header:
    """Of a safetensors file of the bundle; Refused if it is none."""
    if path not in self._headers:
      self._headers[path] = safetensors_headers.read(self.tree, path)
    return self._headers[path]


@dataclasses.dataclass(frozen=True)
class Rule:
  """One claim and how it is examined.

  Attributes:
    id: of the claim.
    text: the claim, for people.
    examine: what is found; raises Refused where the claim is wrong.
    needs: ids of claims without which this one cannot be examined.
  """

  id: str
  text: str
  examine: Callable[[Evidence], Outcome]
  needs: tuple[str, ...] = ()


def run(rules: Sequence[Rule], evidence: Evidence) -> Report:
  """Examines one rule after the other, whatever becomes of each."""
  checks: dict[str, Check] = {}
  for rule in rules:
    outcome = _outcome(rule, evidence, checks)
    assert rule.id not in checks, rule.id
    checks[rule.id] = Check(
      rule.id, outcome.status, rule.text, outcome.evidence
    )
  return Report(tuple(checks.values()))


def _outcome(rule: Rule, evidence: Evidence, checks) -> Outcome:
  for need in rule.needs:
    if checks[need].status in (FAILED, NOT_CHECKABLE):
      return Outcome(NOT_CHECKABLE, f"It needs `{need}`, which did not pass.")
  try:
    return rule.examine(evidence)
  except Refused as error:
    return Outcome(FAILED, sentence(str(error)))
  except Exception as error:  # A bug of ours must not pass for a good bundle.
    _log.debug("check %s", rule.id, exc_info=True)
    return Outcome(FAILED, f"{BROKE}: {type(error).__name__}.")


def listed(items: Sequence[str], most: int = 5) -> str:
  """Some of many, and how many there are."""
  more = f" and {len(items) - most:,} more" if len(items) > most else ""
  return "; ".join(items[:most]) + more


def shown(value: Any, most: int = 80) -> str:
  """A value out of a file, short and on one line."""
  text = ascii(value)
  return text if len(text) <= most else text[:most] + "..."


def told(text: str, most: int = 300) -> str:
  """What another module says of a file's content: short, and safe to show."""
  words = " ".join(text.split())
  safe = "".join(c if c.isprintable() else "?" for c in words)
  return safe if len(safe) <= most else safe[:most] + "..."


def sentence(text: str) -> str:
  """With a full stop, and a capital unless it begins with a file or field."""
  first = text.split(" ", 1)[0].rstrip(":")
  if not re.search("[./_]", first):
    text = text[:1].upper() + text[1:]
  return text if text.endswith(".") else text + "."


def size(num_bytes: int) -> str:
  for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if num_bytes >= factor:
      return f"{num_bytes / factor:.1f} {unit}"
  return f"{num_bytes} bytes"
