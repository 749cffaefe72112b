"""Every command in the pages could be run; see docs_commands.py."""

import re

from docs_commands import Checker
from docs_pages import ROOT, Block, all_commands, commands_in, commands_of
import pytest

from analogjax import main


@pytest.mark.medium
def test_every_command_could_be_run(desk):
  checker = Checker(desk)
  for where, words in all_commands():
    checker.check(where, words)
  checker.finish()
  assert not checker.problems, "\n".join(checker.problems)
  commands = {words[:2] for words in checker.ran}
  assert {("analogjax", "plan"), ("analogjax", "cache")} <= commands


@pytest.mark.parametrize(
  ("text", "line", "expected"),
  [
    ("```sh\nanalogjax trian\n```", 2, "unknown command trian"),
    ("\n```sh\nA=1 analogjax plan --config=configs/demmo.py\n```", 3, "demmo"),
    ("`analogjax plan --config=configs/demo.py --config.a.b=1`", 1, "a.b"),
    ("```bash\nanalogjax plan \\\n  --workdri=x\n```", 2, "workdri"),
    ("see\n\n`analogjax\nmeasur`", 3, "measur"),
    ("```console\n$ analogjax trian\nout of it\n```", 2, "trian"),
    ("```sh\nsrun -n2 analogjax trian\n```", 2, "trian"),
    ("```sh\nsrun -n2 hostname\n```", 2, "a command of ours"),
    ("```sh\ncat x | analogjax plan\n```", 2, "cat is neither"),
    ("```sh\nls\n```", 2, "teach it"),
    ("```sh\nmake\nmake demmo\n```", 3, "No rule to make target"),
    ("```sh\nmake demo DEMMO_ARGS=1\n```", 2, "no variable DEMMO_ARGS"),
    ("```sh\nmake demo DEMO_ARGS=--config.a.b=1\n```", 2, "a.b"),
    ("```sh\nmake test PYTEST_ARGS=--no-such\n```", 2, "--no-such"),
    ("```sh\npython tests/none.py\n```", 2, "there is no tests/none.py"),
    ("```sh\npip install --constrain constraints.txt .\n```", 2, "constrain"),
    ("```sh\npip install -c constraint.txt .\n```", 2, "constraint.txt"),
    ("```sh\npip install '.[gpus]'\n```", 2, "no extra gpus"),
    ("```sh\n.venv/bin/pre-commit instal\n```", 2, "instal"),
    ("```yaml\na:\n- command: [analogjax]\n  args: [trian]\n```", 1, "trian"),
    ("```sh\ndocker build --file=launch/None .\n```", 2, "launch/None"),
    ("```sh\nbash launch/none.sh\n```", 2, "launch/none.sh"),
  ],
)
def test_a_wrong_command_is_found(desk, capsys, text, line, expected):
  checker = Checker(desk)
  for where, words in commands_of("docs/page.md", text):
    checker.check(where, words)
  checker.finish()
  [problem] = checker.problems
  assert problem.startswith(f"docs/page.md:{line}: ")
  assert expected in problem


@pytest.mark.medium
def test_wrong_arguments_of_a_script_are_found(desk):
  checker = Checker(desk)
  script = "python tests/benchmarks/soak.py --workdir=x"
  for number, command in enumerate(
    [
      f"{script} --kills=3",
      f"{script} --kils=3",
      f"{script} --kills=many",
      "make soak SOAK_ARGS=--minuts=3",
    ]
  ):
    checker.check(f"page:{number}", command.split())
  assert checker.problems == []
  checker.finish()
  expected = ["--kils=3", "invalid int value: 'many'", "--minuts=3"]
  for number, (problem, part) in enumerate(
    zip(checker.problems, expected, strict=True), 1
  ):
    assert problem.startswith(f"page:{number}: ") and part in problem


def words_of(text, language="sh"):
  block = Block("page", 1, language, (), text)
  return [command.words for command in commands_in(block)]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a b # c\n# d\ne\n", [("a", "b"), ("e",)]),
    ("A=1 B='2 3' a | b && c; d", [("a",), ("b",), ("c",), ("d",)]),
    ("a > out 2> err < in b", [("a", "b")]),
    ("a 'b\nc' \\\n  d\n", [("a", "b\nc", "d")]),
    ("A=1\n", []),
    ('a "--x=$(b c)" "d | e"', [("a", "--x=$(b c)", "d | e")]),
  ],
)
def test_a_line_is_read_as_a_shell_reads_it(text, expected):
  assert words_of(text) == expected


def test_of_a_console_only_what_was_typed_is_a_command():
  text = "$ a \\\n>   b\nsays c\n$ d\n"
  assert words_of(text, "console") == [("a", "b"), ("d",)]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("```\nanalogjax plan\n```", "page:1: a block of no language"),
    ("\n```zsh\nanalogjax plan\n```", "page:2: a block of zsh"),
    ("```sh\nanalogjax plan", "page:1: a block without an end"),
    ("```sh\n(analogjax plan)\n```", "page:2: a subshell"),
    ("```sh\na\nb 'c\n```", "page:3: a quotation without an end"),
  ],
)
def test_a_block_that_cannot_be_checked_is_refused(text, expected):
  with pytest.raises((AssertionError, ValueError), match=expected):
    list(commands_of("page", text))


def test_a_launch_script_is_run_dry(desk, monkeypatch):
  (desk / "launch").mkdir()
  script = desk / "launch/a.py"
  script.write_text(
    "#!/usr/bin/env python3\n"
    "import pathlib, sys\n"
    "pathlib.Path('said').write_text(repr(sys.argv[1:]))\n"
    "sys.exit('--bad' in sys.argv)\n"
  )
  script.chmod(0o755)
  monkeypatch.setattr("docs_commands.ROOT", desk)
  checker = Checker(desk)
  given = ["--n=2", "--", "--config=configs/demo.py", "--workdir=x"]
  for start in (["launch/a.py"], ["python", "launch/a.py"]):
    checker.check("page:1", [*start, *given])
    said = (desk / "said").read_text()
    assert said == repr(["--dry-run", *given])
    (desk / "said").unlink()
  assert checker.problems == []
  checker.check("page:1", ("launch/a.py", "--bad", *given))
  checker.check("page:2", ("launch/a.py", *given, "--config.a.b=1"))
  assert ["--bad" in checker.problems[0], "a.b" in checker.problems[1]] == [
    1,
    1,
  ]


def test_the_commands_of_running_are_those_of_the_program():
  table = (ROOT / "docs/running.md").read_text("utf-8").split("## ")[0]
  named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
  assert named == list(main.COMMANDS)
