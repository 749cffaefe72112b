r"""One run as a managed job of SkyPilot, on GPUs of a cloud.

  python launch/skypilot.py --name=ours --accelerators=H100:8 --nodes=2 \
    --image=IMAGE --mount=/mnt/ours=s3://BUCKET/ours -- --config=FILE \
    --workdir=/mnt/ours [--config.a.b=VALUE ...]

See docs/running/skypilot.md.
"""

import argparse
from collections.abc import Sequence
import os
import shlex
import subprocess
import sys
import tempfile
from typing import Any

import arguments

# SkyPilot numbers its nodes, and lists their addresses, one per line.
_JOIN = """\
ANALOGJAX_COORDINATOR="$(head -n 1 <<< "$SKYPILOT_NODE_IPS"):8476"
ANALOGJAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
ANALOGJAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
export ANALOGJAX_COORDINATOR ANALOGJAX_NUM_PROCESSES ANALOGJAX_PROCESS_ID
"""


def main(argv: Sequence[str]) -> int:
  """Returns the exit code of sky."""
  options, line = arguments.read(_parser(), argv)
  text = arguments.to_yaml(task(options, line))
  command = ["sky", "jobs", "launch", "--yes", *options.sky]
  if options.dry_run:
    print(text, end="")
    print("# ", end="")
    arguments.show([*command, "TASK.yaml"])
    return arguments.OK
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "task.yaml")
    with open(path, "w", encoding="utf-8") as file:
      file.write(text)
    return subprocess.run([*command, path]).returncode


def _parser() -> argparse.ArgumentParser:
  parser = arguments.parser_of(__doc__)
  parser.add_argument("--name", required=True)
  parser.add_argument("--accelerators", required=True, metavar="GPU:N")
  parser.add_argument(
    "--nodes", type=arguments.number(1), default=1, metavar="N", help="1"
  )
  parser.add_argument("--infra", help="a cloud, e.g. gcp or aws/us-east-1")
  parser.add_argument("--spot", action="store_true")
  parser.add_argument("--image", help="a container with analogjax in it")
  parser.add_argument(
    "--mount",
    type=arguments.pair,
    action="append",
    default=[],
    metavar="PATH=SOURCE",
    help="a bucket, where all nodes see it",
  )
  parser.add_argument(
    "--setup",
    default="",
    metavar="SHELL",
    help="what each node's shell does once, before the first start",
  )
  parser.add_argument(
    "--sky",
    action="append",
    default=[],
    metavar="FLAG",
    help="one more for `sky jobs launch`, e.g. --sky=--detach-run",
  )
  return parser


def task(options: argparse.Namespace, line: list[str]) -> dict[str, Any]:
  """The task: one process per node, which drives all of its GPUs."""
  resources: dict[str, Any] = {"accelerators": options.accelerators}
  if options.infra:
    resources["infra"] = options.infra
  if options.spot:
    resources["use_spot"] = True
  if options.image:
    resources["image_id"] = f"docker:{options.image}"
  # Lost nodes are replaced anyway. If a node ends with a code, the others are
  # killed, and count as 137 (SkyPilot 0.14.1). So no signal may be listed here,
  # or a user's mistake on several nodes would restart, too.
  resources["job_recovery"] = {"recover_on_exit_codes": [arguments.AGAIN]}
  found: dict[str, Any] = {
    "name": options.name,
    "num_nodes": options.nodes,
    "resources": resources,
  }
  if options.mount:
    found["file_mounts"] = {
      path: {"source": source, "mode": "MOUNT"}
      for path, source in options.mount
    }
  if options.setup:
    found["setup"] = options.setup
  command = shlex.join(["analogjax", "run", *line])
  found["run"] = f"{_JOIN}exec {command}\n"
  return found


if __name__ == "__main__":
  sys.exit(arguments.exit_code(main))
