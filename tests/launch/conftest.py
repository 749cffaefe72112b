"""Starts launchers as a user does, with stand-ins for their programs."""

import dataclasses
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import types

import pytest

ROOT = Path(__file__).parents[2]

# Texts that a shell, YAML, Kubernetes or a tool on the way might interpret.
# Each comes as a value of an override.
HOSTILE = (
  "two words",
  "'single' \"double\" \\'\\\"",
  "$(touch executed) `touch executed` ${HOME} $HOME $$ $$(HOME) $(HOME) $",
  "; touch executed; # & | < > && || ! !! * ? [a-z] {a,b} ~",
  "first\nsecond\n\n  third: [x]\n",
  "\ttab, a return\r and the end\\",
  "%s %d %%n {0} {command} {{x}} --- : - x",
  "--dry-run",
  "",
  "caf\u00e9 \u2028 \U0001f600",
)
LINE = (
  *("--config=a b.py", "--workdir=/mnt/it's"),
  *(f"--config.data.arguments.x{i}={v}" for i, v in enumerate(HOSTILE)),
)

# Stands for analogjax: writes down what it was given, then does as PROBE says.
_PROBE = """#!{python}
import json, os, pathlib, signal, sys, time
folder = pathlib.Path({folder!r})
me = os.environ.get("ANALOGJAX_PROCESS_ID", "0")
start = 1 + len(list(folder.glob(f"*-{{me}}.json")))
names = [n for n in os.environ if n.startswith(("ANALOGJAX_", "CUDA_"))]
said = dict(arguments=sys.argv[1:], pid=os.getpid())
said["environment"] = dict((n, os.environ[n]) for n in names)
def asked(*_):
  sys.exit(75)
signal.signal(signal.SIGTERM, asked)
path = folder / f"{{start}}-{{me}}.json"
path.with_suffix(".part").write_text(json.dumps(said))
path.with_suffix(".part").rename(path)
plan = os.environ.get("PROBE", "0").split(",")
does = plan[min(start, len(plan)) - 1]
if does == "wait":
  time.sleep(60)
elif does.startswith("kill") and me == does[4:]:
  os.kill(os.getpid(), signal.SIGKILL)
sys.exit(75 if does.startswith("kill") else int(does))
"""


@dataclasses.dataclass(frozen=True)
class Probe:
  """A program called analogjax in a separate folder."""

  folder: Path

  @property
  def path(self):
    return f"{self.folder}:{os.environ['PATH']}"

  def said(self):
    """The input of each start: (start, process) -> dict."""
    found = {}
    for path in sorted(self.folder.glob("*.json")):
      start, process = map(int, path.stem.split("-"))
      found[start, process] = json.loads(path.read_text())
    return found

  def lines(self):
    return [said["arguments"] for said in self.said().values()]


@pytest.fixture(autouse=True)
def outside_of_a_run(monkeypatch):
  """Other tests of this worker may have named a cache of compiled programs."""
  for name in [n for n in os.environ if n.startswith("ANALOGJAX_")]:
    monkeypatch.delenv(name)


@pytest.fixture
def probe(tmp_path):
  folder = tmp_path / "probe"
  folder.mkdir()
  program = folder / "analogjax"
  program.write_text(_PROBE.format(python=sys.executable, folder=str(folder)))
  program.chmod(0o755)
  # A launcher takes the program beside this Python.
  (folder / "python").symlink_to(os.path.realpath(sys.executable))
  return Probe(folder)


def start(name, *arguments, python=sys.executable, **how):
  """A running launcher; its standard output and error are pipes."""
  return subprocess.Popen(
    [python, ROOT / "launch" / name, *arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    **how,
  )


def launch(name, *arguments, code=0, **how):
  """Runs a launcher to its end; returns (stdout, stderr)."""
  process = start(name, *arguments, **how)
  try:
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  # Not as text: that would make line feeds of carriage returns.
  out, err = out.decode(), err.decode()
  assert process.returncode == code, out + err
  return out, err


def in_a_container(words, environment):
  """A command in a container, after Kubernetes replaced $(NAME) and $$ in it.

  Source: Kubernetes API reference, Container v1 core, `command`.
  """

  def replace(match):
    name = match[1]
    if name is None:
      return "$"
    return environment.get(name, match[0])

  pattern = r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)"
  return [re.sub(pattern, replace, word) for word in words]


@pytest.fixture
def kit():
  return types.SimpleNamespace(
    line=list(LINE), start=start, launch=launch, in_a_container=in_a_container
  )
