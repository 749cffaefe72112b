"""Tests for analogjax/verify/reproduce.py and toy.py."""

import copy
import functools
import hashlib
import json
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from ml_collections import ConfigDict
import pytest

from analogjax.config import loading, schema
from analogjax.models import hf_import
from analogjax.release import public_config
from analogjax.verify import reproduce, toy

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
RECORD = {
  "model": {"family": "llama"},
  "training": {
    "phases": [
      {"name": "pretrain", "teaches": "hard labels"},
      {"name": "control", "teaches": "hard labels"},
      {"name": "distill", "teaches": "cached teacher"},
    ]
  },
}


@functools.cache
def of_the_demo():
  return public_config.project(loading.load(DEMO, []).to_dict())


@pytest.fixture
def published():
  """The repro/config.json of a bundle of the demo."""
  return of_the_demo()


def changed(value, path, new):
  value = copy.deepcopy(value)
  section = value
  *sections, leaf = path.split(".")
  for name in sections:
    section = section[name]
  section[leaf] = new
  return value


def toy_of(published, folder=Path("/nowhere"), record=RECORD):
  taken, _ = reproduce.check_config(published)
  taught = reproduce.taught_phases(record, taken)
  return toy.values(taken, folder, taught)


def test_a_toy_has_the_decisions_of_the_run_and_none_of_its_sizes(published):
  """If this fails for a new field of the config: give it a value in toy.py."""
  other = changed(published, "student.tie_embeddings", False)
  other = changed(other, "student.G", other["student"]["N"])
  other = changed(other, "cache.kind", "topk")
  other = changed(other, "cache.temperature", 2)
  other = changed(other, "train.control.seed", 77)
  other = changed(other, "train.distill.num_steps", 2)
  sections = schema.to_sections(ConfigDict(toy_of(other)))
  student, phases = sections.student, sections.train.phase
  assert not student.tie_embeddings and student.G == student.N
  assert (sections.cache.kind, sections.cache.temperature) == ("topk", 2.0)
  assert phases["control"].seed == 77
  assert [phases[n].num_steps for n in sections.train.phases] == [4, 4, 2]
  assert {n for n in phases if phases[n].loss.has_teacher} == {"distill"}
  assert student.D == 16 and sections.data.L == 32
  assert sections.release.licence == "Apache-2.0"
  assert sections.data.pipeline == "analogjax.data.text:jsonl"
  plain = schema.to_sections(ConfigDict(toy_of(published)))
  assert plain.student.G < plain.student.N


def test_every_field_that_is_taken_is_published(published):
  _, not_taken = reproduce.check_config(published)
  # The rest belongs to other stages or is a size with its own value in measure.
  sections = {name.split(".")[0] for name in not_taken}
  assert sections == {"student", "measure", "safety", "release"}
  assert {n for n in not_taken if n.startswith("student.")} == {
    "student.max_positions"
  }


@pytest.mark.parametrize(
  ("path", "value"),
  (
    ("student.V", 0),
    ("student.V", 10**300),
    ("student.V", 64.0),
    ("student.V", True),
    ("student.seed", -1),
    ("student.seed", 2**32),
    ("student.dtype", "float16"),
    ("student.tie_embeddings", "yes"),
    ("student.rope_theta", float("nan")),
    ("student.rms_norm_eps", 0),
    ("data.L", "256; rm -rf /"),
    ("cache.kind", ["threshold"]),
    ("cache.temperature", float("inf")),
    ("train.distill.num_steps", 10**13),
    ("train.distill.num_steps", -5),
    ("train.distill.num_steps", 1e3),
    ("train.distill.init_from", "../../etc"),
    ("train.distill.init_from", "distill"),
    ("train.distill.rows", "pickle"),
    ("train.distill.loss", None),
    ("train.phases", []),
    ("train.phases", ["a"] * 9),
    ("train.phases", ["pretrain", "control", "distill", "distill"]),
    ("train.phases", ["phases"]),
    ("train.phases", ["pretrain", "../x"]),
    ("train.phases", "pretrain"),
    ("train", []),
    ("release.phase", "another"),
    ("release.phase", "\u202egnp"),
  ),
)
def test_a_field_that_no_run_has_is_refused_by_name(published, path, value):
  with pytest.raises(ValueError, match="^repro/config.json: ") as caught:
    reproduce.check_config(changed(published, path, value))
  said = str(caught.value)
  assert path.split(".")[0] in said and said.isascii() and len(said) < 300


def test_a_phase_cannot_take_the_place_of_another_field(published):
  other = changed(published, "train.location", published["train"]["control"])
  names = [*published["train"]["phases"], "location"]
  with pytest.raises(ValueError, match="train.phases: expected 1 to 8 names"):
    reproduce.check_config(changed(other, "train.phases", names))


def test_a_phase_whose_rows_have_no_record_learns_from_none(published):
  other = changed(published, "train.distill.rows", "pipeline")
  sections = schema.to_sections(ConfigDict(toy_of(other)))
  assert not sections.train.phase["distill"].loss.has_teacher


def test_what_is_not_in_the_table_is_not_looked_at(published):
  hostile = published | {
    "data": published["data"]
    | {"pipeline": "os:system", "arguments": {"command": "touch /tmp/x"}},
    "teacher": {"path": "/etc"},
    "release": published["release"]
    | {"licence": "other", "licence_file": "/etc/passwd"},
    "plan": {"\x1b[2J": [[[[]]]]},
  }
  taken, not_taken = reproduce.check_config(hostile)
  assert taken == reproduce.check_config(published)[0]
  assert {"data.pipeline", "teacher.path", "release.licence_file"} <= set(
    not_taken
  )
  text = json.dumps(toy_of(hostile))
  assert "system" not in text and "/etc" not in text


LEAVES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  st.text(max_size=8),
  st.sampled_from(["", "cache", "live", "pretrain", "float32", "topk"]),
)
JSON = st.recursive(
  LEAVES,
  lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(st.text(max_size=8), inner, max_size=3),
  ),
  max_leaves=8,
)


@hypothesis.settings(max_examples=100)
@hypothesis.given(data=st.data())
def test_any_config_is_refused_or_makes_a_config_that_is_valid(data):
  published = of_the_demo()
  field = data.draw(st.sampled_from(sorted(reproduce._TAKEN)))
  path = field.replace("<phase>", "distill")
  for where in {path, data.draw(st.sampled_from(sorted(published)))}:
    value = changed(published, where, data.draw(JSON))
    try:
      made = toy_of(value)
    except ValueError as error:
      assert str(error).startswith("repro/config.json: ")
    else:
      schema.to_sections(ConfigDict(made))


@hypothesis.given(record=st.dictionaries(
  st.sampled_from(["model", "training", "repro"]), JSON
))  # fmt: skip
def test_any_record_is_read_or_refused(record):
  published = {"train": {"phases": ["a"], "a": {
    "rows": "cache", "loss": {"teacher": "cache"}
  }}}  # fmt: skip
  assert set(reproduce.taught_phases(record, published)) == {"a"}
  stages, others = reproduce.commands_of(record)
  assert set(stages) <= set(reproduce.STAGES)
  assert all(line.isascii() for line in others)
  assert all("\n" not in line for line in others)
  reproduce.other_software(record, {"jax": "0.10.2"})
  try:
    reproduce.check_family(record)
  except ValueError as error:
    assert str(error).startswith("record.json: model.family: ")
  else:
    assert record["model"]["family"] == "llama"


def test_commands_are_read_for_their_stage_alone():
  commands = [
    "analogjax export --config=a.py; rm -rf /",
    "python -m analogjax.main cache --config=a.py --workdir=w",
    "analogjax safety --config=a.py",
    "sh -c 'analogjax train'",
    7,
  ]
  stages, others = reproduce.commands_of({"repro": {"commands": commands}})
  assert stages == ["cache", "export"]
  assert others == [ascii(command)[:60] for command in commands[2:]]
  whole = {"repro": {"commands": ["analogjax run --config=a.py"]}}
  assert reproduce.commands_of(whole) == (list(reproduce.STAGES), [])
  assert reproduce.commands_of({"repro": {}}) == ([], [])


def test_versions_that_differ_are_named():
  record = {"repro": {"software": {"jax": "0.11.0", "grain": "1"}}}
  here = {"jax": "0.10.2", "grain": "1", "flax": "2"}
  assert reproduce.other_software(record, here) == [
    "flax is 2 here and None in the record",
    "jax is 0.10.2 here and '0.11.0' in the record",
  ]


def test_inputs_are_the_same_every_time_and_a_teacher_of_the_project(
  published, tmp_path
):
  digests = []
  for name in ("one", "two"):
    folder = tmp_path / name
    folder.mkdir()
    toy.write_inputs(folder, toy_of(published, folder)["student"])
    digests.append(
      {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
      }
    )
  assert digests[0] == digests[1] and len(digests[0]) == 5
  teacher = tmp_path / "one" / "teacher"
  hf_import.check_weights(teacher, hf_import.read_config(teacher))


def test_results_that_differ_in_a_bit_differ(tmp_path):
  for name in ("one", "two"):
    folder = tmp_path / name / "train" / "distill"
    folder.mkdir(parents=True)
    loss = 2.5 if name == "one" else 2.5000000000000004
    lines = [
      {"step": 1, "loss": loss},
      {"step": 1, "speed/tokens_per_second": hash(name) % 97},
    ]
    (folder / "metrics.jsonl").write_text(
      "".join(json.dumps(line) + "\n" for line in lines)
    )
    export = {"files": {"model.safetensors": "a" * 64}}
    (tmp_path / name / "export.json").write_text(json.dumps(export))
  one, two = (
    reproduce.results(tmp_path / name, ["distill"]) for name in ("one", "two")
  )
  assert list(one) == [
    "loss trace of distill, 1 records",
    "bytes of model.safetensors",
  ]
  same = {name for name in one if one[name] == two[name]}
  assert same == {"bytes of model.safetensors"}
