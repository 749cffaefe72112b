"""Checks of a workdir, however often its run was killed.

It is compared with workdirs of undisturbed runs.
"""

import dataclasses
import json
import math
import re

import durability
from durability import Damage
import jax

from analogjax.cache import damage as cache_check, logit_cache
from analogjax.config import loading, schema
from analogjax.distributed import sharding
from analogjax.models import decoder
from analogjax.run import identity
from analogjax.run.run import Run
from analogjax.training import optimizer, steps
from analogjax.workdir import checkpoints, ledger, metrics

# Texts that no process may print, whatever happens to the others.
_UNWANTED = re.compile(
  r"^.*(?:Traceback|damaged|IS NOT SAVED|Fatal Python error).*$", re.M
)
# Losses where the number of processes changed on the way.
TOLERANCE = 1e-3


def read_sections(arguments):
  """The config of a command line, as the stages have it."""
  flags = dict(a.removeprefix("--").split("=", 1) for a in arguments[1:])
  file = flags.pop("config")
  values = [
    (name.removeprefix("config."), text)
    for name, text in flags.items()
    if name.startswith("config.")
  ]
  return schema.to_sections(loading.load(file, values))


def curve(workdir, phase):
  """The records of a phase without speeds, which differ between runs."""
  return [
    record
    for record in metrics.read(workdir / "train" / phase)
    if "speed/tokens_per_second" not in record
  ]


def last_step(workdir, phase):
  """The last step in the metrics of a phase; 0: none."""
  steps_done = [r["step"] for r in metrics.read(workdir / "train" / phase)]
  return max(steps_done, default=0)


def names(workdir):
  """Names of the files and folders, down to the folders of the phases."""
  found = [*workdir.iterdir(), *workdir.glob("train/*/*")]
  return {str(path.relative_to(workdir)) for path in found}


def unwanted(text):
  """Lines that should not be in a process's output."""
  return [line[:300] for line in _UNWANTED.findall(text)]


def largest_difference(found, wanted):
  """The largest |a - b| / max(|b|, 1) of two values of the same form.

  Raises:
    Damage: they differ in more than numbers; says where.
  """
  if isinstance(wanted, float) and isinstance(found, float):
    if math.isnan(found) or math.isnan(wanted):
      return math.inf
    return abs(found - wanted) / max(abs(wanted), 1.0)
  if isinstance(wanted, dict) and isinstance(found, dict):
    pairs = [(found.get(key), wanted.get(key)) for key in found | wanted]
  elif isinstance(wanted, list) and isinstance(found, list):
    if len(found) != len(wanted):
      raise Damage(f"{len(found)} values instead of {len(wanted)}")
    pairs = list(zip(found, wanted, strict=True))
  elif found == wanted:
    return 0.0
  else:
    raise Damage(f"{str(found)[:200]} instead of {str(wanted)[:200]}")
  return max((largest_difference(a, b) for a, b in pairs), default=0.0)


def metrics_of(models):
  """Scores of each model over all tokens: name -> metric -> value."""
  return {
    name: {key: x["value"] for key, x in model["metrics"].items()}
    for name, model in models.items()
  }


class Undisturbed:
  """The expected results of a run."""

  def __init__(self, workdir, phases):
    self.caches = durability.Undisturbed(workdir)
    for name in durability.CACHES:
      cache = logit_cache.open_cache(workdir / name)
      if any(cache_check.damage(cache, part) for part in cache.objects()):
        raise Damage(f"{workdir / name} is damaged")
    self.names = names(workdir)
    self.curves = {phase: curve(workdir, phase) for phase in phases}
    self.export = _read(workdir / "export.json")["files"]
    self.output = _read(workdir / "fidelity.json")["output"]["models"]


@dataclasses.dataclass
class Seen:
  """Committed results when a workdir was last examined."""

  rows: dict = dataclasses.field(default_factory=dict)  # By cache.
  newest: dict = dataclasses.field(default_factory=dict)  # Step, by phase.


class Inspector:
  """Examines workdirs of one config, between two starts and at the end.

  Attributes:
    rows: number of rows read and compared.
    restored: number of checkpoints restored.
    largest_difference: of any loss from the undisturbed one, relative, if the
      number of processes changed.
  """

  def __init__(self, arguments):
    self._sections = read_sections(arguments)
    self.phases = self._sections.train.phases
    self._mesh = sharding.make_mesh({}, devices=jax.devices()[:1])
    self._abstract = {name: self._state(name) for name in self.phases}
    self._known = set()  # Checkpoints that were restored, as they are.
    self.rows, self.restored = 0, 0
    self.largest_difference = 0.0

  def num_steps(self, phase):
    return self._sections.train.phase[phase].num_steps

  def _state(self, name):
    phase = self._sections.train.phase[name]
    tx = optimizer.make_optimizer(phase.optimizer, phase.num_steps)

    def init():
      cfg = identity.student_config(self._sections)
      params = decoder.init_parameters(cfg, 0)
      step = jax.numpy.zeros((), "int32")
      return steps.TrainState(
        step=step, params=params, opt_state=tx.init(params)
      )

    return jax.eval_shape(init)

  def look(self, workdir, wanted, seen, *, exact):
    """Examines the committed results.

    Args:
      workdir: of a run that was killed, or has ended.
      wanted: an Undisturbed.
      seen: the previous result of this method; Seen() at first.
      exact: losses have to equal those of `wanted`, not only be near them.

    Raises:
      Damage: something committed is gone, unreadable or changed.
    """
    rows, _ = wanted.caches.check(workdir, seen.rows)
    self.rows += sum(int(done.sum()) for done in rows.values())
    newest = {}
    for phase in self.phases:
      newest[phase] = max(self._restore_all(workdir, phase), default=0)
      before = seen.newest.get(phase, 0)
      if newest[phase] < before:
        raise Damage(
          f"{workdir}: of phase {phase}, step {before} was committed before,"
          f" now {newest[phase]} is the newest"
        )
      self._check_curve(workdir, phase, wanted, newest[phase], exact)
    for part in (workdir / "export").glob("*"):
      self._check_export(part, wanted, exact)
    return Seen(rows, newest)

  def _restore_all(self, workdir, phase):
    """Restores all listed steps of a phase."""
    place = Run(self._sections, workdir).checkpoint_place(phase)
    if not place.is_dir():
      return []
    saved = checkpoints.Checkpoints(place, keep=None)  # Touches nothing.
    try:
      for step in saved.steps():
        about = json.dumps(saved.about(step), sort_keys=True)
        inode = (place / str(step)).stat().st_ino
        if (place, step, inode, about) in self._known:
          continue
        abstract = self._abstract[phase]
        state = saved.restore(
          step, abstract, sharding.state_shardings(abstract, self._mesh)
        )
        if int(state.step) != step:
          raise Damage(f"{place}: step {step} holds step {int(state.step)}")
        self._known.add((place, step, inode, about))
        self.restored += 1
      return saved.steps()
    except ValueError as error:
      raise Damage(f"{place}: {error}") from error
    finally:
      saved.close()

  def _check_curve(self, workdir, phase, wanted, newest, exact):
    """Each step once, in order, with its values, at least up to `newest`."""
    found, whole = curve(workdir, phase), wanted.curves[phase]
    committed = 0
    if newest:
      # A stop puts an evaluation off to the next start.
      committed = sum(
        r["step"] < newest + ("held_out/accuracy" not in r) for r in whole
      )
    where = f"{workdir}: metrics of {phase}"
    places = [(r["step"], sorted(r)) for r in found]
    expected = [(r["step"], sorted(r)) for r in whole]
    if places != expected[: len(places)] or len(places) < committed:
      at = [a == b for a, b in zip(places, expected, strict=False)]
      first = at.index(False) if False in at else len(at)
      raise Damage(
        f"{where}: record {first} is {places[first : first + 1]} instead of"
        f" {expected[first : first + 1]}; step {newest} is committed"
      )
    self._compare(where, found, whole[: len(found)], exact)

  def _compare(self, where, found, wanted, exact):
    try:
      difference = largest_difference(found, wanted)
    except Damage as damage:
      raise Damage(f"{where}: {damage}") from damage
    if difference > (0 if exact else TOLERANCE):
      raise Damage(f"{where}: differs by {difference:.3g} (relative)")
    self.largest_difference = max(self.largest_difference, difference)

  def _check_export(self, path, wanted, exact):
    """Checks that an export is whole or absent."""
    if path.name not in wanted.export:
      raise Damage(f"{path}: no export has this file")
    same = durability.digest(path).hex() == wanted.export[path.name]
    if exact and not same:
      raise Damage(f"{path}: not the undisturbed one")

  def finished(self, workdir, wanted, seen, *, exact, seconds, done_again):
    """Checks a run that ended; returns its goodput by phase.

    Args:
      wanted: an Undisturbed.
      seen: from the last `look`.
      exact: bits have to be those of `wanted`, not only values.
      seconds: total of all its starts.
      done_again: of each phase, (steps that kills lost, kills).

    Raises:
      Damage: its results differ from those of the undisturbed run.
    """
    self.look(workdir, wanted, seen, exact=exact)
    wanted.caches.compare(workdir)
    for phase in self.phases:
      found, whole = len(curve(workdir, phase)), len(wanted.curves[phase])
      if found != whole:
        raise Damage(f"{workdir}: {found} records of {phase}, not {whole}")
    differs = names(workdir) ^ wanted.names
    if differs:
      raise Damage(f"{workdir}: {sorted(differs)} are only in one of the runs")
    export = _read(workdir / "export.json")["files"]
    if export.keys() != wanted.export.keys():
      raise Damage(f"{workdir}: exported {sorted(export)}")
    if exact and export != wanted.export:
      raise Damage(f"{workdir}: exported other bytes")
    for name, digest in export.items():
      if durability.digest(workdir / "export" / name).hex() != digest:
        raise Damage(f"{workdir}: export.json has another digest of {name}")
    output = _read(workdir / "fidelity.json")["output"]["models"]
    wanted_output = wanted.output
    if not exact:
      # Rounding may move a token to another bin, or change its likeliest id.
      output, wanted_output = metrics_of(output), metrics_of(wanted_output)
    self._compare(f"{workdir}: fidelity", output, wanted_output, exact)
    return self._check_ledger(workdir, seconds, done_again)

  def _check_ledger(self, workdir, seconds, done_again):
    spent, goodput = ledger.totals(workdir), ledger.goodput(workdir)
    total = sum(fields["seconds"] for fields in spent.values())
    if total > seconds:
      raise Damage(f"{workdir}: the ledger has {total} s of {seconds:.1f} s")
    L, cache = self._sections.data.L, self._sections.cache
    rows = spent["cache"]["tokens"] / L
    if rows > cache.num_rows + cache.held_out_rows:
      raise Damage(f"{workdir}: the ledger has {rows} rows; some done twice")
    for phase in self.phases:
      fields = goodput[f"train/{phase}"]
      where = f"{workdir}: goodput of {phase}, {fields}"
      if min(fields.values()) < 0 or fields["productive"] <= 0:
        raise Damage(f"{where}: nothing is negative, and some is productive")
      inside = sum(v for k, v in fields.items() if k != "down")
      taken = spent[f"train/{phase}"]["seconds"]
      # Rounded in each entry, and cut off where a run was killed in a step.
      if abs(inside - taken) > 0.01 * taken + 0.02 * (1 + done_again[phase][1]):
        raise Damage(f"{where}: adds up to {inside:.2f} s, not {taken:.2f} s")
      self._check_lost(where, phase, spent, fields, *done_again[phase])
    return goodput

  def _check_lost(self, where, phase, spent, fields, lost, kills):
    """Checks that the ledger has exactly the needed and the lost steps."""
    train = self._sections.train.phase[phase]
    tokens = train.batch_rows * self._sections.data.L
    again = spent[f"train/{phase}"]["tokens"] / tokens - train.num_steps
    # A kill may fall between a step's record and its entry.
    if not lost - kills <= again <= lost:
      raise Damage(
        f"{where}: {again} steps again; {lost} lost in {kills} kills"
      )
    if again > 0 and fields.get("lost", 0) <= 0:
      raise Damage(f"{where}: {again} steps were lost, and no time")


def _read(path):
  return json.loads(path.read_text(encoding="utf-8"))
