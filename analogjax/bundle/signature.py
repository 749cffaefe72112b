"""Makes, parses and checks signature.json of a bundle.

The file is a Sigstore bundle (v0.3) with a DSSE envelope around an in-toto
statement that lists every file with its SHA-256, as model-signing writes it and
checks it with its own command. Here it has one canonical form in bytes: every
unsigned part follows from signer.pem, which is signed, and of the two values
that ECDSA allows for one signature it holds the smaller. So no byte of it can
change unnoticed.

Keys are on the curve P-256. A private key is only named by its path or by the
URI of a token; it is neither kept nor printed.
"""

import base64
import binascii
from collections.abc import Sequence
import dataclasses
import json
import os
from pathlib import Path
import stat
import tempfile
from typing import Any

from cryptography import exceptions
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
  decode_dss_signature,
  encode_dss_signature,
)

from analogjax.bundle import manifest, pem, strict_json
from analogjax.bundle.strict_json import Refused

SIGNER = "signer.pem"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
# The order of P-256's group: NIST SP 800-186, section 3.2.1.3.
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signer:
  """Signs a bundle; made by `with_key` or `with_token`.

  Attributes:
    identity: the content of signer.pem.
    private_key: path of a PEM file, or None.
    password_file: holds that key's password, or None.
    pkcs11_uri: names a key on a token, or is "".
  """

  identity: pem.Identity
  private_key: Path | None = None
  password_file: Path | None = None
  pkcs11_uri: str = ""

  def sign(self, folder: Path) -> bytes:
    """Makes signature.json for a folder that holds all the other files.

    Raises:
      ValueError: the key cannot be used, or is not that of the identity.
    """
    from model_signing import hashing, signing

    config = signing.Config()
    config.set_hashing_config(
      hashing.Config().set_ignored_paths(
        paths=[manifest.SIGNATURE], ignore_git_paths=False
      )
    )
    if self.private_key is not None:
      # It asks for a str, and passes it to a function that takes bytes (1.1.1).
      password: Any = _password(self.password_file)
      config.use_elliptic_key_signer(
        private_key=self.private_key, password=password
      )
    else:
      _use_token(config, self.pkcs11_uri)
    with tempfile.TemporaryDirectory() as scratch:
      path = Path(scratch) / manifest.SIGNATURE
      config.sign(folder, path)
      found = json.loads(path.read_bytes())
    envelope = found["dsseEnvelope"]
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    signed = Signed(
      base64.b64decode(envelope["payload"]), _smaller(signature), self.identity
    )
    if not signed.is_by(self.identity.key):
      raise ValueError(
        f"{self.private_key or 'the token'}: its key is not the one of the"
        " public key or certificate that was given; name the two that belong"
        " together."
      )
    return signed.to_bytes()


def with_key(
  private_key: Path,
  *,
  password_file: Path | None = None,
  certificates: Sequence[Path] = (),
) -> Signer:
  """Makes a signer whose key is in a PEM file.

  Args:
    private_key: a key on P-256, in a file that nobody else may read.
    password_file: a file with the password of an encrypted key.
    certificates: the key's own first, then its issuers'; none: only the public
      key goes into the bundle.

  Raises:
    ValueError: names the file, what was expected and what to do.
  """
  data = _secret(private_key)
  password = _password(password_file)
  try:
    key = serialization.load_pem_private_key(data, password)
  except TypeError:
    # cryptography distinguishes the two only by this.
    what = "is encrypted; name a file with its password"
    if password is not None:
      what = "is not encrypted; leave the password file out"
    raise ValueError(f"{private_key}: the key {what}.") from None
  except (ValueError, exceptions.UnsupportedAlgorithm):
    what = "a private key in PEM" if password is None else "a key that the"
    more = "" if password is None else " password opens"
    raise ValueError(
      f"{private_key}: expected {what}{more}, found something else."
    ) from None
  public = pem.p256(key.public_key(), str(private_key))
  if not certificates:
    return Signer(
      identity=pem.Identity(public),
      private_key=private_key,
      password_file=password_file,
    )
  chain = pem.read_certificates(certificates)
  identity = pem.of_certificates(chain, str(certificates[0]))
  if identity.key != public:
    raise ValueError(
      f"{certificates[0]}: the first certificate is not that of the key"
      f" {private_key}; put the key's own certificate first."
    )
  return Signer(
    identity=identity, private_key=private_key, password_file=password_file
  )


def with_token(uri: str, public_key: Path) -> Signer:
  """Makes a signer whose key stays on a token (PKCS#11).

  Args:
    uri: RFC 7512; the PIN by `pin-source`, never in the URI itself.
    public_key: a PEM file with the public key of the key on the token.

  Raises:
    ValueError: the URI or the file is not valid.
  """
  if not uri.startswith("pkcs11:"):
    raise ValueError(
      "the key: expected a path or a URI that begins with pkcs11:, found"
      " something else."
    )
  if "pin-value" in uri:
    raise ValueError(
      "the key's URI: it holds the PIN itself, which others can read in the"
      " list of processes; put it into a file and name that by"
      " pin-source=file:/path."
    )
  return Signer(
    identity=pem.Identity(pem.read_public_key(public_key)), pkcs11_uri=uri
  )


@dataclasses.dataclass(frozen=True)
class Signed:
  """The contents of signature.json.

  Attributes:
    payload: the signed statement, JSON.
    signature: ECDSA over SHA-256, DER.
    identity: the claimed signer.
  """

  payload: bytes
  signature: bytes
  identity: pem.Identity

  def to_bytes(self) -> bytes:
    """The canonical bytes of the file."""
    material: dict[str, Any] = {"publicKey": {"hint": self.identity.hint}}
    if self.identity.certificates:
      chain = [{"rawBytes": _base64(c)} for c in self.identity.certificates]
      material = {"x509CertificateChain": {"certificates": chain}}
    value = {
      "mediaType": MEDIA_TYPE,
      "verificationMaterial": {**material, "tlogEntries": []},
      "dsseEnvelope": {
        "payload": _base64(self.payload),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": _base64(self.signature), "keyid": ""}],
      },
    }
    return (json.dumps(value, indent=1) + "\n").encode("ascii")

  def is_by(self, key: ec.EllipticCurvePublicKey) -> bool:
    # The pre-authentication encoding of DSSE v1, protocol.md.
    kind = PAYLOAD_TYPE.encode()
    message = b"DSSEv1 %d %s %d %s" % (
      *(len(kind), kind),
      *(len(self.payload), self.payload),
    )
    try:
      key.verify(self.signature, message, ec.ECDSA(hashes.SHA256()))
    except exceptions.InvalidSignature:
      return False
    return True

  def resources(self) -> dict[str, str]:
    """The listed files, path -> SHA-256; Refused if it is not such a list."""
    try:
      statement = strict_json.parse_object(self.payload)
      predicate = statement["predicate"]
      (subject,) = statement["subject"]
      ok = statement["_type"] == STATEMENT_TYPE
      ok &= statement["predicateType"] == PREDICATE_TYPE
      # Any other ignored path would not be signed.
      ok &= predicate["serialization"]["ignore_paths"] == [manifest.SIGNATURE]
      found, root = {}, hashes.Hash(hashes.SHA256())
      for resource in predicate["resources"]:
        ok &= resource["algorithm"] == "sha256"
        ok &= resource["name"] not in found
        found[resource["name"]] = resource["digest"]
        root.update(bytes.fromhex(resource["digest"]))
      ok &= subject["digest"]["sha256"] == root.finalize().hex()
    except (Refused, KeyError, TypeError, ValueError, AttributeError):
      ok, found = False, {}
    if not ok:
      raise Refused("it signs something that is no list of a bundle's files")
    return found


def from_bytes(data: bytes, identity: pem.Identity) -> Signed:
  """Parses signature.json of a bundle with this signer.pem.

  Raises:
    Refused: it is not in the one form that `Signed.to_bytes` gives.
  """
  value = strict_json.parse_object(data)
  try:
    envelope = value["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"], validate=True)
    (one,) = envelope["signatures"]
    signature = base64.b64decode(one["sig"], validate=True)
    ok = _smaller(signature) == signature
  except (KeyError, TypeError, ValueError, binascii.Error):
    raise Refused("not a Sigstore bundle with one DSSE signature") from None
  signed = Signed(payload, signature, identity)
  if not ok or signed.to_bytes() != data:
    raise Refused(
      "not in the one form that analogjax writes, or of another signer than"
      f" {SIGNER} names"
    )
  return signed


def _smaller(signature: bytes) -> bytes:
  """The smaller of the two forms (r, s) and (r, n - s), in DER."""
  r, s = decode_dss_signature(signature)
  return encode_dss_signature(r, min(s, _ORDER - s))


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode("ascii")


def _secret(path: Path) -> bytes:
  """Reads a file that only its owner may read; ValueError otherwise."""
  try:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
      raise ValueError(f"{path}: expected a file, found something else.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
      raise ValueError(
        f"{path}: others may read this secret (mode {stat.S_IMODE(mode):o});"
        f" `chmod 600 {path}` first, and consider it known."
      )
    return path.read_bytes()
  except OSError as error:
    raise ValueError(
      f"{path}: expected a file with a secret: {os.strerror(error.errno or 0)}."
    ) from None


def _password(path: Path | None) -> bytes | None:
  if path is None:
    return None
  return _secret(path).rstrip(b"\r\n")


def _use_token(config, uri: str) -> None:
  try:
    config.use_pkcs11_signer(pkcs11_uri=uri)
  except RuntimeError:
    raise ValueError(
      "a key on a token needs `pip install model-signing[pkcs11]`."
    ) from None
  except Exception as error:  # PyKCS11 raises its own exception class.
    raise ValueError(
      f"the token cannot be used ({type(error).__name__}); are the URI's"
      " module-path, token, object and pin-source right?"
    ) from None
