"""Tests for analogjax/data/pipeline.py."""

import json
import sys

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from analogjax.data import pipeline

L, V = 4, 100
NUM_ROWS = 23

USER_CODE = """
import grain
import numpy as np

def to_row(i):
  tokens = np.array([i, i + 1, i + 2, 0])
  return {"tokens": tokens, "segments": np.array([1, 1, 2, 0]), "extra": "x"}

def indexed(n=23, **unused):
  return grain.MapDataset.range(n).map(to_row)

def forever():
  return indexed().repeat()

def stream(n=23):
  return indexed(n).to_iter_dataset()

def shuffled_stream():
  return indexed().seed(3).shuffle().to_iter_dataset().filter(
      lambda row: row["tokens"][0] % 5 > 0)

class ToRow(grain.transforms.Map):
  def map(self, i):
    return to_row(int(i))

def loader(n=23):
  return grain.DataLoader(
      data_source=list(range(n)),
      sampler=grain.samplers.IndexSampler(
          n, shuffle=True, seed=1, num_epochs=1),
      operations=[ToRow()], worker_count=0)

def packed():
  lengths = [3, 9, 1, 1, 14, 2, 6, 30, 5, 4, 8]
  documents = grain.MapDataset.source(lengths).map(
      lambda n: {"tokens": np.full(n, n)}).to_iter_dataset()
  rows = grain.experimental.ConcatThenSplitIterDataset(
      documents, length_struct={"tokens": 4})
  return rows.map(lambda r: {
      "tokens": r["tokens"], "segments": r["tokens_segment_ids"],
      "positions": r["tokens_positions"]})

def empty():
  return grain.MapDataset.source([])

def empty_stream():
  return grain.MapDataset.source([]).to_iter_dataset()

def filtered():
  return indexed().filter(lambda row: row["tokens"][0] != 6)

def batched():
  return indexed().batch(2)

def large_token(at=9):
  def broken(i):
    row = to_row(i)
    row["tokens"][2] = 100 if i == at else 0
    return row
  return grain.MapDataset.range(23).map(broken).to_iter_dataset()

def crash(at=9, kind="stream"):
  def broken(i):
    if i == at:
      raise KeyError("no such document")
    return to_row(i)
  dataset = grain.MapDataset.range(23).map(broken)
  return dataset.to_iter_dataset() if kind == "stream" else dataset

def refuses():
  raise ValueError("the lab's own reason")

def wrong_type():
  return [to_row(0)]

def seen(path, nested=None):
  seen.last = (path, nested)
  return indexed()
"""
STREAMS = ("stream", "shuffled_stream", "loader", "packed")


@pytest.fixture(scope="module", autouse=True)
def user_code(tmp_path_factory):
  folder = tmp_path_factory.mktemp("user")
  (folder / "labpipe.py").write_text(USER_CODE)
  (folder / "labbroken.py").write_text("import labmissing\n")
  (folder / "labsyntax.py").write_text("def f(:\n")
  sys.path.insert(0, str(folder))
  yield
  sys.path.remove(str(folder))
  sys.modules.pop("labpipe", None)


def open_(function, substitutions=None, **arguments):
  return pipeline.open_pipeline(
    f"labpipe:{function}",
    arguments,
    L=L,
    V=V,
    substitutions=substitutions or {},
  )


def rows_of(n, start=0):
  return np.array([[i, i + 1, i + 2, 0] for i in range(start, start + n)])


def all_rows(source):
  """Every row of a source, one by one."""
  tokens = []
  try:
    while True:
      tokens.append(source.read([len(tokens)]).tokens_BL[0].tolist())
  except pipeline.EndOfRows as end:
    assert end.num_rows == len(tokens)
  return tokens


def assert_equal(one, other):
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_map_dataset_is_read_at_random():
  source = open_("indexed")
  assert source.random_access and source.num_rows == NUM_ROWS
  rows = source.read([20, 3, 3])
  np.testing.assert_array_equal(
    rows.tokens_BL, [[20, 21, 22, 0], [3, 4, 5, 0], [3, 4, 5, 0]]
  )
  np.testing.assert_array_equal(rows.positions_BL[0], [0, 1, 0, 0])
  assert source.state(3) is None
  source.restore(3, None)
  assert source.read([]).tokens_BL.shape == (0, L)


def test_a_map_dataset_does_not_start_again_at_its_end():
  source = open_("indexed")
  with pytest.raises(pipeline.EndOfRows) as end:
    source.read([NUM_ROWS - 1, NUM_ROWS])
  assert end.value.num_rows == NUM_ROWS


def test_a_dataset_that_repeats_for_ever_has_no_length():
  source = open_("forever")
  assert source.random_access and source.num_rows is None
  rows = source.read([2, 2 + NUM_ROWS * 1000])
  np.testing.assert_array_equal(rows.tokens_BL[0], rows.tokens_BL[1])


@pytest.mark.parametrize("function", STREAMS)
def test_a_stream_gives_every_row_once(function):
  module = sys.modules.get("labpipe") or __import__("labpipe")
  expected = [r["tokens"].tolist() for r in getattr(module, function)()]
  source = open_(function)
  assert not source.random_access and source.num_rows is None
  assert all_rows(source) == expected
  assert source.num_rows == len(expected) > 16


@pytest.mark.parametrize("function", STREAMS)
def test_a_killed_reader_goes_on_with_the_same_rows(function):
  first = open_(function)
  first.read(range(10))
  saved = json.dumps(first.state(10))
  expected = first.read(range(10, 16))

  # As after a kill: nothing is left but the JSON.
  second = open_(function)
  second.restore(10, json.loads(saved))
  assert_equal(second.read(range(10, 16)), expected)
  assert second.fingerprint == first.fingerprint


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_every_read_boundary_can_be_restored(sizes, data):
  source, start, bounds = open_("packed"), 0, [0]
  total = len(all_rows(open_("packed")))
  for size in sizes:
    if start + size > total:
      break
    source.read(range(start, start + size))
    start += size
    bounds.append(start)
  bound = data.draw(st.sampled_from(bounds))
  state = json.loads(json.dumps(source.state(bound)))
  other = open_("packed")
  other.restore(bound, state)
  rest = list(range(bound, total))
  whole = open_("packed").read(range(total))
  for a, b in zip(other.read(rest), whole, strict=True):
    np.testing.assert_array_equal(a, b[bound:])
  # Back and forth in one source, too.
  source.restore(bound, state)
  for a, b in zip(source.read(rest), whole, strict=True):
    np.testing.assert_array_equal(a, b[bound:])


@pytest.mark.parametrize("function", STREAMS)
def test_a_stream_skips_forward(function):
  expected = open_(function).read(range(12, 15))
  source = open_(function)
  source.read(range(3))
  assert_equal(source.read(range(12, 15)), expected)
  assert source.state(3) is not None and source.state(15) is not None
  assert source.state(5) is None


def test_rows_that_are_left_can_be_read_after_the_end_was_met():
  source = open_("stream")
  source.read(range(20))
  with pytest.raises(pipeline.EndOfRows) as end:
    source.read(range(20, 28))
  assert end.value.num_rows == source.num_rows == NUM_ROWS
  rows = source.read(range(20, NUM_ROWS))
  np.testing.assert_array_equal(rows.tokens_BL, rows_of(3, start=20))
  with pytest.raises(pipeline.EndOfRows):
    source.read([NUM_ROWS])


def test_a_skip_beyond_the_end_leaves_the_stream_where_it_was():
  source = open_("loader")
  source.read(range(4))
  with pytest.raises(pipeline.EndOfRows) as end:
    source.read([500])
  assert end.value.num_rows == NUM_ROWS
  assert_equal(source.read([4]), open_("loader").read([4]))


def test_states_of_old_reads_are_dropped_but_the_start_is_kept():
  source = open_("stream", n=90)
  for i in range(80):
    source.read([i])
  assert source.state(10) is None
  assert source.state(80 - 63) is not None
  source.restore(0, source.state(0))
  np.testing.assert_array_equal(source.read([0]).tokens_BL, rows_of(1))


def test_a_state_of_another_grain_is_not_trusted():
  source = open_("stream")
  source.read(range(5))
  state = {**source.state(5), "grain": "0.1", "iterator": {"gone": True}}
  other = open_("stream")
  other.restore(5, state)
  np.testing.assert_array_equal(other.read([5]).tokens_BL, rows_of(1, start=5))


def test_a_state_that_does_not_fit_is_refused():
  source = open_("stream")
  source.read(range(5))
  state = source.state(5)
  for bad, message in (
    (None, "row 6 has no saved state"),
    (state, "expected the saved state of row 6, found"),
    ({"row": 6}, "expected the saved state of row 6, found"),
    ({**state, "row": 6, "iterator": {"a": 1}}, "failed when row 6's state"),
  ):
    with pytest.raises(ValueError, match=message):
      source.restore(6, bad)


def test_a_stream_is_read_in_order():
  source = open_("stream")
  with pytest.raises(AssertionError, match="in order"):
    source.read([1, 3])
  source.read([1, 2])
  with pytest.raises(AssertionError, match="stands at 3: restore"):
    source.read([2])


def test_the_fingerprint_names_the_pipeline_and_not_the_machine():
  def fingerprint(**arguments):
    return open_("seen", {"teacher": "/a"}, **arguments).fingerprint

  one = fingerprint(path="{teacher}/x")
  assert len(one) == 64 and int(one, 16)
  elsewhere = open_("seen", {"teacher": "/b"}, path="{teacher}/x")
  assert elsewhere.fingerprint == one
  assert fingerprint(path="{teacher}/y") != one
  assert fingerprint(path="{teacher}/x", nested=1) != one
  # The order of the arguments in a config file means nothing.
  assert fingerprint(nested={"a": 1, "b": 2}, path="p") == fingerprint(
    path="p", nested={"b": 2, "a": 1}
  )


def test_the_fingerprint_depends_on_kind_and_rows(monkeypatch):
  labpipe = sys.modules.get("labpipe") or __import__("labpipe")
  before = open_("seen", path="p").fingerprint
  streamed = labpipe.grain.MapDataset.range(23).map(labpipe.to_row)
  monkeypatch.setattr(labpipe, "indexed", lambda: streamed.to_iter_dataset())
  assert open_("seen", path="p").fingerprint != before  # Same rows, a stream.
  monkeypatch.setattr(labpipe, "indexed", lambda: streamed[3:])
  assert open_("seen", path="p").fingerprint != before
  # The fifth row and later ones are not read.
  monkeypatch.setattr(labpipe, "indexed", lambda: streamed[:20])
  assert open_("seen", path="p").fingerprint == before


def test_the_fingerprint_of_fewer_rows_than_it_reads():
  one, two = open_("stream", n=1), open_("stream", n=2)
  assert one.fingerprint != two.fingerprint
  assert len(one.read([0]).tokens_BL) == 1


def test_names_are_replaced_in_arguments_and_other_braces_are_left():
  open_(
    "seen",
    {"teacher": "/t", "workdir": "/w"},
    path="{teacher}/tokenizer.json",
    nested={"a": ["{workdir}", "{other} {}", 3], "{teacher}": None},
  )
  assert sys.modules["labpipe"].seen.last == (
    "/t/tokenizer.json",
    {"a": ["/w", "{other} {}", 3], "{teacher}": None},
  )


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("labpipe", r"expected 'package\.module:function'"),
    (":indexed", r"expected 'package\.module:function'"),
    ("labpipe:a b", r"expected 'package\.module:function'"),
    ("labpip:indexed", "there is no module 'labpip'.*PYTHONPATH"),
    ("labbroken:f", "its module imports 'labmissing', which is not installed"),
    ("labsyntax:f", "failed when it was imported: SyntaxError"),
    ("labpipe:indexd", "no function 'indexd'. Did you mean 'indexed'"),
    ("labpipe:np", "no function 'np'"),
    ("labpipe:wrong_type", "returned a builtins.list, expected a grain Map"),
    ("labpipe:refuses", "failed when it was called: the lab's own reason"),
    ("labpipe:empty", "gives no rows"),
    ("labpipe:empty_stream", "gives no rows"),
    ("labpipe:batched", r"row 0: 'tokens' has shape \(2, 4\), expected \(4,\)"),
  ],
)
def test_a_pipeline_that_cannot_be_opened_is_refused(spec, message):
  with pytest.raises(ValueError, match=message) as error:
    pipeline.open_pipeline(spec, {}, L=L, V=V)
  assert f"config.data.pipeline={spec!r}" in str(error.value)


def test_arguments_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="'nn'. Did you mean 'n'"):
    open_("stream", nn=3)
  # Not the argument that Python misses: the one that was typed.
  with pytest.raises(ValueError, match="no argument 'pth'. Did you mean 'path"):
    open_("seen", pth="x")
  with pytest.raises(ValueError, match="missing a required argument: 'path'"):
    open_("seen")
  with pytest.raises(
    ValueError, match=r"config\.data\.arguments must be plain"
  ):
    open_("seen", path=object())
  with pytest.raises(
    ValueError, match=r"config\.data\.arguments must be plain"
  ):
    open_("seen", path=float("nan"))


def test_a_failing_row_is_named_with_its_cause():
  for kind in ("stream", "map"):
    source = open_("crash", kind=kind)
    with pytest.raises(
      ValueError, match="at row 9: KeyError: 'no such"
    ) as error:
      source.read(range(8, 12))
    assert isinstance(error.value.__cause__, KeyError)
    with pytest.raises(ValueError, match="at row 2: KeyError"):
      open_("crash", at=2, kind=kind)


def test_a_token_beyond_the_vocabulary_names_pipeline_and_row():
  source = open_("large_token")
  message = (
    "config.data.pipeline='labpipe:large_token': row 9: token id 100 at "
    "position 2, but the vocabulary has 100 tokens"
  )
  with pytest.raises(ValueError, match=message):
    source.read(range(9, 11))


def test_a_row_that_was_filtered_out_has_no_index():
  source = open_("filtered")
  with pytest.raises(ValueError, match="row 6 was filtered out"):
    source.read([5, 6])
