r"""One run on TPUs of a GKE cluster that xpk made, through xpk.

  python launch/gke_xpk.py --name=ours --cluster=CLUSTER --tpu-type=v5p-128 \
    --image=IMAGE -- --config=FILE --workdir=DIR [--config.a.b=VALUE ...]

See docs/running/gke.md.
"""

import argparse
from collections.abc import Sequence
import re
import subprocess
import sys

import arguments


def main(argv: Sequence[str]) -> int:
  """Returns the exit code of xpk."""
  options, line = arguments.read(_parser(), argv)
  command = _command(options, line)
  if options.dry_run:
    arguments.show(command)
    return arguments.OK
  return subprocess.run(command).returncode


def _parser() -> argparse.ArgumentParser:
  parser = arguments.parser_of(__doc__)
  parser.add_argument("--name", required=True, help="of the workload")
  parser.add_argument("--cluster", required=True)
  parser.add_argument("--project", help="gcloud's own without it")
  parser.add_argument("--zone", help="gcloud's own without it")
  parser.add_argument("--tpu-type", required=True, metavar="TYPE")
  parser.add_argument(
    "--slices", type=arguments.number(1), default=1, metavar="N", help="1"
  )
  parser.add_argument("--image", required=True, help="has analogjax in it")
  parser.add_argument(
    "--max-restarts", type=arguments.number(0), default=100, metavar="N"
  )
  parser.add_argument(
    "--grace-seconds",
    type=arguments.number(1),
    default=120,
    metavar="N",
    help="from SIGTERM to SIGKILL, 120",
  )
  parser.add_argument(
    "--xpk",
    action="append",
    default=[],
    metavar="FLAG",
    help="one more for `xpk workload create`, e.g. --xpk=--priority=high",
  )
  return parser


def _command(options: argparse.Namespace, line: list[str]) -> list[str]:
  where = {"project": options.project, "zone": options.zone}
  return [
    *("xpk", "workload", "create"),
    f"--workload={options.name}",
    f"--cluster={options.cluster}",
    *(f"--{name}={value}" for name, value in where.items() if value),
    f"--tpu-type={options.tpu_type}",
    f"--num-slices={options.slices}",
    f"--docker-image={options.image}",
    f"--max-restarts={options.max_restarts}",
    # Beside 42 and 127 to 255, on which xpk restarts by itself.
    f"--restart-on-exit-codes={arguments.AGAIN}",
    f"--termination-grace-period-seconds={options.grace_seconds}",
    *options.xpk,
    # exec: xpk sends SIGTERM to the shell that it starts for this.
    "--command=exec " + " ".join(map(_word, ["analogjax", "run", *line])),
  ]


def _word(text: str) -> str:
  """A bash word that survives xpk's processing.

  xpk puts the command into one line of a YAML block, and Kubernetes replaces
  $(NAME) and $$ in it. So every byte must be printable ASCII other than $. The
  first $ of $'...' is followed by neither.
  """
  if re.fullmatch(r"[\w./:=,@%+-]+", text, re.ASCII):
    return text
  escaped = "".join(
    chr(byte)
    if 32 <= byte < 127 and chr(byte) not in "\\'$"
    else rf"\x{byte:02x}"
    for byte in text.encode()
  )
  return f"$'{escaped}'"


if __name__ == "__main__":
  sys.exit(arguments.exit_code(main))
