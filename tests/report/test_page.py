from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import lines_of, modern, write_lines

from lowland.core.errors import ArgumentError
from lowland.report import read, write_page
from lowland.report.page import group_title, render
from lowland.runs.record import RunRecord

WriteRun = Callable[..., Path]
VOID = {"meta", "link", "wbr", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, texts and attributes of a page; complains where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.texts).split())


def records_of(write_run: WriteRun, seeds: int = 2) -> list[RunRecord]:
    methods = {"plain": 0.90, "sam:rho=0.1": 0.92, "sampa": 0.93}
    # plain gains a point from seed to seed, the others 1.04 points
    rise = {"plain": 0.01}
    return [
        read(write_run(m, s, accuracy=a + rise.get(m, 0.0104) * s)) for m, a in methods.items() for s in range(seeds)
    ]


def test_page_says_what_the_runs_say(write_run: WriteRun, tmp_path: Path) -> None:
    records = records_of(write_run)
    path = write_page(records, tmp_path / "new" / "report.html", command="lowland compare --seeds 2")
    page = Page(path.read_text(encoding="utf-8"))
    text = page.text
    for told in (
        "digits · mlp · 3 methods × 2 seeds",
        "Take sampa: +3.02 ± 0.25 points over plain, p = 0.0084 after Holm's correction for 2 comparisons, at 2.00",
        "Equal budget: 176 steps each.",
        "90.50 ± 6.35",
        "+2.02 ± 0.25 ▲",
        "rho=0.05",
        "weight decay 0.0005",
        "torch 2.13.0",
        "test machine",
        "All 6 runs",
        "lowland compare --seeds 2",
    ):
        assert told in text
    assert (page.tags.count("svg"), page.tags.count("figcaption")) == (5, 4)  # the first figure for two widths
    assert list(path.parent.iterdir()) == [path]  # no draft is left


def test_page_asks_nothing_of_the_network(write_run: WriteRun) -> None:
    html = render(records_of(write_run))
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "image", "object"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith("#")
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", html))
    addresses = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, never fetched
    assert ("name", "viewport") in page.attributes
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_names_from_files_are_escaped(write_run: WriteRun) -> None:
    evil = "</title><script>alert('x')</script><img src=http://e.vil/>\"'"
    records = [
        read(
            write_run(
                "plain",
                finished=False,
                tail=json.dumps({"kind": "warning", "message": evil}) + "\n",
                run=evil,
                task=evil,
                model=evil,
                command=evil,
                recipe={evil: evil},
                versions={"torch": evil},
                machine={"name": evil},
                budget={"kind": evil},
                noise={"kind": evil, "rate": 0.5},
            )
        ),
        read(write_run("sam", method={"key": evil, "class": evil, "text": evil, "fields": {evil: [evil]}}, task=evil)),
    ]
    assert records[0].warnings == (evil,)
    html = render(records, title=evil)
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert "<script" not in html
    assert evil in "".join(page.texts)


def test_groups_get_sections_of_their_own(write_run: WriteRun) -> None:
    records = records_of(write_run)
    records += [read(write_run("plain", 0, folder=f"n{s}", noise={"kind": "symmetric", "rate": 0.4})) for s in (0,)]
    page = Page(render(records))
    text = page.text
    assert page.tags.count("section") == 2
    assert page.tags.count("h2") == 2
    assert "2 comparisons" in text
    assert "digits · mlp · 40 % symmetric label noise · 1 method × 1 seed" in text
    for name, value in page.attributes:
        if name == "href" and value.startswith("#section"):
            assert ("id", value[1:]) in page.attributes
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_one_seed(write_run: WriteRun) -> None:
    html = render(records_of(write_run, seeds=1))
    text = " ".join(Page(html).texts)
    assert "one seed decides nothing" in text
    assert "3 methods × 1 seed" in text
    assert "interval" not in text
    assert " ± 0" not in text


def test_contestants_of_equal_cost(write_run: WriteRun) -> None:
    records = records_of(write_run)
    budget = {"kind": "steps", "limit": 352.0}
    own = {"optimizer": "adam", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "epochs": 16}
    for seed in range(2):
        again = write_run("plain@epochs=16", seed, accuracy=0.95, epochs=16, budget=budget, recipe=own)
        records.append(read(again))
    page = Page(render(records))
    assert "4 contestants × 2 seeds" in page.text
    assert "Equal budget: 176 steps each, except plain@epochs=16 (352 steps)." in page.text
    assert "recipe: optimizer=adam" in page.text
    assert "epochs=16; recipe" not in page.text  # its name says it
    assert "2.00 / 2.00 ×" in page.text


def test_no_word_of_accuracy_where_it_is_not_measured(tmp_path: Path) -> None:
    perplexity = {"name": "perplexity", "unit": "", "scale": 1, "higher": False}
    runs = [(m, s) for m in ("plain", "sam") for s in range(3)]
    records = [
        read(write_lines(tmp_path / f"{m}{s}", modern(lines_of(m, s, accuracy=20.0 + s), perplexity, select="best")))
        for m, s in runs
    ]
    html = render(records)
    text = Page(html).text
    assert "accuracy" not in html.lower()
    for told in ("test perplexity", "at the end", "Lower is better.", "best on the validation part", "is lower"):
        assert told in text


def test_unfinished_runs_only(write_run: WriteRun) -> None:
    records = [read(write_run("plain", s, finished=False, tail='{"kind"')) for s in (0, 1)]
    page = Page(render(records))
    text = page.text
    assert "No run has finished yet." in text
    assert "Unfinished and not counted: plain seed 0, plain seed 1." in text
    assert "svg" not in page.tags


def test_title_counts_uneven_seeds(write_run: WriteRun) -> None:
    records = [*records_of(write_run), read(write_run("sampa", 2))]
    assert group_title(records) == "digits · mlp · 3 methods × 2–3 seeds"


def test_recorded_command_is_shown(write_run: WriteRun) -> None:
    assert "lowland compare --task digits" in render([read(write_run(command="lowland compare --task digits"))])
    assert "How to reproduce" not in render([read(write_run("sam"))])


def test_a_failed_write_keeps_the_old_page(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ArgumentError, match="disk full"):
        write_page([read(write_run())], path)
    assert path.read_text(encoding="utf-8") == "old"
    assert not list(tmp_path.glob(".report*"))


def test_no_records() -> None:
    with pytest.raises(ArgumentError, match="records must hold at least one run"):
        render([])


def test_a_page_that_cannot_be_written(write_run: WriteRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="out must be a file that can be written to"):
        write_page([read(write_run())], tmp_path / "file" / "page.html")
