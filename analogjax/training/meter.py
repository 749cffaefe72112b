"""Speed of a training loop: rates, utilisation, and where the time went."""

from collections.abc import Callable, Iterator
import contextlib
import re
import time
from typing import Literal, get_args

Activity = Literal["data", "eval", "checkpoint", "compile"]

# Device kind -> bfloat16 TFLOP/s of one jax device. A TPU7x chip (2,307) is two
# devices; a chip of the others is one, v4 and v5p in megacore mode, which is
# what they start in. Source: Google Cloud, "TPU v4", "TPU v5e", "TPU v5p", "TPU
# v6e" and "TPU7x (Ironwood)", peak compute per chip (BF16). The kinds are those
# of jax's pallas/mosaic/tpu_info.py and, but for "v5e", "v5p" and "v6e", what
# libtpu calls them.
_TPUS = {
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v5e": 197.0,
  "TPU v5": 459.0,
  "TPU v5p": 459.0,
  "TPU v6 lite": 918.0,
  "TPU v6e": 918.0,
  "TPU7x": 2307 / 2,
}

# Device kind, bfloat16 TFLOP/s, TF32 TFLOP/s of a GPU. Most datasheets print
# figures with sparsity, twice these, and of B200 to GB300 the sums of a system:
# HGX has 8 GPUs, NVL72 has 72. The whole name has to match: a MIG slice ("MIG
# 1g.10gb" at its end) and the cut-down H20 and H800 are other devices. Source:
# NVIDIA's datasheet of each product, but for A10G "NVIDIA A10G datasheet" (AWS,
# 2022), for B200 and B300 the specifications of the HGX platform, for GB200 and
# GB300 those of NVL72.
_GPUS = (
  (r"A100-(SXM4|PCIE)-[48]0GB|A100 80GB PCIe", 312.0, 156.0),
  (r"A10", 125.0, 62.5),
  (r"A10G", 70.0, 35.0),
  (r"H100 80GB HBM3|H200|GH200 480GB|GH200 144G HBM3e", 989.4, 494.7),
  (r"H100 PCIe", 756.0, 378.0),
  (r"(H100|H200) NVL", 835.5, 417.5),
  (r"B200|B300 SXM6 AC", 2250.0, 1125.0),
  (r"GB200|GB300", 2500.0, 1250.0),
  (r"L4", 121.0, 60.0),
  (r"L40S", 362.0, 183.0),
)


def peak_flops(device_kind: str, dtype: str) -> float | None:
  """Most FLOP/s of one device in dense matrix products, or None if unknown.

  Args:
    device_kind: `jax.devices()[0].device_kind`.
    dtype: compute dtype, "bfloat16" or "float32". float32 is what jax makes of
      it by default: one bfloat16 pass on a TPU, TF32 on a GPU (jax, "Matmul
      precision").
  """
  assert dtype in ("bfloat16", "float32"), dtype
  if device_kind in _TPUS:
    return _TPUS[device_kind] * 1e12
  for kinds, bfloat16, tf32 in _GPUS:
    if re.fullmatch(f"(NVIDIA )?({kinds})", device_kind):
      return (bfloat16 if dtype == "bfloat16" else tf32) * 1e12
  return None


class Meter:
  """Times a training loop by the host's clock; never waits for a device.

  A device works while the host goes on, so what is booked on a step is honest
  only over many steps that the host does not run ahead of, as where it reads
  the metrics of each step one step late. Read those of the last step before an
  evaluation, a checkpoint or `read`: else its end is booked on what follows.
  """

  def __init__(
    self,
    *,
    tokens_per_step: int,
    student_flops: float,
    teacher_flops: float,
    num_devices: int,
    peak: float | None,
    clock: Callable[[], float] = time.perf_counter,
  ):
    """Starts the clock.

    Args:
      tokens_per_step: positions of a batch, over all devices.
      student_flops: of one step, forward and backward, over all devices, by the
        formulas of models/sizes.py; those of a teacher are apart.
      teacher_flops: of one step; 0 where it is cached or there is none.
      num_devices: that share a step.
      peak: FLOP/s of one device, from `peak_flops`.
      clock: seconds.
    """
    self._tokens = tokens_per_step
    self._num_devices, self._peak = num_devices, peak
    self._flops = {"student": student_flops, "teacher": teacher_flops}
    self._clock = clock
    self._began = self._read_at = self._step_began = clock()
    self._in_steps = 0.0  # Seconds, since the beginning.
    self._aside = 0.0  # Seconds of activities in the step that runs.
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
    """The first step begins here, and not with the meter."""
    self._read_at = self._step_began = self._clock()
    self._aside = 0.0
    self._seconds = dict.fromkeys(get_args(Activity), 0.0)

  def step(self) -> None:
    """A step ends here; it began where the one before it ended."""
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

    What is returned, by name:

    - tokens_per_second: over all devices.
    - student_flops_per_second, teacher_flops_per_second: on one device.
    - combined_flops_per_second: their sum.
    - mfu: the sum over the device's peak; absent where that is unknown.
    - mfu_student: the same of the student alone.
    - data_fraction: the part that the loop waited for data. The device may have
      had work meanwhile, so no more than this was lost.
    - goodput: the part spent in steps of all time since the meter was made.

    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B (MFU).
    """
    assert self._activity is None, f"read during {self._activity}"
    now = self._clock()
    data = self._seconds.pop("data")
    seconds = now - self._read_at - sum(self._seconds.values())
    seconds = max(seconds, 1e-9)  # Nothing but an evaluation, say.
    values = {"tokens_per_second": self._steps * self._tokens / seconds}
    rates = {
      model: self._steps * flops / self._num_devices / seconds
      for model, flops in self._flops.items()
    }
    rates["combined"] = sum(rates.values())
    values |= {f"{m}_flops_per_second": rate for m, rate in rates.items()}
    if self._peak is not None:
      values["mfu"] = rates["combined"] / self._peak
      values["mfu_student"] = rates["student"] / self._peak
    values["data_fraction"] = data / seconds
    values["goodput"] = self._in_steps / max(now - self._began, 1e-9)
    self._read_at, self._steps = now, 0
    self._seconds = dict.fromkeys(get_args(Activity), 0.0)
    return values
