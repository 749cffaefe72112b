"""Tests for analogjax/stages/verify.py: exit codes, outputs, no network."""

import json
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

sys.path.append(str(Path(__file__).parents[1] / "release"))

import tiny_bundle  # noqa: E402

from analogjax.stages import verify  # noqa: E402
from analogjax.verify import report as verify_page, rules  # noqa: E402

# As `analogjax verify` does it, where any use of a network fails.
_ALONE = """
import socket, sys
try:
  socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
  assert "unreachable" in str(error), error
else:
  sys.exit("there is a network")
from pathlib import Path
from analogjax.stages import verify
sys.exit(verify.run(Path(sys.argv[1]), key=Path(sys.argv[2]), deep=True))
"""


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory):
  """(folder of a bundle, public key)."""
  scratch = tmp_path_factory.mktemp("bundle")
  key = tiny_bundle.write_key(scratch / "key.pem")
  files, _ = tiny_bundle.contents(scratch)
  tiny_bundle.write(scratch / "bundle", files, key)
  return scratch / "bundle", key.with_suffix(".pub")


def test_it_says_what_was_found(made, tmp_path, capsys):
  folder, key = made
  page = tmp_path / "page.html"
  assert verify.run(folder, key=key, html=page) == 0
  out = capsys.readouterr().out
  assert "Nothing in this bundle failed: 0 failed" in out
  assert "The signature is by whom you expect. [signer]" in out
  text = page.read_text(encoding="utf-8")
  assert "The signature is by whom you expect." in text
  assert "<script" not in text and "http" not in text.replace("http-equiv", "")


def test_a_spoiled_bundle_is_one_exit_code_and_named(made, tmp_path, capsys):
  spoiled = tmp_path / "bundle"
  shutil.copytree(made[0], spoiled)
  (spoiled / "LICENSE").write_bytes(b"All yours.\n")
  assert verify.run(spoiled, as_json=True) == 1
  value = json.loads(capsys.readouterr().out)
  assert value["verdict"] == "failed"
  failed = {c["id"] for c in value["checks"] if c["status"] == "failed"}
  assert {"manifest", "licence"} <= failed
  assert value["counts"]["failed"] == len(failed)
  assert verify.run(spoiled) == 1
  assert "This bundle is NOT what it claims to be" in capsys.readouterr().out


def test_wrong_arguments_are_errors_of_the_user(made, tmp_path):
  folder, key = made
  with pytest.raises(ValueError, match="missing: expected the folder"):
    verify.run(tmp_path / "missing")
  with pytest.raises(ValueError, match="expected one of them, found both"):
    verify.run(folder, key=key, chain=(key,))
  with pytest.raises(ValueError, match="none.pub: cannot be read"):
    verify.run(folder, key=tmp_path / "none.pub")
  with pytest.raises(ValueError, match="LICENSE: expected a public key"):
    verify.run(folder, key=folder / "LICENSE")
  with pytest.raises(ValueError, match="outside of the bundle"):
    verify.run(folder, html=folder / "page.html")
  with pytest.raises(ValueError, match="cannot be written"):
    verify.run(folder, html=tmp_path / "missing" / "page.html")


def test_no_text_becomes_markup_or_moves_the_cursor():
  nasty = "<script>x</script> \x1b[2J \u202e [bold]b[/bold]"
  report = rules.Report((rules.Check("a", rules.FAILED, "A claim.", nasty),))
  page = verify_page.render(report)
  assert "<script" not in page and "&lt;script&gt;" in page
  assert "\x1b" not in page and "\u202e" not in page


def test_a_terminal_shows_markup_as_it_stands(capsys):
  from analogjax.cli import progress

  nasty = "\x1b[2J \u202e [bold]b[/bold]"
  report = rules.Report((rules.Check("a", rules.FAILED, "A claim.", nasty),))
  verify_page.print_report(report, progress.console())
  out = capsys.readouterr().out
  assert "[bold]b[/bold]" in out
  assert "\x1b" not in out and "\u202e" not in out


@pytest.mark.slow
def test_it_needs_no_network(made):
  unshare = shutil.which("unshare")
  if unshare is None:
    pytest.skip("unshare(1) of util-linux is not installed")
  alone = [unshare, "--user", "--map-root-user", "--net"]
  tried = subprocess.run([*alone, "true"], capture_output=True, text=True)
  if tried.returncode:
    pytest.skip(f"no namespace without a network: {tried.stderr.strip()}")
  out = subprocess.run(
    [*alone, sys.executable, "-c", _ALONE, *map(str, made)],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert out.returncode == 0, out.stdout + out.stderr
