"""What the command line says of itself."""

COMMANDS = {
  "plan": "sizes, memory, time and cost, for machines; starts nothing",
  "cache": "the teacher over the data, into the logit cache",
  "train": "the student through its phases",
  "measure": "the student against the teacher on held-out rows",
  "safety": "what the student gives away, and what it refuses",
  "intervene": "a vector found on the analog, tried on the teacher",
  "export": "the analog as a Hugging Face folder",
  "release": "gates, documents and signature: a bundle for the public",
  "run": "cache, train, measure, safety, export and release in order",
  "verify": "what of a bundle is so, by its bytes alone, offline",
  "reproduce": "whether a bundle's run gives the same twice, at toy size",
  "keygen": "a key to sign releases with",
}

USAGE = (
  "usage: analogjax <command> --config=FILE --workdir=DIR [--config.a.b=VALUE]"
  "\n       analogjax verify|reproduce|keygen PATH"
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
      "  --quick           with measure, safety, run: less of everything",
      "  --only=A,B        with measure, safety: these parts alone",
      "  --vector=FILE     with intervene: a safetensors file that has it",
      "  --behaviour=NAME  with intervene: scored by it, a name or JSON file",
      "  --profile=A:B     with train, run: traces steps A to B for xprof",
      "  --topology=NAME   with plan: machines, e.g. v5p:4x4x4, gpu:h100:64;",
      "                    several compare side by side",
      "  --search          with plan: the cheapest mesh that fits",
      "  --json            with plan: prints JSON; --png=FILE: draws it, too",
      "  --key=KEY         with release, run: signs; a path, or pkcs11:...;",
      "                    with verify: whose signature is expected",
      "  --certificate=FILE --password=FILE",
      "                    with release, run: of that key",
      "  --chain=FILE      with verify: who vouches for the signer",
      "  --regulator=DIR   with verify: what was given beside the bundle",
      "  --deep            with verify: measures again",
      "  --html=FILE       with verify: a page too; --json for programs",
      "  --verbose         with verify: the evidence for every claim",
      "  --check           with reproduce: runs it, twice",
      "  --help, --version",
      "",
      "`--flag value` does as well, unless the value begins with --. A run",
      "that was stopped goes on when the same command is given again.",
      "exit codes: 0 done, 1 a bundle that fails, 2 wrong input, 75 start",
      "again, 130 interrupted.",
      "",
      "example: analogjax run --config=configs/demo.py --workdir=runs/demo",
    ]
  )
