"""Names and places: of the frontier model, of the lab, of its machines."""

import bisect
import codecs
from collections.abc import Iterator
import hashlib
import re

from analogjax.leaks.secrets import Secrets

_SEPARATORS = re.compile(r"[\s_\-./\\+:|~*]+")
# Digits and signs that stand for letters, both ways round.
_LEET = ("0134578l", "oieastbi")
# Names in the form of a place: of model-signing's statements.
_NO_PLACES = ("https://model_signing/signature/",)
_HEXADECIMAL = re.compile(r"(?<![0-9a-f])[0-9a-f]{32,128}(?![0-9a-f])")
# Shorter ones would be found inside other words.
_LEAST_INSIDE = 6

_ROOTS = (
  r"app|apps|bigdata|ceph|checkpoints|cluster|cns|data|dbfs|dev|dfs|efs"
  r"|etc|export|fs|fsx|gpfs|home|hdd|lustre|media|mlops|mnt|models|mount"
  r"|net|nfs|nvme|opt|ossfs|placer|private|proc|project|projects|raid|root"
  r"|run|scratch|share|shared|snap|srv|ssd|storage|sys|tank|tmp|usr|Users"
  r"|var|vol|volumes?|weka|work|workspace"
)
_SCHEMES = (
  r"abfss?|adl|afp|az|blob|cns|cos|dbfs|file|ftps?|gcs|gs|hdfs|hf|jdbc"
  r"|memcached|minio|mlflow|mongodb|mysql|nfs|obs|oci|oss|postgres(?:ql)?"
  r"|r2|redis|rsync|s3[an]?|scp|sftp|smb|ssh|swift|tos|viewfs|wandb|wasbs?"
  r"|weka|webhdfs"
)
_PLACES = (
  # Behind a letter or a < it is a division or the end of an element.
  ("path", rf"(?<![\w.<:/#$*)\]}}~-])/(?:{_ROOTS})(?![\w.-])(?:/[\w.@%+=-]*)*"),
  ("path", r"(?<![\w.<:/#$*)\]}~-])/(?:[\w.@%+=-]{2,}/)+[\w.@%+=-]*"),
  ("path", r"(?<![\w/])~[\w-]*/[\w.@%+=/-]+"),
  ("path", r"(?<![A-Za-z])[A-Za-z]:\\+[\w.$@%+ -]+"),
  ("path", r"(?<!\\)\\\\(?!u[0-9a-f]{4})[A-Za-z][\w.$-]+\\+[\w.$-]+"),
  ("path", r"\$\{?(?:HOME|USER|SCRATCH|WORK|TMPDIR|SLURM_\w+)\}?/[\w./-]+"),
  ("URI", rf"(?<![\w+.-])(?:{_SCHEMES})://[^\s\"'<>)\]}}]+"),
  ("URI", r"\barn:aws[\w-]*:[\w:/.-]+"),
  ("host", r"(?i)\bhttps?://(?:[^\s/\"'<>@]+@)[^\s\"'<>)]+"),
  (
    "host",
    r"(?i)\bhttps?://(?:localhost|[\w-]+|\d+(?:\.\d+){3})(?=[:/\s\"'])"
    r"[^\s\"'<>)]*",
  ),
  (
    "host",
    r"(?i)(?<![\w.-])(?:[a-z0-9][a-z0-9-]*\.)+(?:internal|intranet|corp|local"
    r"|lan|intra|localdomain|svc|cluster|consul|priv|private|prod|home)"
    r"(?![\w-]|\.\w)",
  ),
  (
    "host",
    r"(?<![\w.])(?:10(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2}"
    r"|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2}|169\.254(?:\.\d{1,3}){2})"
    r"(?![\w.])",
  ),
  ("user", r"\b[a-z_][\w.-]{0,31}@[\w.-]+:[~/][\w./~-]*"),
  (
    "environment",
    r"\b(?:USER|USERNAME|LOGNAME|HOSTNAME|HOME|PWD|SLURM_\w+|AWS_\w+|GOOGLE_\w+"
    r"|PYTHONPATH|LD_LIBRARY_PATH|HF_TOKEN|WANDB_\w+)=\S+",
  ),
)


class NameRules:
  """Finds names in a text; made once for all files."""

  def __init__(self, secrets: Secrets):
    self._leet = str.maketrans(*_LEET)
    self._inside: dict[str, str] = {}  # Squashed form -> the name.
    self._words: list[tuple[str, re.Pattern]] = []
    self._digests: dict[str, str] = {}
    self._whole: dict[str, str] = {}
    self._places = [(rule, re.compile(text)) for rule, text in _PLACES]
    for name in dict.fromkeys((*secrets.names, *secrets.words, *secrets.paths)):
      self._add(name)
    sizes = [str(size) for size in secrets.sizes]
    for text in (*secrets.names, *secrets.words, *sizes):
      for digest, spelling in _digests(text):
        self._digests[digest] = f"{spelling!r}"

  def _add(self, name: str) -> None:
    squashed = squash(name)
    if len(squashed) < 2:
      return
    self._whole[squashed] = name
    if len(squashed) < _LEAST_INSIDE:
      # Any separators inside, but letters before or after make another word.
      parts = [re.escape(c) for c in squashed]
      pattern = r"[\s_\-./]?".join(parts)
      self._words.append(
        (name, re.compile(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])"))
      )
      return
    for form in (squashed, squashed[::-1], codecs.encode(squashed, "rot13")):
      self._inside.setdefault(form, name)
    leet = squashed.translate(self._leet)
    if not leet.isdigit():
      self._inside.setdefault(leet, name)

  def find(self, text: str) -> Iterator[tuple[str, int, str]]:
    """(rule, offset, what) of every name and digest in a plain text."""
    lower = text.lower()
    yield from self._find_names(lower)
    for match in _HEXADECIMAL.finditer(lower):
      if spelling := self._digests.get(match[0]):
        what = f"{_quoted(match[0])} is an unsalted digest of {spelling}"
        yield "digest", match.start(), f"{what}, which anyone can try"

  def find_places(self, text: str) -> Iterator[tuple[str, int, str]]:
    """(rule, offset, what) of every path, URI and host in a plain text."""
    for rule, pattern in self._places:
      for match in pattern.finditer(text):
        if not match[0].startswith(_NO_PLACES):
          what = f"{_quoted(match[0])} names a place of the lab"
          yield rule, match.start(), what

  def _find_names(self, lower: str) -> Iterator[tuple[str, int, str]]:
    for name, pattern in self._words:
      for match in pattern.finditer(lower):
        yield "name", match.start(), f"{_quoted(match[0])} is {name!r}"
    if not self._inside:
      return
    squashed, offsets = _squashed(lower)
    for table in ({}, self._leet):
      text = squashed.translate(table)
      for form, name in self._inside.items():
        start = text.find(form)
        while start >= 0:
          # The end is where the last letter is.
          begin, end = offsets(start), offsets(start + len(form) - 1) + 1
          what = f"{_quoted(lower[begin:end])} is {name!r}"
          yield "name", begin, what
          start = text.find(form, start + len(form))

  def whole(self, entry: str) -> str:
    """The name that an entry of a vocabulary is, or ""."""
    name = self._whole.get(squash(entry.lstrip("\u0120\u2581")))
    return name if name and len(squash(name)) >= _LEAST_INSIDE else ""


def squash(text: str) -> str:
  """Letters and digits alone, in small letters."""
  return "".join(c for c in text.lower() if c.isalnum())


def _squashed(lower: str):
  """The text without separators, and from its offsets to those before."""
  kept = [m.span() for m in re.finditer(r"[^\W_]+", lower)]
  text = "".join(lower[a:b] for a, b in kept)
  starts, total = [], 0
  for a, b in kept:
    starts.append(total)
    total += b - a

  def offset(position: int) -> int:
    i = bisect.bisect_right(starts, position) - 1
    return kept[i][0] + position - starts[i]

  return text, offset


def _digests(text: str) -> Iterator[tuple[str, str]]:
  spaced = _SEPARATORS.sub(" ", text)
  forms = {text, spaced}
  for separator in ("", "-", "_", "/"):
    forms.add(spaced.replace(" ", separator))
  forms |= {form.lower() for form in forms} | {form.upper() for form in forms}
  for form in sorted(forms):
    for end in ("", "\n"):
      data = (form + end).encode()
      for name in ("md5", "sha1", "sha224", "sha256", "sha384", "sha512"):
        digest = hashlib.new(name, data, usedforsecurity=False)
        yield digest.hexdigest(), form
      yield hashlib.blake2b(data).hexdigest(), form
      yield hashlib.blake2b(data, digest_size=32).hexdigest(), form
      yield hashlib.sha3_256(data).hexdigest(), form


def _quoted(text: str) -> str:
  return ascii(text if len(text) <= 80 else text[:77] + "...")
