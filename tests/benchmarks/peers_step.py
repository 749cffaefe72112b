"""A distillation step of ours beside the same step of other projects.

One process, one student (Llama-style, tied embeddings, the same weights), one
batch, float32, AdamW; the arms take turns within each round. Inputs of the
peers' steps are already in memory: Tunix the teacher's logits, the step with
transformers the teacher's top ids. Ours gets records as the cache gives them,
or the hidden states of a live teacher.

  python tests/benchmarks/peers_step.py --tunix=FOLDER --write-docs

FOLDER holds `pip install --no-deps --target=FOLDER google-tunix` and its
imports; a missing peer is reported as not installed.

Shape letters: B rows, L position, D width of the student, W of the teacher, V
vocabulary, K entries of a record.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import importlib.metadata
import os
from pathlib import Path
import platform
import statistics
import sys
import textwrap
import time
from typing import Any

import docs_page
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from analogjax.cache import batches, sampling
from analogjax.models import decoder, families, hf_export
from analogjax.training import losses, steps

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
TAU, TOP_K, ALPHA, LEARNING_RATE, DECAY = 0.04, 16, 0.9, 1e-3, 1e-4

OURS = "ours: threshold records + labels"
STRETCHED = f"ours: top {TOP_K} stretched to one + labels"
LIVE = "ours: live teacher, its unembedding included, + labels"


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to make an optimizer update."""

  name: str
  step: Callable[[], float] | None = None  # Updates once, returns the loss.
  same_loss_as: str = ""  # The arm that must begin at the same loss.
  why_not: str = ""  # If there is no step.


@dataclasses.dataclass(frozen=True)
class Job:
  """The common inputs of all arms."""

  cfg: decoder.DecoderConfig
  params: nnx.State
  batch: batches.Batch  # Without a teacher's word.
  teacher: losses.Teacher
  logits_BLV: jax.Array  # Of the teacher.
  top: batches.Batch  # The likeliest ids, stretched to one.
  chunk: int


def make_job(
  *, V: int, D: int, W: int, layers: int, rows: int, length: int, chunk: int
) -> Job:
  """Random weights, tokens and teacher; its entropy is as on text."""
  B, L = rows, length
  cfg = decoder.DecoderConfig(
    **dict(V=V, D=D, Y=layers, N=4, G=2, H=D // 4, F=3 * D),
    **dict(max_positions=L, rope_theta=1e4, rms_norm_eps=1e-5),
    **dict(tie_embeddings=True, attention_bias=False, mlp_bias=False),
  )
  rng = np.random.default_rng(0)
  teacher = losses.Teacher(
    x_BLW=jnp.asarray(rng.normal(size=(B, L, W)), jnp.float32),
    head_VW=jnp.asarray(rng.normal(size=(V, W)) * 4 / W**0.5, jnp.float32),
  )
  ones_BL = np.ones((B, L), np.float32)
  batch = batches.Batch(
    tokens_BL=rng.integers(0, V, (B, L)).astype(np.int32),
    segments_BL=np.ones((B, L), np.int32),
    positions_BL=np.broadcast_to(np.arange(L, dtype=np.int32), (B, L)),
    targets=batches.Targets(
      labels_BL=rng.integers(0, V, (B, L)).astype(np.int32),
      weights_BL=ones_BL,
      teacher_weights_BL=ones_BL,
      ids_BLK=np.zeros((B, L, 0), np.int32),
      p_BLK=np.zeros((B, L, 0), np.float32),
    ),
  )
  logits_BLV = jax.jit(decoder.unembed)(teacher.x_BLW, teacher.head_VW)
  top = with_records(batch, logits_BLV, sampling.TopK(top_k=TOP_K))
  p_BLK = top.targets.p_BLK / top.targets.p_BLK.sum(-1, keepdims=True)
  stretched = top.targets._replace(p_BLK=p_BLK, log_tail_BL=None)
  params = decoder.init_parameters(cfg, 0)
  top = top._replace(targets=stretched)
  return Job(cfg, params, batch, teacher, logits_BLV, top, chunk)


def with_records(
  batch: batches.Batch, logits_BLV: jax.Array, sampler: sampling.Sampler
) -> batches.Batch:
  """The batch with the records of a cache of this kind."""
  draw = jax.jit(
    functools.partial(
      sampling.draw,
      sampler=sampler,
      capture=sampling.Capture(),
      num_replicas=1,
      temperature=1.0,
    )
  )
  keys_B2 = np.random.default_rng(1).integers(
    0, 2**32, (len(logits_BLV), 2), np.uint32
  )
  pieces = []
  for b in range(len(logits_BLV)):  # All rows at once would take gigabytes.
    row = slice(b, b + 1)
    labels_BL = batch.targets.labels_BL[row]
    records = draw(logits_BLV[row], labels_BL, keys_B2[row], 0)
    pieces.append(jax.device_get(records))
  records = jax.tree.map(lambda *a: np.concatenate(a), *pieces)
  logprobs = records.logprobs_BMLK
  p_BMLK = sampling.decode(records.codes_BMLK, sampler, logprobs)
  targets = batch.targets._replace(
    ids_BLK=records.ids_BMLK[:, 0],
    p_BLK=p_BMLK[:, 0],
    log_tail_BL=records.log_tail_BL,
  )
  return batch._replace(targets=targets)


def ours(job: Job) -> Iterator[Arm]:
  tx = optax.adamw(LEARNING_RATE, weight_decay=DECAY)
  step = functools.partial(
    steps.train_step,
    graphdef=decoder.graphdef(job.cfg),
    tx=tx,
    objective=losses.Objective(chunk=job.chunk),
    alpha=lambda _: ALPHA,
  )
  run = jax.jit(step, donate_argnums=0)

  def arm(name, batch, teacher=None):
    batch = jax.device_put(batch)
    params = jax.tree.map(jnp.array, job.params)
    state = steps.TrainState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params)
    )

    def once():
      nonlocal state
      state, metrics = jax.block_until_ready(run(state, batch, teacher))
      return float(metrics["loss_nats"])

    return Arm(name, once)

  records = functools.partial(with_records, job.batch, job.logits_BLV)
  yield arm(OURS, records(sampling.Threshold(tau=TAU)))
  name = f"ours: top {TOP_K} and tail + labels"
  yield arm(name, records(sampling.TopK(top_k=TOP_K)))
  yield arm(STRETCHED, job.top)
  yield arm(LIVE, job.batch, job.teacher)


def tunix(job: Job, folder: str) -> Iterator[Arm]:
  """google-tunix: the step that DistillationTrainer.train compiles.

  The student is the same module as ours; labels are one-hot, as its loss takes
  them.
  """
  if folder:
    sys.path.append(folder)
  try:
    from tunix.distillation import distillation_trainer
    from tunix.distillation.strategies import logit
  except ImportError as error:
    yield Arm("google-tunix", why_not=_reason(error, "tunix"))
    return
  version = importlib.metadata.version("google-tunix")
  graphdef = decoder.graphdef(job.cfg)
  segments_BL, positions_BL = job.batch.segments_BL, job.batch.positions_BL
  labels_BL = job.batch.targets.labels_BL

  def forward(model, input_tokens, input_mask):
    del input_mask  # All of them count.
    x_BLD, _ = model(input_tokens, segments_BL, positions_BL)
    return decoder.unembed(x_BLD, model.head_VD)

  def one_hot(input_tokens, input_mask):
    del input_tokens, input_mask
    return jax.nn.one_hot(labels_BL, job.cfg.V)

  def arm(name, top_k, same_loss_as):
    strategy = logit.LogitStrategy(
      student_forward_fn=forward,
      teacher_forward_fn=forward,
      labels_fn=one_hot,
      temperature=1.0,
      alpha=ALPHA,
      distill_top_k=top_k,
    )
    params = jax.tree.map(jnp.array, job.params)
    model = nnx.merge(graphdef, params)
    trainer = distillation_trainer.DistillationTrainer(
      student_model=model,
      # Its logits are there already; it never runs.
      teacher_model=nnx.merge(graphdef, params),
      strategy=strategy,
      optimizer=optax.adamw(LEARNING_RATE, weight_decay=DECAY),
      training_config=distillation_trainer.TrainingConfig(
        eval_every_n_steps=10**9
      ),
    )
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    given = distillation_trainer.TrainingInput(
      input_tokens=jnp.asarray(job.batch.tokens_BL),
      input_mask=jnp.asarray(job.batch.segments_BL),
      teacher_output=job.logits_BLV,
    )

    def once():
      loss = step(given)[0]
      jax.block_until_ready(nnx.state(model))
      return float(loss)

    return Arm(name, once, same_loss_as)

  name = f"Tunix {version}: teacher's logits given, + labels"
  yield arm(name, 0, LIVE)
  yield arm(f"{name}, distill_top_k={TOP_K}", TOP_K, "")


def transformers(job: Job) -> Iterator[Arm]:
  """A plain step of torch with transformers' Llama, eager as Trainer has it."""
  try:
    import torch
    import transformers
  except ImportError as error:
    yield Arm("torch and transformers", why_not=_reason(error, "torch"))
    return
  torch.set_num_threads(os.cpu_count() or 1)
  weights = {
    name: torch.from_numpy(np.array(array))
    for name, array in hf_export.hf_tensors(job.params, "float32")
  }
  fields = families.to_hf_config(job.cfg, dtype="float32")

  def tensor(array, dtype=None):
    return torch.from_numpy(np.array(array)).to(dtype or torch.float32)

  tokens_BL = tensor(job.batch.tokens_BL, torch.int64)
  labels_BL1 = tensor(job.batch.targets.labels_BL, torch.int64)[..., None]
  ids_BLK = tensor(job.top.targets.ids_BLK, torch.int64)
  p_BLK = tensor(job.top.targets.p_BLK)

  # The teacher's entropy is a constant: as in ours, left out.
  def all_ids(logits_BLV):
    logq_BLV = torch.log_softmax(logits_BLV, -1)
    teacher_BL = -(p_BLK * logq_BLV.gather(-1, ids_BLK)).sum(-1)
    hard_BL = -logq_BLV.gather(-1, labels_BL1)[..., 0]
    return (ALPHA * teacher_BL + (1 - ALPHA) * hard_BL).mean()

  def k_ids(logits_BLV):
    logq_BLK = torch.log_softmax(logits_BLV.gather(-1, ids_BLK), -1)
    return -(p_BLK * logq_BLK).sum(-1).mean()

  def arm(name, loss, same_loss_as):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # Tied to the embedding.
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    optimizer = torch.optim.AdamW(
      model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY
    )

    def once():
      optimizer.zero_grad()
      value = loss(model(input_ids=tokens_BL, use_cache=False).logits)
      value.backward()
      optimizer.step()
      return float(value.detach())

    return Arm(name, once, same_loss_as)

  name = f"torch {torch.__version__}, transformers {transformers.__version__}"
  yield arm(f"{name}: top {TOP_K} stretched, + labels", all_ids, STRETCHED)
  yield arm(f"{name}: top {TOP_K} on both sides, no labels", k_ids, "")


def _reason(error: ImportError, package: str) -> str:
  if (error.name or "").split(".")[0] == package:
    return "not installed"
  return f"cannot be imported: {error}"


def check_losses(arms: Sequence[Arm], first: dict[str, float]) -> None:
  """Refuses a comparison of steps that compute different things.

  Raises:
    ValueError: two losses of the same weights differ by more than 1e-3.
  """
  for arm in arms:
    if arm.step is None or not arm.same_loss_as:
      continue
    mine, other = first[arm.name], first[arm.same_loss_as]
    if not abs(mine - other) <= 1e-3 * abs(other):
      raise ValueError(
        f"{arm.name}: first loss {mine:.6f}, but {other:.6f} of"
        f" {arm.same_loss_as!r}: these are not the same step."
      )


def measure(arms: Sequence[Arm], rounds: int) -> dict[str, list[float]]:
  """Seconds of each round, by arm that runs; the first losses are compared."""
  there = [arm for arm in arms if arm.step is not None]
  first = {arm.name: _called(arm) for arm in there}
  check_losses(arms, first)
  spent: dict[str, list[float]] = {arm.name: [] for arm in there}
  rng = np.random.default_rng(0)
  for i in range(rounds + 1):
    for place in rng.permutation(len(there)):
      # Threads of the library that ran before wait for work in a loop.
      time.sleep(0.2)
      began = time.perf_counter()
      _called(there[place])
      if i:  # The first round warms up.
        spent[there[place].name].append(time.perf_counter() - began)
  return spent


def _called(arm: Arm) -> float:
  assert arm.step is not None
  return arm.step()


def table(arms: Sequence[Arm], spent: dict[str, list[float]]) -> str:
  lines = ["| step | seconds | times the first (10 % to 90 %) |"]
  lines.append("|---|---|---|")
  base = spent[arms[0].name]
  for arm in arms:
    if arm.step is None:
      lines.append(f"| {arm.name} | {arm.why_not} | - |")
      continue
    own = spent[arm.name]
    ratios = [a / b for a, b in zip(own, base, strict=True)]
    low, high = np.quantile(ratios, [0.1, 0.9])
    lines.append(
      f"| {arm.name} | {statistics.median(own):.3f}"
      f" | {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) |"
    )
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  sizes: dict[str, Any] = dict(V=49_152, D=128, W=576, layers=4)
  sizes |= dict(rows=8, length=256, chunk=256)
  for name, value in sizes.items():
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--rounds", type=int, default=10)
  parser.add_argument("--tunix", default="", help="folder with google-tunix")
  parser.add_argument("--write-docs", action="store_true")
  args = parser.parse_args(argv)
  job = make_job(**{name: getattr(args, name) for name in sizes})
  arms = [*ours(job), *tunix(job, args.tunix), *transformers(job)]
  spent = measure(arms, args.rounds)
  what = textwrap.fill(
    f"V = {args.V:,}, D = {args.D}, {args.layers} layers,"
    f" {job.cfg.num_parameters / 1e6:.1f} million parameters, {args.rows} rows"
    f" of {args.length} tokens; {platform.machine()}, {os.cpu_count()} cores,"
    f" jax {jax.__version__}, {args.rounds} rounds:",
    80,
  )
  text = f"{what}\n\n{table(arms, spent)}"
  print(text)
  if args.write_docs:
    docs_page.put(DOCS, "peers step", text)


if __name__ == "__main__":
  main()
