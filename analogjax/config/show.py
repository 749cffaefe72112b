"""The command `config`: shows a config, explains its fields, compares two."""

from collections.abc import Sequence
import json
from pathlib import Path

from analogjax.config import explain as explain_lib, loading


def lines(
  config: str | None,
  workdir: Path | None,
  overrides: Sequence[tuple[str, str]] = (),
  *,
  explain: str = "",
  diff: Sequence[str] = (),
) -> list[str]:
  """The output of the command.

  Args:
    config: a config file; None: the config that `workdir` keeps.
    workdir: of a run; with `config`, one whose defaults hold.
    explain: a field or a section to explain.
    diff: two config files or workdirs to compare.

  Raises:
    ValueError: names the file or the field.
  """
  if explain:
    found = explain_lib.find(explain)
    return "\n\n".join(map(explain_lib.explain, found)).splitlines()
  if diff:
    first, second = (
      loading.read_resolved(Path(name))
      if Path(name).is_dir()
      else loading.load(name, ())
      for name in diff
    )
    changed = loading.differences(first.to_dict(), second.to_dict())
    return changed or ["no differences"]
  if config is not None:
    cfg, origin, _ = loading.resolve(config, overrides, workdir)
  else:
    assert workdir is not None
    cfg, origin = loading.read_resolved(workdir), loading.saved_origin(workdir)
  values = loading.leaves(json.loads(json.dumps(cfg.to_dict())))
  return [
    f"{name} = {json.dumps(value)}{_from(name, origin)}"
    for name, value in values.items()
  ]


def _from(name: str, origin: dict[str, str]) -> str:
  """Origin of a value; free-form fields have one origin as a whole."""
  while name and name not in origin:
    name = name.rpartition(".")[0]
  return f"  ({origin[name]})" if name else ""
