"""A folder with every file that the pages mention."""

import json
from pathlib import Path
import shutil
import sys

import caches
from docs_pages import PAGES, ROOT, all_blocks, name_of
import numpy as np
import pytest
import tokenizers

from analogjax.cache import logit_cache
from analogjax.config import loading

# The README's teacher, as far as a plan needs it: a Llama of 70 billion.
TEACHER_CONFIG = {
  "model_type": "llama",
  "vocab_size": 128_256,
  "hidden_size": 8192,
  "num_hidden_layers": 80,
  "num_attention_heads": 64,
  "num_key_value_heads": 8,
  "intermediate_size": 28_672,
  "max_position_embeddings": 8192,
  "rms_norm_eps": 1e-5,
  "rope_theta": 5e5,
}

# The demo's teacher, which the lab guide takes; its shape.
SMALL_TEACHER_CONFIG = {
  "model_type": "llama",
  "vocab_size": 49_152,
  "hidden_size": 576,
  "num_hidden_layers": 30,
  "num_attention_heads": 9,
  "num_key_value_heads": 3,
  "intermediate_size": 1536,
  "max_position_embeddings": 2048,
  "rms_norm_eps": 1e-5,
  "rope_theta": 1e4,
  "tie_word_embeddings": True,
}

# Stands for the lab's own module in docs/data.md.
FRONTIER_DATA = """
import grain, numpy as np
def make_dataset(path, split):
  def element(i):
    return {
      "inputs": np.full(8, i), "inputs_segmentation": np.ones(8, int),
      "inputs_position": np.arange(8), "targets": np.zeros(8, int),
    }
  return grain.MapDataset.range(5).map(element)
"""


def files():
  """Content of each file that a page writes out, by name."""
  named = [b for b in all_blocks() if b.marks[:1] and "file=" in b.marks[0]]
  return {b.marks[0].removeprefix("file="): b for b in named}


@pytest.fixture
def desk(tmp_path, monkeypatch):
  """Changes into a folder with every file that the pages mention."""
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  for name, block in files().items():
    (tmp_path / name).write_text(block.text)
  for config in (tmp_path / "configs").glob("*.py"):
    # In an image they may lie anywhere.
    shutil.copyfile(config, tmp_path / config.name)
  shutil.copytree(ROOT / "configs/release", tmp_path / "release")
  (tmp_path / "frontier_data.py").write_text(FRONTIER_DATA)
  for page in PAGES:
    copy = tmp_path / name_of(page)
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(page, copy)
  for folder, values in (
    ("ours-hf", TEACHER_CONFIG),
    ("runs/demo/teacher", SMALL_TEACHER_CONFIG),
  ):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "config.json").write_text(json.dumps(values))
  for name, count in (("train", 3), ("held_out", 2)):
    ids = np.arange(count * 4096 + 5) % 1000  # 0 ends a document.
    ids.astype("<u4").tofile(tmp_path / f"tokens_{name}.bin")
  m = caches.manifest(num_rows=8)
  for name in ("cache", "held_out"):
    cache = logit_cache.create(tmp_path / "runs/demo" / name, m)
    caches.write_all(cache, caches.rows(m), caches.records(m))
  cfg = loading.load(tmp_path / "configs/demo.py", [])
  loading.save_resolved(cfg, tmp_path / "runs/demo")
  (tmp_path / "books").mkdir()
  (tmp_path / "books/a.txt").write_text("a book of nothing much\n" * 9)
  words = ["<|endoftext|>", "a", "book", "?"]
  # A plan refuses a teacher without the words that steering scores.
  for path in (ROOT / "analogjax/fidelity/behaviours").glob("*.json"):
    for side in json.loads(path.read_text("utf-8"))["words"].values():
      words += [word.strip() for word in side]
  vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token="?")
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  for folder in (".", "ours-hf", "runs/demo/teacher"):
    tokenizer.save(str(tmp_path / folder / "tokenizer.json"))
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield tmp_path
  for name in [*map(Path, files()), Path("frontier_data.py")]:
    sys.modules.pop(name.stem, None)
