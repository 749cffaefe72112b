"""Every test runs on eight simulated CPU devices, and none uses the network.

This must run before the first array: a device count cannot change after it.
"""

import atexit
import collections
import os
import shutil
import tempfile

# Through the environment too, for the processes that tests start. A test marked
# gpu or tpu runs where ANALOGJAX_TEST_PLATFORM names its platform.
PLATFORM = os.environ.get("ANALOGJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = PLATFORM
os.environ["HF_HUB_OFFLINE"] = "1"

# Most of the time goes into compiling, and many tests and the processes that
# they start need the same tiny programs. One folder per worker: jax writes an
# entry in place, so that another worker could read half of it.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
if kept := os.environ.get("ANALOGJAX_TEST_COMPILED"):
  COMPILED = os.path.join(os.path.abspath(kept), WORKER)
else:
  COMPILED = tempfile.mkdtemp(prefix="analogjax-compiled-")
  atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example compiles, so no deadline; the same examples every time, so
# that a failure belongs to the change that caused it.
hypothesis.settings.register_profile(
  "analogjax", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("analogjax")


def pytest_collection_modifyitems(items):
  # A file is one worker's: where long ones come last, the other waits.
  slow = collections.Counter(
    item.path for item in items if item.get_closest_marker("slow")
  )
  items.sort(key=lambda item: -slow[item.path])
  for item in items:
    for marker, platform in (("gpu", "cuda"), ("tpu", "tpu")):
      if item.get_closest_marker(marker) and platform != PLATFORM:
        reason = f"needs ANALOGJAX_TEST_PLATFORM={platform} and such a device"
        item.add_marker(pytest.mark.skip(reason=reason))
