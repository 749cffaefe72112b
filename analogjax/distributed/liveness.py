"""Ends all processes of a run when one of them ends.

A collective waits forever for a process that is gone. jax notices only after
many missing heartbeats, and then aborts without a message. So process 0 listens
on its own port, and all others hold a connection to it. A killed process closes
its connection at once; a process whose machine is gone falls silent.
"""

from collections.abc import Callable
import contextlib
import ctypes
import dataclasses
import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from typing import Any, cast

import jax
import numpy as np

from analogjax.distributed import processes

_INVITATION_BYTES = 1024
_LAST_WORDS_S = 10.0


@dataclasses.dataclass(frozen=True)
class Loss:
  """Why this process cannot continue."""

  process: int  # The process that ended.
  reason: str
  code: int | None  # Exit code if it ended by itself; None: it died.


class Peers:
  """Watches the other processes of the run from a thread."""

  def __init__(
    self,
    on_loss: Callable[[Loss], None],
    *,
    host: str | None = None,
    silence_s: float = 40.0,
  ):
    """Connects; all processes call this at the same point.

    Args:
      on_loss: called once, in the watching thread, when another process ends
        without `leave`.
      host: host of process 0 as the others know it, if known.
      silence_s: a process that is silent for this many seconds is lost.

    Raises:
      OSError: this process cannot reach process 0.
    """
    self._on_loss, self._silence_s = on_loss, silence_s
    self._me = jax.process_index()
    self._lock = threading.Lock()
    self._links: dict[int, _Link] = {}  # By process; for others, only 0.
    self._leaving = self._badly = False
    self._selector = selectors.DefaultSelector()
    # Processes that have not arrived yet, for process 0.
    self._missing, self._since = set[int](), time.monotonic()
    listener = None
    if self._me == 0:
      both = socket.has_dualstack_ipv6()
      listener = socket.create_server(
        ("", 0),
        family=socket.AF_INET6 if both else socket.AF_INET,
        dualstack_ipv6=both,
        backlog=4096,
      )
    invitation = _invite(listener, host)
    self._token = invitation["token"]  # Keeps strangers out.
    if listener is not None:
      listener.setblocking(False)
      self._selector.register(listener, selectors.EVENT_READ)
      self._missing |= set(range(1, jax.process_count()))
    else:
      link = _Link(_connect(invitation), 0)
      link.send({"hello": self._me, "token": self._token})
      self._add(link)
    self._thread = threading.Thread(
      target=self._watch, daemon=True, name="peers"
    )
    self._thread.start()

  def leave(self, *, badly: bool = False) -> None:
    """Announces that this process is about to end, so that no other one does.

    Process 0 waits a while for the others to end first. `badly`: the exit code
    is not 0, whatever the others do.
    """
    self._badly = badly
    self._say({"bye": self._me})

  def fail(self, code: int, reason: str) -> None:
    """Announces that this process ends with an error, so that the others end.

    Process 0 waits a while for them to do so.
    """
    self._badly = True
    self._say(_lost(Loss(self._me, reason, code)))

  def _say(self, message: dict[str, Any]) -> None:
    with self._lock:
      self._leaving = True
      self._tell(message)
    until = time.monotonic() + _LAST_WORDS_S
    while self._waits_for_others(until):
      time.sleep(0.02)

  def _watch(self) -> None:
    loss, until, next_beat = None, 0.0, 0.0
    while loss is None or self._waits_for_others(until):
      wait = min(self._silence_s / 10, 1.0) if loss is None else 0.05
      ready = self._selector.select(timeout=wait)
      with self._lock:
        heard = [self._hear(key) for key, _ in ready]
        found = next((x for x in heard if x is not None), self._silent())
        if found is not None and self._leaving:
          # They end because of us, and a process that ends badly has said why.
          found = None if found.code is None or self._badly else found
        now = time.monotonic()
        if loss is None and found is not None:
          loss, until = found, now + _LAST_WORDS_S
          self._tell(_lost(loss))
        # By the clock: an answer to every beat would be answered in turn.
        elif now >= next_beat:
          next_beat = now + self._silence_s / 10
          self._tell({})
    if loss.process != self._me:  # Otherwise process 0 only repeats it.
      self._on_loss(loss)

  def _waits_for_others(self, until: float) -> bool:
    """Whether process 0 waits: if it ended first, jax would abort others."""
    if self._me != 0 or time.monotonic() >= until:
      return False
    return not all(link.leaves for link in list(self._links.values()))

  def _tell(self, message: dict[str, Any]) -> None:
    for link in self._links.values():
      link.send(message)

  def _silent(self) -> Loss | None:
    now = time.monotonic()
    for process, link in self._links.items():
      if not link.leaves and now - link.heard > self._silence_s:
        what = f"has been silent for {self._silence_s:.0f} s"
        return Loss(process, what, None)
    if self._missing and now - self._since > self._silence_s:
      return Loss(min(self._missing), "never came to be watched", None)
    return None

  def _hear(self, key: selectors.SelectorKey) -> Loss | None:
    """Reads one connection, or accepts a new one."""
    link: _Link | None = key.data
    if link is None:
      with contextlib.suppress(OSError):
        connection, _ = cast(socket.socket, key.fileobj).accept()
        self._add(_Link(connection, None))
      return None
    messages, is_open = link.receive()
    for message in messages:
      if link.process is None:
        if message.get("token") != self._token:
          is_open = False
          break
        link.process = message["hello"]
        self._links[link.process] = link
        self._missing.discard(link.process)
      elif "lost" in message:
        return Loss(message["lost"], message["reason"], message["code"])
      elif "bye" in message:
        # The connection stays: our own "bye" may still have to be sent there.
        link.leaves = True
    if is_open:
      return None
    self._selector.unregister(link.socket)
    link.socket.close()
    process = link.process
    if process is None or self._links.pop(process, None) is None:
      return None  # A stranger.
    if link.leaves:
      return None  # It announced that.
    return Loss(process, "ended without a word", None)

  def _add(self, link: "_Link") -> None:
    if link.process is not None:
      self._links[link.process] = link
    self._selector.register(link.socket, selectors.EVENT_READ, link)


class _Link:
  """A connection that carries JSON messages, one per line."""

  def __init__(self, connection: socket.socket, process: int | None):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that does not read must not block us.
    connection.settimeout(1.0)
    self.socket, self.process = connection, process
    self.leaves = False  # It has said "bye".
    self.heard = time.monotonic()
    self._rest = b""

  def send(self, message: dict[str, Any]) -> None:
    # A broken connection is found by reading.
    with contextlib.suppress(OSError):
      self.socket.sendall(json.dumps(message).encode() + b"\n")

  def receive(self) -> tuple[list[dict[str, Any]], bool]:
    """Returns the messages, and whether the connection is open."""
    try:
      data = self.socket.recv(65536)
    except TimeoutError:
      return [], True
    except OSError:
      data = b""
    self.heard = time.monotonic()
    *lines, self._rest = (self._rest + data).split(b"\n")
    try:
      messages = [json.loads(line) for line in lines]
    except ValueError:
      return [], False
    return [m for m in messages if isinstance(m, dict)], bool(data)


def _lost(loss: Loss) -> dict[str, Any]:
  return {"lost": loss.process, "reason": loss.reason, "code": loss.code}


def _invite(listener: socket.socket | None, host: str | None) -> dict[str, Any]:
  """Tells every process where process 0 listens."""
  text = b""
  if listener is not None:
    name = socket.gethostname()
    known = [h for h in (host, name, socket.getfqdn()) if h]
    with contextlib.suppress(OSError):
      known += sorted({i[4][0] for i in socket.getaddrinfo(name, None)})
    invitation = {
      "port": listener.getsockname()[1],
      "hosts": list(dict.fromkeys(known)),
      "token": secrets.token_hex(8),
    }
    text = json.dumps(invitation).encode()
    assert len(text) <= _INVITATION_BYTES, text
  padded = np.frombuffer(text.ljust(_INVITATION_BYTES), np.uint8)
  return json.loads(processes.from_first(padded).tobytes())


def _connect(invitation: dict[str, Any]) -> socket.socket:
  failure: OSError | None = None
  for host in invitation["hosts"]:
    try:
      return socket.create_connection((host, invitation["port"]), timeout=5)
    except OSError as error:
      failure = error
  raise OSError(
    f"process 0 cannot be reached at {', '.join(invitation['hosts'])}, port"
    f" {invitation['port']}: {failure}"
  )


_kept: list[Any] = []  # Otherwise the C library would call a freed function.


def exit_on_abort(code: int, text: str) -> None:
  """Turns an abort of this process into an exit; the last call counts.

  jax's client of the coordination service aborts the process when process 0 or
  its machine is gone, from a C++ thread, often before our own watch can act. A
  handler in Python would never run, since abort() does not return. So the C
  library calls this one, in the aborting thread.
  """
  kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
  message = f"{text}\n".encode() if text else b""

  def handler(_):
    os.write(2, message)
    os._exit(code)

  _kept.append(kind(handler))
  library = ctypes.CDLL(None)
  library.signal.argtypes = [ctypes.c_int, kind]
  library.signal.restype = ctypes.c_void_p
  library.signal(signal.SIGABRT, _kept[-1])
