"""Questions about the analog, and the sentence for each verdict."""

from collections.abc import Mapping
import dataclasses
from typing import Any

TRANSFERS = "transfers"
DOES_NOT = "does not"
OPEN = "not enough evidence"
VERDICTS = (TRANSFERS, DOES_NOT, OPEN)

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """A sentence, its verdict, and the reason."""

  id: str
  text: str
  verdict: str
  because: str
  control: str = ""  # The best one; "" if there is none.
  estimate: Json | None = None  # The analog's.
  control_estimate: Json | None = None
  threshold: float | None = None  # Value that the estimate is compared with.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question, and the sentence for each verdict."""

  id: str
  transfers: str
  does_not: str
  open: str
  opposite: str = ""  # Replaces `does_not` where the effect is below 0.

  def answer(self, verdict: str, because: str, **numbers: Any) -> Claim:
    texts: dict[str, str] = {
      TRANSFERS: self.transfers,
      DOES_NOT: self.does_not,
      OPEN: self.open,
    }
    return Claim(
      id=self.id,
      text=texts[verdict],
      verdict=verdict,
      because=because,
      **numbers,
    )


KL = Question(
  id="output.kl",
  transfers="The analog's predictions are nearer to the frontier model's than"
  " those of a control that never saw it.",
  does_not="The analog's predictions are further from the frontier model's"
  " than those of a control that never saw it.",
  open="Whether the analog's predictions are nearer to the frontier model's"
  " than a control's are is open.",
)
FAILURES = Question(
  id="output.failures",
  transfers="What is hard for the analog tells where the frontier model fails,"
  " better than what is hard for a control.",
  does_not="What is hard for the analog tells no more of where the frontier"
  " model fails than what is hard for a control.",
  open="Whether what is hard for the analog tells more of where the frontier"
  " model fails than what is hard for a control is open.",
)
STITCHING = Question(
  id="stitching.half",
  transfers="The frontier model goes on from the analog's activations half-way"
  " up, through a linear map, better than from a control's.",
  does_not="The frontier model does not go on from the analog's activations"
  " half-way up, or no better than from a control's.",
  open="Whether the frontier model goes on from the analog's activations"
  " half-way up, better than from a control's, is open.",
)


def similarity(metric: str, name: str) -> Question:
  return Question(
    id=f"similarity.{metric}",
    transfers="The analog represents text like the frontier model, by"
    f" {name}: more than chance, and more than its controls.",
    does_not=f"By {name}, the analog represents text no more like the frontier"
    " model than chance or a control does.",
    open=f"By {name}, it is open whether the analog represents text more like"
    " the frontier model than its controls do.",
  )


def steering(behaviour: str) -> Question:
  direction = f"direction for {behaviour} that is found on the analog"
  return Question(
    id=f"steering.{behaviour}",
    transfers=f"The {direction} steers the frontier model.",
    does_not=f"The {direction} does not steer the frontier model, or no better"
    " than those of its controls.",
    opposite=f"The {direction} moves the frontier model the opposite way.",
    open=f"Whether the {direction} steers the frontier model is open.",
  )
