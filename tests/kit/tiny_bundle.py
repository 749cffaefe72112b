"""A small real bundle: a tiny random model, its documents, a signature.

`contents` makes all inputs, including `facts`; `write` signs it. The reported
numbers of the analog alone come from transformers on the rows; all other
numbers are those of facts_example and synthetic_report.
"""

import datetime
import hashlib
import json
from pathlib import Path
import shutil

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
import facts_example
from models import tiny
import numpy as np
import synthetic_report
import tokenizers

import analogjax
from analogjax.bundle import (
  commitments,
  licences,
  pem,
  record,
  rows as held_out,
  signature,
  writer,
)
from analogjax.data import rows as rows_lib
from analogjax.documents import render
from analogjax.fidelity import document
from analogjax.models import decoder, hf_export
from analogjax.safety import document as safety_document
from analogjax.workdir import public_costs

CFG = tiny(V=61, F=24)
R, L = 6, 24


def sha256(data):
  return hashlib.sha256(data).hexdigest()


def write_key(path):
  key = ec.generate_private_key(ec.SECP256R1())
  path.write_bytes(
    key.private_bytes(
      serialization.Encoding.PEM,
      serialization.PrivateFormat.PKCS8,
      serialization.NoEncryption(),
    )
  )
  path.chmod(0o600)
  path.with_suffix(".pub").write_bytes(pem.public_pem(key.public_key()))
  return path


def write_certificates(folder, key):
  """Writes a certificate of the key, and that of its authority."""
  day = datetime.datetime(2026, 1, 1)
  authority = ec.generate_private_key(ec.SECP256R1())
  own = serialization.load_pem_private_key(key.read_bytes(), None)
  root_name = x509.Name.from_rfc4514_string("CN=Root")
  paths = []
  for name, whose, is_root in (("own", own, False), ("root", authority, True)):
    subject = x509.Name.from_rfc4514_string(f"CN={name.title()}")
    usage = x509.KeyUsage(
      digital_signature=not is_root,
      content_commitment=False,
      key_encipherment=False,
      data_encipherment=False,
      key_agreement=False,
      key_cert_sign=is_root,
      crl_sign=is_root,
      encipher_only=False,
      decipher_only=False,
    )
    made = (
      x509.CertificateBuilder()
      .subject_name(subject)
      .issuer_name(root_name)
      .public_key(whose.public_key())
      .serial_number(x509.random_serial_number())
      .not_valid_before(day)
      .not_valid_after(day + datetime.timedelta(days=365))
      .add_extension(x509.BasicConstraints(is_root, None), critical=True)
      .add_extension(usage, critical=True)
      .sign(authority, hashes.SHA256())
    )
    paths.append(folder / f"{name}.crt")
    paths[-1].write_bytes(made.public_bytes(serialization.Encoding.PEM))
  return paths[0], paths[1]


def export(folder, *, dtype="float32", max_shard_bytes=10**9):
  """A tiny random model as the stage `export` writes it."""
  teacher = folder.with_name(folder.name + "-teacher")
  teacher.mkdir()
  ids = {"bos_token_id": 1, "eos_token_id": 0}
  (teacher / "config.json").write_text(json.dumps(ids))
  words = ["<end>", "<start>", *"the cat sat on a mat .".split()]
  model = tokenizers.models.WordLevel(
    {word: i for i, word in enumerate(words)}, unk_token="<end>"
  )
  tokenizers.Tokenizer(model).save(str(teacher / "tokenizer.json"))
  params = decoder.init_parameters(CFG, 0)
  hf_export.write_folder(
    folder,
    CFG,
    params,
    dtype=dtype,
    max_shard_bytes=max_shard_bytes,
    tokenizer_folder=teacher,
    keeps_chat_template=False,
    metadata={},
  )
  shutil.rmtree(teacher)


def make_rows():
  """Two documents in each row, and padding at the end of the last."""
  rng = np.random.default_rng(0)
  tokens_BL = rng.integers(0, CFG.V, (R, L)).astype(np.int32)
  segments_BL = 1 + (np.arange(L)[None] >= rng.integers(4, L - 4, (R, 1)))
  segments_BL = segments_BL.astype(np.int32)
  segments_BL[-1, -3:] = 0
  positions_BL = rows_lib.default_positions(segments_BL)
  weights_BL = (segments_BL > 0).astype(np.float32)
  return rows_lib.Rows(tokens_BL, segments_BL, positions_BL, weights_BL)


def by_transformers(folder, rows):
  """(cross-entropy, accuracy) by another program, document by document."""
  # Here, as they take seconds that no other test of releases needs.
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  )
  losses, right = [], []
  for tokens_L, segments_L in zip(
    rows.tokens_BL, rows.segments_BL, strict=True
  ):
    for number in set(segments_L.tolist()) - {0}:
      ids = torch.tensor(tokens_L[segments_L == number][None], dtype=int)
      with torch.no_grad():
        logits = model(ids).logits[0, :-1]
      losses += torch.nn.functional.cross_entropy(
        logits, ids[0, 1:], reduction="none"
      ).tolist()
      right += (logits.argmax(-1) == ids[0, 1:]).tolist()
  return float(np.mean(losses)), float(np.mean(right))


def fidelity(model, rows):
  """fidelity.json of this model: a dict."""
  parts = synthetic_report.parts()
  metrics = parts["output"]["models"][synthetic_report.ANALOG]["metrics"]
  found = by_transformers(model, rows)
  for name, x in zip(("cross_entropy_nats", "accuracy"), found, strict=True):
    metrics[name] = synthetic_report.estimate(np.random.default_rng(0), x)
  del metrics["expected_calibration_error"]
  value = synthetic_report.make(parts)
  value["inputs"]["rows"] = {
    "test": {"number": R, "digest": held_out.digest(rows)}
  }
  return document.public(value)


# Those of facts_example have names that no evaluation gives.
_SAFETY_METRICS = {
  "extraction": "extraction_rate",
  "membership": "membership_auc",
  "refusal": "refusal_rate",
  "canaries": "canary_exposure",
}


def safety_tests(facts):
  """The tests of facts_example, as an evaluation names and judges them."""
  return [
    {
      **test,
      "id": f"{_SAFETY_METRICS[test['family']]}.{test['model']}",
      "metric": _SAFETY_METRICS[test["family"]],
      "verdict": safety_document.judge(test["value"], test["threshold"]),
    }
    for test in facts["safety"]["tests"]
  ]


def safety(facts):
  """safety.json: a dict."""
  return {
    "format": safety_document.FORMAT,
    "format_version": safety_document.FORMAT_VERSION,
    "inputs": {"analog": synthetic_report.ANALOG},
    "software": {"analogjax": "0.2.0"},
    "because": "every threshold holds over the whole interval",
    **{
      key: facts["safety"][key]
      for key in ("quick", "verdict", "because", "tests")
      if key in facts["safety"]
    },
    "details": {},
  }


def make_facts(model, *, parameters, fidelity_value, config, dtype="float32"):
  """The facts of facts_example, for this model."""
  facts = facts_example.facts()
  files = {p.name: sha256(p.read_bytes()) for p in sorted(model.iterdir())}
  weights = sorted(model.glob("*.safetensors"))
  licence = licences.find(
    "Apache-2.0", holder=facts["model"]["provider"], year=2026
  )
  facts["model"] |= {
    "licence": {
      "spdx": licence.spdx,
      "name": licence.name,
      "category": licence.category,
      "text_sha256": licence.text_sha256,
    },
    "parameters": {"total": parameters, "active": parameters},
    "weights_bytes": sum(p.stat().st_size for p in weights),
    "dtype": dtype,
    "vocabulary_size": CFG.V,
    "context_tokens": CFG.max_positions,
    "tensors": 2 + 9 * CFG.Y,
    "files": files,
    "architecture": {
      **dict(layers=CFG.Y, width=CFG.D, heads=CFG.N, kv_heads=CFG.G),
      **dict(head_width=CFG.H, feed_forward=CFG.F),
      "tied_embeddings": CFG.tie_embeddings,
    },
  }
  facts["data"]["tokenizer_sha256"] = files["tokenizer.json"]
  frontier = facts["frontier"]
  frontier |= {
    "parameters": 40 * parameters,
    "active_parameters": 40 * parameters,
    "size_ratio": 1 / 40,
    "active_ratio": 1 / 40,
  }
  frontier["commitments"], frontier["openings"] = commitments.make(
    {
      "parameters": commitments.canonical(40 * parameters),
      "active_parameters": commitments.canonical(40 * parameters),
      "deployed_on": commitments.canonical(datetime.date(2026, 3, 31)),
      "name": frontier["name"],
    }
  )
  claims = ("id", "text", "verdict", "because")
  analog = fidelity_value["output"]["models"][synthetic_report.ANALOG]
  facts["fidelity"] = {
    "sha256": sha256(to_json(fidelity_value)),
    "quick": False,
    "analog": synthetic_report.ANALOG,
    "metrics": analog["metrics"],
    "claims": [{k: c[k] for k in claims} for c in fidelity_value["claims"]],
  }
  facts["cost"] = public_costs.public(facts["cost_in_full"], parameters)
  facts["safety"]["tests"] = safety_tests(facts)
  facts["safety"]["sha256"] = sha256(to_json(safety(facts)))
  facts["repro"]["software"]["analogjax"] = analogjax.__version__
  facts["repro"]["config_sha256"] = sha256(config)
  return facts


def to_json(value):
  return (json.dumps(value, indent=1) + "\n").encode()


def contents(scratch: Path, **options):
  """(files of a bundle, its facts).

  `scratch` is an empty folder for the export; `options` are those of `export`.
  """
  model = scratch / "export"
  export(model, **options)
  rows, config = make_rows(), b'{"student": {}}\n'
  value = fidelity(model, rows)
  facts = make_facts(
    model,
    parameters=CFG.num_parameters,
    fidelity_value=value,
    config=config,
    dtype=options.get("dtype", "float32"),
  )
  text = licences.find(
    "Apache-2.0", holder=facts["model"]["provider"], year=2026
  ).text.encode()
  files = {f"model/{p.name}": p.read_bytes() for p in model.iterdir()}
  files |= {
    **{"LICENSE": text, "model/LICENSE": text},
    "fidelity.json": to_json(value),
    "safety.json": to_json(safety(facts)),
    "repro/config.json": config,
    "rows/held_out.safetensors": held_out.to_bytes(rows),
  }
  return documented(files, facts), facts


def documented(files, facts, record_value=None):
  """The files, with everything that follows from the facts remade.

  `files` include fidelity.json and safety.json. `record_value` replaces the
  public record, even if it is not valid.
  """
  if record_value is None:
    record_value = record.project(facts, "public")
  out = {**files, "record.json": record.to_text(record_value).encode()}
  if record.problem(record_value):
    return out  # No document can be made from this.
  made = render.render(
    record_value,
    fidelity=json.loads(files["fidelity.json"]),
    safety=json.loads(files["safety.json"]),
  )
  return out | {path: text.encode() for path, text in made.items()}


def write(folder: Path, files, key: Path):
  writer.write(folder, files=files, signer=signature.with_key(key))


def write_regulator(folder: Path, facts):
  """The regulator's folder."""
  folder.mkdir()
  value = record.project(facts, "regulator")
  made = render.render(value, fidelity={}, safety={})
  for name, text in {**made, "record.json": record.to_text(value)}.items():
    (folder / name).write_text(text, encoding="utf-8")
