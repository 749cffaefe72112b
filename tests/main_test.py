"""Tests for analogjax/main.py."""

import errno
import json
import os
from pathlib import Path
import subprocess
import sys
import types

import jax
import pytest

import analogjax
from analogjax import main
from analogjax.cli import arguments, commands
from analogjax.distributed import cluster

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.py"


@pytest.fixture
def stages(monkeypatch):
  """Every stage replaced by one that notes its call; set `.does` for more."""
  calls = []

  def make(name):
    def run(cfg, workdir, **more):
      calls.append((name, cfg, workdir, *more.items()))
      fake.does()

    return run

  fake = types.SimpleNamespace(calls=calls, does=lambda: None)
  for name in ("plan", *arguments.RUN_STAGES, "inspect_cache", "verify_cache"):
    module = types.ModuleType(name)
    module.run = make(name)
    module.repair = make(f"repair of {name}")
    monkeypatch.setitem(sys.modules, f"analogjax.stages.{name}", module)
  return fake


def call(command, workdir, *overrides):
  return main.main(
    [command, f"--config={DEMO}", f"--workdir={workdir}", *overrides]
  )


def in_process(*argv, code=None, env=None, module="analogjax.main"):
  """A real process: the module, or `code`, with the arguments."""
  start = ["-c", code] if code else ["-m", module]
  return subprocess.run(
    [sys.executable, *start, *argv],
    cwd=ROOT,
    env=os.environ | (env or {}),
    capture_output=True,
    text=True,
    timeout=60,
  )


# Arguments.


def test_flags_with_equals_or_a_space():
  expected = arguments.Arguments(
    "train", "a.py", Path("w"), (("cache.tau", "0.1"), ("mesh.fsdp", "-1"))
  )
  assert expected == arguments.parse(
    ["train", "--config=a.py", "--workdir=w"]
    + ["--config.cache.tau=0.1", "--config.mesh.fsdp=-1"]
  )
  assert expected == arguments.parse(
    ["--config", "a.py", "--config.cache.tau", "0.1", "train"]
    + ["--config.mesh.fsdp", "-1", "--workdir", "w"]
  )


def test_a_stage_is_told_how_to_repeat_it():
  words = ["--config=a b.py", "--workdir=runs/x", "--config.measure.seed=1"]
  args = arguments.parse(["run", *words, "--quick"])
  assert args.options("measure")["command"] == (
    "analogjax measure '--config=a b.py' --workdir=runs/x"
    " --config.measure.seed=1"
  )


def test_what_an_intervention_is_given():
  args = arguments.parse(
    ["intervene", "--config=a.py", "--workdir=w"]
    + ["--vector", "v.safetensors", "--behaviour=refusal"]
  )
  assert args.options("intervene") == {
    "vector": "v.safetensors",
    "behaviour": "refusal",
  }


def test_only_the_first_equals_sign_splits():
  args = arguments.parse(
    ["plan", "--config=a=b.py", "--config.x.y=c=d --config.z=1"]
  )
  assert args.config == "a=b.py"
  assert args.overrides == (("x.y", "c=d --config.z=1"),)
  assert args.workdir is None


@pytest.mark.parametrize(
  ("argv", "expected"),
  [
    (["trian", "--config=x"], "unknown command 'trian'. Did you mean train?"),
    (["zzzzzz"], "unknown command 'zzzzzz'. Known: plan, cache,"),
    (["--config=x"], "no command; expected one of plan, cache,"),
    (["plan"], "plan needs --config=FILE."),
    (["train", "--config=x"], "train needs --workdir=DIR."),
    (["train"], "train needs --config=FILE and --workdir=DIR."),
    (
      ["plan", "--workdri=x"],
      "unknown flag --workdri. Did you mean --workdir?",
    ),
    (["plan", "--zzz"], "unknown flag --zzz. Known: --config, --workdir"),
    (["plan", "-c", "x"], "unknown flag -c."),
    (["plan", "--config."], "unknown flag --config.."),
    (
      ["plan", "--confg.cache.tau=1"],
      "unknown flag --confg.cache.tau. Did you mean --config.cache.tau?",
    ),
    (["plan", "--config"], "--config needs a value"),
    (["plan", "--config.a", "--workdir=x"], "--config.a needs a value"),
    (["plan", "--config="], "--config is empty; expected --config=FILE."),
    (["plan", "--confi=x"], "unknown flag --confi. Did you mean --config?"),
    (["plan", "--config=c", "--top=cpu:8"], "unknown flag --top. "),
    (["plan", "--config=a", "--config=b"], "--config is given twice: a and b."),
    (["plan", "x", "--config=a"], "unexpected argument 'x' after plan"),
    (
      ["intervene", "--config=a", "--workdir=w"],
      "intervene needs --vector=FILE.",
    ),
    (
      ["measure", "--config=a", "--workdir=w", "--behaviour=b"],
      "--behaviour is for `intervene`.",
    ),
    (["release", "--config=a", "--workdir=w"], "release needs --key=KEY."),
    (["verify"], "verify needs a path: analogjax verify PATH."),
    (["verify", "b", "c"], "unexpected argument 'c' after verify."),
    (["verify", "b", "--config=a"], "verify takes no config"),
    (
      ["keygen", "b", "--workdir=a"],
      "keygen takes no --workdir: it reads PATH alone.",
    ),
    (["verify", "b", "--check"], "--check is for `reproduce`."),
    (["completion", "fish"], "completion: expected bash or zsh, found 'fish'"),
    (["config"], "config needs --config=FILE, --workdir=DIR or --explain."),
    (["config", "--diff", "a"], "--diff needs two values: --diff A B."),
    (["config", "--explain=cache.taw"], "cache.taw: there is no such field."),
    (
      ["train", "--config=c", "--workdir=w", "--key=k"],
      "--key is for `release`, `run` and `verify`.",
    ),
    (["cache", "--inspect"], "cache needs --workdir=DIR."),
    (["cache", "--repair", "--config=a"], "cache needs --workdir=DIR."),
    (["train", "--inspect", "--workdir=w"], "--inspect is for `cache`."),
    (["plan", "--config=a", "--verify=3"], "--verify is for `cache`."),
    (
      ["cache", "--workdir=w", "--verify", "--repair"],
      "--repair: expected one of --inspect, --verify, --repair at a time.",
    ),
    (
      ["cache", "--workdir=w", "--inspect=3"],
      "--inspect=3: expected --inspect, without a value.",
    ),
    (["cache", "--workdir=w", "--repair=all"], "--repair=all: expected --repa"),
    (
      ["cache", "--workdir=w", "--verify=all"],
      "--verify=all: expected --verify or --verify=ROWS, a number.",
    ),
    (["cache", "--workdir=w", "--verify=-1"], "--verify=-1: expected --verify"),
    (
      ["cache", "--workdir=w", "--verify", "x"],
      "--verify=x: expected --verify or --verify=ROWS, a number.",
    ),
    (
      ["cache", "--workdir=w", "--inspect", "--config.cache.tau=0.1"],
      "cache.tau is set, but there is no --config.",
    ),
    (["cache", "--inspct", "--workdir=w"], "unknown flag --inspct. "),
    (
      ["cache", "--config=c", "--workdir=w", "--profile=2:3"],
      "--profile is for `train` and `run`.",
    ),
    *(
      (
        ["train", "--config=c", "--workdir=w", f"--profile={value}"],
        f"--profile={value}: expected A:B, the first and the last step",
      )
      for value in ("3:2", "0:2", "2", "a:b", "1:2:3", "-1:2")
    ),
    (
      ["train", "--config=c", "--workdir=w", "--topology=cpu:8"],
      "--topology is for `plan`.",
    ),
    (
      ["cache", "--config=c", "--workdir=w", "--json"],
      "--json is for `plan` and `verify`.",
    ),
    (["plan", "--config=c", "--search"], "--search needs --topology=NAME"),
    (["plan", "--config=c", "--png=a.png"], "--png needs --topology=NAME"),
    (["plan", "--config=c", "--json=a"], "--json=a: expected --json, without"),
    (
      ["plan", "--config=c", "--topology="],
      "--topology is empty; expected --t",
    ),
    (["plan", "--config=c", "--topolgy=x"], "unknown flag --topolgy. Did you"),
    (
      ["train", "--config=c", "--workdir=w", "--profile="],
      "--profile is empty; expected --profile=A:B.",
    ),
  ],
)
def test_wrong_arguments_are_named(argv, expected, capsys):
  assert main.main(argv) == 2
  error = capsys.readouterr().err
  assert f"error: {expected}" in error


def test_no_argument_shows_the_usage(capsys):
  assert main.main([]) == 2
  out = capsys.readouterr()
  assert out.err.startswith("usage: analogjax <command>")
  assert out.out == ""


@pytest.mark.parametrize("argv", [["--help"], ["-h"]])
def test_help_names_every_command(argv, capsys):
  assert main.main(argv) == 0
  text = capsys.readouterr().out
  assert all(f"  {command} " in text for command in main.COMMANDS)
  assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_of_a_command_names_its_flags(command, capsys):
  assert main.main([command, "--help"]) == 0
  text = capsys.readouterr().out
  for flag, found in commands.FLAGS.items():
    assert (f"  {flag} " in text) is (command in found.commands.split())
  assert commands.COMMANDS[command] in text


def test_verify_takes_its_rows_either_way():
  for words in (["--verify=9"], ["--verify", "9"]):
    args = arguments.parse(["cache", "--workdir=w", *words])
    assert (args.action, args.rows) == ("--verify", 9)
  args = arguments.parse(["cache", "--verify", "--workdir=w"])
  assert (args.action, args.rows, args.flags) == ("--verify", 0, ())


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    (["analogjax", "ve"], ["verify"]),
    (["analogjax", "plan", "--t"], ["--topology="]),
    (["analogjax", "verify", "--reg"], ["--regulator="]),
    (["analogjax", "plan", "--config=mine"], ["mine.py"]),
  ],
)
def test_completion(words, expected, tmp_path):
  (tmp_path / "mine.py").write_text("")
  script = in_process("completion", "bash").stdout
  line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
  command = f"{script}\n{line}; _analogjax; printf '%s\\n' ${{COMPREPLY[@]}}"
  done = subprocess.run(
    ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path
  )
  assert done.stdout.split() == expected, done.stderr


# config.


def test_a_field_is_explained(capsys):
  assert main.main(["config", "--explain=cache.tau"]) == 0
  assert capsys.readouterr().out.splitlines() == [
    "cache.tau",
    "  threshold: least probability of an entry",
    "  type: float",
    "  expected: 0.001 <= tau <= 1",
    "  default: 0.04",
    "  published with a release: no: parameter of sampling, which the regulator"
    " has",
  ]
  for path in ("train.distill.seed", "train.<phase>.seed"):
    assert main.main(["config", "--explain", path]) == 0
    text = capsys.readouterr().out
    assert text.startswith("train.<phase>.seed\n")
    assert "published with a release: yes" in text
  assert main.main(["config", "--explain", "mesh"]) == 0
  text = capsys.readouterr().out
  assert [line for line in text.splitlines() if line.startswith("mesh.")] == [
    "mesh.data",
    "mesh.fsdp",
    "mesh.expert",
    "mesh.tensor",
  ]


def test_a_config_is_shown_with_the_origin_of_its_values(
  stages, tmp_path, capsys
):
  expected = {
    "cache.tau = 0.1  (--config)",
    "cache.seed = 0  (default)",
    "cache.num_rows = 320  (file)",
    "plan.v5p.dollars_per_hour = 4.2  (prices 2026_11)",
    "data.arguments.L = 256  (file)",
  }
  override = "--config.cache.tau=0.1"
  assert main.main(["config", f"--config={DEMO}", override]) == 0
  assert expected <= set(capsys.readouterr().out.splitlines())
  assert call("train", tmp_path, override) == 0
  assert main.main(["config", f"--workdir={tmp_path}"]) == 0
  assert expected <= set(capsys.readouterr().out.splitlines())


def test_two_configs_are_compared(stages, tmp_path, capsys):
  assert call("train", tmp_path, "--config.cache.tau=0.1") == 0
  assert main.main(["config", "--diff", str(DEMO), str(tmp_path)]) == 0
  assert capsys.readouterr().out == "cache.tau 0.04 -> 0.1\n"
  assert main.main(["config", "--diff", str(DEMO), str(DEMO)]) == 0
  assert capsys.readouterr().out == "no differences\n"


def test_version(capsys):
  assert main.main(["--version"]) == 0
  assert capsys.readouterr().out == f"analogjax {analogjax.__version__}\n"


# Stages and exit codes.


def test_a_stage_gets_the_resolved_config_after_it_was_saved(stages, tmp_path):
  workdir = tmp_path / "new"
  saved = workdir / "config.json"
  seen = []
  stages.does = lambda: seen.append(json.loads(saved.read_text()))
  assert call("train", workdir, "--config.cache.tau=0.1") == 0
  [(name, cfg, where)] = stages.calls
  assert (name, cfg.cache.tau, where) == ("train", 0.1, workdir)
  assert seen[0]["cache"]["tau"] == 0.1


def test_run_calls_the_stages_in_order(stages, tmp_path):
  assert call("run", tmp_path) == 0
  names = [call[0] for call in stages.calls]
  assert names == [
    *("cache", "train", "measure", "safety", "export", "release", "summary")
  ]


@pytest.mark.parametrize(
  ("flag", "expected"),
  [
    ("--inspect", ("inspect_cache",)),
    ("--verify", ("verify_cache", ("rows", 0))),
    ("--verify=12", ("verify_cache", ("rows", 12))),
    ("--repair", ("repair of cache",)),
  ],
)
def test_what_cache_can_do_instead_takes_the_config_of_the_workdir(
  stages, tmp_path, flag, expected
):
  assert call("cache", tmp_path, "--config.cache.tau=0.1") == 0
  saved = (tmp_path / "config.json").read_bytes()
  assert main.main(["cache", flag, f"--workdir={tmp_path}"]) == 0
  assert (tmp_path / "config.json").read_bytes() == saved
  _, (name, cfg, where, *more) = stages.calls
  assert (name, *more) == expected
  assert cfg.cache.tau == 0.1 and where == tmp_path


@pytest.mark.parametrize("flag", ["--inspect", "--verify"])
def test_looking_with_another_config_leaves_the_saved_one(
  stages, tmp_path, flag
):
  assert call("cache", tmp_path) == 0
  saved = (tmp_path / "config.json").read_bytes()
  assert call("cache", tmp_path, flag, "--config.cache.tau=0.1") == 0
  assert stages.calls[1][1].cache.tau == 0.1
  assert (tmp_path / "config.json").read_bytes() == saved


@pytest.mark.parametrize("flag", ["--inspect", "--verify=3", "--repair"])
def test_a_workdir_without_a_config(stages, tmp_path, capsys, flag):
  assert main.main(["cache", flag, f"--workdir={tmp_path}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("analogjax cache: error: ") and "config" in error
  assert str(tmp_path) in error and error.count("\n") == 1
  assert stages.calls == [] and list(tmp_path.iterdir()) == []


def test_plan_without_a_workdir_writes_nothing(stages, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert main.main(["plan", f"--config={DEMO}"]) == 0
  assert stages.calls[0][2] is None
  assert list(tmp_path.iterdir()) == []


def test_what_is_asked_of_a_plan(stages, tmp_path):
  flags = ["--topology=v5p:4x4x4", "--search", "--topology", "cpu:8", "--json"]
  code = main.main(["plan", f"--config={DEMO}", *flags, "--png=a.png"])
  assert code == 0
  name, _, workdir, *more = stages.calls[0]
  assert (name, workdir) == ("plan", None)
  assert dict(more) == dict(
    topologies=("v5p:4x4x4", "cpu:8"),
    searches=True,
    as_json=True,
    png=Path("a.png"),
  )
  assert main.main(["plan", f"--config={DEMO}"]) == 0
  assert len(stages.calls[1]) == 3  # Nothing more.


@pytest.mark.parametrize("command", ["plan", "train"])
def test_a_wrong_config_starts_no_stage_and_leaves_no_workdir(
  stages, tmp_path, capsys, command
):
  assert call(command, tmp_path / "w", "--config.cache.taw=1") == 2
  error = capsys.readouterr().err
  assert error.startswith(f"analogjax {command}: error: --config.cache.taw: ")
  assert error.count("\n") == 1
  assert stages.calls == []
  assert not (tmp_path / "w").exists()


def test_what_a_stage_refuses_at_once_leaves_the_config(
  stages, tmp_path, capsys
):
  assert call("release", tmp_path, "--key=k") == 0
  saved = (tmp_path / "config.json").read_bytes()

  def check(cfg, workdir, *, key):
    raise ValueError(f"--key={key}: there is no such file.")

  sys.modules["analogjax.stages.release"].check = check
  for command in ("release", "run"):
    override = "--config.cache.tau=0.1"
    assert call(command, tmp_path, "--key=none", override) == 2
    assert (tmp_path / "config.json").read_bytes() == saved
  assert "--key=none: there is no such file." in capsys.readouterr().err
  assert [name for name, *_ in stages.calls] == ["release"]


def stop(error):
  def does():
    raise error

  return does


@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (
      OSError(errno.ENOSPC, "No space left on device", "/d/cache/c/0"),
      "No space left on device (errno 28): /d/cache/c/0. Make room, th",
    ),
    (
      PermissionError(errno.EACCES, "Permission denied", "/d/x.json"),
      "Permission denied (errno 13): /d/x.json",
    ),
    (OSError("the cache is gone"), "the cache is gone"),
    (ValueError("cache: another teacher."), "cache: another teacher."),
  ],
)
def test_errors_of_the_user_are_one_line(
  stages, tmp_path, capsys, error, expected
):
  stages.does = stop(error)
  assert call("cache", tmp_path) == 2
  text = capsys.readouterr().err
  assert text.startswith(f"analogjax cache: error: {expected}")
  assert text.count("\n") == 1


def test_a_foreign_value_error_says_how_to_see_more(
  stages, tmp_path, capsys, monkeypatch
):
  stages.does = lambda: int("x")
  assert call("cache", tmp_path) == 2
  text = capsys.readouterr().err
  assert "ANALOGJAX_TRACEBACK=1" in text
  assert "Traceback" not in text
  monkeypatch.setenv("ANALOGJAX_TRACEBACK", "1")
  assert call("cache", tmp_path) == 2
  assert "Traceback" in capsys.readouterr().err
  # One of ours needs no such hint.
  assert call("cache", tmp_path, "--config.cache.tau=x") == 2
  assert "shows where" not in capsys.readouterr().err


def test_interrupt(stages, tmp_path, capsys):
  stages.does = stop(KeyboardInterrupt())
  assert call("train", tmp_path) == 130
  assert "give the same command again" in capsys.readouterr().err


def test_unexpected_exceptions_and_requeue_pass_through(stages, tmp_path):
  stages.does = stop(RuntimeError("a bug"))
  with pytest.raises(RuntimeError, match="a bug"):
    call("train", tmp_path)
  stages.does = stop(SystemExit(75))
  with pytest.raises(SystemExit) as info:
    call("train", tmp_path)
  assert info.value.code == 75


def test_a_file_in_place_of_the_workdir(stages, tmp_path, capsys):
  path = tmp_path / "file"
  path.write_text("")
  assert call("train", path) == 2
  assert f"(errno {errno.ENOTDIR}): {path}" in capsys.readouterr().err
  assert stages.calls == []


def test_compilation_cache_comes_from_the_environment(
  stages, tmp_path, monkeypatch
):
  before = jax.config.jax_compilation_cache_dir
  try:
    monkeypatch.setenv("ANALOGJAX_COMPILATION_CACHE", str(tmp_path / "jit"))
    call("plan", tmp_path)
    assert jax.config.jax_compilation_cache_dir == before
    call("train", tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jit")
  finally:
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_cluster_comes_from_the_environment(stages, tmp_path, monkeypatch):
  joined = []
  monkeypatch.setattr(cluster, "connect", lambda mine, **_: joined.append(mine))
  assert call("cache", tmp_path) == 0
  assert joined == []
  monkeypatch.setenv("ANALOGJAX_COORDINATOR", "host0:8476")
  monkeypatch.setenv("ANALOGJAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("ANALOGJAX_PROCESS_ID", "3")
  # These need nobody else.
  assert call("plan", tmp_path) == 0
  assert call("cache", tmp_path, "--inspect") == 0
  assert joined == []
  assert call("cache", tmp_path) == 0
  (mine,) = joined
  assert mine.coordinator == "host0:8476"
  assert (mine.num_processes, mine.process_id) == (4, 3)


@pytest.mark.parametrize("value", [None, "", "two", "-1"])
@pytest.mark.parametrize("name", ["NUM_PROCESSES", "PROCESS_ID"])
def test_a_cluster_without_numbers(
  stages, tmp_path, monkeypatch, capsys, name, value
):
  monkeypatch.setenv("ANALOGJAX_COORDINATOR", "host0:8476")
  for each in ("NUM_PROCESSES", "PROCESS_ID"):
    monkeypatch.setenv(f"ANALOGJAX_{each}", "1")
  if value is None:
    monkeypatch.delenv(f"ANALOGJAX_{name}")
  else:
    monkeypatch.setenv(f"ANALOGJAX_{name}", value)
  assert call("cache", tmp_path) == 2
  error = capsys.readouterr().err
  assert f"error: ANALOGJAX_{name}={value or ''!r}: expected a number" in error
  assert stages.calls == []


# Real processes.


def test_process_without_arguments():
  done = in_process()
  assert done.returncode == 2
  assert done.stderr.startswith("usage:")


def test_the_package_is_the_command_line():
  done = in_process("--version", module="analogjax")
  assert done.stdout == f"analogjax {analogjax.__version__}\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
  "argv", [["--help"], ["config", "--config=configs/demo.py"]]
)
def test_a_closed_pipe_is_no_error(argv, unbuffered):
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, "-m", "analogjax", *argv],
    cwd=ROOT,
    env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    stdout=write,
    stderr=subprocess.PIPE,
    text=True,
  )
  os.close(write)
  assert (done.returncode, done.stderr) == (0, "")


def test_help_and_wrong_arguments_import_nothing_heavy():
  code = (
    "import sys; from analogjax import main\n"
    "assert main.main(['--help']) == 0\n"
    "assert main.main(['trian', '--config=x']) == 2\n"
    "heavy = {'jax', 'numpy', 'flax', 'optax', 'rich'} & set(sys.modules)\n"
    "assert not heavy, heavy\n"
  )
  done = in_process(code=code)
  assert done.returncode == 0, done.stderr


def test_process_with_a_missing_config():
  done = in_process("plan", "--config=configs/demoo.py")
  assert done.returncode == 2
  assert done.stderr == (
    "analogjax plan: error: configs/demoo.py: no such config file. Did you mean"
    " configs/demo.py?\n"
  )


FAKE_STAGE = """
import os, signal, sys, types
# A shell starts its background jobs, these tests among them, with it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
stage = types.ModuleType("cache")
def run(cfg, workdir):
  {body}
stage.run = run
sys.modules["analogjax.stages.cache"] = stage
from analogjax import main
sys.exit(main.main())
"""


def test_hostile_values_pass_through_a_process(tmp_path):
  text = "$(touch pwned); `id` 'a' \"b\" = --x, {teacher} \u00e9\u4e2d\n"
  done = in_process(
    *("cache", f"--config={DEMO}", "--workdir", str(tmp_path)),
    f"--config.data.arguments.tokenizer={text}",
    *("--config.data.arguments.end_token", "; rm -rf *"),
    code=FAKE_STAGE.format(body="pass"),
  )
  assert done.returncode == 0, done.stderr
  saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
  assert saved["data"]["arguments"]["tokenizer"] == text
  assert saved["data"]["arguments"]["end_token"] == "; rm -rf *"
  names = {p.name for p in tmp_path.iterdir()}
  assert names == {"config.json", "run.lock"}


@pytest.mark.parametrize(
  ("body", "code"),
  [
    ("os.kill(os.getpid(), signal.SIGINT)", 130),
    ("1 / 0", 1),
    ("sys.exit(75)", 75),
  ],
)
def test_exit_code_of_a_process(tmp_path, body, code):
  done = in_process(
    *("cache", f"--config={DEMO}", f"--workdir={tmp_path}"),
    code=FAKE_STAGE.format(body=body),
  )
  assert done.returncode == code, done.stderr
  assert ("Traceback" in done.stderr) is (code == 1)


@pytest.mark.parametrize(
  ("devices", "installed", "platforms"),
  [([], True, "cpu"), ([], False, ""), (["/dev/accel0"], True, "")],
)
def test_libtpu_is_left_alone_without_a_tpu(
  monkeypatch, devices, installed, platforms
):
  monkeypatch.delenv("JAX_PLATFORMS")
  monkeypatch.setattr(main.glob, "glob", lambda pattern: devices)
  find_spec = lambda name: installed or None  # noqa: E731
  monkeypatch.setattr(main.importlib.util, "find_spec", find_spec)
  chosen = [""]
  update = lambda name, value: chosen.append(value)  # noqa: E731
  monkeypatch.setattr(jax.config, "update", update)
  main._leave_libtpu_alone()
  assert chosen[-1] == platforms
