"""A planted pair with a behaviour: a direction that some tokens carry.

Tokens of the pairs carry it with one sign or the other, and the unembedding of
the words reads it. The text is the analog's own, so that pushes cost
perplexity. The rows that maps are fitted on do not have the tokens of the
pairs, so a map from an untrained model can know nothing of them.
"""

import dataclasses
import json

from flax import nnx
import jax
import numpy as np

from analogjax.distributed import sharding
from analogjax.evaluation import models
from analogjax.models import decoder

# Widths of analog and teacher: random directions are nearly orthogonal.
D, W = 64, 96
WITH, WITHOUT = range(2, 10), range(10, 18)
FOR, AGAINST = range(18, 21), range(21, 24)


def text(rng, *last):
  words = [f"w{i}" for i in rng.integers(24, 96, rng.integers(3, 7))]
  return " ".join([*words, *(f"w{i}" for i in last)])


def value(name="planted", **changes):
  """The content of a behaviour's file."""
  rng = np.random.default_rng(0)
  return {
    "format": "analogjax.behaviour",
    "format_version": 1,
    "name": name,
    "pairs": [
      {"with": text(rng, a), "without": text(rng, b)}
      for a, b in zip([*WITH] * 2, [*WITHOUT] * 2, strict=True)
    ],
    "prompts": [text(rng) for _ in range(24)],
    "words": {
      "for": [f" w{i}" for i in FOR],
      "against": [f" w{i}" for i in AGAINST],
    },
  } | changes


def write(folder, **changes):
  made = value(**changes)
  path = folder / f"{made['name']}.json"
  path.write_text(json.dumps(made))
  return str(path)


def with_direction(cfg, params):
  """Parameters with the direction, and the direction."""
  d_D = np.float32(np.random.default_rng(7).normal(size=cfg.D))
  d_D /= np.linalg.norm(d_D)
  pairs_V, words_V = np.zeros((2, cfg.V), np.float32)
  pairs_V[[*WITH]], pairs_V[[*WITHOUT]] = 6, -6
  words_V[[*FOR]], words_V[[*AGAINST]] = 1.5, -1.5

  def plant(path, leaf):
    name = jax.tree_util.keystr(path)
    if "unembed_VD" in name:  # Nothing else moves the words.
      return np.where(words_V[:, None], words_V[:, None] * d_D[None], leaf)
    if "embed_VD" in name:
      return leaf + pairs_V[:, None] * d_D[None]
    return leaf

  return jax.tree_util.tree_map_with_path(plant, params), d_D


def own_text(model, rows, rng):
  """Rows that the model wrote, except the first token of each document."""

  @jax.jit
  def logits(tokens_BL):
    decoder_ = nnx.merge(model.graphdef, model.params)
    x_BLD, _ = decoder_(tokens_BL, *rows[1:3])
    return x_BLD @ decoder_.head_VD.T

  tokens_BL = rows.tokens_BL.copy()
  for i in range(1, tokens_BL.shape[1]):
    noise_BV = rng.gumbel(size=(len(tokens_BL), model.cfg.V))
    best_B = (np.asarray(logits(tokens_BL))[:, i - 1] + noise_BV).argmax(-1)
    goes_on_B = rows.positions_BL[:, i] > 0
    tokens_BL[:, i] = np.where(goes_on_B, best_B, tokens_BL[:, i])
  return rows._replace(tokens_BL=tokens_BL)


def make_study(kit, mesh, files, **changes):
  cfg = dataclasses.replace(kit.ANALOG, D=D)
  params, _ = with_direction(cfg, kit.trained_looking(cfg, 0))
  teacher_cfg, teacher_params, _ = kit.planted(cfg, params, W)
  # Half of the vector's own norm: beyond it, effects no longer grow.
  options = dict(behaviours=tuple(files), max_strength=0.5, random_vectors=16)
  made = kit.make_study(mesh, **(options | changes))

  def model(name, cfg, params, mesh=mesh):
    where = sharding.state_shardings(decoder.abstract_parameters(cfg), mesh)
    params = jax.device_put(params, where)
    return models.Model(name=name, cfg=cfg, params=params)

  random = model("random", cfg, kit.trained_looking(cfg, 1))
  alone = sharding.make_mesh({}, jax.devices()[:1])
  writer = model("analog", cfg, params, alone)
  tokens_BL = made.fit.tokens_BL
  return dataclasses.replace(
    made,
    teacher=model("teacher", teacher_cfg, teacher_params),
    students={"analog": model("analog", cfg, params), "random": random},
    fit=made.fit._replace(
      tokens_BL=np.where(tokens_BL < 24, tokens_BL + 24, tokens_BL)
    ),
    test=own_text(writer, made.test, np.random.default_rng(3)),
  )
