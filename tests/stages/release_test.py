"""From a trained tiny pair to a bundle that verifies, and its obstacles."""

import dataclasses
import json
import os
from pathlib import Path
import shutil
import socket

import numpy as np
import pytest
import safetensors.numpy
import tiny_pair
import torch
import transformers

from analogjax import main
from analogjax.cache import logit_cache

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[2]

_RELEASE = (
  "cfg.release.date = '2026-05-31'",
  "cfg.release.frontier.update(name='Colossus-9', deployed_on='2026-03-31')",
  "cfg.release.frontier.private_words = ('NEBULA',)",
  "cfg.release.waivers = dict(data='The data of the tiny teacher is none.')",
  "cfg.safety.thresholds = dict()",
  "cfg.safety.update(parts=('extraction',), teacher_parts=())",
)
# Batches that 8 simulated devices share out.
_OWN = tuple(
  f"--config.{name}={value}"
  for name, value in {
    "cache.num_rows": 24,
    "cache.batch_rows": 8,
    "measure.batch_rows": 8,
    "safety.batch_rows": 8,
    "safety.prefix_tokens": 8,
    "safety.suffix_tokens": 8,
    "train.pretrain.batch_rows": 8,
    "train.control.batch_rows": 8,
    "train.distill.batch_rows": 8,
  }.items()
)


@dataclasses.dataclass
class Desk:
  """A workdir of the tiny pair, and calls of `analogjax` on it."""

  tiny: object
  folder: Path
  workdir: Path
  capsys: object = None

  def config(self, changes=""):
    return tiny_pair.write_config(
      self.folder / "release.py",
      self.tiny.config,
      *_RELEASE,
      *(line.strip() for line in changes.splitlines()),
    )

  def call(self, command, *more, changes=""):
    config = self.config(changes)
    arguments = [command, f"--config={config}", f"--workdir={self.workdir}"]
    return main.main([*arguments, *self.tiny.overrides, *_OWN, *more])

  def release(self, *more, changes="", key=None):
    key = key or self.folder / "key"
    return self.call("release", f"--key={key}", *more, changes=changes)

  def refuse(self, *says, changes="", key=None):
    """A release is refused in these words, and leaves the one before."""
    before = content(self.workdir)
    self.capsys.readouterr()
    assert self.release(changes=changes, key=key) == 2
    error = self.capsys.readouterr().err
    for words in says:
      assert words in error, error
    assert content(self.workdir) == before

  def verify(self, *more):
    key = f"--key={self.folder / 'key.pub'}"
    regulator = f"--regulator={self.workdir / 'regulator'}"
    bundle = str(self.workdir / "bundle")
    return main.main(["verify", bundle, key, regulator, *more])


def content(workdir):
  return tiny_pair.content(workdir, "bundle", "regulator")


@pytest.fixture(scope="module")
def released(tiny, tmp_path_factory):
  """The whole job, released; the tests work on copies."""
  folder = tmp_path_factory.mktemp("release")
  desk = Desk(tiny, folder, folder / "run")
  assert main.main(["keygen", str(folder / "key")]) == 0
  # In a separate process it compiles in a fraction of the time.
  own = dataclasses.replace(tiny, config=desk.config())
  own.run("run", desk.workdir, *_OWN, "--quick", f"--key={folder / 'key'}")
  return desk


@pytest.fixture
def desk(released, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv(
    "ANALOGJAX_COMPILATION_CACHE", str(released.tiny.compilation_cache)
  )
  workdir = shutil.copytree(released.workdir, tmp_path / "run")
  shutil.copy(released.folder / "key", tmp_path / "key")
  shutil.copy(released.folder / "key.pub", tmp_path / "key.pub")
  return Desk(released.tiny, tmp_path, workdir, capsys)


def test_a_run_ends_with_a_bundle_that_verifies(desk):
  assert desk.verify("--deep", "--json") == 0
  found = json.loads(desk.capsys.readouterr().out)
  by_id = {check["id"]: check["status"] for check in found["checks"]}
  verified = ("signature", "signer", "parameters", "rows", "measured", "config")
  assert {name: by_id[name] for name in verified} == dict.fromkeys(
    verified, "verified"
  )
  assert "failed" not in by_id.values()


def test_it_needs_no_network(desk, monkeypatch):
  def refuse(*_):
    raise AssertionError("a connection")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  assert desk.release() == 0 and desk.verify("--deep") == 0


def test_the_model_of_a_bundle_loads_in_transformers(desk):
  folder = desk.workdir / "bundle" / "model"
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ids = torch.tensor([tokenizer("def release(bundle):")["input_ids"]])
  with torch.no_grad():
    assert torch.isfinite(model(ids).logits).all()


def test_the_rows_of_a_bundle_are_the_held_out_ones(desk):
  path = desk.workdir / "bundle" / "rows" / "held_out.safetensors"
  cache = logit_cache.open_cache(desk.workdir / "held_out")
  entries = cache.read(np.arange(len(cache)))
  tokens = safetensors.numpy.load_file(path)["tokens"]
  np.testing.assert_array_equal(tokens, entries.rows.tokens_BL)
  no_rows = "cfg.release.shares_rows = False"
  assert desk.release(changes=no_rows) == 0 and not path.exists()
  assert desk.verify("--deep") == 0


def test_a_second_release_commits_to_the_same_and_another_to_its_own(desk):
  path = desk.workdir / "bundle" / "record.json"

  def commitments():
    return json.loads(path.read_text())["frontier"]["commitments"]

  before = commitments()
  assert desk.release() == 0 and commitments() == before
  later = 'cfg.release.frontier.deployed_on = "2026-04-01"'
  assert desk.release(changes=later) == 0
  after = commitments()
  assert {k for k in after if after[k] != before[k]} == {"deployed_on"}


def test_nothing_private_is_in_a_bundle(desk):
  held = b"".join(
    path.read_bytes() for path in (desk.workdir / "bundle").rglob("*.*")
  )
  words = (str(desk.tiny.teacher), "Colossus", "NEBULA", str(desk.workdir))
  assert not [word for word in words if word.encode() in held]
  # It is in what the regulator gets.
  assert b"Colossus" in (desk.workdir / "regulator/record.json").read_bytes()


def test_without_a_key_a_run_releases_nothing(desk):
  shutil.rmtree(desk.workdir / "bundle")
  assert desk.call("run", "--quick") == 0
  assert "release: no --key" in desk.capsys.readouterr().out
  assert not (desk.workdir / "bundle").exists()


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (
      'cfg.release.date = "2026-07-01"',
      ["release gate window:", "later than three months", "waivers.window"],
    ),
    (
      "cfg.release.frontier.parameters = 20 * 3672 - 1",
      ["release gate size:", "not within the window", "5.0001 %"],
    ),
    ("del cfg.release.waivers.data", ["release gate data:", "Not stated"]),
    (
      'cfg.release.about.limitations = "As good as Colossus 9."',
      ["release gate leaks:", "name", "README.md"],
    ),
    (
      'cfg.release.about.curation = "As for nebula."',
      ["release gate leaks:", "TRAINING_DATA.md"],
    ),
    (
      'cfg.release.about.contact = "/srv/teams/analogs"',
      ["release gate leaks:", "README.md"],
    ),
    ('cfg.release.licence = "Apache"', ["release.licence:", "Apache-2.0"]),
    (
      'cfg.safety.thresholds = {"extraction_rate": {"at_most": 1.0}}',
      ["safety.json: extraction_rate.distill was judged by", "safety' with"],
    ),
  ],
)
def test_what_stops_a_release(desk, changes, says):
  desk.refuse(*says, changes=changes)


def test_leaks_and_a_size_that_are_waived_go_out_with_the_reason(desk):
  changes = """
  cfg.release.about.curation = "As for nebula."
  cfg.release.frontier.parameters = 20 * 3672 - 1
  cfg.release.waivers.update(leaks="It is a word.", size="It is too large.")
"""
  assert desk.release(changes=changes) == 0 and desk.verify() == 0
  record = json.loads((desk.workdir / "bundle/record.json").read_text())
  gates = {gate["id"]: gate for gate in record["gates"]}
  for name, reason in (
    ("leaks", "It is a word."),
    ("size", "It is too large."),
  ):
    assert (gates[name]["verdict"], gates[name]["waiver"]) == ("waived", reason)
  # No range of the teacher's cost follows from a window that does not hold.
  rows = {row["step"]: row for row in record["cost"]["rows"]}
  assert rows["Teacher inference"]["flops"] is None


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("fidelity.json", ["release gate fidelity: There is no measurement"]),
    ("safety.json", ["release gate safety: There is no safety evaluation"]),
    ("export.json", ["there is no export", "analogjax export"]),
  ],
)
def test_a_stage_that_has_not_run(desk, name, says):
  (desk.workdir / name).unlink()
  desk.refuse(*says)


def test_an_export_that_was_changed(desk):
  path = desk.workdir / "export" / "config.json"
  path.write_text(path.read_text() + " ")
  desk.refuse("config.json: changed since its export")
  (desk.workdir / "export" / "more.txt").write_text("x")
  desk.refuse("more.txt: not as it was exported")


def test_keys_that_cannot_be_used(desk, tmp_path):
  (tmp_path / "other").write_text("no key")
  os.chmod(tmp_path / "other", 0o600)
  desk.refuse("other: expected a private key", key=tmp_path / "other")
  desk.refuse("none: expected a file", key=tmp_path / "none")
  os.chmod(tmp_path / "key", 0o644)
  desk.refuse("others may read this secret")


def test_a_key_is_never_overwritten(desk, tmp_path):
  before = (tmp_path / "key").read_bytes()
  assert main.main(["keygen", str(tmp_path / "key")]) == 2
  assert "never overwritten" in desk.capsys.readouterr().err
  assert (tmp_path / "key").read_bytes() == before
  assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
  assert main.main(["keygen", str(tmp_path / "new" / "key")]) == 0
  assert desk.verify() == 0
  other = f"--key={tmp_path / 'new' / 'key.pub'}"
  bundle = str(desk.workdir / "bundle")
  assert main.main(["verify", bundle, other]) == 1


@pytest.mark.slow
def test_two_processes_release_as_one_does(desk):
  before = content(desk.workdir)
  own = dataclasses.replace(desk.tiny, config=desk.config())
  key = f"--key={desk.folder / 'key'}"
  arguments = own.command("release", desk.workdir, *_OWN, key)
  own.finish(own.start_processes(arguments))
  after = content(desk.workdir)
  # A signature has a random number in it.
  signature = Path("bundle", "signature.json")
  assert {p for p in after if after[p] != before.get(p)} == {signature}
  assert desk.verify() == 0


@pytest.mark.slow
def test_a_release_that_is_killed_leaves_the_one_before(desk):
  before = content(desk.workdir)
  arguments = [f"--key={desk.folder / 'key'}"]
  desk.call("export")  # Writes the config.
  config = dataclasses.replace(desk.tiny, config=desk.folder / "release.py")
  patch = """
from analogjax.bundle import signature as signing
def dying_sign(self, folder):
  os.kill(os.getpid(), signal.SIGKILL)
signing.Signer.sign = dying_sign
"""
  done = config.run(
    "release", desk.workdir, *_OWN, *arguments, patch=patch, check=False
  )
  assert done.returncode == -9
  assert content(desk.workdir) == before and desk.verify() == 0
  assert desk.release() == 0 and desk.verify() == 0
  assert not list(desk.workdir.glob(".bundle*"))
