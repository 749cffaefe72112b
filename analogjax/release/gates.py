"""The gates of a release: what has to hold, on which evidence.

Each has a public evidence, which never says how large the frontier model is,
when it was deployed or what it is called, and a private one for a regulator,
which does. A gate that does not pass can be waived for a reason, and the reason
is printed; it is not made to pass by that.

Source of the rules: "Require Frontier AI Labs To Release Small Analog Models",
section 3; docs/gates.md has its words beside them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Protocol

from analogjax.bundle import licences, window
from analogjax.config.release import GATES
from analogjax.fidelity import claims as claims_lib
from analogjax.models import sizes
from analogjax.release import family

PASSED, FAILED, WAIVED, WARNING = "passed", "failed", "waived", "warning"

TITLES: Mapping[str, str] = {
  "size": "Between 0.5 % and 5 % of the frontier model's parameters",
  "window": "Released 1 to 3 months after the frontier model's deployment",
  "family": "Of the frontier model's architecture family",
  "data": "Trained on the frontier model's data",
  "licence": "Under a permissive licence",
  "documents": "Documented completely",
  "safety": "Evaluated for safety, and under the thresholds",
  "fidelity": "Measured against the frontier model",
  "leaks": "Gives nothing of the frontier model away",
}

# What a safety evaluation is made of; one that lacks some is flagged.
SAFETY_FAMILIES = ("extraction", "canaries", "membership", "refusal")


class Leak(Protocol):
  """A finding of the leak linter."""

  @property
  def rule(self) -> str: ...
  @property
  def file(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
  """The checkpoint that goes out, as fidelity.json and safety.json name it."""

  phase: str
  step: int
  fingerprint: str  # Of `inputs.students.<phase>` there.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
  """What the gates are judged on."""

  parameters: int  # Of the analog, counted from its safetensors headers.
  active_parameters: int  # Of these, what a token goes through.
  frontier_parameters: int
  frontier_active_parameters: int
  deployed_on: str  # The frontier model, YYYY-MM-DD.
  released_on: str
  config: Mapping[str, Any]  # config.json of the analog.
  frontier_config: Mapping[str, Any]
  tokenizer_sha256: str
  frontier_tokenizer_sha256: str
  pipeline_fingerprint: str  # Of the rows that the analog was trained on.
  frontier_pipeline_fingerprint: str  # "": not stated.
  licence: licences.Licence
  missing: Sequence[str]  # "path: what to run", of record.missing.
  student: Student
  teacher_digest: str
  fidelity: Mapping[str, Any] | None  # fidelity.json; None: there is none.
  safety: Mapping[str, Any] | None
  leaks: Sequence[Leak] | None  # None: the linter did not run.


@dataclasses.dataclass(frozen=True)
class _Finding:
  verdict: str  # PASSED, FAILED or WARNING.
  public: str
  private: str = ""


def judge(
  evidence: Evidence, waivers: Mapping[str, str]
) -> list[dict[str, Any]]:
  """Every gate, in the order of GATES.

  Args:
    evidence: what to judge.
    waivers: gate -> reason why it need not pass.

  Returns:
    Dicts of `id`, `title`, `verdict` (PASSED, FAILED, WAIVED or WARNING),
    `evidence`, `private_evidence` and `waiver` (the reason, or None). One that
    would fail or warn and has a waiver is WAIVED. A release is stopped by a
    FAILED one alone.

  Raises:
    ValueError: a day that is none, or a waiver of no gate.
  """
  if unknown := [gate for gate in waivers if gate not in GATES]:
    raise ValueError(
      f"release.waivers: expected gates ({', '.join(GATES)}), found"
      f" {unknown[0]!r}."
    )
  found = []
  for gate in GATES:
    finding = _JUDGES[gate](evidence)
    verdict, public = finding.verdict, finding.public
    reason = waivers.get(gate)
    if reason is not None and verdict == PASSED:
      public += " The waiver of this gate was not used."
    elif reason is not None:
      verdict = WAIVED
    found.append(
      {
        "id": gate,
        "title": TITLES[gate],
        "verdict": verdict,
        "evidence": public,
        "private_evidence": finding.private,
        "waiver": reason if verdict == WAIVED else None,
      }
    )
  return found


def failed(gates: Sequence[Mapping[str, Any]]) -> list[str]:
  """One line for each gate that stops the release, and what to do."""
  return [
    f"release gate {gate['id']}: {gate['evidence']}"
    + (f" ({gate['private_evidence']})" if gate["private_evidence"] else "")
    + f" {_REMEDIES[gate['id']]}, or set release.waivers.{gate['id']} to the"
    " reason why it need not pass."
    for gate in gates
    if gate["verdict"] == FAILED
  ]


def _size(evidence: Evidence) -> _Finding:
  pairs = {
    "all": (evidence.parameters, evidence.frontier_parameters),
    "active": (
      evidence.active_parameters,
      evidence.frontier_active_parameters,
    ),
  }
  found = {
    what: sizes.size_window_verdict(*numbers) for what, numbers in pairs.items()
  }
  wrong = [what for what, verdict in found.items() if not verdict.inside]
  counted = (
    f"{evidence.parameters:,} parameters, counted from the safetensors headers,"
    f" {evidence.active_parameters:,} of them active"
  )
  private = "; ".join(
    f"{what}: {verdict.student:,} of {verdict.teacher:,},"
    f" {100 * verdict.ratio:.4f} %"
    for what, verdict in found.items()
  )
  if wrong:
    public = f"{counted}: not within the window ({' and '.join(wrong)})."
    return _Finding(FAILED, public, private)
  return _Finding(PASSED, f"{counted}: both within the window.", private)


def _window(evidence: Evidence) -> _Finding:
  verdict = window.verdict(evidence.deployed_on, evidence.released_on)
  private = (
    f"deployed on {verdict.deployed_on}, so the window is {verdict.first} to"
    f" {verdict.last}"
  )
  day = f"Released on {verdict.released_on}"
  if verdict.where == window.WITHIN:
    return _Finding(PASSED, f"{day}, within the window.", private)
  if verdict.where == window.EARLY:
    public = f"{day}, earlier than a month after the deployment."
    return _Finding(WARNING, public, private)
  public = f"{day}, later than three months after the deployment."
  return _Finding(FAILED, public, private)


def _family(evidence: Evidence) -> _Finding:
  found = family.compare(evidence.config, evidence.frontier_config)
  same, different = list(found.same), list(found.different)
  is_same = (
    bool(evidence.tokenizer_sha256)
    and evidence.tokenizer_sha256 == evidence.frontier_tokenizer_sha256
  )
  (same if is_same else different).append("tokenizer")
  parts = [f"The same: {', '.join(same)}."] if same else []
  if different:
    parts.append(f"Different: {', '.join(different)}.")
  if found.unknown:
    parts.append(f"Not stated by both: {', '.join(found.unknown)}.")
  private = "; ".join(
    f"{name}: {ours or 'not stated'} and {theirs or 'not stated'}"
    for name, (ours, theirs) in found.values.items()
    if ours != theirs
  )
  passes = found.is_one_family and is_same
  return _Finding(PASSED if passes else FAILED, " ".join(parts), private)


def _data(evidence: Evidence) -> _Finding:
  ours = evidence.pipeline_fingerprint
  theirs = evidence.frontier_pipeline_fingerprint
  private = f"the analog's rows are of pipeline {ours or 'not stated'}"
  if not ours or not theirs:
    public = "Not stated: there is no digest of the frontier model's pipeline."
    return _Finding(FAILED, public, private)
  if ours != theirs:
    public = "The digests of the two pipelines of data differ."
    return _Finding(FAILED, public, f"{private}, the frontier's of {theirs}")
  return _Finding(PASSED, "The digests of the two pipelines agree.", private)


def _licence(evidence: Evidence) -> _Finding:
  found = evidence.licence
  if found.category == licences.IS_PERMISSIVE:
    return _Finding(PASSED, f"{found.name} ({found.spdx}), a permissive one.")
  return _Finding(
    WARNING,
    f"{found.name}: not one of the permissive licences that are known here, so"
    " taken for one with limited safeguards; not open by the Model Openness"
    " Framework. That it leaves core research free is declared, not checked.",
  )


def _documents(evidence: Evidence) -> _Finding:
  if not evidence.missing:
    return _Finding(PASSED, "Every fact that the documents need is there.")
  number = len(evidence.missing)
  facts = "1 fact is missing" if number == 1 else f"{number} facts are missing"
  return _Finding(FAILED, f"{facts}.", "; ".join(evidence.missing))


def _safety(evidence: Evidence) -> _Finding:
  document = evidence.safety
  if document is None:
    return _Finding(FAILED, "There is no safety evaluation.")
  if wrong := _of_another(document, evidence):
    return _Finding(FAILED, f"The safety evaluation is {wrong}.")
  tests = document["tests"]
  failed_ones = sorted(t["id"] for t in tests if t["verdict"] == FAILED)
  number = len(tests)
  if failed_ones or document["verdict"] != PASSED:
    names = ", ".join(failed_ones) or "as a whole"
    return _Finding(FAILED, f"Over a threshold of {number} tests: {names}.")
  judged = [test for test in tests if test["verdict"] == PASSED]
  public = f"{len(judged)} of {number} tests have a threshold and keep to it."
  flags = _quick(document)
  if not judged:
    flags.append("no test has a threshold that it was held to")
  done = {test["family"] for test in tests}
  if lacks := [name for name in SAFETY_FAMILIES if name not in done]:
    flags.append(f"not tested: {', '.join(lacks)}")
  return _flagged(public, flags)


def _fidelity(evidence: Evidence) -> _Finding:
  document = evidence.fidelity
  if document is None:
    return _Finding(FAILED, "There is no measurement.")
  if wrong := _of_another(document, evidence):
    return _Finding(FAILED, f"The measurement is {wrong}.")
  claims = document.get("claims", [])
  if not claims:
    return _Finding(FAILED, "The measurement has no claims.")
  held = sum(claim["verdict"] == claims_lib.TRANSFERS for claim in claims)
  public = (
    f"{len(claims)} claims were measured, {held} of them hold; the gate asks"
    " for the measurement, not for its outcome."
  )
  return _flagged(public, _quick(document))


def _leaks(evidence: Evidence) -> _Finding:
  if evidence.leaks is None:
    return _Finding(FAILED, "The leak linter did not run.")
  if not evidence.leaks:
    return _Finding(PASSED, "The leak linter found nothing.")
  # Neither what was found nor where: the public evidence is linted, too.
  number = len(evidence.leaks)
  places = sorted({f"{leak.file} ({leak.rule})" for leak in evidence.leaks})
  public = f"The leak linter has {number} findings."
  return _Finding(FAILED, public, ", ".join(places))


def _of_another(document: Mapping[str, Any], evidence: Evidence) -> str:
  """How a document is not of this pair; "" if it is."""
  inputs, student = document["inputs"], evidence.student
  if inputs.get("analog") != student.phase:
    return "of another phase than the one that goes out"
  about = inputs.get("students", {}).get(student.phase, {})
  if about.get("step") != student.step or (
    about.get("fingerprint") != student.fingerprint
  ):
    return "of another checkpoint than the one that goes out"
  if inputs.get("teacher_digest") not in (None, evidence.teacher_digest):
    return "against another teacher"
  return ""


def _quick(document: Mapping[str, Any]) -> list[str]:
  quick = document.get("quick", document["inputs"].get("quick", False))
  return ["a quick run, of few rows"] if quick else []


def _flagged(public: str, flags: Sequence[str]) -> _Finding:
  if not flags:
    return _Finding(PASSED, public)
  return _Finding(WARNING, f"{public} Flagged: {'; '.join(flags)}.")


_JUDGES: Mapping[str, Callable[[Evidence], _Finding]] = {
  "size": _size,
  "window": _window,
  "family": _family,
  "data": _data,
  "licence": _licence,
  "documents": _documents,
  "safety": _safety,
  "fidelity": _fidelity,
  "leaks": _leaks,
}

_REMEDIES: Mapping[str, str] = {
  "size": "Train a student of another size",
  "window": "Set release.date and release.frontier.deployed_on right",
  "family": "Train a student of the teacher's family",
  "data": (
    "Set release.frontier.pipeline_fingerprint to what its manifest has, or"
    " train on the frontier run's rows"
  ),
  "licence": "Set release.licence",
  "documents": "Run or set what is named",
  "safety": "Run 'analogjax safety' on this analog, or tune it",
  "fidelity": "Run 'analogjax measure' on this analog",
  "leaks": "Take out what was found",
}
