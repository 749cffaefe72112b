"""Tests for analogjax/planning/rates.py."""

import jax

from analogjax.planning import rates


def test_prices_and_watts_of_the_config_hold(load):
  plan = load(
    "plan.h100.dollars_per_hour=3.5",
    "plan.h100.watts=700",
    "plan.cpu.dollars_per_hour=0",
  ).plan
  here = jax.devices("cpu")[0].device_kind
  found = rates.rates(plan, ["NVIDIA H100 80GB HBM3", here, "TPU v9"])
  assert set(found) == {"NVIDIA H100 80GB HBM3", here}
  of_h100 = found["NVIDIA H100 80GB HBM3"]
  assert (of_h100.dollars_per_hour, of_h100.watts) == (3.5, 700)
  # 0 is a price that is not known; its watts are assumed.
  assert found[here].dollars_per_hour is None
  assert found[here].field == "plan.cpu" and found[here].watts > 0
