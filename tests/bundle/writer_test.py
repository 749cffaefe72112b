"""Tests for analogjax/bundle/writer.py, manifest.py and signature.py."""

import json
from pathlib import Path
import subprocess
import sys

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import verifying
import pytest
from tiny_bundle import write_certificates

from analogjax.bundle import folder as walk, manifest, pem, signature, writer
from analogjax.bundle.strict_json import Refused

FILES = {"README.md": b"# A\n", "model/config.json": b"{}\n", "LICENSE": b"x"}
PRIVATE = dict(
  encoding=serialization.Encoding.PEM,
  format=serialization.PrivateFormat.PKCS8,
)


def write_key(path: Path, *, curve=None, password=None) -> Path:
  key = ec.generate_private_key(curve or ec.SECP256R1())
  locked = serialization.NoEncryption()
  if password:
    locked = serialization.BestAvailableEncryption(password)
  path.write_bytes(key.private_bytes(encryption_algorithm=locked, **PRIVATE))
  path.chmod(0o600)
  path.with_suffix(".pub").write_bytes(pem.public_pem(key.public_key()))
  return path


@pytest.fixture(name="key")
def _key(tmp_path):
  return write_key(tmp_path / "key.pem")


@pytest.fixture
def folder(tmp_path, key):
  """A bundle."""
  folder = tmp_path / "bundle"
  writer.write(folder, files=FILES, signer=signature.with_key(key))
  return folder


def test_model_signing_itself_accepts_a_bundle(folder, key):
  words = [sys.executable, "-m", "model_signing", "verify", "key"]
  words += ["--public_key", str(key.with_suffix(".pub"))]
  words += ["--signature", str(folder / manifest.SIGNATURE), str(folder)]

  def run():
    return subprocess.run(words, capture_output=True, text=True, timeout=120)

  assert run().returncode == 0, run().stderr
  (folder / "README.md").write_bytes(b"# B\n")
  assert run().returncode != 0


def test_model_signing_itself_accepts_certificates(tmp_path, key):
  folder = tmp_path / "bundle"
  own, root = write_certificates(tmp_path, key)
  signer = signature.with_key(key, certificates=(own, root))
  writer.write(folder, files=FILES, signer=signer)
  config = verifying.Config().use_certificate_verifier(certificate_chain=[root])
  config.verify(folder, folder / manifest.SIGNATURE)
  assert (folder / "signer.pem").read_bytes().count(b"BEGIN CERT") == 2


def test_an_encrypted_key_takes_its_password_from_a_file(tmp_path):
  key = write_key(tmp_path / "key.pem", password=b"open sesame")
  password = tmp_path / "password"
  password.write_bytes(b"open sesame\n")
  password.chmod(0o600)
  signer = signature.with_key(key, password_file=password)
  writer.write(tmp_path / "bundle", files=FILES, signer=signer)
  assert "sesame" not in repr(signer)
  with pytest.raises(ValueError, match="is encrypted; name a file"):
    signature.with_key(key)
  password.write_bytes(b"open barley\n")
  with pytest.raises(ValueError, match="a key that the password opens"):
    signature.with_key(key, password_file=password)
  plain = write_key(tmp_path / "plain.pem")
  with pytest.raises(ValueError, match="is not encrypted; leave"):
    signature.with_key(plain, password_file=password)


def test_a_key_that_cannot_sign_is_one_clear_error(tmp_path, key):
  other = write_key(tmp_path / "other.pem", curve=ec.SECP384R1())
  with pytest.raises(ValueError, match="other.pem: .*P-256, found .*secp384r1"):
    signature.with_key(other)
  key.chmod(0o640)
  with pytest.raises(ValueError, match=r"others may read .*640.*chmod 600"):
    signature.with_key(key)
  with pytest.raises(ValueError, match="none.pem: .*No such file"):
    signature.with_key(tmp_path / "none.pem")
  key.chmod(0o600)
  key.write_bytes(b"not a key")
  with pytest.raises(ValueError, match="key.pem: expected a private key"):
    signature.with_key(key)


def test_another_keys_certificate_is_refused(tmp_path, key):
  own, root = write_certificates(tmp_path, write_key(tmp_path / "b.pem"))
  with pytest.raises(ValueError, match="is not that of the key"):
    signature.with_key(key, certificates=(own, root))


def test_a_pin_on_the_command_line_is_refused(tmp_path, key):
  public = key.with_suffix(".pub")
  with pytest.raises(ValueError, match="pin-source") as caught:
    signature.with_token("pkcs11:token=a;pin-value=1234", public)
  assert "1234" not in str(caught.value)


def test_a_failed_write_leaves_what_was_there(tmp_path, key):
  folder, signer = tmp_path / "bundle", signature.with_key(key)
  writer.write(folder, files=FILES, signer=signer)
  before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
  for files, expected in (
    ({"a.bin": b""}, "a.bin: not a kind of file"),
    ({"../a.md": b""}, "a name may have"),
    ({"manifest.json": b""}, "reserved"),
    ({"a.md": tmp_path / "missing"}, "missing: cannot be read"),
  ):
    with pytest.raises(ValueError, match=expected):
      writer.write(folder, files=files, signer=signer)
  assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "bundle",
    "key.pem",
    "key.pub",
  ]
  writer.write(folder, files={"b.md": b"new"}, signer=signer)
  assert (folder / "b.md").exists() and not (folder / "README.md").exists()


def test_a_manifest_has_one_form():
  entries = {"a.md": manifest.Entry(1, "ab" * 32)}
  data = manifest.to_bytes(entries)
  assert manifest.from_bytes(data) == entries
  for i in range(len(data)):
    for bit in (1, 32):
      flipped = bytearray(data)
      flipped[i] ^= bit
      try:
        assert manifest.from_bytes(bytes(flipped)) != entries
      except Refused:
        pass


def test_a_signature_has_one_form(folder):
  identity = pem.from_bytes((folder / "signer.pem").read_bytes())
  data = (folder / manifest.SIGNATURE).read_bytes()
  signed = signature.from_bytes(data, identity)
  assert set(signed.resources()) == {
    *("README.md", "model/config.json", "LICENSE"),
    *("manifest.json", "signer.pem"),
  }
  value = json.loads(data)
  with pytest.raises(Refused, match="one form"):
    signature.from_bytes(json.dumps(value).encode(), identity)
  # The other of the two values that ECDSA allows.
  order = signature._ORDER
  r, s = signature.decode_dss_signature(signed.signature)
  larger = signature.encode_dss_signature(r, order - s)
  other = signature.Signed(signed.payload, larger, identity)
  assert other.is_by(identity.key)
  with pytest.raises(Refused, match="one form"):
    signature.from_bytes(other.to_bytes(), identity)


def test_no_private_key_is_in_a_bundle_or_printed(tmp_path, key):
  script = (
    "import sys, pathlib\n"
    "from analogjax.bundle import writer as bundle, signature as signing\n"
    "signer = signing.with_key(pathlib.Path(sys.argv[1]))\n"
    "bundle.write(pathlib.Path(sys.argv[2]), files={'a.md': b'a'},"
    " signer=signer)\n"
    "print(signer)\n"
  )
  folder = tmp_path / "bundle"
  out = subprocess.run(
    [sys.executable, "-c", script, str(key), str(folder)],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert out.returncode == 0, out.stderr
  secret = key.read_text().splitlines()[1:-1]
  found = [out.stdout, out.stderr]
  found += [p.read_text() for p in folder.rglob("*") if p.is_file()]
  assert not [line for line in secret for text in found if line in text]


def test_a_written_bundle_is_listed_without_problems(folder):
  tree = walk.open_tree(folder)
  assert not tree.problems
  assert set(FILES) < set(tree.files)
