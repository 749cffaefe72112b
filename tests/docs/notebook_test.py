"""docs/notebook.ipynb runs from top to bottom, and is small.

`python tests/docs/notebook_test.py` runs it and renews the outputs in it.
"""

import ast
import base64
import contextlib
import io
import json
import os
from pathlib import Path
import tempfile

from matplotlib import pyplot
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs/notebook.ipynb"


def code_cells(notebook):
  return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook):
  """Runs the code cells in order; returns the outputs of each, as stored."""
  names, found = {}, []
  for number, cell in enumerate(code_cells(notebook), 1):
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
      place = f"cell {number}"
      exec(compile(ast.Module(body, []), place, "exec"), names)
      if last is not None:
        value = eval(compile(ast.Expression(last.value), place, "eval"), names)
    found.append([*_outputs(printed.getvalue(), value, number)])
  return found


def _outputs(text, value, number):
  if text:
    lines = text.splitlines(keepends=True)
    yield {"name": "stdout", "output_type": "stream", "text": lines}
  data = {}
  if pyplot.get_fignums():
    picture = io.BytesIO()
    pyplot.savefig(picture, dpi=60, metadata={"Software": None})
    pyplot.close("all")
    data["image/png"] = base64.b64encode(picture.getvalue()).decode()
    value = None
  if value is not None:
    data["text/plain"] = repr(value).splitlines(keepends=True)
  if data:
    yield {
      "data": data,
      "execution_count": number,
      "metadata": {},
      "output_type": "execute_result",
    }


@pytest.mark.medium
def test_the_notebook_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(pyplot, "show", lambda: None)
  notebook = json.loads(NOTEBOOK.read_text("utf-8"))
  found = run(notebook)
  kinds = [[sorted(o.get("data", "text")) for o in cell] for cell in found]
  stored = [
    [sorted(o.get("data", "text")) for o in cell["outputs"]]
    for cell in code_cells(notebook)
  ]
  assert kinds == stored


def test_the_notebook_is_small_and_has_its_outputs():
  text = NOTEBOOK.read_text("utf-8")
  notebook = json.loads(text)
  cells = code_cells(notebook)
  lines = [x.rstrip() for cell in cells for x in cell["source"]]
  code = [x for x in lines if x and not x.startswith(("import", "from"))]
  assert len(code) <= 55 and max(map(len, lines)) <= 80
  assert len(text) < 100_000 and "image/png" in text
  assert [cell["execution_count"] for cell in cells] == [
    *range(1, len(cells) + 1)
  ]
  assert "Traceback" not in text and os.sep + "tmp" not in text


def main():
  notebook = json.loads(NOTEBOOK.read_text("utf-8"))
  with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
    outputs = run(notebook)
  for number, (cell, found) in enumerate(
    zip(code_cells(notebook), outputs, strict=True), 1
  ):
    cell["outputs"], cell["execution_count"] = found, number
  text = json.dumps(notebook, indent=1, ensure_ascii=False)
  NOTEBOOK.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
  main()
