"""Files of other projects' teacher caches, written from their layouts.

Each writer leaves a file as its project would and returns what a reader of that
file would find. Layouts are those of MaxText e591f30 and DistillKit a61c2e7,
and of NVIDIA/Megatron-LM of August 2026 (main, and dev with the 17th bit of
eight ids in one byte). RS-KD is arXiv:2503.16870, which specifies only the
entry: 17 bits of id and 7 of count.

Shape letters: R rows, L position, K entries of a record, J bytes of one, A
entries that are approximated, T terms, N records, E entries of all records.
"""

from collections.abc import Callable
import dataclasses
import io
import json
from pathlib import Path
import tarfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from analogjax.data import rows as rows_lib
from analogjax.interop.distillkit import codec as distillkit_codec

_ROWS_AT_A_TIME = 8  # In a Megatron-LM iteration.
_MIN_RECORDS = 128  # In an ArrayRecord file.


class TopK(NamedTuple):
  """The captured part of the teacher's distribution."""

  ids_RLK: np.ndarray  # int32, the likeliest first.
  logprobs_RLK: np.ndarray  # float32.
  lse_RL: np.ndarray  # float32.
  V: int

  def cut(self, k: int) -> "TopK":
    return self._replace(
      ids_RLK=self.ids_RLK[..., :k], logprobs_RLK=self.logprobs_RLK[..., :k]
    )


class Found(NamedTuple):
  """Content that a reader finds in a file."""

  p_RLK: np.ndarray  # Of the captured ids, as stored.
  target_RLK: np.ndarray  # Their probabilities in the project's own loss.
  copies: int = 1  # Of the text in the file.


@dataclasses.dataclass(frozen=True)
class Peer:
  """A project's format."""

  name: str
  k: int
  loss: str  # Its treatment of the mass outside the k ids.
  write: Callable[[Path, TopK, rows_lib.Rows | None], Found]
  holds_tokens: bool = True


def maxtext(path: Path, top: TopK, rows: rows_lib.Rows | None) -> Found:
  """ArrayRecord of one tf.train.Example per row.

  Values are logits without their normalizer; the loss renormalizes both sides.
  """
  logits_RLK = top.logprobs_RLK + top.lse_RL[..., None]
  records = []
  for r in range(len(logits_RLK)):
    features = {
      "top_k_logits": logits_RLK[r].astype(np.float32),
      "top_k_indices": top.ids_RLK[r].astype(np.int64),
    }
    if rows is not None:
      segments_L = rows.segments_BL[r].astype(np.int64)
      tokens_L = rows.tokens_BL[r].astype(np.int64)
      features |= {
        "inputs": tokens_L,
        # A salted hash of Python's: any 64 bits.
        "sequence_hash": np.array([hash(tokens_L.tobytes())]),
        "inputs_position": rows.positions_BL[r].astype(np.int64),
        "inputs_segmentation": segments_L,
        "targets_segmentation": segments_L,
        "targets": np.roll(tokens_L, -1),
      }
    records.append(example(features))
  # Files are filled up to 64 KiB, which would show in so short a text. Records
  # are compressed one by one, so copies change nothing else.
  copies = -(-_MIN_RECORDS // len(records))
  _write_array_record(path, records * copies)
  p_RLK = _softmax(logits_RLK)
  return Found(p_RLK, p_RLK, copies)


def example(features: dict[str, np.ndarray]) -> bytes:
  """A serialized tf.train.Example, lists packed; int64 or float32."""
  out = b""
  for name, values in features.items():
    if values.dtype == np.float32:
      kind, data = 2, values.astype("<f4").tobytes()
    else:
      kind, data = 3, varints(values.ravel())
    value = _field(kind, _field(1, data))
    out += _field(1, _field(1, name.encode()) + _field(2, value))
  return _field(1, out)


def _field(number: int, data: bytes) -> bytes:
  """A length-delimited field of protobuf."""
  return bytes([number << 3 | 2]) + varints(np.array([len(data)])) + data


def varints(values_E: np.ndarray) -> bytes:
  """Protobuf's varints: seven bits per byte, the lowest first."""
  rest_E = values_E.astype(np.int64).view(np.uint64)
  bytes_E10 = np.zeros((len(rest_E), 10), np.uint8)
  length_E = np.ones(len(rest_E), int)
  for i in range(10):
    bytes_E10[:, i] = rest_E & np.uint64(127)
    rest_E = rest_E >> np.uint64(7)
    length_E += rest_E > 0
  place_10 = np.arange(10)
  bytes_E10 |= np.where(place_10 < length_E[:, None] - 1, 128, 0).astype("u1")
  return bytes_E10[place_10 < length_E[:, None]].tobytes()


def _write_array_record(path: Path, records: list[bytes]) -> None:
  from array_record.python import array_record_module

  file = path.with_suffix(".array_record")
  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def megatron(packed: bool) -> Callable[..., Found]:
  """A tar of one zstd-compressed torch.save per iteration.

  `packed`: the 17th bit of an id takes a bit (dev) instead of a byte (main).
  """

  def write(path: Path, top: TopK, rows: rows_lib.Rows | None) -> Found:
    del rows  # Rows are found only by the seed of the data pipeline.
    import pyarrow
    import torch

    if top.V > 2**17:
      raise ValueError(f"{top.V} ids; Megatron-LM stores at most 2^17.")
    zstd = pyarrow.Codec("zstd", compression_level=3)
    values_RLK = top.logprobs_RLK.astype(np.float16)
    saver = {"k": top.ids_RLK.shape[-1], "p": None, "save_dtype": "fp16"}
    members = {"_meta.json": json.dumps({"saver": saver}).encode()}
    for start in range(0, len(values_RLK), _ROWS_AT_A_TIME):
      part = slice(start, start + _ROWS_AT_A_TIME)
      # Megatron's tensors have the sequence first.
      ids_LRK = np.ascontiguousarray(top.ids_RLK[part].swapaxes(0, 1))
      bit_17 = ids_LRK >> 16 > 0
      tensors = {
        "values": np.ascontiguousarray(values_RLK[part].swapaxes(0, 1)),
        "indices_low": (ids_LRK & 0xFFFF).astype(np.uint16),
        "bit_17": np.packbits(bit_17, -1) if packed else bit_17,
      }
      buffer = io.BytesIO()
      lists = {name: [torch.from_numpy(a)] for name, a in tensors.items()}
      torch.save(lists, buffer)
      number = start // _ROWS_AT_A_TIME
      data = zstd.compress(buffer.getvalue(), asbytes=True)
      members[f"{number}.pt.zst"] = data
    with tarfile.open(path.with_suffix(".tar"), "w") as tar:
      for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    p_RLK = np.exp(values_RLK.astype(np.float64))
    return Found(p_RLK, p_RLK)

  return write


def recommended(V: int) -> distillkit_codec.Codec:
  """The settings that DistillKit's README recommends."""
  return distillkit_codec.Codec(
    d=V,
    k=128,
    exact_k=16,
    exact_dtype="bfloat16",
    polynomial_terms=(0, 1, 2, 3, 4, "sqrt"),
    delta_encoding=False,
  )


def budget(V: int) -> distillkit_codec.Codec:
  """The settings that its README proposes if storage is tight."""
  return distillkit_codec.Codec(
    d=V,
    k=50,
    exact_k=1,
    exact_dtype="bfloat16",
    polynomial_terms=(0, 1, "sqrt"),
    delta_encoding=False,
  )


def distillkit(
  make: Callable[[int], distillkit_codec.Codec], *, exact: bool = False
) -> Callable[..., Found]:
  """Parquet of packed ids, exact bfloat16 values and a polynomial of float32.

  Its loss by default treats missing mass as none and renormalizes the teacher.

  Args:
    make: the codec, from the vocabulary size.
    exact: see `encode_logprobs`.
  """

  def write(path: Path, top: TopK, rows: rows_lib.Rows | None) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    codec = make(top.V)
    columns = {
      "compressed_logprobs": encode_logprobs(
        top.logprobs_RLK, codec, exact=exact
      ),
      "bytepacked_indices": pack_ids(top.ids_RLK, top.V),
    }
    fields = {name: _nested(pa, a) for name, a in columns.items()}
    if rows is not None:
      tokens_RL = rows.tokens_BL.astype(np.uint64)
      fields = {"input_ids": _lists(pa, tokens_RL), **fields}
    pq.write_table(pa.table(fields), path.with_suffix(".parquet"))
    values_NJ, ids_NJ = (a.reshape(-1, a.shape[-1]) for a in columns.values())
    ids_NK, logprobs_NK = codec.decode(ids_NJ, values_NJ)
    assert np.array_equal(ids_NK, top.ids_RLK.reshape(ids_NK.shape))
    # A polynomial may go above 0; its exponential then is what is trained on.
    p_RLK = np.exp(logprobs_NK.astype(np.float64)).reshape(top.ids_RLK.shape)
    return Found(p_RLK, p_RLK / p_RLK.sum(-1, keepdims=True))

  return write


def pack_ids(ids: np.ndarray, V: int) -> np.ndarray:
  """Ids at ceil(log2 V) bits each, high bit first; bytes in the last axis."""
  bits = (V - 1).bit_length()
  shifts = np.arange(bits - 1, -1, -1)
  as_bits = (ids[..., None] >> shifts & 1).astype(np.uint8)
  return np.packbits(as_bits.reshape(*ids.shape[:-1], -1), axis=-1)


def encode_logprobs(
  logprobs: np.ndarray, codec: distillkit_codec.Codec, *, exact: bool = False
) -> np.ndarray:
  """The exact values and the coefficients of a least-squares fit, as bytes.

  Args:
    logprobs: [..., K], the largest first.
    codec: with terms, without residual bins and deltas.
    exact: the fit is solved in float64. DistillKit solves it in float32, in
      which a polynomial of degree 4 over 0 to 111 is ill-conditioned.
  """
  import torch

  kept, rest = np.split(logprobs, [codec.exact_k], axis=-1)
  t_A = np.arange(rest.shape[-1], dtype=np.float32)
  terms = [
    np.sqrt(t_A) if i == "sqrt" else t_A ** int(i)
    for i in codec.polynomial_terms
  ]
  work = torch.float64 if exact else torch.float32
  terms_AT = torch.from_numpy(np.stack(terms, axis=-1)).to(work)
  u_AT, s_T, vh_TT = torch.linalg.svd(terms_AT, full_matrices=False)
  # Their pseudo-inverse: singular values up to 1e-5 count as zero.
  inverse_T = torch.where(s_T > 1e-5, 1 / s_T, 0)
  fit = ((torch.from_numpy(rest).to(work) @ u_AT) * inverse_T) @ vh_TT
  parts = kept.astype(ml_dtypes.bfloat16), fit.numpy().astype(np.float32)
  as_bytes = [np.ascontiguousarray(part).view(np.uint8) for part in parts]
  return np.concatenate(as_bytes, axis=-1)


def _lists(pa: Any, values: np.ndarray) -> Any:
  """[..., N] -> one list of N for each index before."""
  N = values.shape[-1]
  offsets = np.arange(0, values.size + 1, N, dtype=np.int32)
  return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))


def _nested(pa: Any, values_RLJ: np.ndarray) -> Any:
  R, L, _ = values_RLJ.shape
  offsets = np.arange(0, R * L + 1, L, dtype=np.int32)
  return pa.ListArray.from_arrays(offsets, _lists(pa, values_RLJ))


def sampled_entries(ids_RLK: np.ndarray, counts_RLK: np.ndarray) -> bytes:
  """RS-KD's entries. Counts of a record add up to the draws: no end mark."""
  there = counts_RLK > 0
  entry_E = ids_RLK[there].astype("<u4") << 7 | counts_RLK[there]
  return entry_E.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def _softmax(logits_RLK: np.ndarray) -> np.ndarray:
  z_RLK = logits_RLK.astype(np.float64)
  p_RLK = np.exp(z_RLK - z_RLK.max(-1, keepdims=True))
  return p_RLK / p_RLK.sum(-1, keepdims=True)


RENORMALIZES, BUCKET = "renormalized", "bucket"
PEERS = (
  Peer("MaxText, K=128", 128, RENORMALIZES, maxtext),
  Peer("Megatron-LM main, K=128", 128, BUCKET, megatron(False), False),
  Peer("Megatron-LM dev, K=128", 128, BUCKET, megatron(True), False),
  Peer("DistillKit recommended", 128, RENORMALIZES, distillkit(recommended)),
  Peer(
    "DistillKit recommended, fitted in float64",
    128,
    RENORMALIZES,
    distillkit(recommended, exact=True),
  ),
  Peer("DistillKit budget", 50, RENORMALIZES, distillkit(budget)),
)
