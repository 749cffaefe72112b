"""Finds published figures from which the frontier model's size can be derived.

The public knows that the frontier model has 20 to 200 times the analog's
parameters. All other published figures must leave that whole range possible. So
each figure that may be about the frontier model goes through every short chain
of formulas that ends in a number of parameters. It is a finding if the interval
that results lies in the range without covering it.

  FLOPs of a forward pass = 2 x parameters x tokens
  FLOPs of training = 6 x parameters x tokens
  FLOPs = device-seconds x peak x MFU;  device-seconds = dollars / price
  device-seconds = energy / power;  a total minus the analog's own part

Source: Kaplan et al., arXiv:2001.08361, section 2.1, for 2 and 6; attention
adds to both, less than a quarter at usual training lengths.
"""

from collections.abc import Iterable, Iterator, Mapping
import functools
import itertools
from typing import NamedTuple

from analogjax.leaks.quantities import STUDENT, TEACHER, Scope, Statement
from analogjax.leaks.secrets import Leak, Secrets

# Dense bfloat16 FLOP/s of a device, by its vendor's data sheet.
PEAKS: Mapping[str, float] = {
  "v100": 125e12,
  "a100": 312e12,
  "h100": 989e12,
  "h200": 989e12,
  "b200": 2250e12,
  "gb200": 2500e12,
  "mi300x": 1307e12,
  "v4": 275e12,
  "v5e": 197e12,
  "v5p": 459e12,
  "v6e": 918e12,
  "tpu7x": 2307e12,
}
# Fraction of the peak that published training runs report.
_LIKELY_MFU = (0.1, 0.6)
# Two runs on the same machine have the same speed to this factor.
_SPEED_KNOWN_TO = 2.0
# Rounding error of the rows of a total, relative to the total.
_SUM = 1e-3
# Ends of a range that is nearly as wide as the public's.
_WIDE = 9.5
_ATTENTION = 1.25
_ROUNDING = 1.05
# How many values of one kind are combined.
_MOST = 40
_TIMES = ("device_seconds", "seconds")
_TELLING = {
  *_TIMES,
  "flops",
  "dollars",
  "joules",
  "flops_per_token",
  "token_rate",
  "seconds_per_token",
  "weights_bytes",
}


class Interval(NamedTuple):
  """Bounds of a quantity, and the chain of formulas that gave them."""

  low: float
  high: float
  chain: str


def find(statements: Iterable[Statement], secrets: Secrets) -> Iterator[Leak]:
  """Yields a finding for each statement that reveals the frontier's size."""
  figures = _Figures(list(dict.fromkeys(statements)), secrets)
  for one in figures.all:
    if one.kind not in _TELLING or one.high <= 0 or one in figures.totals:
      continue
    if why := _reason(figures, one):
      yield _leak(one, why)
  for one in figures.all:
    rest = figures.rest(one)
    if rest is not None and rest > _SUM * one.low:
      yield _leak(
        one,
        f"minus the analog's rows {rest:.4g} are left, which is the frontier"
        " model's part; state a range",
      )


def _leak(one: Statement, why: str) -> Leak:
  return Leak("arithmetic", one.scope[0], one.where, f"{one.text!r}: {why}")


class _Figures:
  """All statements of a folder, and the chains of formulas over them."""

  def __init__(self, statements: list[Statement], secrets: Secrets):
    self.all = statements
    self.window, self.sizes = secrets.window, secrets.sizes
    self.analog = float(secrets.student["parameters"])
    self.by_scope: dict[Scope, list[Statement]] = {}
    for one in statements:
      self.by_scope.setdefault(one.scope, []).append(one)
    # Every statement asks for these again.
    self.values = functools.cache(self._values)
    self.peaks = functools.cache(self._peaks)
    self._rates = functools.cache(self._all_rates)

  def _values(self, kind: str, scope: Scope | None = None) -> list[float]:
    """Single values of a kind, in one scope or in all."""
    among = self.all if scope is None else self.by_scope.get(scope, [])
    found = [x.low for x in among if x.kind == kind and x.is_point]
    return list(dict.fromkeys(x for x in found if x > 0))[:_MOST]

  def _peaks(self, scope: Scope | None = None) -> list[float]:
    """Peaks of the devices that are named in one scope or in all."""
    if scope is None:
      among = [x for x in self.all if x.kind in ("device_seconds", "price")]
    else:
      among = self.by_scope[scope]
    words = " ".join(x.text for x in among).lower()
    return [peak for name, peak in PEAKS.items() if name in words]

  def rest(self, one: Statement) -> float | None:
    """The part of a total that no row states, if it is the frontier model's."""
    file, path = one.scope
    if path.rpartition(".")[2] != "total" or not one.is_point:
      return None
    rows = path.removesuffix("total") + "rows["
    beside = [
      x for x in self.all if x.scope[0] == file and x.scope[1].startswith(rows)
    ]
    same = [x for x in beside if x.kind == one.kind and x.is_point]
    if any(x.role == TEACHER for x in same) or not any(
      x.role == TEACHER for x in beside
    ):
      return None
    return one.low - sum(x.low for x in same)

  @functools.cached_property
  def totals(self) -> set[Statement]:
    """Totals that are the sums of the analog's rows."""
    rests = {one: self.rest(one) for one in self.all}
    return {
      one
      for one, rest in rests.items()
      if rest is not None and abs(rest) <= _SUM * one.low
    }

  @functools.cached_property
  def of_analog(self) -> list[Statement]:
    """Figures that the record's own rows and totals give for the analog."""
    return [
      x
      for x in self.all
      if x.is_point
      and (x in self.totals or (x.role == STUDENT and x.is_certain))
    ]

  def are_of_analog(self, flops: float) -> bool:
    """Whether training the analog explains a number of FLOPs."""
    return any(
      1 / _ROUNDING < flops / (6 * self.analog * tokens) < 1.5
      for tokens in self.values("tokens")
    )

  def is_row_of_analog(self, one: Statement) -> bool:
    """Whether other figures show that a row is about the analog's training.

    Either the FLOPs beside it are what the analog takes, or the record states
    the same figure for the analog.
    """
    if one.is_certain:
      return False
    return (
      one.in_row
      and any(
        x.kind == "flops" and x.is_point and self.are_of_analog(x.low)
        for x in self.by_scope[one.scope]
      )
    ) or any(
      x.kind == one.kind and abs(x.low - one.low) <= one.step
      for x in self.of_analog
    )

  def parameters(self, one: Statement) -> Iterator[Interval]:
    """Every interval of parameters that a statement leads to."""
    low, high = one.low, one.high
    if one.kind == "weights_bytes":
      for per in (2, 4, 1):
        yield Interval(low / per, high / per, f"at {per} bytes each")
    elif one.kind == "flops_per_token":
      yield from self._of_flops(Interval(low, high, "a token"), [1.0])
    elif one.kind in ("token_rate", "seconds_per_token"):
      if one.kind == "token_rate":
        low, high = 1 / high, 1 / max(low, 1e-30)
      for speed in self._speeds(one):
        flops = Interval(low * speed.low, high * speed.high, speed.chain)
        yield from self._of_flops(flops, [1.0])
    else:
      tokens = self.values("tokens", one.scope) or self.values("tokens")
      for flops in self._flops(one):
        yield from self._of_flops(flops, tokens)

  def _of_flops(self, flops: Interval, tokens) -> Iterator[Interval]:
    """Parameters by FLOPs and tokens, of inference or of training."""
    for count in tokens:
      for per, name in ((2, "2 x tokens"), (6, "6 x tokens")):
        divisor = per * count
        chain = f"{flops.chain} / ({name})"
        yield Interval(flops.low / divisor, flops.high / divisor, chain)
      own = 6 * self.analog * count
      if flops.low > own:
        chain = f"({flops.chain} - the analog's training) / (2 x tokens)"
        low, high = (x - own for x in flops[:2])
        yield Interval(low / (2 * count), high / (2 * count), chain)

  def _flops(self, one: Statement) -> Iterator[Interval]:
    """FLOPs from any resource that was spent."""
    if one.kind == "flops":
      yield Interval(one.low, one.high, "FLOPs")
      return
    for spent in self.device_seconds(one):
      for speed in self._speeds(one):
        chain = f"{spent.chain} x {speed.chain}"
        yield Interval(spent.low * speed.low, spent.high * speed.high, chain)

  def device_seconds(self, one: Statement) -> Iterator[Interval]:
    """Device-seconds by time, money or energy."""
    if one.kind == "device_seconds":
      yield Interval(one.low, one.high, "device-seconds")
    elif one.kind == "seconds":
      for devices in self.values("devices", one.scope) or [1.0]:
        chain = f"seconds x {devices:g} devices"
        yield Interval(one.low * devices, one.high * devices, chain)
    elif one.kind == "dollars":
      for price in self._rates("price", "dollars", 3600):
        low, high = (3600 * x / price for x in (one.low, one.high))
        yield Interval(low, high, "dollars / price")
    elif one.kind == "joules":
      for watts in self._rates("watts", "joules", 1):
        # Cooling adds up to half as much.
        low, high = one.low / watts / 1.5, one.high / watts
        yield Interval(low, high, "energy / power")

  def _all_rates(self, stated: str, spent: str, factor: float) -> list[float]:
    """Prices or powers: stated, or where both amount and time are stated."""
    found = self.values(stated)
    for scope in self.by_scope:
      amounts = self.values(spent, scope)[:4]
      times = self.values("device_seconds", scope)[:4]
      found = found + [
        factor * a / b for a, b in itertools.product(amounts, times)
      ]
    return list(dict.fromkeys(found))[:_MOST]

  def _speeds(self, one: Statement) -> Iterator[Interval]:
    """FLOP/s of a device while it ran: stated, measured or likely."""
    stated = [x for x in self.values("flop_rate") if x > 1e12]
    peaks = self.peaks(one.scope) or stated or self.peaks()
    mfus = self.values("mfu", one.scope) or self.values("mfu")
    for mfu, peak in itertools.product(mfus, peaks or PEAKS.values()):
      chain = f"{peak:.3g} FLOP/s x {mfu:.2g} MFU"
      yield Interval(peak * mfu, peak * mfu * _ATTENTION, chain)
    for rate in self._measured:
      low, high = rate / _SPEED_KNOWN_TO, rate * _SPEED_KNOWN_TO
      yield Interval(low, high, "the speed of another stage, to a factor of 2")
    for peak in peaks:
      low, high = (peak * mfu for mfu in _LIKELY_MFU)
      yield Interval(low, high, f"{peak:.3g} FLOP/s x a likely MFU")

  @functools.cached_property
  def _measured(self) -> list[float]:
    """FLOP/s of those stages of the analog that state FLOPs and time."""
    found = []
    for scope, inside in self.by_scope.items():
      if not any(x.role == TEACHER for x in inside):
        flops = self.values("flops", scope)[:2]
        times = self.values("device_seconds", scope)[:2]
        found += [a / b for a, b in itertools.product(flops, times)]
    return found[:_MOST]


def _reason(figures: _Figures, one: Statement) -> str:
  """Why a statement narrows what the public knows; "" if it does not."""
  if one.role == TEACHER and figures.is_row_of_analog(one):
    one = one._replace(role="")  # "Distil the frontier model", for example.
  low, high = figures.window
  found = list(figures.parameters(one))
  if not one.is_point and any(
    x.low <= low * _ROUNDING and x.high * _ROUNDING >= high for x in found
  ):
    return (
      ""  # In one reading it says nothing, and it is unclear which is meant.
    )
  if one.kind != "flops" and one.high >= _WIDE * one.low:
    return ""  # Combined with a machine's unknown speed it says nothing.
  for interval in found:
    if _narrows(figures, one, interval):
      return (
        f"{interval.chain} = {_shown(interval)} parameters for the frontier"
        f" model, of which the public knows only {low:.3g} to {high:.3g}"
      )
  if one.role == TEACHER and one.is_point:
    # A result outside of the range used other tokens than were meant, or it
    # lacks a speed, price or power, which anyone can look up or measure.
    chain = found[0].chain if found else one.kind.replace("_", " ")
    return f"{chain} of the frontier model leads to its size"
  if _is_unexplained(figures, one):
    return (
      "device-hours and MFU give FLOPs, and training the analog does not"
      " explain them; trying numbers of tokens shows what they were spent on"
    )
  return ""


def _narrows(figures: _Figures, one: Statement, found: Interval) -> bool:
  """Whether an interval of parameters reveals more than the public knows."""
  low, high = figures.window
  if found.low > high * _ROUNDING or found.high * _ROUNDING < low:
    return False
  width = found.high / found.low
  if width < 1.02 and any(abs(found.low / x - 1) < 0.01 for x in (low, high)):
    return False  # An end of the range, which follows from the analog's size.
  if one.role == TEACHER:
    return True
  if one.kind == "flops" and figures.are_of_analog(one.low):
    return False
  # No word says whose it is, so only the truth counts.
  return width < 3 and any(
    found.low / _ATTENTION <= size <= found.high * _ATTENTION
    for size in figures.sizes
  )


def _is_unexplained(figures: _Figures, one: Statement) -> bool:
  """Whether it is compute with an MFU that is not the analog's training."""
  if one.role == STUDENT or one.kind not in _TIMES:
    return False
  peaks = figures.peaks(one.scope) or figures.values("flop_rate")
  mfus = figures.values("mfu", one.scope)
  return bool(mfus) and not any(
    figures.are_of_analog(spent.low * peak * mfu)
    for spent in figures.device_seconds(one)
    for peak in peaks or PEAKS.values()
    for mfu in mfus
  )


def _shown(found: Interval) -> str:
  if found.high / found.low < 1.01:
    return f"{found.low:.3g}"
  return f"{found.low:.3g} to {found.high:.3g}"
