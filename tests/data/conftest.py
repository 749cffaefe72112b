"""What the tests of rows share."""

from small_tokenizer import tokenizer_folder  # noqa: F401
