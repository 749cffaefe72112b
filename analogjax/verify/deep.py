"""Claims that take running the model: what it says on the rows of the bundle.

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
  Outcome,
  Rule,
  listed,
)

# How far a number may be from the reported one. It was measured in float32 on
# other devices, whose sums round differently; or before the weights were
# rounded to bfloat16, which moves every logit a little.
TOLERANCES = {"F32": 0.002, "BF16": 0.02}
METRICS = (
  *("cross_entropy_nats", "accuracy"),
  "expected_calibration_error",
)
_BATCH_ROWS, _BATCH_TOKENS = 8, 8192  # Of long rows there are fewer in one.


def measure(
  evidence: Evidence, cfg: decoder.DecoderConfig, rows: rows_lib.Rows
) -> dict[str, float]:
  """METRICS of the bundle's weights on rows, by our own decoder.

  The weights are split over all devices where their width can be, as
  `measure` does it; nothing of another program runs.
  """
  devices = jax.devices()
  number = len(devices) if cfg.D % len(devices) == 0 else 1
  mesh = sharding.make_mesh({"fsdp": number}, devices[:number])
  params = hf_import.read_parameters(evidence.tree.root / "model", cfg, mesh)
  # The step measures students against a teacher; here the two are one.
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
  """METRICS of the analog by fidelity.json, whose form was examined."""
  value = evidence.value(layout.FIDELITY)
  models = value.get("output", {}).get("models", {})
  analog = models.get(value["inputs"]["analog"], {}).get("metrics", {})
  found = {name: analog[name]["value"] for name in METRICS if name in analog}
  return {name: x for name, x in found.items() if x is not None}


def _measured(evidence: Evidence) -> Outcome:
  reported = _reported(evidence)
  if not reported:
    return Outcome(NOT_CHECKABLE, f"{layout.FIDELITY} reports none of it.")
  if layout.ROWS not in evidence.tree.files:
    return Outcome(
      NOT_CHECKABLE,
      f"The bundle has no {layout.ROWS}; the rows are the lab's, and are not"
      " shared.",
    )
  if not evidence.deep:
    return Outcome(
      NOT_CHECKABLE, "The model has to run for that; --deep lets it."
    )
  cfg = model.model_config(evidence)
  rows = held_out.read(evidence.tree, evidence.header(layout.ROWS), V=cfg.V)
  length = rows.tokens_BL.shape[1]
  expect(
    length <= cfg.max_positions,
    f"{layout.ROWS}: {length:,} tokens in a row; the model has a context of"
    f" {cfg.max_positions:,}",
  )
  expect(bool(rows.weights_BL[:, 1:].sum()), f"{layout.ROWS}: nothing counts")
  try:
    found = measure(evidence, cfg, rows)
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    why = "memory" if "RESOURCE_EXHAUSTED" in str(error) else "device"
    return Outcome(
      NOT_CHECKABLE, f"The model does not run on this machine's {why}."
    )
  kind = next(iter(model.tensors(evidence).values())).dtype
  tolerance = TOLERANCES.get(kind, max(TOLERANCES.values()))
  wrong = [
    f"{name} is {found[name]:.5f}, and {reported[name]:.5f} by"
    f" {layout.FIDELITY}"
    for name in reported
    # Not `> tolerance`, which NaN would pass.
    if not abs(found[name] - reported[name]) <= tolerance
  ]
  expect(not wrong, listed(wrong))
  worst = max(abs(found[name] - reported[name]) for name in reported)
  return Outcome(
    VERIFIED,
    f"{', '.join(reported)} on {len(rows.tokens_BL)} rows differ by"
    f" {worst:.1e} at most, {tolerance:g} is allowed.",
  )


def _rows(evidence: Evidence) -> Outcome:
  shares = evidence.record["data"]["shares_rows"]
  expect(
    shares == (layout.ROWS in evidence.tree.files),
    f"data.shares_rows is {shares}, which is not so of {layout.ROWS}",
  )
  if layout.ROWS not in evidence.tree.files:
    return Outcome(NOT_CHECKABLE, "The bundle has no rows.")
  rows = held_out.read(
    evidence.tree,
    evidence.header(layout.ROWS),
    V=model.model_config(evidence).V,
  )
  said = evidence.value(layout.FIDELITY)["inputs"].get("rows", {})
  number = len(rows.tokens_BL)
  text = f"{number} rows of {rows.tokens_BL.shape[1]} tokens"
  if not isinstance(said, dict) or "test" not in said:
    return Outcome(
      DECLARED, f"{text}; {layout.FIDELITY} does not name its rows by digest."
    )
  expect(
    said["test"] == {"number": number, "digest": held_out.digest(rows)},
    f"{layout.ROWS}: not the rows that {layout.FIDELITY} was measured on",
  )
  return Outcome(VERIFIED, f"{text}, with the digest of {layout.FIDELITY}.")


def rules() -> tuple[Rule, ...]:
  return (
    Rule(
      "rows",
      "The held-out rows are those that it was measured on.",
      _rows,
      needs=("fidelity", "weights"),
    ),
    Rule(
      "measured",
      "The analog says on these rows what was reported of it.",
      _measured,
      needs=("fidelity", "weights", "manifest"),
    ),
  )
