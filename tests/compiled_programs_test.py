"""jax recompiles unreadable cached programs, as tests/conftest.py assumes."""

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest


def compute():
  return jax.jit(lambda x: 3 * x + 1)(2.0)


@pytest.fixture
def folder(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  compilation_cache.reset_cache()
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  yield tmp_path
  compilation_cache.reset_cache()
  jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_a_program_that_was_cut_is_compiled_again(folder, part):
  assert compute() == 7
  paths = list(folder.glob("*-cache"))
  assert paths
  for path in paths:
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
  with pytest.warns(UserWarning, match="^Error reading persistent compilation"):
    assert compute() == 7
