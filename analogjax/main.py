"""The command line: analogjax <command> --config=FILE --workdir=DIR [...].

Reads the arguments and the config, saves the resolved config and hands over to
a stage. Whatever brings jax with it is imported once the arguments are known
to be good, so that help and wrong arguments are answered at once.

Environment (read here only):

- ANALOGJAX_TRACEBACK=1: errors of the user come with their traceback.
- ANALOGJAX_COMPILATION_CACHE=DIR: compiled programs are kept there, not in the
  workdir.
- ANALOGJAX_COORDINATOR=HOST:PORT, ANALOGJAX_NUM_PROCESSES=N and
  ANALOGJAX_PROCESS_ID=I: this process is number I of N. Without them the
  launcher's variables say so; ANALOGJAX_CLUSTER=none does not look for them.
"""

from collections.abc import Sequence
import contextlib
import difflib
import errno
import importlib
import os
from pathlib import Path
import re
import sys
import traceback
from typing import Any, NamedTuple

import analogjax
from analogjax import stopping
from analogjax.usage import COMMANDS, USAGE, full_text

NOT_BUILT = ("release", "verify")
# What `cache` can do instead of filling it: flag -> (module, function).
CACHE_ACTIONS = {
  "--inspect": ("inspect_cache", "run"),
  "--verify": ("verify_cache", "run"),
  "--repair": ("cache", "repair"),
}
# What `plan` takes beside; the first may be repeated.
PLAN_FLAGS = ("--topology", "--png", "--search", "--json")
MEASURE_FLAGS = ("--quick", "--only")
INTERVENE_FLAGS = ("--vector", "--behaviour")
RUN_STAGES = ("cache", "train", "measure", "export", "summary")

OK, BUG, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

_WITH_VALUE = ("--config", "--workdir", "--profile", "--only")
_WITH_VALUE += ("--topology", "--png", *INTERVENE_FLAGS)

_GOES_ON = "the same command goes on where it was."


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
  profile: range | None = None  # --profile=A:B: steps that are traced.
  plan: tuple[tuple[str, Any], ...] = ()  # Arguments of stages/plan.py's `run`.
  measure: tuple[tuple[str, Any], ...] = ()  # Of stages/measure.py's.
  intervene: tuple[tuple[str, Any], ...] = ()  # Of stages/intervene.py's.


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns the exit code.

  0 done, 2 an error that the user can mend, 75 start again, 130 interrupted.
  Anything unexpected leaves as an exception, with its traceback; where this is
  one of several processes, as exit code 1, so that the others hear of it.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv:
    print(f"{USAGE}\nanalogjax --help says more.", file=sys.stderr)
    return USER_ERROR
  if "-h" in argv or "--help" in argv:
    print(full_text())
    return OK
  if "--version" in argv:
    print(f"analogjax {analogjax.__version__}")
    return OK

  name = f"analogjax {argv[0]}" if argv[0] in COMMANDS else "analogjax"
  code, text = OK, ""
  together = True  # The other processes, if there are any, end like this one.
  member = None
  try:
    args = parse(argv)
    with contextlib.ExitStack() as stack:
      if _writes(args):
        unbegun = f"{name}: stopped before it began."
        stack.enter_context(stopping.listening(unbegun))
      member = _join(args, name)
      _run(args, stack)
  except KeyboardInterrupt:
    code, text = INTERRUPTED, "interrupted; the same command goes on."
    together = False
  except stopping.Stopped as stopped:
    code, text = stopping.REQUEUE, f"stopped, {stopped}; {_GOES_ON}"
  except stopping.Stalled as stalled:
    code, text = stopping.REQUEUE, f"{stalled}; {_GOES_ON}"
    together = False
  except (ValueError, OSError) as error:
    if os.environ.get("ANALOGJAX_TRACEBACK") == "1":
      traceback.print_exc()
    if member is not None:
      member.wait_for_the_cause(error)
    code, text = USER_ERROR, f"error: {_message(error)}"
    # Or they would name the one that only heard of it.
    together = getattr(error, "is_another_process", False)
  except Exception as error:
    if member is None:
      raise
    # Of a process that died, what failed here because of it says nothing.
    member.wait_for_the_cause(error)
    traceback.print_exc()
    code, text = BUG, f"{type(error).__name__}: {error}"
    together = False
  if text:
    print(f"{name}: {text}", file=sys.stderr)
  _leave(member, code, text, together)
  return code


def _writes(args: Arguments) -> bool:
  """Whether it changes what is in the workdir, beside the resolved config."""
  return args.command != "plan" and args.action not in ("--inspect", "--verify")


def _join(args: Arguments, name: str) -> Any:
  """The membership.Member that this process is, or None if it is alone."""
  if args.command == "plan" or args.action == "--inspect":
    return None  # They need nobody.
  from analogjax import membership

  return membership.join(name, os.environ)


def _leave(member: Any, code: int, text: str, together: bool) -> None:
  """Tells the others; ends the process where an ordinary exit would hang."""
  if member is not None:
    member.leave(code) if together else member.fail(code, text)
  stalled = code == stopping.REQUEUE and not together
  if stalled or (member is not None and code not in (OK, stopping.REQUEUE)):
    # jax would wait for the others, Python for a thread that does not return.
    from analogjax import membership

    membership.exit_now(code)


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
  topologies: list[str] = []
  switches: set[str] = set()
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
    if flag in ("--search", "--json", "--quick"):
      if equals:
        raise UsageError(f"{word}: expected {flag}, without a value.")
      switches.add(flag)
      continue
    if flag not in _WITH_VALUE and not (
      flag.startswith("--config.") and flag != "--config."
    ):
      raise UsageError(f"unknown flag {flag}. {_near_flag(flag)}")
    if not equals:
      if not rest or rest[0].startswith("--"):
        raise UsageError(f"{flag} needs a value: {flag}=VALUE.")
      value = rest.pop(0)
    if flag.startswith("--config."):
      overrides.append((flag.removeprefix("--config."), value))
    elif flag == "--topology" and value:
      topologies.append(value)
    elif flag in flags:
      raise UsageError(f"{flag} is given twice: {flags[flag]} and {value}.")
    elif not value:
      what = {"--profile": "A:B", "--topology": "NAME"}.get(flag, "PATH")
      raise UsageError(f"{flag} is empty; expected {flag}={what}.")
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
  needed += ["--vector"] if command == "intervene" else []
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
  if "--profile" in flags and command not in ("train", "run"):
    raise UsageError(
      "--profile is for `train` and `run`, whose steps it traces."
    )
  given = (switches | (flags.keys() & {"--png"})) - {"--quick"}
  given |= {"--topology"} if topologies else set()
  if given and command != "plan":
    raise UsageError(f"{min(given)} is for `plan`.")
  if not topologies and (alone := given & {"--search", "--png"}):
    raise UsageError(f"{min(alone)} needs --topology=NAME: machines.")
  if "--quick" in switches and command not in ("measure", "run"):
    raise UsageError("--quick is for `measure` and `run`.")
  asked = [flag for flag in INTERVENE_FLAGS if flag in flags]
  if asked and command != "intervene":
    raise UsageError(f"{asked[0]} is for `intervene`.")
  if "--only" in flags and command != "measure":
    raise UsageError("--only is for `measure`.")
  measure: dict[str, Any] = {"quick": True} if "--quick" in switches else {}
  if "--only" in flags:
    measure["only"] = tuple(flags["--only"].split(","))
  return Arguments(
    command=command,
    config=flags.get("--config"),
    workdir=Path(flags["--workdir"]) if "--workdir" in flags else None,
    overrides=tuple(overrides),
    action=action,
    rows=int(value or 0),
    profile=_steps(flags.get("--profile")),
    plan=tuple(_plan(topologies, switches, flags.get("--png")).items()),
    measure=tuple(measure.items()),
    intervene=tuple((flag[2:], flags[flag]) for flag in asked),
  )


def _plan(
  topologies: list[str], switches: set[str], png: str | None
) -> dict[str, Any]:
  """What was asked of a plan; what was not is left out."""
  asked: dict[str, Any] = {}
  if topologies:
    asked["topologies"] = tuple(topologies)
  if "--search" in switches:
    asked["searches"] = True
  if "--json" in switches:
    asked["as_json"] = True
  if png is not None:
    asked["png"] = Path(png)
  return asked


def _steps(text: str | None) -> range | None:
  """Of --profile=A:B, both ends included."""
  if text is None:
    return None
  match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
  first, last = map(int, match.groups()) if match else (0, 0)
  if not 1 <= first <= last:
    raise UsageError(
      f"--profile={text}: expected A:B, the first and the last step to trace,"
      " counted from 1, e.g. --profile=20:22."
    )
  return range(first, last + 1)


def _run(args: Arguments, stack: contextlib.ExitStack) -> None:
  from analogjax import config_files, hosts

  if args.config is None:
    assert args.workdir is not None
    cfg = config_files.read_resolved(args.workdir)
  else:
    cfg = config_files.load(args.config, args.overrides)
  if not _writes(args):
    if args.workdir is not None and not args.action:
      config_files.save_resolved(cfg, args.workdir)
  else:
    assert args.workdir is not None
    stopping.begin()
    _lock(args.workdir, args.command, stack)
    if args.config is not None:
      workdir = args.workdir
      hosts.on_first(lambda: config_files.save_resolved(cfg, workdir))
  if args.command != "plan":
    _keep_compiled(args.workdir)
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
    hosts.stop_if_asked(f"before {stage}")
    module = importlib.import_module(f"analogjax.stages.{stage}")
    traces = stage == "train" and args.profile is not None
    more = {"profile": args.profile} if traces else dict(args.plan)
    more |= dict(args.measure) if stage == "measure" else {}
    more |= dict(args.intervene)
    module.run(cfg, args.workdir, **more)


def _lock(workdir: Path, command: str, stack: contextlib.ExitStack) -> None:
  """Keeps other runs out of the workdir; process 0 does for all."""
  from analogjax import config_files, hosts, lock, progress

  def take():
    if stack.enter_context(lock.hold(workdir, command)):
      config_files.remove_unfinished(workdir)
    else:
      progress.warn(f"{workdir}: no locks here; start one run at a time.")

  hosts.on_first(take)


def _keep_compiled(workdir: Path | None) -> None:
  """Compiled programs are kept, so that a restart need not make them again."""
  named = os.environ.get("ANALOGJAX_COMPILATION_CACHE")
  if named is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  import jax

  folder = named or str((workdir or Path()) / "compiled")
  jax.config.update("jax_compilation_cache_dir", folder)


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
  known = ["--config", "--workdir", "--profile", *CACHE_ACTIONS, *PLAN_FLAGS]
  known += [*MEASURE_FLAGS, *INTERVENE_FLAGS, "--help", "--version"]
  return _near(flag, known)


def _near(word: str, known: list[str]) -> str:
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
  return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."


if __name__ == "__main__":
  sys.exit(main())
