"""Reads the command line by the table of commands, with argparse."""

import argparse
from collections.abc import Collection, Mapping, Sequence
import difflib
from pathlib import Path
import re
import shlex
from typing import Any, NamedTuple, NoReturn

from analogjax.cli.commands import (
  CACHE_ACTIONS,
  COMMANDS,
  FLAGS,
  NEEDED,
  PATHS,
  RUN_STAGES,
  Flag,
  UsageError,
)

USAGE = (
  "usage: analogjax <command> --config=FILE --workdir=DIR [--config.a.b=VALUE]"
  "\n       analogjax verify|reproduce|keygen PATH"
)
_EPILOG = """\
`--flag VALUE` does as well, unless the value begins with --. --config.a.b=VALUE
sets one field of the config; `analogjax config --explain=a.b` says what it is.
If a command is interrupted, give it again to resume.

exit codes: 0 done, 1 a bundle that fails, 2 wrong input, 75 start again,
130 interrupted.

example: analogjax run --config=configs/demo.py --workdir=runs/demo"""


class Arguments(NamedTuple):
  """A parsed command line."""

  command: str
  config: str | None  # None: the one in the workdir.
  workdir: Path | None  # None: plan without one.
  overrides: tuple[tuple[str, str], ...]  # (dotted path, text), in order.
  action: str = ""  # One of CACHE_ACTIONS.
  rows: int = 0  # --verify=N: rows that the teacher runs on again.
  path: Path | None = None  # For the commands of PATHS.
  flags: tuple[tuple[str, Any], ...] = ()  # Other flags and their values.

  @property
  def stages(self) -> tuple[str, ...]:
    """The stages that run, in this order."""
    return RUN_STAGES if self.command == "run" else (self.command,)

  @property
  def looks(self) -> bool:
    """Whether it only inspects existing results."""
    return self.action in ("--inspect", "--verify")

  def options(self, stage: str) -> dict[str, Any]:
    """Keyword arguments of a stage that were given."""
    found = {
      FLAGS[flag].argument or flag.removeprefix("--"): value
      for flag, value in self.flags
      if stage in FLAGS[flag].commands.split()
    }
    if stage == "measure":
      found["command"] = self._again(stage)  # Its page shows it.
    return found

  def _again(self, stage: str) -> str:
    """The command that runs a stage again with this config and workdir."""
    words = [f"--config={self.config}", f"--workdir={self.workdir}"]
    words += [f"--config.{path}={text}" for path, text in self.overrides]
    return shlex.join(["analogjax", stage, *words])


class _Parser(argparse.ArgumentParser):
  """An argparse parser whose errors are UsageErrors in our words."""

  def error(self, message: str) -> NoReturn:
    message = re.sub(
      r"argument (\S+): expected one argument",
      r"\1 needs a value: \1=VALUE.",
      message,
    )
    message = re.sub(
      r"argument (\S+): expected 2 arguments",
      r"\1 needs two values: \1 A B.",
      message,
    )
    message = re.sub(
      r"argument (\S+): ignored explicit argument '(.*)'",
      r"\1=\2: expected \1, without a value.",
      message,
    )
    raise UsageError(re.sub(r"^argument \S+: ", "", message))


class _Store(argparse.Action):
  """Stores a value that may be given once, or collects several."""

  def __call__(self, parser, namespace, values, option_string=None):
    assert option_string is not None
    flag, before = FLAGS[option_string], getattr(namespace, self.dest)
    if flag.repeats:
      values = (*(before or ()), values)
    elif before is not None:
      raise UsageError(
        f"{option_string} is given twice: {before} and {values}."
      )
    setattr(namespace, self.dest, values)


def help_text(command: str = "") -> str:
  """The text of --help, of one command or of all."""
  if command:
    return _parser(command).format_help().rstrip()
  lines = [f"  {name:<11}{what}" for name, what in COMMANDS.items()]
  more = "analogjax <command> --help shows the flags of a command."
  return "\n".join([USAGE, "", "commands:", *lines, "", more, "", _EPILOG])


def parse(argv: Sequence[str]) -> Arguments:
  """Reads the arguments.

  A flag takes its value after `=` or as the next argument; a value that begins
  with `--` has to come after `=`. The last of repeated overrides wins, so that
  scripts can append their own.

  Raises:
    UsageError: an argument is unknown, missing or repeated; names the nearest.
  """
  words, overrides = _split_overrides(argv)
  command = _command(words)
  words.remove(command)
  found, rest = _parser(command).parse_known_args(words)
  if rest:
    raise _unexpected(command, rest)
  given = {
    flag: value
    for flag in FLAGS
    if (value := getattr(found, flag, None)) is not None and value is not False
  }
  actions = [flag for flag in CACHE_ACTIONS if flag in given]
  if command == "cache" and len(actions) > 1:
    raise UsageError(
      f"{actions[-1]}: expected one of {', '.join(CACHE_ACTIONS)} at a time."
    )
  is_action = command == "cache" and bool(actions)
  path = getattr(found, "PATH", None)
  _check_needed(command, given, overrides, is_action, path)
  special = ("--config", "--workdir", *(actions if is_action else ()))
  return Arguments(
    command=command,
    config=given.get("--config"),
    workdir=given.get("--workdir"),
    overrides=tuple(overrides),
    action=actions[0] if is_action else "",
    rows=int(given.get("--verify", 0)) if command == "cache" else 0,
    path=None if path is None else Path(path),
    flags=tuple((f, v) for f, v in given.items() if f not in special),
  )


def _split_overrides(
  argv: Sequence[str],
) -> tuple[list[str], list[tuple[str, str]]]:
  """The arguments without --config.a.b=VALUE, and these overrides."""
  words, overrides, rest = [], [], list(argv)
  while rest:
    word = rest.pop(0)
    name, equals, value = word.partition("=")
    if not name.startswith("--config.") or name == "--config.":
      words.append(word)
      continue
    if not equals:
      if not rest or rest[0].startswith("--"):
        raise UsageError(f"{name} needs a value: {name}=VALUE.")
      value = rest.pop(0)
    overrides.append((name.removeprefix("--config."), value))
  return words, overrides


def _command(words: Sequence[str]) -> str:
  named = [word for word in words if word in COMMANDS]
  first = words[0] if words and not words[0].startswith("-") else None
  if first is not None and first not in COMMANDS:
    raise UsageError(f"unknown command {first!r}. {_near(first, COMMANDS)}")
  if not named:
    raise UsageError(f"no command; expected one of {', '.join(COMMANDS)}.")
  return first or named[0]


def _parser(command: str) -> _Parser:
  of_a_path = command in PATHS
  lines = [f"analogjax {command}", *(["PATH"] if of_a_path else [])]
  lines += [f"{flag}=..." for flag in NEEDED.get(command, ())]
  parser = _Parser(
    prog=f"analogjax {command}",
    usage=" ".join([*lines, "[flags]"]),
    description=COMMANDS[command],
    epilog=_EPILOG.split("\n\n")[0] if command in NEEDED else None,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  if of_a_path:
    parser.add_argument("PATH", nargs="?", help=PATHS[command])
  for name, flag in FLAGS.items():
    if command in flag.commands.split():
      _add(parser, name, flag)
  return parser


def _add(parser: argparse.ArgumentParser, name: str, flag: Flag) -> None:
  if not flag.value:
    parser.add_argument(name, dest=name, action="store_true", help=flag.help)
    return

  def read(text: str) -> Any:
    if not text:
      message = f"{name} is empty; expected {name}={flag.value}."
      raise argparse.ArgumentTypeError(message)
    try:
      return flag.read(text)
    except UsageError as error:
      raise argparse.ArgumentTypeError(f"{name}={text}: {error}") from None

  parser.add_argument(
    name,
    dest=name,
    action=_Store,
    metavar=tuple(flag.value.split()) if flag.nargs == 2 else flag.value,
    help=flag.help,
    type=read,
    nargs=flag.nargs,
    const="0" if flag.nargs == "?" else None,
  )


def _unexpected(command: str, rest: Sequence[str]) -> UsageError:
  """The error for arguments that a command does not take."""
  name = next((word for word in rest if word.startswith("-")), "")
  name = name.partition("=")[0]
  if not name:
    is_path = command in PATHS
    note = "" if is_path else "; overrides are written --config.a.b=VALUE"
    return UsageError(f"unexpected argument {rest[0]!r} after {command}{note}.")
  if command in PATHS and name in ("--config", "--workdir"):
    what = "config" if name == "--config" else name
    return UsageError(f"{command} takes no {what}: it reads PATH alone.")
  if name in FLAGS:
    *others, last = [
      f"`{c}`" for c in COMMANDS if c in FLAGS[name].commands.split()
    ]
    listed = f"{', '.join(others)} and {last}" if others else last
    return UsageError(f"{name} is for {listed}.")
  if name.count(".") and name.startswith("--"):
    # A misspelt --config.: the rest may well be right.
    near = f"Did you mean --config.{name.partition('.')[2]}?"
  else:
    ours = [flag for flag in FLAGS if command in FLAGS[flag].commands.split()]
    near = _near(name, [*ours, "--help", "--version"])
  return UsageError(f"unknown flag {name}. {near}")


def _check_needed(
  command: str,
  given: Mapping[str, Any],
  overrides: Sequence[tuple[str, str]],
  is_action: bool,
  path: str | None,
) -> None:
  """Refuses a command that lacks something."""
  if command in PATHS:
    if path is None:
      raise UsageError(f"{command} needs a path: analogjax {command} PATH.")
    if overrides:
      raise UsageError(f"{command} takes no config: it reads PATH alone.")
    return
  needed = ("--workdir",) if is_action else NEEDED.get(command, ())
  if missing := [name for name in needed if name not in given]:
    forms = " and ".join(f"{name}={FLAGS[name].value}" for name in missing)
    raise UsageError(f"{command} needs {forms}.\n{USAGE}")
  if command == "config" and not given:
    raise UsageError("config needs --config=FILE, --workdir=DIR or --explain.")
  if overrides and "--config" not in given:
    raise UsageError(f"{overrides[0][0]} is set, but there is no --config.")
  for name in ("--search", "--png"):
    if name in given and "--topology" not in given:
      raise UsageError(f"{name} needs --topology=NAME: machines.")


def _near(word: str, known: Collection[str]) -> str:
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
