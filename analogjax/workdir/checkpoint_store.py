"""Storage of checkpoints: a folder, or a bucket with a folder for staging.

orbax writes only to files: its own path to s3:// ends in "path should be
absolute". So a checkpoint for a bucket is first written to a local folder, then
uploaded through TensorStore, which retries when a store answers "try again".
Under <step>/ a bucket holds

    <file>.<part>    parts of PART_BYTES of each file, counted in five digits
    commit.json      written last: the facts; bytes and SHA-256 of each file

A step without commit.json does not count as saved.
"""

import collections
from collections.abc import Iterator
import dataclasses
import hashlib
import json
from pathlib import Path
import shutil
from typing import Any, Protocol

from orbax.checkpoint import v1 as ocp
import tensorstore as ts

from analogjax.workdir import store

PART_BYTES = 64 * 2**20
_AHEAD = 4  # Parts in flight.
_COMMIT, _DAMAGED = "commit.json", "damaged.json"
_VERSION = 1


class Home(Protocol):
  """The interface of a place for checkpoints. A step is whole or absent."""

  def local(self, step: int) -> Path:
    """The folder into which orbax writes a step."""
    ...

  def publish(self, step: int, facts: dict[str, Any]) -> None:
    """Adds a step that orbax wrote to `steps`."""
    ...

  def steps(self) -> list[int]: ...

  def facts(self, step: int) -> dict[str, Any]: ...

  def fetch(self, step: int) -> None:
    """Brings a step to `fetched`, where orbax can read it."""
    ...

  def fetched(self, step: int) -> Path: ...

  def release(self, step: int) -> None:
    """Ends a `fetch`."""
    ...

  def remove(self, step: int) -> None: ...

  def set_aside(self, step: int) -> str:
    """Takes a damaged step out of `steps`; returns its new place."""
    ...

  @property
  def aside(self) -> str:
    """The place of damaged steps."""
    ...

  def damaged(self) -> bool:
    """Whether there are any."""
    ...

  def clean(self, step: int | None = None) -> None:
    """Removes what a killed or failed save left behind."""
    ...


def open_home(where: Path | store.Place, staging: Path | None) -> Home:
  """The home of checkpoints at a place.

  Args:
    where: a folder, or a place in a bucket.
    staging: for a bucket, a folder that every process sees.
  """
  if isinstance(where, store.Place):
    scheme, _, rest = where.url.partition("://")
    if scheme != "file":
      assert staging is not None, "a bucket needs a folder for staging"
      return _Bucket(where, staging.absolute())
    where = Path(rest)
  return _Folder(where.absolute())


@dataclasses.dataclass(frozen=True)
class _Folder:
  path: Path

  def __str__(self) -> str:
    return str(self.path)

  def local(self, step: int) -> Path:
    return self.path / str(step)

  fetched = local

  def publish(self, step: int, facts: dict[str, Any]) -> None:
    pass  # orbax renames the folder once it is whole.

  def steps(self) -> list[int]:
    if not self.path.is_dir():
      return []
    return sorted(int(p.name) for p in self.path.iterdir() if _is_step(p.name))

  def facts(self, step: int) -> dict[str, Any]:
    found: Any = ocp.metadata(str(self.local(step))).custom_metadata
    return found or {}

  def fetch(self, step: int) -> None:
    pass

  def release(self, step: int) -> None:
    pass

  def remove(self, step: int) -> None:
    # If killed half-way, it must not look like a damaged step.
    doomed = self.path / f"{step}.removed"
    self.local(step).rename(doomed)
    shutil.rmtree(doomed)

  @property
  def aside(self) -> str:
    return f"{self.path}_damaged"

  def set_aside(self, step: int) -> str:
    aside = Path(self.aside) / str(step)
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    self.local(step).rename(aside)
    return str(aside)

  def damaged(self) -> bool:
    aside = Path(self.aside)
    return aside.is_dir() and any(aside.iterdir())

  def clean(self, step: int | None = None) -> None:
    for path in self.path.glob("*" if step is None else f"{step}.*"):
      if _is_step(path.name.split(".")[0]) and not _is_step(path.name):
        shutil.rmtree(path, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Bucket:
  place: store.Place
  staging: Path

  def __str__(self) -> str:
    return str(self.place)

  def local(self, step: int) -> Path:
    return self.staging / str(step)

  def fetched(self, step: int) -> Path:
    return self.staging / "fetched" / str(step)

  def publish(self, step: int, facts: dict[str, Any]) -> None:
    # TensorStore retries a write to a missing bucket forever.
    store.check(self.place)
    # Left by a killed upload.
    self.remove(step)
    folder, files = self.local(step), {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
      name = str(path.relative_to(folder))
      files[name] = self._upload(path, f"{step}/{name}")
    commit = {"version": _VERSION, "facts": facts, "files": files}
    self._write(f"{step}/{_COMMIT}", json.dumps(commit).encode())
    shutil.rmtree(folder)

  def _upload(self, path: Path, key: str) -> dict[str, Any]:
    digest, size = hashlib.sha256(), path.stat().st_size
    kvstore, writes = self.place.open(), collections.deque()
    try:
      with path.open("rb") as file:
        for part in _parts(key, size):
          data = file.read(PART_BYTES)
          digest.update(data)
          if len(writes) == _AHEAD:
            writes.popleft().result()
          writes.append(kvstore.write(part, data))
      for write in writes:
        write.result()
    except store.ERRORS as error:
      raise self._failed("cannot be written", error) from error
    return {"bytes": size, "sha256": digest.hexdigest()}

  def steps(self) -> list[int]:
    names = (key.split("/") for key in self._keys())
    return sorted(int(n[0]) for n in names if n[1:] == [_COMMIT])

  def facts(self, step: int) -> dict[str, Any]:
    return self._commit(step)["facts"]

  def _commit(self, step: int) -> dict[str, Any]:
    commit = json.loads(self._read(f"{step}/{_COMMIT}"))
    if commit["version"] != _VERSION:
      raise store.StoreError(
        f"{self.place}/{step}/{_COMMIT}: expected version {_VERSION}, found"
        f" {commit['version']}; read it with the version of analogjax that"
        " wrote it."
      )
    return commit

  def fetch(self, step: int) -> None:
    self.release(step)
    for name, expected in self._commit(step)["files"].items():
      path = self.fetched(step) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      found = self._download(f"{step}/{name}", expected["bytes"], path)
      if found != expected["sha256"]:
        raise ValueError(f"the SHA-256 of {name} is {found[:8]}...")

  def _download(self, key: str, size: int, path: Path) -> str:
    digest, reads = hashlib.sha256(), collections.deque()
    kvstore, keys = self.place.open(), list(_parts(key, size))
    with path.open("wb") as file:
      for i, key in enumerate(keys):
        while len(reads) < min(_AHEAD, len(keys) - i):
          reads.append(kvstore.read(keys[i + len(reads)]))
        data = self._value(key, reads.popleft())
        digest.update(data)
        file.write(data)
    return digest.hexdigest()

  def release(self, step: int) -> None:
    shutil.rmtree(self.fetched(step), ignore_errors=True)

  def remove(self, step: int) -> None:
    # First, so that a step is never partly there.
    self._delete(_only(f"{step}/{_COMMIT}"))
    self._delete(ts.KvStore.KeyRange(f"{step}/", f"{step}0"))  # / is before 0.

  @property
  def aside(self) -> str:
    return f"{self.place}/<step>, those with {_DAMAGED}"

  def set_aside(self, step: int) -> str:
    self._write(f"{step}/{_DAMAGED}", self._read(f"{step}/{_COMMIT}"))
    self._delete(_only(f"{step}/{_COMMIT}"))
    return f"{self.place}/{step}/{_DAMAGED}"

  def damaged(self) -> bool:
    return any(key.endswith(f"/{_DAMAGED}") for key in self._keys())

  def clean(self, step: int | None = None) -> None:
    folder = self.staging if step is None else self.local(step)
    shutil.rmtree(folder, ignore_errors=True)
    if step is not None:
      _Folder(self.staging).clean(step)

  def _keys(self) -> list[str]:
    store.check(self.place)
    call = lambda: self.place.open().list().result()  # noqa: E731
    keys = store.translated(call, f"{self.place}: cannot be listed")
    return [key.decode() for key in keys]

  def _write(self, key: str, data: bytes) -> None:
    call = lambda: self.place.open().write(key, data).result()  # noqa: E731
    store.translated(call, f"{self.place}: cannot be written")

  def _delete(self, keys: ts.KvStore.KeyRange) -> None:
    call = lambda: self.place.open().delete_range(keys).result()  # noqa: E731
    store.translated(call, f"{self.place}: cannot be written")

  def _read(self, key: str) -> bytes:
    return self._value(key, self.place.open().read(key))

  def _value(self, key: str, read: ts.Future) -> bytes:
    try:
      found = read.result()
    except store.ERRORS as error:
      raise self._failed("cannot be read", error) from error
    if found.state == "missing":
      raise FileNotFoundError(f"{key} is missing")
    return found.value

  def _failed(self, what: str, error: BaseException) -> store.StoreError:
    return store.StoreError(f"{self.place}: {what}: {store.reason(error)}.")


def _parts(key: str, size: int) -> Iterator[str]:
  for i in range(max(1, -(-size // PART_BYTES))):
    yield f"{key}.{i:05d}"


def _only(key: str) -> ts.KvStore.KeyRange:
  return ts.KvStore.KeyRange(key, f"{key}\0")


def _is_step(name: str) -> bool:
  return name.isdecimal()
