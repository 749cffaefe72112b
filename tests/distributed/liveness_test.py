"""Tests for analogjax/distributed/liveness.py, over real sockets.

tests/stages/train_processes_test.py has processes that really die.
"""

import contextlib
import json
import os
from pathlib import Path
import queue
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from analogjax.distributed import liveness, processes

ROOT = Path(__file__).parents[2]
NOTHING = 0.3  # Seconds in which nothing should come.


class _End(Exception):
  """Ends a thread that watches for as long as its process lives."""


class Crowd:
  """Several numbered `Peers` in this process."""

  def __init__(self, monkeypatch, count, silence_s):
    self._patch, self._silence_s = monkeypatch, silence_s
    self.heard = [queue.Queue() for _ in range(count)]
    self.peers = []
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(liveness, "_LAST_WORDS_S", 0.2)
    self._invitation = None
    watch = liveness.Peers._watch

    def until_the_end(one):
      with contextlib.suppress(_End):
        watch(one)

    monkeypatch.setattr(liveness.Peers, "_watch", until_the_end)

  def join(self):
    me = len(self.peers)

    def from_first(value):
      if me == 0:
        self._invitation = value
      return self._invitation

    self._patch.setattr(jax, "process_index", lambda: me)
    self._patch.setattr(processes, "from_first", from_first)
    how = dict(host="localhost", silence_s=self._silence_s)
    self.peers.append(liveness.Peers(self.heard[me].put, **how))
    until = time.monotonic() + 60
    while me and me in self.peers[0]._missing:
      assert time.monotonic() < until
      time.sleep(0.01)

  @property
  def invitation(self):
    return json.loads(np.asarray(self._invitation).tobytes())

  def hears(self, me):
    """The loss that this process was told of."""
    return self.heard[me].get(timeout=60)

  def hears_nothing(self, *which):
    for me in which:
      with pytest.raises(queue.Empty):
        self.heard[me].get(timeout=NOTHING)

  def kill(self, me):
    """Its thread ends, and the system closes its connections."""
    one = self.peers[me]

    def end(timeout):
      raise _End

    # It may have nobody left to hear, and still listens.
    one._selector.select = end
    one._thread.join(60)
    for key in list(one._selector.get_map().values()):
      one._selector.unregister(key.fileobj)
      key.fileobj.close()

  def close(self):
    for me, one in enumerate(self.peers):
      self.kill(me)
      one._selector.close()


@pytest.fixture
def crowd(monkeypatch):
  with contextlib.ExitStack() as stack:

    def make(count, silence_s=60.0, joined=None):
      found = Crowd(monkeypatch, count, silence_s)
      stack.callback(found.close)
      for _ in range(count if joined is None else joined):
        found.join()
      return found

    yield make


def test_a_process_that_dies_is_lost_to_all(crowd):
  three = crowd(3)
  three.hears_nothing(0, 1, 2)
  three.kill(1)
  loss = liveness.Loss(1, "ended without a word", None)
  assert three.hears(0) == three.hears(2) == loss
  three.hears_nothing(0, 2)  # Once.


def test_process_0_that_dies_is_lost_to_all(crowd):
  three = crowd(3)
  three.kill(0)
  loss = liveness.Loss(0, "ended without a word", None)
  assert three.hears(1) == three.hears(2) == loss


@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_fails_says_why_and_with_which_code(crowd, who):
  three = crowd(3)
  three.peers[who].fail(2, "row 6 is damaged")
  others = {0, 1, 2} - {who}
  loss = liveness.Loss(who, "row 6 is damaged", 2)
  assert [three.hears(me) for me in others] == [loss, loss]
  three.hears_nothing(who)


def test_processes_that_leave_are_no_loss(crowd):
  three = crowd(3)
  for me in (1, 2, 0):
    three.peers[me].leave()
    if me:
      three.kill(me)
  three.hears_nothing(0, 1, 2)


def test_a_process_that_falls_silent_is_lost(crowd):
  two = crowd(2, silence_s=1.0)
  two.hears_nothing(0, 1)
  # Its machine is gone: nothing is sent, and nothing closed.
  two.peers[1]._tell = lambda message: None
  assert two.hears(0) == liveness.Loss(1, "has been silent for 1 s", None)


def test_a_process_that_never_comes_is_lost(crowd):
  three = crowd(3, silence_s=1.0, joined=2)
  loss = liveness.Loss(2, "never came to be watched", None)
  assert three.hears(0) == three.hears(1) == loss


@pytest.mark.parametrize(
  "said",
  [
    b'{"lost": 1, "reason": "a lie", "code": 2}\n',
    b'{"hello": 1, "token": "guessed"}\n{"lost": 1, "reason": "", "code": 2}\n',
    b"GET / HTTP/1.1\r\n\r\n",
    b"[1]\n",
    b"",
  ],
)
def test_strangers_are_not_listened_to(crowd, said):
  two = crowd(2)
  address = "localhost", two.invitation["port"]
  with socket.create_connection(address) as stranger:
    stranger.sendall(said)
    two.hears_nothing(0, 1)
  two.hears_nothing(0, 1)
  two.peers[1].fail(2, "still heard")
  assert two.hears(0) == liveness.Loss(1, "still heard", 2)


def test_process_0_that_cannot_be_reached():
  with socket.socket() as taken:
    taken.bind(("localhost", 0))  # Nobody listens.
    port = taken.getsockname()[1]
    with pytest.raises(OSError, match=f"at localhost, port {port}: "):
      liveness._connect({"hosts": ["localhost"], "port": port})


_ABORTS = """
import os
from analogjax.distributed import liveness as peers
peers.exit_on_abort(3, "not this one")
peers.exit_on_abort(75, "process 0 is gone")
os.abort()
"""


def test_an_abort_is_an_exit():
  done = subprocess.run(
    [sys.executable, "-c", _ABORTS],
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (done.returncode, done.stderr) == (75, "process 0 is gone\n")
