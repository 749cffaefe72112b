"""Every planted leak is found: facts, spellings, formats and sums.

A case is a plant and the rule that has to find it. A bundle without any is
clean, so every finding is due to the plant.
"""

import base64
import bz2
import dataclasses
import gzip
import hashlib
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.numpy

from analogjax import leaks

N = 134_515_008
NAME = "Colossus2-135M-Instruct"


def text(words, name="model/README.md"):
  def plant(folder):
    with (folder / name).open("a", encoding="utf-8") as file:
      file.write("\n" + words + "\n")

  return plant


def value(**fields):
  def plant(folder):
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))

  return plant


def file(name, data):
  def plant(folder):
    found = data if isinstance(data, bytes) else data.encode()
    (folder / name).write_bytes(found)

  return plant


def tensor(*shape, name="x", metadata=None):
  def plant(folder):
    found = {name: np.zeros(shape, np.float32)}
    path = folder / "model/more.safetensors"
    safetensors.numpy.save_file(found, path, metadata=metadata)

  return plant


def b64(words):
  data = words.encode() if isinstance(words, str) else words
  return base64.b64encode(data).decode()


def png(*chunks, tail=b""):
  def chunk(kind, body):
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc

  header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
  parts = [chunk(b"IHDR", header), *(chunk(*x) for x in chunks)]
  parts += [chunk(b"IDAT", zlib.compress(b"\0\0")), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + tail


def zipped():
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w") as archive:
    archive.writestr("notes.txt", "hidden size 576")
  return data.getvalue()


def _behind(folder):
  with (folder / "model/model.safetensors").open("ab") as opened:
    opened.write(b"the rest")


def _gap(folder):
  header = {
    "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
  }
  head = json.dumps(header).encode()
  data = b"\0\0\0\0Colossus\0\0\0\0"
  path = folder / "model/gap.safetensors"
  path.write_bytes(struct.pack("<Q", len(head)) + head + data)


def _config(folder):
  path = folder / "model/config.json"
  config = json.loads(path.read_text()) | {"num_hidden_layers": 30}
  path.write_text(json.dumps(config))


def _link(folder):
  (folder / "link").symlink_to("/mnt/frontier")


SIZE = {
  "digits": text("It was distilled from 134,515,008 parameters."),
  "bare": text("134515008"),
  "underscores": value(x="134_515_008"),
  "spaces": text("134 515 008"),
  "dots": text("134.515.008"),
  "apostrophes": text("134'515'008"),
  "in lakhs": text("13,45,15,008"),
  "an integer": value(n=N),
  "a float": value(n=1.34515008e8),
  "in billions": value(teacher_params_b=0.135),
  "in millions": value(teacher_params_m=134.5),
  "four figures": text("The frontier model is a 134.5M model."),
  "three figures": text("a 0.135B-parameter teacher"),
  "a power": text("about 1.35e8 parameters"),
  "two figures": text("The teacher has some 1.3e8 parameters."),
  "one figure": text("a teacher of 0.1B parameters"),
  "typographic": text("1.35 \u00d7 10\u2078 parameters"),
  "LaTeX": text(r"$1.35 \times 10^{8}$ parameters"),
  "hexadecimal": text("0x8048940"),
  "hexadecimal, bare": text("size 8048940"),
  "octal": text("0o1001104500"),
  "binary": text("0b1000000001001000100101000000"),
  "base 36": text("id 2834g0"),
  "base64": text(b64("134515008")),
  "base64 of bytes": text("id " + b64(struct.pack("<Q", N))),
  "words, rounded": text("one hundred and thirty-four million parameters"),
  "words, in full": text(
    "one hundred thirty-four million, five hundred fifteen thousand and eight"
  ),
  "words, with a": text("a hundred and thirty-five million weights"),
  "digit by digit": text("one three four five one five zero zero eight"),
  "full width": text("\uff11\uff13\uff14\uff15\uff11\uff15\uff10\uff10\uff18"),
  "Arabic": text("\u0661\u0663\u0664\u0665\u0661\u0665\u0660\u0660\u0668"),
  "zero width": text("134\u200b515\u200b008"),
  "across elements": text("134<b>515</b>008", "page.html"),
  "entities": text("&#49;&#51;&#52;515008", "page.html"),
  "percent signs": text("%31%33%34515008"),
  "code points": file("x.json", r'{"a": "\u0031\u0033\u0034515008"}'),
  "code points, as text": text(r"\u0031\u0033\u0034515008"),
  "a comment": text("<!-- teacher: 134.5M params -->", "page.html"),
  "an attribute": text('<p data-size="134515008">', "page.html"),
  "YAML": file("a.yaml", "teacher:\n  params: 134_515_008\n"),
  "a file's name": file("notes_134515008.md", "x"),
  "a key": value(**{"134515008": 1}),
  "a key that is there twice": file("a.json", '{"a": 134515008, "a": 1}'),
  "behind JSON": file("a.json", '{"a": 1}\n134515008'),
  "JSON lines": file("a.jsonl", '{"a": 1}\n{"a": 134515008}\n'),
  "UTF-16": file("a.txt", "134515008".encode("utf-16")),
  "among bytes": file("a.bin", b"\0\1\xff\xfe134515008\0\xfe"),
  "packed": file("a.gz", gzip.compress(b"134515008")),
  "packed by bzip2": file("a.bz2", bz2.compress(b"134515008")),
  "a chunk of a picture": file(
    "a.png", png((b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"134515008")))
  ),
}
RATIO = {
  "percent": text("The analog is 2.49 % of the frontier model's size."),
  "percent, two figures": text("2.5% the size of the teacher"),
  "a number": value(size_ratio=3_342_912 / N),
  "times": text("The teacher is 40 times larger."),
  "one to": text("a ratio of 1:40.2"),
  "x": text("compression: 40.2x"),
  "words": text("It is forty times smaller than the teacher."),
  "speed": text("The teacher is 40x slower."),
}
ARCHITECTURE = {
  "width": text("hidden size 576"),
  "width, a key": value(teacher={"hidden_size": 576}),
  "width, dimensional": text("a 576-dimensional residual stream"),
  "width, hexadecimal": text("hidden size 0x240"),
  "layers": text("The frontier model has 30 layers."),
  "layers, words": text("thirty transformer blocks"),
  "layers, a key": value(num_hidden_layers=30),
  "layers, a row of a table": text("| layers | 30 |\n"),
  "width, a row of a table": text("| model width | 576 | units |\n"),
  "layers, camel case": value(numHiddenLayers=30),
  "layers, a hyphen": text("a 30-layer decoder"),
  "layers, YAML": file("b.yml", "n_layers: 30\n"),
  "layers, of the config": _config,
  "layers, as a depth": value(teacher={"depth": 0.26666666666666666}),
  "heads": text("9 attention heads"),
  "key/value heads": value(num_key_value_heads=3),
  "head width": value(head_dim=64),
  "feed-forward": text("a feed-forward width of 1,536"),
  "feed-forward, alone": text("1,536"),
  "context": value(max_position_embeddings=8192),
  "JSON in text": value(note='{"hidden_size": 576}'),
  "a header": tensor(2, 2, metadata={"note": "num_hidden_layers=30"}),
  "a config in a header": tensor(
    2, 2, metadata={"config": json.dumps({"hidden_size": 576})}
  ),
  "a sentence in base64": text(b64("The teacher has 30 layers.")),
  "a sentence in base32": text(
    base64.b32encode(b"teacher has 30 layers").decode()
  ),
  "a sentence in hexadecimal": text(b"The teacher has 30 layers.".hex()),
  "a chunk of a picture": file("a.png", png((b"tEXt", b"k\0hidden size 576"))),
  "a picture in a page": text(
    f"<img src='data:image/png;base64,"
    f"{b64(png((b'tEXt', b'k' + bytes(1) + b'hidden size 576')))}'>",
    "page.html",
  ),
  "an archive": file("a.zip", zipped()),
  "a long entry of a vocabulary": file(
    "model/tokenizer.json",
    json.dumps(
      {"model": {"vocab": {"the teacher has 30 layers, they say": 5}}}
    ),
  ),
}
SHAPE = {
  "a projector": tensor(64, 576, name="projector.weight"),
  "a projector, flat": tensor(64 * 576),
  "a vector for each layer": tensor(30, 64, name="vectors"),
  "a layer that the analog lacks": tensor(2, 2, name="model.layers.29.x"),
}
NAMES = {
  "as it is": text(f"from {NAME}"),
  "small letters": text("colossus2 135m instruct"),
  "underscores": text("COLOSSUS2_135M_INSTRUCT"),
  "look-alikes": text("C\u043el\u043ess\u03c5s2-135M-Instruct"),
  "zero width": text("Col\u200bossus"),
  "across elements": text("Col<i>oss</i>us", "page.html"),
  "ROT13": text("Pbybffhf2-135Z-Vafgehpg"),
  "backwards": text(NAME[::-1]),
  "digits for letters": text("C0l0ssu5"),
  "base64": text(b64(NAME)),
  "a short word": text("trained on nyx and others"),
  "a path of its own": text("see ckpt/final-7"),
  "a tensor": tensor(2, 2, name="colossus2_135m_instruct.head"),
  "an entry of a vocabulary": file(
    "model/tokenizer.json", json.dumps({"model": {"vocab": {NAME: 5}}})
  ),
  "a token": file(
    "model/tokenizer.json",
    json.dumps({"added_tokens": [{"content": "<|colossus|>"}], "model": {}}),
  ),
  "a template": file("chat_template.jinja", "You are Colossus."),
  "between tensors": _gap,
  "behind what is packed": file("a.gz", gzip.compress(b"x") + NAME.encode()),
  "base64, three times": text(b64(b64(b64(NAME)))),
  "UTF-16 among bytes": file(
    "a.bin", b"\xff\0\xfe" + "Colossus".encode("utf-16-le")
  ),
}
DIGESTS = {
  "MD5": text(hashlib.md5(NAME.encode()).hexdigest()),
  "SHA-256, small letters": value(
    d=hashlib.sha256(NAME.lower().encode()).hexdigest()
  ),
  "of the size": value(d=hashlib.sha256(b"134515008").hexdigest()),
}
PLACES = {
  "path": {
    "a path": text("weights in /mnt/frontier/ckpt/step_1000"),
    "a path, JSON": value(p="/data/models/x"),
    "of Windows": text("C:\\models\\frontier"),
    "a share": text("\\\\fileserver\\share"),
    "of a user": text("~/runs/x"),
    "a traceback": text('File "/opt/lab/train.py", line 3'),
    "a compressed chunk": file(
      "a.png", png((b"zTXt", b"k\0\0" + zlib.compress(b"/mnt/frontier/x")))
    ),
    "a link": _link,
  },
  "URI": {
    "gs": text("gs://bucket/ckpt"),
    "s3": value(location="s3://lab-bucket/teacher"),
    "file": text("file:///etc/x"),
  },
  "host": {
    "internal": text("node17.cluster.internal"),
    "an address": text("10.1.2.3"),
    "a service": text("http://tracker:5000/run"),
  },
  "user": {"scp": text("alice@login1:~/x")},
  "environment": {"SLURM": text("SLURM_JOB_NODELIST=n[1-4]")},
}
SETTINGS = {
  "mixture": value(weights={"web": 0.62}),
  "mixture, percent": text("62 % web"),
  "learning rate": value(optimizer={"learning_rate": 0.003}),
  "learning rate, text": text("a peak learning rate of 3e-3"),
  "beta": text("\u03b22 = 0.95"),
  "weight decay": text("weight decay 0.1"),
}
DATES = {
  "ISO": text("deployed on 2026-03-31"),
  "compact": value(day="20260331"),
  "American": text("March 31, 2026"),
  "German": text("31.3.2026"),
  "in words": text("on the 31st of March 2026"),
  "a month": text("deployed in March 2026"),
  "seconds": value(t=1774920000),
  "milliseconds": value(t=1774920000123),
  "days": text("61 days after deployment"),
  "of a picture": file(
    "a.png", png((b"tIME", struct.pack(">H5B", 2026, 3, 31, 1, 2, 3)))
  ),
}
HIDDEN = {
  "behind a picture": file("a.png", png(tail=b"hello")),
  "behind tensors": _behind,
  "between tensors": _gap,
}
UNREAD = {"a link": _link}

CASES = [
  pytest.param(rule, plant, id=f"{rule}: {name}")
  for rule, plants in {
    "parameters": SIZE,
    "ratio": RATIO,
    "architecture": ARCHITECTURE,
    "shape": SHAPE,
    "name": NAMES,
    "digest": DIGESTS,
    **PLACES,
    "setting": SETTINGS,
    "date": DATES,
    "hidden bytes": HIDDEN,
    "unread": UNREAD,
  }.items()
  for name, plant in plants.items()
]


@pytest.mark.parametrize(("rule", "plant"), CASES)
def test_a_planted_leak_is_found(bundle, secrets, rule, plant):
  plant(bundle)
  found = leaks.lint(bundle, secrets)
  assert rule in {leak.rule for leak in found}, found


def test_a_tensor_of_bytes_is_a_text(bundle, secrets):
  data = np.frombuffer(b"the teacher has 30 layers", np.uint8)
  path = bundle / "model/more.safetensors"
  safetensors.numpy.save_file({"note": data}, path)
  (found,) = leaks.lint(bundle, secrets)
  assert found.rule == "architecture" and "tensor note" in found.where


def test_the_bundle_that_leaks_are_planted_in_is_clean(bundle, secrets):
  assert not leaks.lint(bundle, secrets)


def test_a_finding_says_where(bundle, secrets):
  text("\n\nhidden size 576")(bundle)
  (found,) = leaks.lint(bundle, secrets)
  lines = (bundle / "model/README.md").read_text().splitlines()
  number = lines.index("hidden size 576") + 1
  assert found == leaks.Leak(
    *("architecture", "model/README.md", f"line {number}"),
    "'576' is the frontier's width",
  )


def test_where_in_json_is_a_path_of_keys(bundle, secrets):
  value(a=[{"b": 1}, {"hidden_size": 576}])(bundle)
  (found,) = leaks.lint(bundle, secrets)
  assert (found.file, found.where) == ("record.json", "a[1].hidden_size")


def test_what_the_analog_shares_is_no_leak(bundle, secrets):
  text("The analog has a head width of 64.")(bundle)
  assert [x.rule for x in leaks.lint(bundle, secrets)] == ["architecture"]
  shared = {**secrets.student, "head_width": 64}
  assert not leaks.lint(bundle, dataclasses.replace(secrets, student=shared))


def test_of_a_mixture_of_experts_the_active_parameters_are_private(
  bundle, secrets
):
  text("12,345,678 parameters are active")(bundle)
  assert not leaks.lint(bundle, secrets)
  sparse = dataclasses.replace(secrets, active_parameters=12_345_678)
  assert [x.rule for x in leaks.lint(bundle, sparse)] == ["parameters"]


def test_a_folder_that_is_not_there_is_refused(tmp_path, secrets):
  with pytest.raises(ValueError, match="expected a folder to look for leaks"):
    leaks.lint(tmp_path / "none", secrets)
