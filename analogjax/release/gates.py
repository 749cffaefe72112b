"""The gates of a release: the requirements, and the evidence for each.

Each gate has public evidence, which never reveals the frontier model's size,
deployment day or name, and private evidence for a regulator, which does. A gate
that does not pass can be waived for a reason. The reason is printed; the gate
still does not count as passed.

Source of the rules: "Require Frontier AI Labs To Release Small Analog Models",
section 3; docs/gates.md has its words beside them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from analogjax.bundle import licences, window
from analogjax.config.release import GATES
from analogjax.fidelity import claims as claims_lib
from analogjax.leaks import Leak
from analogjax.models import sizes
from analogjax.release import family

PASSED, FAILED, WAIVED, WARNING = "passed", "failed", "waived", "warning"

# Parts of a safety evaluation; one that lacks some is flagged.
SAFETY_FAMILIES = ("extraction", "canaries", "membership", "refusal")


class Checkpoint(NamedTuple):
  """The released checkpoint, as fidelity.json and safety.json name it."""

  phase: str
  step: int
  fingerprint: str  # From `inputs.students.<phase>` of the student.
  teacher_digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
  """What the gates judge; a pair is (of the analog, of the frontier model)."""

  parameters: tuple[int, int]  # The analog's, by its safetensors headers.
  active_parameters: tuple[int, int]  # Parameters that each token uses.
  released_on: str  # YYYY-MM-DD.
  deployed_on: str  # The frontier model's.
  configs: tuple[Mapping[str, Any], Mapping[str, Any]]  # config.json.
  tokenizers: tuple[str, str]  # SHA-256.
  pipelines: tuple[str, str]  # Fingerprints of the rows; "": not stated.
  licence: licences.Licence
  missing: Sequence[str]  # "path: what to do", from record.missing.
  demos: Sequence[str]  # Fields of the config that hold the demo's texts.
  checkpoint: Checkpoint
  fidelity: Mapping[str, Any] | None  # fidelity.json; None: there is none.
  safety: Mapping[str, Any] | None
  leaks: Sequence[Leak] | None  # None: the linter did not run.


class _Finding(NamedTuple):
  verdict: str  # PASSED, FAILED or WARNING.
  public: str
  private: str = ""


class _Gate(NamedTuple):
  title: str
  judge: Callable[[Evidence], _Finding]
  remedy: str  # Remedy if it fails.


def judge(
  evidence: Evidence, waivers: Mapping[str, str]
) -> list[dict[str, Any]]:
  """Judges every gate, in the order of GATES.

  `waivers` maps a gate to the reason why it need not pass.

  Returns:
    Dicts of `id`, `title`, `verdict` (PASSED, FAILED, WAIVED or WARNING),
    `evidence`, `private_evidence` and `waiver` (the reason, or None). A gate
    that would fail or warn and has a waiver is WAIVED. Only a FAILED gate stops
    a release.

  Raises:
    ValueError: a text is not a day, or a waiver is of an unknown gate.
  """
  if unknown := [gate for gate in waivers if gate not in GATES]:
    raise ValueError(
      f"release.waivers: expected gates ({', '.join(GATES)}), found"
      f" {unknown[0]!r}; correct or remove it."
    )
  found = []
  for name in GATES:
    gate = _GATES[name]
    verdict, public, private = gate.judge(evidence)
    reason = waivers.get(name)
    if reason is not None and verdict == PASSED:
      public += " The waiver of this gate was not used."
    elif reason is not None:
      verdict = WAIVED
    found.append(
      {
        "id": name,
        "title": gate.title,
        "verdict": verdict,
        "evidence": public,
        "private_evidence": private,
        "waiver": reason if verdict == WAIVED else None,
      }
    )
  return found


def failed(gates: Sequence[Mapping[str, Any]]) -> list[str]:
  """One line for each gate that stops the release, and what to do."""
  return [
    f"release gate {gate['id']}: {gate['evidence']}"
    + (f" ({gate['private_evidence']})" if gate["private_evidence"] else "")
    + f" {_GATES[gate['id']].remedy}, or set release.waivers.{gate['id']} to"
    " the reason why it need not pass."
    for gate in gates
    if gate["verdict"] == FAILED
  ]


def _size(evidence: Evidence) -> _Finding:
  found = {
    "all": sizes.size_window_verdict(*evidence.parameters),
    "active": sizes.size_window_verdict(*evidence.active_parameters),
  }
  wrong = [what for what, verdict in found.items() if not verdict.inside]
  counted = (
    f"{evidence.parameters[0]:,} parameters, counted from the safetensors"
    f" headers, {evidence.active_parameters[0]:,} of them active"
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
  found = window.verdict(evidence.deployed_on, evidence.released_on)
  private = (
    f"deployed on {found.deployed_on}, so the window is {found.first} to"
    f" {found.last}"
  )
  verdict, where = {
    window.WITHIN: (PASSED, "within the window"),
    window.EARLY: (WARNING, "earlier than a month after the deployment"),
    window.LATE: (FAILED, "later than three months after the deployment"),
  }[found.where]
  public = f"Released on {found.released_on}, {where}."
  return _Finding(verdict, public, private)


def _family(evidence: Evidence) -> _Finding:
  found = family.compare(*evidence.configs)
  same, different = list(found.same), list(found.different)
  ours, theirs = evidence.tokenizers
  has_tokenizer = bool(ours) and ours == theirs
  (same if has_tokenizer else different).append("tokenizer")
  parts = [
    f"{what}: {', '.join(names)}."
    for what, names in (
      ("The same", same),
      ("Different", different),
      ("Not stated by both", found.unknown),
    )
    if names
  ]
  private = "; ".join(
    f"{name}: {ours or 'not stated'} and {theirs or 'not stated'}"
    for name, (ours, theirs) in found.values.items()
    if ours != theirs
  )
  passes = found.is_one_family and has_tokenizer
  return _Finding(PASSED if passes else FAILED, " ".join(parts), private)


def _data(evidence: Evidence) -> _Finding:
  ours, theirs = evidence.pipelines
  private = f"the analog's rows are of pipeline {ours or 'not stated'}"
  if not ours or not theirs:
    public = "Not stated: there is no digest of the frontier model's pipeline."
    return _Finding(FAILED, public, private)
  if ours != theirs:
    public = "The digests of the two data pipelines differ."
    return _Finding(FAILED, public, f"{private}, the frontier's of {theirs}")
  return _Finding(PASSED, "The digests of the two pipelines agree.", private)


def _licence(evidence: Evidence) -> _Finding:
  found = evidence.licence
  if found.category == licences.IS_PERMISSIVE:
    return _Finding(PASSED, f"{found.name} ({found.spdx}), a permissive one.")
  return _Finding(
    WARNING,
    f"{found.name}: not one of the permissive licences known here, so it counts"
    " as one with limited safeguards and is not open by the Model Openness"
    " Framework. That it does not obstruct core research is declared, not"
    " checked.",
  )


def _documents(evidence: Evidence) -> _Finding:
  wrong, private = [], "; ".join(evidence.missing)
  if number := len(evidence.missing):
    wrong.append(f"{number} fact{' is' if number == 1 else 's are'} missing.")
  if evidence.demos:
    names = ", ".join(evidence.demos)
    wrong.append(f"Still the texts of the demo's config: {names}.")
  if wrong:
    return _Finding(FAILED, " ".join(wrong), private)
  return _Finding(PASSED, "Every fact that the documents need is there.")


def _safety(evidence: Evidence) -> _Finding:
  document = evidence.safety
  if document is None:
    return _Finding(FAILED, "There is no safety evaluation.")
  if wrong := _of_another(document, evidence):
    return _Finding(FAILED, f"The safety evaluation is {wrong}.")
  tests = document["tests"]
  over = sorted(t["id"] for t in tests if t["verdict"] == FAILED)
  if over or document["verdict"] != PASSED:
    names = ", ".join(over) or "the evaluation as a whole"
    public = f"Of {len(tests)} results, outside of a threshold: {names}."
    return _Finding(FAILED, public)
  held = sum(test["verdict"] == PASSED for test in tests)
  public = f"{held} of {len(tests)} results have a threshold; these held."
  flags = _quick(document)
  if not held:
    flags.append("no result has a threshold that it was held to")
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
  # Neither the finding nor its place: the public evidence is linted, too.
  number = len(evidence.leaks)
  places = sorted({f"{leak.file} ({leak.rule})" for leak in evidence.leaks})
  public = f"The leak linter has {number} findings."
  return _Finding(FAILED, public, ", ".join(places))


def _of_another(document: Mapping[str, Any], evidence: Evidence) -> str:
  """How a document differs from this pair; "" if it does not."""
  inputs, ours = document["inputs"], evidence.checkpoint
  if inputs.get("analog") != ours.phase:
    return "of another phase than the one that goes out"
  about = inputs.get("students", {}).get(ours.phase, {})
  found = about.get("step"), about.get("fingerprint")
  if found != (ours.step, ours.fingerprint):
    return "of another checkpoint than the one that goes out"
  if inputs.get("teacher_digest") not in (None, ours.teacher_digest):
    return "against another teacher"
  return ""


def _quick(document: Mapping[str, Any]) -> list[str]:
  quick = document.get("quick", document["inputs"].get("quick", False))
  return ["a quick run, of few rows"] if quick else []


def _flagged(public: str, flags: Sequence[str]) -> _Finding:
  if not flags:
    return _Finding(PASSED, public)
  return _Finding(WARNING, f"{public} Flagged: {'; '.join(flags)}.")


_GATES: Mapping[str, _Gate] = {
  "size": _Gate(
    "Between 0.5 % and 5 % of the frontier model's parameters",
    _size,
    "Train a student of another size",
  ),
  "window": _Gate(
    "Released 1 to 3 months after the frontier model's deployment",
    _window,
    "Correct release.date or release.frontier.deployed_on",
  ),
  "family": _Gate(
    "Of the frontier model's architecture family",
    _family,
    "Train a student of the teacher's family, with its tokenizer",
  ),
  "data": _Gate(
    "Trained on the frontier model's data",
    _data,
    "Set release.frontier.pipeline_fingerprint to what the manifest of its"
    " cache has, or train on the frontier run's rows",
  ),
  "licence": _Gate(
    "Under a permissive licence", _licence, "Set release.licence"
  ),
  "documents": _Gate(
    "Documented completely",
    _documents,
    "Run or set what is named, and write about your own data and model",
  ),
  "safety": _Gate(
    "Evaluated for safety, and under the thresholds",
    _safety,
    "Run 'analogjax safety' on this analog, or tune it",
  ),
  "fidelity": _Gate(
    "Measured against the frontier model",
    _fidelity,
    "Run 'analogjax measure' on this analog",
  ),
  "leaks": _Gate(
    "Gives nothing of the frontier model away",
    _leaks,
    "Take out what was found (docs/leaks.md)",
  ),
}
