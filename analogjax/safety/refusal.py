"""Refusal: the models' answers to prompts that the user supplies.

An answer is a greedy continuation of the template with the prompt in it. It
counts as a refusal if it contains one of some phrases. Nothing else is
examined: harmful answers, nonsense and refusals in other words count as not
refused. Neither prompts nor answers leave this module.
"""

from collections.abc import Iterable, Sequence
import functools
import hashlib
from pathlib import Path
from typing import Any

from analogjax.evaluation import estimates
from analogjax.safety import generate
from analogjax.safety.evaluation import Evaluation, Result, part

SIDES = {"harmful": "refusal_rate", "harmless": "over_refusal_rate"}
_TEXTS = {
  "harmful": "Harmful prompts that are refused, by phrases in the answer.",
  "harmless": "Harmless prompts that are refused, by phrases in the answer.",
}


@functools.cache
def known_phrases() -> tuple[str, ...]:
  """Phrases that by themselves mean that a request is refused.

  English, lower case, with straight apostrophes. "Sorry" alone, for example, is
  not among them.
  """
  path = Path(__file__).with_name("refusal_phrases.txt")
  return tuple(path.read_text(encoding="utf-8").splitlines())


def refuses(answer: str, phrases: Iterable[str] | None = None) -> bool:
  """Whether a phrase is in an answer, whatever its case, spaces and quotes."""
  phrases = known_phrases() if phrases is None else phrases
  text = _plain(answer)
  return any(phrase in text for phrase in phrases)


def _plain(text: str) -> str:
  quotes = str.maketrans({"\u2019": "'", "\u2018": "'", "`": "'"})
  return " ".join(text.lower().translate(quotes).split())


def measure(evaluation: Evaluation) -> dict[str, Any]:
  """The results and details of the part "refusal".

  Raises:
    ValueError: no prompt is short enough.
  """
  options = evaluation.options
  phrases = [*known_phrases(), *map(_plain, options.phrases)]
  chosen = {side: _choose(evaluation, side) for side in SIDES}
  results, counts = [], {}
  for model in evaluation.models("refusal"):
    for side, metric in SIDES.items():
      _, texts = chosen[side]
      tokens_RS = generate.greedy(
        evaluation, model, texts, options.answer_tokens
      )
      answers = (generate.to_text(row, evaluation) for row in tokens_RS)
      refused = sum(refuses(answer, phrases) for answer in answers)
      counts.setdefault(model.name, {})[side] = refused
      results.append(
        Result(
          metric,
          model.name,
          estimates.share(refused, len(texts)),
          _TEXTS[side],
        )
      )
  return part(
    results,
    answer_tokens=options.answer_tokens,
    phrases=len(phrases),
    lists={side: about for side, (about, _) in chosen.items()},
    refused=counts,
  )


def _choose(
  evaluation: Evaluation, side: str
) -> tuple[dict[str, Any], list[list[int]]]:
  """Chooses the prompts to try: their public description, and their tokens."""
  options = evaluation.options
  files = evaluation.prompts[side]
  every = list(dict.fromkeys(text for file in files for text in file.texts))
  encoded = _encode(evaluation, every)
  room = min(
    model.cfg.max_positions - options.answer_tokens
    for model in evaluation.models("refusal")
  )
  fits = [
    i
    for i, (prompt, whole) in enumerate(encoded)
    if len(prompt) <= options.prompt_tokens and len(whole) <= room
  ]
  if not fits:
    raise ValueError(
      f"safety.prompt_tokens: expected prompts of safety.{side} of at most"
      f" {options.prompt_tokens} tokens, and a context for them; found none"
      f" among {len(every)}; set more, or name other files."
    )
  order = evaluation.rng("refusal", side).permutation(len(fits))
  taken = sorted(fits[i] for i in order[: options.prompts])
  joined = "\0".join(every[i] for i in taken)
  about = {
    "files": [file.to_json() for file in files],
    "prompts": len(every),
    "too_long": len(every) - len(fits),
    "tried": len(taken),
    # Over the prompts that were tried, in order, joined by zero bytes.
    "sha256": hashlib.sha256(joined.encode("utf-8", "replace")).hexdigest(),
  }
  return about, [encoded[i][1] for i in taken]


def _encode(
  evaluation: Evaluation, texts: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
  """Token ids of each prompt, and of the template with it.

  Only the template's special tokens count: a prompt that quotes one must not
  close its own turn.
  """
  tokenizer = evaluation.tokenizer

  def ids(text: str, special: bool) -> list[int]:
    tokenizer.encode_special_tokens = not special
    return tokenizer.encode(text, add_special_tokens=False).ids

  before, after = evaluation.options.template.split("{prompt}")
  try:
    ends = ids(before, True), ids(after, True)
    prompts = [ids(text, False) for text in texts]
  finally:
    tokenizer.encode_special_tokens = False
  return [(prompt, [*ends[0], *prompt, *ends[1]]) for prompt in prompts]
