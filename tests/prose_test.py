"""Files in git are texts without paths and hosts of one machine."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MAX_BYTES = 1 << 20
IMAGES = {".png", ".jpg", ".svg"}
# Weights, caches and corpora belong into a work folder.
DATA = {".safetensors", ".gguf", ".npy", ".npz", ".pt", ".arrayrecord"}

# Each pattern is written so that it does not match its own line.
FORBIDDEN = {
  "a path of one machine": re.compile(
    r"/(?:home|root|work|Users)/|/tmp/ven[v]|/mnt/[a-z]/"
  ),
  "a package index by host": re.compile(
    r"pypi[.]org|pythonhoste[d]|npmjs[.]|deb[.]debian|anaconda[.]org"
    r"|download[.]pytorch"
  ),
}


def problems(path, data):
  """Lists problems of the file `path` of bytes `data`."""
  found = []
  suffix = pathlib.PurePosixPath(path).suffix
  if len(data) > MAX_BYTES:
    found.append(f"{path}: {len(data)} bytes; the most is {MAX_BYTES}")
  if suffix in DATA or ".zarr/" in path or path.endswith("zarr.json"):
    found.append(f"{path}: weights and data do not belong in git")
  if suffix in IMAGES:
    return found
  try:
    text = data.decode("utf-8")
  except UnicodeDecodeError:
    return [*found, f"{path}: is not UTF-8 text"]
  if "\0" in text:
    found.append(f"{path}: is binary")
  if "\r" in text:
    found.append(f"{path}: has carriage returns; lines end in LF alone")
  if suffix == ".py" and not text.isascii():
    found.append(f"{path}: code is ASCII")
  for number, line in enumerate(text.splitlines(), 1):
    for what, pattern in FORBIDDEN.items():
      if match := pattern.search(line):
        found.append(f"{path}:{number}: names {what}: {match[0]}")
  return found


def test_tracked_files():
  listing = subprocess.run(
    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
  )
  if listing.returncode:
    pytest.skip("not a git checkout: " + listing.stderr.strip())
  paths = [p for p in listing.stdout.split("\0") if (ROOT / p).is_file()]
  assert "pyproject.toml" in paths
  found = [x for p in paths for x in problems(p, (ROOT / p).read_bytes())]
  assert not found, "\n".join(found)


@pytest.mark.parametrize(
  ("path", "data", "expected"),
  [
    ("a.md", b"see /hom" + b"e/me/x", "path of one machine"),
    ("a.md", b"cd /roo" + b"t/x", "path of one machine"),
    ("a.py", b"'/wor" + b"k/x'", "path of one machine"),
    ("a.md", b"/tmp/ve" + b"nv", "path of one machine"),
    ("a.txt", b"--index-url https://pypi." + b"org/simple", "index by host"),
    ("a.md", b"files.python" + b"hosted.org", "index by host"),
    ("a.md", b"a\r\nb", "carriage returns"),
    ("a.bin", b"\xff\xfe", "not UTF-8"),
    ("a.bin", b"a\0b", "binary"),
    ("a.py", "# caf\u00e9".encode(), "ASCII"),
    ("a.txt", b"a" * (MAX_BYTES + 1), "bytes"),
    ("a.png", b"\xff" * (MAX_BYTES + 1), "bytes"),
    ("m.safetensors", b"", "weights"),
    ("m.gguf", b"", "weights"),
    ("c.zarr/c/0", b"", "weights"),
    ("cache/zarr.json", b"{}", "weights"),
  ],
)
def test_a_bad_file_is_found(path, data, expected):
  found = problems(path, data)
  assert len(found) == 1
  assert found[0].startswith(path) and expected in found[0]


def test_a_good_file_passes():
  text = "A work/home folder in runs/demo: x_BLD of caf\u00e9s\n".encode()
  assert not problems("docs/a.md", text)


def unknown_modules(docstring):
  """The Python files that a docstring names but that do not exist."""
  named = re.findall(r"[\w/]+\.py\b", docstring)
  return [
    name
    for name in named
    if not any(ROOT.glob(name))
    and not any((ROOT / "analogjax").rglob(name))
    and not any((ROOT / "tests").rglob(name))
  ]


def test_tests_name_modules_that_exist():
  for path in (ROOT / "tests").rglob("*.py"):
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert docstring, f"{path}: expected a docstring that says what is tested"
    assert unknown_modules(docstring) == [], path


def test_a_module_that_is_gone_is_found():
  docstring = "Tests for analogjax/gone.py and for prose_test.py."
  assert unknown_modules(docstring) == ["analogjax/gone.py"]
