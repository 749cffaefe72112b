"""Tests for analogjax/workdir/costs.py."""

import dataclasses
import json

import hypothesis
from hypothesis import strategies as st
import jax
import pytest

from analogjax.config import train as config_train
from analogjax.config.plan import PlanConfig, PriceConfig
from analogjax.workdir import costs, public_costs


@dataclasses.dataclass(frozen=True)
class Loss:
  has_teacher: bool


@dataclasses.dataclass(frozen=True)
class Phase:
  init_from: str
  loss: Loss


PHASES = {
  "pretrain": Phase("", Loss(False)),
  "control": Phase("pretrain", Loss(False)),
  "distill": Phase("pretrain", Loss(True)),
}


class Train:
  phases, phase = tuple(PHASES), PHASES
  chain = config_train.TrainConfig.chain


@dataclasses.dataclass(frozen=True)
class Prices:
  pue: float = 1.0
  cache_months: float = 2.0
  dollars_per_gb_month: float = 0.023
  dollars_per_million_reads: float = 0.4
  dollars_per_million_writes: float = 5.0
  hosting_months: float = 36.0
  hosting_egress_gb: float = 20_480.0
  dollars_per_egress_gb: float = 0.0875


H100 = "NVIDIA H100 80GB HBM3"
RATES = {
  H100: costs.Rate(field="plan.h100", dollars_per_hour=98.32 / 8, watts=1000.0)
}


def entry(stage, hours, **more):
  fields = dict(device_kind=H100, tokens=0, flops=0.0, teacher_flops=0.0)
  return fields | dict(stage=stage, device_seconds=3600 * hours) | more


def cost(entries, **more):
  given = dict(
    train=Train(),
    released="distill",
    rates=RATES,
    plan=Prices(),
    weights_bytes=16e9,
    cache=costs.StoredCache(bytes=0, reads=0, writes=0),
  )
  return costs.cost(entries, **given | more)


def by_step(found):
  return {row["step"]: row for row in found["rows"]}


def test_the_paper_s_table_1_to_the_dollar():
  """5700, 1000 and 700 h at $12.29, 20 TB out of S3, three years."""
  found = cost(
    [
      entry("train/pretrain", 5000),
      entry("train/pretrain", 700),  # After a restart.
      entry("train/distill", 1000),
      entry("safety_tuning", 700),
      *(entry(stage, 0) for stage in ("cache", "measure", "safety")),
    ],
    # 10 TB at 0.09 and 10 TB at 0.085 a GB are 1,792. The paper does not say
    # what it stores; what is left of its figure are 25 GB for 36 months.
    weights_bytes=25.4e9,
  )
  rows = by_step(found)
  printed = {
    step: (rows[step]["device_hours"], round(rows[step]["dollars"]))
    for step in costs.PAPER_S[:-1]
  }
  assert printed == {
    "Train analog model from scratch": (5700, 70_053),
    "Distill frontier model to analog": (1000, 12_290),
    "Safety fine-tune/RLHF": (700, 8_603),
    "Weight hosting and bandwidth": (0, 1_813),
  }
  assert round(found["total"]["dollars"]) == 92_759
  assert found["total"]["device_hours"] == 7400
  paper_s = [row["step"] for row in found["rows"] if row["is_paper_s"]]
  assert paper_s == list(printed)
  assert found["missing"] == []


def test_lines_that_the_paper_lacks_by_hand():
  found = cost(
    [
      entry("cache", 10, tokens=3_000, flops=6e9, teacher_flops=6e9),
      entry("train/pretrain", 4, flops=1e9),
      entry("train/distill", 3, flops=2e9),
      entry("train/control", 2, flops=3e9),
      entry("measure", 1, flops=5.0, teacher_flops=4.0),
      entry("intervene", 0.5),
      entry("safety", 0.25),
      entry("export", 0.125),
      entry("of a plugin", 0.0625),
    ],
    plan=Prices(pue=1.5),
    cache=costs.StoredCache(bytes=1e12, reads=3e6, writes=2e6),
  )
  rows = by_step(found)
  hours = {step: row["device_hours"] for step, row in rows.items()}
  assert hours == {
    "Train analog model from scratch": 4,
    "Distill frontier model to analog": 3,
    "Safety fine-tune/RLHF": 0,
    "Teacher inference": 10,
    "Logit cache: storage and requests": 0,
    "Measurement": 1.5,
    "Safety evaluation": 0.25,
    "Export": 0.125,
    "Other stages": 0.0625,
    "Weight hosting and bandwidth": 0,
  }
  assert rows["Teacher inference"]["kwh"] == 15
  assert rows["Teacher inference"]["flops"] == 6e9
  assert rows["Logit cache: storage and requests"]["dollars"] == 46 + 1.2 + 10
  # Rows for comparison are in no sum.
  assert found["compared"]["device_hours"] == 2
  assert found["compared"]["stages"] == ["train/control"]
  assert found["total"]["device_hours"] == sum(hours.values())
  assert found["total"]["flops"] == 9e9  # To six digits.
  assert found["teacher_tokens"] == 3_000
  assert found["energy"] == {"method": costs.ESTIMATED, "pue": 1.5}
  assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_teacher_in_the_loop_is_told_apart_by_its_flops():
  found = cost(
    [
      entry("train/distill", 1, step=0, begins=True),  # Starting: no FLOPs.
      entry("train/distill", 8, flops=8e9, teacher_flops=6e9, tokens=100),
    ]
  )
  rows = by_step(found)
  assert rows[costs.DISTIL]["device_hours"] == 1 + 2
  assert rows[costs.DISTIL]["flops"] == 2e9
  teacher = rows[costs.TEACHER]
  assert teacher["stages"] == ["cache", "train/distill"]
  assert teacher["note"].startswith("not in the ledger: cache")
  assert found["teacher_tokens"] == 100
  # With the speed of the whole the student's part would tell the teacher's.
  public = by_step(public_costs.public(found, 1000))
  assert public[costs.DISTIL]["device_hours"] is None


def test_what_is_not_known_is_no_zero_and_says_what_to_set():
  entries = [
    entry("train/pretrain", 1, device_kind="TPU v9"),
    entry("train/distill", 1),
    entry("measure", 1),
  ]
  rates = {H100: dataclasses.replace(RATES[H100], dollars_per_hour=None)}
  found = cost(entries, rates=rates)
  rows = by_step(found)
  assert rows[costs.SCRATCH]["dollars"] is None
  assert rows[costs.SCRATCH]["kwh"] is None
  assert rows[costs.DISTIL]["dollars"] is None
  assert rows[costs.DISTIL]["kwh"] == 1
  assert rows[costs.TEACHER]["device_hours"] is None
  assert found["total"]["dollars"] is None
  assert found["missing"] == [
    "cost of cache: run 'analogjax cache'",
    "cost of safety: run 'analogjax safety'",
    "cost: no chip of plan is a 'TPU v9'",
    "cost: set plan.h100.dollars_per_hour",
  ]


def test_metered_energy_counts_before_an_estimate():
  found = cost(
    [entry("train/pretrain", 1, kwh=0.25), entry("train/distill", 1)],
    plan=Prices(pue=2.0),
  )
  rows = by_step(found)
  assert rows[costs.SCRATCH]["kwh"] == 0.5
  assert rows[costs.DISTIL]["kwh"] == 2.0
  methods = f"{costs.METERED} and {costs.ESTIMATED}"
  assert found["energy"]["method"] == methods


def run_with(frontier, speed, live, share):
  """Entries of the same analog, from a frontier model of some size."""
  student = 6e3 * 1_000
  teacher = 2.0 * frontier * 1_000

  def hours(flops):
    return flops / speed / 3600

  return [
    entry(
      "cache",
      hours(teacher),
      tokens=1_000,
      flops=teacher,
      teacher_flops=teacher,
      bytes=7_000,
    ),
    entry("train/pretrain", 2, flops=student, tokens=1_000),
    entry(
      "train/distill",
      3 + live * hours(teacher),
      flops=student + live * teacher,
      teacher_flops=live * teacher,
      tokens=1_000,
    ),
    entry("train/control", 3, flops=student),
    entry("measure", hours(share * teacher), teacher_flops=share * teacher),
    entry("safety", hours(share * teacher), flops=share * teacher),
    entry("export", 0.5),
    entry("of a plugin", hours(teacher), kwh=frontier / 1e6),
  ]


@pytest.mark.parametrize("live", (0, 1))
@hypothesis.given(
  sizes=st.tuples(st.integers(20_000, 200_000), st.integers(20_000, 200_000)),
  speed=st.floats(1e3, 1e9),
  share=st.floats(0.01, 1),
)
def test_the_public_cost_does_not_depend_on_the_frontier_s_size(
  sizes, speed, share, live
):
  """So no computation can derive anything about it."""
  found = [
    public_costs.public(cost(run_with(size, speed, live, share)), 1_000)
    for size in sizes
  ]
  assert json.dumps(found[0]) == json.dumps(found[1])


def test_the_range_solves_to_the_whole_window_and_nothing_else():
  N = 1_000
  found = public_costs.public(cost(run_with(50_000, 1e6, 0, 0.5)), N)
  of_teacher = [row for row in found["rows"] if row["of_teacher"]]
  assert {row["step"] for row in of_teacher} == {
    *(costs.TEACHER, costs.MEASUREMENT, costs.SAFETY),
    costs.OTHERS,
  }
  (row,) = [row for row in of_teacher if row["step"] == costs.TEACHER]
  assert row["device_hours"] is None and row["kwh"] is None
  for other in of_teacher:
    figures = {other[f] for f in ("device_hours", "kwh")}
    figures |= {other[f] for f in ("dollars", "flops") if other is not row}
    assert figures == {None}
  tokens = found["teacher_tokens"]
  ends = row["flops"]["low"], row["flops"]["high"]
  assert [flops / 2 / tokens for flops in ends] == [20 * N, 200 * N]
  # Dollars of it, at the analog's own 5 h for 12e6 FLOPs, give it back too.
  price = 5 * 98.32 / 8 / 12e6
  ends = row["dollars"]["low"], row["dollars"]["high"]
  solved = [dollars / price / 2 / tokens for dollars in ends]
  assert solved == pytest.approx([20 * N, 200 * N], rel=1e-4)
  # And no sum has a part of the teacher's in it.
  rest = [row for row in found["rows"] if not row["of_teacher"]]
  for figure in ("device_hours", "dollars", "kwh", "flops"):
    total = sum(row[figure] for row in rest)
    assert found["total"][figure] == pytest.approx(total, rel=1e-5)
  assert found["total"]["note"] == "without what the teacher took"


def test_a_public_cost_is_checked_by_its_own_figures():
  whole = cost(run_with(50_000, 1e6, 0, 0.5))
  N = 1_000

  def changed(change):
    found = json.loads(json.dumps(public_costs.public(whole, N)))
    change(found)
    return public_costs.problem(found, N)

  assert changed(lambda c: None) == ""
  assert "'Teacher inference' tells more" in public_costs.problem(whole, N)
  assert "total of dollars" in changed(lambda c: c["total"].update(dollars=1.0))
  cheaper = changed(lambda c: c["rows"][0].update(dollars=9.0))
  assert "tells more" in cheaper  # The range follows from it.
  narrower = changed(lambda c: c["rows"][3]["flops"].update(high=1e12))
  assert "tells more" in narrower
  told = changed(lambda c: c["rows"][5].update(device_hours=1.0))
  assert "'Measurement' tells more" in told
  assert "tells more" in public_costs.problem(
    public_costs.public(whole, N), 2 * N + 1
  )


AMOUNTS = st.one_of(
  st.none(),
  st.floats(0, allow_nan=False, allow_infinity=False),
  st.integers(0, 10**320),
  st.fixed_dictionaries(
    {end: st.floats(0, allow_infinity=False) for end in ("low", "high")}
  ),
)
FIGURES = {n: AMOUNTS for n in ("device_hours", "dollars", "kwh", "flops")}
ROWS = st.fixed_dictionaries(
  {
    "step": st.sampled_from(
      [costs.SCRATCH, costs.DISTIL, costs.TEACHER, "another"]
    ),
    "of_teacher": st.booleans(),
  },
  optional=FIGURES,
)


@hypothesis.settings(max_examples=300)
@hypothesis.given(
  rows=st.lists(ROWS, max_size=4),
  total=st.fixed_dictionaries({}, optional=FIGURES),
  parameters=st.integers(0, 10**15),
)
def test_whatever_a_stranger_s_record_has_is_judged(rows, total, parameters):
  found = public_costs.problem({"rows": rows, "total": total}, parameters)
  assert isinstance(found, str)
  told = [row for row in rows if row["of_teacher"]]
  if found == "" and rows:
    # No figure of the teacher's but a range of ten, whatever else is there.
    for row in told:
      assert row.get("device_hours") is None and row.get("kwh") is None
      if row.get("flops") is not None:
        assert row["flops"]["high"] == pytest.approx(10 * row["flops"]["low"])


def test_prices_and_watts_of_the_config_hold():
  plan = PlanConfig(
    chip={
      "h100": PriceConfig(dollars_per_hour=3.5, watts=700),
      "cpu": PriceConfig(),
    }
  )
  here = jax.devices("cpu")[0].device_kind
  found = costs.rates(plan, ["NVIDIA H100 80GB HBM3", here, "TPU v9"])
  assert set(found) == {"NVIDIA H100 80GB HBM3", here}
  of_h100 = found["NVIDIA H100 80GB HBM3"]
  assert (of_h100.dollars_per_hour, of_h100.watts) == (3.5, 700)
  # 0 is a price that is not known; its watts are assumed.
  assert found[here].dollars_per_hour is None
  assert found[here].field == "plan.cpu" and found[here].watts > 0
