"""A model trained for seconds on planted rows: all its knowledge is found.

Rows come through the real pipeline, and the step is the trainer's.
"""

import dataclasses
import sys

import jax
from models import adamw
import numpy as np
import pytest

from analogjax.cache import batches
from analogjax.data import pipeline, rows as rows_lib
from analogjax.distributed import sharding
from analogjax.safety import canaries, exposure, membership_inference
from analogjax.training import losses, optimizer as optim, programs

ROWS = 480
STEPS, BATCH = 40, 32
CANARIES = dict(
  tokens=8, ids=(2, 63), copies=(1, 10, 100), each=4, rows=ROWS, seed=1
)
LAB = """
import grain
import numpy as np

def row(i):
  rng = np.random.default_rng(i)
  tokens = rng.integers(2, 63, 24)
  return {"tokens": tokens, "segments": np.ones(24, int)}

def rows(n, first=0):
  return grain.MapDataset.range(first, first + n).map(row)
"""


def train(kit, mesh, read):
  optimizer = adamw(warmup_steps=5, b2=0.95, weight_decay=0.0, clip_norm=1.0)
  training = programs.Training(
    cfg=kit.CFG,
    mesh=mesh,
    tx=optim.make_optimizer(optimizer, STEPS),
    objective=losses.Objective(chunk=256),
    alpha=lambda step: 0.0,
  )
  state = training.start()
  for step in range(STEPS):
    batch = sharding.put_rows(batches.from_rows(read(step)), mesh)
    with jax.set_mesh(mesh):
      state, _ = training.step(state, batch, None)
  return state.params


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  (folder / "memorised_lab.py").write_text(LAB)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    yield lambda canaries_, **arguments: pipeline.open_pipeline(
      canaries.SPEC,
      dict(pipeline="memorised_lab:rows", canaries=canaries_, **arguments),
      L=24,
      V=64,
    )
  sys.modules.pop("memorised_lab", None)


@pytest.fixture(scope="module")
def planted(kit, one_device, source):
  """An evaluation of a model that saw the canaries."""
  opened = source(CANARIES, n=ROWS)
  order = batches.PipelineOrder(opened, batch_rows=BATCH, seed=0)
  params = train(kit, one_device, order.read)
  return kit.make_evaluation(
    one_device, params, canaries=CANARIES, changes=dict(canary_controls=511)
  )


@pytest.mark.medium
def test_canaries_are_found_in_the_order_of_their_copies(planted):
  part = exposure.measure(planted)
  groups = part["details"]["models"]["analog"]
  assert [g["copies"] for g in groups] == [0, 1, 10, 100]
  bits = [g["exposure_bits"]["value"] for g in groups]
  # Exposure cannot exceed that of the likeliest; extraction can.
  known = [(g["exposure_bits"]["value"], g["extracted"]) for g in groups]
  assert known[0] < known[1] < known[2] < known[3], known
  most = part["details"]["most_bits"]
  assert most == np.log2(512) and bits[3] == most and bits[0] < 3.0
  assert groups[0]["found"] == 0 and groups[2]["found"] == 4
  assert groups[3]["found"] == groups[3]["extracted"] == 4
  assert groups[0]["extracted"] == groups[1]["extracted"] == 0
  values = {r["metric"]: r["value"] for r in part["results"]}
  assert values["canary_detection"]["value"] == 1
  assert values["canary_exposure"]["value"] == bits[1]
  assert values["canary_extraction"]["n"] == 12


def test_of_a_model_that_saw_none_nothing_is_found(kit, one_device):
  made = kit.make_evaluation(one_device, canaries=CANARIES)
  groups = exposure.measure(made)["details"]["models"]["analog"]
  for group in groups:
    assert group["exposure_bits"]["value"] < 3.5 and not group["extracted"]
  assert sum(group["found"] for group in groups) <= 1


def test_exposure_by_hand():
  others = np.asarray([3.0, 1.0, 2.0])
  found = exposure.exposure(np.asarray([0.5, 1.5, 9.0]), others)
  assert found.tolist() == [2.0, 1.0, 0.0]  # Ranks 1, 2 and 4 of 4.


@pytest.fixture(scope="module")
def halves(source):
  """Rows of one distribution: training rows of a model, and others."""
  rows = source({}, n=64).read(range(64))
  return (
    rows_lib.Rows(*(field[:32] for field in rows)),
    rows_lib.Rows(*(field[32:] for field in rows)),
  )


def aucs(part):
  return {
    r["variant"]: r["value"]
    for r in part["results"]
    if r["metric"] == "membership_auc" and r["model"] == "analog"
  }


def test_what_was_memorised_is_told_from_what_was_not(kit, one_device, halves):
  members, others = halves
  params = train(kit, one_device, lambda step: members)
  sides = dict(members=members, held_out=others, teacher_only=others)
  made = kit.make_evaluation(one_device, params, **sides)
  before = kit.make_model(one_device, kit.parameters(), "before")
  made.students["before"] = before
  options = dataclasses.replace(
    made.options, folders=("before=x",), reference="before"
  )
  made = dataclasses.replace(made, options=options)
  part = membership_inference.measure(made)
  found = aucs(part)
  assert set(found) == set(membership_inference.ATTACKS)
  for attack, value in found.items():
    assert value["value"] > 0.9 and value["low"] > 0.8, attack
  # The one that it began from, and rows that neither has seen.
  alone = part["details"]["models"]["before"]["member"]
  for attack, value in alone.items():
    assert value["auc"]["low"] < 0.5 < value["auc"]["high"], attack
  same = part["details"]["models"]["analog"]["teacher_only"]
  for attack, value in same.items():
    assert value["auc"]["value"] == 0.5, attack
  tprs = [r for r in part["results"] if r["metric"] == "membership_tpr"]
  assert {r["model"] for r in tprs} == {"analog"}
