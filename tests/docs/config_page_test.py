"""docs/config.md says what the schema says.

`python tests/docs/config_page_test.py > docs/config.md` renews the page.
"""

import dataclasses
from pathlib import Path
import textwrap

from analogjax.config import explain, schema

ROOT = Path(__file__).parents[2]
RENEW = ".venv/bin/python tests/docs/config_page_test.py > docs/config.md"

HEAD = """\
# Configuration

<!-- Written by tests/docs/config_page_test.py; renew it with
{renew} -->

One config describes one analog, and all stages read the same file. It is a
Python file with a function `get_config()` that starts from
`defaults.config(phases=(...))` and sets what differs. The
[README](../README.md#your-own-model-and-data) has an example. An unknown name
or a value of another type is refused at the line that sets it. Any field can be
[overridden](running.md#overrides) for one run. A section may also be set to the
path of a TOML file that holds it, relative to the folder of the config.

Each field has its type, its default in brackets (or `required`), its meaning,
and what is expected of its value. Fields marked (public) are in the bundle of a
release. Letters are those of the [glossary](glossary.md). The command line
prints the same for one field, and the differences between two config files or
workdirs:

```sh
analogjax config --explain=cache.tau
analogjax config --diff configs/demo.py configs/llama_8b_from_405b.py
```

The resolved config with every value is `config.json` in the workdir. Its
`origin` says where each value came from: `default`, `file`, `--config` or a
table of prices. The resolved config governs a workdir: if a default changes in
a later version, runs that have begun keep theirs.
"""

NOTES = {
  "train.<phase>": """\
Every name in `train.phases` has a section of this form beside `phases`.""",
  "data": """\
`data.arguments` and `data.held_out_arguments` belong to the pipeline and may
hold anything that JSON can; see [data](data.md).""",
  "plan.<chip>": """\
Every kind of device that has a price has a section of this form, by the name
that [a plan](plan.md#machines) gives it. `plan.prices` names a table that fills
in what the config does not set: one of those in
[analogjax/config/prices](../analogjax/config/prices/2026_11.toml), or a file of
that form.""",
  "student": """\
The sizes are its shape letters; `student.V` has to be the teacher's.""",
}


def rendered():
  """The text of docs/config.md."""
  sections = {}
  for field in schema.schema():
    section, _, name = field.path.rpartition(".")
    sections.setdefault(section, []).append(
      textwrap.fill(
        line_of(field, name),
        80,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
      )
    )
  parts = [HEAD.format(renew=RENEW)]
  for section, lines in sections.items():
    # In code, or a viewer takes <phase> for a tag.
    parts.append(f"\n## `{section}`\n\n")
    parts.append(f"{NOTES[section]}\n\n" if section in NOTES else "")
    parts.append("\n".join(lines) + "\n")
  return "".join(parts)


def line_of(field, name):
  needed = field.default is dataclasses.MISSING
  default = "required" if needed else f"`{explain.default(field)}`"
  expected = f"; {explain.bounds(field)}" if field.bounds else ""
  # Markdown would take these for markup.
  expected = expected.replace("<", "\\<").replace("*", "\\*")
  public = " (public)" if field.private is None else ""
  head = f"- `{name}`{public}: {field.type} [{default}]"
  return f"{head}: {field.meaning}{expected}."


def test_config_page_is_in_step():
  page = ROOT / "docs/config.md"
  assert page.read_text("utf-8") == rendered(), f"Renew it: {RENEW}"


if __name__ == "__main__":
  print(rendered(), end="")
