"""Tests for analogjax/safety/canaries.py: planted and unplanted sequences."""

import collections
import sys

import grain
import numpy as np
import pytest

from analogjax.data import pipeline
from analogjax.safety import canaries

L, V, ROWS = 12, 500, 40
SETTINGS = dict(
  tokens=5, ids=(100, V), copies=(1, 9, 3), each=2, rows=30, seed=3
)

LAB = """
import grain
import numpy as np

def row(i):
  rng = np.random.default_rng(i)
  segments = np.repeat([1, 2, 0], [7, 3, 2])
  return {"tokens": rng.integers(0, 100, 12), "segments": segments}

def with_more(i):
  more = {"positions": np.arange(12) + 5, "weights": np.full(12, 0.5)}
  return {**row(i), **more}

def indexed(n=40, more=False):
  return grain.MapDataset.range(n).map(with_more if more else row)

def stream(n=40):
  return indexed(n).to_iter_dataset()

def loader():
  return grain.DataLoader(
    data_source=list(range(4)),
    sampler=grain.samplers.IndexSampler(4, shuffle=False, seed=1, num_epochs=1),
    worker_count=0)
"""


@pytest.fixture(autouse=True)
def lab(tmp_path, monkeypatch):
  (tmp_path / "canary_lab.py").write_text(LAB)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop("canary_lab", None)


def rows_of(function, settings, **arguments):
  source = pipeline.open_pipeline(
    canaries.SPEC,
    dict(pipeline=f"canary_lab:{function}", canaries=settings, **arguments),
    L=L,
    V=V,
  )
  return source, source.read(range(ROWS))


@pytest.mark.parametrize("function", ["indexed", "stream"])
def test_each_canary_is_planted_as_often_as_is_said(function):
  source, rows = rows_of(function, SETTINGS)
  assert source.random_access == (function == "indexed")
  _, plain = rows_of(function, {})
  plan = canaries.plan(canaries.settings(SETTINGS))
  assert plan.copies_C.tolist() == [1, 1, 3, 3, 9, 9]
  found = collections.Counter()
  for i in range(ROWS):
    differs = rows.tokens_BL[i] != plain.tokens_BL[i]
    if i not in plan.rows:
      assert not differs.any()
      assert (rows.segments_BL[i] == plain.segments_BL[i]).all()
      continue
    (here,) = np.nonzero(differs)  # Ids of canaries are in no other text.
    assert (np.diff(here) == 1).all() and len(here) == 5
    found[tuple(rows.tokens_BL[i, here])] += 1
    (segment,) = np.unique(rows.segments_BL[i, here])
    assert (rows.segments_BL[i] == segment).sum() == 5
    assert rows.positions_BL[i, here].tolist() == [0, 1, 2, 3, 4]
    assert (rows.weights_BL[i, here] == 1).all()
  wanted = {
    tuple(tokens): n
    for tokens, n in zip(plan.tokens_CN.tolist(), plan.copies_C, strict=True)
  }
  assert found == wanted and max(plan.rows) < 30


def test_what_was_one_document_before_is_two_around_a_canary():
  segments = np.repeat([1, 2, 0], [7, 3, 2])
  assert canaries._cut(segments, slice(2, 5)).tolist() == [
    *(1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 0, 0)
  ]
  # Over a boundary, at the beginning, over padding.
  assert canaries._cut(segments, slice(5, 9)).tolist() == [
    *(1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 0, 0)
  ]
  assert canaries._cut(segments, slice(0, 7)).tolist() == [
    *(1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0)
  ]
  assert canaries._cut(segments, slice(8, 12)).tolist() == [
    *(1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3)
  ]


def test_positions_and_weights_of_the_pipeline_stay():
  _, rows = rows_of("indexed", SETTINGS, more=True)
  plan = canaries.plan(canaries.settings(SETTINGS))
  planted = next(iter(plan.rows))
  other = next(i for i in range(ROWS) if i not in plan.rows)
  assert rows.positions_BL[other].tolist() == list(range(5, 17))
  here = rows.weights_BL[planted] == 1
  assert here.sum() == 5
  assert rows.positions_BL[planted][here].tolist() == [0, 1, 2, 3, 4]
  rest = np.arange(5, 17)[~here]
  assert rows.positions_BL[planted][~here].tolist() == rest.tolist()


def test_a_stream_goes_on_where_it_was():
  source, rows = rows_of("stream", SETTINGS)
  source.restore(0, source.state(0))
  source.read(range(17))
  state = source.state(17)
  fresh, _ = rows_of("stream", SETTINGS)
  fresh.restore(17, state)
  again = fresh.read(range(17, ROWS))
  np.testing.assert_array_equal(again.tokens_BL, rows.tokens_BL[17:])


def test_others_are_drawn_that_nobody_planted():
  chosen = canaries.settings(SETTINGS)
  planted = {tuple(row) for row in canaries.plan(chosen).tokens_CN.tolist()}
  others = canaries.unplanted(chosen, 50)
  assert others.shape == (50, 5) and others.min() >= 100 and others.max() < V
  assert not planted & {tuple(row) for row in others.tolist()}
  np.testing.assert_array_equal(canaries.unplanted(chosen, 9), others[:9])


def test_a_plan_is_a_function_of_its_seed():
  plans = [
    canaries.plan(canaries.settings({**SETTINGS, "seed": seed}))
    for seed in (3, 3, 4)
  ]
  assert plans[0].rows == plans[1].rows != plans[2].rows
  assert (plans[0].tokens_CN == plans[1].tokens_CN).all()
  assert (plans[0].tokens_CN != plans[2].tokens_CN).any()


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    (dict(tokens=3), "tokens: expected 4 or more, found 3"),
    (dict(tokens="5"), "tokens: expected a whole number, found '5'"),
    (dict(ids=(5, 6)), "ids: expected (FIRST, END)"),
    (dict(ids=(5, 6.5)), "ids: expected whole numbers"),
    (dict(copies=()), "copies: expected numbers above 0, each once"),
    (dict(copies=(0, 1)), "copies: expected numbers above 0"),
    (dict(each=0), "each: expected 1 or more"),
    (dict(rows=25), "rows: expected 26 or more, the sum of all copies"),
    (dict(row=1), "expected tokens, ids, copies, each, rows, seed, found"),
  ],
)
def test_wrong_settings_are_named(change, expected):
  with pytest.raises(ValueError) as info:
    rows_of("indexed", {**SETTINGS, **change})
  assert "config.data.arguments.canaries" in str(info.value)
  assert expected in str(info.value)


def test_a_canary_has_to_fit_into_a_row():
  with pytest.raises(ValueError, match="at most the tokens of a row, 12"):
    rows_of("indexed", {**SETTINGS, "tokens": 13, "rows": 30})


@pytest.mark.parametrize(
  ("function", "arguments", "expected"),
  [
    ("loader", {}, "MapDataset or IterDataset to plant canaries in"),
    ("indexd", {}, "has no function 'indexd'. Did you mean 'indexed'?"),
    ("indexed", {"mroe": 1}, "Did you mean 'more'?"),
  ],
)
def test_a_pipeline_that_cannot_be_wrapped(function, arguments, expected):
  with pytest.raises(ValueError) as info:
    rows_of(function, SETTINGS, **arguments)
  assert expected in str(info.value)


def test_without_canaries_it_is_the_other_pipeline():
  import canary_lab

  found = canaries.planted(pipeline="canary_lab:indexed", canaries={}, n=7)
  assert isinstance(found, grain.MapDataset) and len(found) == 7
  assert (found[3]["tokens"] == canary_lab.row(3)["tokens"]).all()
  assert canaries.planned({"canaries": {}}) is None
  assert canaries.planned({"canaries": SETTINGS}).copies == (1, 9, 3)
