"""What a device of the ledger costs, by the prices of a config's plan."""

from collections.abc import Iterable
import re

from analogjax.config.plan import PlanConfig
from analogjax.planning import topologies
from analogjax.workdir.spending import Rate

# What jax calls a device -> its name in `plan` and in machines.py. The whole
# name has to match, as in throughput.py.
_CHIPS = (
  (r"TPU v4", "v4"),
  (r"TPU v5 lite|TPU v5e", "v5e"),
  (r"TPU v5p?", "v5p"),
  (r"TPU v6 lite|TPU v6e", "v6e"),
  (r"TPU7x", "tpu7x"),
  (r"(NVIDIA )?A100-(SXM4|PCIE)-40GB", "a100_40gb"),
  (r"(NVIDIA )?(A100-SXM4-80GB|A100 80GB PCIe)", "a100"),
  (r"(NVIDIA )?H100 PCIe", "h100_pcie"),
  (r"(NVIDIA )?H100 80GB HBM3", "h100"),
  (r"(NVIDIA )?H200", "h200"),
  (r"(NVIDIA )?B200", "b200"),
  (r"(NVIDIA )?GB200", "gb200"),
  (r"cpu", "cpu"),
)


def rates(plan: PlanConfig, kinds: Iterable[str]) -> dict[str, Rate]:
  """Price and power of each kind of device that is known.

  Args:
    plan: of the config; where it sets no watts those of machines.py hold.
    kinds: `device_kind` of entries in the ledger.
  """
  found = {}
  for kind in set(kinds):
    name = chip_name(kind)
    if name is None or name not in plan.chip:
      continue
    price = plan.chip[name]
    found[kind] = Rate(
      field=f"plan.{name}",
      dollars_per_hour=price.dollars_per_hour or None,
      watts=price.watts or topologies.chip(name).watts,
    )
  return found


def chip_name(device_kind: str) -> str | None:
  """The name in machines.py of what jax calls a device, if it has one."""
  for pattern, name in _CHIPS:
    if re.fullmatch(pattern, device_kind):
      return name
  return None
