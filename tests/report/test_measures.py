"""Tables of measures: means over seeds by hand, and only values that were measured alike on all seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import WriteRun

from lowland.report import export, measures, read_all, summarize, write_page
from lowland.runs.measures import Measure, append

SHA = "0123456789abcdef" * 4


def add(folder: Path, value: float, error: float | None = None, **settings: object) -> None:
    given = {"rho": 0.05} | settings
    title = {"unit": "%", "scale": 100.0} if settings.get("bits") else {}
    append(
        folder,
        [Measure(group="sharpness", name="worst", title="worst case", value=value, error=error, weights=SHA,
                 settings=given, help="How much the loss rises.", **title)],  # type: ignore[arg-type]
    )  # fmt: skip


def cells(write_run: WriteRun, tmp_path: Path) -> tuple[list[str], list[list[str]]]:
    rows = summarize(read_all([tmp_path / "runs"]))
    shown = measures.tables(rows)["sharpness"]
    return [column.heading for column in shown], [[column.cell(row) for column in shown] for row in rows]


def test_means_and_intervals_over_seeds(write_run: WriteRun, tmp_path: Path) -> None:
    for seed, (one, other) in enumerate([(1.0, 4.0), (2.0, 4.0), (3.0, 4.0)]):
        add(write_run("plain", seed), one)
        add(write_run("sam", seed), other, error=0.5)
    headings, table = cells(write_run, tmp_path)
    assert headings == ["method", "worst case"]
    # t(0.975, 2) = 4.3027, s = 1, n = 3
    assert table == [["plain", "2.000 ± 2.484"], ["sam", "4.000 ± 0.000"]]


def test_one_seed_has_the_error_of_the_measurement(write_run: WriteRun, tmp_path: Path) -> None:
    add(write_run("plain"), 0.25, error=0.125)
    add(write_run("sam"), 0.5)
    assert cells(write_run, tmp_path)[1] == [["plain", "0.2500 ± 0.1250"], ["sam", "0.5000"]]


def test_a_measure_of_some_seeds_is_not_shown(write_run: WriteRun, tmp_path: Path) -> None:
    add(write_run("plain", 0), 1.0)
    add(write_run("plain", 1), 1.0)
    add(write_run("sam", 0), 1.0)
    write_run("sam", 1)
    assert [row[1] for row in cells(write_run, tmp_path)[1]] == ["1.000 ± 0.000", "–"]


def test_a_seed_without_a_finite_value_is_not_left_out_of_the_mean(write_run: WriteRun, tmp_path: Path) -> None:
    """The method that diverges more would look better."""
    for seed in range(4):
        add(write_run("plain", seed), 2.0)
        add(write_run("sam", seed), 1.0 if seed == 0 else float("nan"))
    assert [row[1] for row in cells(write_run, tmp_path)[1]] == ["2.000 ± 0.000", "no value in 3 of 4"]


def test_equal_titles_get_the_settings_that_differ(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run("plain")
    add(folder, 1.0, m=4)
    add(folder, 2.0, rho=0.1, m=4)
    assert cells(write_run, tmp_path)[0] == ["method", "worst case, rho 0.05", "worst case, rho 0.1"]


def test_no_measures_no_table(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("plain")
    assert measures.tables(summarize(read_all([tmp_path / "runs"]))) == {}


@pytest.mark.parametrize("scaled", [False, True])
def test_the_page_and_the_export_have_the_table(write_run: WriteRun, tmp_path: Path, scaled: bool) -> None:
    add(write_run("plain"), 0.25, **({"bits": 4} if scaled else {}))
    records = read_all([tmp_path / "runs"])
    html = write_page(records, tmp_path / "page.html").read_text()
    assert "Sharpness of the final weights" in html
    value = "25.00" if scaled else "0.2500"
    assert f"<td>{value}</td>" in html
    assert "How much the loss rises. Measured with rho 0.05" in html
    files = {path.name: path.read_text() for path in export(records, tmp_path / "exported")}
    (table,) = (text for name, text in files.items() if name.endswith("sharpness.md"))
    assert f"| `plain` | {value} |" in table
