"""Writes a bundle with its manifest and signature, whole or not at all."""

from collections.abc import Iterator, Mapping
import hashlib
import os
from pathlib import Path
import shutil

from analogjax.bundle import folder as walk, manifest, signature
from analogjax.workdir import files as files_lib

_OURS = (manifest.FILE, manifest.SIGNATURE, signature.SIGNER)


def write(
  folder: Path, *, files: Mapping[str, bytes | Path], signer: signature.Signer
) -> None:
  """Writes a signed bundle, and replaces an existing one.

  Everything goes into a hidden folder beside it, which is renamed at the end.
  So a folder with the bundle's name is always complete; between two renames it
  is briefly absent.

  Args:
    folder: the bundle; its parent has to exist.
    files: path below it, with `/` -> its bytes, or a file to copy.

  Raises:
    ValueError: a path is not allowed in a bundle, a file cannot be read, or the
      key cannot be used; the folder is unchanged.
  """
  for path in files:
    if path in _OURS:
      raise ValueError(
        f"{path}: reserved, as it is made last; give the file another name."
      )
    if wrong := walk.file_problem(path):
      raise ValueError(f"{path}: {wrong}.")
  aside = folder.with_name(f".{folder.name}.incomplete")
  shutil.rmtree(aside, ignore_errors=True)
  # Signatures hold the folder's name, so the inner folder has the final one.
  inside = aside / folder.name
  inside.mkdir(parents=True)
  try:
    entries = {}
    contents = {**files, signature.SIGNER: signer.identity.to_bytes()}
    for path, content in sorted(contents.items()):
      entries[path] = _put(inside / path, content)
    _put(inside / manifest.FILE, manifest.to_bytes(entries))
    _put(inside / manifest.SIGNATURE, signer.sign(inside))
    if problems := walk.open_tree(inside).problems:
      raise ValueError(f"the bundle would not verify: {problems[0]}.")
    for where in sorted({p.parent for p in inside.rglob("*")}):
      files_lib.fsync(where)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
      folder.rename(old)
    inside.rename(folder)
    files_lib.fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _put(path: Path, content: bytes | Path) -> manifest.Entry:
  """Writes one file, durably."""
  path.parent.mkdir(parents=True, exist_ok=True)
  digest, size = hashlib.sha256(), 0
  with open(path, "xb") as file:
    for part in _parts(content):
      file.write(part)
      digest.update(part)
      size += len(part)
    file.flush()
    os.fsync(file.fileno())
  return manifest.Entry(size, digest.hexdigest())


def _parts(content: bytes | Path) -> Iterator[bytes]:
  if isinstance(content, bytes):
    yield content
    return
  try:
    with open(content, "rb") as file:
      while part := file.read(walk.CHUNK):
        yield part
  except OSError as error:
    raise ValueError(f"{content}: cannot be read: {error.strerror}.") from None
