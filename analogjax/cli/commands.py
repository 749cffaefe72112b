"""The table of commands and their flags."""

from collections.abc import Callable
from pathlib import Path
import re
from typing import Any, NamedTuple


class UsageError(ValueError):
  """The arguments cannot be understood."""


class Flag(NamedTuple):
  """A flag, which is a keyword argument of the `run` of a stage."""

  commands: str  # Commands that take it, separated by spaces.
  help: str
  value: str = ""  # Placeholder of its value in messages; "": it takes none.
  read: Callable[[str], Any] = str
  argument: str = ""  # Its name as a keyword, if different.
  repeats: bool = False  # Then the argument is a tuple.
  nargs: int | str | None = None  # As argparse has it; "?": may be left out.


def _steps(text: str) -> range:
  """The steps of A:B, both ends included."""
  match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
  first, last = map(int, match.groups()) if match else (0, 0)
  if not 1 <= first <= last:
    raise UsageError(
      "expected A:B, the first and the last step to trace, counted from 1,"
      " e.g. --profile=20:22."
    )
  return range(first, last + 1)


def _rows(text: str) -> int:
  if not text.isdecimal():
    raise UsageError("expected --verify or --verify=ROWS, a number.")
  return int(text)


def _names(text: str) -> tuple[str, ...]:
  return tuple(text.split(","))


COMMANDS = {
  "plan": "sizes, memory, time and cost for given machines; starts nothing",
  "cache": "run the teacher over the data, into the logit cache",
  "train": "train the student through its phases",
  "measure": "compare the student with the teacher on held-out rows",
  "safety": "test what the student gives away, and what it refuses",
  "intervene": "try a vector found on the analog on the teacher",
  "export": "write the analog as a Hugging Face folder",
  "release": "check the gates, write and sign the bundle for the public",
  "run": "cache, train, measure, safety, export and release in order",
  "verify": "check the claims of a bundle, by its bytes alone, offline",
  "reproduce": "run a bundle's config twice at toy size and compare",
  "keygen": "make a key to sign releases with",
  "config": "show a config, explain its fields, compare two",
  "completion": "print what completes commands and flags in bash or zsh",
}
RUN_STAGES = (
  "cache",
  "train",
  "measure",
  "safety",
  "export",
  "release",
  "summary",
)
_OF_A_CONFIG = (
  "plan cache train measure safety intervene export release run config"
)

# Commands that take only a path, without a config, and its meaning.
PATHS = {
  "verify": "folder of the bundle",
  "reproduce": "folder of the bundle",
  "keygen": "file of the private key; the public one goes to PATH.pub",
  "completion": "bash or zsh",
}

# Required arguments of a command.
_A_RUN = ("--config", "--workdir")
NEEDED = {
  "plan": ("--config",),
  "cache": _A_RUN,
  "train": _A_RUN,
  "measure": _A_RUN,
  "safety": _A_RUN,
  "intervene": (*_A_RUN, "--vector"),
  "export": _A_RUN,
  "release": (*_A_RUN, "--key"),
  "run": _A_RUN,
}

# Actions of `cache` other than filling it: flag -> (module, function).
CACHE_ACTIONS = {
  "--inspect": ("inspect_cache", "run"),
  "--verify": ("verify_cache", "run"),
  "--repair": ("cache", "repair"),
}

FLAGS = {
  "--config": Flag(
    _OF_A_CONFIG, "Python file with get_config(), e.g. configs/demo.py", "FILE"
  ),
  "--workdir": Flag(
    f"{_OF_A_CONFIG} reproduce", "folder where the run writes", "DIR", Path
  ),
  "--inspect": Flag(
    "cache", "show what the cache holds, instead of filling it"
  ),
  "--verify": Flag(
    "cache",
    "check every byte instead; of ROWS the teacher runs again",
    "ROWS",
    _rows,
    nargs="?",
  ),
  "--repair": Flag("cache", "compute damaged rows again instead"),
  "--quick": Flag("measure safety run", "less of everything, for a first look"),
  "--only": Flag("measure safety", "these parts alone", "A,B", _names),
  "--vector": Flag("intervene", "a safetensors file with the vector", "FILE"),
  "--behaviour": Flag(
    "intervene",
    "behaviour that scores the effect: a name or a JSON file",
    "NAME",
  ),
  "--profile": Flag("train run", "trace steps A to B for xprof", "A:B", _steps),
  "--topology": Flag(
    "plan",
    "machines, e.g. v5p:4x4x4 or gpu:h100:64; several are compared",
    "NAME",
    argument="topologies",
    repeats=True,
  ),
  "--search": Flag(
    "plan", "find the cheapest mesh that fits the machines", argument="searches"
  ),
  "--png": Flag("plan", "draw the plan", "FILE", Path),
  "--json": Flag("plan verify", "print JSON", argument="as_json"),
  "--key": Flag(
    "release verify run",
    "release, run: private key to sign with, a path or pkcs11:...; verify:"
    " public key that is expected",
    "KEY",
  ),
  "--password": Flag(
    "release run", "file with the password of the key", "FILE", Path
  ),
  "--certificate": Flag(
    "release run",
    "certificate of the key, then those that vouch for it",
    "FILE",
    Path,
    argument="certificates",
    repeats=True,
  ),
  "--chain": Flag(
    "verify",
    "certificates that may vouch for the signer",
    "FILE",
    Path,
    repeats=True,
  ),
  "--regulator": Flag(
    "verify", "folder that was given beside the bundle", "DIR", Path
  ),
  "--verbose": Flag("verify", "print the evidence for every claim"),
  "--deep": Flag("verify", "measure again"),
  "--html": Flag("verify", "write a page, too", "FILE", Path),
  "--check": Flag("reproduce", "run it, twice"),
  "--explain": Flag(
    "config", "meaning, type, bounds and default of a field or section", "FIELD"
  ),
  "--diff": Flag(
    "config", "compare two configs, files or workdirs", "A B", nargs=2
  ),
}
