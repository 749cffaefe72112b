"""The tiny pair of tests/kit/tiny_pair.py, and models trained with it."""

import importlib
import os
from pathlib import Path

import jax
import pytest
import tiny_pair

from analogjax import main


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
  compiled = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  return tiny_pair.make_tiny(tmp_path_factory.mktemp("tiny"), compiled)


@pytest.fixture(scope="session")
def training(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("training")
  tiny_pair.write_lab(folder, "lab", num_rows=44)
  workdir = folder / "cached"
  compiled = jax.config.jax_compilation_cache_dir
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(folder)
    patch.setenv("ANALOGJAX_COMPILATION_CACHE", str(tiny.compilation_cache))
    rows = importlib.import_module("lab_rows")
    lab = tiny_pair.Lab(tiny, folder, workdir, rows)
    assert main.main(lab.arguments("cache", workdir)) == 0
    yield lab
  jax.config.update("jax_compilation_cache_dir", compiled)


@pytest.fixture(scope="session")
def straight(training, tmp_path_factory):
  """By source: a workdir that was trained without a stop, and its data."""
  found = {}
  for name, values in training.sources.items():
    workdir = tmp_path_factory.mktemp("straight") / name
    found[name] = workdir, training.train(workdir, *values)
  return found
