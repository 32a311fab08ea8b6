from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lowland.report import Row, legend, markdown, read, rich_table, summarize
from lowland.report.columns import columns

WriteRun = Callable[..., Path]


def rows_of(write_run: WriteRun, methods: Sequence[str], seeds: int = 2) -> list[Row]:
    runs = [(m, s, 0.9 + 0.01 * s + 0.02 * n) for n, m in enumerate(methods) for s in range(seeds)]
    return summarize([read(write_run(m, s, accuracy=a)) for m, s, a in runs])


def test_markdown(write_run: WriteRun) -> None:
    head, rule, plain, sam = markdown(rows_of(write_run, ["plain", "sam"])).splitlines()
    assert head.startswith("| method | seeds | test accuracy, % | gain over plain, points |")
    assert "| m-sharpness |" in head
    assert rule.count("---:") == 7
    # 90 and 91: s = 1/√2, t(0.975, 1) = 12.7062, half = 12.7062 / 2; the differences are both 2.00,
    # and an interval of width 0 proves nothing
    assert plain == "| `plain` | 2 | 90.50 ± 6.35 | – | 1.00 / 1.00 | 1.00 × | 4.0 (1.00 ×) | 0.0200 |"
    assert sam == "| `sam` | 2 | 92.50 ± 6.35 | +2.00 ± 0.00 ○ | 2.00 / 2.00 | 1.00 × | 5.0 (1.25 ×) | 0.0125 |"


def test_without_baseline_nothing_is_relative(write_run: WriteRun) -> None:
    text = markdown(rows_of(write_run, ["sam", "looksam"]))
    assert "gain" not in text
    assert "10 ms" in text
    assert "×" not in text


def test_one_seed_and_unfinished(write_run: WriteRun) -> None:
    records = [read(write_run("plain")), read(write_run("sam")), read(write_run("sam", 1, finished=False))]
    records.append(read(write_run("looksam", finished=False)))
    _, _, plain, sam, looksam = markdown(summarize(records)).splitlines()
    assert "| 95.00 |" in plain
    assert "| 1 of 2 | 95.00 | +0.00 ○ |" in sam
    assert "| 0 of 1 | unfinished | – | – | – |" in looksam


def test_pipes_do_not_break_the_table(write_run: WriteRun) -> None:
    assert r"`sam:a\|b`" in markdown(rows_of(write_run, ["sam:a|b"]))


@pytest.mark.parametrize("long", ["sampa:rho=0.1,lam=0.2", "arsam:rho=0.05,window=50,p_max=0.85,warmup=300"])
@pytest.mark.parametrize("width", [80, 105])
def test_terminal_table_cuts_nothing(write_run: WriteRun, long: str, width: int) -> None:
    rows = rows_of(write_run, ["plain", "micro-sam", long], seeds=3)
    out = StringIO()
    Console(file=out, width=width).print(rich_table(rows, width))
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for line in markdown(rows).splitlines()[2:]:
        method, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
        parts = cells if width == 105 else [p for cell in cells for p in re.split(r" (?=[±(/])", cell)]
        for part in re.findall(r"[^:,]+[:,]?", method) + parts:
            assert part in text


@pytest.mark.parametrize("width", [40, 60, 79])
def test_a_narrow_terminal_has_a_block_for_each_method(write_run: WriteRun, width: int) -> None:
    long = "late:start=0.5,total=1000,inner=looksam:k=5,alpha=0.2"
    rows = rows_of(write_run, ["plain", "sampa", long])
    out = StringIO()
    Console(file=out, width=width).print(rich_table(rows, width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(line.rstrip() for line in lines)
    assert "…" not in text
    assert long in text.replace("\n", "")
    for row in rows:
        for column in columns(rows)[1:]:
            assert f" {column.cell(row)}" in text
    ends = {len(line.rstrip()) for line in lines if line.startswith("  seeds")}
    assert len(ends) == 1  # figures stand below each other


@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_more_columns_than_usual_are_not_squeezed(write_run: WriteRun, width: int) -> None:
    own = {"optimizer": "sgd", "lr": 0.2, "momentum": 0.0, "weight_decay": 5e-4, "epochs": 16}
    runs = [("plain", {"epochs": 8}), ("late:start=0.5,inner=looksam:k=5", {"epochs": 8})]
    runs.append(("plain@epochs=16", {"epochs": 16, "recipe": own}))
    rows = summarize([read(write_run(m, s, accuracy=0.9 + 0.01 * s, **o)) for m, o in runs for s in (0, 1)])  # type: ignore[arg-type]
    out = StringIO()
    Console(file=out, width=width).print(rich_table(rows, width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any("whole" in line for line in lines)
    for part in ("2.00", "looksam:", "lr=0.2,", "momentum=0"):
        assert any(part in line for line in lines)


def test_the_legend_explains_what_the_table_shows(write_run: WriteRun) -> None:
    rows = rows_of(write_run, ["plain", "sam"])
    first, second, third = legend(rows).splitlines()
    assert first == "test accuracy, %: mean over seeds ± its 95 % t-interval."
    assert second.startswith("gain over plain, points: paired by seed ± its 95 % t-interval, each by itself. ▲ better")
    assert third.startswith("gradients per step: all of them / one after another")
    alone = legend(rows_of(write_run, ["looksam"], seeds=1))
    assert alone == third


def test_terminal_table_keeps_names_literal(write_run: WriteRun) -> None:
    out = StringIO()
    Console(file=out, width=100).print(rich_table(rows_of(write_run, ["[red]sam[/]"])))
    assert "[red]sam[/]" in out.getvalue()
