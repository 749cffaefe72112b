r"""One run on every host of a TPU pod slice, started again by itself.

  python launch/tpu_pod.py --name=ours --zone=ZONE \
    --setup='. venv/bin/activate' -- \
    --config=FILE --workdir=DIR [--config.a.b=VALUE ...]

See docs/running/tpu_pod.md.
"""

import argparse
from collections.abc import Sequence
import os
import secrets
import shlex
import subprocess
import sys
import time

import arguments
import restarts

_POLL_SECONDS = 10
# States of a queued resource that may still become a TPU.
_COMING = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
# gcloud's code if the TPU is gone; a bug in analogjax gives it too. (255 is ssh
# without a connection.)
_MAYBE_GONE = 1

# The command of each host, in a POSIX shell. gcloud repeats a command on a host
# whose connection broke, even if the others have already ended; the folder
# reveals that. When the connection ends, so does standard input, which is the
# signal to save and to release the workdir.
_ON_A_HOST = """\
mkdir "${{TMPDIR:-/tmp}}/analogjax-{attempt}" || exit 75
{setup}exec 3<&0
{line} < /dev/null 3<&- &
run=$!
{{ cat <&3 && kill -TERM $run; }} > /dev/null 2>&1 &
ears=$!
exec 3<&-
code=0
wait $run || code=$?
kill $ears 2> /dev/null
exit $code"""


def main(argv: Sequence[str]) -> int:
  """Returns the code of the run: 75 if it could continue, but not by itself."""
  options, line = arguments.read(_parser(), argv)
  if (options.accelerator_type is None) != (options.runtime_version is None):
    raise ValueError(
      "--accelerator-type and --runtime-version make a TPU together; expected"
      " both or neither."
    )
  if options.spot and not options.accelerator_type:
    raise ValueError("--spot is for a TPU that is made: --accelerator-type.")
  if options.dry_run:
    if options.accelerator_type:
      print("# Where there is no such TPU, or its queued resource is spent:")
      arguments.show(_delete(options))
      arguments.show(_create(options))
      print("# Once it is READY:")
    arguments.show(_ssh(options, line))
    return arguments.OK

  def start():
    if options.accelerator_type and not _is_ready(options):
      _make(options)
    if restarts.asked():
      return arguments.AGAIN, False
    code = _run(_ssh(options, line))
    if code == _MAYBE_GONE and options.accelerator_type:
      return code, not _is_ready(options)
    return code, arguments.starts_again(code)

  return restarts.until_done(start, options)


def _parser() -> argparse.ArgumentParser:
  parser = arguments.parser_of(__doc__)
  parser.add_argument("--name", required=True, help="of the TPU")
  parser.add_argument("--zone", required=True)
  parser.add_argument("--project", help="gcloud's own without it")
  parser.add_argument(
    "--setup",
    default="",
    metavar="SHELL",
    help="what each host's shell does before each start",
  )
  parser.add_argument(
    "--gcloud",
    action="append",
    default=[],
    metavar="FLAG",
    help="one more for `tpu-vm ssh`, e.g. --gcloud=--internal-ip",
  )
  made = parser.add_argument_group(
    "made as a queued resource of the same name where it is not there"
  )
  made.add_argument("--accelerator-type", metavar="TYPE", help="e.g. v5p-128")
  made.add_argument("--runtime-version", metavar="VERSION")
  made.add_argument("--spot", action="store_true")
  restarts.add_options(parser)
  return parser


def _gcloud(options: argparse.Namespace, group: str, verb: str) -> list[str]:
  command = ["gcloud", "compute", "tpus", group, verb, options.name, "--quiet"]
  command.append(f"--zone={options.zone}")
  if options.project:
    command.append(f"--project={options.project}")
  return command


def _ssh(options: argparse.Namespace, line: list[str]) -> list[str]:
  """The gcloud command: the run on all hosts; a new one for each start."""
  command = _ON_A_HOST.format(
    attempt=secrets.token_hex(8),
    setup=f"{options.setup}\n" if options.setup else "",
    line=shlex.join(["analogjax", "run", *line]),
  )
  return [
    *_gcloud(options, "tpu-vm", "ssh"),
    "--worker=all",
    *options.gcloud,
    f"--command={command}",
  ]


def _delete(options: argparse.Namespace) -> list[str]:
  # With the TPU, which a preemption leaves in place.
  return [*_gcloud(options, "queued-resources", "delete"), "--force"]


def _create(options: argparse.Namespace) -> list[str]:
  command = _gcloud(options, "queued-resources", "create")
  command += [
    f"--node-id={options.name}",
    f"--accelerator-type={options.accelerator_type}",
    f"--runtime-version={options.runtime_version}",
  ]
  return [*command, "--spot"] if options.spot else command


def _state(options: argparse.Namespace, group: str, field: str) -> str:
  """A field of the state; "" if there is none, or if gcloud fails."""
  command = [*_gcloud(options, group, "describe"), f"--format=value({field})"]
  return subprocess.run(
    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
  ).stdout.strip()


def _is_ready(options: argparse.Namespace) -> bool:
  return _state(options, "tpu-vm", "state") == "READY"


def _make(options: argparse.Namespace) -> None:
  """Returns once the TPU exists, or this launcher was asked to end."""
  state = _state(options, "queued-resources", "state.state")
  if state not in _COMING:
    if state:
      arguments.say(f"queued resource {options.name} is {state}: made again.")
      subprocess.run(_delete(options), stdin=subprocess.DEVNULL, check=False)
    made = subprocess.run(_create(options), stdin=subprocess.DEVNULL)
    if made.returncode:
      raise ValueError(
        f"gcloud could not make the queued resource {options.name} (code"
        f" {made.returncode}); it has said why."
      )
  while not restarts.asked() and not _is_ready(options):
    state = _state(options, "queued-resources", "state.state")
    if state and state not in (*_COMING, "ACTIVE"):
      raise ValueError(
        f"queued resource {options.name}: expected a TPU, found {state};"
        " `gcloud compute tpus queued-resources describe` says why."
      )
    restarts.sleep(_POLL_SECONDS)


def _run(command: list[str]) -> int:
  """Runs it until it ends; if asked to end, closes its standard input."""
  # Nothing is ever written: the hosts listen for its end. All ssh of gcloud
  # share it, and it ends with this process, however that ends.
  listened, kept = os.pipe()
  try:
    process = subprocess.Popen(command, stdin=listened, start_new_session=True)
  finally:
    os.close(listened)
  open_ = True
  while process.poll() is None:
    if restarts.asked() and open_:
      os.close(kept)
      open_ = False
    time.sleep(restarts.POLL_SECONDS)
  if open_:
    os.close(kept)
  code = process.returncode
  return 128 - code if code < 0 else code


if __name__ == "__main__":
  sys.exit(arguments.exit_code(main))
