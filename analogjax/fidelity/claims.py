"""What is claimed of the analog: sentences with verdicts and their numbers.

Each claim is one sentence about the analog, with its number, that of the best
control, and the command that measures it again. A control is a student that
never saw the teacher; what a control can do as well says nothing of the analog.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from analogjax.fidelity import verdicts

_ABOUT = {
  "output": "what the models say",
  "similarity": "how they represent the same text",
  "steering": "interventions that are found on the analog",
  "stitching": "the analog's layers in the frontier model's place",
}


def make(
  parts: Mapping[str, Any],
  *,
  analog: str,
  controls: Sequence[str],
  random: str,
  quick: bool,
) -> list[dict[str, Any]]:
  """Every claim there can be, as fidelity.json has them.

  Args:
    parts: name -> what was found; a part that is not there is a claim, too.
    analog: name of the model that is claimed about.
    controls: those of trained students that never saw the teacher.
    random: of the student that was never trained.
    quick: for the command.
  """
  judge = verdicts.Judge(analog, tuple(controls), random)
  rules = {
    "output": judge.output,
    "similarity": judge.similarity,
    "steering": judge.steering,
    "stitching": judge.stitching,
  }
  claims = []
  for part, rule in rules.items():
    found = rule(parts[part]) if part in parts else [_missing(part)]
    claims += [
      {
        **dataclasses.asdict(finding),
        "part": part,
        "model": analog,
        "command": command(part, quick=quick),
      }
      for finding in found
    ]
  return claims


def command(part: str, *, quick: bool) -> str:
  """What measures a part again; published, so without paths of a machine."""
  words = "analogjax measure --config=CONFIG --workdir=WORKDIR"
  return f"{words} --only={part}" + (" --quick" if quick else "")


def _missing(part: str) -> verdicts.Finding:
  return verdicts.Finding(
    id=part,
    text=f"Nothing is known of {_ABOUT[part]}.",
    verdict=verdicts.OPEN,
    because="It was not measured.",
  )
