"""Pages of the site that lie elsewhere in the repository: README, CONTRIBUTING, RELEASING, CHANGELOG."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lowland.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # page of the site, by file
    "README.md": "introduction.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "CHANGELOG.md": "changes.md",
}
TITLES = {"README.md": "Introduction"}  # where the heading of the file is no title of a page
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_CELL = re.compile(r"(?<=\| )`([\w-]+)`(?= \|)")
_MENTION = re.compile(r"(?<!\[)`([\w-]+)`(?!\])")
ABOUT_METHODS = ("methods.md", "hardware.md", "when_not.md")


def pages() -> Iterator[tuple[str, str]]:
    """The path and the Markdown of each page."""
    for file, page in PAGES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        if file in TITLES:
            text = re.sub(r"\A# .*$", f"# {TITLES[file]}", text, flags=re.MULTILINE)
        yield page, outside_code(text, lambda part: _LINK.sub(_on_the_site, part))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """The text with its parts outside code blocks changed by a function."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [change(part) for part in parts[::2]]
    return "".join(parts)


def _on_the_site(link: re.Match[str]) -> str:
    """A link of a file at the root of the repository; one to a file that the site has not becomes text."""
    image, text, target = link.groups()
    path, anchor, fragment = target.partition("#")
    if "://" in target or not path:
        return link[0]
    if path in PAGES:
        return f"[{text}]({PAGES[path]}{anchor}{fragment})"
    if path.startswith("docs/"):
        return f"{image}[{text}]({path.removeprefix('docs/')}{anchor}{fragment})"
    return text if text.startswith("`") or " " in text else f"`{text}`"


def link_methods(text: str, page: str) -> str:
    """A page with links to the pages of methods: from cells of tables, and from all text of pages about methods."""
    to = posixpath.relpath("methods", posixpath.dirname(page) or ".")

    def link(match: re.Match[str]) -> str:
        return f"[{match[0]}]({to}/{match[1]}.md)" if match[1] in METHODS else match[0]

    key = _MENTION if page in ABOUT_METHODS else _CELL
    return outside_code(text, lambda part: key.sub(link, part))
