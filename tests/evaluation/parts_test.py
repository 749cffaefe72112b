"""Tests for analogjax/evaluation/parts.py."""

import types

import jax
import pytest

from analogjax.evaluation import parts
from analogjax.evaluation.models import Model
from analogjax.models import decoder, sizes
from analogjax.workdir import files, ledger

L = 8
CFG = decoder.DecoderConfig(
  **dict(V=32, D=8, Y=1, N=2, G=1, H=4, F=16, max_positions=L),
  **dict(rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True),
  **dict(attention_bias=False, mlp_bias=False),
)


@pytest.fixture
def study():
  model = {name: Model(name=name, cfg=CFG, params=None) for name in "ab"}
  return types.SimpleNamespace(
    mesh=jax.make_mesh((1,), ("data",)),
    teacher=model["a"],
    students={"b": model["b"]},
    tokens={},
  )


def make(workdir, calls, inputs=1, fails=False):
  def one(study):
    calls.append("one")
    study.tokens["a"] = study.tokens.get("a", 0) + 16
    return {"x": 1}

  def two(study):
    calls.append("two")
    if fails:
      raise KeyboardInterrupt
    study.tokens["b"] = study.tokens.get("b", 0) + 24
    return {"y": 2}

  return parts.Parts(
    stage="s",
    workdir=workdir,
    folder=workdir / "kept",
    inputs={"seed": inputs},
    table={"one": one, "two": two},
  )


def test_what_was_measured_is_kept_and_the_next_run_continues(tmp_path, study):
  calls = []
  stopped = make(tmp_path, calls, fails=True)
  with pytest.raises(KeyboardInterrupt):
    stopped.measure(stopped.missing(("two", "one")), study, L)
  assert calls == ["one", "two"]
  again = make(tmp_path, calls)
  assert again.missing(("one", "two")) == ["two"]
  assert again.missing(("one",)) == []
  again.measure(["two"], study, L)
  assert calls == ["one", "two", "two"]
  found = {name: part["result"] for name, part in again.kept().items()}
  assert found == {"one": {"x": 1}, "two": {"y": 2}}
  assert again.kept()["two"]["cost"]["tokens"] == 24


def test_a_part_of_other_inputs_is_missing(tmp_path, study):
  first = make(tmp_path, [])
  first.measure(["one"], study, L)
  other = make(tmp_path, [], inputs=2)
  assert other.missing(("one",)) == ["one"] and other.kept() == {}
  assert files.read_json(tmp_path / "kept" / "one.json")["inputs"] == {
    "seed": 1
  }


def test_tokens_and_flops_are_entered_by_model(tmp_path, study):
  made = make(tmp_path, [])
  made.measure(["one", "two"], study, L)
  spent = ledger.totals(tmp_path)["s"]
  a_token = sizes.forward_flops_per_token(CFG, L)
  assert spent["tokens"] == 40 and spent["flops"] == 40 * a_token
  assert spent["teacher_flops"] == 16 * a_token


def test_an_unknown_part_is_refused():
  expected = r"--only: expected one of s.parts \(one, two\), .* found 'three'"
  with pytest.raises(ValueError, match=expected):
    parts.check_names(("one", "three"), ("one", "two"), "s.parts")
