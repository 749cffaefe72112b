"""Verification rules and their results.

A rule is one claim about a bundle, with the function that examines it. The
function sees the bundle only through `Evidence`, which limits what is read and
reads each file once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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

VERIFIED = "verified"  # Recomputed from the bytes.
DECLARED = "declared"  # Stated by the signer; the bytes cannot confirm it.
NOT_CHECKABLE = "not checkable"  # Checking it needs something that is missing.
FAILED = "failed"  # The bytes contradict the claim.
STATUSES = (FAILED, VERIFIED, DECLARED, NOT_CHECKABLE)
# The evidence of a check that raised an unexpected error: a bug of ours, which
# counts as a failure.
BROKE = "the check itself broke"

_log = logging.getLogger(__name__)


class Check(NamedTuple):
  """One claim and its result."""

  id: str
  status: str  # One of STATUSES.
  text: str  # The claim.
  evidence: str  # What was examined and found.


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
  """The identity of a bundle; "" where it could not be established.

  Attributes:
    name, version, provider, released_on: from the record, if it is valid.
    key_sha256: of the public key that made the signature.
    signer: what is known about who signed.
    waived: each waived gate with the provider's reason.
  """

  name: str = ""
  version: str = ""
  provider: str = ""
  released_on: str = ""
  key_sha256: str = ""
  signer: str = ""
  waived: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Report:
  """The results of all rules for one bundle."""

  checks: tuple[Check, ...]
  about: About = dataclasses.field(default_factory=About)

  @property
  def failed(self) -> bool:
    return bool(self.by_status(FAILED))

  def by_status(self, status: str) -> list[Check]:
    return [check for check in self.checks if check.status == status]

  @property
  def verdict(self) -> str:
    return FAILED if self.failed else VERIFIED

  def to_json(self) -> dict[str, Any]:
    return {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      "verdict": self.verdict,
      "bundle": dataclasses.asdict(self.about),
      "counts": {status: len(self.by_status(status)) for status in STATUSES},
      "checks": [check._asdict() for check in self.checks],
    }


class Evidence:
  """A bundle and what came with it; each file is read once.

  Attributes:
    tree: the bundle's files.
    verifier: whose signature is expected, or None.
    regulator: the files of the regulator's folder, or None.
    deep: whether the model may be run.
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
    # Each file is asked for by several rules.
    self.value = functools.cache(self._value)
    self.regulator_value = functools.cache(self._regulator_value)
    self.header = functools.cache(self._header)

  def _value(self, path: str) -> dict[str, Any]:
    """A JSON object of the bundle; Refused names the file."""
    most = strict_json.MOST_IN_DOCUMENTS
    if path == layout.INDEX:
      most = strict_json.MOST_VALUES
    return self.tree.read_json(path, most_values=most)

  def _regulator_value(self, path: str) -> dict[str, Any]:
    """A JSON object of the regulator's folder; Refused names the file."""
    assert self.regulator is not None
    return self.regulator.read_json(path)

  def _header(self, path: str) -> safetensors_headers.Header:
    """The header of a safetensors file of the bundle; Refused if invalid."""
    return safetensors_headers.read(self.tree, path)

  @property
  def record(self) -> dict[str, Any]:
    """record.json; its form is only certain for rules that need "record"."""
    return self.value(layout.RECORD)

  @functools.cached_property
  def entries(self) -> dict[str, manifest.Entry]:
    """The entries of the manifest; Refused if it is invalid."""
    data = self.tree.read(manifest.FILE, folder.MOST_TEXT)
    return manifest.from_bytes(data)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One claim and how it is examined.

  Attributes:
    id: identifies the claim.
    text: the claim, for people.
    needs: ids of the claims without which this one cannot be examined.
    examine: returns a status and the evidence; raises Refused if the claim is
      false.
  """

  id: str
  text: str
  needs: tuple[str, ...]
  examine: Callable[[Evidence], tuple[str, str]]


class Rules(list[Rule]):
  """The rules of a module; `@RULES.add(id, claim)` adds a function to them."""

  def add(self, key: str, text: str, *, needs: Iterable[str] = ()):
    def register(examine: Callable[[Evidence], tuple[str, str]]):
      self.append(Rule(key, text, tuple(needs), examine))
      return examine

    return register


def run(rules: Sequence[Rule], evidence: Evidence) -> tuple[Check, ...]:
  """Examines every rule; what one needs is examined before it."""
  by_id = {rule.id: rule for rule in rules}
  assert len(by_id) == len(rules), "two rules have one id"

  @functools.cache
  def check(key: str) -> Check:
    rule = by_id[key]
    for need in rule.needs:
      if check(need).status in (FAILED, NOT_CHECKABLE):
        text = f"This depends on `{need}`, which did not pass."
        return Check(key, NOT_CHECKABLE, rule.text, text)
    return Check(key, *_examine(rule, evidence))

  return tuple(check(rule.id) for rule in rules)


def _examine(rule: Rule, evidence: Evidence) -> tuple[str, str, str]:
  try:
    status, found = rule.examine(evidence)
  except Refused as error:
    status, found = FAILED, sentence(str(error))
  except Exception as error:  # A bug must not let a bad bundle pass.
    _log.debug("check %s", rule.id, exc_info=True)
    status, found = FAILED, f"{BROKE}: {type(error).__name__}."
  return status, rule.text, found


def listed(items: Sequence[str], most: int = 5) -> str:
  """The first few items, and how many more there are."""
  more = f" and {len(items) - most:,} more" if len(items) > most else ""
  return "; ".join(items[:most]) + more


def shown(value: Any, most: int = 80) -> str:
  """A value from a file, in ASCII, short and on one line."""
  text = ascii(value)
  return text if len(text) <= most else text[:most] + "..."


def told(text: str, most: int = 300) -> str:
  """A message about a file's content, made short and safe to print."""
  words = " ".join(text.split())
  safe = "".join(c if c.isprintable() else "?" for c in words)
  return safe if len(safe) <= most else safe[:most] + "..."


def sentence(text: str) -> str:
  """Adds a full stop, and a capital unless a file or field comes first."""
  first = text.split(" ", 1)[0].rstrip(":")
  if not re.search("[./_]", first):
    text = text[:1].upper() + text[1:]
  return text if text.endswith(".") else text + "."


def size(num_bytes: int) -> str:
  """A number of bytes with a decimal unit."""
  for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if num_bytes >= factor:
      return f"{num_bytes / factor:.1f} {unit}"
  return f"{num_bytes} bytes"
