"""Tests for analogjax/safety/chat_template.py."""

import json

import pytest

from analogjax.safety import chat_template

CHAT = (
  "{{ bos_token }}{% for message in messages %}\n<{{ message['role'] }}>"
  "{{ message['content'] | trim }}</>{% endfor %}"
  "{% if add_generation_prompt %}<answer>{% endif %}"
)
EXPECTED = "<s><user>{prompt}</><answer>"


def write(folder, template, **more):
  settings = {"bos_token": {"content": "<s>"}, "chat_template": template}
  path = folder / "tokenizer_config.json"
  path.write_text(json.dumps({**settings, **more}))


def test_the_config_overrides_the_tokenizer(tmp_path):
  write(tmp_path, CHAT)
  found = chat_template.choose("Q: {prompt}", tmp_path)
  assert found == ("Q: {prompt}", "config")


@pytest.mark.parametrize(
  "template",
  [
    CHAT,
    [{"name": "tool", "template": ""}, {"name": "default", "template": CHAT}],
  ],
)
def test_the_tokenizers_template_is_written_out(tmp_path, template):
  write(tmp_path, template)
  assert chat_template.choose("", tmp_path) == (EXPECTED, "tokenizer")


def test_a_file_of_its_own_comes_first(tmp_path):
  write(tmp_path, "{{ messages }}")
  (tmp_path / "chat_template.jinja").write_text(CHAT)
  assert chat_template.choose("", tmp_path) == (EXPECTED, "tokenizer")


@pytest.mark.parametrize("has_file", [False, True])
def test_without_a_template_prompts_stand_alone(tmp_path, has_file):
  if has_file:
    write(tmp_path, None)
  assert chat_template.choose("", tmp_path) == ("{prompt}", "none")


@pytest.mark.parametrize(
  "template",
  [
    "{% for",
    "no message",
    "{{ messages[0].content * 2 }}",
    "{{ raise_exception('system first') }}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__ }}",
  ],
)
def test_one_that_cannot_be_used_is_refused(tmp_path, template):
  write(tmp_path, template)
  with pytest.raises(ValueError, match="Set safety.template") as error:
    chat_template.choose("", tmp_path)
  assert "tokenizer_config.json" in str(error.value)
