"""The page in a browser, at the widths of a desk and of a phone: what overflows, and what lies on what."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made_runs import family, lines_of, write_lines
from matplotlib.image import imread

from lowland.report import read, write_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason=f"no browser: none of {', '.join(BROWSERS)} is installed; try apt-get install chromium"
    ),
]
HEIGHTS = {1200: 900, 390: 844}
MEASURE = """
<script>
const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
const shown = e => e.getClientRects().length > 0;
const said = {
  inner: innerWidth, scroll: document.documentElement.scrollWidth,
  first: [...document.querySelectorAll(".first svg")].filter(shown).map(box),
  figures: [...document.querySelectorAll("svg")].filter(shown).map(svg => ({
    box: box(svg), texts: [...svg.querySelectorAll("text")].map(t => ({ text: t.textContent, box: box(t) })) })),
  scrolls: [...document.querySelectorAll(".scroll")].filter(shown).map(box),
  focus: document.querySelectorAll("[tabindex='0']").length,
};
parent.postMessage(JSON.stringify(said), "*");
</script>
"""
FRAME = """<!DOCTYPE html><body style="margin: 0"><pre id="measured"></pre>
<script>addEventListener("message", e => { document.getElementById("measured").textContent = e.data; });</script>
<iframe src="PAGE" width="WIDTH" height="HEIGHT" style="border: 0"></iframe></body>
"""  # a window is never as narrow as a phone, a frame is


def pages(folder: Path) -> dict[str, Path]:
    twice = [lines_of("plain@epochs=80", s, accuracy=0.73 + 0.002 * s, epochs=80, recipe={"lr": 0.2}) for s in range(5)]
    made = {"three": family(3), "many": family(23), "equal": family(4) + twice}
    found = {}
    for name, runs in made.items():
        records = [read(write_lines(folder / name / str(n), lines)) for n, lines in enumerate(runs)]
        found[name] = write_page(records, folder / f"{name}.html", command="lowland compare --methods all --seeds 5")
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pages(tmp_path_factory.mktemp("pages"))


def browse(page: Path, width: int, *options: str) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},{HEIGHTS[width]}", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def measured(page: Path, width: int) -> dict[str, Any]:
    copy = page.with_name(f"{page.stem}-{width}.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    outer = page.with_name(f"{page.stem}-{width}-frame.html")
    text = FRAME.replace("PAGE", copy.name).replace("WIDTH", str(width)).replace("HEIGHT", str(HEIGHTS[width]))
    outer.write_text(text, encoding="utf-8")
    dom = browse(outer, width, "--dump-dom", "--virtual-time-budget=3000")
    found = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    said: dict[str, Any] = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert said["inner"] == width
    return said


def knots(figure: dict[str, Any]) -> list[tuple[str, str]]:
    """Texts that lie on each other: by more than a quarter of their height, which fonts leave empty around letters."""
    found = []
    for n, one in enumerate(figure["texts"]):
        for other in figure["texts"][:n]:
            (a, b, c, d), (e, f, g, h) = one["box"], other["box"]
            wide, high = min(c, g) - max(a, e), min(d, h) - max(b, f)
            if wide > 1 and high > 0.25 * min(d - b, h - f):
                found.append((one["text"], other["text"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("name", ["three", "many", "equal"])
def test_nothing_overflows_and_nothing_overlaps(made: dict[str, Path], name: str, width: int) -> None:
    said = measured(made[name], width)
    assert said["scroll"] <= width
    assert len(said["figures"]) == 4  # of the first figure, one of two is shown
    for figure in said["figures"]:
        assert knots(figure) == []
        for text in figure["texts"]:
            left, _, right, _ = text["box"]
            assert left >= 0, text
            assert right <= width, text
    for left, _, right, _ in said["scrolls"]:
        assert left >= 0
        assert right <= width
    ((_, top, _, bottom),) = said["first"]
    assert bottom <= 2 * HEIGHTS[width]
    assert top <= HEIGHTS[width]
    assert said["focus"] >= 6  # five figures and tables of the comparison, and its runs


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_light_and_dark(made: dict[str, Path], tmp_path: Path, width: int) -> None:
    light, dark = tmp_path / "light.png", tmp_path / "dark.png"
    browse(made["many"], width, f"--screenshot={light}", "--blink-settings=preferredColorScheme=1")
    browse(made["many"], width, f"--screenshot={dark}", "--blink-settings=preferredColorScheme=0")
    bright, deep = imread(light)[..., :3], imread(dark)[..., :3]
    assert bright.shape[:2] == deep.shape[:2] == (HEIGHTS[width], width)
    assert bright[2, 2].min() > 0.95
    assert deep[2, 2].max() < 0.2
    for picture, paper in ((bright, bright[2, 2]), (deep, deep[2, 2])):  # ink that can be read on it
        assert abs(picture - paper).max() > 0.7
