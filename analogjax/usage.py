"""What the command line says of itself."""

COMMANDS = {
  "plan": "sizes, memory, time and cost, for machines; starts nothing",
  "cache": "the teacher over the data, into the logit cache",
  "train": "the student through its phases",
  "measure": "the student against the teacher on held-out rows",
  "intervene": "a vector found on the analog, tried on the teacher",
  "export": "the analog as a Hugging Face folder",
  "release": "gates, documents and signature (not built yet)",
  "verify": "checks a bundle from its bytes alone (not built yet)",
  "run": "cache, train, measure and export in order",
}

USAGE = (
  "usage: analogjax <command> --config=FILE --workdir=DIR [--config.a.b=VALUE]"
)


def full_text() -> str:
  """What --help prints."""
  lines = [USAGE, "", "commands:"]
  lines += [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
  return "\n".join(
    [
      *lines,
      "",
      "flags:",
      "  --config=FILE     python file with get_config(), e.g. configs/demo.py",
      "  --workdir=DIR     where the run writes; plan needs none",
      "  --config.a.b=c    sets one field of the config; its type is checked",
      "  --inspect         with cache: what it holds, as a table and a picture",
      "  --verify[=ROWS]   with cache: every byte; ROWS are computed anew, too",
      "  --repair          with cache: computes damaged rows again",
      "  --quick           with measure, run: less of everything",
      "  --only=A,B        with measure: these parts, of output, similarity,",
      "                    steering, stitching",
      "  --vector=FILE     with intervene: a safetensors file that has it",
      "  --behaviour=NAME  with intervene: scored by it, a name or JSON file",
      "  --profile=A:B     with train, run: traces steps A to B for xprof",
      "  --topology=NAME   with plan: machines, e.g. v5p:4x4x4, gpu:h100:64;",
      "                    several compare side by side",
      "  --search          with plan: the cheapest mesh that fits",
      "  --json            with plan: prints JSON; --png=FILE: draws it, too",
      "  --help, --version",
      "",
      "`--flag value` does as well, unless the value begins with --. A run",
      "that was stopped goes on when the same command is given again.",
      "exit codes: 0 done, 2 wrong input, 130 interrupted, 75 start again.",
      "",
      "example: analogjax run --config=configs/demo.py --workdir=runs/demo",
    ]
  )
