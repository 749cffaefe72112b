"""Tests for analogjax/bundle/folder.py: hostile folders."""

import os
import socket

import pytest

from analogjax.bundle import folder as walk
from analogjax.bundle.strict_json import Refused


def problems(folder):
  return "\n".join(walk.open_tree(folder).problems)


def test_files_are_listed_with_their_sizes(tmp_path):
  (tmp_path / "model").mkdir()
  (tmp_path / "model" / "config.json").write_bytes(b"{}")
  (tmp_path / "LICENSE").write_bytes(b"abc")
  tree = walk.open_tree(tmp_path)
  assert dict(tree.files) == {"LICENSE": 3, "model/config.json": 2}
  assert not tree.problems
  assert tree.read("LICENSE") == b"abc"
  assert tree.range("LICENSE", 1, 2) == b"bc"
  assert tree.read_json("model/config.json") == {}
  with pytest.raises(Refused, match="ends 2 bytes too early"):
    tree.range("LICENSE", 2, 3)
  with pytest.raises(Refused, match="3 bytes, expected <= 2"):
    tree.read("LICENSE", 2)
  with pytest.raises(Refused, match="no such file"):
    tree.read("../walk_test.py")


def test_links_and_devices_are_named_and_never_opened(tmp_path):
  secret = tmp_path / "secret.json"
  secret.write_text("{}")
  folder = tmp_path / "bundle"
  folder.mkdir()
  (folder / "a.json").symlink_to(secret)
  (folder / "b").symlink_to(tmp_path)
  os.mkfifo(folder / "c.json")
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(folder / "d.json"))
    tree = walk.open_tree(folder)
  assert not tree.files
  assert sorted(tree.problems) == [
    "a.json: a symbolic link, not a regular file",
    "b: a symbolic link, not a regular file",
    "c.json: a pipe, not a regular file",
    "d.json: a socket, not a regular file",
  ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_named(tmp_path):
  try:
    os.mknod(tmp_path / "zero.json", 0o20600, os.makedev(1, 5))
  except PermissionError as error:
    pytest.skip(f"no devices can be made here: {error}")
  assert "zero.json: a character device" in problems(tmp_path)


@pytest.mark.parametrize(
  "name",
  [
    *(".gitattributes", "a\n.md", "a\u202e.md", "caf\u00e9.md", "e\u0301.md"),
    *("a b.md", "-a.md", "a.md.", "\u0430.md", "x" * 129 + ".md"),
    b"\xff.md",
  ],
)
def test_a_name_out_of_the_alphabet_is_refused(tmp_path, name):
  path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
  with open(path, "wb"):
    pass
  tree = walk.open_tree(tmp_path)
  assert not tree.files
  assert "a name may have ASCII letters" in tree.problems[0]
  tree.problems[0].encode("ascii")  # Any name can be printed.
  assert "\n" not in tree.problems[0]


@pytest.mark.parametrize(
  "name", ["a.bin", "a.py", "a.pkl", "a.zip", "a", "a.PY", "a.json.gz", "a.pt"]
)
def test_a_kind_of_file_that_could_run_is_refused(tmp_path, name):
  (tmp_path / name).write_bytes(b"")
  assert "not a kind of file" in problems(tmp_path)


@pytest.mark.parametrize("path", ["/a.md", "../a.md", "a//b.md", "a/../b.md"])
def test_a_path_out_of_the_bundle_is_refused(path):
  assert walk.file_problem(path)


def test_names_that_differ_by_case_alone_are_refused(tmp_path):
  (tmp_path / "Model").mkdir()
  (tmp_path / "model").mkdir()
  (tmp_path / "Model" / "a.md").write_bytes(b"")
  (tmp_path / "model" / "b.md").write_bytes(b"")
  assert "differs from Model by case alone" in problems(tmp_path)


def test_too_deep_too_many_and_empty_folders_are_refused(tmp_path, monkeypatch):
  (tmp_path / "/".join("abcdefghij")).mkdir(parents=True)
  assert "deeper than 8 folders" in problems(tmp_path)
  monkeypatch.setattr(walk, "MOST_ENTRIES", 4)
  assert "more than 4 entries" in problems(tmp_path)
  other = tmp_path / "other"
  (other / "empty").mkdir(parents=True)
  assert problems(other) == "empty/: an empty folder"


def test_a_file_that_becomes_a_link_or_grows_is_refused(tmp_path):
  path = tmp_path / "a.json"
  path.write_bytes(b"{}")
  tree = walk.open_tree(tmp_path)
  path.write_bytes(b"{} ")
  with pytest.raises(Refused, match="size changed"):
    tree.sha256("a.json")
  path.unlink()
  path.symlink_to("/etc/hostname")
  with pytest.raises(Refused, match="cannot be opened"):
    tree.read("a.json")
  path.unlink()
  os.mkfifo(path)  # Opening it would wait for a writer.
  with pytest.raises(Refused, match="not a regular file"):
    tree.read("a.json")


def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path):
  (tmp_path / "real").mkdir()
  (tmp_path / "real" / "a.json").write_bytes(b"{}")
  tree = walk.open_tree(tmp_path)
  (tmp_path / "real").rename(tmp_path / "moved")
  (tmp_path / "real").symlink_to(tmp_path / "moved")
  with pytest.raises(Refused, match="cannot be opened"):
    tree.read("real/a.json")


def test_a_folder_that_is_not_there_is_the_callers_mistake(tmp_path):
  with pytest.raises(ValueError, match="but there is none"):
    walk.open_tree(tmp_path / "missing")
