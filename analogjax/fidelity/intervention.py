"""Tests on the teacher a vector that an outsider found on the released analog.

The result says how the teacher responds. The map and the mapped vector have the
teacher's width and stay in the workdir.

Shape letters: D width of the analog, W of the teacher, A vectors, S strengths.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from analogjax.distributed import processes
from analogjax.evaluation import estimates
from analogjax.evaluation.models import Model
from analogjax.evaluation.study import Study
from analogjax.fidelity import (
  behaviours,
  least_squares,
  mappers,
  steering_response,
  steering_vectors,
  transfer,
)
from analogjax.fidelity.claims import DOES_NOT, OPEN, TRANSFERS
from analogjax.models import decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutsideVector:
  """A vector from a file, in the analog's residual stream."""

  vector_D: np.ndarray  # float64.
  depth: float  # Where in the analog it was found.
  sha256: str  # SHA-256 of the file.


@dataclasses.dataclass(frozen=True)
class TeacherMap:
  """The affine map of vectors from the analog to the teacher. Private."""

  w_DW: np.ndarray  # float32.
  depth: float  # Where in the teacher the mapped vector is added.
  # Spread of the teacher's stream divided by that of the analog's. A mapped
  # vector is lengthened by this factor. The map alone would make it shorter
  # where it predicts badly.
  stretch: float
  unexplained: float  # Fraction of held-out variance.


def read_vector(
  path: Path, model: Model, digests: dict[str, str]
) -> OutsideVector:
  """Reads the tensor `vector` [D] and its depth from a safetensors file.

  Args:
    path: metadata: `site`, such as block03.resid_post, or `depth`, in (0, 1];
      optionally `model` and `digest`, which are checked.
    digests: SHA-256 of the exported files by name; empty if none was exported.

  Raises:
    ValueError: names the file, what was expected and what was found.
  """

  def check(ok, what, expected, found):
    if not ok:
      raise ValueError(f"{path}: {what}: expected {expected}, found {found}.")

  try:
    data = path.read_bytes()
    with safetensors.safe_open(path, "numpy") as file:
      metadata = dict(file.metadata() or {})
      names = list(file.keys())
      check("vector" in names, "tensors", "one named 'vector'", names)
      vector_D = file.get_tensor("vector")
  except OSError as error:
    reason = error.strerror or error
    raise ValueError(f"{path}: cannot be read: {reason}.") from error
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path}: expected a safetensors file: {error}."
    ) from error
  D = model.cfg.D
  check(vector_D.shape == (D,), "vector", f"shape [{D}]", [*vector_D.shape])
  real = np.issubdtype(vector_D.dtype, np.floating)
  real |= vector_D.dtype.name == "bfloat16"
  check(real, "vector", "floating-point numbers", vector_D.dtype)
  vector_D = vector_D.astype(np.float64)
  check(np.isfinite(vector_D).all(), "vector", "finite numbers", "NaN or inf")
  check(vector_D.any(), "vector", "a direction", "zeros alone")
  depth = _depth(path, metadata, model)
  name = metadata.get("model", model.name)
  check(name == model.name, "model", repr(model.name), repr(name))
  if "digest" in metadata:
    digest = metadata["digest"]
    known = digests.values()
    expected = f"one of the exported files ({', '.join(digests)})"
    check(digest in known, "digest", f"the SHA-256 of {expected}", digest)
  return OutsideVector(
    vector_D=vector_D, depth=depth, sha256=hashlib.sha256(data).hexdigest()
  )


def _depth(path: Path, metadata: dict[str, str], model: Model) -> float:
  """The depth of the block after which the vector was found."""
  if "site" in metadata:
    try:
      block, point = decoder.parse_site(metadata["site"], model.cfg.Y)
    except ValueError as error:
      raise ValueError(f"{path}: {error}") from error
    if point != "resid_post":
      raise ValueError(
        f"{path}: site: expected blockNN.resid_post, the stream after a block,"
        f" found {metadata['site']!r}."
      )
    return (block + 1) / model.cfg.Y
  try:
    depth = float(metadata.get("depth", "nan"))
  except ValueError:
    depth = np.nan
  if not 0 < depth <= 1:
    found = {k: metadata[k] for k in ("site", "depth") if k in metadata}
    raise ValueError(
      f"{path}: metadata: expected `site`, as block03.resid_post, or `depth`,"
      f" above 0 and up to 1, found {found or 'neither'}."
    )
  return depth


def find_map(
  study: Study, depth: float, folder: Path, inputs: Any
) -> TeacherMap:
  """The affine map from a depth of the analog, fitted once and then kept.

  The teacher's depth is the one whose held-out activations it explains best.

  Args:
    folder: where maps are kept; only its owner can read it.
    inputs: JSON values that identify everything that the map depends on.

  Raises:
    ValueError: a file in the folder cannot be read.
  """
  text = json.dumps([inputs, study.analog.block(depth)], sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()
  path = folder / f"{digest[:16]}.safetensors"
  if not processes.first_decides(path.exists):
    map_ = _fit(study, depth)
    processes.on_first(lambda: _write(path, map_, digest))
  return processes.all_or_none(lambda: _read(path, digest))


def _fit(study: Study, depth: float) -> TeacherMap:
  analog, teacher = study.analog, study.teacher
  options = steering_vectors.candidates(study, teacher)
  kept = []
  for name, rows in (("fit", study.fit), ("test", study.test)):
    points = mappers.draw_points(study, rows, name)
    (of_analog,) = mappers.keep(study, analog, rows, points, [depth]).values()
    of_teacher = mappers.keep(study, teacher, rows, points, options)
    kept.append(
      [mappers.pair(study, of_analog, of_teacher[d]) for d in options]
    )
  maps = []
  for there, fit, test in zip(options, *kept, strict=True):
    moments = least_squares.of_streams(study, *fit[:2], weights=fit.weights)
    tested = least_squares.of_streams(study, *test[:2], weights=test.weights)
    found = least_squares.solve(moments, 0, 0)
    n = moments.n
    x_D, y_W = moments.x_PD[0] / n, moments.y_QW[0] / n
    spread = np.trace(moments.xx_PDD[0]) / n - x_D @ x_D
    spread_there = moments.yy_Q[0] / n - y_W @ y_W
    maps.append(
      TeacherMap(
        found.w_DW,
        there,
        float(np.sqrt(spread_there / spread)),
        least_squares.unexplained(found, tested, 0, 0),
      )
    )
  return min(maps, key=lambda map_: map_.unexplained)


def _write(path: Path, map_: TeacherMap, digest: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.parent.chmod(0o700)
  numbers = (map_.depth, map_.stretch, map_.unexplained)
  data = safetensors.numpy.save(
    # safetensors silently writes arrays that are not contiguous wrong.
    {
      "w_DW": np.ascontiguousarray(map_.w_DW),
      "numbers": np.asarray(numbers, np.float64),
    },
    metadata={"inputs": digest, "private": "never leaves the lab"},
  )
  unfinished = path.with_suffix(".unfinished")
  unfinished.write_bytes(data)
  unfinished.chmod(0o600)
  unfinished.rename(path)


def _read(path: Path, digest: str) -> TeacherMap:
  try:
    with safetensors.safe_open(path, "numpy") as file:
      found = (file.metadata() or {}).get("inputs")
      w_DW, numbers = file.get_tensor("w_DW"), file.get_tensor("numbers")
  except (OSError, safetensors.SafetensorError) as error:
    raise ValueError(
      f"{path}: expected a map that an earlier run left, cannot be read:"
      f" {error}. Delete it; it is found again."
    ) from error
  if found != digest:
    raise ValueError(
      f"{path}: expected the map of inputs {digest}, found {found}. Delete it;"
      " it is found again."
    )
  return TeacherMap(w_DW, *numbers.tolist())


def answer(
  study: Study,
  found: OutsideVector,
  map_: TeacherMap,
  behaviour: behaviours.Behaviour,
) -> dict[str, Any]:
  """Responses of both models to the vector and to random ones, and a verdict.

  Strength 1 is the vector as it is in the analog. In the teacher its length has
  the same proportion to the spread of the stream.

  Raises:
    ValueError: the texts or words of the behaviour do not suit the models.
  """
  part = steering_vectors.prepare(study, behaviour)
  norm = float(np.linalg.norm(found.vector_D))
  mapped_W = found.vector_D @ map_.w_DW.astype(np.float64)
  there = steering_vectors.matched([mapped_W], norm * map_.stretch)
  out: dict[str, Any] = {"prompts": len(part.test.last_R)}
  effects = {}
  for key, model, depth, vector_AD in (
    ("analog", study.analog, found.depth, found.vector_D[None]),
    ("frontier", study.teacher, map_.depth, there),
  ):
    random_AD = steering_vectors.random_vectors(
      study, behaviour.name, model.cfg.D
    )
    length = float(np.linalg.norm(vector_AD))
    random_AD = steering_vectors.matched(list(random_AD), length)
    own, random = steering_response.respond(
      study,
      model,
      part.test,
      part.words,
      depth,
      np.concatenate([vector_AD, random_AD]),
    ).split([1, len(random_AD)])
    rng = study.rng("intervene", behaviour.name, key)
    effect = transfer.effect(
      own.curve, resamples=study.options.resamples, rng=rng
    )
    by_chance = random.areas_A
    effects[key] = effect, float(np.abs(by_chance).max())
    out[key] = {
      "effect": effect.to_json(),
      "random_effects": by_chance.tolist(),
      "strengths": steering_response.strengths(study).tolist(),
      **_curves(own, ""),
      **_curves(random, "random_"),
    }
  verdict, because = judge(*effects["analog"], *effects["frontier"])
  return out | {"verdict": verdict, "because": because}


def _curves(
  response: steering_response.Response, prefix: str
) -> dict[str, list[float]]:
  return {
    f"{prefix}score": response.scores_ASR.mean((0, 2)).tolist(),
    f"{prefix}perplexity_ratio": response.perplexity_ratio_S.tolist(),
  }


def judge(
  analog: estimates.Estimate,
  analog_chance: float,
  frontier: estimates.Estimate,
  frontier_chance: float,
) -> tuple[str, str]:
  """The verdict and its reason.

  Args:
    analog: mean effect of the vector in the analog, nats.
    analog_chance: largest absolute effect of a random vector there.
    frontier: mean effect of the mapped vector in the teacher.
    frontier_chance: largest absolute effect of a random vector there.
  """
  values = (analog.low, analog.high, frontier.low, frontier.high)
  if any(value is None for value in values):
    return OPEN, "an effect is not finite"
  a_low, a_high, low, high = (float(v) for v in values if v is not None)
  if not (a_low > analog_chance or a_high < -analog_chance):
    return OPEN, (
      "in the analog itself the vector does no more than random ones, so there"
      " is nothing to carry over"
    )
  sign = 1 if a_low > 0 else -1
  low, high = sorted((sign * low, sign * high))
  if low > frontier_chance:
    return TRANSFERS, (
      "the effect is the analog's way, and its whole interval above that of"
      " every random vector of the same norm"
    )
  if high < frontier_chance:
    return DOES_NOT, (
      "the whole interval of the effect is below what random vectors of the"
      " same norm do"
    )
  return OPEN, (
    "the interval of the effect holds what random vectors of the same norm do"
  )
