"""Tests for analogjax/stages/verify.py: exit codes, outputs, no network."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny_bundle

from analogjax.cli import progress
from analogjax.stages import verify
from analogjax.verify import bundle, report as verify_report, rules, trust

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


def test_a_good_bundle_is_a_line_for_each_claim(made, tmp_path, capsys):
  folder, key = made
  page = tmp_path / "page.html"
  assert verify.run(folder, key=key, html=page) == 0
  out = capsys.readouterr().out
  assert "No claim failed: 8 declared, 1 not checkable, 21 verified." in out
  assert out.startswith("analog-example-3M 1\n"), out
  assert "Signer: The given key made the signature." in out
  lines = [" ".join(line.split()) for line in out.splitlines()]
  for check in _check(folder, key).checks:
    sign = verify_report._LOOKS[check.status][0]
    assert f"{sign} {check.text} [{check.id}]" in lines
    # Only what is left to do is explained.
    told = check.status == rules.NOT_CHECKABLE
    assert (check.evidence in lines) == told, check
  assert len(lines) < 50
  assert verify.run(folder, verbose=True) == 0
  out = capsys.readouterr().out
  assert "All 4,896 numbers were read." in out
  assert "No claim failed, but the signer was not checked: 8 decl" in out


def _check(folder, key):
  expected = trust.with_key(key)
  return bundle.check(folder, verifier=expected)


def test_a_page_begins_with_who_signed_what_and_ends_with_what_passed(made):
  folder, key = made
  page = verify_report.render(_check(folder, key))
  assert "<script" not in page and "http" not in page.replace("http-equiv", "")
  order = (
    "<h1>analog-example-3M 1</h1>",
    "2026-05-31",
    "The given key made the signature.",
    "No claim failed",
    "Declared (8)",
    "Not checkable (1)",
    "<details",
    "The signature is by the expected signer.",
  )
  places = [page.index(text) for text in order]
  assert places == sorted(places)
  assert "Failed (" not in page


def test_failures_and_waivers_come_before_the_rest():
  checks = (
    rules.Check("a", rules.VERIFIED, "It is so.", "Seen."),
    rules.Check("b", rules.DECLARED, "They say so.", "Said."),
    rules.Check("c", rules.FAILED, "It is not so.", "Broken."),
  )
  about = rules.About(name="N", waived={"data": "It is a secret."})
  page = verify_report.render(rules.Report(checks, about))
  order = ("NOT what it claims", "Broken.", "It is a secret.", "Said.", "Seen.")
  places = [page.index(text) for text in order]
  assert places == sorted(places)


def test_a_folder_that_is_no_bundle_is_told_so(made, tmp_path):
  (tmp_path / "README.md").write_text("A model.")
  with pytest.raises(ValueError, match="not a bundle: it has no manifest.json"):
    verify.run(tmp_path)
  shutil.copytree(made[0], tmp_path / "bundle")
  with pytest.raises(ValueError, match=f"Did you mean {tmp_path}/bundle?"):
    verify.run(tmp_path)
  # One file less does not make it another thing.
  (tmp_path / "bundle/manifest.json").unlink()
  assert verify.run(tmp_path / "bundle") == 1


def test_a_bundle_with_an_invalid_record_has_no_name(made, tmp_path, capsys):
  spoiled = tmp_path / "bundle"
  shutil.copytree(made[0], spoiled)
  (spoiled / "record.json").write_text('{"model": {"name": "Good One"}}')
  assert verify.run(spoiled, key=made[1], as_json=True) == 1
  found = json.loads(capsys.readouterr().out)["bundle"]
  assert found == {
    **dict.fromkeys(("name", "version", "provider", "released_on"), ""),
    "key_sha256": "",
    "signer": "unknown, because the signature did not pass",
    "waived": {},
  }


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


NASTY = "<script>x</script> \x1b[2J \u202e [bold]b[/bold]"


def _nasty():
  check = rules.Check("a", rules.FAILED, "A claim.", NASTY)
  about = rules.About(name=NASTY, signer=NASTY, waived={NASTY: NASTY})
  return rules.Report((check,), about)


def test_no_text_becomes_markup_or_moves_the_cursor():
  page = verify_report.render(_nasty())
  assert "<script" not in page and "&lt;script&gt;" in page
  assert "\x1b" not in page and "\u202e" not in page


def test_a_terminal_shows_markup_as_it_stands(capsys):
  verify_report.print_report(_nasty(), progress.console())
  out = capsys.readouterr().out
  assert out.count("[bold]b[/bold]") == 5
  assert "\x1b" not in out and "\u202e" not in out


@pytest.mark.medium
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
