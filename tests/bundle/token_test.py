"""Signs with a key that never leaves its token, where SoftHSM is installed."""

from pathlib import Path
import shutil
import subprocess

from cryptography.hazmat.primitives.asymmetric import ec
import pytest

from analogjax.bundle import manifest, pem, signature, writer

pytest.importorskip("PyKCS11")
_LIBRARIES = (
  "/usr/lib/softhsm/libsofthsm2.so",
  "/usr/lib64/softhsm/libsofthsm2.so",
  "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
LIBRARY = next((name for name in _LIBRARIES if Path(name).exists()), None)
HAS_TOOLS = all(map(shutil.which, ("softhsm2-util", "pkcs11-tool", "openssl")))
pytestmark = pytest.mark.skipif(
  LIBRARY is None or not HAS_TOOLS,
  reason="needs softhsm2, opensc and openssl",
)


@pytest.fixture
def token(tmp_path, monkeypatch):
  """(URI of a key on P-256, its public key as a PEM file)."""
  (tmp_path / "tokens").mkdir()
  conf = tmp_path / "softhsm2.conf"
  conf.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
  monkeypatch.setenv("SOFTHSM2_CONF", str(conf))
  pin = tmp_path / "pin"
  pin.write_text("1234")
  pin.chmod(0o600)

  def run(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=60)

  run(
    *("softhsm2-util", "--init-token", "--free", "--label", "lab"),
    *("--pin", "1234", "--so-pin", "0000"),
  )
  tool = ("pkcs11-tool", "--module", LIBRARY, "--token-label", "lab")
  run(
    *(*tool, "--login", "--pin", "1234", "--keypairgen"),
    *("--key-type", "EC:prime256v1", "--label", "analog", "--id", "01"),
  )
  der, public = tmp_path / "key.der", tmp_path / "key.pub"
  run(
    *(*tool, "--read-object", "--type", "pubkey", "--label", "analog"),
    *("-o", str(der)),
  )
  run(
    *("openssl", "pkey", "-pubin", "-inform", "DER", "-in", str(der)),
    *("-out", str(public)),
  )
  where = f"module-path={LIBRARY}&pin-source=file:{pin}"
  return f"pkcs11:token=lab;object=analog;type=private?{where}", public


def test_a_token_signs_a_bundle(token, tmp_path):
  uri, public = token
  folder = tmp_path / "bundle"
  signer = signature.with_token(uri, public)
  writer.write(folder, files={"README.md": b"# A\n"}, signer=signer)
  identity = pem.Identity(pem.read_public_key(public))
  data = (folder / manifest.SIGNATURE).read_bytes()
  signed = signature.from_bytes(data, identity)
  assert signed.is_by(identity.key)
  assert "README.md" in signed.resources()


def test_a_token_with_another_key_than_was_named(token, tmp_path):
  uri, _ = token
  other = tmp_path / "other.pub"
  key = ec.generate_private_key(ec.SECP256R1())
  other.write_bytes(pem.public_pem(key.public_key()))
  signer = signature.with_token(uri, other)
  with pytest.raises(ValueError, match="the token: its key is not the one"):
    writer.write(tmp_path / "b", files={"README.md": b"x"}, signer=signer)
  assert not (tmp_path / "b").exists()
