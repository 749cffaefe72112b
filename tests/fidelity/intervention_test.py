"""Tests for analogjax/fidelity/intervention.py."""

import json

import numpy as np
import pytest
import safetensors.numpy
import steered

from analogjax.evaluation import estimates
from analogjax.fidelity import behaviours, intervention, steering_vectors

pytestmark = pytest.mark.medium

DIGESTS = {"model.safetensors": "ab" * 32}
SITE = {"site": "block01.resid_post"}


@pytest.fixture(scope="module")
def planted(kit, one_device, tmp_path_factory):
  path = steered.write(tmp_path_factory.mktemp("behaviours"))
  return steered.make_study(kit, one_device, [path], random_vectors=4)


@pytest.fixture(scope="module")
def behaviour(planted):
  return behaviours.load(planted.options.behaviours[0])


def write(folder, vector, metadata=SITE, name="vector"):
  path = folder / "v.safetensors"
  array = np.ascontiguousarray(vector)
  safetensors.numpy.save_file({name: array}, path, metadata)
  return path


def read(planted, path):
  return intervention.read_vector(path, planted.analog, DIGESTS)


def test_the_analogs_own_vector_transfers(planted, behaviour, tmp_path):
  part = steering_vectors.prepare(planted, behaviour)
  own = steering_vectors.contrasts(
    planted, planted.analog, part.with_, part.without
  )
  path = write(tmp_path, np.float32(own[2 / 3].vector_D))
  found = read(planted, path)
  folder = tmp_path / "maps"
  map_ = intervention.find_map(planted, found.depth, folder, {"a": 1})
  assert map_.depth == found.depth == 2 / 3 and map_.unexplained < 1e-3
  assert map_.stretch == pytest.approx(1, abs=1e-3)  # It only turns.
  answer = intervention.answer(planted, found, map_, behaviour)
  assert answer["verdict"] == "transfers"
  analog, frontier = answer["analog"], answer["frontier"]
  # The models are one, turned.
  for name in ("score", "perplexity_ratio"):
    np.testing.assert_allclose(frontier[name], analog[name], rtol=0.02)
  assert frontier["effect"]["value"] > 3
  # The first run fitted it and kept it where nobody else reads it.
  (kept,) = folder.iterdir()
  assert kept.stat().st_mode & 0o777 == 0o600
  assert folder.stat().st_mode & 0o777 == 0o700
  before = dict(planted.tokens)
  again = intervention.find_map(planted, found.depth, folder, {"a": 1})
  assert planted.tokens == before
  np.testing.assert_array_equal(again.w_DW, map_.w_DW)
  assert (again.depth, again.stretch) == (map_.depth, map_.stretch)
  text = json.dumps(answer, allow_nan=False)
  # Neither where in the teacher nor anything as long as a vector is said.
  assert not any(f'"{word}' in text for word in ("block", "depth", "width"))
  lists = [v for v in frontier.values() if isinstance(v, list)]
  assert max(map(len, lists)) < steered.D
  kept.write_bytes(b"damaged")
  with pytest.raises(ValueError, match="cannot be read.* Delete it"):
    intervention.find_map(planted, found.depth, folder, {"a": 1})


def test_a_vector_without_an_effect_does_not(planted, behaviour, tmp_path):
  rng = np.random.default_rng(0)
  path = write(tmp_path, rng.normal(size=steered.D), {"depth": "0.6"})
  found = read(planted, path)
  assert planted.analog.block(found.depth) == 1
  map_ = intervention.TeacherMap(np.eye(steered.D, steered.W), 1 / 3, 1.0, 0.0)
  answer = intervention.answer(planted, found, map_, behaviour)
  assert answer["verdict"] == "not enough evidence"
  assert "in the analog itself" in answer["because"]


@pytest.mark.parametrize(
  ("analog", "frontier", "expected"),
  [
    ((2, 3), (1, 2), "transfers"),
    ((-3, -2), (-2, -1), "transfers"),
    ((2, 3), (-2, -1), "does not"),
    ((2, 3), (-0.2, 0.3), "does not"),
    ((2, 3), (0.2, 0.9), "not enough evidence"),
    ((0.2, 0.9), (1, 2), "not enough evidence"),
  ],
)
def test_verdicts(analog, frontier, expected):
  made = [
    estimates.Estimate((low + high) / 2, low, high, 9)
    for low, high in (analog, frontier)
  ]
  verdict, because = intervention.judge(made[0], 0.5, made[1], 0.5)
  assert verdict == expected and because


ONES = np.ones(steered.D, np.float32)


@pytest.mark.parametrize(
  ("vector", "metadata", "says"),
  [
    (ONES[1:], SITE, r"vector: expected shape \[64\], found \[63\]"),
    (ONES[None], SITE, r"expected shape \[64\], found \[1, 64\]"),
    (ONES * np.nan, SITE, "expected finite numbers, found NaN"),
    (ONES * 0, SITE, "expected a direction, found zeros"),
    (ONES.astype(np.int32), SITE, "expected floating-point numbers, found int"),
    (ONES, {}, "metadata: expected `site`.* found neither"),
    (ONES, {"depth": "half"}, "above 0 and up to 1, found {'depth': 'half'}"),
    (ONES, {"depth": "1.5"}, "above 0 and up to 1"),
    (ONES, {"site": "block03.resid_post"}, "site 'block03.resid_post': expect"),
    (ONES, {"site": "block01.mlp_out"}, "site: expected blockNN.resid_post"),
    (ONES, SITE | {"model": "other"}, "model: expected 'analog', found 'oth"),
    (ONES, SITE | {"digest": "cd"}, "digest: expected the SHA-256 of one of"),
  ],
)
def test_vectors_that_cannot_be_used(planted, tmp_path, vector, metadata, says):
  path = write(tmp_path, vector, metadata)
  with pytest.raises(ValueError, match=f"v.safetensors: .*{says}"):
    read(planted, path)


def test_files_that_hold_no_vector(planted, tmp_path):
  path = write(tmp_path, ONES, name="direction")
  with pytest.raises(ValueError, match="one named 'vector', found .'direction"):
    read(planted, path)
  path.write_bytes(b"{}")
  with pytest.raises(ValueError, match="expected a safetensors file"):
    read(planted, path)
  with pytest.raises(ValueError, match="none: cannot be read: No such file"):
    read(planted, tmp_path / "none")
  path = write(tmp_path, ONES, SITE | {"digest": "ab" * 32})
  assert read(planted, path).depth == 2 / 3
