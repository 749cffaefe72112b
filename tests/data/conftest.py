"""Shared fixtures of the tests of rows."""

from small_tokenizer import tokenizer_folder  # noqa: F401
