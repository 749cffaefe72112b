"""One run at a time in a workdir."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
import socket
import time

FILE = "run.lock"

# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def hold(workdir: Path, command: str) -> Iterator[bool]:
  """Keeps others out of a workdir; yields False if there are no locks.

  The lock is the system's (flock), so a killed process releases it. The file
  names the holder, for the message of the next process. `command` is the
  holder, for messages.

  Raises:
    ValueError: another process holds it; names that process.
  """
  if workdir.exists() and not workdir.is_dir():
    code = errno.ENOTDIR
    raise NotADirectoryError(code, os.strerror(code), str(workdir))
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / FILE
  with open(path, "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f"{workdir}: in use by {_holder(path)}. Wait for it or end it, or use"
        " another --workdir."
      ) from None
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      yield False
      return
    file.truncate(0)
    holder = {
      "command": command,
      "process": os.getpid(),
      "host": socket.gethostname(),
      "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    file.write(json.dumps(holder) + "\n")
    file.flush()
    yield True
    file.truncate(0)


def _holder(path: Path) -> str:
  try:
    holder = json.loads(path.read_text(encoding="utf-8"))
    return (
      f"`analogjax {holder['command']}`, process {holder['process']} on"
      f" {holder['host']}, since {holder['since']}"
    )
  except (OSError, ValueError, KeyError):
    return "another run"  # It has only just begun.
