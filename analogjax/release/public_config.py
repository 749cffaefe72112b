"""What of the resolved config is published: an allow-list of its fields.

Whoever reads the bundle should be able to repeat the run on a teacher and data
of their own. What the frontier model is, where things lie, on which machines
they ran, what they cost, the optimizer and the mixture of data are the lab's.
So each field of the schema is in one of the two tables below, and a test walks
the schema: a new field is absent from every bundle until someone puts it into
`PUBLIC`, and the test fails until someone decides.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# <phase> is every phase of train.phases.
PUBLIC = (
  *(
    f"student.{field}"
    for field in (
      *("seed", "V", "D", "Y", "N", "G", "H", "F", "max_positions"),
      *("rope_theta", "rms_norm_eps", "tie_embeddings"),
      *("attention_bias", "mlp_bias", "dtype"),
    )
  ),
  *(
    f"student.rope_scaling.{field}"
    for field in (
      *("kind", "factor", "low_freq_factor", "high_freq_factor"),
      "original_max_positions",
    )
  ),
  "data.L",
  *(
    f"cache.{field}"
    for field in ("kind", "temperature", "num_rows", "held_out_rows")
  ),
  "train.phases",
  *(
    f"train.<phase>.{field}"
    for field in ("init_from", "rows", "num_steps", "seed", "loss.teacher")
  ),
  *(
    f"measure.{field}"
    for field in (
      *("parts", "phases", "seed", "fit_rows", "domain_rows", "depths"),
      *("points", "permutations", "resamples", "max_strength", "strengths"),
      *("random_vectors", "mapper_steps", "stitch_steps"),
    )
  ),
  *(
    f"safety.{field}"
    for field in (
      *("parts", "phases", "seed", "resamples", "rows", "prefix_tokens"),
      *("suffix_tokens", "attempts", "probability", "canary_controls"),
      *("min_k", "reference", "prompts", "prompt_tokens", "answer_tokens"),
    )
  ),
  *(
    f"release.{field}"
    for field in (
      *("phase", "dtype", "max_shard_gb", "date", "licence", "licence_name"),
      *("shares_rows", "keeps_chat_template"),
    )
  ),
  *(
    f"release.about.{field}"
    for field in (
      *("name", "version", "provider", "contact", "languages"),
      *("intended_use", "out_of_scope", "limitations", "curation"),
    )
  ),
)

# Path, or everything below it -> why it stays in the lab.
WITHHELD = {
  "teacher": "what the frontier model is, and where it lies",
  "student.remat": "of the lab's machines; changes no number",
  "student.attention": "of the lab's machines; changes no number",
  "student.size_window": "whether the analog missed the window in a draft",
  "data.pipeline": "the name of the lab's code",
  "data.arguments": "sources, mixture and places of the data",
  "data.held_out_arguments": "sources, mixture and places of the data",
  "cache.tau": "parameter of sampling, which the regulator has",
  "cache.num_draws": "parameter of sampling, which the regulator has",
  "cache.top_k": "parameter of sampling, which the regulator has",
  "cache.num_replicas": "parameter of sampling, which the regulator has",
  "cache.capture": "parameter of sampling, which the regulator has",
  "cache.capture_rate": "parameter of sampling, which the regulator has",
  "cache.gram_positions": "parameter of sampling, which the regulator has",
  "cache.gram_layers": "parameter of sampling, which the regulator has",
  "cache.seed": "of draws from a cache that is not published",
  "cache.batch_rows": "what the teacher's machines hold, so its size",
  "cache.rows_per_object": "of the lab's store",
  "cache.chunk": "what the teacher's machines hold",
  "cache.location": "a place",
  "cache.s3_endpoint": "a host",
  "cache.write_ahead": "of the lab's machines",
  "cache.import_path": "a place",
  "cache.import_codec": "of a cache that is not published",
  "train.location": "a place",
  "train.s3_endpoint": "a host",
  "train.<phase>.batch_rows": "of the optimization, which the regulator has",
  "train.<phase>.microbatches": "of the lab's machines",
  "train.<phase>.loss": "of the optimization, which the regulator has",
  "train.<phase>.optimizer": "of the optimization, which the regulator has",
  "train.<phase>.checkpoint_every_steps": "of the lab's machines",
  "train.<phase>.keep_checkpoints": "of the lab's store",
  "train.<phase>.keep_best_checkpoints": "of the lab's store",
  "train.<phase>.eval_every_steps": "of the lab's machines",
  "train.<phase>.log_every_steps": "of the lab's machines",
  "measure.folders": "places, and names of other models",
  "measure.batch_rows": "what the teacher's machines hold",
  "measure.domains": "names and places of data",
  "measure.behaviours": "may be paths; fidelity.json names them",
  "safety.folders": "places, and names of other models",
  "safety.teacher_parts": "what the teacher was run for",
  "safety.batch_rows": "of the lab's machines",
  "safety.chunk": "of the lab's machines",
  "safety.teacher_only": "names and places of the teacher's data",
  "safety.harmful": "may be paths; safety.json has digests",
  "safety.harmless": "may be paths; safety.json has digests",
  "safety.template": "of a chat that the lab may not publish",
  "safety.phrases": "free-form; they may quote the lab's model",
  "safety.thresholds": "free-form; safety.json has each beside its value",
  "release.licence_file": "a path; the text itself is in the bundle",
  "release.sources": "free-form; record.json has its known fields",
  "release.frontier": "what the frontier model is",
  "release.waivers": "free-form; the report prints them beside their gates",
  "watch": "of the lab's machines",
  "plan": "prices and machines, from which the frontier's size follows",
  "mesh": "of the lab's machines, from which the frontier's size follows",
}


def project(values: Mapping[str, Any]) -> dict[str, Any]:
  """The public part of a resolved config, in the same sections.

  Args:
    values: plain values, as `config.to_values` returns them or as a workdir's
      config.json has them. What is missing there is missing here; what has
      another form than a number, a text, a truth value, None or a list of
      texts is left out.

  Returns:
    JSON-like values; tuples are lists.
  """
  public: dict[str, Any] = {}
  for path in PUBLIC:
    for keys in _expanded(path, values):
      found: Any = values
      for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
      value = _plain(found)
      if value is None:
        continue
      section = public
      for key in keys[:-1]:
        section = section.setdefault(key, {})
      section[keys[-1]] = value
  return public


def _expanded(path: str, values: Mapping[str, Any]) -> Iterator[list[str]]:
  """The keys of a path, once for each phase where it has <phase>."""
  keys = path.split(".")
  if "<phase>" not in keys:
    yield keys
    return
  train = values.get("train")
  phases = train.get("phases") if isinstance(train, Mapping) else None
  for phase in _plain(phases) or []:
    yield [phase if key == "<phase>" else key for key in keys]


def _plain(value: Any) -> Any:
  """A value that cannot hold what nobody decided on, or None."""
  if isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, list | tuple):
    return list(value) if all(isinstance(x, str) for x in value) else None
  return None
