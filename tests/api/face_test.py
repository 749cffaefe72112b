"""Tests for analogjax/__init__.py: the public face."""

import doctest
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import analogjax as aj

LAZY = """
import sys
import analogjax as aj
heavy = {"jax", "numpy", "flax", "tensorstore"} & set(sys.modules)
print(sum(name.startswith("analogjax.") for name in sys.modules), *heavy)
aj.read_fidelity
print("analogjax.api.results" in sys.modules, "read_fidelity" in vars(aj))
"""


def test_importing_it_imports_nothing_else():
  done = subprocess.run(
    [sys.executable, "-c", LAZY], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == ["0", "True", "True"]


def test_every_public_name_is_there_and_explained():
  assert set(aj.__all__) <= set(dir(aj))
  names = [name for module in aj._FACE.values() for name in module]
  assert sorted(names) == list(aj.__all__)
  for name in aj.__all__:
    value = getattr(aj, name)
    assert value.__name__ == name and value.__doc__
    assert value.__module__.startswith("analogjax.api.")


def test_an_unknown_name_is_refused():
  with pytest.raises(AttributeError, match="no attribute 'opencache'"):
    aj.opencache  # noqa: B018
  assert not hasattr(aj, "__wrapped__")


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
  "name", [name for name in aj.__all__ if name[0].islower()]
)
def test_the_example_of_its_docstring_runs(name):
  found = doctest.DocTestFinder(recurse=False).find(
    getattr(aj, name), name, globs=dict(aj=aj, jax=jax, jnp=jnp, np=np)
  )
  (example,) = found
  assert len(example.examples) > 1
  failed, _ = doctest.DocTestRunner().run(example)
  assert not failed
