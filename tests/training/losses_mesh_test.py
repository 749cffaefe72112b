"""Tests of analogjax/training/losses.py on meshes."""

import functools
import re

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest
from tpu import needs_libtpu

from analogjax.cache import batches
from analogjax.distributed import sharding
from analogjax.training import losses
from analogjax.training.divergences import Divergence

pytestmark = pytest.mark.medium

B, L, D, V, K, W = 8, 6, 16, 52, 5, 8
MESHES = {
  "alone": {},
  "data": dict(data=8),
  "fsdp": dict(fsdp=8),
  "tensor": dict(tensor=8),  # Which does not divide V.
  "all": dict(data=2, fsdp=2, tensor=2),
  "expert": dict(expert=2, fsdp=2, tensor=2),
}
KINDS = {
  "sampled": dict(),
  "tail": dict(divergence=Divergence(name="jensen_shannon")),
  "live": dict(divergence=Divergence(name="reverse_kl")),
}


def make(kind, V=V):
  rng = np.random.default_rng(0)
  head_VD = rng.normal(size=(V, D)).astype(np.float32)
  p_BLK = rng.dirichlet(np.ones(K + 1), (B, L)).astype(np.float32)
  ids_BLK = rng.permuted(np.tile(np.arange(V), (B, L, 1)), axis=-1)[..., :K]
  if kind == "sampled":
    p_BLK[..., K - 1] += p_BLK[..., K]
  weights_BL = rng.uniform(0, 2, (B, L)).astype(np.float32)
  targets = batches.Targets(
    labels_BL=rng.integers(0, V, (B, L)).astype(np.int32),
    weights_BL=weights_BL,
    teacher_weights_BL=weights_BL * rng.integers(0, 2, (B, L)),
    ids_BLK=ids_BLK.astype(np.int32),
    p_BLK=p_BLK[..., :K],
    log_tail_BL=None if kind == "sampled" else np.log(p_BLK[..., K]),
  )
  teacher = None
  if kind == "live":
    teacher = losses.Teacher(
      x_BLW=rng.normal(size=(B, L, W)).astype(np.float32),
      head_VW=rng.normal(size=(V, W)).astype(np.float32),
    )
  x_BLD = rng.normal(size=(B, L, D)).astype(np.float32)
  return x_BLD, head_VD, targets, teacher


def step(x_BLD, head_VD, targets, teacher, objective):
  """Value, sums and gradients; also the value without gradients."""
  loss = functools.partial(
    losses.distillation_loss,
    targets=targets,
    alpha=0.6,
    objective=objective,
    teacher=teacher,
  )
  alone = loss(x_BLD, head_VD)
  return jax.value_and_grad(loss, (0, 1), has_aux=True)(x_BLD, head_VD), alone


def placed(tree, mesh):
  """Rows over the mesh; heads by their names, if the mesh divides V."""
  x_BLD, head_VD, targets, teacher = tree
  rows = NamedSharding(mesh, sharding.ROWS)
  tensor = "tensor" if V % mesh.shape["tensor"] == 0 else None
  head = NamedSharding(mesh, P(tensor, "fsdp"))
  x_BLD, targets = jax.device_put((x_BLD, targets), rows)
  if teacher is not None:
    teacher = losses.Teacher(
      jax.device_put(teacher.x_BLW, rows), jax.device_put(teacher.head_VW, head)
    )
  return x_BLD, jax.device_put(head_VD, head), targets, teacher


@functools.cache
def on_mesh(kind, name):
  axes = MESHES[name]
  number = int(np.prod(list(axes.values()) or [1]))
  mesh = sharding.make_mesh(axes, jax.devices()[:number])
  objective = losses.Objective(chunk=5, z_loss=1e-3, **KINDS[kind])
  with jax.set_mesh(mesh):
    run = jax.jit(functools.partial(step, objective=objective))
    return jax.device_get(run(*placed(make(kind), mesh)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n in MESHES if n != "alone"])
def test_equal_on_every_mesh(kind, name):
  objective = losses.Objective(chunk=5, z_loss=1e-3, **KINDS[kind])
  bare = jax.jit(functools.partial(step, objective=objective))(*make(kind))
  for wanted, rtol in ((bare, 2e-5), (on_mesh(kind, "alone"), 2e-5)):
    jax.tree.map(
      lambda a, b, rtol=rtol: np.testing.assert_allclose(
        a, b, rtol=rtol, atol=2e-5
      ),
      on_mesh(kind, name),
      wanted,
    )


def shape(mesh, spec, *dims, dtype=jnp.float32):
  where = NamedSharding(mesh, spec)
  return jax.ShapeDtypeStruct(dims, dtype, sharding=where)


def compiled(mesh, rows, length, kind, V=4096, D=64, chunk=64):
  """The gradient, for a mesh, from shapes alone."""
  B = rows
  of_rows = functools.partial(shape, mesh, sharding.ROWS, B, length)
  targets = batches.Targets(
    labels_BL=of_rows(dtype=jnp.int32),
    weights_BL=of_rows(),
    teacher_weights_BL=of_rows(),
    ids_BLK=of_rows(K, dtype=jnp.int32),
    p_BLK=of_rows(K),
    log_tail_BL=None if kind == "sampled" else of_rows(),
  )
  head = functools.partial(shape, mesh, P("tensor", "fsdp"), V)
  teacher = None
  if kind == "live":
    teacher = losses.Teacher(of_rows(W, dtype=jnp.bfloat16), head(W))
  objective = losses.Objective(chunk=chunk, **KINDS[kind])

  def gradient(x_BLD, head_VD, targets, teacher):
    def loss(x_BLD, head_VD):
      return losses.distillation_loss(
        x_BLD, head_VD, targets, 0.5, objective, teacher
      )[0]

    return jax.grad(loss, (0, 1))(x_BLD, head_VD)

  out = (
    NamedSharding(mesh, sharding.ROWS),
    NamedSharding(mesh, P("tensor", "fsdp")),
  )
  with jax.set_mesh(mesh):
    return (
      jax.jit(gradient, out_shardings=out)
      .lower(of_rows(D, dtype=jnp.bfloat16), head(D), targets, teacher)
      .compile()
    )


def check_memory(mesh, kind):
  """Four numbers of tokens: each costs its hidden states, not its logits."""
  ways = mesh.size // mesh.shape["tensor"]
  tokens, found = [], []
  for rows, length in ((1, 128), (1, 256), (2, 256), (4, 256)):
    memory = compiled(mesh, rows * ways, length, kind).memory_analysis()
    tokens.append(rows * length)
    found.append(memory.temp_size_in_bytes)
  slope = np.polyfit(tokens, found, 1)[0]
  # In bytes a token of one device: d(hidden) in bfloat16 and float32, the
  # targets, and no logits, which would be 4 V / tensor.
  hidden = 2 * 64 * (2 + 4) + 4 * (2 * K + 4)
  logits = 4 * 4096 / mesh.shape["tensor"]
  assert slope < hidden, (slope, found)
  assert hidden < logits / 2
  return found[-1], slope


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [{}, dict(fsdp=2, tensor=2)], ids=str)
def test_memory_does_not_grow_with_the_logits(kind, axes):
  number = int(np.prod(list(axes.values()) or [1]))
  check_memory(sharding.make_mesh(axes, jax.devices()[:number]), kind)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_on_a_tpu(kind):
  needs_libtpu()
  topology = topologies.get_topology_desc("v5e:4x4", "tpu")
  axes = dict(data=2, fsdp=2, tensor=4)
  check_memory(sharding.make_mesh(axes, list(topology.devices)), kind)


def shapes_of(jaxpr):
  """The shape of every value in a jaxpr, loops included."""
  for eqn in jaxpr.eqns:
    for var in (*eqn.invars, *eqn.outvars):
      yield getattr(var.aval, "shape", ())
    for parameter in jax.tree.leaves(
      list(eqn.params.values()),
      is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
    ):
      inner = getattr(parameter, "jaxpr", parameter)
      if hasattr(inner, "eqns"):
        yield from shapes_of(inner)


@pytest.mark.parametrize("kind", KINDS)
def test_no_array_has_all_tokens_and_the_vocabulary(kind):
  V, chunk = 211, 8  # A prime, so that no other dimension is one.
  objective = losses.Objective(chunk=chunk, **KINDS[kind])
  closed = jax.make_jaxpr(functools.partial(step, objective=objective))(
    *make(kind, V)
  )
  found = {s for s in shapes_of(closed.jaxpr) if V in s}
  assert (chunk, V) in found
  most = max(int(np.prod(s)) for s in found)
  assert most <= V * max(chunk, D), found


def test_the_unembeddings_gradient_is_summed_once():
  """After the chunks: inside the loop only numbers per token travel."""
  mesh = sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))
  text = compiled(mesh, 8, 256, "sampled").as_text()
  shapes = re.findall(
    r"= (?:\()?f32\[([\d,]*)\]\S* (?:all-reduce|reduce-scatter)\(", text
  )
  sizes = [int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes]
  head = 4096 * 64 // 2
  of_head = [size for size in sizes if size >= head // 4]
  # Over fsdp, then over data; d(hidden) of a chunk over tensor is smaller.
  assert len(of_head) <= 2, sizes
