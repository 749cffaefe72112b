"""Tests for analogjax/config/defaults.py and draft.py."""

import copy
import hashlib
import json

import pytest

from analogjax.config import defaults, fields, loading, schema

# Renew it together with defaults.VERSION.
DIGEST = "d036e1ee6a657a6b"


def required(cfg):
  """Sets the fields without a default."""
  cfg.teacher.path = "t"
  cfg.student.update(V=8, D=8, Y=1, N=2, G=1, H=4, F=8, max_positions=16)
  cfg.data.update(L=16, pipeline="lab:rows")
  cfg.cache.update(num_rows=64, held_out_rows=2, batch_rows=2)
  for name in cfg.train.phases:
    cfg.train[name].update(num_steps=2000, batch_rows=2)
    cfg.train[name].optimizer.learning_rate = 1e-3
  cfg.measure.batch_rows = cfg.safety.batch_rows = 2
  cfg.release.licence = "MIT"
  names = fields.own(schema.Sections)["release"].section
  about = fields.own(names)["about"].section
  for name in fields.own(about):
    cfg.release.about[name] = "x" if name != "languages" else ("en",)
  source = dict(kind="user", modality="text", about="x", licence="", period="")
  cfg.release.sources = dict(a=source)
  cfg.release.frontier.update(name="f", deployed_on="2026-01-31")
  return cfg


def test_the_version_changes_with_the_defaults():
  """A workdir records the defaults that it began with."""
  values = {
    field.path: field.default
    for field in schema.schema()
    if field.default is not fields.dataclasses.MISSING
  }
  text = json.dumps(values, sort_keys=True)
  found = hashlib.sha256(text.encode()).hexdigest()[:16]
  assert (found, defaults.VERSION) == (DIGEST, 1), (
    "a default was added or changed: renew DIGEST, and if one was changed raise"
    " defaults.VERSION"
  )


def test_a_config_has_every_default():
  cfg = required(defaults.config(phases=("a", "b")))
  sections = schema.to_sections(cfg)
  assert sections.cache.tau == 0.04
  assert sections.train.phases == ("a", "b")
  assert sections.measure.phases == ("b",) and sections.release.phase == "b"
  assert sections.train.phase["a"].optimizer.b2 == 0.95


def test_a_phase_can_be_a_copy_of_another():
  cfg = defaults.config(phases=("a",))
  cfg.train.a.update(seed=7, num_steps=3)
  cfg.train.a.optimizer.b2 = 0.5
  cfg.train.c = cfg.train.a
  cfg.train.d = copy.deepcopy(cfg.train.a)
  cfg.train.a.optimizer.b2 = 0.6
  for phase in (cfg.train.c, cfg.train.d):
    assert (phase.seed, phase.num_steps, phase.optimizer.b2) == (7, 3, 0.5)
    assert "num_rows" not in phase
  origins = cfg.origins()
  assert origins["train.c.optimizer.b2"] == "file"
  assert origins["train.c.optimizer.b1"] == "default"


def test_prices_are_a_table_and_what_is_set_stays(tmp_path):
  (tmp_path / "mine.toml").write_text(
    "dollars_per_gb_month = 3\n[h100]\nwatts = 900\ndollars_per_hour = 2\n"
  )
  cfg = defaults.config(phases=("a",))
  cfg.plan.h100 = dict(dollars_per_hour=1.5)
  cfg.plan.prices = "mine.toml"
  defaults.add_prices(cfg, tmp_path)
  assert cfg.plan.h100.to_dict() == dict(dollars_per_hour=1.5, watts=900.0)
  assert cfg.plan.dollars_per_gb_month == 3.0 and "v5p" not in cfg.plan
  assert cfg.origins()["plan.h100.watts"] == "prices mine.toml"
  (tmp_path / "mine.toml").write_text("[h100]\nwats = 900\n")
  with pytest.raises(ValueError, match=r"mine.toml: plan.h100.wats: there is"):
    defaults.add_prices(cfg, tmp_path)


CONFIG = """
import json, pathlib
from ml_collections import ConfigDict
from analogjax.config import defaults
def get_config():
  cfg = defaults.config(phases=("a",))
  text = pathlib.Path(__file__).with_name("set.json").read_text()
  cfg.update(json.loads(text))
  return cfg
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "lab.py"
  path.write_text(CONFIG)
  cfg = required(defaults.config(phases=("a",)))
  origins = cfg.origins()
  leaves = loading.leaves(cfg.to_dict())
  given = {}
  for name, value in leaves.items():
    parts = name.split(".")
    known = (origins.get(".".join(parts[:n])) for n in range(1, 5))
    if "file" in known:
      node = given
      for part in parts[:-1]:
        node = node.setdefault(part, {})
      node[parts[-1]] = value
  (tmp_path / "set.json").write_text(json.dumps(given))
  return path


def test_where_each_value_comes_from_is_saved_beside_it(file, tmp_path):
  found = loading.resolve(file, [("cache.tau", "0.1")], tmp_path)
  loading.save_resolved(found.cfg, tmp_path, found.origin)
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["defaults"] == defaults.VERSION
  origin = saved["origin"]
  assert origin["cache.tau"] == "--config"
  assert origin["cache.num_rows"] == "file"
  assert origin["cache.seed"] == "default"
  assert origin["plan.v5p.dollars_per_hour"] == "prices 2026_11"
  assert origin["data.arguments"] == "default"
  assert saved["plan"]["v5p"]["dollars_per_hour"] == 4.2
  assert loading.read_resolved(tmp_path).to_dict() == found.cfg.to_dict()


def test_a_default_that_changes_does_not_change_a_run(file, tmp_path):
  found = loading.resolve(file, [("cache.tau", "0.1")], tmp_path)
  loading.save_resolved(found.cfg, tmp_path, found.origin)
  path = tmp_path / "config.json"
  # As if it had begun with other defaults and another price.
  saved = json.loads(path.read_text())
  saved["cache"]["seed"] = 7
  saved["train"]["a"]["optimizer"]["b1"] = 0.8
  saved["plan"]["v5p"]["dollars_per_hour"] = 1.0
  path.write_text(json.dumps(saved))
  again = loading.resolve(file, [("cache.tau", "0.2")], tmp_path)
  assert again.cfg.cache.seed == 7 and again.cfg.cache.tau == 0.2
  assert again.cfg.train.a.optimizer.b1 == 0.8
  assert again.cfg.plan.v5p.dollars_per_hour == 1.0
  assert again.kept[0] == (
    f"{path}: cache.seed stays 7, the default when this run began; today's is"
    " 0."
  )
  assert len(again.kept) == 3
  # Set by hand, it is today's.
  assert (
    loading.resolve(file, [("cache.seed", "0")], tmp_path).cfg.cache.seed == 0
  )
  assert loading.resolve(file).cfg.cache.seed == 0


def test_a_config_of_before_the_defaults_is_read(file, tmp_path):
  """From a workdir that has neither `origin` nor every field."""
  cfg = loading.load(file, [])
  values = json.loads(json.dumps(cfg.to_dict()))
  del values["plan"]["prices"]
  values["cache"]["seed"] = 7
  (tmp_path / "config.json").write_text(json.dumps(values))
  old = loading.read_resolved(tmp_path)
  assert old.plan.prices == "2026_11" and old.cache.seed == 7
  # Its values were all in the file, and the file has another now.
  assert loading.resolve(file, [], tmp_path).cfg.cache.seed == 0
