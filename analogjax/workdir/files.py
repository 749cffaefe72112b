"""JSON and other files of a run, written atomically; their digests."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a file; ValueError names the file."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ValueError(f"{path}: there is no such file.") from None
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f"{path}: not readable as JSON: {error}.") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected a JSON object.")
  return value


def file_sha256(path: Path) -> str:
  """SHA-256 of a file, hexadecimal; ValueError if it does not exist."""
  return hash_file(path).hexdigest()


def write_json(path: Path, value: Any) -> None:
  """Writes a file of a folder that is not in its place yet."""
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def fsync_folder(folder: Path) -> None:
  """Makes the files of a folder durable before the folder is renamed."""
  for path in folder.iterdir():
    fsync(path)
  fsync(folder)


def fsync(path: Path) -> None:
  """Makes a file's bytes durable, or the names in a folder."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def hash_file(path: Path):
  try:
    with open(path, "rb") as file:
      return hashlib.file_digest(file, "sha256")
  except FileNotFoundError:
    raise ValueError(f"{path}: there is no such file.") from None
