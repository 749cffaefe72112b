"""Every test runs on eight simulated CPU devices, and none uses the network.

This must run before the first array: a device count cannot change after it.
"""

import collections
import os
from pathlib import Path
import shutil

# Through the environment too, for the processes that tests start. A test marked
# gpu or tpu runs where ANALOGJAX_TEST_PLATFORM names its platform.
PLATFORM = os.environ.get("ANALOGJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = PLATFORM
os.environ["HF_HUB_OFFLINE"] = "1"
# libtpu compiles for absent TPUs: it need not look for one, and each worker has
# its own libtpu.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

# Most of the time goes into compiling, and many tests and the processes that
# they start need the same tiny programs. One folder serves all workers and is
# kept for the next run. jax writes an entry in place with one system call, so a
# reader can meet an empty or a cut file: jax then warns and compiles.
COMPILED = Path(
  os.environ.get("ANALOGJAX_TEST_COMPILED")
  or Path(__file__).parents[1] / "build" / "compiled"
).absolute()
MAX_COMPILED_BYTES = 2 << 30
UNREADABLE = "ignore:Error reading persistent compilation cache entry"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["PYTHONWARNINGS"] = UNREADABLE  # Their stderr is compared.
# Almost all tests compile far longer than they run: without most optimizations
# they take 40 % less. The fixture `optimized` is for those that measure what is
# compiled; ANALOGJAX_TEST_OPTIMIZED=1 is for all.
FAST = PLATFORM == "cpu" and not os.environ.get("ANALOGJAX_TEST_OPTIMIZED")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(FAST))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from analogjax.distributed import sharding  # noqa: E402

jax.config.update("jax_platforms", PLATFORM)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example compiles, so no deadline; the same examples every time, so
# that a failure belongs to the change that caused it.
hypothesis.settings.register_profile(
  "analogjax", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("analogjax")


@pytest.fixture
def optimized():
  """Programs are compiled as users compile them."""
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", FAST)


@pytest.fixture(scope="session")
def one_device():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="session")
def many_devices():
  """Rows, widths and heads are all split."""
  return sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))


def tidy_compiled(folder: Path, max_bytes: int = MAX_COMPILED_BYTES) -> None:
  """Removes compiled programs left empty by a killed process, or too many."""
  sizes = {path: path.stat().st_size for path in folder.glob("*")}
  if sum(sizes.values()) > max_bytes:
    shutil.rmtree(folder)  # They are of many versions of the code.
    return
  for path, size in sizes.items():
    if size == 0:
      path.unlink()


def pytest_configure(config):
  config.addinivalue_line("filterwarnings", UNREADABLE)
  if not hasattr(config, "workerinput"):  # One process, before the workers.
    tidy_compiled(COMPILED)


def pytest_collection_modifyitems(items):
  # A file is one worker's: where long ones come last, the other waits.
  long = collections.Counter(
    item.path
    for item in items
    for name in ("medium", "slow")
    if item.get_closest_marker(name)
  )
  items.sort(key=lambda item: -long[item.path])
  for item in items:
    for marker, platform in (("gpu", "cuda"), ("tpu", "tpu")):
      if item.get_closest_marker(marker) and platform != PLATFORM:
        reason = f"needs ANALOGJAX_TEST_PLATFORM={platform} and such a device"
        item.add_marker(pytest.mark.skip(reason=reason))
