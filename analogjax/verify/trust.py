"""The expected signer: a public key, or certificates that vouch for one."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import oid

from analogjax.bundle import pem, signature
from analogjax.bundle.strict_json import Refused


@dataclasses.dataclass(frozen=True)
class Verifier:
  """The signer that an auditor expects, by a source other than the bundle.

  Attributes:
    key: the signer's public key, or None.
    roots: certificates of authorities that vouch for the signer, or ().
  """

  key: ec.EllipticCurvePublicKey | None = None
  roots: tuple[x509.Certificate, ...] = ()

  def check(self, signed: signature.Signed) -> str:
    """Returns who signed, as far as the key or the certificates show.

    Raises:
      Refused: the signature is by someone else.
    """
    if self.key is not None:
      if not signed.is_by(self.key):
        raise Refused("the signature is not by the given key")
      return "The given key made the signature."
    leaf = self._check_chain(signed.identity)
    if not signed.is_by(pem.p256(leaf.public_key(), "the certificate")):
      raise Refused("the signature is not by the certificate's key")
    return (
      f"The certificate of {leaf.subject.rfc4514_string()!r}, valid from"
      f" {leaf.not_valid_before_utc:%Y-%m-%d} to"
      f" {leaf.not_valid_after_utc:%Y-%m-%d}, is vouched for by a given one."
      " The time of signing is not known."
    )

  def _check_chain(self, identity: pem.Identity) -> x509.Certificate:
    from OpenSSL import crypto

    if not identity.certificates:
      raise Refused("the bundle is signed by a bare key, not by a certificate")
    try:
      chain = [x509.load_der_x509_certificate(c) for c in identity.certificates]
      store = crypto.X509Store()
      for root in self.roots:
        store.add_cert(crypto.X509.from_cryptography(root))
      # The signature has no trusted timestamp, so the first valid day counts.
      store.set_time(chain[0].not_valid_before_utc)
      leaf, *others = map(crypto.X509.from_cryptography, chain)
      crypto.X509StoreContext(store, leaf, others).verify_certificate()
      allowed = _may_sign(chain[0])
    except crypto.X509StoreContextError as error:
      raise Refused(f"the certificate is not vouched for: {error}") from None
    except (ValueError, TypeError, crypto.Error) as error:
      raise Refused(
        f"the certificates cannot be read: {type(error).__name__}"
      ) from None
    if not allowed:
      raise Refused("the certificate is not for signatures")
    return chain[0]


def with_key(path: Path) -> Verifier:
  """Expects the key in a PEM file; ValueError names the file."""
  return Verifier(key=pem.read_public_key(path))


def with_chain(paths: Sequence[Path]) -> Verifier:
  """Expects a certificate that those in some PEM files vouch for."""
  return Verifier(roots=tuple(pem.read_certificates(paths)))


def _may_sign(certificate: x509.Certificate) -> bool:
  found = certificate.extensions
  try:
    return found.get_extension_for_class(x509.KeyUsage).value.digital_signature
  except x509.ExtensionNotFound:
    pass
  try:
    usage = found.get_extension_for_class(x509.ExtendedKeyUsage).value
    return oid.ExtendedKeyUsageOID.CODE_SIGNING in usage
  except x509.ExtensionNotFound:
    return False
