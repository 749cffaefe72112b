"""Tests for analogjax/fidelity/steering.py and what it is made of.

A direction is planted in the analog: tokens of the pairs carry it with one sign
or the other, and the unembedding of the words reads it.
"""

import dataclasses
import json

from flax import nnx
import jax
import numpy as np
import pytest

from analogjax import sharding
from analogjax.fidelity import (
  behaviours,
  estimates,
  injection,
  steering,
  study as study_lib,
  transfer,
  vectors,
)
from analogjax.models import decoder

W = 64  # Of the teacher: random directions have little of any other.
WITH, WITHOUT = range(2, 10), range(10, 18)
FOR, AGAINST = range(18, 21), range(21, 24)


def text(rng, *last):
  words = [f"w{i}" for i in rng.integers(24, 96, rng.integers(3, 7))]
  return " ".join([*words, *(f"w{i}" for i in last)])


def write_behaviour(folder, name="planted", **changes):
  rng = np.random.default_rng(0)
  value = {
    "format": "analogjax.behaviour",
    "format_version": 1,
    "name": name,
    "pairs": [
      {"with": text(rng, a), "without": text(rng, b)}
      for a, b in zip([*WITH] * 2, [*WITHOUT] * 2, strict=True)
    ],
    "prompts": [text(rng) for _ in range(24)],
    "words": {
      "for": [f" w{i}" for i in FOR],
      "against": [f" w{i}" for i in AGAINST],
    },
  } | changes
  path = folder / f"{name}.json"
  path.write_text(json.dumps(value))
  return str(path)


def with_direction(cfg, params):
  """Parameters with a direction that the pairs carry and the words read."""
  rng = np.random.default_rng(7)
  d_D = np.float32(rng.normal(size=cfg.D))
  d_D /= np.linalg.norm(d_D)
  signs_V = np.zeros(cfg.V, np.float32)
  signs_V[[*WITH, *FOR]], signs_V[[*WITHOUT, *AGAINST]] = 1, -1
  words_V = signs_V * (np.arange(cfg.V) >= FOR[0])
  pairs_V = signs_V - words_V

  def plant(path, leaf):
    name = jax.tree_util.keystr(path)
    if "unembed_VD" in name:
      return leaf + 1.5 * words_V[:, None] * d_D[None]
    if "embed_VD" in name:
      return leaf + 6 * pairs_V[:, None] * d_D[None]
    return leaf

  return jax.tree_util.tree_map_with_path(plant, params), d_D


def make_study(kit, mesh, behaviour, **changes):
  params, _ = with_direction(kit.ANALOG, kit.trained_looking(kit.ANALOG, 0))
  teacher_cfg, teacher_params, _ = kit.planted(kit.ANALOG, params, W)
  changes = dict(behaviours=(behaviour,), max_strength=1.0) | changes
  made = kit.make_study(mesh, **changes)

  def model(name, cfg, params):
    where = sharding.state_shardings(decoder.abstract_parameters(cfg), mesh)
    params = jax.device_put(params, where)
    return study_lib.Model(name=name, cfg=cfg, params=params)

  students = dict(made.students, analog=model("analog", kit.ANALOG, params))
  return dataclasses.replace(
    made,
    teacher=model("teacher", teacher_cfg, teacher_params),
    students=students,
  )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  return write_behaviour(tmp_path_factory.mktemp("behaviours"))


@pytest.fixture(scope="module")
def planted(kit, one_device, file):
  return make_study(kit, one_device, file)


@pytest.fixture(scope="module")
def found(planted):
  return steering.measure(planted)


def ratios(found, matched):
  return {
    (r["model"], r["mapper"]): r["ratio"]
    for r in found["behaviours"]["planted"]["transfer"]
    if r["matched"] == matched
  }

def test_print(found):
  b = found["behaviours"]["planted"]
  print(json.dumps({k:v for k,v in b.items() if k not in("transfer","arms")},indent=1))
  for r in b["transfer"]:
    print(r["kind"],r["model"],r["mapper"],r["matched"],r["ratio"],r["common_cost_nats"])
  for a in b["arms"]: print(a["name"],[round(x,2) for x in a["score"]],[round(x,2) for x in a["perplexity_ratio"]])
  print(found["maps"])
