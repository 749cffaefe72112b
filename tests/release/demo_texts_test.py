"""Tests for analogjax/release/demo_texts.py."""

import dataclasses
import importlib.util
import json
import pathlib

import pytest

from analogjax.config import schema
from analogjax.release import demo_texts

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo():
  spec = importlib.util.spec_from_file_location(
    "demo", ROOT / "configs/demo.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return schema.to_sections(module.get_config())


def renamed(config, **about):
  about = dataclasses.replace(config.release.about, name="lab-1B", **about)
  release = dataclasses.replace(config.release, about=about)
  return dataclasses.replace(config, release=release)


def tokenizer(folder, *tokens):
  path = folder / "tokenizer.json"
  path.write_text(
    json.dumps({"added_tokens": [{"content": t} for t in tokens]})
  )
  return path


def test_the_digests_are_those_of_the_demo(demo):
  found = {path: demo_texts.digest(demo, path) for path in demo_texts._DIGESTS}
  assert found == demo_texts._DIGESTS, "configs/demo.py has changed: renew them"


def test_the_demo_may_say_what_it_says(demo, tmp_path):
  assert not demo_texts.copied(demo, tokenizer(tmp_path))


def test_a_copy_under_another_name_is_found(demo, tmp_path):
  copy = renamed(demo, curation="Ours.")
  assert demo_texts.copied(copy, tokenizer(tmp_path)) == [
    path for path in demo_texts._DIGESTS if path != "release.about.curation"
  ]


def test_a_chat_template_is_right_for_a_tokenizer_with_its_markers(
  demo, tmp_path
):
  markers = "<|im_start|>", "<|im_end|>"
  found = demo_texts.copied(renamed(demo), tokenizer(tmp_path, *markers))
  assert "safety.template" not in found and "release.about.contact" in found
