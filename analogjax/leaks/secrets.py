"""What must not be found, and what a finding is."""

from collections.abc import Iterator, Mapping
import dataclasses
import re
from typing import Any, NamedTuple

# The dimensions that a model has, by the names that record.json uses.
DIMENSIONS = (
  *("layers", "width", "heads", "kv_heads", "head_width", "feed_forward"),
  "context_tokens",
)
# Of the analog's parameters: what anyone knows of the frontier model's. The
# analog has 0.5 % to 5 % of them.
WINDOW = (20, 200)


class Leak(NamedTuple):
  """One finding: a private fact that a file tells.

  Attributes:
    rule: what was found, e.g. "parameters"; docs/leaks.md has them all.
    file: path in the folder.
    where: in the file: a line, a path of keys, a tensor, a chunk.
    what: the finding and why it is one. It quotes the file: not for the public.
  """

  rule: str
  file: str
  where: str
  what: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Secrets:
  """The private facts, and beside them what is public of the analog.

  Attributes:
    parameters: of the frontier model.
    active_parameters: of it, those that a token goes through; 0: all.
    architecture: the frontier's DIMENSIONS -> size; those that are known.
    student: the analog's `parameters`, `vocabulary_size` and DIMENSIONS:
      numbers that it shares with the frontier model are no leak.
    names: of the frontier model; looked for in many spellings.
    words: more texts that must not appear: code names, hosts, users.
    paths: more places; any absolute path is found without being listed.
    numbers: name of a setting, e.g. "optimizer.learning_rate" or
      "mixture.web" -> its value.
    deployed_on: day of the frontier's deployment, YYYY-MM-DD. What is no day
      is not looked for.
    released_on: day of the analog's release, which is public; the same holds.
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
    """Total and active parameters, each once."""
    active = self.active_parameters or self.parameters
    return tuple(dict.fromkeys((self.parameters, active)))

  @property
  def window(self) -> tuple[float, float]:
    """What the public knows of the frontier's parameters."""
    low, high = WINDOW
    return self.student["parameters"] * low, self.student["parameters"] * high


# Keys of a pipeline's arguments below which numbers are weights of a mixture.
_MIXTURE = re.compile(r"weight|mix|ratio|proportion|fraction|share")


def settings_of(values: Mapping[str, Any]) -> dict[str, float]:
  """`Secrets.numbers` of a resolved config: its optimizers and its mixture.

  Args:
    values: plain values of a config, as `config.to_values` returns them.

  Returns:
    Path of each field -> value. What is 0 or 1 is left out: it is no setting
    that anyone could tell from others.
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
