"""What a device of the ledger costs, by the prices of a config's plan."""

from collections.abc import Iterable

from analogjax.config.plan import PlanConfig
from analogjax.distributed import devices
from analogjax.workdir.spending import Rate


def rates(plan: PlanConfig, kinds: Iterable[str]) -> dict[str, Rate]:
  """Price and power of each kind of device that is known.

  Args:
    plan: of the config; where it sets no watts those of devices.py hold.
    kinds: `device_kind` of entries in the ledger.
  """
  found = {}
  for kind in set(kinds):
    name = devices.chip_name(kind)
    if name is None or name not in plan.chip:
      continue
    price = plan.chip[name]
    found[kind] = Rate(
      field=f"plan.{name}",
      dollars_per_hour=price.dollars_per_hour or None,
      watts=price.watts or devices.chip(name).watts,
    )
  return found
