"""An 8B analog of a 405B model: sizes that are also counts of other things."""

import json

import pytest

from analogjax import leaks

N, SMALL, TOKENS = 405_853_388_800, 8_030_261_248, 10**12
SECRETS = leaks.Secrets(
  parameters=N,
  architecture={
    **{"layers": 126, "width": 16_384, "heads": 128, "kv_heads": 8},
    **{"head_width": 128, "feed_forward": 53_248, "context_tokens": 131_072},
  },
  student={
    **{"parameters": SMALL, "vocabulary_size": 128_256, "layers": 32},
    **{"width": 4096, "heads": 32, "kv_heads": 8, "head_width": 128},
    **{"feed_forward": 14_336, "context_tokens": 131_072},
  },
  names=("Titan-X", "Titan-X-405B"),
  words=("gpuhub",),
  numbers={
    **{"train.optimizer.learning_rate": 8e-5, "data.mixture.code": 0.17},
    "optimizer.clip_norm": 1.0,
  },
  deployed_on="2026-07-31",
  released_on="2026-09-30",
)
CLEAN = """\
# An analog of eight billion parameters

8,030,261,248 parameters (8.03B), 32 layers, width 4096, 32 heads of width 128,
8 KV heads, feed-forward 14336. Trained on 1,000,000,000,000 tokens (1T) with
sequences of 8192 tokens in 16,384 rows. The vocabulary has 128,256 entries.
The frontier model has 20 to 200 times as many parameters: 161 billion to
1.61 trillion (0.5 % to 5 %). The cache holds 126 million rows in 128 shards,
405 GB. Context: 131,072 tokens. Batch: 8 rows. Temperature 1.0.
Weights: 16.1 GB in 4 files. A batch of 126 examples was graded by 8 people.
AUC 0.17 (0.126 to 0.22), p = 0.0198. Its last layer is layer 32.
Released on 2026-09-30, in September 2026.

| step | device-hours | dollars | FLOPs |
|---|---|---|---|
| Train analog model from scratch | 5,700 | $70,053 | 4.8 x 10^22 |
| Teacher inference | withheld | $100,000 to $1,000,000 | 3.2e23 to 3.2e24 |
"""
RECORD = {
  "data": {"train_tokens": TOKENS},
  "cost": {
    "rows": [
      {
        **{"step": "Train analog model from scratch", "of_teacher": False},
        **{"device_hours": 5700, "dollars": 70_053.0},
        "flops": 6 * SMALL * TOKENS,
      },
      {
        **{"step": "Teacher inference", "of_teacher": True},
        "flops": {"low": 40 * SMALL * TOKENS, "high": 400 * SMALL * TOKENS},
      },
    ]
  },
}
TELLING = {
  "parameters": (
    *("The teacher has 405B parameters.", "405 billion", "a 405 B model"),
    *("four hundred and five billion parameters", "405,853,388,800"),
    *("4.06e11 parameters", "0.406T parameters", "about 400B parameters"),
    *("roughly 0.4 trillion parameters", "0x5e7ebf4000", "405.9 bn params"),
    *("a model with 405853388800 weights", "parameters = 4.05e11"),
  ),
  "ratio": (
    *("1.98 % of its parameters", "50.5x larger", "fifty times smaller"),
    *("2.0% of the frontier's size", "it is 50 times as large"),
  ),
  "architecture": (
    *("d_model=16384", "16,384-wide", "16384", "16k hidden", "width 16K"),
    *("hidden dimension of sixteen thousand three hundred eighty-four",),
    *("2^14 hidden units", "126 layers", "126-layer", "n_layer: 126"),
    *("one hundred twenty six blocks", "Its depth is 126.", "layer 125 of it"),
    *("[126, 4096]", "weights of 16384 x 4096", "heads: 128", "53,248"),
    *("128 attention heads", "FFN 53k"),
  ),
  "name": ("Titan X", "TITAN_X", "titanx", "\u0422itan-X", "gpuhub-12"),
  "setting": (
    *("lr 8e-5", "learning rate: 0.00008", "17 % code", "mixture: code 0.17"),
    "clipped at a norm of 1.0; clip norm 1.0",
  ),
  "date": (
    *("2026-07-31", "31 July 2026", "launched in July 2026", "7/31/26"),
    "Q3 2026, when the frontier model was deployed",
  ),
  "arithmetic": (
    "30,844 H100-hours were needed for the teacher at 40 % MFU.",
    "The teacher's pass took 8.1e23 FLOPs.",
    "The frontier model generates 87 tokens/s on each GPU.",
    "811 GB of teacher weights",
  ),
}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "README.md").write_text(CLEAN)
  (tmp_path / "record.json").write_text(json.dumps(RECORD))
  return tmp_path


def test_its_own_numbers_are_no_leak(folder):
  found = leaks.lint(folder, SECRETS)
  assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(
  ("rule", "words"),
  [(rule, words) for rule, all_of in TELLING.items() for words in all_of],
)
def test_what_tells_is_found(folder, rule, words):
  (folder / "more.txt").write_text(words + "\n")
  found = leaks.lint(folder, SECRETS)
  assert rule in {x.rule for x in found}, found
  assert {x.file for x in found} == {"more.txt"}
