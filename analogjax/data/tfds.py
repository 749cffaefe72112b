"""Rows from a TFDS dataset in ArrayRecord files, without TensorFlow.

Records are read one by one at random, so the dataset may be of any size.

Letters: L tokens of a row.
"""

from collections.abc import Mapping
import functools
from typing import Any

import grain

from analogjax.data import text as text_lib


def tfds_rows(
  name: str,
  data_dir: str,
  tokenizer: str,
  L: int,
  end_token: str,
  *,
  tfds_split: str = "train",
  field: str = "text",
  split: str = "all",
  held_out_every: int = 20,
  seed: int | None = 0,
  num_threads: int = 8,
) -> grain.IterDataset:
  """Packed rows of a prepared TFDS dataset; every record is one document.

  The dataset is read from its files; the code that made it is not needed.
  Arguments not listed are those of `text.text_files`.

  Args:
    name: e.g. "c4", "c4/en" or "c4/en:3.0.1".
    data_dir: the folder that TFDS prepared it under.
    tfds_split: e.g. "train", "validation" or "train[:10%]".
    field: the feature that holds the text.
    split: "train", "held_out" or "all" of the documents of tfds_split.
    seed: of grain's shuffle of the documents; None keeps the files' order.
  """
  text_lib.check_split(split, held_out_every)
  records = _open(name, data_dir, tfds_split, field)
  documents = grain.MapDataset.source(records)
  if seed is not None:
    documents = documents.shuffle(seed=seed)
  documents = documents.map(functools.partial(_text, field=field))
  if split != "all":
    documents = documents.filter(
      functools.partial(
        text_lib.in_split, split=split, held_out_every=held_out_every
      )
    )
  return text_lib.pack(
    documents, tokenizer, L, end_token, num_threads=num_threads
  )


def _open(name: str, data_dir: str, tfds_split: str, field: str) -> Any:
  """The records of a split, as a random-access source of dicts."""
  try:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
  except ImportError as e:
    raise ValueError(
      "config.data.pipeline: reading a TFDS dataset needs tensorflow-datasets "
      f"({e}). Install it with: pip install 'analogjax[tfds]'"
    ) from e
  try:
    # Not tfds.data_source, which looks for the dataset's code first and may ask
    # the network for its metadata.
    builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as e:
    raise ValueError(
      f"config.data.arguments: there is no prepared TFDS dataset {name!r} "
      f"under data_dir={data_dir}. Check both, and whether the name wants a "
      "config or a version, as in 'c4/en:3.0.1'."
    ) from e
  features = builder.info.features
  is_dict = isinstance(features, tfds.features.FeaturesDict)
  names = sorted(features.keys()) if is_dict else []
  if field not in names:
    raise ValueError(
      f"config.data.arguments.field={field!r}: the dataset {name!r} has the "
      f"features {', '.join(map(repr, names)) or 'of no dict'}."
    )
  try:
    # The type checker sees only the decorator's signature.
    return builder.as_data_source(split=tfds_split)  # pyright: ignore
  except NotImplementedError as e:
    raise ValueError(
      f"config.data.arguments.name={name!r}: its files are "
      f"{builder.info.file_format}, which has no random access. Prepare it "
      "with file_format='array_record', or convert it with `python -m "
      "tensorflow_datasets.scripts.convert_format`."
    ) from e
  except (ValueError, KeyError) as e:
    found = ", ".join(sorted(builder.info.splits)) or "none"
    raise ValueError(
      f"config.data.arguments.tfds_split={tfds_split!r}: the dataset {name!r} "
      f"has the splits: {found}."
    ) from e


def _text(record: Mapping[str, Any], *, field: str) -> str:
  value = record[field]
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if not isinstance(value, str):
    raise ValueError(
      f"config.data.arguments.field={field!r} holds a {type(value).__name__}, "
      "expected text."
    )
  return value
