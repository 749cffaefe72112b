"""An HTTP proxy that spoils some requests on their way to an object store.

It imitates a store on a bad day: it answers late, says 500 or 503 SlowDown, or
closes the connection: before it reads the request, in the middle of it, in the
middle of the answer, or after it carried out the request.
"""

import contextlib
import http.client
import http.server
import random
import socket
import threading
import time

FAULTS = {
  "read": ("slow", "500", "503", "closed", "cut answer"),
  "write": ("slow", "500", "503", "closed", "cut request", "lost answer"),
}
_SLOW_SECONDS = 0.15
_SLOW_DOWN = (
  b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
  b"<Message>Please reduce your request rate.</Message></Error>"
)
_NOT_FORWARDED = {"connection", "transfer-encoding", "content-length"}


class Proxy(http.server.ThreadingHTTPServer):
  """Passes requests on to `address`; spoils a fraction `rate` of them.

  Attributes:
    counts: how often each fault happened, by ("read" or "write", fault).
  """

  daemon_threads = True

  def __init__(self, address, rate, seed=0):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.address, self.rate = address, rate
    self.counts = {(k, f): 0 for k, faults in FAULTS.items() for f in faults}
    self.num_requests = 0
    self._rng = random.Random(seed)
    self._lock = threading.Lock()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_address[1]}"

  def pick_fault(self, kind):
    """The next fault in turn, so that each has its share, or None."""
    with self._lock:
      self.num_requests += 1
      if self._rng.random() >= self.rate:
        return None
      fault = min(FAULTS[kind], key=lambda fault: self.counts[kind, fault])
      self.counts[kind, fault] += 1
      return fault

  def handle_error(self, request, client_address):
    pass  # The client closed; so do we.


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server: Proxy

  def log_message(self, *_):
    pass

  def _pass_on(self):
    kind = "write" if self.command in ("PUT", "POST", "DELETE") else "read"
    fault = self.server.pick_fault(kind)
    size = int(self.headers.get("Content-Length", 0))
    if fault == "closed":
      return self._close()
    if fault == "cut request":
      self.rfile.read(size // 2)
      return self._close()
    body = self.rfile.read(size)
    if fault == "slow":
      time.sleep(_SLOW_SECONDS)
    elif fault in ("500", "503"):
      text = _SLOW_DOWN if fault == "503" else b""
      return self._answer(int(fault), [], text, text)
    upstream = http.client.HTTPConnection(*self.server.address)
    with contextlib.closing(upstream):
      headers = dict(self.headers.items())
      upstream.request(self.command, self.path, body, headers)
      answer = upstream.getresponse()
      data = answer.read()
    if fault == "lost answer":
      return self._close()
    whole = data[: len(data) // 2] if fault == "cut answer" else data
    self._answer(answer.status, answer.getheaders(), data, whole)
    if fault == "cut answer":
      self._close()
    return None

  def _answer(self, status, headers, data, sent):
    self.send_response_only(status)
    for name, value in headers:
      if name.lower() not in _NOT_FORWARDED:
        self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(sent)

  def _close(self):
    self.close_connection = True
    with contextlib.suppress(OSError):
      self.connection.shutdown(socket.SHUT_RDWR)

  do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on


@contextlib.contextmanager
def proxy(address, rate, seed=0):
  """A running Proxy."""
  server = Proxy(address, rate, seed)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
