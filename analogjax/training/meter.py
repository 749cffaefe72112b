"""Work and speed of a training loop: rates, utilization, where time goes."""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import Literal, NamedTuple, get_args

from analogjax.models import sizes
from analogjax.run.run import Run

Activity = Literal["data", "eval", "checkpoint", "compile"]


class Work(NamedTuple):
  """The work of a step, over all devices; FLOPs by models/sizes.py."""

  tokens: int
  student_flops: float  # Forward and backward.
  teacher_flops: float  # 0 without a live teacher.

  @property
  def flops(self) -> float:
    return self.student_flops + self.teacher_flops


def step_work(run: Run, name: str) -> Work:
  """The work of a step of a phase."""
  phase, L = run.config.train.phase[name], run.config.data.L
  tokens, teacher = phase.batch_rows * L, 0
  if phase.runs_teacher:
    teacher = tokens * sizes.forward_flops_per_token(run.teacher.cfg, L)
  student = tokens * sizes.training_flops_per_token(run.student, L)
  return Work(tokens, student, teacher)


class Meter:
  """Times a training loop by the host's clock; never waits for a device.

  The device works while the host continues. So the time of a step is right only
  over many steps, and only if the host does not run ahead: it has to read the
  metrics of each step one step late, and those of the last step before an
  evaluation, a checkpoint or `read`.
  """

  def __init__(
    self,
    *,
    work: Work,
    num_devices: int,
    peak: float | None,
    clock: Callable[[], float] = time.perf_counter,
  ):
    """Starts the clock.

    `peak` is FLOP/s of one device, from `devices.peak_flops`.
    """
    self._work, self._num_devices, self._peak = work, num_devices, peak
    self._clock = clock
    self._began = self._read_at = self._step_began = clock()
    self._in_steps = 0.0  # Seconds, since the beginning.
    self._aside = 0.0  # Seconds of activities in the current step.
    self._steps = 0  # Since the last `read`, as are the seconds below.
    self._seconds = dict.fromkeys(get_args(Activity), 0.0)
    self._activity: str | None = None
    # Since the last `spent`.
    names: list[str] = [*get_args(Activity), "productive"]
    self._spent = dict.fromkeys(names, 0.0)

  @contextlib.contextmanager
  def during(self, activity: Activity) -> Iterator[None]:
    """Books the time of the block on `activity` and not on a step."""
    assert activity in self._seconds, activity
    assert self._activity is None, f"{activity} during {self._activity}"
    self._activity, start = activity, self._clock()
    try:
      yield
    finally:
      self._activity, seconds = None, self._clock() - start
      self._seconds[activity] += seconds
      self._spent[activity] += seconds
      self._aside += seconds

  def begin(self) -> None:
    """Makes the first step begin now."""
    self._read_at = self._step_began = self._clock()
    self._aside = 0.0
    self._seconds = dict.fromkeys(get_args(Activity), 0.0)

  def step(self) -> None:
    """Ends a step, which began where the one before it ended."""
    now = self._clock()
    productive = now - self._step_began - self._aside
    self._in_steps += productive
    self._spent["productive"] += productive
    self._step_began, self._aside = now, 0.0
    self._steps += 1

  def spent(self) -> dict[str, float]:
    """Seconds by activity since the last `spent`; steps are `productive`."""
    spent, self._spent = self._spent, dict.fromkeys(self._spent, 0.0)
    return spent

  def read(self) -> dict[str, float]:
    """Rates and fractions of the time since the last `read`.

    Rates count the steps and the waiting for data, and leave out evaluation,
    checkpoints and compilation. FLOP/s are model FLOPs on one device.

    Returns:
      By name: tokens_per_second, over all devices; student_flops_per_second and
      teacher_flops_per_second, on one device; combined_flops_per_second, their
      sum; mfu, the sum over the device's peak, absent where that is unknown;
      mfu_student, the same of the student alone; data_fraction, the part that
      the loop waited for data (the device may have had work meanwhile, so no
      more than this was lost); goodput, the part spent in steps of all time
      since the meter was made.

    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B (MFU).
    """
    assert self._activity is None, f"read during {self._activity}"
    now = self._clock()
    data = self._seconds.pop("data")
    seconds = now - self._read_at - sum(self._seconds.values())
    seconds = max(seconds, 1e-9)  # After an evaluation only, for example.
    values = {"tokens_per_second": self._steps * self._work.tokens / seconds}
    per_device = self._steps / self._num_devices / seconds
    rates = {
      "student": self._work.student_flops * per_device,
      "teacher": self._work.teacher_flops * per_device,
      "combined": self._work.flops * per_device,
    }
    values |= {f"{m}_flops_per_second": rate for m, rate in rates.items()}
    if self._peak is not None:
      values["mfu"] = rates["combined"] / self._peak
      values["mfu_student"] = rates["student"] / self._peak
    values["data_fraction"] = data / seconds
    values["goodput"] = self._in_steps / max(now - self._began, 1e-9)
    self._read_at, self._steps = now, 0
    self._seconds = dict.fromkeys(get_args(Activity), 0.0)
    return values
