"""Claims about the held-out rows, and the model's predictions on them.

Shape letters: K metrics, E bins of entropy, C bins of confidence, R rows.
"""

import jax
import numpy as np

from analogjax.bundle import layout, rows as held_out
from analogjax.bundle.layout import expect
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.evaluation import models as subjects
from analogjax.fidelity import output, token_sums
from analogjax.models import decoder, hf_import
from analogjax.verify import model
from analogjax.verify.rules import (
  DECLARED,
  NOT_CHECKABLE,
  VERIFIED,
  Evidence,
  Rules,
  listed,
)

# Tolerance for a reported number, which was measured on other devices, whose
# float32 sums round differently, or before the weights were rounded to
# bfloat16, which moves every logit a little.
TOLERANCES = {"F32": 0.002, "BF16": 0.02}
METRICS = ("cross_entropy_nats", "accuracy", "expected_calibration_error")
_BATCH_ROWS, _BATCH_TOKENS = 8, 8192  # Fewer rows per batch if they are long.
RULES = Rules()


def measure(
  evidence: Evidence, cfg: decoder.DecoderConfig, rows: rows_lib.Rows
) -> dict[str, float]:
  """METRICS of the bundle's weights on rows, by our own decoder.

  The weights are split over all devices if their width allows it. No program
  but ours runs.
  """
  devices = jax.devices()
  number = len(devices) if cfg.D % len(devices) == 0 else 1
  mesh = sharding.make_mesh({"fsdp": number}, devices[:number])
  params = hf_import.read_parameters(evidence.tree.root / "model", cfg, mesh)
  # The step measures students against a teacher; here the model is both.
  step = token_sums.make_step(
    (("teacher", cfg),), mesh, chunk=output.CHUNK, documents=1
  )
  by_metric_K = np.zeros(len(token_sums.METRICS))
  confidence_3C = np.zeros((3, token_sums.CONFIDENCE_BINS))
  length = rows.tokens_BL.shape[1]
  batch_rows = min(_BATCH_ROWS, max(1, _BATCH_TOKENS // length))
  batch_rows = -(-batch_rows // number) * number
  for batch, _ in subjects.in_batches(
    rows, batch_rows, mesh, what="verify: nothing is kept"
  ):
    with jax.set_mesh(mesh):
      found = jax.device_get(step({"teacher": params}, batch)["teacher"])
    by_metric_K += np.float64(found.by_entropy_BKE).sum((0, 2))
    confidence_3C += np.float64(found.confidence_B3C).sum(0)
  sums = dict(zip(token_sums.METRICS, by_metric_K.tolist(), strict=True))
  return {
    "cross_entropy_nats": sums["cross_entropy_nats"] / sums["tokens"],
    "accuracy": sums["accuracy"] / sums["tokens"],
    "expected_calibration_error": float(
      output.calibration_error(confidence_3C.ravel())
    ),
  }


def _reported(evidence: Evidence) -> dict[str, float]:
  """The METRICS of the analog for which the fidelity report has a value."""
  value = evidence.value(layout.FIDELITY)
  models = value.get("output", {}).get("models", {})
  analog = models.get(value["inputs"]["analog"], {}).get("metrics", {})
  found = {name: analog[name]["value"] for name in METRICS if name in analog}
  return {name: x for name, x in found.items() if x is not None}


def _rows_of(evidence: Evidence, cfg: decoder.DecoderConfig) -> rows_lib.Rows:
  return held_out.read(evidence.tree, evidence.header(layout.ROWS), V=cfg.V)


@RULES.add(
  "rows",
  "The held-out rows are those of the fidelity report.",
  needs=("fidelity", "weights"),
)
def _rows(evidence: Evidence):
  where, report = layout.ROWS, layout.FIDELITY
  shares = evidence.record["data"]["shares_rows"]
  there = where in evidence.tree.files
  expect(
    shares == there,
    f"data.shares_rows is {shares}, but {where} is {'' if there else 'not '}"
    "there",
  )
  if not there:
    return NOT_CHECKABLE, "The bundle has no rows."
  rows = _rows_of(evidence, model.model_config(evidence))
  number, length = rows.tokens_BL.shape
  text = f"{number} rows of {length} tokens"
  said = evidence.value(report)["inputs"].get("rows", {})
  if not isinstance(said, dict) or "test" not in said:
    return DECLARED, f"{text}; {report} does not name its rows by digest."
  expect(
    said["test"] == {"number": number, "digest": held_out.digest(rows)},
    f"{where}: not the rows that {report} was measured on",
  )
  return VERIFIED, f"{text}, with the digest that {report} gives."


@RULES.add(
  "measured",
  "The model reproduces the reported numbers on these rows.",
  needs=("fidelity", "weights", "manifest"),
)
def _measured(evidence: Evidence):
  where, report = layout.ROWS, layout.FIDELITY
  reported = _reported(evidence)
  if not reported:
    return NOT_CHECKABLE, f"{report} reports none of {', '.join(METRICS)}."
  if where not in evidence.tree.files:
    return NOT_CHECKABLE, f"The bundle has no {where}; the lab keeps its rows."
  if not evidence.deep:
    return NOT_CHECKABLE, "This takes running the model; use --deep."
  cfg = model.model_config(evidence)
  rows = _rows_of(evidence, cfg)
  number, length = rows.tokens_BL.shape
  expect(
    length <= cfg.max_positions,
    f"{where}: {length:,} tokens in a row; the model has a context of"
    f" {cfg.max_positions:,}",
  )
  expect(bool(rows.weights_BL[:, 1:].sum()), f"{where}: every weight is 0")
  try:
    found = measure(evidence, cfg, rows)
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    why = "memory" if "RESOURCE_EXHAUSTED" in str(error) else "device"
    return NOT_CHECKABLE, f"This machine's {why} cannot run the model."
  kind = next(iter(model.tensors(evidence).values())).dtype
  tolerance = TOLERANCES.get(kind, max(TOLERANCES.values()))
  off = {name: abs(found[name] - reported[name]) for name in reported}
  wrong = [
    f"{name} is {found[name]:.5f}; {report} has {reported[name]:.5f}"
    for name in reported
    # Not `> tolerance`, which NaN would pass.
    if not off[name] <= tolerance
  ]
  expect(not wrong, listed(wrong))
  return VERIFIED, (
    f"{', '.join(reported)} on {number} rows differ by at most"
    f" {max(off.values()):.1e}; {tolerance:g} is allowed."
  )
