"""Tests for analogjax/config/schema.py."""

import dataclasses

from ml_collections import ConfigDict
import pytest

from analogjax.config import defaults, model, plan, schema

PHASE = dict(
  num_steps=10,
  batch_rows=2,
  checkpoint_every_steps=5,
  eval_every_steps=5,
  loss=dict(chunk=4),
  optimizer=dict(learning_rate=1e-3, warmup_steps=2, decay_steps=3),
)


@pytest.fixture
def values():
  """A config as plain values; a test breaks one of them."""
  cfg = defaults.config(phases=("pretrain", "distill"))
  cfg.teacher.path = "/models/t"
  cfg.student.update(V=100, D=8, Y=2, N=4, G=2, H=4, F=16, max_positions=64)
  cfg.data.update(L=16, pipeline="my_lab.data:rows")
  cfg.data.arguments = dict(path="x")
  cfg.cache.update(num_rows=8, held_out_rows=2, batch_rows=2, rows_per_object=4)
  for name in cfg.train.phases:
    cfg.train[name].update(PHASE)
  cfg.train.distill.update(init_from="pretrain", rows="cache")
  cfg.train.distill.loss.alpha = 0.9
  cfg.measure.update(batch_rows=2)
  cfg.safety.update(batch_rows=2)
  cfg.release.licence = "MIT"
  about = cfg.release.about
  about.update(name="a", version="1", provider="b", contact="c")
  about.update(languages=("en",), intended_use="d", out_of_scope="e")
  about.update(limitations="f", curation="g")
  source = dict(kind="user", modality="text", about="i", licence="", period="")
  cfg.release.sources = dict(h=source)
  cfg.release.frontier.update(name="j", deployed_on="2026-01-31")
  return cfg.to_dict()


def put(values, path, value):
  *sections, leaf = path.split(".")
  for name in sections:
    values = values[name]
  values[leaf] = value


def message(values):
  with pytest.raises(ValueError) as info:
    schema.to_sections(ConfigDict(values))
  text = str(info.value)
  assert "\n" not in text
  return text


def test_a_good_config_becomes_typed_sections(values):
  values["train"]["pretrain"]["loss"]["alpha"] = (
    0  # An int where a float belongs.
  )
  values["measure"]["phases"] = ["distill"]  # A list where a tuple belongs.
  s = schema.to_sections(ConfigDict(values))
  assert s.student.D == 8
  assert s.teacher.gguf is None
  assert s.train.phases == ("pretrain", "distill")
  assert s.train.phase["distill"].optimizer.learning_rate == 1e-3
  assert isinstance(s.train.phase["pretrain"].loss.alpha, float)
  assert s.measure.phases == ("distill",)
  assert s.data.arguments == {"path": "x"}
  with pytest.raises(dataclasses.FrozenInstanceError):
    s.cache.tau = 0.1


def test_misspelt_field_is_named_with_its_neighbour(values):
  values["student"]["tie_embedings"] = True
  text = message(values)
  assert text.startswith("student.tie_embedings: there is no such field")
  assert "student.tie_embeddings" in text


def test_misspelt_section_of_a_phase(values):
  values["train"]["distil"] = values["train"].pop("distill")
  text = message(values)
  assert text.startswith("train.phases: 'distill' has no section train.distill")
  assert "Did you mean distil?" in text


def test_misspelt_field_deep_in_a_phase(values):
  values["train"]["distill"]["optimizer"]["weight_decy"] = 0.1
  text = message(values)
  assert text.startswith("train.distill.optimizer.weight_decy: ")
  assert "train.distill.optimizer.weight_decay" in text


def test_unknown_section(values):
  values["caches"] = {}
  assert message(values).startswith("caches: there is no such field. Did you m")


def test_a_field_without_a_default_has_to_be_set(values):
  del values["student"]["D"]
  text = message(values)
  assert text.startswith("student.D: missing; expected int (model width). It ")
  assert "has no default: set it in the config file" in text
  del values["student"]["V"], values["train"]["distill"]["optimizer"]
  del values["data"]
  text = message(values)
  assert text.startswith("student.V: missing;")
  assert text.endswith(
    "Also missing: student.D, data.L, data.pipeline,"
    " train.distill.optimizer.learning_rate."
  )


def test_what_is_not_set_has_its_default(values):
  del values["mesh"], values["student"]["seed"], values["teacher"]["mesh"]
  values["plan"] = dict(v5p={})
  values["train"]["distill"]["optimizer"] = dict(
    learning_rate=1, warmup_steps=0
  )
  s = schema.to_sections(ConfigDict(values))
  assert s.mesh == model.MeshConfig() and s.mesh.fsdp == -1
  assert s.student.seed == 0 and s.teacher.mesh is None
  assert s.plan.chip == {"v5p": plan.PriceConfig()}
  assert s.train.phase["distill"].optimizer.b2 == 0.95


def test_every_phase_that_is_too_short_is_named(values):
  values["train"]["pretrain"]["num_steps"] = 4
  values["train"]["distill"]["num_steps"] = 3
  assert message(values).startswith(
    "train.pretrain.num_steps: expected at least optimizer.warmup_steps +"
    " optimizer.decay_steps = 5, found 4; the same in train.distill. For 4"
    " steps set optimizer.warmup_steps=0 and optimizer.decay_steps=0, or"
  )


def test_every_default_fulfils_the_bounds_of_its_field():
  for field in schema.schema():
    assert field.private != "", f"{field.path}: public, or why not?"
    if field.default is not dataclasses.MISSING:
      for bound in field.bounds:
        assert bound.holds(field.default), field.path


@pytest.mark.parametrize(
  ("path", "bad", "expected"),
  [
    ("student.D", 8.0, "expected int, found 8.0 of type float"),
    ("student.D", True, "expected int, found True of type bool"),
    ("student.D", "8", "expected int, found '8' of type str"),
    ("student.mlp_bias", 0, "expected bool, found 0 of type int"),
    ("student.dtype", None, "expected str, found None of type NoneType"),
    ("cache.tau", "0.04", "expected float, found '0.04' of type str"),
    ("cache.tau", True, "expected float, found True of type bool"),
    ("cache.tau", float("nan"), "expected float, found nan"),
    ("measure.phases", "distill", "expected tuple of str, found 'distill'"),
    ("measure.phases", (1,), "expected tuple of str, found (1,)"),
    ("mesh", 8, "expected a section (a dict), found 8 of type int"),
    ("data.arguments", 3, "expected free-form, found 3 of type int"),
    ("data.arguments.f", print, "expected a str, bool, int, finite float"),
    ("data.arguments.x", float("inf"), "expected a str, bool, int, finite fl"),
  ],
)
def test_wrong_type_is_named(values, path, bad, expected):
  put(values, path, bad)
  assert message(values).startswith(f"{path}: {expected}")


@pytest.mark.parametrize(
  ("path", "bad", "expected"),
  [
    ("student.V", 0, "expected a positive number, found 0."),
    ("student.G", 3, "expected a divisor of N=4, found 3."),
    ("student.H", 5, "expected an even width"),
    (
      "student.remat",
      "all",
      "expected 'none' or 'dots' or 'full', found 'all'",
    ),
    ("student.size_window", "ask", "expected 'refuse' or 'warn', found 'ask'"),
    ("student.max_positions", 15, "expected at least data.L=16, found 15."),
    ("teacher.dtype", "fp8", "expected 'float32' or 'bfloat16', found 'fp8'."),
    ("teacher.sha256", "ABC", "expected 64 lower-case hex digits or ''"),
    ("train.phases", ("teacher",), "expected another name than that"),
    ("teacher.path", "", "expected a folder, as teacher.gguf is None"),
    ("data.L", 1, "expected at least 2 tokens, found 1."),
    ("data.pipeline", "my_lab.data.rows", "expected 'package.module:function'"),
    ("cache.kind", "top-p", "expected 'threshold' or 'random' or 'topk', fou"),
    ("cache.batch_rows", 3, "expected a divisor of rows_per_object=4, found 3"),
    ("cache.num_draws", 256, "expected 1 <= num_draws <= 255, found 256."),
    ("cache.top_k", 0, "expected 1 <= top_k <= 1024, found 0."),
    ("cache.temperature", 0.0, "expected > 0, found 0.0."),
    ("cache.num_replicas", 0, "expected a positive number, found 0."),
    ("cache.capture", "some", "expected 'all' or 'random' or 'entropy', found"),
    ("cache.capture_rate", 0.0, "expected above 0, found 0.0."),
    ("cache.gram_positions", 1, "expected 0, or 2 to 128, found 1."),
    ("cache.gram_positions", 129, "expected 0, or 2 to 128, found 129."),
    ("cache.gram_positions", 17, "expected at most data.L=16, found 17."),
    ("cache.gram_layers", 0, "expected a positive number, found 0."),
    ("cache.location", "ftp://a/b", "expected a folder, s3://bucket/prefix or"),
    (
      "cache.s3_endpoint",
      "http://h:1",
      "expected '', as location does not",
    ),
    ("cache.tau", 0.0, "expected 0.001 <= tau <= 1, found 0.0."),
    ("cache.tau", 1.01, "expected 0.001 <= tau <= 1, found 1.01."),
    ("cache.seed", -1, "expected 0 <= seed < 2**32, found -1."),
    ("train.phases", (), "expected at least one phase"),
    ("train.phases", ("distill",) * 2, "expected each phase once"),
    ("train.phases", ("../x",), "expected names of letters a-z, digits and _"),
    ("train.pretrain.init_from", "distill", "expected '' or a phase that runs"),
    ("student.attention", "flash", "expected 'auto' or 'xla' or 'cudnn' or 's"),
    ("teacher.attention", "", "expected 'auto' or 'xla' or 'cudnn' or 'splas"),
    ("train.distill.loss.alpha", 1.5, "expected 0 <= alpha <= 1, found 1.5."),
    ("train.distill.loss.teacher", "dead", "expected 'cache' or 'live', found"),
    ("train.distill.loss.alpha_schedule", "wsd", "expected 'constant' or 'cos"),
    ("train.distill.loss.divergence", "kl", "expected 'forward_kl' or 'rever"),
    ("train.distill.loss.divergence", "reverse_kl", "expected 'forward_kl', a"),
    ("train.distill.loss.mixture", 0.0, "expected 0 < mixture < 1, found 0.0"),
    ("train.distill.loss.temperature", 0.0, "expected > 0, found 0.0."),
    ("train.distill.loss.temperature", 2.0, "expected cache.temperature=1.0, "),
    ("train.distill.loss.z_loss", -1.0, "expected 0 or more, found -1.0."),
    ("train.distill.loss.gram_weight", -1.0, "expected 0 or more, found -1.0."),
    ("train.distill.loss.chunk", 0, "expected a positive number, found 0."),
    ("train.distill.microbatches", 3, "expected a divisor of batch_rows=2, f"),
    ("train.distill.rows", "pipeline", "expected 'cache', as loss.alpha=0.9"),
    ("train.distill.batch_rows", 9, "expected at most cache.num_rows=8"),
    ("train.distill.num_steps", 4, "expected at least optimizer.warmup_steps"),
    ("train.distill.log_every_steps", 0, "expected a positive number, found 0"),
    ("train.distill.optimizer.schedule", "step", "expected 'wsd' or 'cosine'"),
    ("train.distill.optimizer.b2", 1.0, "expected 0 <= b2 < 1, found 1.0."),
    ("measure.phases", ("align",), "expected a phase of train.phases"),
    ("safety.phases", ("align",), "expected a section of train ("),
    ("release.phase", "align", "expected a phase of train.phases (pretrain, d"),
    ("mesh.fsdp", 0, "expected a positive number or -1, found 0."),
    ("mesh.tensor", -1, "expected -1 on one axis only"),
  ],
)
def test_broken_rule_is_named_and_says_how_to_set_it(
  values, path, bad, expected
):
  put(values, path, bad)
  text = message(values)
  assert text.startswith(f"{path}: {expected}"), text
  assert text.endswith(f"or with --config.{path}=VALUE.")


@pytest.mark.parametrize(
  ("path", "edge"),
  [
    ("cache.tau", 1.0),
    ("train.distill.loss.alpha", 1.0),
    ("train.distill.microbatches", 2),
    ("train.distill.num_steps", 5),
    ("train.distill.batch_rows", 8),
    ("student.max_positions", 16),
    ("data.L", 2),
  ],
)
def test_the_edge_of_a_rule_is_inside(values, path, edge):
  put(values, path, edge)
  schema.to_sections(ConfigDict(values))


def test_the_analog_is_not_compared_with_itself(values):
  safety = values["safety"]
  safety |= dict(phases=("distill",), reference="distill")
  expected = "expected another student than release.phase='distill'"
  assert message(values).startswith(f"safety.reference: {expected}")
  safety |= dict(phases=(), reference="", folders=("distill=a",))
  assert message(values).startswith(f"safety.folders: {expected} by each name")


def test_a_live_teacher_takes_any_rows_divergence_and_temperature(values):
  distill = values["train"]["distill"]
  distill |= dict(rows="pipeline")
  distill["loss"] |= dict(teacher="live", divergence="skew_kl", temperature=2.0)
  s = schema.to_sections(ConfigDict(values))
  assert s.train.phase["distill"].runs_teacher and not s.reads_cache


@pytest.mark.parametrize(
  ("changes", "path", "expected"),
  [
    (
      {"cache.gram_positions": 0},
      "cache.gram_positions",
      "expected 2 or more, as train.distill.loss.gram_weight is set",
    ),
    (
      {"cache.gram_layers": 3},
      "cache.gram_layers",
      "expected at most student.Y=2, as train.distill.loss.gram_weight is set",
    ),
    (
      {"train.distill.rows": "pipeline", "train.distill.loss.alpha": 0.0},
      "train.distill.rows",
      "expected 'cache', as loss.gram_weight=0.5 needs a teacher",
    ),
    (
      {"cache.import_path": "x.parquet", "cache.kind": "topk"},
      "cache.gram_positions",
      "expected 0, as cache.import_path is set",
    ),
  ],
)
def test_a_gram_that_cannot_be_there_is_refused(
  values, changes, path, expected
):
  put(values, "cache.gram_positions", 8)
  put(values, "train.distill.loss.gram_weight", 0.5)
  schema.to_sections(ConfigDict(values))
  for name, value in changes.items():
    put(values, name, value)
  assert message(values).startswith(f"{path}: {expected}")


def test_a_gram_alone_needs_a_teacher(values):
  """Beside hard labels: the teacher's distribution is not read."""
  put(values, "cache.gram_positions", 8)
  loss = values["train"]["distill"]["loss"]
  loss |= dict(alpha=0.0, gram_weight=0.5)
  cached = schema.to_sections(ConfigDict(values)).train.phase["distill"]
  assert cached.reads_gram and not cached.reads_records
  assert not cached.runs_teacher
  loss |= dict(teacher="live")
  live = schema.to_sections(ConfigDict(values)).train.phase["distill"]
  assert live.runs_teacher and not live.reads_gram


def test_records_of_kind_topk_take_any_divergence(values):
  values["cache"] |= dict(kind="topk", temperature=2.0)
  values["train"]["distill"]["loss"] |= dict(
    divergence="jensen_shannon", temperature=2.0
  )
  s = schema.to_sections(ConfigDict(values))
  assert s.train.phase["distill"].reads_records and s.reads_cache


def test_a_mesh_of_the_teachers_own_has_sizes(values):
  mesh = dict(data=1, fsdp=-1, expert=1, tensor=1)
  values["teacher"]["mesh"] = mesh
  text = message(values)
  assert text.startswith("teacher.mesh.fsdp: expected a positive number, found")
  mesh["fsdp"] = 2
  s = schema.to_sections(ConfigDict(values))
  assert s.teacher.mesh is not None and s.teacher.mesh.fsdp == 2


def test_a_phase_that_is_not_run_still_has_its_types_checked(values):
  values["train"]["align"] = PHASE | {"num_steps": "10"}
  assert message(values).startswith("train.align.num_steps: expected int")
  values["train"]["align"] = dict(PHASE)
  assert schema.to_sections(ConfigDict(values)).train.phases == (
    "pretrain",
    "distill",
  )


def test_gguf_is_a_section_or_none(values):
  digest = "0" * 64
  values["teacher"] |= dict(
    path="", gguf=dict(package="p", file="f.gguf", sha256=digest)
  )
  assert schema.to_sections(ConfigDict(values)).teacher.gguf.sha256 == digest
  put(values, "teacher.gguf.file", "")
  assert message(values).startswith("teacher.gguf.file: expected a text that ")


def test_rope_scaling_is_a_section_or_none(values):
  scaling = dict(kind="llama3", factor=8.0, original_max_positions=64)
  scaling |= dict(low_freq_factor=1.0, high_freq_factor=4.0)
  values["student"]["rope_scaling"] = scaling
  found = schema.to_sections(ConfigDict(values)).student.rope_scaling
  assert found == model.RopeScaling(**scaling)
  put(values, "student.rope_scaling.factor", 0.5)
  assert message(values).startswith(
    "student.rope_scaling.factor: expected 1 or more, found 0.5."
  )


def test_schema_describes_every_field(values):
  lines = schema.schema()
  by_path = {line.path: line for line in lines}
  assert len(by_path) == len(lines)
  assert by_path["cache.tau"].type == "float"
  assert by_path["train.<phase>.optimizer.warmup_steps"].type == "int"
  assert by_path["teacher.gguf.sha256"].type == "str"
  assert by_path["train.phases"].type == "tuple of str"
  assert by_path["data.arguments"].type == "free-form"
  assert all(line.meaning for line in lines)
