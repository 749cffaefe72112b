"""Tests for analogjax/planning/rates.py."""

import jax
import pytest

from analogjax.planning import rates, topologies


def test_every_chip_of_a_plan_is_known_by_what_jax_calls_it():
  sheets = {**topologies._TPUS, **topologies._GPUS}
  for name, sheet in sheets.items():
    assert rates.chip_name(sheet.kind) == name
  names = {name for _, name in rates._CHIPS}
  assert names == set(topologies.CHIPS)


@pytest.mark.parametrize(
  ("kind", "name"),
  (
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA A100-SXM4-40GB", "a100_40gb"),
    ("TPU v5 lite", "v5e"),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ("TPU v9", None),
  ),
)
def test_only_whole_names_match(kind, name):
  assert rates.chip_name(kind) == name


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
