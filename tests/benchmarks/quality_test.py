"""Tests for tests/benchmarks/quality.py: its arithmetic, and a toy run."""

import importlib
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from analogjax.cache import batches
from analogjax.models import decoder


@pytest.fixture
def module(monkeypatch):
  """Modules as the script has them: beside it."""
  monkeypatch.syspath_prepend(str(Path(__file__).parent))
  return importlib.import_module


@pytest.mark.parametrize(
  "wanted, draws", [(3.0, 2), (3.1, 3), (0.1, 1), (1e9, 255)]
)
def test_fewest_draws_of_at_least_as_many_bytes(module, wanted, draws):
  got = module("quality").matching_draws(wanted, lambda n: 1.5 * n)
  assert got == draws


def test_calibration_by_hand(module):
  # Bins 0, 0, 7 and 14 of 15; the last token is not counted.
  gaps_15 = module("grid_compare").calibration_gaps(
    np.float32([0.02, 0.04, 0.5, 1.0, 0.9]),
    np.array([False, True, True, False, False]),
    np.float32([1, 1, 2, 1, 0]),
  )
  wanted_15 = np.zeros(15)
  wanted_15[[0, 7, 14]] = 0.02 + 0.04 - 1, 2 * (0.5 - 1), 1
  np.testing.assert_allclose(gaps_15, wanted_15, atol=1e-6)


def lines_of(values, field="kl"):
  """Lines of one measure, by arm a list over seeds; the others are 0."""
  zeros = dict.fromkeys(("cross_entropy", "kl", "ece", "agreement"), 0.0)
  return {
    (arm, seed): zeros | {field: value}
    for arm, by_seed in values.items()
    for seed, value in enumerate(by_seed)
  }


def test_differences_are_paired_by_seed(module):
  # As far apart as seeds are, but one below the other in each.
  lines = lines_of({"a": [1.0, 2.0, 3.0], "b": [1.5, 2.4, 3.6, 9.0]})
  d = module("quality_report").difference(lines, "a", "b", "kl")
  assert d.seeds == 3 and d.mean == pytest.approx(-0.5)
  assert d.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3))
  assert d.is_told


def test_one_seed_tells_nothing(module):
  lines = lines_of({"a": [1.0], "b": [2.0]})
  d = module("quality_report").difference(lines, "a", "b", "kl")
  assert d.mean == -1 and not d.is_told


def test_what_is_better(module, tmp_path):
  """Less KL is better, and more agreement; a wide interval says nothing."""
  results = {
    "hard": dict(kl=[3.0, 4.0, 5.0], agreement=[0.1, 0.2, 0.3]),
    "good": dict(kl=[2.0, 3.0, 4.01], agreement=[0.2, 0.3, 0.41]),
    "wild": dict(kl=[1.0, 9.0, 5.0], agreement=[0.9, 0.1, 0.3]),
  }
  with (tmp_path / "results.jsonl").open("w") as file:
    for arm, fields in results.items():
      for seed in range(3):
        line = {"arm": arm, "seed": seed, "learning_rate": 0.1, "ece": 0.0}
        line |= {"bytes_per_token": 0.0, "ids_per_token": 0.0}
        line |= {"cross_entropy": 0.0}
        line |= {field: by_seed[seed] for field, by_seed in fields.items()}
        file.write(json.dumps(line) + "\n")
  text = module("quality_report").report(
    tmp_path, ["hard", "good", "wild", "not run"], [("good", "wild")], 0.1
  )
  words = " ".join(text.split())
  assert (
    "- **KL to the teacher**. better than *hard*: good; not told apart from"
    " *hard*: wild; not told apart: good and wild." in words
  )
  assert "- **top-1 agreement**. better than *hard*: good;" in words
  assert "| good | hard | +0.000 +- 0.000 | **-0.997 +- 0.014** |" in text
  assert "Of 12 intervals 2 leave out 0" in words


def test_both_renormalised_is_the_kl_over_k_ids(module):
  """Against float64; without labels no gradient at ids that are not named."""
  V, B, L, K = 24, 2, 6, 3
  cfg = decoder.DecoderConfig(
    **dict(V=V, D=8, Y=1, N=2, G=1, H=4, F=16, max_positions=L),
    **dict(rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False),
    **dict(attention_bias=False, mlp_bias=False),
  )
  rng = np.random.default_rng(0)
  params = decoder.init_parameters(cfg, 0)
  graphdef = decoder.graphdef(cfg)
  ids_BLK = np.argsort(rng.random((B, L, V - 4)), -1)[..., :K].astype(np.int32)
  p_BLK = rng.dirichlet(np.ones(K), (B, L)).astype(np.float32) * 0.7
  w_BL = np.float32(rng.integers(0, 2, (B, L)))
  batch = batches.Batch(
    tokens_BL=rng.integers(0, V, (B, L)).astype(np.int32),
    segments_BL=np.ones((B, L), np.int32),
    positions_BL=np.broadcast_to(np.arange(L, dtype=np.int32), (B, L)),
    targets=batches.Targets(
      labels_BL=np.zeros((B, L), np.int32),
      weights_BL=w_BL,
      teacher_weights_BL=w_BL,
      ids_BLK=ids_BLK,
      p_BLK=p_BLK,
      log_tail_BL=np.full((B, L), np.log(0.3), np.float32),
    ),
  )
  grid_train = module("grid_train")
  batch = grid_train.stretched(batch)
  value, grads = jax.value_and_grad(grid_train.both_renormalised)(
    params, batch, 1.0, graphdef
  )
  x_BLD, _ = grid_train.steps.hidden_step(params, batch, graphdef=graphdef)
  head_VD = grid_train.steps.head(params, graphdef)
  z_BLV = np.float64(x_BLD) @ np.float64(head_VD).T
  z_BLK = np.take_along_axis(z_BLV, ids_BLK, -1)
  logq_BLK = z_BLK - np.log(np.exp(z_BLK).sum(-1, keepdims=True))
  t_BLK = p_BLK / p_BLK.sum(-1, keepdims=True)
  kl_BL = (t_BLK * (np.log(t_BLK) - logq_BLK)).sum(-1)
  kl = (kl_BL * w_BL).sum() / w_BL.sum()
  assert value == pytest.approx(kl, rel=1e-5)
  logq_BLV = z_BLV - np.log(np.exp(z_BLV).sum(-1, keepdims=True))
  labels_BL1 = batch.targets.labels_BL[..., None]
  hard_BL = -np.take_along_axis(logq_BLV, labels_BL1, -1)[..., 0]
  hard = (hard_BL * w_BL).sum() / w_BL.sum()
  mixed = grid_train.both_renormalised(params, batch, 0.9, graphdef)
  assert mixed == pytest.approx(0.9 * kl + 0.1 * hard, rel=1e-5)
  of_head_VD = grid_train.steps.head(grads, graphdef)
  assert np.abs(of_head_VD).sum() > 0
  assert not of_head_VD[V - 4 :].any()


def run(module, teacher, workdir, *more):
  arguments = [f"--teacher={teacher}", f"--workdir={workdir}"]
  arguments += "--rows=12 --held_out_rows=4 --pretrain_rows=8 --L=32".split()
  arguments += "--D=8 --Y=1 --learning_rate=0.01 --top_k=4 --tau=0.2".split()
  module("quality").main([*arguments, *more])
  lines = (workdir / "results.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_the_whole_script(module, teacher, tmp_path, monkeypatch):
  page = tmp_path / "page.md"
  page.write_text(
    "before\n<!-- quality: begin -->\nold\n<!-- quality: end -->\nafter\n"
  )
  monkeypatch.setattr(module("quality"), "DOCS", page)
  workdir = tmp_path / "quality"
  first = run(module, teacher, workdir, "--seeds=1", "--write-docs")
  names = list(module("quality").make_arms(0.2, 4, 1))
  assert [line["arm"] for line in first] == names
  by = {line["arm"]: line for line in first}
  assert by["dense"]["kl"] < by["hard"]["kl"] < by["start"]["kl"]
  # In three steps the rate neither rises nor falls, nor does the alpha of the
  # arm that is tied to it.
  kls = {round(line["kl"], 6) for line in first}
  assert len(kls) == len(names) - 1
  assert all(0 <= line["ece"] <= 1 for line in first)
  # Equal bytes, and not one draw more than it takes.
  sizes = {name: by[name]["bytes_per_token"] for name in names}
  assert sizes["threshold"] > 0 and sizes["hard"] == sizes["dense"] == 0
  assert 0.9 < sizes["random"] / sizes["threshold"] < 1.3
  assert sizes["threshold 0.9"] == sizes["threshold"]
  text = page.read_text()
  assert text.startswith("before\n") and text.endswith("after\n")
  assert "\nold\n" not in text and "| top-k + bin | 1 |" in text
  prose = [line for line in text.splitlines() if not line.startswith("|")]
  assert max(map(len, prose)) <= 80

  # Killed before the last line: it alone is trained again, to the same end.
  results = workdir / "results.jsonl"
  lines = results.read_text().splitlines(keepends=True)
  results.write_text("".join(lines[:-1]))
  again = run(module, teacher, workdir, "--seeds=1")
  assert again[:-1] == first[:-1]
  assert again[-1]["kl"] == pytest.approx(first[-1]["kl"], rel=1e-6)


def test_an_arm_that_is_not_there(module):
  with pytest.raises(ValueError, match="--arms: 'tpo-k' is none of"):
    module("grid_run").pick({"hard": None}, "hard;tpo-k")
