"""What a number in a text is a number of, by the words beside it.

30 is a secret only as a number of layers. The noun after a number says what it
counts ("30 layers", "30-layer", "30 attention heads"); where there is none, the
last one before it does ("layers: 30", "num_hidden_layers = 30").
"""

import functools
import re

_SIZE = r"(?: (?:width|dim\w*|size|units?))?"
# Kind -> its nouns, longest first where one contains another. Kinds that no
# rule asks for are there to say that a number is something else.
_NOUNS = (
  ("head_width", r"heads? (?:width|dim\w*|size)|d head|d k|size per head"),
  (
    "kv_heads",
    r"(?:num )?(?:kv|key value|key and value|gqa|query) (?:heads?|groups?)"
    r"|n kv heads?|num key value heads?|kv|gqa",
  ),
  ("heads", r"(?:(?:attention|query|num|n) )*heads?|n head"),
  (
    "feed_forward",
    rf"(?:feed ?forward|ffn?)(?: network| hidden)?{_SIZE}|d ff"
    rf"|(?:intermediate|mlp){_SIZE}",
  ),
  (
    "layers",
    r"(?:(?:num|n|hidden|transformer|decoder|number of) )*(?:layers?|blocks?)"
    r"|depth|deep|stack",
  ),
  (
    "width",
    rf"hidden(?: states?)?{_SIZE}|(?:model|residual) (?:width|dim\w*|size)"
    rf"|residual stream|d model|n embd|embed(?:ding)?s?{_SIZE}"
    r"|width|wide|dims?|dimensions?|dimensional|channels?|rank",
  ),
  (
    "context_tokens",
    r"(?:max )?(?:position embeddings|positions)|(?:model )?max length"
    r"|context(?: (?:length|window|size))?"
    r"|(?:max )?(?:sequence|seq) len(?:gth)?",
  ),
  ("parameters", r"(?:trainable )?param(?:eter)?s?|weights?|model size"),
  ("tokens", r"tokens?|toks?"),
  ("bytes", r"bytes?|[kmgtpe]i?b|bits?"),
  (
    "time",
    r"(?:device |gpu |tpu |chip |accelerator |h100 |a100 )?(?:hours?|hrs?|h)"
    r"|seconds?|secs?|s|ms|minutes?|mins?|days?|weeks?|months?|years?",
  ),
  ("money", r"dollars?|usd|eur|euros?|cents?"),
  ("energy", r"[kmg]?wh|joules?|k?watts?|k?w"),
  ("compute", r"[kmgtpe]?flops?|flop|mfu"),
  ("rate", r"percent|%"),
  (
    "count",
    r"rows?|steps?|documents?|docs?|files?|points?|permutations?|resamples?"
    r"|prompts?|pairs?|samples?|examples?|items?|entries|ids?|index|seed"
    r"|vocab\w*|words?|lines?|versions?|pages?|tests?|rounds?|times|devices?"
    r"|gpus?|tpus?|chips?|hosts?|nodes?|offsets?|position|number|count|n"
    r"|nats|temperature|strengths?|vectors?|draws?|epochs?|batch(?:es)?"
    r"|shards?|chunks?|people|users?|downloads?|canaries|digits?|repeats?|k"
    r"|epsilon|rev(?:ision)?|section|arxiv|doi|page|figure|table|license"
    r"|licence|copyright|percentile|quantile|bins?|tensors?",
  ),
)
_ANY = re.compile(
  "|".join(rf"(?P<{kind}>\b(?:{nouns})\b)" for kind, nouns in _NOUNS)
)
# Between a number and its noun there may be few words that are no nouns.
_BEHIND, _WORDS_BEHIND = 48, 2
_BEFORE, _WORDS_BEFORE = 72, 5
_ENDS_BEHIND = re.compile(r"[;:!?|\n\f={}\[\]<>,\d]|\.(?=\s|$)")
_ENDS_BEFORE = re.compile(r"[\n\f|;]|[.!?](?=\s)")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORD_BREAKS = re.compile(r"[^A-Za-z0-9%]+")


def kind(text: str, start: int, end: int) -> str | None:
  """What the number at text[start:end] counts, or None."""
  before = text[max(start - _BEFORE, 0) : start]
  return _kind(before, text[end : end + _BEHIND])


@functools.lru_cache(10_000)  # Rows of a table are alike.
def _kind(before: str, behind: str) -> str | None:
  if stop := _ENDS_BEHIND.search(behind):
    # What is before a colon is the name of the next value.
    behind = "" if stop[0] in ":=" else behind[: stop.start()]
  if behind.lstrip().startswith("%"):
    return "rate"
  words = _words(behind)
  found = _ANY.search(words)
  if found and len(words[: found.start()].split()) <= _WORDS_BEHIND:
    return found.lastgroup
  if before.rstrip()[-1:] in ("$", "\u20ac", "\u00a3"):
    return "money"
  if before.rstrip().endswith("|"):
    # Alone in its cell of a table, it is named by the cell before.
    before = before.rstrip()[:-1]
  words = _words(_ENDS_BEFORE.split(before)[-1])
  found = None
  for match in _ANY.finditer(words):
    found = match
  if found is None:
    return None
  # Another number in between has taken the noun: "layers 4, width 64, 30".
  gap = words[found.end() :]
  if re.search(r"\d", gap) or len(gap.split()) > _WORDS_BEFORE:
    return None
  return found.lastgroup


def near(text: str, start: int, end: int, pattern: re.Pattern) -> bool:
  """Whether a pattern is in the same line, within 80 characters."""
  before = re.split(r"[\n\f]", text[max(start - 80, 0) : start])[-1]
  behind = re.split(r"[\n\f]", text[end : end + 80])[0]
  return bool(pattern.search(_words(before)) or pattern.search(_words(behind)))


def _words(text: str) -> str:
  """Names of keys as words: num_hidden_layers, numHiddenLayers, kv-heads."""
  return _WORD_BREAKS.sub(" ", _CAMEL.sub(" ", text)).lower()
