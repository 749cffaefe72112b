"""README.md and docs/ say what the code does.

`python tests/docs_test.py > docs/config.md` renews the page of all fields.

Fenced blocks of Python carry one word more:
  file=NAME: a file of that name; it is imported, and other blocks may use it.
  run: runs as it stands, in a folder that holds those files.
  config: lines of a get_config(); what they make of the demo's is checked.
The reader in docs/cache_format.md is run by cache_format_test.py. Commands in
blocks of sh and in `code` are parsed, and their configs loaded.
"""

import importlib
import importlib.util
import inspect
import json
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import typing

import numpy as np
import pytest
import tokenizers

from analogjax import config, config_files, main
from analogjax.data import logit_cache, pipeline
from analogjax.models import hf_folder

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RENEW = ".venv/bin/python tests/docs_test.py > docs/config.md"
# What else a block of sh may start with.
LAUNCHERS = {"srun", "mpirun"}  # Followed by a command of ours.
OTHER_COMMANDS = {"pip", "sha256sum", "sort", ".venv/bin/pre-commit", "docker"}

# The README's teacher, as far as a plan needs it: a Llama of 70 billion.
TEACHER_CONFIG = {
  "model_type": "llama",
  "vocab_size": 128_256,
  "hidden_size": 8192,
  "num_hidden_layers": 80,
  "num_attention_heads": 64,
  "num_key_value_heads": 8,
  "intermediate_size": 28_672,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-5,
  "rope_theta": 5e5,
}

# Stands for the lab's own module in docs/data.md.
FRONTIER_DATA = """
import grain, numpy as np
def make_dataset(path, split):
  def element(i):
    return {
      "inputs": np.full(8, i), "inputs_segmentation": np.ones(8, int),
      "inputs_position": np.arange(8), "targets": np.zeros(8, int),
    }
  return grain.MapDataset.range(5).map(element)
"""


class Block(typing.NamedTuple):
  """A fenced block of code."""

  where: str  # Page and line.
  language: str
  marks: tuple[str, ...]
  text: str


def blocks_of(page, text):
  """The fenced blocks of a page."""
  found, begin = [], None
  for number, line in enumerate(text.splitlines(), 1):
    if not line.startswith("```"):
      continue
    if begin is None:
      begin, words = number, line.removeprefix("```").split()
      assert words, f"{page}:{number}: a block without a language"
    else:
      body = "\n".join(text.splitlines()[begin : number - 1]) + "\n"
      where = f"{page}:{begin}"
      found.append(Block(where, words[0], tuple(words[1:]), body))
      begin = None
  assert begin is None, f"{page}:{begin}: a block without an end"
  return found


BLOCKS = [b for p in PAGES for b in blocks_of(p.name, p.read_text("utf-8"))]
PYTHON = [b for b in BLOCKS if b.language == "python"]


def marked(mark):
  found = [b for b in PYTHON if b.marks == (mark,)]
  return pytest.mark.parametrize("block", found, ids=lambda b: b.where)


def files():
  """Block of each file, by its name."""
  named = [b for b in PYTHON if b.marks and b.marks[0].startswith("file=")]
  return {b.marks[0].removeprefix("file="): b for b in named}


def without_blocks(text):
  return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def desk(tmp_path, monkeypatch):
  """A folder with everything that the pages speak of, and we stand in it."""
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  for name, block in files().items():
    (tmp_path / name).write_text(block.text)
  (tmp_path / "frontier_data.py").write_text(FRONTIER_DATA)
  (tmp_path / "ours-hf").mkdir()
  (tmp_path / "ours-hf/config.json").write_text(json.dumps(TEACHER_CONFIG))
  for name, count in (("train", 3), ("held_out", 2)):
    ids = np.arange(count * 4096 + 5) % 1000  # 0 ends a document.
    ids.astype("<u4").tofile(tmp_path / f"tokens_{name}.bin")
  spec = importlib.util.spec_from_file_location(
    "kit", ROOT / "tests/data/conftest.py"
  )
  assert spec is not None and spec.loader is not None
  kit = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(kit)
  m = kit.manifest(num_rows=8)
  cache = logit_cache.create(tmp_path / "runs/demo/cache", m)
  kit.write_all(cache, kit.rows(m), kit.records(m))
  (tmp_path / "books").mkdir()
  (tmp_path / "books/a.txt").write_text("a book of nothing much\n" * 9)
  vocabulary = {"<|endoftext|>": 0, "a": 1, "book": 2, "?": 3}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token="?")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield tmp_path
  for name in [*map(Path, files()), Path("frontier_data.py")]:
    sys.modules.pop(name.stem, None)


# Commands.


def commands_of(page, text):
  """Yields (where, arguments of analogjax) and (where, other words)."""
  for block in blocks_of(page, text):
    if block.language == "sh":
      for line in block.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s\|\s", line.split("#")[0]):
          words = shlex.split(part)
          while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
          if words and words[0] in LAUNCHERS:
            words = words[words.index("analogjax") :]
          if words:
            yield block.where, words
  for span in re.findall(r"`([^`]+)`", without_blocks(text)):
    if re.match(r"analogjax\s", span):
      yield f"{page}: `{span}`", shlex.split(span.replace("\n", " "))


COMMANDS = [c for p in PAGES for c in commands_of(p.name, p.read_text("utf-8"))]


def check_analogjax(arguments):
  """Raises unless these arguments of analogjax could be run."""
  if arguments[0] in main.NOT_BUILT:
    assert main.main(arguments) == main.USER_ERROR
  elif len(arguments) == 1:
    assert arguments[0] in main.COMMANDS, arguments
  else:
    args = main.parse(arguments)
    if args.config is not None:
      config_files.load(args.config, args.overrides)


def check_make(arguments):
  """Raises unless make has these targets and the demo takes its arguments."""
  makefile = (ROOT / "Makefile").read_text("utf-8")
  for word in arguments:
    name, equals, value = word.partition("=")
    if equals:
      assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), word
    else:
      assert re.search(rf"^{word}:", makefile, re.MULTILINE), word
    if name == "DEMO_ARGS":
      demo = ["run", "--config=configs/demo.py", "--workdir=runs/demo"]
      check_analogjax(demo + shlex.split(value))


def check_launcher(words):
  """Raises unless a launcher would take these words, and its run as well."""
  at = next(i for i, word in enumerate(words) if word.startswith("launch/"))
  script, rest = ROOT / words[at], words[at + 1 :]
  if script.suffix == ".sbatch":
    command = ["bash", script, "--dry-run", *rest]
    arguments = [word for word in rest if word != "--dry-run"]
  else:
    options, arguments = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    command = [sys.executable, script, *options, "--dry-run", "--", *arguments]
  check_analogjax(["run", *arguments])
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def check_script(arguments):
  """Raises unless there is such a script and it knows these flags."""
  script = ROOT / arguments[0]
  assert script.is_file(), script
  known = "".join(p.read_text("utf-8") for p in script.parent.glob("*.py"))
  for argument in arguments[1:]:
    assert f'"{argument.partition("=")[0]}"' in known, argument


@pytest.mark.usefixtures("desk")
def test_every_command_could_be_run():
  checked = 0
  for where, (program, *arguments) in COMMANDS:
    try:
      if program == "analogjax":
        check_analogjax(arguments)
        checked += 1
      elif program == "make":
        check_make(arguments)
      elif any(word.startswith("launch/") for word in arguments):
        check_launcher(arguments)
      elif program == "python":
        check_script(arguments)
      else:
        assert program in OTHER_COMMANDS, program
    except (AssertionError, ValueError) as error:
      raise AssertionError(f"{where}: {error}") from error
  assert checked > 10


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("```sh\nanalogjax trian\n```", "trian"),
    ("```sh\nA=1 analogjax plan --config=configs/demmo.py\n```", "demmo"),
    ("`analogjax plan --config=configs/demo.py --config.a.b=1`", "config.a.b"),
    ("```sh\nanalogjax plan \\\n  --workdri=x\n```", "workdri"),
    ("see `analogjax\nmeasur`", "measur"),
  ],
)
def test_a_wrong_command_is_found(text, expected):
  [(_, (program, *arguments))] = commands_of("page", text)
  assert program == "analogjax"
  with pytest.raises((AssertionError, ValueError), match=expected):
    check_analogjax(arguments)


def test_the_commands_of_running_are_those_of_the_program():
  table = (ROOT / "docs/running.md").read_text("utf-8").split("## ")[0]
  named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
  assert named == [c for c in main.COMMANDS if c not in main.NOT_BUILT]


def test_the_digest_of_a_teacher_by_sha256sum(tmp_path, monkeypatch):
  (line,) = {
    line
    for block in BLOCKS
    for line in block.text.splitlines()
    if line.startswith("sha256sum")
  }
  for name in ("config.json", "model.safetensors"):
    (tmp_path / name).write_text(name)
  if not shutil.which("sha256sum"):
    pytest.skip("there is no sha256sum on this machine")
  found = subprocess.check_output(line, shell=True, text=True, cwd=tmp_path)
  assert found.split()[0] == hf_folder.folder_digest(tmp_path)


# Blocks of Python.


def test_every_block_of_python_is_marked():
  for block in PYTHON:
    kind = [m.partition("=")[0] for m in block.marks]
    assert kind in (["file"], ["run"], ["config"]), block.where
    assert max(map(len, block.text.splitlines())) <= 80, block.where


@pytest.mark.usefixtures("desk")
@marked("run")
def test_block_runs(block):
  exec(compile(block.text, block.where, "exec"), {})


@pytest.mark.usefixtures("desk")
@marked("config")
def test_block_of_a_config_is_valid(block):
  cfg = config_files.load("configs/demo.py", []).unlock()
  exec(compile(block.text, block.where, "exec"), {"cfg": cfg})
  data = config.to_sections(cfg).data
  module, _, name = data.pipeline.partition(":")
  function = getattr(importlib.import_module(module), name)
  for arguments in (data.arguments, data.held_out_arguments):
    inspect.signature(function).bind(**{**data.arguments, **arguments})
  assert data.arguments["L"] == data.L


@pytest.mark.usefixtures("desk")
def test_the_readme_s_pipeline_gives_rows():
  cfg = config_files.load("configs/ours.py", [])
  for more, expected in ({}, 3), (cfg.data.held_out_arguments.to_dict(), 2):
    arguments = {**cfg.data.arguments.to_dict(), **more}
    source = pipeline.open_pipeline(
      cfg.data.pipeline, arguments, L=cfg.data.L, V=cfg.student.V
    )
    assert source.random_access and source.num_rows == expected
  rows = source.read([1])
  # Token 4096 is 96 of its document of 1,000, which begins this row.
  np.testing.assert_array_equal(rows.tokens_BL[0, [0, 904, 905]], [96, 0, 1])
  np.testing.assert_array_equal(rows.segments_BL[0, [0, 904, 905]], [1, 1, 2])
  np.testing.assert_array_equal(
    rows.positions_BL[0, [0, 904, 905]], [0, 904, 0]
  )


@pytest.mark.usefixtures("desk")
def test_the_readme_s_config_is_planned(capsys):
  assert main.main(["plan", "--config=configs/ours.py"]) == main.OK
  out = capsys.readouterr().out
  assert "inside the window" in " ".join(out.split())
  assert "64 devices" in out and "Will be refused" not in out


@pytest.mark.usefixtures("desk")
def test_the_renamed_pipeline_gives_rows():
  source = pipeline.open_pipeline(
    "lab_renamed:packed_rows", {"path": "x", "split": "train"}, L=8, V=10
  )
  assert source.num_rows == 5
  np.testing.assert_array_equal(source.read([3]).positions_BL[0], range(8))


# Links.


def anchors(text):
  """The anchors that a viewer makes of the headings."""
  headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
  plain = [re.sub(r"[^\w\- ]", "", h.lower()) for h in headings]
  return {h.replace(" ", "-") for h in plain}


def broken_links(page, text):
  """Links of a page that lead nowhere; those to other hosts are not tried."""
  found = []
  for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
    if link.startswith("https://"):
      continue
    path, _, anchor = link.partition("#")
    target = (page.parent / path) if path else page
    if not target.exists():
      found.append(link)
    elif anchor and anchor not in anchors(target.read_text("utf-8")):
      found.append(link)
  return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page(page):
  text = page.read_text("utf-8")
  assert broken_links(page, text) == []
  assert text.isascii()
  # Tables cannot be broken.
  lines = [x for x in text.splitlines() if "](https" not in x]
  assert [x for x in lines if len(x) > (140 if x[:1] == "|" else 80)] == []


def test_broken_links_are_found():
  page = ROOT / "README.md"
  text = "[a](docs/none.md) [b](#none) [c](#pages) [d](docs/config.md#none)"
  wrong = ["docs/none.md", "#none", "docs/config.md#none"]
  assert broken_links(page, text + "\n## Pages\n") == wrong


def test_every_page_is_named_in_the_readme():
  text = (ROOT / "README.md").read_text("utf-8")
  for page in (ROOT / "docs").glob("*.md"):
    assert f"(docs/{page.name})" in text
  text = (ROOT / "docs/running.md").read_text("utf-8")
  for page in (ROOT / "docs/running").glob("*.md"):
    assert f"(running/{page.name})" in text


# The page of all fields.

HEAD = """\
# Configuration

<!-- Written by tests/docs_test.py; renew it with
{renew} -->

One config describes one analog, and all stages read the same file: Python with
a function `get_config()` that returns an `ml_collections.ConfigDict` with the
fields below. Every field has to be there; none has a default, and a name that
is not below is refused. A config may begin from another one, as that of the
[README](../README.md#your-own-model-and-data) does, and any field can be
[overridden](running.md#overrides) for one run.

Each field comes with its type, the value in
[configs/demo.py](../configs/demo.py) in brackets, and its meaning. Letters are
those of the [glossary](glossary.md).
"""

NOTES = {
  "train.<phase>": """\
Every name in `train.phases` has a section of this form beside `phases`. The
demo's values are those of `pretrain`, `control` and `distill`, in this order
where they differ.""",
  "data": """\
`data.arguments` and `data.held_out_arguments` belong to the pipeline and may
hold anything that JSON can; see [data](data.md).""",
  "student": """\
The sizes are its shape letters; `student.V` has to be the teacher's.""",
}


def rendered():
  """The text of docs/config.md."""
  cfg = config_files.load(ROOT / "configs/demo.py", []).to_dict()
  sections = {}
  for field in config.schema():
    section, _, name = field.path.rpartition(".")
    line = f"- `{name}`: {field.type} [{demo_value(cfg, field.path)}]:"
    wrapped = textwrap.fill(
      f"{line} {field.meaning}.",
      80,
      subsequent_indent="  ",
      break_long_words=False,
      break_on_hyphens=False,
    )
    sections.setdefault(section, []).append(wrapped)
  parts = [HEAD.format(renew=RENEW)]
  for section, lines in sections.items():
    # In code, or a viewer takes <phase> for a tag.
    parts.append(f"\n## `{section}`\n\n")
    parts.append(f"{NOTES[section]}\n\n" if section in NOTES else "")
    parts.append("\n".join(lines) + "\n")
  return "".join(parts)


def demo_value(cfg, path):
  """A field's value in the demo; of phases each one that is different."""
  phases = cfg["train"]["phases"] if "<phase>" in path else ("",)
  values = []
  for phase in phases:
    node = cfg
    for name in path.replace("<phase>", phase).split("."):
      if node is None:
        break  # A section that the demo does not have.
      node = node[name]
    if isinstance(node, dict):
      values.append("see the file")
    elif isinstance(node, tuple):
      values.append(f"`{','.join(node)}`")
    elif node is None:
      values.append("none")
    else:
      values.append(f"`{json.dumps(node)}`")
  return ", ".join(values if len(set(values)) > 1 else values[:1])


def test_config_page_is_in_step():
  page = ROOT / "docs/config.md"
  assert page.read_text("utf-8") == rendered(), f"Renew it: {RENEW}"


if __name__ == "__main__":
  print(rendered(), end="")
