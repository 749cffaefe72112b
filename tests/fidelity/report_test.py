"""Tests for analogjax/fidelity/report/, and rendering/{charts,svg,html}.py."""

import copy
import html.parser
import json
import re

import pytest
import synthetic_report

from analogjax.fidelity.report import page as report
from analogjax.rendering import (
  charts,
  html as markup,
  numbers as numbers_lib,
  svg,
)
from analogjax.rendering.numbers import number

VOID = {"meta", "br", "hr", "img", "input", "link", "col"}


class Page(html.parser.HTMLParser):
  """A page as elements in order, with the texts in them."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.texts, self._open = [], [], []
    self._is_scale = False
    self.feed(text)
    self.close()
    assert not self._open, self._open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs), tuple(self._open)))
    if tag not in VOID:
      self._open.append(tag)
      self._is_scale = dict(attrs).get("class") == "scale"

  def handle_endtag(self, tag):
    self._is_scale = False
    assert self._open.pop() == tag

  def handle_data(self, data):
    # The numbers of scales are round, and not of the document.
    if "style" not in self._open and not self._is_scale:
      self.texts.append(data)

  def of(self, *tags):
    return [(t, a, above) for t, a, above in self.elements if t in tags]

  @property
  def text(self):
    return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def found():
  return synthetic_report.parts()


@pytest.fixture(scope="module")
def value(found):
  return synthetic_report.make(found)


@pytest.fixture(scope="module")
def text(value):
  return report.render(value)


@pytest.fixture(scope="module")
def page(text):
  return Page(text)


def leaves(value):
  if isinstance(value, dict):
    for key, item in value.items():
      yield key
      yield from leaves(item)
  elif isinstance(value, list):
    for item in value:
      yield from leaves(item)
  else:
    yield value


def numbers(text):
  return re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", text)


def test_every_number_is_in_the_document(value, page):
  known = set()
  for leaf in leaves(value):
    if isinstance(leaf, str):
      known.update(numbers(leaf))
    elif leaf is not None and not isinstance(leaf, bool):
      known.add(number(leaf))
  # Ends of scales, and what names and the glossary say: top-1, top-5, 95 %.
  known |= {"0", "1", "5", "95", "1.44", "0.5"}
  unknown = {n for n in numbers(page.text) if n.strip(",") not in known}
  assert not unknown
  assert len(numbers(page.text)) > 1000


@pytest.mark.parametrize("field", ["kl_to_teacher_nats", "top1_agreement"])
def test_numbers_of_the_document_are_on_the_page(value, page, field):
  for model in (synthetic_report.ANALOG, synthetic_report.CONTROL):
    estimate = value["output"]["models"][model]["metrics"][field]
    assert numbers_lib.interval(estimate) in page.text
  for claim in value["claims"]:
    assert claim["because"] in page.text
    assert claim["command"] in page.text.replace(" --", " --")


def test_the_page_needs_nothing_else(text, page):
  assert not page.of("script", "link", "img", "iframe", "object", "form")
  assert not re.search(r"https?:|@import|url\(|javascript:", text)
  assert not [a for _, a, _ in page.elements if any(k[:2] == "on" for k in a)]
  assert len(text) < 500_000
  for _, attributes, _ in page.of("a"):
    assert attributes["href"][:1] == "#"


def test_a_screen_reader_finds_its_way(page):
  assert page.of("html")[0][1]["lang"] == "en"
  assert page.of("title") and page.of("main") and page.of("header")
  levels = [int(t[1]) for t, _, _ in page.of("h1", "h2", "h3", "h4")]
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
  ids = [a["id"] for _, a, _ in page.elements if "id" in a]
  assert len(set(ids)) == len(ids)
  for _, attributes, _ in page.elements:
    for key in ("aria-labelledby", "aria-describedby"):
      assert attributes.get(key, ids[0]) in ids
    assert attributes.get("href", f"#{ids[0]}")[1:] in ids


def test_tables_and_figures_can_be_heard(page):
  tables = page.of("table")
  assert len(tables) == len(page.of("caption")) > 20
  assert all("scope" in a for _, a, _ in page.of("th"))
  # Each in a box that scrolls, which the keyboard reaches.
  boxes = [a for _, a, _ in page.of("div") if a.get("class") == "scroll"]
  assert all(a["tabindex"] == "0" and a["aria-label"] for a in boxes)
  assert all(above[-1] == "div" for _, _, above in tables)
  drawings = [a for _, a, _ in page.of("svg") if a.get("aria-hidden") != "true"]
  assert len(drawings) > 20
  assert all(a["role"] == "img" for a in drawings)
  titles = [above for t, _, above in page.of("title", "desc") if "svg" in above]
  assert len(titles) == 2 * len(drawings)
  # Every figure has its numbers as a table.
  inside = [above for _, _, above in tables if "figure" in above]
  assert len(inside) == len(page.of("figure")) > 20


def test_curves_differ_without_colour():
  assert len(set(svg.STYLES)) == len(svg.STYLES)
  assert len({shape for _, shape in svg.STYLES}) == len(svg.STYLES)


HOSTILE = (
  "<script>alert(1)</script>",
  "\"'><img src=x onerror=alert(1)>",
  "</style></title><b>&amp;",
  "a\0b\x1b[31m\u202egnp.\ud800",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_string_becomes_markup(name):
  reach = {name: 0.8, "control": 0.3, "random": 0.0}
  found = synthetic_report.parts(reach)
  behaviours = found["steering"]["behaviours"]
  behaviours[name] = behaviours.pop("sentiment")
  behaviours["refusal"]["undefined"] = name
  for value in found["output"]["models"].values():
    value["by_domain"][name] = value["by_domain"].pop("code")
  value = synthetic_report.make(found, reach)
  value["software"][name] = value["inputs"]["options"][name] = name
  text = report.render(value)
  text.encode("utf-8")
  page = Page(text)
  plain = Page(report.render(synthetic_report.make(synthetic_report.parts())))
  kinds = {tag for tag, _, _ in plain.elements}
  assert {tag for tag, _, _ in page.elements} <= kinds
  assert not [a for _, a, _ in page.elements if "onerror" in a or "src" in a]
  assert not re.search("[\0\x1b\u202e\ud800]", text)
  shown = " ".join(markup.printable(name).split())
  assert page.text.count(shown) > 20


@pytest.mark.parametrize("part", synthetic_report.MAKERS)
def test_what_was_not_measured_is_said(found, part):
  rest = {name: value for name, value in found.items() if name != part}
  value = synthetic_report.make(rest, quick=True)
  claims = [c for c in value["claims"] if c["part"] == part]
  assert [c["verdict"] for c in claims] == ["not enough evidence"]
  page = Page(report.render(value))
  command = f"analogjax measure --config=CONFIG --workdir=WORKDIR --only={part}"
  assert page.text.count("This was not measured.") == 1
  assert page.text.count(f"{command} --quick") == 1


def test_the_labs_own_page_has_its_own_command(value):
  ours = "analogjax measure --config=my/config.py --workdir=my/run"
  page = Page(report.render(value, ours))
  for part in synthetic_report.MAKERS:
    assert page.text.count(f"{ours} --only={part}") == 1
  assert "CONFIG" not in page.text and "WORKDIR" not in page.text


def test_links_are_words(value, page):
  ids = {claim["id"] for claim in value["claims"]}
  assert not ids & set(page.texts)
  assert {"steering, sentiment", "stitching, half-way"} <= set(page.texts)


def test_a_card_names_its_thresholds(page):
  assert {"too little 0.25", "enough 0.5", "a guess 0.5"} <= set(page.texts)


def test_a_report_of_nothing_is_a_page():
  page = Page(report.render(synthetic_report.make({})))
  assert page.text.count("This was not measured.") == 4


def test_undefined_numbers_say_why(found):
  found = copy.deepcopy(found)
  for model in found["output"]["models"].values():
    for bin_ in model["by_entropy"]:
      for metric in bin_["metrics"]:
        bin_["metrics"][metric] = synthetic_report.undefined("no token")
    for metric in model["metrics"]:
      model["metrics"][metric] = synthetic_report.undefined("nobody knows")
  for stitches in found["stitching"]["models"].values():
    for stitch in stitches:
      stitch["recovered"] = synthetic_report.undefined("ablation does nothing")
  value = synthetic_report.make(found)
  page = Page(report.render(value))
  assert "n/a (nobody knows)" in page.text
  assert "n/a (ablation does nothing)" in page.text


def test_models_have_one_order(found, page):
  found = copy.deepcopy(found)
  for part in ("output", "similarity", "stitching"):
    models = found[part]["models"]
    found[part]["models"] = dict(reversed(models.items()))
  again = Page(report.render(synthetic_report.make(found)))
  assert again.text == page.text


def test_the_page_is_the_same_each_time(value, text):
  assert report.render(json.loads(json.dumps(value))) == text


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    (None, "n/a"),
    (0, "0"),
    (0.0, "0"),
    (-0.0, "0"),
    (1, "1"),
    (0.25, "0.25"),
    (0.7163, "0.716"),
    (-0.00071, "-0.001"),
    (1.23456, "1.23"),
    (12.3456, "12.3"),
    (123.456, "123"),
    (65_536, "65,536"),
    (1_234_567.8, "1,234,568"),
    (0.000126, "0.00013"),
    (-1.26e-5, "-0.000013"),
    (1.26e-7, "1.3e-07"),
  ],
)
def test_numbers(given, expected):
  assert number(given) == expected


@pytest.mark.parametrize(
  ("values", "most", "expected"),
  [
    ((0.0, 4.2), 5, (0, 1, 2, 3, 4, 5)),
    ((0.0, 4.0), 4, (0, 1, 2, 3, 4)),
    ((-0.631, 0.5), 4, (-1, -0.5, 0, 0.5)),
    ((0.0, 0.00037), 5, (0, 0.0001, 0.0002, 0.0003, 0.0004)),
    ((2.0,), 4, (1.5, 2.0, 2.5)),
    ((0.1, 0.3), 2, (0.1, 0.2, 0.3)),
    ((120.0, 45_000.0), 5, (0, 10_000, 20_000, 30_000, 40_000, 50_000)),
  ],
)
def test_ticks_are_round(values, most, expected):
  scale = svg.Scale.over(values, 0, 100, most=most)
  assert scale.ticks == expected
  assert len(scale.ticks) <= most + 1
  assert scale.ticks[0] <= min(values) and max(values) <= scale.ticks[-1]
  assert scale.at(scale.ticks[0]) == 0 and scale.at(scale.ticks[-1]) == 100


def cells(svg):
  return [e for e in svg.iter("rect") if e.get("class") == "cell"]


def test_a_heat_map_has_what_it_is_of():
  svg = charts.heat_map(
    "key",
    title="t",
    description="d",
    rows=(0.5, 1.0),
    columns=(0.5, 1.0),
    values=((0.1, 0.2), (0.3, 0.4)),
    most=0.4,
    best=(1.0, 0.5),
    row_label="r",
    column_label="c",
  )
  shades = [float(c.get("fill-opacity")) for c in cells(svg)]
  assert shades == [0.25, 0.5, 0.75, 1.0]
  # The first row is the lowest, the first column the leftmost.
  x, y = ([float(c.get(k)) for c in cells(svg)] for k in "xy")
  assert y[0] == y[1] > y[2] == y[3] and x[0] == x[2] < x[1] == x[3]
  (best,) = (e for e in svg.iter("rect") if e.get("class") == "best")
  assert (best.get("x"), best.get("y")) == (
    cells(svg)[2].get("x"),
    cells(svg)[2].get("y"),
  )


def test_a_large_heat_map_scrolls():
  depths = [(i + 1) / 12 for i in range(12)]
  box = charts.heat_map(
    "key",
    title="t",
    description="d",
    rows=depths,
    columns=depths,
    values=[[0.0] * 12] * 12,
    most=0.0,
    best=(depths[0], depths[0]),
    row_label="r",
    column_label="c",
  )
  assert box.get("class") == "scroll" and box[0].tag == "svg"
  assert float(box[0].get("viewBox").split()[2]) >= 12 * charts.CELL


def test_a_histogram_counts():
  svg = charts.histogram(
    "key",
    title="t",
    description="d",
    null=[0.0, 0.0, 0.0, 0.1],
    observed=1.0,
    quantile=0.1,
    x_label="x",
  )
  bars = [e for e in svg.iter("rect") if e.get("class") == "bar"]
  tall = [float(bar.get("height")) for bar in bars]
  assert len(tall) == 2 and tall[0] == pytest.approx(3 * tall[1], rel=0.01)
  (line,) = (e for e in svg.iter("line") if e.get("class") == "observed")
  assert float(line.get("x1")) == charts.WIDTH - 14


def test_curves_go_through_their_points():
  svg = charts.curves(
    "key",
    title="t",
    description="d",
    series=[charts.Series(name="a", style=1, x=[0, 1, 2], y=[0, 2, 1])],
    x_label="x",
    y_label="y",
  )
  (curve,) = svg.iter("polyline")
  points = [
    [float(n) for n in p.split(",")] for p in curve.get("points").split()
  ]
  x, y = zip(*points, strict=True)
  assert x[0] == charts.LEFT and x[2] == charts.WIDTH - charts.RIGHT
  assert x[1] == pytest.approx((x[0] + x[2]) / 2, abs=0.1)
  assert y[0] > y[2] > y[1]  # Up is less in SVG.
  assert y[2] == pytest.approx((y[0] + y[1]) / 2, abs=0.1)


def test_a_constant_can_be_drawn():
  series = [charts.Series(name="a", style=0, x=[1.0], y=[2.0])]
  charts.curves(
    "k", title="t", description="d", series=series, x_label="", y_label=""
  )
  charts.histogram(
    *("k",),
    title="t",
    description="d",
    null=[1.0],
    observed=1.0,
    quantile=1.0,
    x_label="",
  )
  row = charts.Interval(name="a", style=0, value=1.0, low=1.0, high=1.0)
  charts.intervals("k", title="t", description="d", rows=[row], x_label="")
