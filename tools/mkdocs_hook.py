"""The hook of mkdocs: it adds the generated pages to the site, and the navigation that follows from them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))  # also for the extension of griffe

from docsite import api_pages, method_pages, quotes, repository  # noqa: E402
from docsite.figures import costs_figure  # noqa: E402
from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from lowland.methods import METHODS  # noqa: E402

PALETTE = ROOT / "lowland" / "report" / "page.html"
NAVIGATION: dict[str, list[str]] = {  # placeholders in mkdocs.yml
    "methods": [f"methods/{key}.md" for key in METHODS],
    "api": [f"api/{name}.md" for name in api_pages.PAGES],
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages in the places of their names in the navigation."""
    config.nav = _filled(config.nav)
    return config


def _filled(nav: Any) -> Any:
    if isinstance(nav, dict):
        return {title: _filled(entry) for title, entry in nav.items()}
    if isinstance(nav, list):
        return list(chain.from_iterable(NAVIGATION.get(e, [e]) if isinstance(e, str) else [_filled(e)] for e in nav))
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in chain(repository.pages(), method_pages.pages(), api_pages.pages(), _style()):
        files.append(File.generated(config, path, content=text))
    return files


def _style() -> Iterator[tuple[str, str]]:
    """The colors of figures in the dark scheme: those of the reports of `lowland compare`."""
    found = re.search(r"prefers-color-scheme: dark\) \{\s*:root \{([^}]*)\}", PALETTE.read_text(encoding="utf-8"))
    assert found is not None
    yield "figures.css", f'[data-md-color-scheme="slate"] .figure {{{found[1]}}}\n'


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Fill in quoted tables and the figure of costs, and link the methods in tables to their pages."""
    text = quotes.quoted(markdown)
    if "<!-- figure: costs -->" in text:
        text = text.replace("<!-- figure: costs -->", costs_figure())
    return repository.link_methods(text, page.file.src_uri)
