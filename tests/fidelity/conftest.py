"""Planted pairs, for which the result of each measurement is known.

The teacher is the analog mapped to twice the width: R_DW has orthonormal rows,
the residual stream of the teacher is that of the analog times R_DW, at every
layer, and their logits are equal. RMS norms divide by the root of another
width, which the matrices after them compensate.
"""

import dataclasses
import sys

import jax
from models import tiny
import numpy as np
import pytest
import tokenizers

from analogjax.config import measure
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.evaluation import models, study as study_lib
from analogjax.models import decoder

ANALOG = tiny(V=96, Y=3, tie_embeddings=False)
L = 32

OPTIONS = measure.MeasureConfig(
  phases=("analog",),
  batch_rows=8,
  fit_rows=48,
  domain_rows=8,
  depths=3,
  points=128,
  permutations=39,
  resamples=200,
  behaviours=("sentiment",),
  strengths=2,
  mapper_steps=0,
  stitch_steps=0,
)


def trained_looking(cfg, seed):
  """Random parameters with logits of some size, and blocks that do much."""
  params = decoder.init_parameters(cfg, seed)

  def grow(path, leaf):
    name = jax.tree_util.keystr(path)
    scale = 50 if "embed_VD" in name else 2 if "wo_" in name else 1
    scale = 3 if "wdown" in name else scale
    return leaf * scale / (3 if "unembed" in name else 1)

  return jax.tree_util.tree_map_with_path(grow, params)


def orthonormal(D, W, seed=0):
  """R_DW with R R^T = 1."""
  q_WW, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(W, W)))
  return np.float32(q_WW[:D])


def planted(cfg, params, W):
  """The teacher of width W whose stream is that of cfg times R_DW."""
  teacher_cfg = dataclasses.replace(
    cfg, D=W, rms_norm_eps=cfg.rms_norm_eps * cfg.D / W
  )
  R_DW = orthonormal(cfg.D, W)
  into = np.sqrt(cfg.D / W)  # For what reads a norm.

  def turn(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    x = np.asarray(leaf)
    if "scale_D" in name:
      assert np.ptp(x) == 0
      return np.full((*x.shape[:-1], W), x.flat[0])
    letters = sharding.letters_of(name).replace("Y", "", 1)
    if letters in ("NHD", "FD") or "/embed_VD" in "/" + name:
      return x @ R_DW
    if letters == "VD":
      return x @ R_DW * into
    assert letters in ("DNH", "DGH", "DF"), name
    flat = x.reshape(*x.shape[:2], -1)
    turned = np.einsum("YDX,DW->YWX", flat, R_DW) * into
    return turned.reshape(len(x), W, *x.shape[2:])

  turned = jax.tree_util.tree_map_with_path(turn, params)
  return teacher_cfg, jax.tree.map(np.float32, turned), R_DW


def random_rows(R, seed, V=ANALOG.V):
  """Rows of two documents each, and some padding."""
  rng = np.random.default_rng(seed)
  segments = np.repeat([1, 2, 0], [L // 2, L // 2 - 2, 2])
  positions = np.concatenate([np.arange(L // 2), np.arange(L // 2)])
  return rows_lib.Rows(
    np.int32(rng.integers(2, V, (R, L))),
    np.int32(np.tile(segments, (R, 1))),
    np.int32(np.tile(positions, (R, 1))),
    np.float32(np.tile(segments > 0, (R, 1))),
  )


def make_tokenizer(V=ANALOG.V):
  """One word per token: w2, w3, ..."""
  vocabulary = {"[unk]": 0, "[end]": 1} | {f"w{i}": i for i in range(2, V)}
  model = tokenizers.models.WordLevel(vocabulary, unk_token="[unk]")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return tokenizer


def make_study(mesh, *, students=None, **changes):
  """The planted pair on a mesh; `students` adds others, name -> (cfg, params).

  Args:
    students: beside the planted analog and the random one.
    changes: of the options.
  """
  params = trained_looking(ANALOG, 0)
  teacher_cfg, teacher_params, _ = planted(ANALOG, params, 2 * ANALOG.D)

  def model(name, cfg, params):
    where = sharding.state_shardings(decoder.abstract_parameters(cfg), mesh)
    return models.Model(
      name=name, cfg=cfg, params=jax.device_put(params, where)
    )

  others = dict(students or {})
  others[models.RANDOM] = (ANALOG, trained_looking(ANALOG, 1))
  return study_lib.Study(
    mesh=mesh,
    teacher=model("teacher", teacher_cfg, teacher_params),
    students={"analog": model("analog", ANALOG, params)}
    | {name: model(name, *pair) for name, pair in others.items()},
    fit=random_rows(48, 0),
    test=random_rows(16, 1),
    domains={},
    tokenizer=make_tokenizer(),
    options=dataclasses.replace(OPTIONS, **changes),
  )


@pytest.fixture(scope="session")
def kit():
  """The functions of this file."""
  return sys.modules[__name__]


@pytest.fixture(scope="session")
def pair(one_device):
  return make_study(one_device)
