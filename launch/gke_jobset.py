r"""One run as a JobSet of Kubernetes, which starts again by itself.

  python launch/gke_jobset.py --name=ours --image=IMAGE --pods=4 \
    --limit=nvidia.com/gpu=8 --claim=disk:/mnt/ours -- \
    --config=FILE --workdir=DIR [--config.a.b=VALUE ...]

See docs/running/gke.md.
"""

import argparse
from collections.abc import Sequence
import re
import subprocess
import sys
from typing import Any

import arguments

_JOB = "workers"
# The name of a pod is NAME-workers-J-I-xxxxx, a host name of at most 63.
_MOST_LETTERS = 40
# A mistake of the user, ^C and a bug end the same way each time.
_FINAL_CODES = [1, arguments.USER_ERROR, arguments.INTERRUPTED]


def main(argv: Sequence[str]) -> int:
  """Returns the exit code of kubectl."""
  options, line = arguments.read(_parser(), argv)
  text = arguments.to_yaml(manifest(options, line))
  # `create` refuses an existing JobSet of that name; `apply` would try to
  # change it, which is mostly impossible.
  command = ["kubectl", "create", "--filename=-"]
  if options.dry_run:
    print(text, end="")
    print("# ", end="")
    arguments.show(command)
    return arguments.OK
  return subprocess.run(command, input=text, text=True).returncode


def _parser() -> argparse.ArgumentParser:
  parser = arguments.parser_of(__doc__)
  count, number = arguments.number(1), arguments.number(0)
  pair = arguments.pair
  parser.add_argument("--name", type=_name, required=True)
  parser.add_argument("--namespace")
  parser.add_argument("--image", required=True, help="has analogjax in it")
  parser.add_argument(
    "--pods", type=count, required=True, metavar="N", help="of each slice"
  )
  parser.add_argument(
    "--slices", type=count, default=1, metavar="N", help="of TPUs, 1; see docs"
  )
  parser.add_argument(
    "--limit",
    type=pair,
    action="append",
    default=[],
    metavar="RESOURCE=N",
    help="of each pod, e.g. nvidia.com/gpu=8 or google.com/tpu=4",
  )
  parser.add_argument(
    "--node-selector", type=pair, action="append", default=[], metavar="KEY=VAL"
  )
  parser.add_argument(
    "--claim",
    type=_claim,
    action="append",
    default=[],
    metavar="NAME:PATH",
    help="a PersistentVolumeClaim, and where all pods see it",
  )
  parser.add_argument(
    "--env", type=pair, action="append", default=[], metavar="NAME=VALUE"
  )
  parser.add_argument("--service-account")
  parser.add_argument("--max-restarts", type=number, default=100, metavar="N")
  parser.add_argument(
    "--grace-seconds",
    type=count,
    default=120,
    metavar="N",
    help="from SIGTERM to SIGKILL, 120",
  )
  return parser


def manifest(options: argparse.Namespace, line: list[str]) -> dict[str, Any]:
  """The JobSet (jobset.x-k8s.io/v1alpha2, of JobSet 0.6 or later).

  A pod that ends with a code of `_FINAL_CODES` fails its Job for the reason
  PodFailurePolicy, which fails the JobSet. Any other end of a pod, including
  eviction, fails the Job for another reason, and all Jobs are recreated.
  """
  named = {"name": options.name}
  if options.namespace:
    named["namespace"] = options.namespace
  job = {
    "parallelism": options.pods,
    "completions": options.pods,
    "completionMode": "Indexed",
    # One pod alone cannot be restarted: the others have ended, too.
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {
          "action": "FailJob",
          "onExitCodes": {
            "containerName": "analogjax",
            "operator": "In",
            "values": _FINAL_CODES,
          },
        }
      ]
    },
    "template": {"spec": _pod(options, line)},
  }
  found: dict[str, Any] = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": named,
    "spec": {
      "failurePolicy": {
        "maxRestarts": options.max_restarts,
        "rules": [
          {
            "name": "final",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
          }
        ],
      },
      "replicatedJobs": [
        {"name": _JOB, "replicas": options.slices, "template": {"spec": job}}
      ],
    },
  }
  if any(resource == "google.com/tpu" for resource, _ in options.limit):
    # Pods of a Job are one slice: they belong on one node pool, alone.
    found["metadata"]["annotations"] = {
      "alpha.jobset.sigs.k8s.io/exclusive-topology": (
        "cloud.google.com/gke-nodepool"
      )
    }
  return found


def _pod(options: argparse.Namespace, line: list[str]) -> dict[str, Any]:
  container: dict[str, Any] = {
    "name": "analogjax",
    "image": options.image,
    "command": [_literal(word) for word in ("analogjax", "run", *line)],
    "env": _environment(options),
  }
  pod: dict[str, Any] = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": options.grace_seconds,
  }
  if options.service_account:
    pod["serviceAccountName"] = options.service_account
  if options.node_selector:
    pod["nodeSelector"] = dict(options.node_selector)
  if options.limit:
    container["resources"] = {"limits": dict(options.limit)}
  if options.claim:
    # A claim's name may be longer than that of a volume.
    pod["volumes"] = [
      {"name": f"claim{i}", "persistentVolumeClaim": {"claimName": name}}
      for i, (name, _) in enumerate(options.claim)
    ]
    container["volumeMounts"] = [
      {"name": f"claim{i}", "mountPath": path}
      for i, (_, path) in enumerate(options.claim)
    ]
  return {**pod, "containers": [container]}


def _environment(options: argparse.Namespace) -> list[dict[str, Any]]:
  """Variables with which a pod finds the others; see docs/running/gke.md."""
  number = options.pods * options.slices
  found: list[dict[str, Any]] = [
    {"name": "ANALOGJAX_NUM_PROCESSES", "value": str(number)}
  ]
  annotations = {
    "JOBSET_NAME": "jobset-name",
    "REPLICATED_JOB_NAME": "replicatedjob-name",
  }
  if options.slices > 1:
    annotations["JOB_INDEX"] = "job-index"
    found.append({"name": "PROCESSES_IN_JOB", "value": str(options.pods)})
  for name, annotation in annotations.items():
    path = f"metadata.annotations['jobset.sigs.k8s.io/{annotation}']"
    found.append({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
  return found + [
    {"name": name, "value": _literal(value)} for name, value in options.env
  ]


def _literal(text: str) -> str:
  """Escapes for Kubernetes, which would replace $(NAME) and turn $$ into $."""
  return text.replace("$", "$$")


def _name(text: str) -> str:
  # RFC 1123: it becomes a part of host names.
  fits = re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", text)
  if not fits or len(text) > _MOST_LETTERS:
    raise argparse.ArgumentTypeError(
      f"{text!r}: expected at most {_MOST_LETTERS} small letters, digits and -"
    )
  return text


def _claim(text: str) -> tuple[str, str]:
  name, _, path = text.partition(":")
  if not name or not path.startswith("/") or ":" in path:
    raise argparse.ArgumentTypeError(f"{text!r}: expected NAME:/PATH")
  return name, path


if __name__ == "__main__":
  sys.exit(arguments.exit_code(main))
