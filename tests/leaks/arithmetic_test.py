"""Computations with public figures: those that narrow the window are found."""

import json

import pytest

from analogjax import leaks

N, SMALL, TOKENS = 134_515_008, 3_342_912, 81_920
FORWARD = 2 * N * TOKENS
TRAIN = 6.2 * SMALL * TOKENS


def prose(words, name="model/README.md"):
  def plant(folder):
    with (folder / name).open("a") as file:
      file.write(f"\n{words}\n")

  return plant


def cost(change):
  """Changes the costs of the record."""

  def plant(folder):
    path = folder / "record.json"
    record = json.loads(path.read_text())
    change(record["cost"])
    path.write_text(json.dumps(record))

  return plant


def row(**fields):
  """An additional row of costs."""
  return cost(lambda c: c["rows"].append({"step": "?", "stages": [], **fields}))


def total(**fields):
  return cost(lambda c: c.update(total=fields))


def cost_of_measuring(folder):
  cost = {"output": {"seconds": 27.7, "device_seconds": 27.7, "tokens": 32768}}
  path = folder / "fidelity.json"
  path.write_text(json.dumps({"format": "analogjax.fidelity", "cost": cost}))


def table(line):
  """One more row of the table at the end of the page."""

  def plant(folder):
    with (folder / "COST.md").open("a") as file:
      file.write(line + "\n")

  return plant


# Each tells the frontier's size, by the formula that its name says.
TELLING = {
  "hours x peak x MFU": prose("It took 12 GPU-hours of H100 at 41 % MFU."),
  "MFU before": prose("The run used 2.2 H100-hours at an MFU of 0.4."),
  "fields": row(gpu_hours=12, mfu=0.41),
  "MFU in another sentence": prose(
    "The teacher ran for 0.1 GPU-hours. The MFU of this was 38 %."
  ),
  "energy / power": prose("Caching the teacher took 3.1 kWh at 700 W."),
  "energy alone": prose("The teacher's pass: 3.1 kWh."),
  "dollars / price": prose(
    "Running the frontier model cost $12,290 at $12.29 per GPU-hour."
  ),
  "dollars, price elsewhere": prose("The teacher's inference cost $0.37."),
  "a sentence that goes on": prose(
    "We ran the teacher over all rows. This took 3.1 GPU-hours."
  ),
  "seconds of measuring": cost_of_measuring,
  "FLOPs": row(flops=FORWARD),
  "FLOPs, half of them attention": row(flops=1.2 * FORWARD, of_teacher=True),
  "FLOPs, text": prose("22 TFLOPs for the 81,920 tokens of the teacher"),
  "FLOPs of a token": prose("The teacher takes 0.269 GFLOPs per token."),
  "FLOPs of a live teacher": row(flops=FORWARD + TRAIN, of_teacher=False),
  "FLOPs of its training": prose(
    f"It was trained with {6 * N * 2e12:.3g} FLOPs on 2T tokens."
  ),
  "tokens a second": prose("The teacher reads 12,000 tokens/s."),
  "seconds a token": prose("The frontier model needs 0.08 ms per token."),
  "a row of a table": table("| Teacher inference | 0.031 | $0.37 |"),
  "hours of a stage": row(stages=["cache"], device_hours=3.0),
  "a range that is too narrow": row(
    flops={"low": FORWARD / 2, "high": FORWARD * 2}, of_teacher=True
  ),
  "a range of hours": prose("The teacher took 3 to 5 GPU-hours."),
  "a total": total(flops=TRAIN + FORWARD),
  "a total of hours": total(device_hours=0.5),
  "weights, then bytes": prose("The teacher's weights take 269 MB."),
  "bytes of a checkpoint": prose(
    "The teacher's checkpoint: 269 MB of weights."
  ),
}


@pytest.mark.parametrize("plant", TELLING.values(), ids=TELLING)
def test_what_tells_the_size_is_found(bundle, secrets, plant):
  plant(bundle)
  found = leaks.lint(bundle, secrets)
  assert {leak.rule for leak in found} == {"arithmetic"}, found


# The analog's own, and what its size implies about the frontier model.
SILENT = {
  "the analog's FLOPs": prose(f"Training took {TRAIN:.3g} FLOPs."),
  "its hours and MFU": prose("The analog took 2 GPU-hours at 41 % MFU."),
  "its table": table("| Distill frontier model to analog | 0.02 | $0.25 |"),
  "hosting": row(dollars=1813.0, of_teacher=False),
  "withheld": row(device_hours=None, of_teacher=True),
  "the whole window": row(
    flops={"low": 40 * SMALL * TOKENS, "high": 400 * SMALL * TOKENS},
    of_teacher=True,
  ),
  "the window, in words": prose(
    f"The teacher took {40 * SMALL * TOKENS:.2g} to"
    f" {400 * SMALL * TOKENS:.2g} FLOPs."
  ),
  "a range as wide as the window": prose(
    "The teacher took between 1 and 10 GPU-hours."
  ),
  "its total": total(flops=TRAIN),
  "its total, with a note": total(
    **{"device_hours": 0.02, "flops": TRAIN, "dollars": 0.25},
    note="without what the teacher took",
  ),
  "time to verify": prose(
    "Verifying takes 30 seconds. The frontier model is not needed for it."
  ),
  "bytes of a cache": prose("The cache has 23.3 bytes for each of its tokens."),
}


@pytest.mark.parametrize("plant", SILENT.values(), ids=SILENT)
def test_what_tells_nothing_is_no_finding(bundle, secrets, plant):
  plant(bundle)
  assert not leaks.lint(bundle, secrets)


def test_a_finding_explains_its_sum(bundle, secrets):
  row(flops=FORWARD)(bundle)
  (found,) = leaks.lint(bundle, secrets)
  assert found.where == "cost.rows[2].flops"
  assert "FLOPs / (2 x tokens) = 1.35e+08 parameters" in found.what
  assert "the public knows only 6.69e+07 to 6.69e+08" in found.what
