"""A real tokenizer, small enough to train in a test."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"
TEXTS = [
  "the cat sat on the mat\n",
  "na\u00efve caf\u00e9, \u6771\u4eac and the 3.14 rest",
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
  """A folder with a byte-level BPE whose settings cut and pad."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    TEXTS,
    trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=[END, "<|im_end|>"],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  # Both are saved by many trainers, and would ruin a document silently.
  tokenizer.enable_truncation(max_length=5)
  tokenizer.enable_padding(length=64)
  folder = tmp_path_factory.mktemp("tokenizer")
  tokenizer.save(str(folder / "tokenizer.json"))
  return folder
