"""Tests for analogjax/safety/refusal.py."""

import dataclasses
import hashlib
import json

import pytest

from analogjax.safety import generate, prompts, refusal

REFUSALS = (
  "I'm sorry, but I can't assist with that.",
  "I\u2019m  sorry,\nbut that is not something we talk about.",
  "I CANNOT help with this request",
  "Sorry, I can't do that.",
  "As a kind model, I must decline.",
)
ANSWERS = (
  "Sure! Here is what you do: take a plane.",
  "Yes, 7411 is a prime number.",
  "I am sorry for your loss. Your dog can be buried here.",
  "The word cannot helps nobody.",
  "",
)


def test_phrases_refuse_and_other_words_do_not():
  assert [refusal.refuses(text) for text in REFUSALS] == [True] * 5
  assert [refusal.refuses(text) for text in ANSWERS] == [False] * 5
  assert refusal.refuses("Das kann ich nicht", ["das kann ich nicht"])
  for phrase in refusal.known_phrases():
    assert phrase == refusal._plain(phrase), phrase


def with_prompts(kit, mesh, *, harmful, harmless, **changes):
  def made(texts):
    return (prompts.Prompts(name="a.txt", sha256="0" * 64, texts=tuple(texts)),)

  return kit.make_evaluation(
    mesh,
    changes=changes,
    prompts={"harmful": made(harmful), "harmless": made(harmless)},
  )


def test_rates_are_counts_of_answers_with_a_phrase(
  kit, one_device, monkeypatch
):
  harmful = [f"w{i} w{i + 1}" for i in range(2, 10)]
  made = with_prompts(
    kit, one_device, harmful=harmful, harmless=["w30 w31", "w40"]
  )
  # The model's answer decides, by its first word.
  every = {side: refusal._choose(made, side)[1] for side in refusal.SIDES}
  firsts = {
    side: [
      generate.to_text(row, made)
      for row in generate.greedy(made, made.analog, texts, 5)
    ]
    for side, texts in every.items()
  }
  phrase = firsts["harmful"][0].split()[0]
  expected = {
    side: sum(phrase in text for text in said) for side, said in firsts.items()
  }
  monkeypatch.setattr(refusal, "known_phrases", lambda: (phrase,))
  part = refusal.measure(made)
  assert part["details"]["refused"]["analog"] == expected
  values = {r["metric"]: r["value"] for r in part["results"]}
  assert values["refusal_rate"]["value"] == expected["harmful"] / 6 > 0
  assert values["refusal_rate"]["n"] == 6  # The options say 6 of 8.
  about = part["details"]["lists"]["harmful"]
  assert about["prompts"] == 8 and about["tried"] == 6 and not about["too_long"]
  assert about["files"] == [{"name": "a.txt", "sha256": "0" * 64, "prompts": 8}]


def test_the_digest_is_of_the_prompts_that_were_tried(kit, one_device):
  made = with_prompts(
    kit, one_device, harmful=["w2", "w3", "w4"], harmless=["w5"], prompts=2
  )
  about, texts = refusal._choose(made, "harmful")
  tried = "\0".join(f"w{text[0]}" for text in texts)
  assert about["sha256"] == hashlib.sha256(tried.encode()).hexdigest()
  assert texts == refusal._choose(made, "harmful")[1]


def test_long_prompts_are_left_out_and_counted(kit, one_device):
  long = " ".join(["w9"] * 11)
  made = with_prompts(
    kit, one_device, harmful=["w2", long], harmless=[long], prompt_tokens=10
  )
  about, texts = refusal._choose(made, "harmful")
  assert about["too_long"] == 1 and texts == [[2]]
  with pytest.raises(ValueError, match="safety.prompt_tokens: .*harmless of"):
    refusal.measure(made)


def test_special_tokens_are_those_of_the_template(kit, one_device):
  made = with_prompts(
    kit,
    one_device,
    harmful=["w2 [end] w3"],
    harmless=["w5"],
    template="w7 {prompt} [end] w8",
  )
  _, (text,) = refusal._choose(made, "harmful")
  # The prompt's own is a word that the vocabulary does not have.
  assert text[0] == 7 and text[-2:] == [kit.END, 8]
  assert kit.END not in text[1:-2] and text[1] == 2 and text[-3] == 3


def test_neither_prompts_nor_answers_are_in_the_result(
  kit, one_device, capfd, caplog
):
  mark = "w61 w62 w63"
  made = with_prompts(
    kit, one_device, harmful=[mark, f"w5 {mark}"], harmless=[f"w6 {mark}"]
  )
  found = json.dumps(refusal.measure(made))
  said = capfd.readouterr()
  for text in (found, said.out, said.err, caplog.text, repr(made.prompts)):
    assert not any(word in text for word in mark.split())
    assert "w62" not in text


def test_a_prompt_of_two_files_is_tried_once(kit, one_device):
  made = with_prompts(kit, one_device, harmful=["w2", "w3"], harmless=["w5"])
  files = made.prompts["harmful"] * 2
  made = dataclasses.replace(made, prompts={**made.prompts, "harmful": files})
  about, texts = refusal._choose(made, "harmful")
  assert sorted(texts) == [[2], [3]] and len(about["files"]) == 2
