"""The command line: analogjax <command> --config=FILE --workdir=DIR [...].

Reads the arguments and the config, saves the resolved config and hands over to
a stage. Whatever brings jax with it is imported once the arguments are known
to be good, so that help and wrong arguments are answered at once.

Environment (read here only):
  ANALOGJAX_TRACEBACK=1: errors of the user come with their traceback.
  ANALOGJAX_COMPILATION_CACHE=DIR: compiled programs are kept there.
  ANALOGJAX_COORDINATOR=HOST:PORT, ANALOGJAX_NUM_PROCESSES=N and
  ANALOGJAX_PROCESS_ID=I: this process is number I of N.
"""

from collections.abc import Sequence
import difflib
import errno
import importlib
import os
from pathlib import Path
import sys
import traceback
from typing import NamedTuple

import analogjax

COMMANDS = {
  "plan": "sizes, tokens, FLOPs, bytes and memory; starts nothing",
  "cache": "the teacher over the data, into the logit cache",
  "train": "the student through its phases",
  "measure": "the student against the teacher on held-out rows",
  "export": "the analog as a Hugging Face folder",
  "release": "gates, documents and signature (not built yet)",
  "verify": "checks a bundle from its bytes alone (not built yet)",
  "run": "cache, train, measure and export in order",
}
NOT_BUILT = ("release", "verify")
# What `cache` can do instead of filling it: flag -> (module, function).
CACHE_ACTIONS = {
  "--inspect": ("inspect_cache", "run"),
  "--verify": ("verify_cache", "run"),
  "--repair": ("cache", "repair"),
}
RUN_STAGES = ("cache", "train", "measure", "export", "summary")

OK, USER_ERROR, INTERRUPTED = 0, 2, 130
# 75 is left to stages that ask to be started again (requeue), by SystemExit.

USAGE = (
  "usage: analogjax <command> --config=FILE --workdir=DIR [--config.a.b=VALUE]"
)


class UsageError(ValueError):
  """The arguments cannot be understood."""


class Arguments(NamedTuple):
  """What was asked for."""

  command: str
  config: str | None  # None: the one that the workdir keeps.
  workdir: Path | None  # None: plan without one.
  overrides: tuple[tuple[str, str], ...]  # (dotted path, text), in order.
  action: str = ""  # One of CACHE_ACTIONS.
  rows: int = 0  # --verify=N: rows that the teacher sees again.


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns the exit code.

  0 done, 2 an error that the user can mend, 130 interrupted, 75 start again (by
  a stage). Anything unexpected leaves as an exception, with its traceback.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv:
    print(f"{USAGE}\nanalogjax --help says more.", file=sys.stderr)
    return USER_ERROR
  if "-h" in argv or "--help" in argv:
    print(_help())
    return OK
  if "--version" in argv:
    print(f"analogjax {analogjax.__version__}")
    return OK

  name = f"analogjax {argv[0]}" if argv[0] in COMMANDS else "analogjax"
  try:
    args = parse(argv)
    _run(args)
    return OK
  except KeyboardInterrupt:
    print(
      f"{name}: interrupted; the same command goes on where it was.",
      file=sys.stderr,
    )
    return INTERRUPTED
  except (ValueError, OSError) as error:
    if os.environ.get("ANALOGJAX_TRACEBACK") == "1":
      traceback.print_exc()
    print(f"{name}: error: {_message(error)}", file=sys.stderr)
    return USER_ERROR


def parse(argv: Sequence[str]) -> Arguments:
  """The arguments by name.

  A flag takes its value after `=` or as the next argument; one that begins with
  `--` has to come after `=`. Of an override given twice the last one holds, so
  that scripts can append their own.

  Raises:
    UsageError: an unknown, missing or repeated argument; says what is near.
  """
  words, flags, overrides = [], {}, []
  actions: list[tuple[str, str]] = []
  rest = list(argv)
  while rest:
    word = rest.pop(0)
    if not word.startswith("-"):
      words.append(word)
      continue
    flag, equals, value = word.partition("=")
    if flag in CACHE_ACTIONS:
      actions.append((flag, value))
      continue
    if flag not in ("--config", "--workdir") and not (
      flag.startswith("--config.") and flag != "--config."
    ):
      raise UsageError(f"unknown flag {flag}. {_near_flag(flag)}")
    if not equals:
      if not rest or rest[0].startswith("--"):
        raise UsageError(f"{flag} needs a value: {flag}=VALUE.")
      value = rest.pop(0)
    if flag.startswith("--config."):
      overrides.append((flag.removeprefix("--config."), value))
    elif flag in flags:
      raise UsageError(f"{flag} is given twice: {flags[flag]} and {value}.")
    elif not value:
      raise UsageError(f"{flag} is empty; expected {flag}=PATH.")
    else:
      flags[flag] = value

  command = words[0] if words else None
  if command is None:
    raise UsageError(f"no command; expected one of {', '.join(COMMANDS)}.")
  if command not in COMMANDS:
    raise UsageError(
      f"unknown command {command!r}. {_near(command, list(COMMANDS))}"
    )
  if command in NOT_BUILT:
    raise UsageError(
      f"{command} is not built yet; `analogjax export` writes the analog as a"
      " Hugging Face folder."
    )
  if len(words) > 1:
    raise UsageError(
      f"unexpected argument {words[1]!r} after {command}; overrides are written"
      " --config.a.b=VALUE."
    )
  needed = ["--config"] if command == "plan" else ["--config", "--workdir"]
  if actions:
    if command != "cache" or len(actions) > 1:
      raise UsageError(
        f"{actions[-1][0]} is for `cache`, one of {', '.join(CACHE_ACTIONS)} at"
        " a time."
      )
    needed = ["--workdir"]  # Which keeps the config.
  for flag in needed:
    if flag not in flags:
      raise UsageError(f"{command} needs {flag}=PATH.\n{USAGE}")
  if overrides and "--config" not in flags:
    raise UsageError(f"{overrides[0][0]} is set, but there is no --config.")
  action, value = actions[0] if actions else ("", "")
  if value and (action != "--verify" or not value.isdecimal()):
    raise UsageError(
      f"{action}={value}: expected {action}"
      + (" or --verify=ROWS, a number." if action == "--verify" else ".")
    )
  return Arguments(
    command=command,
    config=flags.get("--config"),
    workdir=Path(flags["--workdir"]) if "--workdir" in flags else None,
    overrides=tuple(overrides),
    action=action,
    rows=int(value or 0),
  )


def _run(args: Arguments) -> None:
  from analogjax import config_files, hosts

  _join_cluster()
  if args.config is None:
    assert args.workdir is not None
    cfg = config_files.read_resolved(args.workdir)
  else:
    cfg = config_files.load(args.config, args.overrides)
    looking = args.action and args.action != "--repair"
    if args.workdir is not None and not looking:
      workdir = args.workdir
      hosts.on_first(lambda: config_files.save_resolved(cfg, workdir))
  cache = os.environ.get("ANALOGJAX_COMPILATION_CACHE")
  if cache and args.command != "plan":
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
  if args.action:
    module, function = CACHE_ACTIONS[args.action]
    call = getattr(
      importlib.import_module(f"analogjax.stages.{module}"), function
    )
    more = {"rows": args.rows} if args.action == "--verify" else {}
    call(cfg, args.workdir, **more)
    return
  stages = RUN_STAGES if args.command == "run" else (args.command,)
  for stage in stages:
    module = importlib.import_module(f"analogjax.stages.{stage}")
    module.run(cfg, args.workdir)


def _join_cluster() -> None:
  """Makes this process one of several, where the environment says so."""
  address = os.environ.get("ANALOGJAX_COORDINATOR")
  if not address:
    return
  numbers = {}
  for name in ("ANALOGJAX_NUM_PROCESSES", "ANALOGJAX_PROCESS_ID"):
    value = os.environ.get(name, "")
    if not value.isdecimal():
      raise ValueError(
        f"{name}={value!r}: expected a number, as ANALOGJAX_COORDINATOR is set."
      )
    numbers[name] = int(value)
  import jax

  jax.distributed.initialize(
    coordinator_address=address,
    num_processes=numbers["ANALOGJAX_NUM_PROCESSES"],
    process_id=numbers["ANALOGJAX_PROCESS_ID"],
  )


def _message(error: ValueError | OSError) -> str:
  """One line of what happened, and where to look if it is not ours."""
  if isinstance(error, OSError) and error.strerror:
    where = f": {error.filename}" if error.filename else ""
    text = f"{error.strerror} (errno {error.errno}){where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      text += ". Make room and give the same command again: it goes on."
  else:
    text = str(error) or type(error).__name__
  frames = traceback.extract_tb(error.__traceback__)
  ours = os.path.dirname(os.path.abspath(__file__))
  if isinstance(error, ValueError) and not frames[-1].filename.startswith(ours):
    text += " (ANALOGJAX_TRACEBACK=1 shows where this came from)"
  return text


def _near_flag(flag: str) -> str:
  if flag.count(".") and flag.startswith("--"):
    # A misspelt --config.: the rest may well be right.
    return f"Did you mean --config.{flag.partition('.')[2]}?"
  known = ["--config", "--workdir", *CACHE_ACTIONS, "--help", "--version"]
  return _near(flag, known)


def _near(word: str, known: list[str]) -> str:
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."


def _help() -> str:
  lines = [USAGE, "", "commands:"]
  lines += [f"  {name:<9}{what}" for name, what in COMMANDS.items()]
  return "\n".join(
    [
      *lines,
      "",
      "flags:",
      "  --config=FILE     python file with get_config(), e.g. configs/demo.py",
      "  --workdir=DIR     where the run writes; plan needs none",
      "  --config.a.b=c    sets one field of the config; its type is checked",
      "  --inspect         with cache: what it holds, as a table and a picture",
      "  --verify[=ROWS]   with cache: every byte; ROWS are computed anew, too",
      "  --repair          with cache: computes damaged rows again",
      "  --help, --version",
      "",
      "`--flag value` does as well, unless the value begins with --. A run",
      "that was stopped goes on when the same command is given again.",
      "exit codes: 0 done, 2 wrong input, 130 interrupted, 75 start again.",
      "",
      "example: analogjax run --config=configs/demo.py --workdir=runs/demo",
    ]
  )


if __name__ == "__main__":
  sys.exit(main())
