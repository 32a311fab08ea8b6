"""The whole site, built as `make docs` builds it: no warnings, a search that finds methods, nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lowland.methods import METHODS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_every_method_has_a_page(site: Path) -> None:
    for key, kind in METHODS.items():
        html = (site / "methods" / key / "index.html").read_text(encoding="utf-8")
        assert f'id="lowland.{kind.__name__}"' in html
        assert "When not to use it" in html
        assert "<svg" in html


def test_the_search_finds_the_methods_and_the_reference(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"]: entry["text"] for entry in index["docs"]}
    assert {f"methods/{key}/" for key in METHODS} <= set(found)
    assert "label noise" in found["methods/k-sam/#when-not-to-use-it"]
    assert "api/engine/#lowland.Engine.backward" in found


def test_links_of_the_reference_are_resolved(site: Path) -> None:
    html = (site / "methods" / "esam" / "index.html").read_text(encoding="utf-8")
    assert re.search(r'<a[^>]* href="\.\./sam/#lowland\.SAM"', html)
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert not [text for text in pages if "][lowland." in text or "<!-- quote" in text or "<!-- figure" in text]


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(https?://[^"]+)', path.read_text("utf-8"))
        assert not loaded, path
