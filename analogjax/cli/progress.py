"""Progress: a bar on a terminal, an occasional plain line elsewhere.

`Progress` counts towards a total. `Activity` is for work that has none, or that
compiles for a while: it moves by itself.
"""

from collections.abc import Callable, Mapping
import sys
import threading
import time

import jax
import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 10.0

_activities: list["Activity"] = []  # Running activities, the innermost last.


def console() -> rich.console.Console:
  """The console: standard output, on process 0 only."""
  for activity in reversed(_activities):
    if activity.bar is not None:
      return activity.bar.console  # Its line stays below what is printed.
  return rich.console.Console(quiet=jax.process_index() != 0, highlight=False)


def say(text: str) -> None:
  """Prints a line."""
  console().print(text, markup=False, soft_wrap=True)


def log(text: str) -> None:
  """Prints a line with the time of day."""
  say(f"{time.strftime('%H:%M:%S')} {text}")


def warn(text: str) -> None:
  """Prints a line about this process, on standard error of each."""
  if jax.process_count() > 1:
    text = f"process {jax.process_index()}: {text}"
  print(f"warning: {text}", file=sys.stderr, flush=True)


class Progress:
  """Counts up to `total` of something, with tokens/s and time left.

  Use as a context manager. Rates count from the first `advance`, which has
  the compilation behind it.
  """

  def __init__(
    self,
    title: str,
    *,
    total: int,
    unit: str,
    done: int = 0,
    later: float = 0.0,
  ):
    """Makes a bar.

    Args:
      unit: name of the unit, in the plural.
      done: units that are already done.
      later: work that follows the bar, in its units, for the total time left.
    """
    self._later = later
    self._title, self._total, self._unit = title, total, unit
    self._count, self._tokens = done, 0
    self._start: float | None = None
    self._start_count = done
    self._last_line = time.monotonic()
    self._bar: rich.progress.Progress | None = None
    where = console()
    if where.is_terminal and not where.quiet:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.completed}/{task.total} " + unit),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TextColumn("left {task.fields[left]}"),
        rich.progress.TextColumn("{task.fields[note]}"),
        console=where,
        transient=False,
      )
      self._task = self._bar.add_task(
        title, total=total, completed=done, rate="", left="?", note=""
      )

  def __enter__(self) -> "Progress":
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    if self._bar is not None:
      self._bar.stop()

  def advance(
    self, count: int, *, tokens: int, values: Mapping[str, float] | None = None
  ) -> None:
    """Advances the bar; `values` are shown beside it."""
    now = time.monotonic()
    self._count += count
    if self._start is None:
      self._start, self._start_count, rate, left = now, self._count, "", "?"
    else:
      self._tokens += tokens
      seconds = max(now - self._start, 1e-9)
      rate = f"{self._tokens / seconds:,.0f} tokens/s"
      done = self._count - self._start_count
      each, to_do = seconds / done, self._total - self._count
      left = _clock(each * to_do)
      if self._later:
        left += f", with later phases {_clock(each * (to_do + self._later))}"
    note = "  ".join(f"{k} {_short(v)}" for k, v in (values or {}).items())
    if self._bar is not None:
      self._bar.update(
        self._task, completed=self._count, rate=rate, left=left, note=note
      )
    elif self._due(now):
      self._last_line = now
      log(
        f"{self._title}: {self._count}/{self._total} {self._unit}  {rate}"
        f"  left {left}  {note}".rstrip()
      )
      sys.stdout.flush()

  def _due(self, now: float) -> bool:
    last = self._count >= self._total
    return last or now - self._last_line >= _SECONDS_BETWEEN_LINES


class Activity:
  """Shows that work continues: its name, its current part, and its duration.

  A context manager. On a terminal its line moves by itself; elsewhere there is
  a line at once and one every ten seconds, whatever the process waits for.
  """

  def __init__(self, title: str, amount: Callable[[], str] = lambda: ""):
    """Shows `title` ("measure output"), and the current result of `amount`."""
    self.bar: rich.progress.Progress | None = None
    self._title, self._amount, self._detail = title, amount, ""
    self._end = threading.Event()
    self._start = time.monotonic()
    self._thread = threading.Thread(target=self._run, daemon=True)
    where = console()
    # One display at a time; the innermost only adds its detail to it.
    is_shown = any(activity.bar is not None for activity in _activities)
    if where.is_terminal and not where.quiet and not is_shown:
      self.bar = rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.TimeElapsedColumn(),
        console=where,
        transient=True,
      )
      self._task = self.bar.add_task(title, total=None)

  def __enter__(self) -> "Activity":
    _activities.append(self)
    if self.bar is not None:
      self.bar.start()
    else:
      say(f"{self._title} ...")
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._end.set()
    self._thread.join()
    if self.bar is not None:
      self.bar.stop()
    _activities.remove(self)

  def doing(self, detail: str) -> None:
    """Names the current part."""
    self._detail = detail

  def _text(self) -> str:
    return ", ".join(filter(None, (self._detail, self._amount())))

  def _run(self) -> None:
    pause = 0.5 if self.bar is not None else _SECONDS_BETWEEN_LINES
    while not self._end.wait(pause):
      if self.bar is not None:
        text = f"{self._title}  {self._text()}"
        self.bar.update(self._task, description=text)
      else:
        elapsed = _clock(time.monotonic() - self._start)
        text = ", ".join(filter(None, (self._text(), elapsed)))
        say(f"{self._title}: {text}")
        sys.stdout.flush()


def doing(detail: str) -> None:
  """Names the current part of the innermost activity, if there is one."""
  if _activities:
    _activities[-1].doing(detail)


def _short(value: float) -> str:
  return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02d}:{seconds:02d}"
  return f"{minutes}:{seconds:02d}"
