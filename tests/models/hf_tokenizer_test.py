"""Tests for analogjax/models/hf_tokenizer.py: kept and dropped settings."""

import json

from hypothesis import given, strategies as st
import pytest
import tokenizers
import transformers

from analogjax.models import hf_tokenizer

TEMPLATE = "{{ 'You are SecretLM.' }}{{ messages[0]['content'] }}"
TOKEN = {"__type": "AddedToken", "content": "<s>", "special": True}
TOKENIZER = {
  "tokenizer_class": "SecretTokenizer",
  "auto_map": {"AutoTokenizer": ["tokenization_secret.SecretTokenizer", None]},
  "name_or_path": "/models/secret",
  "_commit_hash": "0123456789",
  "special_tokens_map_file": "/models/secret/special_tokens_map.json",
  "tokenizer_file": "/models/secret/tokenizer.json",
  "model_max_length": 131_072,
  "chat_template": TEMPLATE,
  "add_bos_token": True,
  "legacy": "/models/secret",
  "padding_side": "secret",
  "bos_token": {**TOKEN, "origin": "secret"},
  "eos_token": "</s>",
  "added_tokens_decoder": {
    "0": {**TOKEN, "origin": "secret"},
    "secret": TOKEN,
    "1": 7,
  },
  "extra_special_tokens": ["<a>", 7, {"secret": 1}],
  "secret": {"secret": "secret"},
}
GENERATION = {
  "_from_model_config": True,
  "bos_token_id": 0,
  "eos_token_id": [1, 2],
  "do_sample": True,
  "temperature": 0.7,
  "top_p": "secret",
  "max_length": 131_072,
  "transformers_version": "4.0.secret",
  "_name_or_path": "/models/secret",
}


@pytest.fixture
def source(tmp_path):
  """A teacher's folder whose settings reveal private facts."""
  folder = tmp_path / "secret"
  folder.mkdir()
  words = {"<s>": 0, "</s>": 1, "the": 2, "cat": 3}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "</s>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.save(str(folder / "tokenizer.json"))
  for name, value in (
    ("tokenizer_config.json", TOKENIZER),
    ("special_tokens_map.json", {"bos_token": "<s>", "secret": "secret"}),
  ):
    (folder / name).write_text(json.dumps(value))
  (folder / "chat_template.jinja").write_text(TEMPLATE)
  (folder / "tokenization_secret.py").write_text("secret = 1")
  return folder


def _write(source, tmp_path, **options):
  folder = tmp_path / "out"
  folder.mkdir()
  hf_tokenizer.write(source, folder, max_positions=64, **options)
  return folder


def test_nothing_of_the_teacher_goes_along(source, tmp_path):
  folder = _write(source, tmp_path, keeps_chat_template=False)
  assert {path.name for path in folder.iterdir()} == {
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
  }
  for path in folder.iterdir():
    text = path.read_text().lower()
    assert "secret" not in text and "131072" not in text, path.name
  copied = (folder / "tokenizer.json").read_bytes()
  assert copied == (source / "tokenizer.json").read_bytes()


def test_transformers_loads_what_is_left(source, tmp_path):
  folder = _write(source, tmp_path, keeps_chat_template=False)
  loaded = transformers.AutoTokenizer.from_pretrained(
    folder, trust_remote_code=False
  )
  assert loaded("the cat")["input_ids"] == [2, 3]
  assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")
  assert loaded.model_max_length == 64
  assert loaded.chat_template is None


def test_a_chat_template_goes_along_where_the_config_says_so(source, tmp_path):
  folder = _write(source, tmp_path, keeps_chat_template=True)
  loaded = transformers.AutoTokenizer.from_pretrained(
    folder, trust_remote_code=False
  )
  assert loaded.chat_template == TEMPLATE


def test_the_settings_that_stay():
  kept = hf_tokenizer.tokenizer_config(
    TOKENIZER, max_positions=64, keeps_chat_template=False
  )
  assert kept == {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 64,
    "add_bos_token": True,
    "bos_token": TOKEN,
    "eos_token": "</s>",
    "added_tokens_decoder": {"0": TOKEN},
    "extra_special_tokens": ["<a>"],
  }
  known = hf_tokenizer.tokenizer_config(
    {"tokenizer_class": "LlamaTokenizerFast"},
    **dict(max_positions=64, keeps_chat_template=True),
  )
  assert known["tokenizer_class"] == "LlamaTokenizerFast"
  assert hf_tokenizer.generation_config(GENERATION, max_positions=64) == {
    "_from_model_config": True,
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
    "do_sample": True,
    "temperature": 0.7,
    "max_length": 64,
  }


def test_several_templates_are_kept_by_their_form_alone():
  good = [{"name": "default", "template": "a"}]
  for value, kept in ((good, good), ([{"name": "a"}], None), (7, None)):
    found = hf_tokenizer.tokenizer_config(
      {"chat_template": value}, max_positions=1, keeps_chat_template=True
    )
    assert found.get("chat_template") == kept


@given(
  st.dictionaries(
    st.text(max_size=8).map(lambda name: "x_" + name),
    st.text() | st.integers() | st.lists(st.text()) | st.booleans(),
  )
)
def test_a_setting_that_nobody_decided_on_is_absent(unknown):
  options = dict(max_positions=8)
  assert not hf_tokenizer.generation_config(unknown, **options)
  assert not hf_tokenizer.special_tokens_map(unknown)
  config = hf_tokenizer.tokenizer_config(
    unknown, keeps_chat_template=True, **options
  )
  assert set(config) == {"tokenizer_class", "model_max_length"}
