"""What becomes of each command in the pages: it is run, or as far as it can be.

| program | what is done |
| --- | --- |
| analogjax | the arguments are parsed and the config loaded; `plan` and the \
looks at a cache are run |
| make | `make -n`; what it would run of ours is checked in its turn |
| a script below launch/ | run with `--dry-run` as its first argument; what \
it passes on is checked as that of `analogjax run` |
| python | the script's own parser reads the arguments, and stops it there |
| bash, sh, sbatch | `bash -n` of the script; below launch/ as above |
| docker, podman | the files that are named exist; nothing is built |
| pip, pytest, ruff ... | flags are those of `--help`; files and extras exist |
| srun, mpirun and the like | the command of ours that they start is checked |

Whatever else a page may say stands in UNCHECKED with the reason, or fails.
"""

from collections.abc import Sequence
import functools
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

from docs_pages import ROOT
from packaging.requirements import Requirement

from analogjax import main
from analogjax.cli.arguments import Arguments, parse
from analogjax.config import loading

# Programs that start a command of ours, which is searched for among their
# arguments.
STARTERS = ("srun", "mpirun", "env", "nohup", "timeout", "gcloud")
# Programs that other tests run, and what a shell does by itself.
UNCHECKED = {
  "model_signing": "tests/bundle/writer_test.py runs the line",
  "sphinx": "site_test.py runs the line of the Makefile",
  "sha256sum": "examples_test.py runs the line",
  "sort": "examples_test.py runs the line",
  "cd": "a shell's own",
  "export": "a shell's own",
}
# Reads [[script, arguments], ...] and prints what each parser said, or "".
_PARSES = """
import argparse, contextlib, io, json, runpy, sys, traceback

class Parsed(BaseException):
  pass

parse_args = argparse.ArgumentParser.parse_args

def parse_and_stop(self, *args, **kwargs):
  parse_args(self, *args, **kwargs)
  raise Parsed

argparse.ArgumentParser.parse_args = parse_and_stop
path, said = list(sys.path), []
for script, arguments in json.load(sys.stdin):
  sys.argv = [script, *arguments]
  sys.path[:] = [script.rpartition("/")[0], *path]
  errors = io.StringIO()
  try:
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
      runpy.run_path(script, run_name="__main__")
    said.append("it ended without parsing its arguments")
  except Parsed:
    said.append("")
  except SystemExit:
    said.append(errors.getvalue() or "it ended without parsing its arguments")
  except Exception:
    said.append(traceback.format_exc())
json.dump(said, sys.stdout)
"""


class Checker:
  """Checks commands, in a folder that holds the files of the pages.

  Scripts are collected and parsed in one process by `finish`: most of the time
  is spent on their imports, which they share.
  """

  def __init__(self, desk: pathlib.Path):
    self.problems: list[str] = []
    self.ran: list[tuple[str, ...]] = []
    self._desk = desk
    self._scripts: list[tuple[str, str, list[str]]] = []

  def check(self, where: str, words: Sequence[str]) -> None:
    """Notes problems of a command, with its page and line."""
    try:
      self._check(where, words)
    except (AssertionError, ValueError) as error:
      self.problems.append(f"{where}: `{shlex.join(words)}`: {error}")

  def finish(self) -> None:
    """Parses the arguments of the collected scripts."""
    if not self._scripts:
      return
    work = [(script, arguments) for _, script, arguments in self._scripts]
    done = run(
      [sys.executable, "-c", _PARSES],
      input=json.dumps(work),
      cwd=self._desk,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for (where, script, _), text in zip(self._scripts, said, strict=True):
      if text:
        name = pathlib.Path(script).relative_to(ROOT)
        self.problems.append(f"{where}: {name}: {text.strip()}")

  def _check(self, where: str, words: Sequence[str]) -> None:
    program, *arguments = words
    program = program.removeprefix(".venv/bin/").removeprefix("./")
    if program.startswith("launch/"):
      self._launch([program], arguments)
    elif program == "analogjax":
      self._analogjax(arguments)
    elif program in ("python", "python3"):
      self._python(where, arguments)
    elif program == "make":
      self._make(where, arguments)
    elif program in ("bash", "sh", "sbatch"):
      self._shell(program, arguments)
    elif program in ("docker", "podman"):
      check_files(arguments)
    elif program == "pip":
      check_pip(arguments)
    elif program in ("pre-commit", "ruff", "basedpyright"):
      check_help(program, arguments)
    elif program in STARTERS:
      ours = [i for i, w in enumerate(arguments) if _is_ours(w)]
      assert ours, "expected a command of ours among the arguments"
      self._check(where, arguments[ours[0] :])
    else:
      assert program in UNCHECKED, (
        f"{program} is neither run nor read by tests/docs/docs_commands.py;"
        " teach it how, or say in UNCHECKED why not"
      )

  def _analogjax(self, arguments: list[str]) -> None:
    assert arguments, "no command"
    if len(arguments) == 1 and not arguments[0].startswith("-"):
      # In a text, where it is the name of the command.
      assert arguments[0] in main.COMMANDS, f"unknown command {arguments[0]}"
    elif arguments[-1] in ("--help", "--version"):
      assert main.main(arguments) == main.OK
    else:
      args = parse(arguments)
      more = []
      if args.config is not None:
        cfg = loading.load(args.config, args.overrides)
        if -1 in cfg.mesh.to_dict().values():
          more = ["--config.mesh.fsdp=1"]  # Not the eight devices of a test.
      if self._is_cheap(args, arguments):
        self.ran.append(("analogjax", *arguments))
        code = main.main([*arguments, *more])
        assert code == main.OK, "it failed; see its output"

  def _is_cheap(self, args: Arguments, arguments: list[str]) -> bool:
    if args.command == "plan":
      # Others than these compile programs.
      plain = ("--config", "--workdir")
      return all(a.startswith(plain) for a in arguments if a[:2] == "--")
    if args.command in ("config", "completion"):
      return True
    if args.path is not None:
      return False  # A bundle or a key, that would have to be there.
    looks = args.action in ("--inspect", "--verify") and not args.rows
    assert args.workdir is not None
    return looks and (args.workdir / loading.FILE_NAME).exists()

  def _python(self, where: str, arguments: list[str]) -> None:
    assert arguments, "no script"
    if arguments[0] == "-m":
      _, module, *rest = arguments
      if module in ("analogjax", "analogjax.main"):
        self._analogjax(rest or ["run"])
      elif module == "pytest":
        check_pytest(rest)
      elif module.startswith("analogjax."):
        assert not rest, f"{module} takes no arguments"
        done = run([sys.executable, "-m", module], cwd=self._desk)
        assert done.returncode == 0, done.stderr
      else:
        self._check(where, [module, *rest])
      return
    script, *rest = arguments
    if script.startswith("launch/"):
      self._launch([sys.executable, script], rest)
      return
    path = ROOT / script
    assert path.is_file(), f"there is no {script}"
    text = path.read_text("utf-8")
    compile(text, script, "exec")
    if "argparse" in text:
      self._scripts.append((where, str(path), rest))
    else:
      assert not rest, f"{script} takes no arguments"

  def _make(self, where: str, arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for word in arguments:
      name, equals, _ = word.partition("=")
      # make itself takes any name.
      assert not equals or re.search(rf"^{name} \?=", makefile, re.M), (
        f"the Makefile has no variable {name}"
      )
    done = run(["make", "-n", *arguments], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.replace("\\\n", " ").splitlines():
      # The installations are what `make test` begins with.
      if line.startswith(".venv/bin/") and " -m pip " not in line:
        self._check(where, shlex.split(line))

  def _shell(self, program: str, arguments: list[str]) -> None:
    scripts = [w for w in arguments if (ROOT / w).is_file()]
    assert scripts, f"{program}: none of {arguments} is a file of ours"
    done = run(["bash", "-n", scripts[0]], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    if scripts[0].startswith("launch/"):
      rest = arguments[arguments.index(scripts[0]) + 1 :]
      self._launch(["bash", scripts[0]], rest)

  def _launch(self, start: list[str], arguments: list[str]) -> None:
    script = ROOT / start[-1]
    assert script.is_file(), f"there is no {start[-1]}"
    rest = [a for a in arguments if a != "--dry-run"]
    command = [*start[:-1], str(script), "--dry-run", *rest]
    done = run(command, cwd=self._desk)
    assert done.returncode == 0, done.stdout + done.stderr
    self.ran.append((*start, "--dry-run", *rest))
    if "--" in rest:
      self._analogjax(["run", *rest[rest.index("--") + 1 :]])
    elif script.suffix == ".sbatch":
      self._analogjax(["run", *rest])


def _is_ours(word: str) -> bool:
  return word == "analogjax" or word.startswith(("launch/", "python"))


def run(
  command: Sequence[str], *, cwd: pathlib.Path, input: str | None = None
) -> subprocess.CompletedProcess[str]:
  """The output of one of our programs, in a separate process."""
  # pytest-xdist's and make's own would change what the programs do.
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTEST_", "MAKE", "MFLAGS"))
  }
  return subprocess.run(
    command,
    cwd=cwd,
    input=input,
    env=environment | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
  )


@functools.cache
def _help_of(*command: str) -> str:
  done = run([*command, "--help"], cwd=ROOT)
  assert done.returncode == 0, f"{' '.join(command)} --help: {done.stderr}"
  return done.stdout


def _program(name: str) -> tuple[str, ...]:
  """The command that starts a program of this environment."""
  beside = pathlib.Path(sys.executable).parent / name
  if beside.exists():
    return (str(beside),)
  assert importlib.util.find_spec(name), f"there is no {name}"
  return (sys.executable, "-m", name)


def _check_flags(arguments: Sequence[str], text: str) -> None:
  known = set(re.findall(r"(?<![\w-])-{1,2}[a-zA-Z][\w-]*", text))
  for word in arguments:
    if word.startswith("-"):
      flag = word.partition("=")[0]
      assert flag in known, f"unknown flag {flag}"


def check_help(name: str, arguments: Sequence[str]) -> None:
  """Raises unless a program's --help knows subcommand and flags."""
  subcommand = [w for w in arguments[:1] if not w.startswith("-")]
  text = _help_of(*_program(name), *subcommand)
  _check_flags(arguments, text)


def check_files(arguments: Sequence[str]) -> None:
  """Raises unless the files of --file=NAME are there."""
  for word in arguments:
    name = word.removeprefix("--file=")
    assert name == word or (ROOT / name).is_file(), f"there is no {name}"


def check_pip(arguments: Sequence[str]) -> None:
  """Raises unless pip could install what is named, as far as files say."""
  assert arguments[:1] == ["install"], "expected pip install"
  text = _help_of(sys.executable, "-m", "pip", "install")
  _check_flags(arguments, text)
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
  extras = set(project["project"]["optional-dependencies"])
  rest = list(arguments[1:])
  while rest:
    word = rest.pop(0)
    if word in ("--constraint", "-c", "--requirement", "-r"):
      name = rest.pop(0)
      assert (ROOT / name).is_file(), f"there is no {name}"
    elif word.startswith("."):
      named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
      assert named, f"expected . or .[extras], found {word}"
      unknown = {*filter(None, (named[1] or "").split(","))} - extras
      assert not unknown, f"no extra {', '.join(unknown)} in pyproject.toml"
    elif not word.startswith("-"):
      Requirement(word)  # Raises a ValueError.


def check_pytest(arguments: Sequence[str]) -> None:
  """Raises unless pytest has these flags, and the files are there."""
  _check_flags(arguments, _help_of(sys.executable, "-m", "pytest"))
  for word in arguments:
    if word.startswith("tests/"):
      assert (ROOT / word).exists(), f"there is no {word}"
