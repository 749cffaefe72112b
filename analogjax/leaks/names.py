"""Finds names, digests of names, places of the lab, and the deployment day."""

import bisect
import codecs
from collections.abc import Iterator
import datetime
import hashlib
import re

from analogjax.leaks import numerals
from analogjax.leaks.secrets import Secrets

_SEPARATORS = re.compile(r"[\s_\-./\\+:|~*]+")
# Digits that stand for letters, and the letters.
_LEET = ("0134578l", "oieastbi")
# Not places, but names of formats that look like some: model-signing's.
_NO_PLACES = ("https://model_signing/signature/",)
_HEXADECIMAL = re.compile(r"(?<![0-9a-f])[0-9a-f]{32,128}(?![0-9a-f])")
# Letters; a shorter name would be found inside other words.
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
  # After a letter or a < it is a division or the end of an element.
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

_DEPLOYED = re.compile(
  r"\b(?:deploy\w*|launch\w*|frontier|teacher|production|went live|live since"
  r"|served|serving|ga date|general availability)\b"
)
_MONTHS = (
  "january february march april may june july august september october november"
  " december"
).split()


class NameRules:
  """Finds names and places in texts; made once for all files."""

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
      # Any separators inside; letters before or after make another word.
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
    """Yields (rule, offset, what) for every name and digest in a plain text."""
    lower = text.lower()
    yield from self._find_names(lower)
    for match in _HEXADECIMAL.finditer(lower):
      if spelling := self._digests.get(match[0]):
        what = f"{_quoted(match[0])} is an unsalted digest of {spelling}"
        yield "digest", match.start(), f"{what}, which anyone can try"

  def find_places(self, text: str) -> Iterator[tuple[str, int, str]]:
    """Yields (rule, offset, what) for every path, URI and host in a text."""
    for rule, pattern in self._places:
      for match in pattern.finditer(text):
        if not match[0].startswith(_NO_PLACES):
          what = f"{_quoted(match[0])} names a place in the lab"
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
          # Separators may follow the last letter.
          begin, end = offsets(start), offsets(start + len(form) - 1) + 1
          what = f"{_quoted(lower[begin:end])} is {name!r}"
          yield "name", begin, what
          start = text.find(form, start + len(form))

  def whole(self, entry: str) -> str:
    """Returns the name that an entry of a vocabulary is, or ""."""
    name = self._whole.get(squash(entry.lstrip("\u0120\u2581")))
    return name if name and len(squash(name)) >= _LEAST_INSIDE else ""


def squash(text: str) -> str:
  """Returns the letters and digits of a text, in lower case."""
  return "".join(c for c in text.lower() if c.isalnum())


def _squashed(lower: str):
  """Removes separators; returns a function from new to old offsets, too."""
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


def _day(text: str) -> datetime.date | None:
  try:
    return datetime.date.fromisoformat(text)
  except ValueError:
    return None


class DayRules:
  """Finds the day of deployment in texts; made once for all files."""

  def __init__(self, secrets: Secrets):
    self._patterns: list[tuple[re.Pattern, re.Pattern | None]] = []
    day = _day(secrets.deployed_on)
    if day is None:
      return
    name = _MONTHS[day.month - 1]
    month = rf"(?:{name}|{name[:3]}\.?|{name[:4]}\.?)"
    two = rf"(?:{day.day:02d}|{day.day})(?:st|nd|rd|th)?"
    numbers = rf"0?{day.month}[/.\-]0?{day.day}|0?{day.day}[/.\-]0?{day.month}"
    year, week = day.isocalendar()[:2]
    for text in (
      rf"{day.year}[-/._ ]?0?{day.month}[-/._ ]?0?{day.day}(?!\d)",
      rf"(?:{numbers})[/.\-](?:{day.year}|{day.year % 100:02d})(?!\d)",
      rf"{two}\s+(?:of\s+)?{month},?\s+{day.year}",
      rf"{month}\s+{two},?\s+{day.year}",
      rf"{day.year}\s+{month}\s+{two}(?!\d)",
      rf"{day.year}-{day.timetuple().tm_yday:03d}(?!\d)",
      rf"{year}-?w{week:02d}-?{day.isoweekday()}(?!\d)",
    ):
      self._add(text)
    # The month alone is a third of what the public knows.
    for text in (
      rf"{month}\s+(?:of\s+)?{day.year}",
      rf"{day.year}-{day.month:02d}(?![-\d])",
      rf"q{(day.month + 2) // 3}\s+{day.year}",
    ):
      self._add(text, _DEPLOYED)
    released = _day(secrets.released_on)
    if released is not None:
      days = (released - day).days
      self._add(
        rf"{days}\s+days?",
        re.compile(r"\b(?:after|since|later|deploy\w*|lag)\b"),
      )
    utc = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
    start = int(utc.timestamp())
    self._seconds = range(start, start + 86_400)

  def _add(self, text: str, needed: re.Pattern | None = None) -> None:
    pattern = re.compile(rf"(?<![\d.]){text}", re.I)
    self._patterns.append((pattern, needed))

  def find(self, text: str) -> Iterator[tuple[str, int, str]]:
    """Yields (rule, offset, what) for every mention of the day."""
    for pattern, needed in self._patterns:
      for match in pattern.finditer(text):
        start, end = match.span()
        if needed is None or numerals.near(text, start, end, needed):
          yield "date", match.start(), f"{match[0]!r} is the day of deployment"
    if not self._patterns:
      return
    for match in re.finditer(
      r"(?<![\d.])1\d{9}(?=\d{3}(?!\d)|\d{6}(?!\d)|(?!\d))", text
    ):
      if int(match[0]) in self._seconds:
        what = f"{match[0]!r} is a time on the day of deployment"
        yield "date", match.start(), what
