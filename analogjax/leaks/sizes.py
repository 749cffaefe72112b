"""Finds the frontier model's numbers: its size, shape and settings."""

from collections.abc import Iterator
import itertools
import math
import re

from analogjax.config import window
from analogjax.leaks import numerals
from analogjax.leaks.containers import Header, Tensor
from analogjax.leaks.secrets import Leak, Secrets

Found = Iterator[tuple[str, int, str]]  # Rule, offset, what.

_OF_A_MODEL = re.compile(
  r"\b(?:param\w*|weights|frontier|teacher|(?:larger?|big|base|full) model"
  r"|model size|parent model|sota model|dense)\b"
)
_OF_PARAMETERS = re.compile(r"\b(?:param\w*|weights|sized?)\b")
_OF_A_RATIO = re.compile(
  r"\b(?:ratio|fraction|sizes?|share|window|smaller|larger|bigger|param\w*"
  r"|frontier|teacher|compression|scale|times|part|slower|faster|cheaper)\b"
)
_TIMES = re.compile(r"\s?(?:x|times|fold|\u00d7)\b|-fold|-times")
# From here on, a size needs no noun, unless it has the noun of something else.
_LARGE = 1000
_LEAST_AXIS = 16
_SHAPE = re.compile(
  r"(?<![\w.,])(?:\d{2,6}(?: ?[x*] ?\d{2,6}){1,3}"
  r"|[\[(]\d{2,6}(?:, ?\d{2,6}){1,3}[\])])(?![.,]?\d|\w)"
)
_LAYER = re.compile(
  r"(?i)\blayers?[ _.\[-](\d{1,3})\b|\bblock_?(\d{2,3})\.(?:resid|attn|mlp)"
)
_DEPTH = re.compile(r"depths?(?:\[\])?\W{0,3}(?:of )?$")
# Depths are usually fractions of these, whatever number of layers a model has.
_COMMON_PARTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20)
_ITS_OWN = ("parameters", None)
_INTEGERS = re.compile(r"[IU]\d+|BOOL")
_TENSOR_LAYER = re.compile(
  r"(?:^|[._])(?:layers?|blocks?|h)[._]?(\d+)(?:[._]|$)"
)


class SizeRules:
  """Finds private numbers in texts; made once for all files."""

  def __init__(self, secrets: Secrets):
    self._secrets = secrets
    self._spelled = {
      text: size
      for size in secrets.sizes
      for text in numerals.spellings(size)
      if not text.isdigit() or len(text) >= 7
    }
    small = secrets.student["parameters"]
    low, high = secrets.window
    self._public = (small, low, high)
    self._ratios = tuple(small / size for size in secrets.sizes)
    between = r"[\s,._'\-]{0,2}"  # Separators between digits.
    self._exact = [
      (size, re.compile(rf"(?<!\d){between.join(str(size))}(?!\d)"))
      for size in secrets.sizes
      if size >= 10_000
    ]
    self._settings = [
      (name, value, _pattern_of(name))
      for name, value in secrets.numbers.items()
    ]
    self._ours = {x for x in secrets.student.values() if x >= _LEAST_AXIS}
    self._axes = {
      x
      for name, x in secrets.architecture.items()
      if x >= _LEAST_AXIS and name != "context_tokens" and x not in self._ours
    }

  def find(self, text: str) -> Found:
    """Yields every private number of a plain text with decimal digits."""
    for size, pattern in self._exact:
      for match in pattern.finditer(text):
        yield "parameters", match.start(), _size_is(match[0], size)
    if self._spelled:
      for match in re.finditer(r"(?<![\w])[0-9A-Za-z]{5,48}(?!\w)", text):
        if size := self._spelled.get(match[0].lower()):
          yield "parameters", match.start(), _size_is(match[0], size)
    for number in numerals.find(text):
      yield from self._judge(text, number)
    yield from self._of_tensors(text)

  def _judge(self, text: str, number: numerals.Number) -> Found:
    stated = text[number.start : number.end]

    def of() -> str | None:  # Takes longer than the rest, so only if needed.
      return numerals.kind(text, number.start, number.end)

    for size in self._secrets.sizes:
      if self._is_size(text, number, size, of):
        yield "parameters", number.start, _size_is(stated, size)
        break
    for ratio in self._ratios:
      if self._is_ratio(text, number, ratio):
        what = f"{stated!r} is the ratio of the two models' sizes"
        yield "ratio", number.start, what
        break
    for name, size in self._secrets.architecture.items():
      if self._is_dimension(name, size, number, of):
        what = f"{stated!r} is the frontier's {name.replace('_', ' ')}"
        yield "architecture", number.start, what
    if 0 < number.value < 1 and number.figures >= 3:
      before = text[max(number.start - 16, 0) : number.start]
      if _DEPTH.search(before) and self._is_depth(number):
        what = f"{stated!r} is a fraction of the frontier's layers"
        yield "architecture", number.start, what
    for name, value, pattern in self._settings:
      if _is_setting(text, number, value, pattern):
        yield "setting", number.start, f"{stated!r} is the private {name}"

  def _is_size(self, text, number, size, of) -> bool:
    if number.figures >= 5 and _same_digits(number, size):
      return True
    if number.value < 1e4 or not number.states(size):
      # In millions or billions by the name of the field: "params_b: 0.135".
      return any(
        number.figures >= 3
        and not number.scaled
        and number._replace(
          value=number.value * unit, step=number.step * unit
        ).states(size)
        and of() == "parameters"
        for unit in (1e6, 1e9, 1e12)
      )
    if any(
      number.states(public) and abs(number.value / public - 1) < 0.05
      for public in self._public
    ):
      return False
    if number.figures >= 3:
      return of() in _ITS_OWN and (number.scaled or number.value >= 1e6)
    if number.figures == 2:
      return of() in _ITS_OWN and numerals.near(
        text, number.start, number.end, _OF_A_MODEL
      )
    ok = abs(number.value / size - 1) <= 0.5
    return ok and of() == "parameters"

  def _is_ratio(self, text, number, ratio: float) -> bool:
    behind = text[number.end : number.end + 12]
    before = text[max(number.start - 6, 0) : number.start]
    if number.scaled:
      return False
    if re.match(r"\s?(?:%|percent|per cent)", behind):
      ok = number.states(100 * ratio) and number.figures >= 2
      public = tuple(100 * end for end in window.SIZE)
    elif re.search(r"\b1 ?(?:/|:|in|to) ?$", before) or _TIMES.match(behind):
      # 40 times has two figures, although it ends with a zero.
      ok = number.states(1 / ratio) and abs(number.value * ratio - 1) < 0.03
      public = window.TIMES
    else:
      ok = number.figures >= 3 and number.states(ratio)
      ok = ok or (number.figures >= 4 and number.states(1 / ratio))
      public = *window.SIZE, *window.TIMES
    # The ends of the window are public.
    if not ok or number.value in public:
      return False
    return number.figures >= 5 or numerals.near(
      text, number.start, number.end, _OF_A_RATIO
    )

  def _is_depth(self, number: numerals.Number) -> bool:
    """Whether it is k/layers of the frontier model and no common fraction."""

    def is_part_of(layers: int) -> bool:
      off = abs(number.value * layers - round(number.value * layers))
      return off <= max(layers * number.step / 2, 1e-9)

    layers = self._secrets.architecture.get("layers", 0)
    ours = self._secrets.student.get("layers", 1)
    common = any(map(is_part_of, (*_COMMON_PARTS, ours)))
    return layers > 0 and not common and is_part_of(layers)

  def _is_dimension(self, name: str, size: int, number, of) -> bool:
    student = self._secrets.student
    if number.value != size:  # 16k for 16,384 is close enough.
      ok = size >= _LARGE and number.scaled and number.states(size)
      ours = number.states(student.get(name, 0))
      return ok and not ours and number.figures >= 2 and of() == name
    kind = of()
    if kind == name:
      return student.get(name) != size
    if size < _LARGE or size in student.values():
      return False
    return kind is None or kind in self._secrets.architecture

  def _of_tensors(self, text: str) -> Found:
    """Yields the shapes of tensors and the indices of layers in a text."""
    for match in _SHAPE.finditer(text):
      found = {int(digits) for digits in re.findall(r"\d+", match[0])}
      if not found & self._axes or not found <= self._axes | self._ours:
        continue
      kind = numerals.kind(text, match.start(), match.end())
      if kind in _ITS_OWN or kind in self._secrets.architecture:
        what = f"{match[0]!r} is the shape of a tensor of the frontier model"
        yield "architecture", match.start(), what
    layers = self._secrets.architecture.get("layers", 0)
    for match in _LAYER.finditer(text):
      index = int(match[1] or match[2])
      # Counted from 1, the analog's last layer has the number of its layers.
      if self._secrets.student.get("layers", layers) < index < layers:
        what = f"{match[0]!r} is a layer that the analog does not have"
        yield "architecture", match.start(), what


def _same_digits(number: numerals.Number, size: int) -> bool:
  """Whether the digits agree in any unit: 134.515 or 134515008."""
  stated = number.digits.replace(".", "").strip("0")
  exact = str(size).rstrip("0")
  if not 5 <= len(stated) <= len(exact):
    return False
  step = 10 ** (len(str(size)) - len(stated))
  rounded = {size // step, (size + step // 2) // step}
  return stated in {str(value).rstrip("0") for value in rounded}


def _size_is(stated: str, size: int) -> str:
  return f"{stated!r} is the frontier's number of parameters, {size:,}"


# Other names of optimizer settings.
_ALIASES = {
  "learning rate": r"learning rate|lr|step size|peak lr|max lr",
  "b1": r"b1|beta ?1|betas|adam beta1|first moment",
  "b2": r"b2|beta ?2|betas|adam beta2|second moment",
  "weight decay": r"weight decay|wd|decay",
  "warmup steps": r"warm ?up(?: steps)?",
  "clip norm": r"clip(?:ping)?(?: norm)?|max (?:grad )?norm|grad\w* clip\w*",
  "batch rows": r"batch(?: rows| size)?|rows per step",
}


def _pattern_of(name: str) -> re.Pattern:
  """Returns a pattern of the words beside the value of a setting."""
  leaf = re.sub(r"\[\d+\]", "", name.rpartition(".")[2].lower())
  leaf = re.sub(r"[_\-\s]+", " ", leaf).strip()
  return re.compile(rf"\b(?:{_ALIASES.get(leaf, re.escape(leaf))})\b")


def _is_setting(text, number, value: float, pattern: re.Pattern) -> bool:
  percent = text[number.end : number.end + 2].strip().startswith("%")
  if percent:
    same = abs(number.value - 100 * value) < number.step / 2
  else:
    same = abs(number.value - value) <= 1e-9 * abs(value)
  if not same or not number.value:
    return False
  return numerals.near(text, number.start, number.end, pattern)


class ShapeRules:
  """Finds tensors that are not the analog's; made once for all files."""

  def __init__(self, secrets: Secrets):
    self._student = _axes(secrets.student)
    self._frontier = {
      size: name
      for size, name in _axes(secrets.architecture).items()
      if size not in self._student
    }
    self._layers = secrets.student.get("layers", 0)

  def find(self, file: str, header: Header) -> Iterator[Leak]:
    for tensor in header.tensors:
      where = f"tensor {tensor.name}"
      for what in self._judge(tensor):
        shape = list(tensor.shape)
        yield Leak("shape", file, where, f"{tensor.dtype} {shape}: {what}")

  def _judge(self, tensor: Tensor) -> Iterator[str]:
    indices = [int(digits) for digits in _TENSOR_LAYER.findall(tensor.name)]
    if self._layers and any(index >= self._layers for index in indices):
      yield f"the analog has {self._layers} layers, so this is the frontier's"
    # Token ids come in rows of any length.
    if _INTEGERS.fullmatch(tensor.dtype):
      return
    for size in dict.fromkeys(tensor.shape):
      if name := self._frontier.get(size):
        yield f"an axis of {size}, the frontier's {name}"
        return
    size = math.prod(tensor.shape)
    if len(tensor.shape) != 1 or size in self._student:
      return
    ours, theirs = self._student, self._frontier
    for a, b in itertools.product(ours, theirs):
      if a > 1 and b >= 16 and size == a * b:
        yield f"{size} values: a map of {a} x {b}, the frontier's {theirs[b]}"
        return


def _axes(sizes) -> dict[int, str]:
  """Maps the sizes of the axes of a model's tensors to what they are."""
  found = {}
  for name in ("vocabulary_size", "width", "feed_forward", "layers"):
    if size := sizes.get(name):
      found[size] = name.replace("_", " ")
  for name in ("heads", "kv_heads"):
    if size := sizes.get(name):
      found.setdefault(size, name.replace("_", " "))
      if width := sizes.get("head_width"):
        found.setdefault(width, "head width")
        found.setdefault(size * width, f"{name.replace('_', ' ')} x head width")
  return found
