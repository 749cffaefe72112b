"""Tests for analogjax/config/release.py: refusals, by name."""

import dataclasses

import pytest

from analogjax.config import release

ABOUT = release.AboutConfig(
  **dict(name="a", version="1", provider="b", contact="c"),
  **dict(languages=("en",), intended_use="d", out_of_scope="e"),
  **dict(limitations="f", curation="g"),
)
FRONTIER = release.FrontierConfig(
  **dict(name="big", deployed_on="2026-01-31", parameters=0),
  **dict(active_parameters=0, family="", pipeline_fingerprint=""),
  private_words=(),
)
SOURCE = dict(kind="user", modality="text", about="t", licence="", period="")
GOOD = release.ReleaseConfig(
  **dict(phase="distill", dtype="float32", max_shard_gb=5.0, date=""),
  **dict(licence="MIT", licence_name="", licence_file="", shares_rows=False),
  keeps_chat_template=False,
  **dict(about=ABOUT, frontier=FRONTIER, sources={"s": SOURCE}, waivers={}),
)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(dtype="int8"), "dtype: expected 'float32' or 'bfloat16'"),
    (dict(max_shard_gb=0.0), "max_shard_gb: expected > 0"),
    (dict(date="2026-02-30"), "date: expected a day, YYYY-MM-DD"),
    (dict(date="20260228"), "date: expected a day"),
    (dict(licence=""), "licence: expected an SPDX"),
    (dict(licence="other"), "licence_name: expected a text, as licence"),
    (dict(licence="other", licence_name="x"), "licence_file: expected a text"),
    (dict(waivers={"luck": "it will do"}), "waivers: expected gates"),
    (dict(waivers={"data": "no"}), "waivers.data: expected a reason"),
    (dict(sources={}), "sources: expected at least one"),
    (dict(sources={"s": 1}), "sources.s: expected a dict"),
    (dict(sources={"s": {"kind": "user"}}), "sources.s: expected the fields"),
    (dict(sources={"s": SOURCE | {"kind": "air"}}), "sources.s.kind: expected"),
    (dict(sources={"s": SOURCE | {"about": ""}}), "sources.s.about: expected"),
    (dict(sources={"s": SOURCE | {"period": 1}}), "sources.s.period: expected"),
  ],
)
def test_a_release_that_is_refused(changes, message):
  with pytest.raises(ValueError, match="^" + message):
    dataclasses.replace(GOOD, **changes)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(name=""), "name: expected the frontier model's"),
    (dict(deployed_on=""), "deployed_on: expected a day"),
    (dict(parameters=-1), "parameters: expected 0 or more"),
    (dict(private_words=("ab",)), "private_words: expected words of 3"),
  ],
)
def test_a_frontier_model_that_is_refused(changes, message):
  with pytest.raises(ValueError, match="^" + message):
    dataclasses.replace(FRONTIER, **changes)


FIELDS = [f.name for f in dataclasses.fields(ABOUT) if f.name != "verifier"]


@pytest.mark.parametrize("field", FIELDS)
def test_nothing_that_only_the_lab_can_say_is_left_out(field):
  empty = () if field == "languages" else ""
  with pytest.raises(ValueError, match=f"^{field}: expected a text"):
    dataclasses.replace(ABOUT, **{field: empty})
