"""Lists and reads the files of an untrusted bundle, within bounds.

A bundle may have been made to harm whoever examines it. So its files are
reached only through this module: names from a short alphabet, regular files,
every folder opened below its parent and never through a link, and never more
bytes read than requested. POSIX only: it needs O_NOFOLLOW and openat.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path
import re
import stat
import types
from typing import Any

from analogjax.bundle import strict_json
from analogjax.bundle.strict_json import Refused

MOST_ENTRIES = 20_000  # Files and folders.
MOST_DEPTH = 8
MOST_PROBLEMS = 50  # Problems listed; a hostile folder may have any number.
MOST_TEXT = 64 << 20  # Bytes of a file that is read whole.
CHUNK = 1 << 20

# Only ASCII: no control characters, no text direction marks, no two forms of
# one letter. No leading dot: signers and uploads skip .git and the like, so
# their content would not be signed.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
# Only data, and no text that some program would run.
EXTENSIONS = frozenset(
  {".md", ".json", ".html", ".txt", ".jinja", ".safetensors", ".pem", ".model"}
)
NAMES_WITHOUT = frozenset({"LICENSE", "NOTICE"})
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclasses.dataclass(frozen=True)
class Tree:
  """A listed folder.

  Attributes:
    files: path below it, with `/` -> size in bytes; only acceptable files.
    problems: one sentence for everything else that is there.
  """

  root: Path
  files: Mapping[str, int]
  problems: tuple[str, ...]

  def read(self, path: str, most: int = MOST_TEXT) -> bytes:
    """The bytes of a file.

    Raises:
      Refused: it is missing, has changed, or is larger than `most` bytes.
    """
    if self._size(path) > most:
      raise Refused(f"{path}: {self.files[path]:,} bytes, expected <= {most:,}")
    return b"".join(self.chunks(path))

  def read_json(
    self, path: str, *, most_values: int = strict_json.MOST_IN_DOCUMENTS
  ) -> dict[str, Any]:
    """A JSON object; Refused names the file."""
    data = self.read(path, strict_json.MOST_BYTES)
    try:
      return strict_json.parse_object(data, most_values=most_values)
    except Refused as error:
      raise Refused(f"{path}: {error}") from None

  def read_text(self, path: str) -> str:
    """Text in UTF-8; Refused names the file."""
    try:
      return self.read(path).decode("utf-8")
    except UnicodeDecodeError as error:
      raise Refused(f"{path}: not text in UTF-8: {error.reason}") from None

  def range(self, path: str, start: int, length: int) -> bytes:
    """Bytes from the middle of a file; Refused if it is too short."""
    assert start >= 0 and 0 <= length <= MOST_TEXT
    self._size(path)
    with _open_file(self.root, path) as descriptor:
      parts, left = [], length
      while left and (part := os.pread(descriptor, left, start)):
        parts.append(part)
        left, start = left - len(part), start + len(part)
    if left:
      raise Refused(f"{path}: ends {left:,} bytes too early")
    return b"".join(parts)

  def chunks(self, path: str) -> Iterator[bytes]:
    """The bytes of a file in order, as many as it had when it was listed."""
    left = self._size(path)
    with _open_file(self.root, path) as descriptor:
      while left and (part := os.read(descriptor, min(CHUNK, left))):
        left -= len(part)
        yield part
      if left or os.read(descriptor, 1):
        raise Refused(f"{path}: its size changed while it was read")

  def sha256(self, path: str) -> str:
    digest = hashlib.sha256()
    for part in self.chunks(path):
      digest.update(part)
    return digest.hexdigest()

  def _size(self, path: str) -> int:
    if path not in self.files:
      raise Refused(f"{path}: there is no such file")
    return self.files[path]


def open_tree(root: Path) -> Tree:
  """Lists a folder; `Tree.problems` says what is wrong in it.

  Raises:
    ValueError: the folder does not exist or cannot be listed.
  """
  # The folder itself may be named through a link, its contents may not.
  if not root.is_dir():
    raise ValueError(
      f"{root}: expected the folder of a bundle, but there is none; check the"
      " path."
    )
  try:
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
  except OSError as error:
    raise ValueError(f"{root}: cannot be listed: {error.strerror}.") from None
  lister = _Lister()
  try:
    lister.add_folder(descriptor, "")
  finally:
    os.close(descriptor)
  files, problems = dict(sorted(lister.files.items())), lister.problems
  problems += _collisions(files)
  if len(problems) > MOST_PROBLEMS:
    problems[MOST_PROBLEMS:] = ["and more; the first are listed"]
  return Tree(root, types.MappingProxyType(files), tuple(problems))


def name_problem(name: str) -> str:
  """A problem with the name of a file or folder; "" if there is none."""
  if not _NAME.fullmatch(name) or name.endswith("."):
    return (
      "a name may have ASCII letters, digits and . _ + - alone, at most 128 of"
      " them, and neither begins nor ends with a dot"
    )
  return ""


def file_problem(path: str) -> str:
  """A problem with the path of a file of a bundle; "" if there is none."""
  parts = path.split("/")
  if len(parts) > MOST_DEPTH:
    return f"{len(parts)} folders deep, expected <= {MOST_DEPTH}"
  for part in parts:
    if wrong := name_problem(part):
      return wrong
  if parts[-1] in NAMES_WITHOUT:
    return ""
  if os.path.splitext(parts[-1])[1] not in EXTENSIONS:
    known = " ".join(sorted(EXTENSIONS))
    return f"not a kind of file that a bundle holds (LICENSE NOTICE {known})"
  return ""


def shown(name: str) -> str:
  """A name that is safe to print."""
  return ascii(name if len(name) <= 80 else name[:77] + "...")


class _Lister:
  """Walks through folders, up to a number of entries."""

  def __init__(self):
    self.files: dict[str, int] = {}
    self.problems: list[str] = []
    self._left = MOST_ENTRIES

  def add_folder(self, descriptor: int, prefix: str) -> None:
    before = self._left
    try:
      with os.scandir(descriptor) as entries:
        for entry in entries:
          if self._left <= 0:
            return
          self._left -= 1
          if self._left == 0:
            self.problems.insert(0, f"more than {MOST_ENTRIES:,} entries")
          self._add(entry, descriptor, prefix + entry.name)
    except OSError as error:
      self.problems.append(f"{prefix or '.'}: not readable: {error.strerror}")
    if self._left == before:
      # Signatures cover files, so an empty folder would not be signed.
      self.problems.append(f"{prefix or '.'}: an empty folder")

  def _add(self, entry, folder: int, path: str) -> None:
    found = entry.stat(follow_symlinks=False)
    if wrong := name_problem(entry.name):
      self.problems.append(f"{shown(path)}: {wrong}")
    elif stat.S_ISDIR(found.st_mode):
      if path.count("/") + 2 > MOST_DEPTH:
        self.problems.append(f"{path}: deeper than {MOST_DEPTH} folders")
      else:
        with _opened(entry.name, os.O_DIRECTORY, folder) as below:
          self.add_folder(below, f"{path}/")
    elif not stat.S_ISREG(found.st_mode):
      kind = _kind(found.st_mode)
      self.problems.append(f"{path}: {kind}, not a regular file")
    elif wrong := file_problem(path):
      self.problems.append(f"{path}: {wrong}")
    else:
      self.files[path] = found.st_size


def _collisions(files) -> list[str]:
  """Names that are equal on file systems that ignore case, such as macOS's."""
  seen: dict[str, str] = {}
  problems = []
  for path in sorted(files):
    parts = path.split("/")
    for i in range(1, len(parts) + 1):
      here = "/".join(parts[:i])
      other = seen.setdefault(here.lower(), here)
      if other != here:
        problems.append(f"{here}: differs from {other} by case alone")
  return problems


def _kind(mode: int) -> str:
  kinds = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
  )
  return next((name for test, name in kinds if test(mode)), "something else")


@contextlib.contextmanager
def _opened(name, flags, folder):
  descriptor = os.open(name, _FLAGS | flags, dir_fd=folder)
  try:
    yield descriptor
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _open_file(root: Path, path: str) -> Iterator[int]:
  """A descriptor of a regular file, through no link; Refused otherwise."""
  with contextlib.ExitStack() as stack:
    try:
      below = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
      stack.callback(os.close, below)
      *folders, name = path.split("/")
      for folder in folders:
        below = stack.enter_context(_opened(folder, os.O_DIRECTORY, below))
      descriptor = stack.enter_context(_opened(name, 0, below))
      regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError as error:
      raise Refused(f"{path}: cannot be opened: {error.strerror}") from None
    if not regular:
      raise Refused(f"{path}: not a regular file")
    try:
      yield descriptor
    except OSError as error:
      raise Refused(f"{path}: cannot be read: {error.strerror}") from None
