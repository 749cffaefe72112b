"""Tests for tests/benchmarks/peers_step.py, at toy size."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def module(monkeypatch):
  """Imports modules as the script does, from its folder."""
  monkeypatch.syspath_prepend(str(Path(__file__).parent))
  return importlib.import_module


@pytest.mark.slow
def test_the_whole_script(module, tmp_path, monkeypatch, capsys):
  """The steps of torch begin at our loss; a missing peer is reported."""
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  peers_step = module("peers_step")
  page = tmp_path / "page.md"
  page.write_text("<!-- peers step: begin -->\n<!-- peers step: end -->\n")
  monkeypatch.setattr(peers_step, "DOCS", page)
  sizes = "--V=600 --D=16 --W=24 --layers=1 --rows=2 --length=16 --rounds=2"
  peers_step.main([*sizes.split(), "--write-docs"])
  text = capsys.readouterr().out
  assert text.strip() in page.read_text()
  cells = [line.split(" | ") for line in text.splitlines() if line[0:1] == "|"]
  names = [line[0] for line in cells[2:]]
  assert names[0] == f"| {peers_step.OURS}" and len(set(names)) == len(names)
  assert cells[2][2] == "1.00 (1.00 to 1.00) |"
  assert sum(name.startswith("| torch ") for name in names) == 2
  for name, seconds, _ in cells[2:]:
    is_missing = (name, seconds) == ("| google-tunix", "not installed")
    assert is_missing or float(seconds) > 0


def test_other_losses_are_refused(module):
  peers_step = module("peers_step")
  arms = [
    peers_step.Arm("ours", lambda: 0.0),
    peers_step.Arm("peer", lambda: 0.0, "ours"),
    peers_step.Arm("missing", why_not="not installed", same_loss_as="ours"),
  ]
  peers_step.check_losses(arms, {"ours": 2.0, "peer": 2.0015})
  with pytest.raises(ValueError, match="peer: first loss 2.003000"):
    peers_step.check_losses(arms, {"ours": 2.0, "peer": 2.003})
  with pytest.raises(ValueError, match="peer: first loss nan"):
    peers_step.check_losses(arms, {"ours": 2.0, "peer": float("nan")})
