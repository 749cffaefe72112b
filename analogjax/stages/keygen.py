"""keygen: makes a key pair for signing releases."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from analogjax.cli import progress

OK = 0


def run(path: Path) -> int:
  """Writes a private key on the curve P-256 and its public key.

  `path` gets the private key, unencrypted and readable only by its owner. The
  public key goes to PATH.pub.

  Raises:
    ValueError: the file exists.
  """
  public = path.with_name(f"{path.name}.pub")
  key = ec.generate_private_key(ec.SECP256R1())
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not readable by others, even for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  except FileExistsError:
    raise ValueError(
      f"{path}: the file exists, and a key is never overwritten. Choose another"
      " path, or use that key."
    ) from None
  with open(descriptor, "wb") as file:
    file.write(
      key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
      )
    )
  public.write_bytes(
    key.public_key().public_bytes(
      serialization.Encoding.PEM,
      serialization.PublicFormat.SubjectPublicKeyInfo,
    )
  )
  progress.say(
    f"keygen: keep {path} secret; it signs releases. Publish {public}, which"
    " verifies them, through a channel separate from the bundle."
  )
  return OK
