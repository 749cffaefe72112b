"""Sums with public quantities: which sizes of the frontier model are left.

The public knows that the frontier model has 20 to 200 times the analog's
parameters. Whatever else is published must leave all of that possible. So each
figure that may be of the frontier model goes through every short chain of
formulas that ends in a number of parameters, and is a finding where the
interval that comes out lies in the window without covering it.

  FLOPs of a forward pass = 2 x parameters x tokens
  FLOPs of training = 6 x parameters x tokens
  FLOPs = device-seconds x peak x MFU;  device-seconds = dollars / price
  device-seconds = energy / power;  a total less the analog's own part

Source: Kaplan et al., arXiv:2001.08361, section 2.1, for 2 and 6; attention
adds to both, less than a quarter at the lengths that training has.
"""

from collections.abc import Iterable, Iterator, Mapping
import functools
import itertools
import math
from typing import NamedTuple

from analogjax.distributed import devices
from analogjax.leaks.quantities import STUDENT, TEACHER, Statement
from analogjax.leaks.secrets import Leak, Secrets

# Dense bfloat16 FLOP/s of a chip, by its vendor's data sheet.
PEAKS: Mapping[str, float] = {
  **devices.CHIP_PEAKS,
  "v100": 125e12,
  "mi300x": 1307e12,
}
# What large matrix products reach of it, as published runs report.
_LIKELY_MFU = (0.1, 0.6)
# A second run on the same machine is within this factor as fast.
_SPEED_KNOWN_TO = 2.0
# Of a total: what rounding its rows leaves.
_SUM = 1e-3
# A range as wide as the window, nearly.
_WIDE = 9.5
_ATTENTION = 1.25
_ROUNDING = 1.05
# Values of one kind that are combined; a page of numbers has any number.
_MOST = 40
_SPENT = ("flops", "device_seconds", "seconds", "dollars", "joules")


class Interval(NamedTuple):
  """What a chain says of a quantity, and how it went."""

  low: float
  high: float
  chain: str


def find(statements: Iterable[Statement], secrets: Secrets) -> Iterator[Leak]:
  """Findings from the statements of a whole folder."""
  public = _Public(list(dict.fromkeys(statements)), secrets)
  for statement in public.candidates():
    if leak := public.judge(statement):
      yield leak
  yield from public.totals()


class _Public:
  """All that is stated, and what follows from it for a statement."""

  def __init__(self, statements: list[Statement], secrets: Secrets):
    self._secrets = secrets
    self._small = float(secrets.student["parameters"])
    self._all = statements
    self._by_scope: dict[tuple[str, str], list[Statement]] = {}
    for one in statements:
      self._by_scope.setdefault(one.scope, []).append(one)
    self._peaks = self._device_peaks()
    # Each is asked for by every statement.
    self._values = functools.cache(self._all_values)
    self._named = functools.cache(self._named_in)
    self._rates = functools.cache(self._all_rates)
    self._measured = functools.cache(self._all_measured)
    self._sums = {
      x
      for x in statements
      if abs(self._rest(x) or 0) <= _SUM * x.low and self._rest(x) is not None
    }
    self._of_analog = [
      x
      for x in statements
      if x.is_point and (x in self._sums or x.role == STUDENT and x.is_certain)
    ]

  def _all_values(self, kind: str, scope=None) -> list[float]:
    """Single values of a kind, of one scope or of all."""
    of = self._all if scope is None else self._by_scope.get(scope, [])
    found = [x.low for x in of if x.kind == kind and x.is_point and x.low > 0]
    return list(dict.fromkeys(found))[:_MOST]

  def _device_peaks(self) -> list[float]:
    """Of the devices that any statement names."""
    words = " ".join(
      x.text.lower() for x in self._all if x.kind in ("device_seconds", "price")
    )
    return [peak for name, peak in PEAKS.items() if name in words]

  def candidates(self) -> Iterator[Statement]:
    kinds = (*_SPENT, "flops_per_token", "token_rate", "seconds_per_token")
    for one in self._all:
      wanted = one.kind in (*kinds, "weights_bytes")
      if wanted and one.high > 0 and one not in self._sums:
        yield one

  def judge(self, one: Statement) -> Leak | None:
    """A finding where a statement narrows the window."""
    if one.role == TEACHER and self._is_a_row_of_the_analog(one):
      one = one._replace(role="")  # "Distil the frontier model", say.
    found = list(self._sizes(one))
    if not one.is_point and any(map(self._covers, found)):
      return None  # Read in one way it says nothing, and nobody knows which.
    if one.kind != "flops" and one.high >= _WIDE * one.low:
      return None  # Wherever it is, with a machine's speed it says nothing.
    for interval in found:
      if self._narrows(one, interval):
        low, high = self._secrets.window
        return self._leak(
          one,
          f"{interval.chain} = {_shown(interval)} parameters for the frontier"
          f" model, of which the public knows {low:.3g} to {high:.3g} alone",
        )
    if one.role == TEACHER and one.is_point:
      # A sum that misses the window was done with other tokens than were
      # meant, or lacks a price or a power, which anyone can look up.
      chain = found[0].chain if found else f"{one.kind} of it"
      return self._leak(one, f"{chain} leads to the frontier's size")
    if self._is_nobodys(one):
      return self._leak(
        one,
        "device-hours and MFU are FLOPs, and training the analog does not"
        " explain them; what they were spent on is found by trying tokens",
      )
    return None

  def _leak(self, one: Statement, why: str) -> Leak:
    return Leak("arithmetic", one.scope[0], one.where, f"{one.text!r}: {why}")

  def _is_nobodys(self, one: Statement) -> bool:
    """Whether it is compute with its MFU that is not the analog's training."""
    if one.role == STUDENT or one.kind not in ("device_seconds", "seconds"):
      return False
    mfus = self._values("mfu", one.scope)
    peaks = (
      self._named(one.scope) or self._values("flop_rate") or PEAKS.values()
    )
    return bool(mfus) and not any(
      self._is_the_analogs(spent.low * peak * mfu)
      for spent in self._device_seconds(one)
      for peak in peaks
      for mfu in mfus
    )

  def _narrows(self, one: Statement, found: Interval) -> bool:
    low, high = self._secrets.window
    if found.low > high * _ROUNDING or found.high * _ROUNDING < low:
      return False
    is_end = found.high / found.low < 1.02 and any(
      abs(found.low / end - 1) < 0.01 for end in (low, high)
    )
    if is_end:
      return False  # It follows from the analog's own size.
    if one.role == TEACHER:
      return True
    if one.kind == "flops" and self._is_the_analogs(one.low):
      return False
    # Nothing says whose it is: the truth has to be in it.
    return found.high / found.low < 3 and any(
      found.low / _ATTENTION <= size <= found.high * _ATTENTION
      for size in self._secrets.sizes
    )

  def _covers(self, found: Interval) -> bool:
    low, high = self._secrets.window
    return found.low <= low * _ROUNDING and found.high * _ROUNDING >= high

  def _is_the_analogs(self, flops: float) -> bool:
    """Whether training the analog explains FLOPs that are stated."""
    return any(
      1 / _ROUNDING < flops / (6 * self._small * tokens) < 1.5
      for tokens in self._values("tokens")
    )

  def _is_a_row_of_the_analog(self, one: Statement) -> bool:
    """Whether other figures say that a row is of the analog's training.

    Its FLOPs stand beside it and are what the analog takes, or the record has
    the same figure in a row that is not of the frontier model.
    """
    if one.is_certain:
      return False
    if one.in_row and any(
      x.kind == "flops" and x.is_point and self._is_the_analogs(x.low)
      for x in self._by_scope[one.scope]
    ):
      return True
    return any(
      x.kind == one.kind and abs(x.low - one.low) <= one.step
      for x in self._of_analog
    )

  def _sizes(self, one: Statement) -> Iterator[Interval]:
    """Every interval for the parameters that a statement leads to."""
    if one.kind == "weights_bytes":
      for per in (2, 4, 1):
        yield Interval(one.low / per, one.high / per, f"at {per} bytes each")
      return
    if one.kind == "flops_per_token":
      yield from self._of_forward(Interval(one.low, one.high, "a token"), [1.0])
      return
    if one.kind in ("token_rate", "seconds_per_token"):
      low, high = one.low, one.high
      if one.kind == "token_rate":
        low, high = 1 / one.high, 1 / max(one.low, 1e-30)
      for speed in self._speeds(one):
        flops = Interval(low * speed.low, high * speed.high, speed.chain)
        yield from self._of_forward(flops, [1.0])
      return
    tokens = self._values("tokens", one.scope) or self._values("tokens")
    for flops in self._flops(one):
      yield from self._of_forward(flops, tokens)

  def _of_forward(self, flops: Interval, tokens) -> Iterator[Interval]:
    for count in tokens:
      for per, name in ((2, "2 x tokens"), (6, "6 x tokens")):
        divisor = per * count
        chain = f"{flops.chain} / ({name})"
        yield Interval(flops.low / divisor, flops.high / divisor, chain)
      own = 6 * self._small * count
      if flops.low > own:
        chain = f"({flops.chain} - the analog's training) / (2 x tokens)"
        low, high = (x - own for x in flops[:2])
        yield Interval(low / (2 * count), high / (2 * count), chain)

  def _flops(self, one: Statement) -> Iterator[Interval]:
    """FLOPs, from whatever was spent."""
    if one.kind == "flops":
      yield Interval(one.low, one.high, "FLOPs")
      return
    for spent in self._device_seconds(one):
      for speed in self._speeds(one):
        chain = f"{spent.chain} x {speed.chain}"
        yield Interval(spent.low * speed.low, spent.high * speed.high, chain)

  def _device_seconds(self, one: Statement) -> Iterator[Interval]:
    if one.kind == "device_seconds":
      yield Interval(one.low, one.high, "device-seconds")
    elif one.kind == "seconds":
      for devices in self._values("devices", one.scope) or [1.0]:
        chain = f"seconds x {devices:g} devices"
        yield Interval(one.low * devices, one.high * devices, chain)
    elif one.kind == "dollars":
      for price in self._rates("price", "dollars", 3600):
        chain = "dollars / price"
        yield Interval(3600 * one.low / price, 3600 * one.high / price, chain)
    elif one.kind == "joules":
      for watts in self._rates("watts", "joules", 1):
        yield Interval(
          one.low / watts / 1.5, one.high / watts, "energy / power"
        )

  def _all_rates(self, stated: str, spent: str, factor: float) -> list[float]:
    """Prices or powers: stated, or from what has both amount and time."""
    found = self._values(stated)
    for scope in self._by_scope:
      for amount, time in itertools.product(
        self._values(spent, scope)[:4],
        self._values("device_seconds", scope)[:4],
      ):
        found.append(factor * amount / time)
    return list(dict.fromkeys(found))[:_MOST]

  def _speeds(self, one: Statement) -> Iterator[Interval]:
    """FLOP/s of a device while it ran: stated, measured or likely."""
    named = self._named(one.scope)
    stated = [x for x in self._values("flop_rate") if x > 1e12]
    peaks = named or stated or self._peaks
    mfus = self._values("mfu", one.scope) or self._values("mfu")
    for mfu in mfus:
      for peak in peaks or PEAKS.values():
        rate = peak * mfu
        yield Interval(
          rate, rate * _ATTENTION, f"{peak:.3g} FLOP/s x {mfu:.2g} MFU"
        )
    for rate in self._measured():
      low, high = rate / _SPEED_KNOWN_TO, rate * _SPEED_KNOWN_TO
      yield Interval(low, high, "the speed of another stage, to a factor of 2")
    low, high = _LIKELY_MFU
    for peak in peaks:
      chain = f"{peak:.3g} FLOP/s x a likely MFU"
      yield Interval(peak * low, peak * high, chain)
    if one.role == TEACHER and not peaks and one.is_point:
      # Nobody says on what it ran; but who runs the analog there finds out.
      yield self._worst_speed(one)

  def _named_in(self, scope: tuple[str, str]) -> list[float]:
    """Peaks of the devices that a scope names."""
    words = " ".join(x.text.lower() for x in self._by_scope[scope])
    return [peak for name, peak in PEAKS.items() if name in words]

  def _worst_speed(self, one: Statement) -> Interval:
    """A speed that makes the frontier's size fit, to a factor of 2 each way."""
    per_token = 2 * self._secrets.sizes[-1]
    tokens = self._values("tokens", one.scope) or self._values("tokens")
    if one.kind == "token_rate":
      speed = per_token * one.low
    elif one.kind == "seconds_per_token":
      speed = per_token / one.low
    elif tokens:
      spent = next(iter(self._device_seconds(one)), None)
      speed = per_token * tokens[0] / spent.low if spent else math.inf
    else:
      speed = math.inf
    chain = (
      "the machine's speed, which running the analog tells to a factor of 2"
    )
    return Interval(speed / _SPEED_KNOWN_TO, speed * _SPEED_KNOWN_TO, chain)

  def _all_measured(self) -> list[float]:
    """FLOP/s of the analog's stages that state both FLOPs and time."""
    found = []
    for scope, inside in self._by_scope.items():
      if any(x.role == TEACHER for x in inside):
        continue
      flops = self._values("flops", scope)[:2]
      times = self._values("device_seconds", scope)[:2]
      found += [a / b for a, b in itertools.product(flops, times)]
    return found[:_MOST]

  def totals(self) -> Iterator[Leak]:
    """Totals that give away a row which is withheld or a range."""
    for one in self._all:
      rest = self._rest(one)
      if rest is not None and rest > _SUM * one.low:
        yield self._leak(
          one,
          f"less the analog's rows {rest:.4g} are left, which is the frontier"
          " model's part; state a range",
        )

  def _rest(self, one: Statement) -> float | None:
    """What of a total no row states, where one row is the frontier model's."""
    file, path = one.scope
    if path.rpartition(".")[2] != "total" or not one.is_point:
      return None
    rows = path.removesuffix("total") + "rows["
    beside = [
      x for x in self._all if x.scope[0] == file and x.scope[1].startswith(rows)
    ]
    same = [x for x in beside if x.kind == one.kind and x.is_point]
    of_teacher = [x for x in beside if x.role == TEACHER]
    if not of_teacher or any(x.role == TEACHER for x in same):
      return None
    return one.low - sum(x.low for x in same)


def _shown(found: Interval) -> str:
  if found.high / found.low < 1.01:
    return f"{found.low:.3g}"
  return f"{found.low:.3g} to {found.high:.3g}"
