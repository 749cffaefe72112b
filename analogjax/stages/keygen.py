"""keygen: a key to sign releases with, and the public one to give away."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from analogjax.cli import progress

OK = 0


def run(path: Path) -> int:
  """Writes a private key on P-256, and beside it its public one.

  Args:
    path: of the private key, which nobody else may read and which is not
      encrypted; the public one goes to PATH.pub.

  Raises:
    ValueError: there is one already.
  """
  public = path.with_name(f"{path.name}.pub")
  key = ec.generate_private_key(ec.SECP256R1())
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Never readable by others, not for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
  except FileExistsError:
    raise ValueError(
      f"{path}: there is a file already; a key is not written over. Name"
      " another place, or use that key."
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
    f"keygen: {path}, to sign with, is to be kept; {public}, to verify with, is"
    " to be given away by another way than the bundle."
  )
  return OK
