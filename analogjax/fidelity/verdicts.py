"""Rules that turn numbers into verdicts; fixed before anything is measured.

What is asked, of which depth and with which map, does not depend on what was
found: of many numbers one is always high.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import math
from typing import Any, NamedTuple

from analogjax.rendering.numbers import interval, number

TRANSFERS = "transfers"
DOES_NOT = "does not"
OPEN = "not enough evidence"
VERDICTS = (TRANSFERS, DOES_NOT, OPEN)

# Of a transfer ratio and of what a stitch recovers; 1 is all of it.
ENOUGH = 0.5
TOO_LITTLE = 0.25
P_VALUE = 0.05
# Calibrated similarities have no interval: of permutations only chance has.
SIMILARITY_MARGIN = 0.05
COIN = 0.5  # AUC of a guess.
STEERING_MAPPERS = ("affine", "embedding", "autoencoder")  # The first there is.
STITCHING_DEPTH = 0.5  # The nearest to this that there is.
STITCHING_FIT = "least_squares"

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

# Among the models that a ratio is held against; no model has a space in it.
SHUFFLED = "the shuffled map"

Json = Mapping[str, Any]


def rules() -> list[dict[str, str]]:
  """When a claim of each part holds, when it does not; else it is open."""
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
      " those has as high a ratio",
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


class Span(NamedTuple):
  """An estimate that is defined."""

  value: float
  low: float
  high: float


def span(estimate: Json | None) -> Span | None:
  if estimate is None or estimate["value"] is None:
    return None
  return Span(estimate["value"], estimate["low"], estimate["high"])


def difference(a: Span, b: Span) -> Span:
  """a - b, with an interval from those of both.

  It takes the two for independent. They are of the same rows, on which models
  tend to do well or badly together, so that the true one is narrower.

  Source: MOVER; Zou and Donner, Construction of confidence limits about effect
  measures, Statistics in Medicine 27 (2008). Recalled, not verified.
  """
  value = a.value - b.value
  return Span(
    value,
    value - math.hypot(a.value - a.low, b.high - b.value),
    value + math.hypot(a.high - a.value, b.value - b.low),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """A sentence, whether it holds, and why."""

  id: str
  text: str
  verdict: str
  because: str
  control: str = ""  # The best one; "" if there is none.
  estimate: Json | None = None  # Of the analog.
  control_estimate: Json | None = None
  threshold: float | None = None  # What the estimate is held against.


@dataclasses.dataclass(frozen=True)
class Judge:
  """The rules, for these models."""

  analog: str
  controls: tuple[str, ...]
  random: str

  def output(self, part: Json) -> Iterator[Finding]:
    models = part["models"]
    yield self._nearer(
      Finding(
        id="output.kl",
        text="The analog's predictions are nearer to the frontier model's than"
        " those of a control that never saw it.",
        verdict=TRANSFERS,
        because="KL to the frontier model, nats per token",
      ),
      {m: v["metrics"].get("kl_to_teacher_nats") for m, v in models.items()},
      lower_is_better=True,
      does_not="The analog's predictions are further from the frontier model's"
      " than those of a control that never saw it.",
      open_="Whether the analog's predictions are nearer to the frontier"
      " model's than a control's are is open.",
    )
    outcomes = {m: v.get("outcomes", {}).get("auc") for m, v in models.items()}
    if outcomes.get(self.analog) is None:
      return
    yield self._nearer(
      Finding(
        id="output.failures",
        text="What is hard for the analog tells where the frontier model fails,"
        " better than what is hard for a control.",
        verdict=TRANSFERS,
        because="AUC of telling where the frontier model fails",
        threshold=COIN,
      ),
      outcomes,
      lower_is_better=False,
      does_not="What is hard for the analog tells no more of where the frontier"
      " model fails than what is hard for a control.",
      open_="Whether what is hard for the analog tells more of where the"
      " frontier model fails than what is hard for a control is open.",
    )

  def _nearer(
    self,
    claim: Finding,
    found: Mapping[str, Json | None],
    *,
    lower_is_better: bool,
    does_not: str,
    open_: str,
  ) -> Finding:
    """By the difference to the best control.

    Args:
      claim: as if it held; `because` is what the numbers are.
      found: by model.
      lower_is_better: of the numbers.
      does_not: text of it if it does not hold.
      open_: text if that is open.
    """
    ours = span(found.get(self.analog))
    control, theirs = _best(found, self.controls, lower_is_better)
    numbers = self._numbers(claim.because, found, control)
    least = claim.threshold
    claim = dataclasses.replace(
      claim,
      control=control,
      estimate=found.get(self.analog),
      control_estimate=found.get(control),
    )
    if ours is None or theirs is None:
      why = "it is undefined" if ours is None else self._no_control()
      return _but(claim, OPEN, open_, f"{numbers}; {why}.")
    gain = difference(theirs, ours) if lower_is_better else None
    gain = gain or difference(ours, theirs)
    by = f"{number(gain.value)} ({number(gain.low)} to {number(gain.high)})"
    numbers += f"; the analog is ahead by {by}"
    if gain.high < 0:
      return _but(claim, DOES_NOT, does_not, f"{numbers}: it is behind.")
    if least is not None and ours.high <= least:
      why = f"{numbers}, but not above {number(least)}."
      return _but(claim, DOES_NOT, does_not, why)
    if gain.low <= 0:
      return _but(claim, OPEN, open_, f"{numbers}, which may be 0.")
    if least is not None and ours.low <= least:
      why = f"{numbers}, but its interval reaches down to {number(least)}."
      return _but(claim, OPEN, open_, why)
    return dataclasses.replace(claim, because=f"{numbers}.")

  def similarity(self, part: Json) -> Iterator[Finding]:
    for metric, name in _SIMILARITIES.items():
      found = {m: v[metric] for m, v in part["models"].items() if metric in v}
      if self.analog in found:
        yield self._similar(f"similarity.{metric}", name, found)

  def _similar(self, id_: str, name: str, found: Json) -> Finding:
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
    text = {
      TRANSFERS: "The analog represents text like the frontier model, by"
      f" {name}: more than chance, and more than its controls.",
      DOES_NOT: f"By {name}, the analog represents text no more like the"
      " frontier model than chance or a control does.",
      OPEN: f"By {name}, it is open whether the analog represents text more"
      " like the frontier model than its controls do.",
    }[verdict]
    because = f"{numbers}: {why}."
    return Finding(
      id=id_, text=text, verdict=verdict, because=because, control=rival
    )

  def steering(self, part: Json) -> Iterator[Finding]:
    for behaviour, value in part["behaviours"].items():
      yield self._steered(behaviour, value)

  def _steered(self, behaviour: str, value: Json) -> Finding:
    claim = Finding(
      id=f"steering.{behaviour}",
      text=f"The direction for {behaviour} that is found on the analog steers"
      " the frontier model.",
      verdict=TRANSFERS,
      because="",
      threshold=ENOUGH,
    )
    does_not = (
      f"The direction for {behaviour} that is found on the analog does not"
      " steer the frontier model, or no better than those of its controls."
    )
    open_ = (
      f"Whether the direction for {behaviour} that is found on the analog"
      " steers the frontier model is open."
    )
    if why := value["undefined"]:
      why = f"The transfer ratio is undefined: {why.rstrip('.')}."
      return _but(claim, OPEN, open_, why)
    matched = [t for t in value["transfer"] if t["matched"] == "perplexity"]
    ratios = {
      (t["model"], t["mapper"]): t["ratio"]
      for t in matched
      if t["kind"] == "mapped"
    }
    mappers = [m for m in STEERING_MAPPERS if (self.analog, m) in ratios]
    if not mappers:
      why = "There is no transfer ratio of the analog at matched perplexity."
      return _but(claim, OPEN, open_, why)
    found = {
      model: ratio
      for (model, mapper), ratio in ratios.items()
      if mapper == mappers[0]
    }
    for item in matched:
      if item["kind"] == "shuffled":
        found[SHUFFLED] = item["ratio"]
    what = f"Transfer ratio, {mappers[0]} map, at matched perplexity"
    claim = dataclasses.replace(claim, because=what)
    return self._most(claim, found, does_not, open_)

  def stitching(self, part: Json) -> Iterator[Finding]:
    claim = Finding(
      id="stitching.half",
      text="The frontier model goes on from the analog's activations half-way"
      " up, through a linear map, better than from a control's.",
      verdict=TRANSFERS,
      because="There is no least-squares stitch of the analog.",
      threshold=ENOUGH,
    )
    does_not = (
      "The frontier model does not go on from the analog's activations half-way"
      " up, or no better than from a control's."
    )
    open_ = (
      "Whether the frontier model goes on from the analog's activations"
      " half-way up, better than from a control's, is open."
    )
    found: dict[str, dict[tuple[float, float], Json]] = {
      model: {
        (s["student_depth"], s["teacher_depth"]): s["recovered"]
        for s in stitches
        if s["fit"] == STITCHING_FIT
      }
      for model, stitches in part["models"].items()
    }
    if not found.get(self.analog):
      yield _but(claim, OPEN, open_, claim.because)
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
    claim = dataclasses.replace(claim, because=what)
    there = {m: of[depths] for m, of in found.items() if depths in of}
    yield self._most(claim, there, does_not, open_)

  def _most(
    self,
    claim: Finding,
    found: Mapping[str, Json],
    does_not: str,
    open_: str,
  ) -> Finding:
    """Of a number that is 1 if all is there and 0 if nothing is."""
    ours = span(found[self.analog])
    names = (*self.controls, self.random, SHUFFLED)
    control, theirs = _best(found, names, lower_is_better=False)
    numbers = self._numbers(claim.because, found, control)
    claim = dataclasses.replace(
      claim,
      control=control,
      estimate=found[self.analog],
      control_estimate=found.get(control),
    )
    if ours is None:
      return _but(claim, OPEN, open_, f"{numbers}.")
    rivals = [s for m in names if (s := span(found.get(m))) is not None]
    if ours.high < TOO_LITTLE:
      why = f"{numbers}: below {number(TOO_LITTLE)}."
      return _but(claim, DOES_NOT, does_not, why)
    if theirs is not None and theirs.value >= ours.value:
      why = f"{numbers}, which does as well."
      return _but(claim, DOES_NOT, does_not, why)
    if not any(span(found.get(m)) for m in self.controls):
      return _but(claim, OPEN, open_, f"{numbers}; {self._no_control()}.")
    if ours.low <= ENOUGH:
      why = f"{numbers}: its interval is not all above {number(ENOUGH)}."
      return _but(claim, OPEN, open_, why)
    if any(rival.high >= ours.low for rival in rivals):
      return _but(claim, OPEN, open_, f"{numbers}: the intervals overlap.")
    why = f"{numbers}: above {number(ENOUGH)} and above all others."
    return dataclasses.replace(claim, because=why)

  def _no_control(self) -> str:
    if not self.controls:
      return _NO_CONTROL
    return f"there is no such number of {', '.join(self.controls)}"

  def _numbers(
    self, what: str, found: Mapping[str, Json | None], control: str
  ) -> str:
    text = f"{what}: {self.analog} {interval(found.get(self.analog))}"
    return text + (f", {control} {interval(found[control])}" if control else "")


def _best(
  found: Mapping[str, Json | None],
  names: Iterable[str],
  lower_is_better: bool,
) -> tuple[str, Span | None]:
  spans = {m: s for m in names if (s := span(found.get(m))) is not None}
  sign = -1 if lower_is_better else 1
  name = max(spans, key=lambda m: sign * spans[m].value, default="")
  return name, spans.get(name)


def _but(claim: Finding, verdict: str, text: str, because: str) -> Finding:
  return dataclasses.replace(claim, verdict=verdict, text=text, because=because)
