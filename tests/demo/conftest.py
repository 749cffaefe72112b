"""Shared fixtures of the tests of the demo."""

from small_tokenizer import tokenizer_folder  # noqa: F401
from smollm import (  # noqa: F401
  smollm2,
  smollm2_gguf,
  smollm2_model,
  smollm2_tokenizer,
  story,
)
