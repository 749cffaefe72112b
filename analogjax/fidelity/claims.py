"""Claims about the analog, and the rules that judge them.

The rules are fixed before anything is measured. The depth and the map of a
question do not depend on the results, because the best of many numbers is
always high. A control is a student that never saw the teacher; what a control
achieves as well is not credited to the analog.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

from analogjax.fidelity import questions
from analogjax.fidelity.questions import (
  DOES_NOT,
  OPEN,
  TRANSFERS,
  Claim,
  Json,
  Question,
)
from analogjax.rendering.numbers import interval, number

# Bounds of a transfer ratio and of the fraction that a stitch recovers; 1 is
# all of it.
ENOUGH = 0.5
TOO_LITTLE = 0.25
P_VALUE = 0.05
# Calibrated similarities have no interval: permutations only sample chance.
SIMILARITY_MARGIN = 0.05
COIN = 0.5  # AUC of a guess.
STEERING_MAPPERS = ("affine", "embedding", "autoencoder")  # The first measured.
STITCHING_DEPTH = 0.5  # The measured depth nearest to this one.
STITCHING_FIT = "least_squares"
# A lab's own paths are not published.
COMMAND = "analogjax measure --config=CONFIG --workdir=WORKDIR"

_SIMILARITIES = {
  "mutual_knn": "shared nearest neighbours",
  "unbiased_cka": "unbiased CKA",
  "procrustes": "Procrustes similarity",
}
_NO_CONTROL = (
  "no control was measured: add a phase of the same size and as many tokens"
  " that sees hard labels alone (loss.alpha 0) to train.phases and"
  " measure.phases"
)
_ABOUT = {
  "output": "what the models say",
  "similarity": "how they represent the same text",
  "steering": "interventions that are found on the analog",
  "stitching": "the analog's layers in the frontier model's place",
}
# Stands among the models that a ratio is compared with; no model has a space in
# its name.
SHUFFLED = "the shuffled map"


def rules() -> list[dict[str, str]]:
  """Rules by which a claim of each part holds or does not; else it is open."""
  return [
    {
      "part": "output",
      "transfers": "the difference to the best control is in the analog's"
      " favour, and its interval excludes 0; an AUC is above"
      f" {number(COIN)}, too, with all of its interval",
      "does_not": "that interval excludes 0 in the control's favour, or an"
      f" AUC's interval ends at {number(COIN)} or below",
    },
    {
      "part": "similarity",
      "transfers": f"p is at most {number(P_VALUE)}, and the calibrated"
      f" number is more than {number(SIMILARITY_MARGIN)} above those of every"
      " control and of the random model",
      "does_not": f"p is above {number(P_VALUE)}, or a control or the random"
      " model is as similar",
    },
    {
      "part": "steering",
      "transfers": "the transfer ratio at matched perplexity has an interval"
      f" above {number(ENOUGH)}, and above the intervals of every control, of"
      " the random model and of the shuffled map",
      "does_not": f"the interval is below {number(TOO_LITTLE)}, or one of"
      " those has as high a ratio; an interval below 0 moves the frontier model"
      " the opposite way",
    },
    {
      "part": "stitching",
      "transfers": "what is recovered half-way up has an interval above"
      f" {number(ENOUGH)}, and above those of every control and of the random"
      " model",
      "does_not": f"the interval is below {number(TOO_LITTLE)}, or one of"
      " those recovers as much",
    },
  ]


def make(
  parts: Json,
  *,
  analog: str,
  controls: Sequence[str],
  random: str,
  quick: bool,
) -> list[dict[str, Any]]:
  """All claims, in the form of fidelity.json.

  Args:
    parts: name -> results; a missing part makes an open claim.
    controls: trained students that never saw the teacher.
    random: the student that was never trained.
  """
  judge = _Judge(analog, tuple(controls), random)
  claims = []
  for part in _ABOUT:
    found = getattr(judge, part)(parts[part]) if part in parts else ()
    claims += [
      {
        **dataclasses.asdict(claim),
        "part": part,
        "model": analog,
        "command": command(part, quick=quick),
      }
      for claim in found or [_missing(part)]
    ]
  return claims


def command(part: str = "", *, quick: bool, measure: str = COMMAND) -> str:
  """The command that repeats the measurement of one part, or of all."""
  only = f" --only={part}" if part else ""
  return measure + only + (" --quick" if quick else "")


class Span(NamedTuple):
  """A defined estimate."""

  value: float
  low: float
  high: float


def difference(a: Span, b: Span) -> Span:
  """a - b, with an interval from those of both.

  The two are taken as independent. They use the same rows, on which models tend
  to do well or badly together, so the true interval is narrower.

  Source: MOVER; Zou and Donner, Construction of confidence limits about effect
  measures, Statistics in Medicine 27 (2008). Recalled, not verified.
  """
  value = a.value - b.value
  return Span(
    value,
    value - math.hypot(a.value - a.low, b.high - b.value),
    value + math.hypot(a.high - a.value, b.value - b.low),
  )


def _missing(part: str) -> Claim:
  return Claim(
    id=part,
    text=f"Nothing is known of {_ABOUT[part]}.",
    verdict=OPEN,
    because="It was not measured.",
  )


@dataclasses.dataclass(frozen=True)
class _Judge:
  """The rules, applied to these models."""

  analog: str
  controls: tuple[str, ...]
  random: str

  def output(self, part: Json) -> Iterator[Claim]:
    models = part["models"]
    kl = {m: v["metrics"].get("kl_to_teacher_nats") for m, v in models.items()}
    what = "KL to the frontier model, nats per token"
    yield self._against_control(questions.KL, what, kl, lower_is_better=True)
    auc = {m: v.get("outcomes", {}).get("auc") for m, v in models.items()}
    if auc.get(self.analog) is not None:
      what = "AUC of telling where the frontier model fails"
      yield self._against_control(questions.FAILURES, what, auc, least=COIN)

  def similarity(self, part: Json) -> Iterator[Claim]:
    for metric, name in _SIMILARITIES.items():
      found = {m: v[metric] for m, v in part["models"].items() if metric in v}
      if self.analog in found:
        yield self._above_chance(
          questions.similarity(metric, name), name, found
        )

  def steering(self, part: Json) -> Iterator[Claim]:
    for behaviour, value in part["behaviours"].items():
      yield self._steered(questions.steering(behaviour), value)

  def stitching(self, part: Json) -> Iterator[Claim]:
    found: dict[str, dict[tuple[float, float], Json]] = {
      model: {
        (s["student_depth"], s["teacher_depth"]): s["recovered"]
        for s in stitches
        if s["fit"] == STITCHING_FIT
      }
      for model, stitches in part["models"].items()
    }
    if not found.get(self.analog):
      why = "There is no least-squares stitch of the analog."
      yield questions.STITCHING.answer(OPEN, why, threshold=ENOUGH)
      return
    depths = min(
      found[self.analog],
      key=lambda pair: sum(abs(x - STITCHING_DEPTH) for x in pair),
    )
    what = (
      "Recovered cross-entropy, from depth"
      f" {number(depths[0])} of the student to {number(depths[1])} of the"
      " frontier model"
    )
    there = {m: of[depths] for m, of in found.items() if depths in of}
    yield self._large_enough(questions.STITCHING, what, there)

  def _steered(self, question: Question, value: Json) -> Claim:
    if why := value["undefined"]:
      why = f"The transfer ratio is undefined: {why.rstrip('.')}."
      return question.answer(OPEN, why, threshold=ENOUGH)
    matched = [t for t in value["transfer"] if t["matched"] == "perplexity"]
    ratios = {
      (t["model"], t["mapper"]): t["ratio"]
      for t in matched
      if t["kind"] == "mapped"
    }
    mappers = [m for m in STEERING_MAPPERS if (self.analog, m) in ratios]
    if not mappers:
      why = "There is no transfer ratio of the analog at matched perplexity."
      return question.answer(OPEN, why, threshold=ENOUGH)
    found = {
      model: ratio
      for (model, mapper), ratio in ratios.items()
      if mapper == mappers[0]
    }
    for item in matched:
      if item["kind"] == "shuffled":
        found[SHUFFLED] = item["ratio"]
    what = f"Transfer ratio, {mappers[0]} map, at matched perplexity"
    return self._large_enough(question, what, found)

  def _against_control(
    self,
    question: Question,
    what: str,
    found: Mapping[str, Json | None],
    *,
    lower_is_better: bool = False,
    least: float | None = None,
  ) -> Claim:
    """Judges by the difference to the best control."""
    control, theirs = _best(found, self.controls, lower_is_better)
    ours = _span(found.get(self.analog))
    because = self._numbers(what, found, control)
    if ours is None or theirs is None:
      why = "it is undefined" if ours is None else self._no_control()
      verdict, because = OPEN, f"{because}; {why}."
    else:
      gain = difference(
        *((theirs, ours) if lower_is_better else (ours, theirs))
      )
      by = f"{number(gain.value)} ({number(gain.low)} to {number(gain.high)})"
      because += f"; the analog is ahead by {by}"
      if gain.high < 0:
        verdict, because = DOES_NOT, f"{because}: it is behind."
      elif least is not None and ours.high <= least:
        verdict, because = (
          DOES_NOT,
          f"{because}, but not above {number(least)}.",
        )
      elif gain.low <= 0:
        verdict, because = OPEN, f"{because}, which may be 0."
      elif least is not None and ours.low <= least:
        verdict = OPEN
        because += f", but its interval reaches down to {number(least)}."
      else:
        verdict, because = TRANSFERS, f"{because}."
    return question.answer(
      verdict,
      because,
      control=control,
      estimate=found.get(self.analog),
      control_estimate=found.get(control),
      threshold=least,
    )

  def _above_chance(self, question: Question, name: str, found: Json) -> Claim:
    """Judges a calibrated similarity: 0 for chance and 1 for the same."""
    ours = found[self.analog]
    known = [m for m in self.controls if m in found]
    rivals = [m for m in (*known, self.random) if m in found]
    rival = max(rivals, key=lambda m: found[m]["calibrated"], default="")
    numbers = (
      f"Calibrated {name}, 0 for chance and 1 for the same: {self.analog}"
      f" {number(ours['calibrated'])}, p = {number(ours['p'])}"
    )
    gain = None
    if rival:
      numbers += f"; {rival} {number(found[rival]['calibrated'])}"
      gain = ours["calibrated"] - found[rival]["calibrated"]
    margin = number(SIMILARITY_MARGIN)
    if ours["p"] > P_VALUE:
      verdict, why = DOES_NOT, "chance gives as much"
    elif gain is not None and gain <= 0:
      verdict, why = DOES_NOT, f"{rival} is as similar"
    elif gain is None or not known:
      verdict, why = OPEN, self._no_control()
    elif gain <= SIMILARITY_MARGIN:
      verdict, why = OPEN, f"no more than {margin} above {rival}"
    else:
      verdict, why = TRANSFERS, "above chance and all others"
    return question.answer(verdict, f"{numbers}: {why}.", control=rival)

  def _large_enough(
    self, question: Question, what: str, found: Mapping[str, Json]
  ) -> Claim:
    """Judges a fraction: 1 if all carries over, 0 if nothing does."""
    ours = _span(found[self.analog])
    names = (*self.controls, self.random, SHUFFLED)
    control, theirs = _best(found, names, lower_is_better=False)
    rivals = [s for m in names if (s := _span(found.get(m))) is not None]
    if ours is None:
      verdict, why = OPEN, ""
    elif ours.high < 0 and question.opposite:
      verdict, why = DOES_NOT, ": below 0, so it moves it the opposite way"
      question = dataclasses.replace(question, does_not=question.opposite)
    elif ours.high < TOO_LITTLE:
      verdict, why = DOES_NOT, f": below {number(TOO_LITTLE)}"
    elif theirs is not None and theirs.value >= ours.value:
      verdict, why = DOES_NOT, ", which does as well"
    elif not any(_span(found.get(m)) for m in self.controls):
      verdict, why = OPEN, f"; {self._no_control()}"
    elif ours.low <= ENOUGH:
      verdict = OPEN
      why = f": its interval is not all above {number(ENOUGH)}"
    elif any(rival.high >= ours.low for rival in rivals):
      verdict, why = OPEN, ": the intervals overlap"
    else:
      verdict = TRANSFERS
      why = f": above {number(ENOUGH)} and above all others"
    return question.answer(
      verdict,
      f"{self._numbers(what, found, control)}{why}.",
      control=control,
      estimate=found[self.analog],
      control_estimate=found.get(control),
      threshold=ENOUGH,
    )

  def _no_control(self) -> str:
    if not self.controls:
      return _NO_CONTROL
    return f"there is no such number of {', '.join(self.controls)}"

  def _numbers(
    self, what: str, found: Mapping[str, Json | None], control: str
  ) -> str:
    text = f"{what}: {self.analog} {interval(found.get(self.analog))}"
    return text + (f", {control} {interval(found[control])}" if control else "")


def _span(estimate: Json | None) -> Span | None:
  if estimate is None or estimate["value"] is None:
    return None
  return Span(estimate["value"], estimate["low"], estimate["high"])


def _best(
  found: Mapping[str, Json | None],
  names: Iterable[str],
  lower_is_better: bool,
) -> tuple[str, Span | None]:
  """The model with the best defined number, and that number."""
  spans = {m: s for m in names if (s := _span(found.get(m))) is not None}
  sign = -1 if lower_is_better else 1
  name = max(spans, key=lambda m: sign * spans[m].value, default="")
  return name, spans.get(name)
