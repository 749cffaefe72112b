"""Tests for analogjax/cache/writer.py."""

import functools
import threading

import pytest

from analogjax.cache import logit_cache, writer as cache_writer


class Slow:
  """Stands for a cache: notes writes, when the test allows them."""

  def __init__(self):
    self.written, self.go = [], threading.Semaphore(0)
    self.begun = threading.Semaphore(0)

  def write_stored(self, start, stored):
    self.begun.release()
    assert self.go.acquire(timeout=30)
    if isinstance(stored, Exception):
      raise stored
    self.written.append((start, stored))


def test_the_writer_keeps_the_order(kit, tmp_path):
  m = kit.manifest(num_rows=22)
  cache = logit_cache.create(tmp_path, m)
  rows, records = kit.rows(m), kit.records(m)
  committed, main = [], threading.get_ident()

  def note(part):
    assert threading.get_ident() == main
    assert cache.committed()[part.start : part.stop].all()
    committed.append(part)

  with cache_writer.CacheWriter(cache) as writer:
    for part in cache.objects():
      cut = slice(part.start, part.stop)
      pieces = kit.take(rows, cut), kit.take(records, cut)
      writer.submit(
        part.start,
        functools.partial(cache.encode, *pieces),
        functools.partial(note, part),
      )
    writer.finish()
    assert committed == cache.objects()
  kit.assert_equal(cache.read(range(22)).rows, rows)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_writer_holds_a_bounded_number_of_objects(depth):
  slow, made, committed = Slow(), [], []

  def submit(i):
    writer.submit(i, lambda: made.append(i) or i, lambda: committed.append(i))

  with cache_writer.CacheWriter(slow, depth=depth) as writer:
    for i in range(depth):
      submit(i)  # None of these waits for anything.
    assert slow.begun.acquire(timeout=30)
    # One is made at a time, when it is written; the others wait as they came.
    assert made == [0] and committed == []
    one_more = threading.Thread(target=submit, args=(depth,))
    one_more.start()
    one_more.join(timeout=0.2)
    assert one_more.is_alive(), "one more than depth was taken"
    slow.go.release()
    one_more.join(timeout=30)
    assert not one_more.is_alive() and committed == [0]
    for _ in range(depth):
      slow.go.release()
    writer.finish()
  assert committed == list(range(depth + 1))
  assert slow.written == [(i, i) for i in range(depth + 1)]


def fail(error):
  raise error


@pytest.mark.parametrize("where", ["make", "write"])
def test_an_error_of_the_writer_surfaces(where):
  """At a later submit, or at the end; nothing unwritten is committed."""
  error = logit_cache.CacheError("the disk is full")
  slow, committed = Slow(), []
  for _ in range(9):
    slow.go.release()
  makes = dict(make=lambda: fail(error), write=lambda: error)
  with (
    pytest.raises(logit_cache.CacheError, match="the disk is full"),
    cache_writer.CacheWriter(slow, depth=1) as writer,
  ):
    writer.submit(0, lambda: 0, lambda: committed.append(0))
    writer.submit(1, makes[where], lambda: committed.append(1))
    for i in range(2, 9):
      writer.submit(i, lambda i=i: i, lambda i=i: committed.append(i))
    writer.finish()
  assert 0 in committed and 1 not in committed
  with (
    pytest.raises(logit_cache.CacheError, match="the disk is full"),
    cache_writer.CacheWriter(slow, depth=5) as writer,
  ):
    writer.submit(1, makes["make"], lambda: committed.append(1))
    writer.finish()
  assert 1 not in committed


def test_an_error_of_the_caller_ends_what_has_begun_and_no_more():
  slow = Slow()
  with (
    pytest.raises(KeyboardInterrupt),
    cache_writer.CacheWriter(slow, depth=4) as writer,
  ):
    for i in range(3):
      writer.submit(i, lambda i=i: i, lambda: fail(AssertionError()))
    assert slow.begun.acquire(timeout=30)
    slow.go.release()
    raise KeyboardInterrupt
  assert (0, 0) in slow.written and (2, 2) not in slow.written
