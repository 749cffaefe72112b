"""Lets each process of a run cache its compiled programs; Python imports this.

Only process 0 writes jax's cache of compiled programs, and on CPUs the others
use different keys: they would compile everything again in each test, which
takes four fifths of a run of two tiny processes.
"""

import importlib.abc
import importlib.util
import sys

_MODULE = "jax._src.compiler"


class _Finder(importlib.abc.MetaPathFinder):
  """Changes jax's module as it is imported: not all processes need jax."""

  def find_spec(self, fullname, path, target=None):
    if fullname != _MODULE:
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(fullname)
    if spec is not None and spec.loader is not None:
      execute = spec.loader.exec_module

      def execute_and_change(module):
        execute(module)
        _let_all_write(module)

      spec.loader.exec_module = execute_and_change
    return spec


def _let_all_write(compiler):
  """Pretends to be process 0 of `jax.distributed` while an entry is written."""
  write = compiler._cache_write

  def write_as_first(*args, **kwargs):
    state = compiler.distributed.global_state
    me, state.process_id = state.process_id, 0
    try:
      write(*args, **kwargs)
    finally:
      state.process_id = me

  compiler._cache_write = write_as_first


sys.meta_path.insert(0, _Finder())
