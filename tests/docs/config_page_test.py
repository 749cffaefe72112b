"""docs/config.md says what the schema says.

`python tests/docs/config_page_test.py > docs/config.md` renews the page.
"""

import json
from pathlib import Path
import textwrap

from analogjax.config import loading, schema

ROOT = Path(__file__).parents[2]
RENEW = ".venv/bin/python tests/docs/config_page_test.py > docs/config.md"

# The page of all fields.

HEAD = """\
# Configuration

<!-- Written by tests/docs/config_page_test.py; renew it with
{renew} -->

One config describes one analog, and all stages read the same file: Python with
a function `get_config()` that returns an `ml_collections.ConfigDict` with the
fields below. Every field has to be there; none has a default, and a name that
is not below is refused. A config may begin from another one, as that of the
[README](../README.md#your-own-model-and-data) does, and any field can be
[overridden](running.md#overrides) for one run.

Each field comes with its type, the value in
[configs/demo.py](../configs/demo.py) in brackets, and its meaning. Letters are
those of the [glossary](glossary.md).
"""

NOTES = {
  "train.<phase>": """\
Every name in `train.phases` has a section of this form beside `phases`. The
demo's values are those of `pretrain`, `control` and `distill`, in this order
where they differ.""",
  "data": """\
`data.arguments` and `data.held_out_arguments` belong to the pipeline and may
hold anything that JSON can; see [data](data.md).""",
  "plan.<chip>": """\
Every kind of device that has a price has a section of this form, by the name
that [a plan](plan.md#machines) gives it.""",
  "student": """\
The sizes are its shape letters; `student.V` has to be the teacher's.""",
}


def rendered():
  """The text of docs/config.md."""
  cfg = loading.load(ROOT / "configs/demo.py", []).to_dict()
  sections = {}
  for field in schema.schema():
    section, _, name = field.path.rpartition(".")
    line = f"- `{name}`: {field.type} [{demo_value(cfg, field.path)}]:"
    wrapped = textwrap.fill(
      f"{line} {field.meaning}.",
      80,
      subsequent_indent="  ",
      break_long_words=False,
      break_on_hyphens=False,
    )
    sections.setdefault(section, []).append(wrapped)
  parts = [HEAD.format(renew=RENEW)]
  for section, lines in sections.items():
    # In code, or a viewer takes <phase> for a tag.
    parts.append(f"\n## `{section}`\n\n")
    parts.append(f"{NOTES[section]}\n\n" if section in NOTES else "")
    parts.append("\n".join(lines) + "\n")
  return "".join(parts)


def demo_value(cfg, path):
  """A field's value in the demo; of phases each one that is different."""
  if "<chip>" in path:
    return "see the file"
  phases = cfg["train"]["phases"] if "<phase>" in path else ("",)
  values = []
  for phase in phases:
    node = cfg
    for name in path.replace("<phase>", phase).split("."):
      if node is None:
        break  # A section that the demo does not have.
      node = node[name]
    if isinstance(node, dict):
      values.append("see the file")
    elif isinstance(node, tuple):
      values.append(f"`{','.join(node)}`")
    elif node is None:
      values.append("none")
    else:
      values.append(f"`{json.dumps(node)}`")
  return ", ".join(values if len(set(values)) > 1 else values[:1])


def test_config_page_is_in_step():
  page = ROOT / "docs/config.md"
  assert page.read_text("utf-8") == rendered(), f"Renew it: {RENEW}"


if __name__ == "__main__":
  print(rendered(), end="")
