"""Tests for analogjax/planning/search.py."""

import dataclasses

import pytest

from analogjax.planning import formulas, memory, search, topologies


@pytest.fixture
def setting(load, smollm, count):
  """(topology, overrides) -> sections, topology, count."""

  def make(name, *overrides, memory=None, count=count):
    topology = topologies.parse(name)
    if memory is not None:
      chip = dataclasses.replace(topology.chip, memory_bytes=memory)
      topology = dataclasses.replace(topology, chip=chip)
    # Training takes most by far.
    fixed = ("plan.memory_fraction=1", "data.L=1024", "cache.chunk=16")
    sections = load(*fixed, *overrides)
    return sections, topology, lambda s: count(s, smollm, topology)

  return make


def run(setting, smollm, name, *overrides, make=None, **more):
  sections, topology, count = setting(name, *overrides, **more)
  found = search.search(sections, smollm, topology, count=count, make=make)
  return found, sections, topology, count


def all_configs(sections, smollm, topology):
  """Every allowed mesh, remat and number of parts, by brute force."""
  for mesh in topologies.meshes(topology):
    for remat in ("none", "dots", "full"):
      for parts in (1, 2, 4, 8, 16, 32):
        changes = {f"mesh.{axis}": n for axis, n in mesh.items()}
        changes["student.remat"] = remat
        for name in sections.train.phases:
          changes[f"train.{name}.microbatches"] = parts
        changed = memory.with_changes(sections, changes)
        if not search.closed_form.problems(changed, smollm, mesh):
          yield changed


@pytest.fixture
def roomy(setting, smollm):
  """Bytes of the fastest config if there is room for all."""
  return run(setting, smollm, "gpu:h100:8")[0].best.memory_bytes


@pytest.mark.parametrize("part", [1, 0.9, 0.6])
def test_the_best_is_the_fastest_of_all_that_fit(setting, smollm, roomy, part):
  memory = part * roomy
  found, sections, topology, count = run(
    setting, smollm, "gpu:h100:8", memory=memory
  )
  times = {}
  for changed in all_configs(sections, smollm, topology):
    programs = count(changed)
    if all(program.memory_bytes <= memory for program in programs):
      seconds = search.run_seconds(changed, smollm, topology, programs)
      times[seconds] = changed
  best = found.best
  assert best.fits and best.memory_bytes <= memory
  assert best.seconds == pytest.approx(min(times))
  assert found.trials == (best,)


def test_less_memory_is_never_faster(setting, smollm, roomy):
  best = [
    run(setting, smollm, "gpu:h100:8", memory=part * roomy)[0].best
    for part in (1, 0.9)
  ]
  seconds = [one.seconds for one in best]
  assert seconds == sorted(seconds)
  assert best[0].changes != best[1].changes


@pytest.mark.parametrize("factor", [1.5, 2.5])
def test_what_the_compiler_refuses_is_not_proposed(
  setting, smollm, roomy, factor
):
  """A compiler that needs a multiple of the closed form's count."""
  memory = 1.2 * roomy
  sections, topology, quick = setting("gpu:h100:8", memory=memory)

  def count(changed):
    # Parts that cost, so that other meshes would be faster, but as large.
    parts = changed.train.phase["distill"].microbatches
    return [
      dataclasses.replace(p, executed_flops=parts * p.executed_flops)
      for p in quick(changed)
    ]

  def compiled(changed):
    return [
      dataclasses.replace(
        program,
        how="compiled",
        code_bytes=(factor - 1) * program.memory_bytes,
      )
      for program in count(changed)
    ]

  found = search.search(sections, smollm, topology, count=count, make=compiled)
  first, *others = found.trials
  assert not first.fits and first.memory_bytes > memory
  assert "train.distill: " in first.said
  assert f"of {memory / 1e9:.1f} GB" in first.said
  assert found.best is others[-1] and found.best.how == "compiled"
  assert found.best.memory_bytes <= memory
  assert first.seconds is None
  # The first time told by how much: one more was enough.
  assert len(found.trials) == 2


def test_a_compiler_that_says_no_number(setting, smollm):
  sections, topology, count = setting("gpu:h100:8", memory=0.8e9)

  def refusing(changed):
    return [
      dataclasses.replace(p, too_large="out of memory\nmore")
      for p in count(changed)
    ]

  found = search.search(
    sections, smollm, topology, count=count, make=refusing, most=3
  )
  assert found.best is None and len(found.trials) == 3
  assert all("train.distill: out of memory" in t.said for t in found.trials)
  assert "more" not in found.trials[0].said
  changes = [tuple(trial.changes.items()) for trial in found.trials]
  assert len(set(changes)) == 3


def test_nothing_fits(setting, smollm):
  found = run(setting, smollm, "gpu:h100:8", memory=1e6)[0]
  assert found.best is None and found.trials == () and found.fit == 0
  assert found.counted > 10


def test_a_closed_form_that_is_too_high_hides_nothing(setting, smollm, roomy):
  """A compiler that needs half of the count."""
  memory = 0.3 * roomy
  sections, topology, count = setting("gpu:h100:8", memory=memory)

  def compiled(changed):
    return [
      dataclasses.replace(
        program, how="compiled", code_bytes=-program.memory_bytes / 2
      )
      for program in count(changed)
    ]

  found = search.search(sections, smollm, topology, count=count, make=compiled)
  assert found.fit == 0 and len(found.trials) == 1
  assert found.best.memory_bytes <= memory and found.best.how == "compiled"
  # The smallest that there is.
  sizes = [
    max(p.memory_bytes for p in count(changed))
    for changed in all_configs(sections, smollm, topology)
  ]
  assert found.best.memory_bytes == min(sizes) / 2


def test_no_mesh_can_share_it_out(setting, smollm):
  with pytest.raises(ValueError) as info:
    run(setting, smollm, "gpu:h100:64")
  assert str(info.value).startswith("mesh.tensor: 2 does not divide N=9")
  assert "No mesh of gpu:h100:64 can share this config out" in str(info.value)


@pytest.mark.parametrize("name", ["2*v5e:1x1", "gpu:h100:2"])
def test_with_the_counts_that_the_command_uses(setting, smollm, name):
  found, sections, topology, _ = run(
    setting, smollm, name, "data.L=256", count=formulas.count_programs
  )
  changed = memory.with_changes(sections, found.best.changes)
  mesh = dataclasses.asdict(changed.mesh)
  assert topologies.mesh_axes(mesh, topology) == mesh
  assert found.best.how == "counted"
