"""Claims about a bundle's files, their digests and their signature."""

import re

from analogjax.bundle import folder, manifest, pem, signature
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.verify.rules import (
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Rules,
  listed,
  size,
)

REQUIRED = frozenset(
  """
  manifest.json signature.json signer.pem record.json fidelity.json safety.json
  README.md COMPLIANCE.md COST.md SAFETY.md TRAINING_DATA.md TRAINING_DATA.json
  compliance.json mlbom.cdx.json fidelity.html LICENSE
  repro/README.md repro/config.json repro/software.json
  model/README.md model/LICENSE model/config.json model/generation_config.json
  model/tokenizer.json
  """.split()
)
# A loader might use any other file in model/: adapters, code, or the weights in
# another format.
OPTIONAL = frozenset(
  """
  rows/held_out.safetensors NOTICE model/NOTICE
  model/model.safetensors.index.json model/tokenizer_config.json
  model/special_tokens_map.json model/chat_template.jinja
  model/tokenizer.model model/vocab.json model/merges.txt
  model/added_tokens.json
  """.split()
)
WEIGHTS = re.compile(
  r"model/model(-[0-9]{5}-of-[0-9]{5})?\.safetensors", re.ASCII
)
RULES = Rules()


@RULES.add("files", "The bundle contains only regular files of known types.")
def _files(evidence: Evidence):
  tree = evidence.tree
  expect(not tree.problems, listed(tree.problems))
  total = size(sum(tree.files.values()))
  return VERIFIED, f"{len(tree.files)} files, {total}; nothing else."


@RULES.add("layout", "Every file that a bundle needs is there, and no other.")
def _layout(evidence: Evidence):
  found = set(evidence.tree.files)
  missing = sorted(REQUIRED - found)
  expect(not missing, f"missing: {listed(missing)}")
  unknown = sorted(
    path for path in found - REQUIRED - OPTIONAL if not WEIGHTS.fullmatch(path)
  )
  expect(not unknown, f"not part of a bundle: {listed(unknown)}")
  return VERIFIED, "No file is missing, and none is unexpected."


@RULES.add("manifest", "Every file matches its entry in the manifest.")
def _manifest(evidence: Evidence):
  tree = evidence.tree
  try:
    entries = evidence.entries
  except Refused as error:
    raise Refused(f"{manifest.FILE}: {error}") from None
  found = set(tree.files) - {manifest.FILE, manifest.SIGNATURE}
  wrong = [f"{path} is not listed" for path in sorted(found - set(entries))]
  for path, entry in entries.items():
    if path not in tree.files:
      wrong.append(f"{path} is missing")
    # The size first, so that a huge file is not hashed for nothing.
    elif tree.files[path] != entry.bytes:
      wrong.append(
        f"{path} has {tree.files[path]:,} bytes instead of {entry.bytes:,}"
      )
    elif tree.sha256(path) != entry.sha256:
      wrong.append(f"{path} has another SHA-256")
  expect(not wrong, listed(wrong))
  return VERIFIED, (
    "The SHA-256 of every file was recomputed and matches. Not listed are"
    f" {manifest.FILE} itself and {manifest.SIGNATURE}, which signs it."
  )


def signed(evidence: Evidence) -> signature.Signed:
  """The bundle's signature and whose it claims to be; Refused if invalid."""
  path, tree = signature.SIGNER, evidence.tree
  try:
    identity = pem.from_bytes(tree.read(path, pem.MOST_BYTES))
    path = manifest.SIGNATURE
    return signature.from_bytes(tree.read(path, folder.MOST_TEXT), identity)
  except Refused as error:
    raise Refused(f"{path}: {error}") from None


@RULES.add(
  "signature",
  "One signature, made with the bundle's key, covers every file.",
  needs=("manifest",),
)
def _signature(evidence: Evidence):
  found = signed(evidence)
  expected = {path: e.sha256 for path, e in evidence.entries.items()}
  expected[manifest.FILE] = evidence.tree.sha256(manifest.FILE)
  expect(
    found.resources() == expected,
    f"{manifest.SIGNATURE}: it signs other files than {manifest.FILE} lists",
  )
  expect(
    found.is_by(found.identity.key),
    f"{manifest.SIGNATURE}: not made by the key in {signature.SIGNER}",
  )
  return VERIFIED, (
    "It covers every file but itself and was made with the key in"
    f" {signature.SIGNER}, whose SHA-256 is {found.identity.hint}."
  )


@RULES.add(
  "signer", "The signature is by the expected signer.", needs=("signature",)
)
def _signer(evidence: Evidence):
  if evidence.verifier is None:
    return NOT_CHECKABLE, (
      "Anyone can put a key beside a signature. Get the provider's public key,"
      " or the certificate that vouches for it, from another source and pass it"
      " with --key or --chain."
    )
  return VERIFIED, evidence.verifier.check(signed(evidence))
