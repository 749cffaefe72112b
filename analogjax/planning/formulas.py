"""The cost of a program by formulas, for any machines: nothing is compiled.

Used for GPUs, because XLA compiles for one only where it is; to rank a search
and to find remedies; and for a plan without machines. Sizes of arguments are
exact. Everything else that a step keeps, computes, moves and exchanges is
counted from the shapes as XLA writes such programs, and was checked against
programs that it compiled for CPUs (tests/planning/formulas_test.py). No GPU was
compared.

Letters: T tokens of a device that go through the model at a time, S tokens
whose logits are in memory, W the teacher's width; others as in
docs/glossary.md.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from analogjax.cache import sampling
from analogjax.config import schema
from analogjax.models import attention, decoder, sizes
from analogjax.planning import buffers, programs
from analogjax.planning.program_cost import Exchange, ProgramCost
from analogjax.planning.topologies import Topology

_F32 = sizes.FLOAT32_BYTES


def count_programs(
  sections: schema.Sections,
  teacher: decoder.DecoderConfig,
  topology: Topology,
) -> list[ProgramCost]:
  """The costs of all programs of a run; see `programs.requests`.

  Raises:
    ValueError: a dimension or rows that the mesh does not divide.
  """
  # jax sees two devices in a chip with a fourth dimension of the shape.
  kind = "TPU7x" if len(topology.shape) == 4 else topology.chip.name
  teacher = dataclasses.replace(
    teacher, dtype=sections.teacher.dtype, attention=sections.teacher.attention
  )
  meshes = programs.abstract_meshes(sections, kind, topology.platform)
  counted: dict[str, ProgramCost] = {}
  costs = []
  for request in programs.requests(sections):
    same = repr(programs.identity(request, sections, teacher))
    if same not in counted:
      counted[same] = count_program(
        programs.prepare(request, sections, teacher, *meshes)
      )
    costs.append(dataclasses.replace(counted[same], stage=request.stage))
  return costs


def count_program(step: programs.Step) -> ProgramCost:
  """The cost of one program on each device."""
  count = _Count(step)
  temporaries = dict(count.temporaries())
  return ProgramCost(
    stage=step.request.stage,
    how="counted",
    tokens=step.tokens,
    flops=step.flops / step.mesh.size,
    executed_flops=count.flops(),
    accessed_bytes=count.accessed_bytes(),
    argument_bytes=programs.bytes_of(step.arguments),
    temporary_bytes=sum(temporaries.values()),
    output_bytes=count.output_bytes(),
    code_bytes=0.0,
    resident_bytes=programs.bytes_of(step.resident),
    largest=buffers.ranked(dict(buffers.known(step)) | temporaries),
    exchanges=tuple(count.exchanges()),
  )


class _Count:
  """Counts of one step on one device."""

  def __init__(self, step: programs.Step):
    cfg, mesh = step.model, step.mesh
    self._step, self._cfg = step, cfg
    self._trains = step.request.kind == "train"
    # Axes along which weights are replicated.
    self._copied = {
      a: n for a in ("data", "expert") if (n := mesh.shape[a]) > 1
    }
    self._fsdp = mesh.shape["fsdp"]
    self._tensor = mesh.shape["tensor"]
    self._bytes = jnp.dtype(cfg.dtype).itemsize
    self._L = step.L
    ways = mesh.size // self._tensor
    self._rows = step.rows / ways
    self._T = self._rows * step.L
    self._parts = step.parts
    self._S = min(step.chunk, self._T)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      self._kernel = attention.implementation(
        cfg.attention, dtype=cfg.dtype, L=step.L, G=cfg.G, H=cfg.H
      )

  # Weights of one layer and of the unembedding, on a device, D whole.

  @functools.cached_property
  def _layer_weights(self) -> float:
    counts = sizes.count_parameters(self._cfg)
    return (counts.attention + counts.mlp) / self._tensor

  @functools.cached_property
  def _head_weights(self) -> float:
    return math.ceil(self._cfg.V / self._tensor) * self._cfg.D

  @functools.cached_property
  def _qkv(self) -> float:
    """Numbers of q, k and v of a token in a layer."""
    return (self._cfg.N + 2 * self._cfg.G) * self._cfg.H / self._tensor

  @property
  def _live_head(self) -> jax.ShapeDtypeStruct | None:
    """Shape of a live teacher's unembedding."""
    return self._step.arguments.get("teacher's unembedding")

  @property
  def _live_bytes(self) -> float:
    """Bytes of it on a device, W whole."""
    live = self._live_head
    if live is None:
      return 0.0
    return live.size * live.dtype.itemsize / self._tensor

  def flops(self) -> float:
    """FLOPs of matrix products, including those computed twice.

    Attention by `xla` computes all L x L scores; a kernel computes those below
    the diagonal, and q k once more in its backward pass.
    """
    cfg, T = self._cfg, self._T
    heads = cfg.N * cfg.H / self._tensor
    layer = 2 * T * self._layer_weights
    product = 2 * T * heads * self._L  # q k, or p v.
    head = 2 * T * self._head_weights
    if self._kernel != "xla":
      product /= 2
    forward = cfg.Y * (layer + 2 * product)
    if not self._trains:
      return forward + (head if self._step.chunk else 0)
    backward = cfg.Y * (2 * layer + 4 * product)
    if self._kernel != "xla":
      backward += cfg.Y * product
    if cfg.remat == "full":
      # The result of a layer's last product is not needed again.
      down = 2 * T * cfg.F * cfg.D / self._tensor
      backward += cfg.Y * (layer - down + 2 * product)
    elif cfg.remat == "dots":
      backward += cfg.Y * 2 * product
    # A live teacher adds only its logits: no gradient flows back.
    live = 0.0
    if self._live_head is not None:
      live = 2 * T * self._live_head.size / self._tensor
    return self._parts * (forward + backward + 3 * head + live)

  def temporaries(self) -> Iterator[tuple[str, float]]:
    """(name, bytes) at the peak.

    In training the peak is the backward pass of a layer: everything kept for it
    still exists, and so do the gradients. Fractional factors were measured on
    programs for CPUs.
    """
    cfg, T, c = self._cfg, self._T, self._bytes
    V = math.ceil(cfg.V / self._tensor)
    if self._trains:
      local = sizes.count_parameters(cfg).total / (self._fsdp * self._tensor)
      gradients = local * (1 if self._parts == 1 else 2)
      # Embedding and unembedding have two before they are summed.
      gradients += 3 * self._head_weights / self._fsdp
      yield "gradients", _F32 * gradients
      kept = cfg.Y * T * c * self._kept_numbers()
      yield "activations kept for the backward pass", kept
    layer = T * c * self._layer_numbers()
    works = {"activations of a layer": layer}
    if not self._trains:
      works["logits of a chunk"] = 1.1 * _F32 * self._S * V
    if self._step.request.kind == "cache":
      # Each slot is searched for in a block of ids.
      slots = self._S * self._step.num_slots * sampling.BLOCK
      works["records"] = 3.1 * _F32 * slots
    yield max(works.items(), key=lambda work: work[1])
    yield "weights of a layer, gathered", c * self._layer_weights
    if self._fsdp > 1 and self._live_bytes:
      yield "teacher's unembedding, gathered", self._live_bytes
    if self._step.chunk and (self._fsdp > 1 or c < _F32):
      yield "unembedding, gathered", c * self._head_weights

  @property
  def _scores(self) -> float:
    """Attention scores of a token and layer; a kernel holds none."""
    is_held = self._kernel == "xla"
    return self._cfg.N * self._L / self._tensor if is_held else 0.0

  @functools.cached_property
  def _numbers(self) -> float:
    """Numbers per token in a layer: inputs and results of unfused operations.

    Residual stream and norms; q, k and v, also rotated; the result of
    attention; gate, up, their product and its parts.
    """
    cfg, t = self._cfg, self._tensor
    return 4 * cfg.D + 2 * self._qkv + cfg.N * cfg.H / t + 4 * cfg.F / t

  def _layer_numbers(self) -> float:
    """Numbers per token that exist while a layer runs."""
    if not self._trains:
      return 0.3 * self._numbers + 2.25 * self._scores
    activations, scores = {
      "none": (0.2, 1.5),
      "dots": (0.6, 3.2),
      "full": (1.5, 3.2),
    }[self._cfg.remat]
    return activations * self._numbers + scores * self._scores

  def _kept_numbers(self) -> float:
    """Numbers per token and layer that are kept for the backward pass."""
    cfg, t = self._cfg, self._tensor
    if cfg.remat == "full":
      return cfg.D
    if cfg.remat == "dots":
      return 3 * cfg.D + self._qkv + 2 * cfg.F / t
    return self._numbers + 3 * self._scores

  def output_bytes(self) -> float:
    """Bytes of outputs that do not alias an input."""
    step, cfg = self._step, self._cfg
    if step.request.kind == "teacher":
      return self._T * cfg.D * self._bytes
    if step.request.kind == "cache":
      # An id and a code for each slot; entropy, label and number of slots.
      return self._T * (5 * step.num_slots + 9)
    return 0.0

  def accessed_bytes(self) -> float:
    """Bytes read and written by each product and each chain of other steps."""
    cfg, T, c, t = self._cfg, self._T, self._bytes, self._tensor
    heads, F, D = cfg.N * cfg.H / t, cfg.F / t, cfg.D
    scores = 4 * cfg.N * self._L / t if self._kernel == "xla" else 0
    # Norms and sums, q k v, rotation, attention, output, gate and up, down.
    numbers = 8 * D + 3 * D + 3 * self._qkv + self._qkv + 2 * heads + scores
    numbers += 2 * D + 2 * F + 3 * F + F + D
    layer = T * c * numbers + c * self._layer_weights
    head = 2 * _F32 * T * math.ceil(cfg.V / t) + T * D * c
    if not self._trains:
      return cfg.Y * layer + (head if self._step.chunk else 0)
    # In the backward pass each product and each chain counts twice.
    passes = 4 + (cfg.remat == "full")
    model = self._parts * (passes * cfg.Y * layer + 2 * head)
    local = sizes.count_parameters(cfg).total / (self._fsdp * t)
    # Parameters, moments and gradients are read and written.
    return model + 8 * _F32 * local

  def exchanges(self) -> Iterator[Exchange]:
    """Collectives as rings, by the table of sharding.py.

    D -> fsdp: weights are gathered for a layer, forward and backward, their
    gradients scattered. N, G, F, V -> tensor: results of row-split products are
    summed. data: gradients are summed.
    """
    cfg, T, c = self._cfg, self._T, self._bytes
    Y, parts = cfg.Y, self._parts
    layers, head = Y * self._layer_weights, self._head_weights
    has_head = bool(self._step.chunk)
    f, t, d = self._fsdp, self._tensor, math.prod(self._copied.values())

    def one(kind, axes, runs, sent):
      return Exchange(
        kind=kind,
        axes=(axes,) if isinstance(axes, str) else axes,
        runs=round(parts * runs),
        sent_bytes=parts * sent,
        is_whole=True,
      )

    width = T * cfg.D * c  # Bytes of hidden states.
    passes = 2 if self._trains else 1
    if f > 1:
      share = (f - 1) / f
      sent = passes * c * layers + has_head * c * head + self._live_bytes
      yield one("all-gather", "fsdp", passes * 7 * Y + has_head, share * sent)
      # The look-up of the embedding, and back.
      yield one("all-to-all", "fsdp", passes, passes * share * width)
      if self._trains:
        sent = c * layers + _F32 * head
        yield one("reduce-scatter", "fsdp", 7 * Y + 1, share * sent)
    if t > 1:
      share = 2 * (t - 1) / t
      runs = 2 * Y
      if self._trains:
        runs += 2 * Y + (Y if cfg.remat == "full" else 0)
      sent = share * (runs + 1) * width
      if self._trains:
        sent += share * width  # d(loss) / d(hidden states).
      yield one("all-reduce", "tensor", runs + 1 + self._trains, sent)
    if d > 1 and self._trains:
      # The loss sums the unembedding's gradient itself.
      sent = (c * layers + 2 * _F32 * head) / f
      axes = tuple(self._copied)
      yield one("all-reduce", axes, 7 * Y + 2, 2 * (d - 1) / d * sent)
