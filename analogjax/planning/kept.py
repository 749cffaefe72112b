"""Programs that were compiled before, kept as JSON."""

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import analogjax
from analogjax.config import loading
from analogjax.planning import facts

FORMAT_VERSION = 1

# They make the program; XLA comes with jaxlib.
_SOFTWARE = ("jax", "jaxlib", "flax", "optax", "numpy")


def key(identity: dict[str, Any], compiler: str) -> str:
  """A name for what is compiled.

  Any change of our code gives another one: what a program is, and what is read
  of it, is decided there.

  Args:
    identity: of the program and of the devices; JSON values.
    compiler: which one, if it is not that of jaxlib.
  """
  digest = hashlib.sha256()
  root = Path(analogjax.__file__).parent
  for path in sorted(root.rglob("*.py")):
    digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
  facts_of_it = {
    "identity": identity,
    "compiler": compiler,
    "software": {name: importlib.metadata.version(name) for name in _SOFTWARE},
    "source": digest.hexdigest(),
  }
  text = json.dumps(facts_of_it, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path | None, name: str) -> facts.Program | None:
  """The program of a key; None: it is not there, or its file is damaged."""
  if folder is None:
    return None
  try:
    value = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return from_json(value["program"])
  except (OSError, ValueError, KeyError, TypeError):
    return None  # It is compiled again.


def write(folder: Path | None, name: str, program: facts.Program) -> None:
  if folder is None:
    return
  folder.mkdir(parents=True, exist_ok=True)
  value = {
    "format": "analogjax.program",
    "format_version": FORMAT_VERSION,
    "program": dataclasses.asdict(program),
  }
  loading.write_json(folder / f"{name}.json", value)


def from_json(value: dict[str, Any]) -> facts.Program:
  """A program of the values that dataclasses.asdict made of it."""
  exchanges = tuple(
    facts.Exchange(**{**one, "axes": tuple(one["axes"])})
    for one in value["exchanges"]
  )
  largest = tuple((what, size) for what, size in value["largest"])
  return facts.Program(**{**value, "exchanges": exchanges, "largest": largest})
