"""The floors of docs/architecture.md hold, and importing does nothing.

`python tests/layering_test.py` prints the size of each room.
"""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "analogjax"

# The floors of docs/architecture.md, the lowest first. A room imports only
# rooms of lower floors.
FLOORS = (
  {"config", "rendering", "cli"},
  {"distributed"},
  {"workdir", "data"},
  {"models", "bundle", "leaks"},
  {"cache", "demo"},
  {"run", "interop"},
  {"training", "evaluation"},
  {"planning", "fidelity", "safety"},
  {"documents"},
  {"release"},
  {"verify"},
  {"stages", "api"},
  {"main"},
  {"__main__"},
)
ROOT = {"__init__.py", "__main__.py", "main.py"}
KNOW_THE_USER = {"cli", "config", "stages", "main", "__main__"}
ENVIRONMENT = {"environ", "getenv", "putenv", "unsetenv"}

# Calls that only build a value or register a type.
HARMLESS = set(
  """
  bool cast dict enumerate float frozenset int len list max min range round set
  slice sorted str sum tuple zip
  collections.namedtuple dataclasses.field field functools.partial
  jax.custom_jvp jax.custom_vjp jax.jit jax.tree_util.register_dataclass
  logging.getLogger math.log math.sqrt np.dtype
  P PartitionSpec Path pathlib.Path Path(__file__).with_name
  json_document.Kind
  Rules str.maketrans
  Bound Private at_least between choice some_of contextvars.ContextVar
  re.compile struct.calcsize struct.Struct types.MappingProxyType
  typing.NamedTuple typing.NewType NewType typing.TypeVar TypeVar
  """.split()
)


def imports(tree, known):
  """Yields (line, dotted name) for every import, inside functions too."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield node.lineno, alias.name
    elif isinstance(node, ast.ImportFrom):
      module = "." * node.level + (node.module or "")
      for alias in node.names:
        inner = f"{module}.{alias.name}"
        is_module = module == "analogjax" or inner in known
        yield node.lineno, inner if is_module else module


def floor_of(room):
  return next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def import_problem(name, part, target):
  """Says what is wrong with module `name` of `part` importing `target`."""
  if target.startswith("."):
    return "imports are absolute here"
  root, *rest = target.split(".")
  if (name, root) == ("analogjax.data.pipeline", "absl"):
    return None  # For grain's own flags.
  if root in ("ml_collections", "absl") and part not in KNOW_THE_USER:
    return f"{root} belongs into main, config and stages"
  if root != "analogjax" or not rest:
    return None
  if part == "":
    if rest[0] == "api":
      return None  # For types; tests/api holds that it is lazy.
    return "analogjax/__init__.py imports nothing of analogjax but api"
  ours, theirs = floor_of(part), floor_of(rest[0])
  if theirs is None:
    return None  # An attribute of the package, or a room without a floor.
  if rest[0] != part:
    if theirs > ours:
      return f"{target} is on a higher floor"
    if theirs == ours:
      return f"{target} is on the same floor"
  elif part == "stages" and target not in (name, "analogjax.stages"):
    return f"{target} is another stage, and stages speak only through files"
  return None


def at_import(node):
  """Yields the nodes that run at import: no function bodies, no lambdas."""
  if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
    return
  yield node
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
    children = [*node.args.defaults, *node.args.kw_defaults]
  elif isinstance(node, ast.ClassDef):
    children = node.body
  else:
    children = ast.iter_child_nodes(node)
  for child in children:
    if child is not None:
      yield from at_import(child)


def effects(tree):
  """Yields (line, problem) for effects of an import other than definitions."""
  ours = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
  for node in at_import(tree):
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      of_literal = isinstance(node.func, ast.Attribute) and isinstance(
        node.func.value, ast.Constant
      )
      derivative = name.endswith((".defvjp", ".defjvp"))
      if not (name in HARMLESS | ours or of_literal or derivative):
        yield node.lineno, f"calls {name} at import"
    elif isinstance(node, ast.Attribute | ast.Subscript):
      if not isinstance(node.ctx, ast.Load):
        yield node.lineno, f"changes {ast.unparse(node)} at import"
    elif isinstance(node, ast.With | ast.For | ast.While | ast.Delete):
      yield node.lineno, f"runs a {type(node).__name__.lower()} at import"


def cycles(graph):
  """Yields each import cycle once, as a list of module names."""
  done, path = set(), []

  def visit(name):
    if name in path:
      yield [*path[path.index(name) :], name]
    elif name not in done:
      path.append(name)
      for target in sorted(graph.get(name, ())):
        yield from visit(target)
      done.add(path.pop())

  for name in sorted(graph):
    yield from visit(name)


def problems(sources):
  """Lists violations of the layers in {path below analogjax: source}."""
  names = {}
  for path in sources:
    parts = pathlib.PurePosixPath(path).with_suffix("").parts
    names[path] = ".".join(
      ("analogjax", *(p for p in parts if p != "__init__"))
    )
  known, graph, found = set(names.values()), {}, []
  for path, source in sorted(sources.items()):
    tree, name = ast.parse(source), names[path]
    part = [*name.split("."), ""][1]
    if "/" not in path and path not in ROOT:
      found.append(f"{path}: the root holds {', '.join(sorted(ROOT))} alone")
      continue
    if part and floor_of(part) is None:
      found.append(f"{path}: give {part} a floor in tests/layering_test.py")
      continue
    lines = list(effects(tree))
    for line, target in imports(tree, known):
      lines.append((line, import_problem(name, part, target)))
      # The root names the public face only for types, and all may import it.
      if target in known and target != name and part:
        graph.setdefault(name, set()).add(target)
    if part not in KNOW_THE_USER:
      lines += [
        (n.lineno, f"os.{alias} belongs into main, config and stages")
        for n in ast.walk(tree)
        for alias in (
          [n.attr]
          if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "os"
          else [a.name for a in n.names]
          if isinstance(n, ast.ImportFrom) and n.module == "os"
          else []
        )
        if alias in ENVIRONMENT
      ]
    lines = dict.fromkeys(lines)
    found += [f"{path}:{line}: {text}" for line, text in lines if text]
  found += ["import cycle: " + " -> ".join(c) for c in cycles(graph)]
  return found


def read_sources():
  return {
    path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8")
    for path in PACKAGE.rglob("*.py")
  }


def test_the_package_keeps_its_floors():
  sources = read_sources()
  assert "main.py" in sources
  assert not problems(sources), "\n".join(problems(sources))


@pytest.mark.parametrize(
  ("path", "source", "expected"),
  [
    ("data/a.py", "from analogjax.training import b", "higher floor"),
    ("data/a.py", "from analogjax.stages.cache import run", "higher floor"),
    ("run/a.py", "def f():\n  import analogjax.safety.b", "higher floor"),
    ("config/a.py", "import analogjax.workdir.b", "higher floor"),
    ("verify/a.py", "import analogjax.stages.cache", "higher floor"),
    ("safety/a.py", "import analogjax.fidelity.b", "same floor"),
    ("stages/train.py", "from analogjax.stages import cache", "another stage"),
    ("stages/train.py", "import analogjax.stages.cache", "another stage"),
    ("stages/train.py", "from . import cache", "absolute"),
    ("stages/train.py", "from analogjax import main", "higher floor"),
    ("utils.py", "", "the root holds"),
    ("utils/a.py", "", "give utils a floor"),
    ("__init__.py", "from analogjax import main", "imports nothing"),
    ("data/text.py", "from ml_collections import ConfigDict", "belongs into"),
    ("training/a.py", "from absl import flags", "belongs into"),
    ("models/a.py", "def f():\n  import os\n  os.environ['A']", "os.environ"),
    ("models/a.py", "def f():\n  os.getenv('A')", "os.getenv"),
    ("models/a.py", "from os import environ", "os.environ"),
    ("data/a.py", "jax.config.update('a', 1)", "calls jax.config.update"),
    ("data/a.py", "ONE = jnp.ones(())", "calls jnp.ones"),
    ("data/a.py", "def f(x=jnp.ones(())): pass", "calls jnp.ones"),
    ("data/a.py", "def f(*, x=jnp.ones(())): pass", "calls jnp.ones"),
    ("data/a.py", "class A:\n  b = open('f')", "calls open"),
    ("data/a.py", "if True:\n  print(1)", "calls print"),
    ("data/a.py", "try:\n  print(1)\nexcept E:\n  pass", "calls print"),
    ("data/a.py", "A = [print(i) for i in range(3)]", "calls print"),
    ("data/a.py", "jax.numpy.ones = None", "changes jax.numpy.ones"),
    ("stages/a.py", "os.environ['A'] = 'b'", "changes os.environ"),
    ("data/a.py", "with mesh:\n  pass", "runs a with"),
  ],
)
def test_a_breach_is_found(path, source, expected):
  others = {"stages/cache.py": "", "release/b.py": "", "fidelity/b.py": ""}
  found = problems({**others, path: source})
  assert len(found) == 1
  assert found[0].startswith(path) and expected in found[0]


def test_a_cycle_is_found_through_functions_too():
  found = problems(
    {
      "data/a.py": "from analogjax.data.b import f",
      "data/b.py": "def f():\n  from analogjax.data import c",
      "data/c.py": "import analogjax.data.a",
    }
  )
  assert found == [
    "import cycle: analogjax.data.a -> analogjax.data.b -> analogjax.data.c"
    " -> analogjax.data.a"
  ]


def test_definitions_are_no_breach():
  source = """
import dataclasses, logging, re
from analogjax.config import schema
from analogjax.data import rows
from ml_collections import ConfigDict
log = logging.getLogger(__name__)
NAMES = tuple("a b".split())
@dataclasses.dataclass(frozen=True)
class A:
  x: int = dataclasses.field(default=1)
DEFAULT = A(x=2)
@functools.partial(jax.jit, donate_argnums=0)
def f(x): return jnp.ones(3)
f.defvjp(forward, lambda r, g: g * jnp.ones(3))
def run(): return os.environ["HOME"]
if __name__ == "__main__":
  run()
"""
  assert not problems({"stages/train.py": source, "data/rows.py": ""})


def figures(sources):
  """Lines with each room's size, then the dependencies between rooms."""
  size, arrows = {}, set()
  for path, source in sources.items():
    room = path.split("/")[0] if "/" in path else "(root)"
    files, lines = size.get(room, (0, 0))
    size[room] = files + 1, lines + source.count("\n")
    for _, target in imports(ast.parse(source), set()):
      root, *rest = target.split(".")
      if root == "analogjax" and rest and "/" in path and rest[0] != room:
        arrows.add((room, rest[0]))
  for room, (files, lines) in sorted(size.items()):
    yield f"{room:12} {files:4} files {lines:6} lines"
  files, lines = (sum(x) for x in zip(*size.values(), strict=True))
  yield f"{'in all':12} {files:4} files {lines:6} lines"
  yield f"{len(size) - 1} rooms, {len(arrows)} arrows between them"


if __name__ == "__main__":
  print("\n".join(figures(read_sources())))
