"""The command line: analogjax <command> --config=FILE --workdir=DIR [...].

Reads the arguments and the config, saves the resolved config and runs the
stages. Modules that import jax are imported only once the arguments are valid,
so that help and errors appear at once.

Environment (read here only):

- ANALOGJAX_TRACEBACK=1: errors of the user are shown with their traceback.
- ANALOGJAX_COMPILATION_CACHE=DIR: compiled programs are kept there, not in the
  workdir.
- ANALOGJAX_COORDINATOR=HOST:PORT, ANALOGJAX_NUM_PROCESSES=N and
  ANALOGJAX_PROCESS_ID=I: this process is number I of N. Without them the
  launcher's variables say so; ANALOGJAX_CLUSTER=none does not look for them.
"""

from collections.abc import Sequence
import contextlib
import errno
import glob
import importlib
import importlib.util
import os
from pathlib import Path
import select
import sys
import traceback
from typing import Any

import analogjax
from analogjax.cli import arguments
from analogjax.cli.arguments import USAGE, Arguments
from analogjax.cli.commands import CACHE_ACTIONS, COMMANDS, PATHS
from analogjax.distributed import stopping

OK, BUG, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

_RESUME = "give the same command again to resume."


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns the exit code.

  0 done, 2 an error that the user can fix, 75 start again, 130 interrupted. An
  unexpected error leaves as an exception, with its traceback; if this is one of
  several processes, as exit code 1, so that the others learn of it.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    code = _help(argv)
    code = _command(argv) if code is None else code
    sys.stdout.flush()
  except BrokenPipeError:
    if not _is_closed(sys.stdout):
      raise
    code = OK  # As in `analogjax --help | head -1`.
  return code


def _help(argv: Sequence[str]) -> int | None:
  """The exit code if only help or the version was asked for."""
  if not argv:
    print(f"{USAGE}\nanalogjax --help says more.", file=sys.stderr)
    return USER_ERROR
  if "-h" in argv or "--help" in argv:
    command = next((word for word in argv if word in COMMANDS), "")
    print(arguments.help_text(command))
    return OK
  if "--version" in argv:
    print(f"analogjax {analogjax.__version__}")
    return OK
  return None


def _is_closed(stream: Any) -> bool:
  """Whether the reader of a stream is gone; later output is then discarded."""
  try:
    descriptor = stream.fileno()
  except OSError:
    return False  # Not a file of the system, as in tests.
  poll = select.poll()
  poll.register(descriptor, 0)
  if not any(event & select.POLLERR for _, event in poll.poll(0)):
    return False
  # Otherwise Python complains when it flushes the stream at exit.
  os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
  return True


def _command(argv: Sequence[str]) -> int:
  name = f"analogjax {argv[0]}" if argv[0] in COMMANDS else "analogjax"
  code, text = OK, ""
  together = True  # The other processes, if there are any, end like this one.
  member = None
  try:
    args = arguments.parse(argv)
    with contextlib.ExitStack() as stack:
      if _writes(args):
        early = f"{name}: stopped before it began."
        stack.enter_context(stopping.listening(early))
      member = _join(args, name)
      code = _run(args, stack)
  except KeyboardInterrupt:
    code, text = INTERRUPTED, f"interrupted; {_RESUME}"
    together = False
  except stopping.Stopped as stopped:
    code, text = stopping.REQUEUE, f"stopped, {stopped}; {_RESUME}"
  except stopping.Stalled as stalled:
    code, text = stopping.REQUEUE, f"{stalled}; {_RESUME}"
    together = False
  except (ValueError, OSError) as error:
    if not (isinstance(error, BrokenPipeError) and _is_closed(sys.stdout)):
      code, text = USER_ERROR, _refusal(error, member)
      # Otherwise they would name the one that only heard of it.
      together = getattr(error, "is_another_process", False)
  except Exception as error:
    if member is None:
      raise
    # If another process died, an error here that follows from it is no news.
    member.sleep_until_losses_are_reported(error)
    traceback.print_exc()
    code, text = BUG, f"{type(error).__name__}: {error}"
    together = False
  if text:
    print(f"{name}: {text}", file=sys.stderr)
  _leave(member, code, text, together)
  return code


def _refusal(error: ValueError | OSError, member: Any) -> str:
  """The message for an error that the user can fix."""
  if os.environ.get("ANALOGJAX_TRACEBACK") == "1":
    traceback.print_exc()
  if member is not None:
    member.sleep_until_losses_are_reported(error)
  return f"error: {_message(error)}"


def _writes(args: Arguments) -> bool:
  """Whether it changes the workdir, apart from the resolved config."""
  return args.command not in ("plan", "config", *PATHS) and not args.looks


def _join(args: Arguments, name: str) -> Any:
  """The membership.Member of this process, or None if it is alone."""
  alone = ("plan", "config", *PATHS)
  if args.command in alone or args.action == "--inspect":
    return None  # They need nobody.
  from analogjax.distributed import cluster

  return cluster.join(name, os.environ)


def _leave(member: Any, code: int, text: str, together: bool) -> None:
  """Tells the others; ends the process if an ordinary exit would hang."""
  if member is not None:
    member.leave(code) if together else member.fail(code, text)
  stalled = code == stopping.REQUEUE and not together
  if stalled or (member is not None and code not in (OK, stopping.REQUEUE)):
    # jax would wait for the others, Python for a thread that does not return.
    from analogjax.distributed import cluster

    cluster.exit_now(code)


def _run(args: Arguments, stack: contextlib.ExitStack) -> int:
  """The exit code if nothing went wrong: not OK if what it judges fails."""
  if args.command == "completion":
    from analogjax.cli import completion

    print(completion.script(str(args.path)))
    return OK
  if args.command == "config":
    from analogjax.config import show

    options = args.options("config")
    print(*show.lines(*args[1:4], **options), sep="\n")
    return OK
  _leave_libtpu_alone()
  if args.path is not None:
    module = _stage(args.command)
    place = {} if args.workdir is None else {"workdir": args.workdir}
    return module.run(args.path, **place, **args.options(args.command))
  return _run_stages(args, stack)


def _run_stages(args: Arguments, stack: contextlib.ExitStack) -> int:
  """Runs the stages of a config in a workdir, or an action on its cache."""
  from analogjax.config import loading
  from analogjax.distributed import processes

  workdir = args.workdir
  if args.config is None:
    assert workdir is not None
    found = loading.Resolved(loading.read_resolved(workdir), {}, [])
  else:
    found = loading.resolve(args.config, args.overrides, workdir)
  options = {} if args.action else _checked_options(args, found.cfg)
  # Everything that could be refused before the workdir changes was refused.
  if _writes(args):
    assert workdir is not None
    stopping.begin()
    _lock(workdir, args.command, stack)
  if workdir is not None and args.config and not args.looks:
    processes.on_first(lambda: _save(found, workdir))
  if args.command != "plan":
    _keep_compiled(workdir)
  if args.action:
    module, function = CACHE_ACTIONS[args.action]
    more = {"rows": args.rows} if args.action == "--verify" else {}
    getattr(_stage(module), function)(found.cfg, workdir, **more)
  code = OK
  for stage, given in options.items():
    processes.stop_if_asked(f"before {stage}")
    code = _stage(stage).run(found.cfg, workdir, **given) or code
  return code


def _checked_options(args: Arguments, cfg: Any) -> dict[str, dict[str, Any]]:
  """Keyword arguments by stage, once nothing more can be refused early.

  Raises:
    ValueError: a stage would refuse something, perhaps after hours.
  """
  from analogjax.config import schema
  from analogjax.distributed import processes

  options = {stage: args.options(stage) for stage in args.stages}
  if args.command in ("plan", "run"):
    from analogjax.stages import preflight

    sections, workdir = schema.to_sections(cfg), args.workdir
    if args.command == "plan":
      if refused := preflight.problems(sections, workdir):
        options["plan"]["refused"] = refused
    else:
      assert workdir is not None
      processes.all_or_none(
        lambda: preflight.check(sections, workdir, args.stages)
      )
  for stage, given in options.items():
    check = getattr(_stage(stage), "check", None)
    if check is not None:
      check(cfg, args.workdir, **given)
  return options


def _save(found: Any, workdir: Path) -> None:
  """Saves a `loading.Resolved`, and prints which defaults it kept."""
  from analogjax.config import loading

  for line in found.kept:
    print(line, file=sys.stderr)
  loading.save_resolved(found.cfg, workdir, found.origin)


def _stage(name: str) -> Any:
  """The module of a stage, which imports jax."""
  return importlib.import_module(f"analogjax.stages.{name}")


def _lock(workdir: Path, command: str, stack: contextlib.ExitStack) -> None:
  """Keeps other runs out of the workdir; process 0 acts for all."""
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


def _leave_libtpu_alone() -> None:
  """Keeps jax from libtpu if there is no TPU, because it would complain.

  It may be installed anyway, for `plan` and for tests. Beside a GPU jax makes
  the choice.
  """
  devices = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*")
  if "JAX_PLATFORMS" in os.environ or any(map(glob.glob, devices)):
    return
  if importlib.util.find_spec("libtpu") is not None:
    import jax

    jax.config.update("jax_platforms", "cpu")


def _keep_compiled(workdir: Path | None) -> None:
  """Keeps compiled programs, so that a restart need not make them again."""
  named = os.environ.get("ANALOGJAX_COMPILATION_CACHE")
  if named is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  import jax

  folder = named or str((workdir or Path()) / "compiled")
  jax.config.update("jax_compilation_cache_dir", folder)


def _message(error: ValueError | OSError) -> str:
  """One line about the error, and where to look if it is not ours."""
  if isinstance(error, OSError) and error.strerror:
    where = f": {error.filename}" if error.filename else ""
    text = f"{error.strerror} (errno {error.errno}){where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      text += f". Make room, then {_RESUME.removesuffix('.')}."
  else:
    text = str(error) or type(error).__name__
  frames = traceback.extract_tb(error.__traceback__)
  ours = os.path.dirname(os.path.abspath(__file__))
  if isinstance(error, ValueError) and not frames[-1].filename.startswith(ours):
    text += " (ANALOGJAX_TRACEBACK=1 shows where this came from)"
  return text


if __name__ == "__main__":
  sys.exit(main())
