"""What may stand on the command line, and what was meant by it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import difflib
from pathlib import Path
import re
import shlex
from typing import Any, NamedTuple

from analogjax.cli.usage import COMMANDS, USAGE

# What `cache` can do instead of filling it: flag -> (module, function).
CACHE_ACTIONS = {
  "--inspect": ("inspect_cache", "run"),
  "--verify": ("verify_cache", "run"),
  "--repair": ("cache", "repair"),
}
RUN_STAGES = (
  *("cache", "train", "measure", "safety", "export", "release", "summary"),
)
# Of a path alone, without a config.
OF_A_PATH = ("verify", "reproduce", "keygen")


class UsageError(ValueError):
  """The arguments cannot be understood."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
  """A flag that is a keyword argument of the `run` of some stages."""

  stages: tuple[str, ...]
  argument: str
  value: str = ""  # Stands for its value in messages; "": it takes none.
  read: Callable[[str], Any] = str
  repeats: bool = False  # Then the argument is a tuple.
  also_of_run: bool = False


def _steps(text: str) -> range:
  """Of --profile=A:B, both ends included."""
  match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
  first, last = map(int, match.groups()) if match else (0, 0)
  if not 1 <= first <= last:
    raise UsageError(
      f"--profile={text}: expected A:B, the first and the last step to trace,"
      " counted from 1, e.g. --profile=20:22."
    )
  return range(first, last + 1)


def _names(text: str) -> tuple[str, ...]:
  return tuple(text.split(","))


FLAGS: Mapping[str, Flag] = {
  "--profile": Flag(
    stages=("train",),
    argument="profile",
    value="A:B",
    read=_steps,
    also_of_run=True,
  ),
  "--topology": Flag(
    stages=("plan",), argument="topologies", value="NAME", repeats=True
  ),
  "--png": Flag(stages=("plan",), argument="png", value="PATH", read=Path),
  "--search": Flag(stages=("plan",), argument="searches"),
  "--json": Flag(stages=("plan", "verify"), argument="as_json"),
  "--quick": Flag(
    stages=("measure", "safety"), argument="quick", also_of_run=True
  ),
  "--only": Flag(
    stages=("measure", "safety"), argument="only", value="NAMES", read=_names
  ),
  "--vector": Flag(stages=("intervene",), argument="vector", value="PATH"),
  "--behaviour": Flag(
    stages=("intervene",), argument="behaviour", value="NAME"
  ),
  # A path, or the URI of a key on a token.
  "--key": Flag(
    stages=("release", "verify"), argument="key", value="KEY", also_of_run=True
  ),
  "--password": Flag(
    stages=("release",),
    argument="password",
    value="PATH",
    read=Path,
    also_of_run=True,
  ),
  "--certificate": Flag(
    stages=("release",),
    argument="certificates",
    value="PATH",
    read=Path,
    repeats=True,
    also_of_run=True,
  ),
  "--chain": Flag(
    stages=("verify",), argument="chain", value="PATH", read=Path, repeats=True
  ),
  "--regulator": Flag(
    stages=("verify",), argument="regulator", value="PATH", read=Path
  ),
  "--deep": Flag(stages=("verify",), argument="deep"),
  "--html": Flag(stages=("verify",), argument="html", value="PATH", read=Path),
  "--verbose": Flag(stages=("verify",), argument="verbose"),
  "--check": Flag(stages=("reproduce",), argument="check"),
}
_NEEDED = {"intervene": ("--vector",), "release": ("--key",)}


class Arguments(NamedTuple):
  """What was asked for."""

  command: str
  config: str | None  # None: the one that the workdir keeps.
  workdir: Path | None  # None: plan without one.
  overrides: tuple[tuple[str, str], ...]  # (dotted path, text), in order.
  action: str = ""  # One of CACHE_ACTIONS.
  rows: int = 0  # --verify=N: rows that the teacher sees again.
  path: Path | None = None  # Of a command of OF_A_PATH.
  flags: tuple[tuple[str, Any], ...] = ()  # Those of FLAGS, and their values.

  @property
  def stages(self) -> tuple[str, ...]:
    """What runs, in this order."""
    return RUN_STAGES if self.command == "run" else (self.command,)

  def options(self, stage: str) -> dict[str, Any]:
    """Keyword arguments of a stage that were given."""
    found = {
      FLAGS[flag].argument: value
      for flag, value in self.flags
      if stage in FLAGS[flag].stages
    }
    return found | (
      {"command": self._again(stage)} if stage == "measure" else {}
    )

  def _again(self, stage: str) -> str:
    """The command that runs a stage again with this config and workdir."""
    words = [f"--config={self.config}", f"--workdir={self.workdir}"]
    words += [f"--config.{path}={text}" for path, text in self.overrides]
    return shlex.join(["analogjax", stage, *words])


@dataclasses.dataclass
class _Words:
  """The arguments, told apart."""

  words: list[str] = dataclasses.field(default_factory=list)
  flags: dict[str, Any] = dataclasses.field(default_factory=dict)
  overrides: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  actions: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def parse(argv: Sequence[str]) -> Arguments:
  """The arguments by name.

  A flag takes its value after `=` or as the next argument; one that begins with
  `--` has to come after `=`. Of an override given twice the last one holds, so
  that scripts can append their own.

  Raises:
    UsageError: an unknown, missing or repeated argument; says what is near.
  """
  given = _tell_apart(argv)
  command = given.words[0] if given.words else None
  if command is None:
    raise UsageError(f"no command; expected one of {', '.join(COMMANDS)}.")
  if command not in COMMANDS:
    raise UsageError(
      f"unknown command {command!r}. {_near(command, list(COMMANDS))}"
    )
  of_a_path = command in OF_A_PATH
  if len(given.words) > 1 + of_a_path:
    extra = given.words[1 + of_a_path]
    note = "" if of_a_path else "; overrides are written --config.a.b=VALUE"
    raise UsageError(f"unexpected argument {extra!r} after {command}{note}.")
  action, rows = _action(command, given.actions)
  _check_needed(command, action, given)
  flags = {name: v for name, v in given.flags.items() if name in FLAGS}
  for name in flags:
    _check_command(name, command)
  for name in ("--search", "--png"):
    if name in flags and "--topology" not in flags:
      raise UsageError(f"{name} needs --topology=NAME: machines.")
  workdir = given.flags.get("--workdir")
  return Arguments(
    command=command,
    config=given.flags.get("--config"),
    workdir=None if workdir is None else Path(workdir),
    overrides=tuple(given.overrides),
    action=action,
    rows=rows,
    path=Path(given.words[1]) if of_a_path else None,
    flags=tuple(flags.items()),
  )


def _tell_apart(argv: Sequence[str]) -> _Words:
  found, rest = _Words(), list(argv)
  while rest:
    word = rest.pop(0)
    if not word.startswith("-"):
      found.words.append(word)
      continue
    name, equals, value = word.partition("=")
    if name in CACHE_ACTIONS:
      found.actions.append((name, value))
      continue
    flag = FLAGS.get(name)
    if flag is not None and not flag.value:
      if equals:
        raise UsageError(f"{word}: expected {name}, without a value.")
      found.flags[name] = True
      continue
    overrides = name.startswith("--config.") and name != "--config."
    if flag is None and name not in ("--config", "--workdir") and not overrides:
      raise UsageError(f"unknown flag {name}. {_near_flag(name)}")
    if not equals:
      if not rest or rest[0].startswith("--"):
        raise UsageError(f"{name} needs a value: {name}=VALUE.")
      value = rest.pop(0)
    if overrides:
      found.overrides.append((name.removeprefix("--config."), value))
      continue
    if not value:
      what = flag.value if flag is not None else "PATH"
      raise UsageError(f"{name} is empty; expected {name}={what}.")
    if flag is not None and flag.repeats:
      found.flags[name] = (*found.flags.get(name, ()), flag.read(value))
    elif name in found.flags:
      before = found.flags[name]
      raise UsageError(f"{name} is given twice: {before} and {value}.")
    else:
      found.flags[name] = value if flag is None else flag.read(value)
  return found


def _action(command: str, actions: list[tuple[str, str]]) -> tuple[str, int]:
  """What `cache` does instead of filling it, and of how many rows."""
  if not actions:
    return "", 0
  action, value = actions[-1]
  if command != "cache" or len(actions) > 1:
    raise UsageError(
      f"{action} is for `cache`, one of {', '.join(CACHE_ACTIONS)} at a time."
    )
  if value and (action != "--verify" or not value.isdecimal()):
    raise UsageError(
      f"{action}={value}: expected {action}"
      + (" or --verify=ROWS, a number." if action == "--verify" else ".")
    )
  return action, int(value or 0)


def _check_needed(command: str, action: str, given: _Words) -> None:
  if command in OF_A_PATH:
    if len(given.words) < 2:
      raise UsageError(f"{command} needs a path: analogjax {command} PATH.")
    if "--config" in given.flags or given.overrides:
      raise UsageError(f"{command} takes no config: what it reads is its path.")
    if "--workdir" in given.flags and command != "reproduce":
      raise UsageError(f"{command} takes no --workdir.")
    return
  needed = ["--config"] if command == "plan" else ["--config", "--workdir"]
  if action:
    needed = ["--workdir"]  # Which keeps the config.
  for name in (*needed, *_NEEDED.get(command, ())):
    if name not in given.flags:
      raise UsageError(f"{command} needs {name}=PATH.\n{USAGE}")
  if given.overrides and "--config" not in given.flags:
    raise UsageError(
      f"{given.overrides[0][0]} is set, but there is no --config."
    )


def _check_command(name: str, command: str) -> None:
  """Refuses a flag that is not for this command."""
  flag = FLAGS[name]
  known = [*flag.stages, *(["run"] if flag.also_of_run else [])]
  if command not in known:
    *others, last = [f"`{c}`" for c in known if c in COMMANDS]
    listed = f"{', '.join(others)} and {last}" if others else last
    raise UsageError(f"{name} is for {listed}.")


def _near_flag(name: str) -> str:
  if name.count(".") and name.startswith("--"):
    # A misspelt --config.: the rest may well be right.
    return f"Did you mean --config.{name.partition('.')[2]}?"
  known = ["--config", "--workdir", *CACHE_ACTIONS, *FLAGS]
  return _near(name, [*known, "--help", "--version"])


def _near(word: str, known: list[str]) -> str:
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
