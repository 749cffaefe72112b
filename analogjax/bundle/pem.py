"""signer.pem of a bundle: a public key, or its certificates."""

from collections.abc import Sequence
import dataclasses
import hashlib
from pathlib import Path

from cryptography import exceptions, x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from analogjax.bundle.strict_json import Refused

MOST_BYTES = 1 << 20
_PEM = serialization.Encoding.PEM


@dataclasses.dataclass(frozen=True)
class Identity:
  """The claimed signer.

  Attributes:
    key: on P-256.
    certificates: DER, the key's own first; () for a bare key.
  """

  key: ec.EllipticCurvePublicKey
  certificates: tuple[bytes, ...] = ()

  @property
  def hint(self) -> str:
    """SHA-256 of the public key's PEM, model-signing's name for the key."""
    return hashlib.sha256(public_pem(self.key)).hexdigest()

  def to_bytes(self) -> bytes:
    """The canonical bytes of signer.pem."""
    if not self.certificates:
      return public_pem(self.key)
    chain = map(x509.load_der_x509_certificate, self.certificates)
    return b"".join(c.public_bytes(_PEM) for c in chain)


def from_bytes(data: bytes) -> Identity:
  """Parses signer.pem; Refused unless it is a P-256 key or certificate."""
  try:
    if b"BEGIN CERTIFICATE" in data:
      chain = x509.load_pem_x509_certificates(data)
      identity = of_certificates(chain, "the first certificate")
    else:
      key = serialization.load_pem_public_key(data)
      identity = Identity(p256(key, "the key"))
    ok = identity.to_bytes() == data
  except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
    raise Refused(f"no public key or certificate in PEM: {error}") from None
  if not ok:
    raise Refused("not in the form in which analogjax writes a PEM file")
  return identity


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
  return key.public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def p256(key: object, where: str) -> ec.EllipticCurvePublicKey:
  """The key, if it is on P-256; else a ValueError that names its source."""
  if isinstance(key, ec.EllipticCurvePublicKey):
    if isinstance(key.curve, ec.SECP256R1):
      return key
    found = f"one on {key.curve.name}"
  else:
    found = f"a {type(key).__name__}"
  raise ValueError(
    f"{where}: expected an elliptic key on P-256, found {found}; `openssl"
    " ecparam -name prime256v1 -genkey -noout -out key.pem` makes one."
  )


def of_certificates(chain: Sequence[x509.Certificate], where: str) -> Identity:
  der = serialization.Encoding.DER
  return Identity(
    p256(chain[0].public_key(), where),
    tuple(c.public_bytes(der) for c in chain),
  )


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
  """A PEM file's public key, also that of a certificate.

  Raises:
    ValueError: names the file, and what was expected.
  """
  data = _read(path)
  try:
    if b"BEGIN CERTIFICATE" in data:
      key = x509.load_pem_x509_certificate(data).public_key()
    else:
      key = serialization.load_pem_public_key(data)
  except (ValueError, exceptions.UnsupportedAlgorithm):
    raise ValueError(
      f"{path}: expected a public key in PEM, found something else; `openssl ec"
      " -in key.pem -pubout` writes that of a private key."
    ) from None
  return p256(key, str(path))


def read_certificates(paths: Sequence[Path]) -> list[x509.Certificate]:
  """All certificates of some PEM files; ValueError names the file."""
  found = []
  for path in paths:
    try:
      found += x509.load_pem_x509_certificates(_read(path))
    except ValueError:
      raise ValueError(
        f"{path}: expected certificates in PEM, found something else."
      ) from None
  return found


def _read(path: Path) -> bytes:
  try:
    with open(path, "rb") as file:
      return file.read(MOST_BYTES)
  except OSError as error:
    raise ValueError(f"{path}: cannot be read: {error.strerror}.") from None
