"""Tests for analogjax/fidelity/behaviours.py."""

import json

import numpy as np
import pytest
import steered
import tokenizers

from analogjax.fidelity import behaviours


@pytest.mark.parametrize("name", behaviours.BUILT_IN)
def test_what_is_built_in(name):
  found = behaviours.load(name)
  assert found.name == name
  assert len(found.pairs) >= 24 and len(found.prompts) >= 24
  # Nothing that chooses or measures is in what gives the vector.
  texts = {text for pair in found.pairs for text in pair}
  assert not texts & set(found.prompts)
  words = found.words_for + found.words_against
  assert all(word[0] == " " and word[1:].isalpha() for word in words)


def test_texts_are_rows_of_one_document(kit):
  tokenizer = kit.make_tokenizer()
  texts = ["w5 w6 w7 w8 w9", "w4"]
  rows, last_R = behaviours.to_texts(
    texts, tokenizer, max_positions=5, source="a.json"
  )
  np.testing.assert_array_equal(
    rows.tokens_BL, [[5, 6, 7, 8, 9, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(rows.segments_BL.sum(1), [5, 1])
  np.testing.assert_array_equal(rows.positions_BL[0], np.arange(8))
  np.testing.assert_array_equal(last_R, [4, 0])


def test_words_are_their_first_tokens(kit):
  found = steered_behaviour(words={"for": ["w3 w4", "w3"], "against": ["w5"]})
  words = behaviours.to_words(found, kit.make_tokenizer())
  assert words.for_K.tolist() == [3] and words.against_K.tolist() == [5]


def steered_behaviour(**changes):
  return behaviours._checked(steered.value(**changes), "a.json", "")


@pytest.mark.parametrize(
  ("texts", "says"),
  [
    (["w2", " "], "a.json: expected texts of 1 to 4 tokens.* found 0 tokens"),
    (["w2 w2 w2 w2 w2"], "expected texts of 1 to 4.*found 5 tokens: 'w2 w2"),
  ],
)
def test_texts_that_do_not_fit(kit, texts, says):
  with pytest.raises(ValueError, match=says):
    behaviours.to_texts(
      texts, kit.make_tokenizer(), max_positions=4, source="a.json"
    )


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ((["w3", "happy"], ["w4"]), "words.for: 'happy' is not in the models' voc"),
    ((["w3"], [" "]), "words.against: ' ' is not in the models' vocabulary"),
    ((["w3"], ["w4", "w3 w5"]), "'w3' .for. and 'w3 w5' .against. begin with"),
  ],
)
def test_words_that_say_nothing(kit, words, says):
  found = steered_behaviour(words={"for": words[0], "against": words[1]})
  with pytest.raises(ValueError, match=says):
    behaviours.to_words(found, kit.make_tokenizer())


def test_a_vocabulary_without_an_unknown_token():
  """Every word is made of bytes: none is missing."""
  model = tokenizers.models.BPE({" ": 0, "a": 1, "b": 2}, [])
  found = steered_behaviour(words={"for": ["a"], "against": ["b"]})
  words = behaviours.to_words(found, tokenizers.Tokenizer(model))
  assert (words.for_K, words.against_K) == ([1], [2])


PAIRS = steered.value()["pairs"]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"format": "x"}, "format: expected 'analogjax.behaviour', found 'x'"),
    ({"format_version": 2}, "format_version: expected 1, found 2"),
    ({"prompt": []}, "no other fields, found .'prompt'."),
    ({"name": "two words"}, "name: expected a word, found 'two words'"),
    ({"pairs": PAIRS[:7]}, "pairs: expected 8 or more, found 7"),
    ({"pairs": [{"with": "a"}]}, 'pairs: expected a list of {"with": TEXT'),
    ({"pairs": [*PAIRS, PAIRS[0]]}, "pairs: expected each once, found"),
    (
      {"pairs": [*PAIRS, {"with": "a", "without": "a"}]},
      "pairs: expected two texts that differ, found 'a'",
    ),
    ({"prompts": ["a"]}, "prompts: expected 8 or more, found 1"),
    ({"prompts": "abc"}, "prompts: expected a list of texts, found 'abc'"),
    ({"prompts": ["a", "b"] * 4}, "prompts: expected each once, found 'a'"),
    ({"words": {"for": ["a"]}}, 'words: expected {"for"'),
    (
      {"words": {"for": [], "against": ["a"]}},
      "words.for: expected one word or more",
    ),
    (
      {"words": {"for": ["a"], "against": ["a"]}},
      "words: expected each once, found 'a'",
    ),
  ],
)
def test_files_that_are_not_as_they_should_be(tmp_path, changes, says):
  path = tmp_path / "b.json"
  path.write_text(json.dumps(steered.value() | changes))
  with pytest.raises(ValueError, match=f"b.json: .*{says}"):
    behaviours.load(str(path))


def test_names_and_files_that_are_not_there(tmp_path):
  with pytest.raises(ValueError, match="'sentimental'.* Did you mean sentimen"):
    behaviours.load("sentimental")
  with pytest.raises(ValueError, match="none.json: expected a behaviour, can"):
    behaviours.load(str(tmp_path / "none.json"))
  (tmp_path / "b.json").write_text("{")
  with pytest.raises(ValueError, match="b.json: expected JSON"):
    behaviours.load(str(tmp_path / "b.json"))
  path = steered.write(tmp_path, name="sentiment")
  with pytest.raises(ValueError, match="both named 'sentiment'"):
    behaviours.load_all(["sentiment", path])
