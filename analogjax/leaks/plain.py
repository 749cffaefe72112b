"""Text as a reader sees it, whatever it was written with.

Look-alike letters, invisible characters and other scripts' digits become the
ASCII that they look like; escapes of HTML, URLs and JSON become what they stand
for.
"""

import html
import re
import unicodedata
import urllib.parse

# Letters of Cyrillic and Greek that look like Latin ones; the common part of
# the confusables of Unicode's UTS #39.
_LOOK_ALIKE = {
  **dict(zip("\u0430\u0432\u0435\u043a\u043c\u043d", "abekmh", strict=True)),
  **dict(zip("\u043e\u0440\u0441\u0442\u0443\u0445", "opctyx", strict=True)),
  **dict(zip("\u0456\u0458\u0455\u0501\u051b", "ijsdq", strict=True)),
  **dict(zip("\u0410\u0412\u0415\u041a\u041c\u041d", "ABEKMH", strict=True)),
  **dict(zip("\u041e\u0420\u0421\u0422\u0423\u0425", "OPCTYX", strict=True)),
  **dict(zip("\u0406\u0408\u0405", "IJS", strict=True)),
  **dict(zip("\u03b1\u03b5\u03b9\u03ba\u03bd\u03bf", "aeikvo", strict=True)),
  **dict(zip("\u03c1\u03c4\u03c5\u03c7", "ptux", strict=True)),
  **dict(zip("\u0391\u0392\u0395\u0396\u0397\u0399", "ABEZHI", strict=True)),
  **dict(zip("\u039a\u039c\u039d\u039f\u03a1\u03a4", "KMNOPT", strict=True)),
  **dict(zip("\u03a5\u03a7\u0131\u0261", "YXig", strict=True)),
  "\u03b2": "beta",
}
_SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
_SUPERSCRIPT = re.compile(f"[{_SUPERSCRIPTS}]+")
_INLINE_TAG = re.compile(
  r"</?(?:a|abbr|b|code|em|font|i|mark|s|small|span|strong|sub|sup|u|wbr)"
  r"(?:\s[^<>]{0,400})?/?>",
  re.I,
)
_BLOCK_TAG = re.compile(
  r"</(?:p|tr|li|h\d|div|table|text|title)\s*>|<br\s*/?>", re.I
)
_OTHER_TAG = re.compile(r"</?[A-Za-z][^<>]{0,2000}>")
_CODE_POINT = re.compile(
  r"\\(?:u\{?|U0000|x)([0-9A-Fa-f]{4}|[0-9A-Fa-f]{2})\}?"
)
_QUOTED_PRINTABLE = re.compile(r"(?:=[0-9A-F]{2}){3,}")
_MARKS = re.compile(r"\*\*|``?|\\(?=[^\w\s])")
# Numbers of drawings say where ink is.
_GEOMETRY = re.compile(
  r"\s(?:[xy][12]?|c[xy]|r[xy]?|d[xy]?|points|width|height|viewBox|transform"
  r"|style|stroke-\w+|font-size|offset)\s*=\s*(?:\"[^\"]*\"|'[^']*')"
)


def plain(text: str) -> str:
  """The text in the letters that it looks like, lines as they were."""
  if text.isascii():
    return text
  text = _SUPERSCRIPT.sub(
    lambda m: "^" + "".join(str(_SUPERSCRIPTS.index(c)) for c in m[0]), text
  )
  # Once for each character that there is: texts are long, alphabets short.
  table = {ord(c): _letter(c) for c in set(text) if not c.isascii()}
  return text.translate(table)


def _letter(character: str) -> str:
  if character in _LOOK_ALIKE:
    return _LOOK_ALIKE[character]
  parts = []
  for c in unicodedata.normalize("NFKD", character):
    category = unicodedata.category(c)
    if category in ("Cf", "Mn", "Me"):
      continue
    if category == "Nd":
      c = str(unicodedata.digit(c))
    elif category == "Zs":
      c = " "
    elif category == "Pd" or c == "\u2212":
      c = "-"
    elif c in "\u2018\u2019\u02bc":
      c = "'"
    parts.append(_LOOK_ALIKE.get(c, c))
  return "".join(parts)


def decoded(text: str) -> str:
  """The text without markup and escapes: HTML, Markdown, URLs, code points."""
  text = text.replace("<!--", "\f").replace("-->", "\f")
  # A form feed ends what stands together and no line, so places stay.
  text = _BLOCK_TAG.sub("\f", _INLINE_TAG.sub("", text))
  text = _OTHER_TAG.sub(lambda m: " " + "\n" * m[0].count("\n"), text)
  text = html.unescape(text)
  text = _CODE_POINT.sub(lambda m: chr(int(m[1], 16)), text)
  text = _QUOTED_PRINTABLE.sub(
    lambda m: bytes.fromhex(m[0].replace("=", "")).decode("latin-1"), text
  )
  if "%" in text:
    text = urllib.parse.unquote(text, errors="replace")
  return plain(_MARKS.sub("", text))


def without_geometry(text: str) -> str:
  """Markup without the attributes that place ink, lines as they were."""
  return _GEOMETRY.sub(lambda m: " " + "\n" * m[0].count("\n"), text)
