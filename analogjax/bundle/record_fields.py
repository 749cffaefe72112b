"""The fields of a record: every fact of a release that may be written down.

This is an allow-list: a fact without a line in `_TABLE` is in no record and in
no document.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import re
from typing import Any

from analogjax.config import release

# Teacher of a phase, beside hard labels.
CACHED, LIVE = "cached teacher", "live teacher"
# When a release without the fact is refused.
ALWAYS, IF_CACHED, NEVER = "always", "if cached", "optional"
_PRIVATE = "private"

# On each line: places, the form of the value, its source, and a mark. The
# source is a field of the config or the stage that finds the fact, and so what
# to set or to run when it is missing.
#
# Places that differ in their last word share a line, on which `*` in the source
# stands for that word. In a place, `[]` is each item of a list, and `*` each
# value of an object with any names. In a form, `a|b` is a choice, and `?` adds
# null. A private fact and all that is in it is withheld from the public. An
# optional fact may be missing; so may one marked "if cached", unless a phase
# has a cached teacher.
_TABLE = """
model.name version provider contact         text        release.about.*
model.released_on                           day         release.date
model.languages                             some texts  release.about.languages
model.modalities                            some texts  release
model.intended_use out_of_scope limitations  text       release.about.*
model.licence.spdx                          text        release.licence
model.licence.name                          text        release.licence_name
model.licence.category                      text        release
model.licence.text_sha256                   sha256      release
model.family                                text        export
model.parameters.total active               positive    export
model.weights_bytes                         positive    export
model.dtype                                 text        export
model.vocabulary_size context_tokens tensors  positive  export
model.files                                 some names  export
model.files.*                               sha256      export
model.architecture.layers width heads kv_heads  positive  export
model.architecture.head_width feed_forward  positive    export
model.architecture.tied_embeddings          flag        export

frontier.commitments.parameters active_parameters  sha256  release
frontier.commitments.deployed_on name       sha256      release
frontier.window.size                        two numbers  release
frontier.window.months                      two counts  release
frontier.name                 text          release.frontier.*           private
frontier.deployed_on          day           release.frontier.*           private
frontier.parameters active_parameters  positive  release.frontier.*      private
frontier.family               text          release.frontier.*           private
frontier.teacher_digest       sha256        cache                        private
frontier.architecture.layers width heads    positive    cache            private
frontier.architecture.kv_heads head_width feed_forward  positive  cache  private
frontier.size_ratio active_ratio            amount      release          private
frontier.openings.parameters.value salt     text        release          private
frontier.openings.active_parameters.value salt  text    release          private
frontier.openings.deployed_on.value salt    text        release          private
frontier.openings.name.value salt           text        release          private

pair.same_family same_tokenizer             flag        release
pair.same_data               flag?         release.frontier.pipeline_fingerprint

data.sources                                some names  release.sources
data.sources.*.kind                         source      release.sources
data.sources.*.modality about               text        release.sources
data.sources.*.licence period               words       release.sources
data.curation                               text        release.about.curation
data.row_tokens train_rows train_tokens held_out_rows  positive  train
data.shares_rows                            flag        release.shares_rows
data.tokenizer_sha256                       sha256      export
data.pipeline_sha256                        sha256      cache

distillation.used                           flag        train
distillation.record_kind                    text        cache          if cached
distillation.temperature                    amount      cache          if cached
distillation.cached_rows cached_tokens      count       cache          if cached
distillation.bytes_per_token                amount      cache          if cached
distillation.gram                           flag        cache          if cached
distillation.cache_sha256                   sha256      cache          if cached
distillation.sampling           object      cache             private, if cached
distillation.sampling.*         scalar      cache             private, if cached

training.phases                             some        train
training.phases[].name                      text        train
training.phases[].teaches       hard labels|cached teacher|live teacher  train
training.phases[].begins_from               words       train
training.phases[].steps tokens              positive    train
training.phases[].batch_rows                positive    train            private
training.phases[].loss optimizer            some names  train            private
training.phases[].loss.*                    scalar      train            private
training.phases[].optimizer.*               scalar      train            private
training.wall_seconds                       amount      train            private

fidelity.sha256                             sha256      measure
fidelity.quick                              flag        measure
fidelity.analog                             text        measure
fidelity.metrics                            some names  measure
fidelity.metrics.*.value low high           number?     measure
fidelity.metrics.*.n                        count       measure
fidelity.metrics.*.why                      words       measure         optional
fidelity.claims                             some        measure
fidelity.claims[].id text verdict because   text        measure

safety.sha256                               sha256      safety
safety.quick                                flag        safety
safety.verdict                              passed|failed  safety
safety.because                              words       safety          optional
safety.tests                                some        safety
safety.tests[].id                           text        safety
safety.tests[].family     extraction|canaries|membership|refusal  safety
safety.tests[].metric model                 text        safety
safety.tests[].value.value low high         number?     safety
safety.tests[].value.n                      count       safety
safety.tests[].value.why                    words       safety          optional
safety.tests[].threshold                    object?     safety
safety.tests[].threshold.at_most at_least   number      safety          optional
safety.tests[].verdict    passed|failed|no threshold|undefined  safety
safety.tests[].text command                 text        safety

cost.rows                                   some        release
cost.rows[].step                            text        release
cost.rows[].stages                          texts       release
cost.rows[].device_hours dollars kwh flops  range?      release
cost.rows[].is_paper_s of_teacher           flag        release
cost.rows[].note                            words       release
cost.total.step                             text        release
cost.total.device_hours dollars kwh flops   range?      release
cost.total.note                             words       release
cost.compared                               object?     release
cost.compared.step                          text        release
cost.compared.stages                        texts       release
cost.compared.device_hours dollars kwh flops  range?    release
cost.compared.is_paper_s of_teacher         flag        release
cost.compared.note                          words       release
cost.teacher_tokens                         count       release
cost.energy.method                          text        release
cost.energy.pue                             amount      release
cost.missing                                texts       release

repro.commit                                text?       release
repro.dirty                                 flag?       release
repro.commands                              some texts  release
repro.software                              some names  release
repro.software.*                            text        release
repro.python                                text        release
repro.config_sha256                         sha256      release
repro.seeds                                 object      release
repro.seeds.*                               count       release
repro.verifier                words         release.about.verifier      optional

gates                                       some        release
gates[]                                     gate        release.waivers
gates[].id title                            text        release
gates[].verdict              passed|failed|waived|warning  release
gates[].evidence                            text        release
gates[].private_evidence                    words       release          private
gates[].waiver                              text?       release

mof                                         text        release
not_recorded                                texts       release
"""

# JSON Schemas of the forms. Numbers are bounded by the range of a float, and so
# are lengths. Python's `$` allows a newline at the end.
_TEXT = {"type": "string", "pattern": r"\S"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 10**18}
_AMOUNT = {"type": "number", "minimum": 0, "maximum": 1e100}
_NUMBER = {"type": "number", "minimum": -1e100, "maximum": 1e100}
_TWO = {"type": "array", "minItems": 2, "maxItems": 2}
_DAY = "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_FORMS: Mapping[str, Mapping[str, Any]] = {
  "text": _TEXT,
  "words": {"type": "string"},  # May be empty: not stated.
  "flag": {"type": "boolean"},
  "count": _COUNT,
  "positive": {**_COUNT, "minimum": 1},
  "amount": _AMOUNT,
  "number": _NUMBER,
  "scalar": {"type": ["string", "number", "boolean", "null"]},
  "day": {"type": "string", "maxLength": 10, "pattern": _DAY},
  "sha256": {"type": "string", "maxLength": 64, "pattern": "^[0-9a-f]{64}$"},
  "texts": {"type": "array", "items": _TEXT},
  "some texts": {"type": "array", "items": _TEXT, "minItems": 1},
  "two numbers": {**_TWO, "items": _NUMBER},
  "two counts": {**_TWO, "items": _COUNT},
  "some": {"type": "array", "minItems": 1},
  "object": {"type": "object"},
  "object?": {"type": ["object", "null"]},
  "some names": {"type": "object", "minProperties": 1},
  "source": {"enum": list(release.SOURCE_KINDS)},
  # An amount, or a range where the amount itself is withheld.
  "range?": {
    "anyOf": [
      _AMOUNT,
      {
        "type": "object",
        "additionalProperties": False,
        "required": ["low", "high"],
        "properties": {"low": _AMOUNT, "high": _AMOUNT},
      },
      {"type": "null"},
    ]
  },
  "gate": {
    "type": "object",
    "if": {"properties": {"verdict": {"const": "waived"}}},
    "then": {"properties": {"waiver": _TEXT}},
  },
}


@dataclasses.dataclass
class Field:
  """A fact, or an object or list of facts.

  Attributes:
    form: JSON Schema of the value, without its fields or items.
    source: a field of the config, or a stage; "" for an object without a line
      of its own.
    fields: of an object, by name; no others may be there.
    each: the field of each item of a list, or of each value of an object with
      any names.
    is_private: withheld from the public.
    needed: ALWAYS, IF_CACHED or NEVER.
  """

  form: Mapping[str, Any]
  source: str = ""
  fields: "dict[str, Field]" = dataclasses.field(default_factory=dict)
  each: "Field | None" = None
  is_private: bool = False
  needed: str = ALWAYS

  @property
  def remedy(self) -> str:
    """The remedy if the fact is missing."""
    if "." in self.source:
      return f"set {self.source} in the config"
    return f"run `analogjax {self.source}`"

  def below(self, step: str) -> "Field":
    """The field of a name, `[]` or `*`; created if missing."""
    if step not in ("[]", "*"):
      return self.fields.setdefault(step, Field(_FORMS["object"]))
    self.each = self.each or Field(_FORMS["object"])
    return self.each


def _form(name: str) -> Mapping[str, Any]:
  if name in _FORMS:
    return _FORMS[name]
  if name.endswith("?"):
    return {"anyOf": [_FORMS[name[:-1]], {"type": "null"}]}
  return {"enum": name.split("|")}


def _lines() -> Iterator[tuple[str, str, str, str]]:
  """(place, form, source, marks) of each fact."""
  for line in filter(None, _TABLE.splitlines()):
    places, form, source, *marks = re.split("  +", line)
    first, *others = places.split(" ")
    above = first[: first.rfind(".") + 1]
    for place in (first, *(above + name for name in others)):
      name = place.rpartition(".")[2]
      yield place, form, source.replace("*", name), "".join(marks)


def record() -> Field:
  """All fields, in the order in which they are written."""
  root = Field(_FORMS["object"])
  for place, form, source, marks in _lines():
    roots = ("cost", "cost_in_full") if place.startswith("cost.") else ("",)
    for name in roots:
      field = root
      steps = place.replace("[]", ".[]").split(".")
      for step in [name or steps[0], *steps[1:]]:
        field = field.below(step)
      field.form, field.source = _form(form), source
      field.is_private = _PRIVATE in marks
      named = (each for each in (IF_CACHED, NEVER) if each in marks)
      field.needed = next(named, ALWAYS)
  root.fields["cost_in_full"].is_private = True
  return root
