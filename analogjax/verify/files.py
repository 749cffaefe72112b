"""Claims about the files of a bundle: which, whole, signed and by whom."""

import re

from analogjax.bundle import folder, layout, manifest, pem, signature
from analogjax.bundle.layout import expect
from analogjax.bundle.strict_json import Refused
from analogjax.verify import rules as checks
from analogjax.verify.rules import (
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Outcome,
  Rule,
  listed,
)

DOCUMENTS = (
  *("README.md", "COMPLIANCE.md", "COST.md", "SAFETY.md", "TRAINING_DATA.md"),
  *("TRAINING_DATA.json", "compliance.json", "mlbom.cdx.json"),
  *("fidelity.html", "model/README.md"),
  *("repro/README.md", "repro/config.json", "repro/software.json"),
)
REQUIRED = (
  *(manifest.FILE, manifest.SIGNATURE, signature.SIGNER),
  *(layout.RECORD, layout.FIDELITY, layout.SAFETY, *DOCUMENTS),
  *("LICENSE", "model/LICENSE"),
  *(layout.CONFIG, "model/generation_config.json", "model/tokenizer.json"),
)
# Whatever else lay in model/, a loader might take for its own: adapters, code,
# another format of the weights.
OPTIONAL = (
  layout.ROWS,
  *("NOTICE", "model/NOTICE"),
  *("model/tokenizer_config.json", "model/special_tokens_map.json"),
  *("model/chat_template.jinja", "model/tokenizer.model"),
  *("model/vocab.json", "model/merges.txt", "model/added_tokens.json"),
  layout.INDEX,
)
WEIGHTS = re.compile(
  r"model/model(-[0-9]{5}-of-[0-9]{5})?\.safetensors", re.ASCII
)


def _files(evidence: Evidence) -> Outcome:
  tree = evidence.tree
  expect(not tree.problems, listed(tree.problems))
  total = checks.size(sum(tree.files.values()))
  return Outcome(
    VERIFIED, f"{len(tree.files)} files, {total}; nothing else is there."
  )


def _layout(evidence: Evidence) -> Outcome:
  found = set(evidence.tree.files)
  missing = sorted(set(REQUIRED) - found)
  expect(not missing, f"missing: {listed(missing)}")
  known = {*REQUIRED, *OPTIONAL}
  unknown = sorted(
    path for path in found - known if not WEIGHTS.fullmatch(path)
  )
  expect(not unknown, f"no part of a bundle: {listed(unknown)}")
  return Outcome(VERIFIED, f"All {len(REQUIRED)} that a bundle has are there.")


def _manifest(evidence: Evidence) -> Outcome:
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
    # The size first: nobody's huge file is hashed for nothing.
    elif tree.files[path] != entry.bytes:
      wrong.append(
        f"{path} has {tree.files[path]:,} bytes instead of {entry.bytes:,}"
      )
    elif tree.sha256(path) != entry.sha256:
      wrong.append(f"{path} has another SHA-256")
  expect(not wrong, listed(wrong))
  total = checks.size(sum(entry.bytes for entry in entries.values()))
  return Outcome(
    VERIFIED,
    f"SHA-256 of {len(entries)} files, {total}, computed again; all are those"
    f" of {manifest.FILE}, and no file is left over.",
  )


def _signed(evidence: Evidence) -> signature.Signed:
  tree = evidence.tree
  try:
    identity = pem.from_bytes(tree.read(signature.SIGNER, pem.MOST_BYTES))
  except Refused as error:
    raise Refused(f"{signature.SIGNER}: {error}") from None
  try:
    data = tree.read(manifest.SIGNATURE, folder.MOST_TEXT)
    return signature.from_bytes(data, identity)
  except Refused as error:
    raise Refused(f"{manifest.SIGNATURE}: {error}") from None


def _signature(evidence: Evidence) -> Outcome:
  signed = _signed(evidence)
  expected = {path: e.sha256 for path, e in evidence.entries.items()}
  expected[manifest.FILE] = evidence.tree.sha256(manifest.FILE)
  expect(
    signed.resources() == expected,
    f"{manifest.SIGNATURE}: it signs other files than {manifest.FILE} lists",
  )
  expect(
    signed.is_by(signed.identity.key),
    f"{manifest.SIGNATURE}: not made by the key of {signature.SIGNER}",
  )
  return Outcome(
    VERIFIED,
    f"It covers {len(expected)} files and fits the key of {signature.SIGNER},"
    f" whose SHA-256 is {signed.identity.hint}.",
  )


def _signer(evidence: Evidence) -> Outcome:
  if evidence.verifier is None:
    return Outcome(
      NOT_CHECKABLE,
      "Anyone can put a key beside a signature. Get the provider's public key,"
      " or the certificate of who vouches for it, elsewhere and name it with"
      " --key or --chain.",
    )
  return Outcome(VERIFIED, evidence.verifier.check(_signed(evidence)))


def rules() -> tuple[Rule, ...]:
  return (
    Rule(
      "files",
      "The bundle holds plain data alone: regular files of known kinds.",
      _files,
    ),
    Rule(
      "layout", "It has every file that a bundle has, and no other.", _layout
    ),
    Rule(
      "manifest", "Every file is the one that the manifest lists.", _manifest
    ),
    Rule(
      "signature",
      "One signature covers every file, and whoever made it has the key.",
      _signature,
      needs=("manifest",),
    ),
    Rule(
      "signer",
      "The signature is by whom you expect.",
      _signer,
      needs=("signature",),
    ),
  )
