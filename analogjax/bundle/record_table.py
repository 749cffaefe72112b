"""Every fact of a release that may be written down, one line each.

This is an allow-list: what no line names is in no record and in no document.
A line says who may see the fact, of which form it is and where it comes from,
which is also what to run when it is missing.

In a path, `*` stands for any name and `[]` for each item of a list.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

PUBLIC = "public"
REGULATOR = "regulator"
# What teaches a phase, beside hard labels.
CACHED, LIVE = "cached teacher", "live teacher"

# Forms: schemas of single values. Whatever holds more has lines of its own.
TEXT = {"type": "string", "pattern": r"\S"}
WORDS = {"type": "string"}  # May be empty: not stated.
FLAG = {"type": "boolean"}
# Numbers that a float holds, whoever wrote them.
COUNT = {"type": "integer", "minimum": 0, "maximum": 10**18}
POSITIVE = {"type": "integer", "minimum": 1, "maximum": 10**18}
AMOUNT = {"type": "number", "minimum": 0, "maximum": 1e100}
NUMBER = {"type": "number", "minimum": -1e100, "maximum": 1e100}
SCALAR = {"type": ["string", "number", "boolean", "null"]}
# A length, too: to Python's `$` a newline more is nothing.
DAY = {
  **{"type": "string", "maxLength": 10},
  "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
}
SHA256 = {"type": "string", "maxLength": 64, "pattern": "^[0-9a-f]{64}$"}
TEXTS = {"type": "array", "items": TEXT}
SOME_TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
# An object or a list that may be null, or wants an item at least.
OR_NULL = {"type": ["object", "null"]}
SOME = {"type": "array", "minItems": 1}
NAMES = {"type": "object"}
SOME_NAMES = {"type": "object", "minProperties": 1}


def _enum(*values: Any) -> dict[str, Any]:
  return {"enum": list(values)}


def _or_null(form: Mapping[str, Any]) -> dict[str, Any]:
  return {"anyOf": [form, {"type": "null"}]}


@dataclasses.dataclass(frozen=True)
class Fact:
  """One fact, or one for each name or item that its path stands for.

  Attributes:
    path: where it is.
    form: JSON schema of its value.
    source: a field of the config, or the stage that finds it.
    view: PUBLIC, or REGULATOR: withheld from the public.
    needed: a release without it is refused. A pair (path, value) says that
      this holds where that value is at that path.
  """

  path: str
  form: Mapping[str, Any]
  source: str
  view: str = PUBLIC
  needed: bool | tuple[str, Any] = True

  @property
  def remedy(self) -> str:
    """What to do when it is missing."""
    if "." in self.source:
      return f"set {self.source} in the config"
    return f"run `analogjax {self.source}`"


def _about() -> tuple[Fact, ...]:
  one = ("name", "version", "provider", "contact")
  texts = ("intended_use", "out_of_scope", "limitations")
  return (
    *(Fact(f"model.{n}", TEXT, f"release.about.{n}") for n in one),
    Fact("model.released_on", DAY, "release.date"),
    Fact("model.languages", SOME_TEXTS, "release.about.languages"),
    Fact("model.modalities", SOME_TEXTS, "release"),
    *(Fact(f"model.{n}", TEXT, f"release.about.{n}") for n in texts),
  )


def _model() -> tuple[Fact, ...]:
  sizes = ("layers", "width", "heads", "kv_heads", "head_width", "feed_forward")
  counts = ("vocabulary_size", "context_tokens", "tensors")
  return (
    Fact("model.licence.spdx", TEXT, "release.licence"),
    Fact("model.licence.name", TEXT, "release.licence_name"),
    Fact("model.licence.category", TEXT, "release"),
    Fact("model.licence.text_sha256", SHA256, "release"),
    Fact("model.family", TEXT, "export"),
    Fact("model.parameters.total", POSITIVE, "export"),
    Fact("model.parameters.active", POSITIVE, "export"),
    Fact("model.weights_bytes", POSITIVE, "export"),
    Fact("model.dtype", TEXT, "export"),
    *(Fact(f"model.{n}", POSITIVE, "export") for n in counts),
    Fact("model.files", SOME_NAMES, "export"),
    Fact("model.files.*", SHA256, "export"),
    *(Fact(f"model.architecture.{n}", POSITIVE, "export") for n in sizes),
    Fact("model.architecture.tied_embeddings", FLAG, "export"),
  )


_COMMITTED = ("parameters", "active_parameters", "deployed_on", "name")


def _frontier() -> tuple[Fact, ...]:
  sizes = ("layers", "width", "heads", "kv_heads", "head_width", "feed_forward")
  pair = {"type": "array", "minItems": 2, "maxItems": 2}
  size = {**pair, "items": NUMBER}
  months = {**pair, "items": COUNT}

  def private(name: str, form: Mapping[str, Any], source: str) -> Fact:
    return Fact(f"frontier.{name}", form, source, REGULATOR)

  return (
    *(Fact(f"frontier.commitments.{n}", SHA256, "release") for n in _COMMITTED),
    Fact("frontier.window.size", size, "release"),
    Fact("frontier.window.months", months, "release"),
    private("name", TEXT, "release.frontier.name"),
    private("deployed_on", DAY, "release.frontier.deployed_on"),
    private("parameters", POSITIVE, "release.frontier.parameters"),
    private(
      "active_parameters", POSITIVE, "release.frontier.active_parameters"
    ),
    private("family", TEXT, "release.frontier.family"),
    private("teacher_digest", SHA256, "cache"),
    *(private(f"architecture.{n}", POSITIVE, "cache") for n in sizes),
    private("size_ratio", AMOUNT, "release"),
    private("active_ratio", AMOUNT, "release"),
    *(
      private(f"openings.{name}.{part}", TEXT, "release")
      for name in _COMMITTED
      for part in ("value", "salt")
    ),
  )


def _data() -> tuple[Fact, ...]:
  kinds = ("public_dataset", "licensed", "private", "crawled", "user")
  counts = ("row_tokens", "train_rows", "train_tokens", "held_out_rows")

  def source(name: str, form: Mapping[str, Any]) -> Fact:
    return Fact(f"data.sources.*.{name}", form, "release.sources")

  return (
    Fact("pair.same_family", FLAG, "release"),
    Fact("pair.same_tokenizer", FLAG, "release"),
    Fact(
      "pair.same_data", _or_null(FLAG), "release.frontier.pipeline_fingerprint"
    ),
    Fact("data.sources", SOME_NAMES, "release.sources"),
    source("kind", _enum(*kinds, "synthetic", "other")),
    source("modality", TEXT),
    source("about", TEXT),
    source("licence", WORDS),
    source("period", WORDS),
    Fact("data.curation", TEXT, "release.about.curation"),
    *(Fact(f"data.{name}", POSITIVE, "train") for name in counts),
    Fact("data.shares_rows", FLAG, "release.shares_rows"),
    Fact("data.tokenizer_sha256", SHA256, "export"),
    Fact("data.pipeline_sha256", SHA256, "cache"),
  )


def _distillation() -> tuple[Fact, ...]:
  needed = ("training.phases[].teaches", CACHED)

  def cached(name: str, form: Mapping[str, Any], view: str = PUBLIC) -> Fact:
    return Fact(f"distillation.{name}", form, "cache", view, needed)

  return (
    Fact("distillation.used", FLAG, "train"),
    cached("record_kind", TEXT),
    cached("temperature", AMOUNT),
    cached("cached_rows", COUNT),
    cached("cached_tokens", COUNT),
    cached("bytes_per_token", AMOUNT),
    cached("gram", FLAG),
    cached("cache_sha256", SHA256),
    cached("sampling", NAMES, REGULATOR),
    cached("sampling.*", SCALAR, REGULATOR),
  )


def _training() -> tuple[Fact, ...]:
  def each(name: str, form: Mapping[str, Any], view: str = PUBLIC) -> Fact:
    return Fact(f"training.phases[].{name}", form, "train", view)

  teaches = _enum("hard labels", CACHED, LIVE)
  return (
    Fact("training.phases", SOME, "train"),
    each("name", TEXT),
    each("teaches", teaches),
    each("begins_from", WORDS),
    each("steps", POSITIVE),
    each("tokens", POSITIVE),
    Fact("training.wall_seconds", AMOUNT, "train", REGULATOR),
    each("batch_rows", POSITIVE, REGULATOR),
    each("loss", SOME_NAMES, REGULATOR),
    each("loss.*", SCALAR, REGULATOR),
    each("optimizer", SOME_NAMES, REGULATOR),
    each("optimizer.*", SCALAR, REGULATOR),
  )


def _estimate(path: str, stage: str) -> tuple[Fact, ...]:
  number = _or_null(NUMBER)
  return (
    *(Fact(f"{path}.{n}", number, stage) for n in ("value", "low", "high")),
    Fact(f"{path}.n", COUNT, stage),
    Fact(f"{path}.why", WORDS, stage, needed=False),
  )


def _fidelity() -> tuple[Fact, ...]:
  return (
    Fact("fidelity.sha256", SHA256, "measure"),
    Fact("fidelity.quick", FLAG, "measure"),
    Fact("fidelity.analog", TEXT, "measure"),
    Fact("fidelity.metrics", SOME_NAMES, "measure"),
    *_estimate("fidelity.metrics.*", "measure"),
    Fact("fidelity.claims", SOME, "measure"),
    *(
      Fact(f"fidelity.claims[].{name}", TEXT, "measure")
      for name in ("id", "text", "verdict", "because")
    ),
  )


def _safety() -> tuple[Fact, ...]:
  def each(name: str, form: Mapping[str, Any], needed: bool = True) -> Fact:
    return Fact(f"safety.tests[].{name}", form, "safety", needed=needed)

  families = _enum("extraction", "canaries", "membership", "refusal")
  verdicts = _enum("passed", "failed", "no threshold", "undefined")
  return (
    Fact("safety.sha256", SHA256, "safety"),
    Fact("safety.quick", FLAG, "safety"),
    Fact("safety.verdict", _enum("passed", "failed"), "safety"),
    Fact("safety.because", WORDS, "safety", needed=False),
    Fact("safety.tests", SOME, "safety"),
    each("id", TEXT),
    each("family", families),
    each("metric", TEXT),
    each("model", TEXT),
    *_estimate("safety.tests[].value", "safety"),
    each("threshold", OR_NULL),
    each("threshold.at_most", NUMBER, needed=False),
    each("threshold.at_least", NUMBER, needed=False),
    each("verdict", verdicts),
    each("text", TEXT),
    each("command", TEXT),
  )


def _cost(root: str, view: str) -> tuple[Fact, ...]:
  """Lines of costs; a range stands where the value itself is withheld."""

  def fact(name: str, form: Mapping[str, Any]) -> Fact:
    return Fact(f"{root}.{name}", form, "release", view)

  span = {
    **{"type": "object", "additionalProperties": False},
    **{"required": ["low", "high"]},
    "properties": {"low": AMOUNT, "high": AMOUNT},
  }
  amount = {"anyOf": [AMOUNT, span, {"type": "null"}]}
  amounts = ("device_hours", "dollars", "kwh", "flops")

  def row(name: str) -> tuple[Fact, ...]:
    return (
      fact(f"{name}.step", TEXT),
      fact(f"{name}.stages", TEXTS),
      *(fact(f"{name}.{n}", amount) for n in amounts),
      fact(f"{name}.is_paper_s", FLAG),
      fact(f"{name}.of_teacher", FLAG),
      fact(f"{name}.note", WORDS),
    )

  return (
    fact("rows", SOME),
    *row("rows[]"),
    fact("total.step", TEXT),
    *(fact(f"total.{name}", amount) for name in amounts),
    fact("total.note", WORDS),
    fact("compared", OR_NULL),
    *row("compared"),
    fact("teacher_tokens", COUNT),
    fact("energy.method", TEXT),
    fact("energy.pue", AMOUNT),
    fact("missing", TEXTS),
  )


def _repro() -> tuple[Fact, ...]:
  return (
    # Null where analogjax was installed from a package.
    Fact("repro.commit", _or_null(TEXT), "release"),
    Fact("repro.dirty", _or_null(FLAG), "release"),
    Fact("repro.commands", SOME_TEXTS, "release"),
    Fact("repro.software", SOME_NAMES, "release"),
    Fact("repro.software.*", TEXT, "release"),
    Fact("repro.python", TEXT, "release"),
    Fact("repro.config_sha256", SHA256, "release"),
    Fact("repro.seeds", NAMES, "release"),
    Fact("repro.seeds.*", COUNT, "release"),
  )


def _gates() -> tuple[Fact, ...]:
  def each(name: str, form: Mapping[str, Any], view: str = PUBLIC) -> Fact:
    return Fact(f"gates[].{name}", form, "release", view)

  verdicts = _enum("passed", "failed", "waived", "warning")
  reasoned = {
    "if": {"properties": {"verdict": {"const": "waived"}}},
    "then": {"properties": {"waiver": TEXT}},
  }
  return (
    Fact("gates", SOME, "release"),
    Fact("gates[]", reasoned, "release.waivers"),
    each("id", TEXT),
    each("title", TEXT),
    each("verdict", verdicts),
    each("evidence", TEXT),
    each("private_evidence", WORDS, REGULATOR),
    each("waiver", _or_null(TEXT)),
    Fact("mof", TEXT, "release"),
    Fact("not_recorded", TEXTS, "release"),
  )


def facts() -> tuple[Fact, ...]:
  """All of them, in the order in which they are written."""
  return (
    *_about(),
    *_model(),
    *_frontier(),
    *_data(),
    *_distillation(),
    *_training(),
    *_fidelity(),
    *_safety(),
    *_cost("cost", PUBLIC),
    *_cost("cost_in_full", REGULATOR),
    *_repro(),
    *_gates(),
  )
