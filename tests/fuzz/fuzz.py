"""Searches for input that breaks verification, guided by coverage.

`python tests/fuzz/fuzz.py TARGET [libFuzzer's flags]`, as `make fuzz` does;
`python tests/fuzz/fuzz.py --list` names the targets. Any exception of a target
is a bug: fix it, and add the input to a test. Needs the extra `fuzz`.
"""

import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "kit")]


def json_reader():
  """Any bytes as JSON; the result equals Python's."""
  import json

  from analogjax.bundle import strict_json

  def one(data: bytes) -> None:
    try:
      value = strict_json.parse(data)
    except strict_json.Refused:
      return
    assert value == json.loads(data)

  return one


def header_reader():
  """Any bytes as a safetensors file; the library reads the same."""
  import safetensors

  from analogjax.bundle import folder as walk, safetensors_headers, strict_json

  folder = pathlib.Path(tempfile.mkdtemp())
  path = folder / "a.safetensors"

  def one(data: bytes) -> None:
    path.write_bytes(data)
    try:
      found = safetensors_headers.read(walk.open_tree(folder), path.name)
    except strict_json.Refused:
      return
    try:
      with safetensors.safe_open(path, framework="numpy") as file:
        names = set(file.keys())
    except safetensors.SafetensorError:
      return  # Then nobody loads it.
    assert names == set(found.tensors)

  return one


def manifest_reader():
  """Any bytes as a manifest; the result is written in the same bytes."""
  from analogjax.bundle import manifest, strict_json

  def one(data: bytes) -> None:
    try:
      entries = manifest.from_bytes(data)
    except strict_json.Refused:
      return
    assert manifest.to_bytes(entries) == data

  return one


def signature_reader():
  """Any bytes as a signature and as a signer."""
  from cryptography.hazmat.primitives.asymmetric import ec

  from analogjax.bundle import pem, signature, strict_json

  identity = pem.Identity(ec.derive_private_key(7, ec.SECP256R1()).public_key())

  def one(data: bytes) -> None:
    try:
      pem.from_bytes(data)
    except strict_json.Refused:
      pass
    try:
      signed = signature.from_bytes(data, identity)
      signed.resources()
    except strict_json.Refused:
      return
    assert signed.to_bytes() == data

  return one


def whole():
  """A real bundle, spoiled: the report says that it failed, and no more."""
  import mutate
  import tiny_bundle

  from analogjax.fidelity.report import page as report
  from analogjax.verify import bundle, rules

  # Most inputs do not change fidelity.json, and drawing it takes half the time.
  render, pages = report.render, {}

  def render_once(value, *more):
    key = str((value, more))
    if key not in pages:
      pages[key] = render(value, *more)
    return pages[key]

  report.render = render_once
  scratch = pathlib.Path(tempfile.mkdtemp())
  key = tiny_bundle.write_key(scratch / "key.pem")
  files, facts = tiny_bundle.contents(scratch)
  good = scratch / "bundle"
  tiny_bundle.write(good, files, key)
  tiny_bundle.write_regulator(scratch / "regulator", facts)

  def one(data: bytes) -> None:
    choices = mutate.Choices(data)
    work = scratch / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(good, work / "bundle")
    shutil.copytree(scratch / "regulator", work / "regulator")
    spoiled = "regulator" if choices.below(16) == 15 else "bundle"
    mutate.spoil(work / spoiled, choices)
    # The linter reads all of the bundle, for seconds.
    regulator = None if spoiled == "bundle" else work / spoiled
    try:
      report = bundle.check(work / "bundle", regulator=regulator)
    except ValueError as error:
      assert "this is not a bundle" in str(error), error
      return
    broken = [c for c in report.checks if rules.BROKE in c.evidence]
    assert not broken, broken
    same = {
      p.relative_to(good): p.read_bytes()
      for p in good.rglob("*.*")
      if p.is_file()
    } == {
      p.relative_to(work / "bundle"): p.read_bytes()
      for p in (work / "bundle").rglob("*.*")
      if p.is_file() and not p.is_symlink()
    }
    assert same or report.failed, "a spoiled bundle passed"

  return one


TARGETS = {
  "json": json_reader,
  "headers": header_reader,
  "manifest": manifest_reader,
  "signature": signature_reader,
  "verify": whole,
}
SEEDS = {
  "json": [b'{"a": [1, -2.5e3, "\\u00e9", null, true, {"b": {}}]}'],
  "headers": [
    b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[2,1],'
    b'"data_offsets":[0,8]}}       ' + b"\0" * 8,
  ],
  "manifest": [
    b'{\n "format": "analogjax.bundle",\n "format_version": 1,\n "files": {\n'
    b'  "a.md": {\n   "bytes": 1,\n   "sha256": "' + b"ab" * 32 + b'"\n  }\n'
    b" }\n}\n"
  ],
  "signature": [
    b'{\n "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",\n'
    b' "verificationMaterial": {"publicKey": {"hint": "a"}},\n'
    b' "dsseEnvelope": {"payload": "e30=", "payloadType":'
    b' "application/vnd.in-toto+json", "signatures": [{"sig":'
    b' "MAYCAQECAQE=", "keyid": ""}]}\n}\n'
  ],
  "verify": [bytes(range(i, i + 24)) for i in (0, 3, 90)],
}


def main() -> None:
  if sys.argv[1:2] == ["--list"]:
    print(" ".join(TARGETS))
    return
  import atheris

  name = sys.argv.pop(1)
  with atheris.instrument_imports(
    include=["analogjax.bundle", "analogjax.verify"],
    exclude=["analogjax.leaks"],
  ):
    import analogjax.verify.bundle  # noqa: F401
  one = TARGETS[name]()
  corpus = pathlib.Path(tempfile.mkdtemp())
  for i, seed in enumerate(SEEDS[name]):
    (corpus / f"seed{i}").write_bytes(seed)
  atheris.Setup([*sys.argv, str(corpus)], one)
  atheris.Fuzz()


if __name__ == "__main__":
  main()
