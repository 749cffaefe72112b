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
import errno
import importlib
import os
from pathlib import Path
import sys
import traceback
from typing import Any

import analogjax
from analogjax.cli import arguments
from analogjax.cli.arguments import Arguments
from analogjax.cli.usage import COMMANDS, USAGE, full_text
from analogjax.distributed import stopping

OK, BUG, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

_GOES_ON = "the same command goes on where it was."


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
    args = arguments.parse(argv)
    with contextlib.ExitStack() as stack:
      if _writes(args):
        unbegun = f"{name}: stopped before it began."
        stack.enter_context(stopping.listening(unbegun))
      member = _join(args, name)
      code = _run(args, stack)
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
      member.sleep_until_losses_are_reported(error)
    code, text = USER_ERROR, f"error: {_message(error)}"
    # Or they would name the one that only heard of it.
    together = getattr(error, "is_another_process", False)
  except Exception as error:
    if member is None:
      raise
    # Of a process that died, what failed here because of it says nothing.
    member.sleep_until_losses_are_reported(error)
    traceback.print_exc()
    code, text = BUG, f"{type(error).__name__}: {error}"
    together = False
  if text:
    print(f"{name}: {text}", file=sys.stderr)
  _leave(member, code, text, together)
  return code


def _writes(args: Arguments) -> bool:
  """Whether it changes what is in the workdir, beside the resolved config."""
  reads = ("plan", *arguments.OF_A_PATH)
  looks = args.action in ("--inspect", "--verify")
  return args.command not in reads and not looks


def _join(args: Arguments, name: str) -> Any:
  """The membership.Member that this process is, or None if it is alone."""
  alone = ("plan", *arguments.OF_A_PATH)
  if args.command in alone or args.action == "--inspect":
    return None  # They need nobody.
  from analogjax.distributed import cluster

  return cluster.join(name, os.environ)


def _leave(member: Any, code: int, text: str, together: bool) -> None:
  """Tells the others; ends the process where an ordinary exit would hang."""
  if member is not None:
    member.leave(code) if together else member.fail(code, text)
  stalled = code == stopping.REQUEUE and not together
  if stalled or (member is not None and code not in (OK, stopping.REQUEUE)):
    # jax would wait for the others, Python for a thread that does not return.
    from analogjax.distributed import cluster

    cluster.exit_now(code)


def _run(args: Arguments, stack: contextlib.ExitStack) -> int:
  """The exit code, where nothing went wrong: not OK if what it judges fails."""
  if args.path is not None:
    module = importlib.import_module(f"analogjax.stages.{args.command}")
    place = {} if args.workdir is None else {"workdir": args.workdir}
    return module.run(args.path, **place, **args.options(args.command))
  from analogjax.config import loading
  from analogjax.distributed import processes

  if args.config is None:
    assert args.workdir is not None
    cfg = loading.read_resolved(args.workdir)
  else:
    cfg = loading.load(args.config, args.overrides)
  if args.command == "run":
    # Before the workdir is touched.
    processes.all_or_none(lambda: _refuse_early(cfg, args))
  if not _writes(args):
    if args.workdir is not None and not args.action:
      loading.save_resolved(cfg, args.workdir)
  else:
    assert args.workdir is not None
    stopping.begin()
    _lock(args.workdir, args.command, stack)
    if args.config is not None:
      workdir = args.workdir
      processes.on_first(lambda: loading.save_resolved(cfg, workdir))
  if args.command != "plan":
    _keep_compiled(args.workdir)
  if args.action:
    module, function = arguments.CACHE_ACTIONS[args.action]
    call = getattr(
      importlib.import_module(f"analogjax.stages.{module}"), function
    )
    more = {"rows": args.rows} if args.action == "--verify" else {}
    call(cfg, args.workdir, **more)
    return OK
  if args.command == "plan":
    return _plan(cfg, args)
  for stage in args.stages:
    processes.stop_if_asked(f"before {stage}")
    module = importlib.import_module(f"analogjax.stages.{stage}")
    module.run(cfg, args.workdir, **args.options(stage))
  return OK


def _refuse_early(cfg: Any, args: Arguments) -> None:
  """Refuses at once what a later stage would refuse after hours."""
  from analogjax.config import schema
  from analogjax.stages import preflight

  assert args.workdir is not None
  preflight.check(schema.to_sections(cfg), args.workdir, args.stages)


def _plan(cfg: Any, args: Arguments) -> int:
  from analogjax.config import schema
  from analogjax.stages import preflight

  plan = importlib.import_module("analogjax.stages.plan")
  options = args.options("plan")
  if refused := preflight.problems(schema.to_sections(cfg), args.workdir):
    options["refused"] = refused
  return plan.run(cfg, args.workdir, **options) or OK


def _lock(workdir: Path, command: str, stack: contextlib.ExitStack) -> None:
  """Keeps other runs out of the workdir; process 0 does for all."""
  from analogjax.cli import progress
  from analogjax.config import loading
  from analogjax.distributed import processes
  from analogjax.workdir import lock

  def take():
    if stack.enter_context(lock.hold(workdir, command)):
      loading.remove_unfinished(workdir)
    else:
      progress.warn(f"{workdir}: no locks here; start one run at a time.")

  processes.on_first(take)


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


if __name__ == "__main__":
  sys.exit(main())
