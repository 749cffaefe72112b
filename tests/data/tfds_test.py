"""Tests for analogjax/data/tfds.py, on a dataset that TFDS prepares here."""

import json
import socket
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tokenizers

from analogjax.data import pipeline, tfds as tfds_lib

END = "<|endoftext|>"
TRAIN = [
  f"the cat number {i} sat on the mat. " * (i % 4 + 1) for i in range(60)
]
TEST = ["one test", "two tests"]


class LabCorpus(tfds.core.GeneratorBasedBuilder):
  """A text dataset with a train and a test split."""

  VERSION = tfds.core.Version("1.0.0")
  # Otherwise TFDS looks for checksums beside the code, with a package that it
  # does not install.
  code_path = None

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "body": tfds.features.Text(),
          "number": tfds.features.Scalar(dtype=np.int64),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {
      "train": self._generate_examples(TRAIN),
      "test": self._generate_examples(TEST),
    }

  def _generate_examples(self, texts):
    for i, text in enumerate(texts):
      yield i, {"body": text, "number": i}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  builder = LabCorpus(data_dir=folder, file_format="array_record")
  builder.download_and_prepare()
  return folder


@pytest.fixture
def documents(data_dir, tokenizer_folder):
  file = str(tokenizer_folder / "tokenizer.json")
  tokenizer = tokenizers.Tokenizer.from_file(file)

  def read(**options):
    rows = tfds_lib.tfds_rows(
      "lab_corpus",
      str(data_dir),
      str(tokenizer_folder),
      16,
      END,
      field="body",
      **options,
    )
    rows = list(rows)
    ids = np.concatenate([r["tokens"][r["segments"] > 0] for r in rows])
    return tokenizer.decode(list(ids), skip_special_tokens=False).split(END)[
      :-1
    ]

  return read


def test_every_record_is_a_document_without_tensorflow(documents):
  found = documents()
  assert sorted(found) == sorted(TRAIN)
  assert documents() == found != documents(seed=1)
  assert sorted(documents(tfds_split="test")) == TEST
  assert "tensorflow" not in sys.modules


def test_without_a_seed_the_order_is_that_of_the_files(documents, data_dir):
  builder = tfds.builder_from_directory(data_dir / "lab_corpus" / "1.0.0")
  source = builder.as_data_source("train")
  assert documents(seed=None) == [r["body"].decode() for r in source]
  assert len(documents(tfds_split="train[:10]")) == 10


def test_splits_share_no_document_and_lose_none(documents):
  train = documents(split="train", held_out_every=6)
  held_out = documents(split="held_out", held_out_every=6)
  assert sorted(train + held_out) == sorted(TRAIN)
  assert held_out and not set(train) & set(held_out)


def open_(folder, tokenizer_folder, **changes):
  arguments = {
    "name": "lab_corpus",
    "data_dir": str(folder),
    "tokenizer": str(tokenizer_folder),
    "L": 16,
    "end_token": END,
    "field": "body",
  }
  return pipeline.open_pipeline(
    "analogjax.data.tfds:tfds_rows", {**arguments, **changes}, L=16, V=300
  )


@pytest.mark.parametrize("split", ["all", "train"])
def test_a_killed_reader_goes_on_with_the_same_rows(
  data_dir, tokenizer_folder, split
):
  first = open_(data_dir, tokenizer_folder, split=split)
  first.read(range(10))
  saved = json.dumps(first.state(10))
  second = open_(data_dir, tokenizer_folder, split=split)
  second.restore(10, json.loads(saved))
  for one, other in zip(
    first.read(range(10, 20)), second.read(range(10, 20)), strict=True
  ):
    np.testing.assert_array_equal(one, other)


def test_the_network_is_left_alone(data_dir, tokenizer_folder, monkeypatch):
  def refuse(*args):
    raise AssertionError(f"the network was asked for {args}")

  monkeypatch.setattr(socket, "getaddrinfo", refuse)
  monkeypatch.setattr(socket.socket, "connect", refuse)
  open_(data_dir, tokenizer_folder).read([0])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "other"}, "no prepared TFDS dataset 'other' under data_dir="),
    ({"name": "lab_corpus:2.0.0"}, "no prepared TFDS dataset 'lab_corpus:2"),
    ({"data_dir": "/nowhere"}, "no prepared TFDS dataset .*/nowhere"),
    ({"tfds_split": "dev"}, "tfds_split='dev': .* splits: test, train"),
    ({"field": "text"}, "field='text': .* features 'body', 'number'"),
    ({"field": "number"}, "field='number' holds a int, expected text"),
  ],
)
def test_bad_arguments_are_refused(
  data_dir, tokenizer_folder, changes, message
):
  with pytest.raises(ValueError, match=message):
    open_(data_dir, tokenizer_folder, **changes)


def test_a_missing_tfds_names_the_extra(
  data_dir, tokenizer_folder, monkeypatch
):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(ValueError, match=r"pip install 'analogjax\[tfds\]'"):
    open_(data_dir, tokenizer_folder)


def test_files_without_random_access_are_refused(
  data_dir, tokenizer_folder, tmp_path
):
  # TensorFlow would be needed to write TFRecord, and to read it: only the
  # metadata says so here.
  folder = tmp_path / "lab_corpus" / "1.0.0"
  folder.mkdir(parents=True)
  for file in (data_dir / "lab_corpus" / "1.0.0").iterdir():
    if file.suffix == ".json":
      changed = file.read_text().replace("array_record", "tfrecord")
      (folder / file.name).write_text(changed)
  with pytest.raises(ValueError, match="no random access.*array_record"):
    open_(tmp_path, tokenizer_folder)
