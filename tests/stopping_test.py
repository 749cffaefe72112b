"""Tests for analogjax/stopping.py."""

import signal

import pytest

from analogjax import hosts, stopping


def test_sigterm_asks_while_somebody_listens():
  before = signal.getsignal(signal.SIGTERM)
  assert not stopping.asked()
  with stopping.listening():
    assert not stopping.asked()
    signal.raise_signal(signal.SIGTERM)
    assert stopping.asked()
    signal.raise_signal(signal.SIGTERM)  # To the process, and to its group.
    assert stopping.asked()
  assert signal.getsignal(signal.SIGTERM) is before
  assert not stopping.asked()


def test_an_error_ends_the_listening():
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyError), stopping.listening():
    signal.raise_signal(signal.SIGTERM)
    raise KeyError
  assert signal.getsignal(signal.SIGTERM) is before
  assert not stopping.asked()


def test_all_stop_where_one_is_asked():
  with stopping.listening():
    hosts.stop_if_asked("between two phases")
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(stopping.Stopped, match="between two phases"):
      hosts.stop_if_asked("between two phases")
