"""The report in a browser: Debian's chromium, without a window.

If it is missing it is installed, unless that needs interaction: by root, with
apt-get, without a terminal.
"""

import html
import json
import re
import subprocess

import debian
import pytest
import synthetic_report

from analogjax.fidelity.report import page as report

pytestmark = pytest.mark.slow

WIDTHS = (360, 1200)
# Reads the page in frames of given widths; says what it found in its title.
# Contrast is that of WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio.
_PROBE = """
<!DOCTYPE html><meta charset="utf-8"><title></title><body></body><script>
const luminance = colour => {
  const c = colour.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255).map(
    x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
};
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const look = frame => {
  const view = frame.contentWindow, root = frame.contentDocument;
  for (const more of root.querySelectorAll("details")) more.open = true;
  const style = node => view.getComputedStyle(node);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = style(node).backgroundColor;
      if (!colour.endsWith(", 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const over = [], faint = [], small = [];
  for (const node of root.body.querySelectorAll("*")) {
    const box = node.getBoundingClientRect();
    if (box.right > view.innerWidth + 1 && !node.closest(".scroll"))
      over.push(node.tagName);
    const text = [...node.childNodes].some(
      child => child.nodeType == 3 && child.data.trim());
    const drawn = node.closest("svg");
    if (!text || ["title", "desc"].includes(node.tagName)) continue;
    // What is in a cell stands on a shade that is checked by eye.
    if (["value", "deep"].includes(node.getAttribute("class"))) continue;
    const ratio = contrast(drawn ? style(node).fill : style(node).color,
      behind(node));
    if (ratio < 4.5) faint.push([node.tagName, node.textContent, ratio]);
    const size = parseFloat(style(node).fontSize) *
      (drawn ? drawn.getBoundingClientRect().width /
        drawn.viewBox.baseVal.width : 1);
    if (size < 9) small.push([node.tagName, node.textContent, size]);
  }
  return {over, faint, small, width: view.innerWidth,
    page: root.documentElement.scrollWidth,
    paper: style(root.body).backgroundColor,
    tables: root.querySelectorAll("table").length,
    scrolling: [...root.querySelectorAll(".scroll")].filter(
      box => box.scrollWidth > box.clientWidth).length};
};
const found = [];
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = "fidelity.html";
  frame.onload = () => {
    found.push(look(frame));
    document.title = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>
""".replace("WIDTHS", json.dumps(WIDTHS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  if why := debian.why_missing(["chromium"], ["chromium"]):
    pytest.skip(why)
  folder = tmp_path_factory.mktemp("report")
  value = synthetic_report.make(synthetic_report.parts())
  (folder / "fidelity.html").write_text(report.render(value), "utf-8")
  (folder / "probe.html").write_text(_PROBE, "utf-8")
  return folder


def browse(folder, page, *flags):
  """chromium's output, once the page is loaded."""
  done = subprocess.run(
    [
      *("chromium", "--headless", "--no-sandbox", "--disable-gpu"),
      *("--disable-dev-shm-usage", "--enable-logging=stderr"),
      # Otherwise one file may not look into a frame of another.
      "--allow-file-access-from-files",
      f"--user-data-dir={folder / 'profile'}",
      *flags,
      (folder / page).as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  # Messages of the page, as of something that it may not load.
  assert ":CONSOLE" not in done.stderr, done.stderr
  return done.stdout


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_and_a_desk(folder, scheme):
  dark = ["--blink-settings=preferredColorScheme=0"]
  flags = dark if scheme == "dark" else []
  dom = browse(folder, "probe.html", "--dump-dom", *flags)
  title = re.search("<title>(.*?)</title>", dom, re.DOTALL)[1]
  found = {f["width"]: f for f in json.loads(html.unescape(title))}
  assert set(found) == set(WIDTHS)
  for width, seen in found.items():
    assert seen["page"] <= width and seen["over"] == []
    assert seen["faint"] == [] and seen["small"] == []
    assert seen["tables"] > 20
    paper = [int(x) for x in re.findall(r"\d+", seen["paper"])[:3]]
    assert (max(paper) < 64) if scheme == "dark" else (min(paper) > 192)
  # Wide tables scroll in their own box.
  assert found[WIDTHS[0]]["scrolling"] > 5


def test_it_can_be_printed(folder):
  path = folder / "fidelity.pdf"
  browse(folder, "fidelity.html", f"--print-to-pdf={path}")
  data = path.read_bytes()
  assert data.startswith(b"%PDF")
  assert 4 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 40
