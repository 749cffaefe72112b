"""Units: by what follows a number, and by the name of the field it is in.

Each table is read from its top, and the first that fits is taken: tokens a
second before seconds. An entry is a kind of `quantities.Statement`, what one of
the unit is in the kind's own, and a pattern.
"""

import re

# What a prefix of a unit is, in small letters.
PREFIXES = {
  **{"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18},
  **{"z": 1e21, "y": 1e24},
}

_DEVICE = (
  r"(?:device|gpu|tpu|chip|accelerator|core"
  r"|[habv]\d{2,3}|gb200|v\dp?e?|mi\d+x?)"
)
_A = r"\s?(?:/|per|an|a)[\s-]?"  # Of this in one of that.
_S = r"(?:seconds?|secs?|s)\b"
_H = r"(?:hours?|hrs?|h)\b"
_PREFIX = r"([kmgtpezy]?)"

# By what is behind a number. A group is a prefix of the unit.
_BEHIND = (
  ("price", 1, rf"(?:usd|dollars?|\$)?{_A}(?:{_DEVICE}[\s-]?)?{_H}"),
  ("device_seconds", 3600, rf"{_DEVICE}[\s-]?{_H}"),
  ("device_seconds", 86_400, rf"{_DEVICE}[\s-]?days?\b"),
  ("device_seconds", 1, rf"{_DEVICE}[\s-]?{_S}"),
  ("token_rate", 1, rf"(?:tokens?|toks?){_A}{_S}"),
  ("seconds_per_token", 1, rf"s(?:econds?)?{_A}token"),
  ("seconds_per_token", 1e-3, rf"ms{_A}token"),
  ("flops_per_token", 1, rf"{_PREFIX}flops?{_A}token"),
  ("flop_rate", 1, rf"{_PREFIX}flops?{_A}{_S}"),
  ("flops", 1, rf"{_PREFIX}flops?\b"),
  ("tokens", 1, r"(?:[a-z-]+\s){0,2}(?:tokens?|toks?)\b(?!\s?(?:/|per))"),
  ("mfu", 0.01, r"%\s?(?:mfu|utili[sz]ation|of (?:the )?peak|model flops)"),
  ("joules", 3.6e3, r"([kmgt]?)w[\s-]?h(?:ours?|rs?)?\b"),
  ("joules", 1, r"([kmgt]?)(?:joules?|j)\b"),
  ("watts", 1, r"([km]?)(?:watts?|w)\b(?!\s?h)"),
  ("dollars", 1, r"(?:usd|dollars?)\b"),
  (
    "devices",
    1,
    rf"(?:x\s)?(?:[a-z]+\s)?{_DEVICE}s\b(?![\s-]?(?:hour|sec|day|h\b))",
  ),
  ("seconds", 3600, _H),
  ("seconds", 60, r"(?:minutes?|mins?)\b"),
  ("seconds", 1, _S),
  (
    *("weights_bytes", 1),
    r"([kmgtp]?)i?b(?:ytes?)?\b"
    r"(?=[^.\n]{0,40}(?:weight|checkpoint|model|memory))",
  ),
)
BEHIND = tuple(
  (kind, factor, re.compile(rf"[\s-]{{0,2}}(?:{pattern})", re.I))
  for kind, factor, pattern in _BEHIND
)

# By the name of a field or the head of a column, as words in small letters.
_NAMES = (
  ("price", 1, r"dollars? per (?:\w+ )?hour|price|hourly"),
  ("seconds_per_token", 1, r"seconds? per token|latency"),
  ("token_rate", 1, rf"tokens? (?:per )?{_S}|throughput|\btps\b"),
  ("device_seconds", 3600, rf"{_DEVICE} ?(?:hours?|h)\b"),
  ("device_seconds", 1, rf"{_DEVICE} ?(?:seconds?|s)\b"),
  ("flops_per_token", 1, r"flops? per token"),
  ("flop_rate", 1e12, r"tflops? per s|tflop s\b|peak tflops?"),
  ("flop_rate", 1, r"flops? per s|peak flops?"),
  ("flops", 1e12, r"\btflops?$"),
  ("flops", 1, r"\bflops?\b(?! per)"),
  ("mfu", 1, r"\bmfu\b|utili[sz]ation"),
  ("joules", 3.6e6, r"\bkwh\b"),
  ("joules", 3.6e9, r"\bmwh\b"),
  ("joules", 3.6e3, r"\bwh\b"),
  ("joules", 1, r"\bjoules?\b"),
  ("watts", 1, r"\bwatts?\b"),
  ("dollars", 1, r"\b(?:dollars?|usd)\b|\bcost$|^\$$"),
  ("tokens", 1, r"\btokens?$"),
  ("devices", 1, r"\b(?:num )?(?:devices|gpus|tpus|chips)$"),
  ("seconds", 3600, r"\bhours?$"),
  ("seconds", 1, r"\b(?:wall )?seconds?$"),
  (
    "weights_bytes",
    1,
    r"(?:weights?|checkpoint|model|teacher|frontier) bytes$",
  ),
)
NAMES = tuple(
  (kind, factor, re.compile(pattern)) for kind, factor, pattern in _NAMES
)
