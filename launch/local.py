"""One run as several processes on this machine, started again by itself.

  python launch/local.py --processes=2 -- --config=FILE --workdir=DIR [...]

See docs/running/local.md.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import arguments
import restarts

# Longer than processes need to notice that one of them is gone (40 s).
_GRACE_SECONDS = 120
_KILL_SECONDS = 30


def main(argv: Sequence[str]) -> int:
  """Returns the code of the run: 75 if it could continue, but not by itself."""
  options, line = arguments.read(_parser(), argv)
  command = [_program(), "run", *line]
  gpus = _gpus(options)
  if options.dry_run:
    port = options.port or _free_port()
    for i in range(options.processes):
      more = _variables(options.processes, i, port, gpus)
      print(*(f"{k}={shlex.quote(v)}" for k, v in more.items()), end=" ")
      arguments.show(command)
    return arguments.OK

  def start():
    code = _run(command, options, gpus)
    return code, code == arguments.AGAIN

  return restarts.until_done(start, options)


def _parser() -> argparse.ArgumentParser:
  parser = arguments.parser_of(__doc__)
  count = arguments.number(1)
  parser.add_argument("--processes", type=count, required=True, metavar="N")
  parser.add_argument(
    "--gpus-per-process",
    type=count,
    metavar="N",
    help="shares out CUDA_VISIBLE_DEVICES; without it each takes all GPUs",
  )
  parser.add_argument(
    "--port",
    type=count,
    metavar="N",
    help="where process 0 listens; a free one without it",
  )
  restarts.add_options(parser)
  return parser


def _program() -> str:
  """The analogjax of this Python, before another one on the PATH."""
  path = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
  )
  found = shutil.which("analogjax", path=path)
  if found is None:
    raise ValueError(
      f"there is no analogjax beside {sys.executable} or on the PATH; install"
      " it (docs/running.md), or use the Python that has it."
    )
  return found


def _gpus(options: argparse.Namespace) -> list[str] | None:
  """CUDA_VISIBLE_DEVICES of each process, if they are shared out."""
  each = options.gpus_per_process
  if each is None:
    return None
  needed = each * options.processes
  seen = os.environ.get("CUDA_VISIBLE_DEVICES")
  names = [str(i) for i in range(needed)] if seen is None else seen.split(",")
  if len(names) < needed:
    raise ValueError(
      f"CUDA_VISIBLE_DEVICES={seen!r}: expected {needed} of them, for"
      f" {options.processes} processes with --gpus-per-process={each}."
    )
  return [",".join(names[i : i + each]) for i in range(0, needed, each)]


def _variables(
  count: int, i: int, port: int, gpus: list[str] | None
) -> dict[str, str]:
  """Variables that describe the cluster to process i."""
  found = {
    "ANALOGJAX_COORDINATOR": f"localhost:{port}",
    "ANALOGJAX_NUM_PROCESSES": str(count),
    "ANALOGJAX_PROCESS_ID": str(i),
  }
  if gpus is not None:
    found["CUDA_VISIBLE_DEVICES"] = gpus[i]
  return found


def _run(
  command: list[str], options: argparse.Namespace, gpus: list[str] | None
) -> int:
  """Starts all processes once, and returns the code of all."""
  # In use for a while after it is closed, so each start takes another one.
  port = options.port or _free_port()
  # In separate sessions: a terminal's ^C comes only through this process, and
  # so only once.
  processes = [
    subprocess.Popen(
      command,
      env=os.environ | _variables(options.processes, i, port, gpus),
      start_new_session=True,
    )
    for i in range(options.processes)
  ]
  forwarded, first_bad, codes = 0, None, {}
  try:
    while len(codes) < len(processes):
      for i, process in enumerate(processes):
        if i not in codes and process.poll() is not None:
          codes[i] = process.returncode
          if process.returncode:
            first_bad = first_bad or time.monotonic()
            arguments.say(f"process {i} ended with {process.returncode}.")
      if restarts.asked() != forwarded:
        forwarded = restarts.asked()
        _send(processes, forwarded)
      # Processes that never joined do not hear of the others.
      late = time.monotonic() - (first_bad or time.monotonic())
      if late > _GRACE_SECONDS + _KILL_SECONDS:
        _send(processes, signal.SIGKILL)
      elif late > _GRACE_SECONDS:
        _send(processes, signal.SIGTERM)
      time.sleep(restarts.POLL_SECONDS)
  finally:
    _send(processes, signal.SIGKILL)  # If this process fails.
  return _together(list(codes.values()))


def _together(codes: list[int]) -> int:
  """The code of all: the first that forbids a restart, or 75, or 0.

  `codes` are those of subprocess, -N for signal N, in order of time.
  """
  failed = [128 - code if code < 0 else code for code in codes if code]
  final = [code for code in failed if not arguments.starts_again(code)]
  return final[0] if final else arguments.AGAIN if failed else arguments.OK


def _send(processes: list[subprocess.Popen], number: int) -> None:
  for process in processes:
    process.send_signal(number)  # Nothing, if that was waited for.


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


if __name__ == "__main__":
  sys.exit(arguments.exit_code(main))
