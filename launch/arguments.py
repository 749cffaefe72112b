"""Common code of the Python launchers: reads arguments, prints commands.

A launcher takes its own options, then `--`, then the arguments of `analogjax
run`, which are passed on unchanged.
"""

import argparse
from collections.abc import Callable, Sequence
import shlex
import sys
from typing import Any

OK, USER_ERROR, INTERRUPTED, AGAIN = 0, 2, 130, 75  # As in analogjax/main.py.


def parser_of(doc: str | None) -> argparse.ArgumentParser:
  """The parser of a launcher, whose docstring is the help, with --dry-run."""
  parser = argparse.ArgumentParser(
    usage="%(prog)s [OPTION ...] -- --config=FILE --workdir=DIR [...]",
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    # A new option must not change the meaning of a script.
    allow_abbrev=False,
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="print what it would do, exactly"
  )
  return parser


def read(
  parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """The launcher's options, and the arguments of `analogjax run`.

  If analogjax is installed, the latter are parsed by its own parser, so that a
  mistake is found before anything waits in a queue.

  Raises:
    ValueError: there is no `--`, or the arguments after it are not valid.
  """
  argv = list(argv)
  at = argv.index("--") if "--" in argv else len(argv)
  options, line = parser.parse_args(argv[:at]), argv[at + 1 :]
  if not line:
    raise ValueError(
      "nothing follows --; expected the arguments of `analogjax run`, as in"
      " -- --config=FILE --workdir=DIR."
    )
  try:
    from analogjax.cli import arguments
  except ImportError:
    return options, line  # It starts elsewhere, and is checked there.
  arguments.parse(["run", *line])
  return options, line


def starts_again(code: int) -> bool:
  """Whether a run that ended with this shell exit code is started again.

  analogjax asks for it with 75. A signal (128 and more) means a failure of the
  machine, except for ^C.
  """
  return code == AGAIN or (code > 128 and code != INTERRUPTED)


def show(command: Sequence[str]) -> None:
  """Prints a command in shell syntax."""
  print(shlex.join(command), flush=True)


def to_yaml(value: dict[str, Any]) -> str:
  """Readable YAML from which any string is read back unchanged."""
  import yaml  # Not every launcher needs it.

  class Dumper(yaml.SafeDumper):
    pass

  def string(dumper, text):
    # Where the style cannot hold a text, yaml uses quotes.
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

  Dumper.add_representer(str, string)
  return yaml.dump(value, Dumper=Dumper, sort_keys=False, width=sys.maxsize)


def say(text: str) -> None:
  """Prints to standard error, beside the output of the run."""
  print(f"launch: {text}", file=sys.stderr, flush=True)


def number(least: int) -> Callable[[str], int]:
  """The parser of an option's integer."""

  def parse(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < least:
      raise argparse.ArgumentTypeError(
        f"{text!r}: expected a number of at least {least}"
      )
    return int(text)

  return parse


def pair(text: str) -> tuple[str, str]:
  """Parses an option's KEY=VALUE."""
  key, equals, value = text.partition("=")
  if not (key and equals):
    raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE")
  return key, value


def exit_code(run: Callable[[Sequence[str]], int]) -> int:
  """Runs a launcher; an error that the user can fix is one line and code 2."""
  try:
    return run(sys.argv[1:])
  except (ValueError, OSError) as error:
    say(f"error: {error}")
    return USER_ERROR
