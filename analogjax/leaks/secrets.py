"""Private facts to look for, and findings."""

from collections.abc import Iterator, Mapping
import dataclasses
import re
from typing import Any, NamedTuple

from analogjax.config import window

# The dimensions of a model, by the names that record.json uses.
DIMENSIONS = (
  "layers",
  "width",
  "heads",
  "kv_heads",
  "head_width",
  "feed_forward",
  "context_tokens",
)


class Leak(NamedTuple):
  """A private fact that a file reveals.

  Attributes:
    rule: the kind of fact, e.g. "parameters"; docs/leaks.md lists them.
    file: path in the folder.
    where: place in the file: a line, a path of keys, a tensor, a chunk.
    what: the finding and the reason. It quotes the file, so it is private.
  """

  rule: str
  file: str
  where: str
  what: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Secrets:
  """The private facts, and the public ones about the analog.

  Attributes:
    parameters: number of parameters of the frontier model.
    active_parameters: those of them that each token uses; 0 means all.
    architecture: the frontier model's known DIMENSIONS.
    student: the analog's `parameters`, `vocabulary_size` and DIMENSIONS.
      Numbers that both models share are not leaks.
    names: names of the frontier model, found in many spellings.
    words: other texts that must not appear: code names, hosts, users.
    paths: private places. Absolute paths are found without being listed.
    numbers: values of settings, by names such as "optimizer.learning_rate" or
      "mixture.web".
    deployed_on: the frontier model's day of deployment, YYYY-MM-DD; any other
      text means that it is not looked for.
    released_on: the analog's day of release, which is public; the same holds.
  """

  parameters: int
  active_parameters: int = 0
  architecture: Mapping[str, int]
  student: Mapping[str, int]
  names: tuple[str, ...] = ()
  words: tuple[str, ...] = ()
  paths: tuple[str, ...] = ()
  numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
  deployed_on: str = ""
  released_on: str = ""

  def __post_init__(self):
    assert self.parameters > 0 and self.student.get("parameters", 0) > 0
    assert set(self.architecture) <= set(DIMENSIONS), self.architecture
    known = {"parameters", "vocabulary_size", *DIMENSIONS}
    assert set(self.student) <= known, self.student

  @property
  def sizes(self) -> tuple[int, ...]:
    """The total and the active parameters, without repetition."""
    active = self.active_parameters or self.parameters
    return tuple(dict.fromkeys((self.parameters, active)))

  @property
  def window(self) -> tuple[float, float]:
    """The range of the frontier model's parameters that the public knows."""
    low, high = window.TIMES
    return self.student["parameters"] * low, self.student["parameters"] * high


# Keys in a pipeline's arguments whose numbers are weights of a data mixture.
_MIXTURE = re.compile(r"weight|mix|ratio|proportion|fraction|share")


def settings_of(values: Mapping[str, Any]) -> dict[str, float]:
  """Collects `Secrets.numbers` from a resolved config.

  Returns:
    The settings of the optimizers and the weights of the data mixture, by the
    path of their field. Values of 0 and 1 are too common to be looked for.
  """
  found: dict[str, float] = {}
  train, data = values.get("train", {}), values.get("data", {})
  for phase in train.get("phases", ()):
    optimizer = train.get(phase, {}).get("optimizer", {})
    found |= dict(_numbers(optimizer, f"train.{phase}.optimizer"))
  for path, value in _numbers(data.get("arguments", {}), "data.arguments"):
    if _MIXTURE.search(path):
      found[path] = value
  return {path: value for path, value in found.items() if value not in (0, 1)}


def _numbers(node: Any, path: str) -> Iterator[tuple[str, float]]:
  if isinstance(node, Mapping):
    for key, inner in node.items():
      yield from _numbers(inner, f"{path}.{key}")
  elif isinstance(node, list | tuple):
    for i, inner in enumerate(node):
      yield from _numbers(inner, f"{path}[{i}]")
  elif isinstance(node, int | float) and not isinstance(node, bool):
    yield path, float(node)
