"""A tiny model, rows and options that every part can work with."""

import dataclasses
import functools
import sys

import jax
import models as kit_models
from models import tiny
import numpy as np
import pytest
import tokenizers

from analogjax.config import safety
from analogjax.data import rows as rows_lib
from analogjax.distributed import sharding
from analogjax.evaluation import models
from analogjax.models import decoder
from analogjax.safety import evaluation

CFG = tiny(D=32, H=8, F=64)
L = 24
END = 63

OPTIONS = safety.SafetyConfig(
  parts=safety.PARTS,
  teacher_parts=(),
  batch_rows=8,
  chunk=7,  # Does not divide a row.
  resamples=200,
  rows=64,
  prefix_tokens=6,
  suffix_tokens=4,
  attempts=20,
  canary_controls=63,
  harmful=("harmful.txt",),
  harmless=("harmless.txt",),
  prompts=6,
  prompt_tokens=10,
  answer_tokens=5,
  template="{prompt}",
)


def make_tokenizer():
  """One word per token, w2 to w62, and a special token [end]."""
  vocabulary = {f"w{i}": i for i in range(2, END)}
  vocabulary |= {"[unk]": 0, "[unused]": 1}
  model = tokenizers.models.WordLevel(vocabulary, unk_token="[unk]")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.add_special_tokens(["[end]"])
  assert tokenizer.token_to_id("[end]") == END
  return tokenizer


def random_rows(R, seed):
  """Rows of two documents each, and some padding."""
  rng = np.random.default_rng(seed)
  segments = np.repeat([1, 2, 0], [14, 8, 2])
  return rows_lib.Rows(
    np.int32(rng.integers(2, END, (R, L))),
    np.int32(np.tile(segments, (R, 1))),
    np.tile(rows_lib.default_positions(segments), (R, 1)),
    np.float32(np.tile(segments > 0, (R, 1))),
  )


parameters = functools.partial(kit_models.parameters, CFG, others=0.3)


def make_model(mesh, params, name="analog"):
  where = sharding.state_shardings(decoder.abstract_parameters(CFG), mesh)
  return models.Model(name=name, cfg=CFG, params=jax.device_put(params, where))


def make_evaluation(mesh, params=None, *, changes=None, **fields):
  """An evaluation of one analog, random unless `params` are given.

  Args:
    changes: of the options.
    **fields: of the evaluation.
  """
  model = make_model(mesh, parameters() if params is None else params)
  values = dict(
    mesh=mesh,
    students={"analog": model},
    teacher=None,
    members=random_rows(20, 1),
    held_out=random_rows(12, 2),
    teacher_only=None,
    canaries=None,
    prompts={},
    tokenizer=make_tokenizer(),
    options=dataclasses.replace(OPTIONS, **(changes or {})),
  )
  return evaluation.Evaluation(**{**values, **fields})


@pytest.fixture(scope="session")
def kit():
  """The functions of this file."""
  return sys.modules[__name__]
