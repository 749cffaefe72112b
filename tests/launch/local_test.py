"""Tests for launch/local.py: what it starts, restarts and stops."""

import os
import signal
import time

import pytest

LINE = ["--config=a.py", "--workdir=b"]


@pytest.fixture
def local(kit, probe):
  """Runs it with the probe as analogjax; returns its output."""

  def run(*options, plan="0", code=0, **environment):
    _, err = kit.launch(
      "local.py",
      *("--processes=2", "--pause=0", *options, "--", *LINE),
      python=probe.folder / "python",
      code=code,
      env=os.environ | {"PROBE": plan} | environment,
    )
    return err

  return run


def test_each_process_knows_which_of_how_many_it_is(local, probe):
  local("--gpus-per-process=2", CUDA_VISIBLE_DEVICES="1,3,5,6,7")
  first, second = (said["environment"] for said in probe.said().values())
  assert first.pop("ANALOGJAX_COORDINATOR").startswith("localhost:")
  assert first == {
    "ANALOGJAX_NUM_PROCESSES": "2",
    "ANALOGJAX_PROCESS_ID": "0",
    "CUDA_VISIBLE_DEVICES": "1,3",
  }
  assert second["ANALOGJAX_PROCESS_ID"] == "1"
  assert second["CUDA_VISIBLE_DEVICES"] == "5,6"


def test_gpus_that_are_not_there(local, probe):
  err = local("--gpus-per-process=2", code=2, CUDA_VISIBLE_DEVICES="1,3,5")
  assert "CUDA_VISIBLE_DEVICES='1,3,5': expected 4 of them" in err
  assert not probe.said()


def test_it_starts_again_on_75_and_after_a_kill(local, probe):
  err = local(plan="75,kill1,0")
  assert sorted(probe.said()) == [(i, j) for i in (1, 2, 3) for j in (0, 1)]
  ports = [
    s["environment"]["ANALOGJAX_COORDINATOR"] for s in probe.said().values()
  ]
  assert ports[0] == ports[1] and ports[0] != ports[2]
  assert "process 1 ended with -9" in err
  assert "restart 2 of at most 100" in err


@pytest.mark.parametrize("code", [1, 2, 130])
def test_other_codes_are_final(local, probe, code):
  # The second start would be good.
  local(plan=f"{code},0", code=code)
  assert len(probe.said()) == 2


def test_the_limit(local, probe):
  err = local("--max-restarts=1", plan="75", code=75)
  assert len(probe.said()) == 4
  assert "code 75 after 1 restarts, which is --max-restarts" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_nothing_starts_again(kit, probe, number):
  process = kit.start(
    *("local.py", "--processes=2", "--", *LINE),
    python=probe.folder / "python",
    env=os.environ | {"PROBE": "wait,0"},
  )
  try:
    while len(probe.said()) < 2:
      assert process.poll() is None
      time.sleep(0.05)
    for said in probe.said().values():
      # Otherwise a terminal's ^C would reach it twice.
      assert os.getsid(said["pid"]) == said["pid"]
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
  finally:
    process.kill()
  # The probe answers SIGTERM with 75, as analogjax does; ^C ends Python.
  codes = {signal.SIGTERM: (75, "75"), signal.SIGINT: (130, "-2")}
  assert process.returncode == codes[number][0], err
  assert err.decode().count(f"ended with {codes[number][1]}.") == 2
  assert len(probe.said()) == 2
  for said in probe.said().values():
    with pytest.raises(ProcessLookupError):
      os.kill(said["pid"], 0)


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--processes=2", "--dry-run"], "nothing follows --"),
    (
      ["--processes=2", "--", "--confg=a", "--workdir=b"],
      "unknown flag --confg",
    ),
    (["--processes=2", "--", "--config=a"], "run needs --workdir=DIR"),
    (["--processes=0", "--", *LINE], "'0': expected a number of at least 1"),
    (["--process=2", "--", *LINE], "--processes"),
    (["--processes=2", *LINE], "unrecognized arguments: --config=a.py"),
  ],
)
def test_mistakes_are_found_before_anything_starts(kit, arguments, expected):
  out, err = kit.launch("local.py", *arguments, code=2)
  assert expected in err and "ended with" not in err and not out
