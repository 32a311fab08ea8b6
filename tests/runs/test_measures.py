"""Measures of final weights: written, read back with the last value of each key, and only for the run's own weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import WriteRun

from lowland.core.errors import DataError
from lowland.runs.measures import MEASURES_FILE, Measure, append, read
from lowland.runs.reader import read as read_run

SHA = "0123456789abcdef" * 4  # of the runs that tests make


def measure(value: float | None = 0.5, rho: float = 0.05, **fields: object) -> Measure:
    common = {"group": "sharpness", "name": "worst", "title": "worst case", "weights": SHA}
    return Measure(**(common | {"settings": {"rho": rho, "m": 4}, "value": value} | fields))  # type: ignore[arg-type]


def test_the_last_value_of_a_key_counts(tmp_path: Path) -> None:
    append(tmp_path, [measure(0.5), measure(0.7, rho=0.1)])
    append(tmp_path, [measure(0.6, error=0.01)])
    assert read(tmp_path, SHA) == (measure(0.6, error=0.01), measure(0.7, rho=0.1))
    assert read(tmp_path, "f" * 64) == ()
    assert read(tmp_path / "nowhere", SHA) == ()


def test_values_that_are_not_finite_are_none(tmp_path: Path) -> None:
    append(tmp_path, [measure(float("inf"), error=float("nan"))])
    (found,) = read(tmp_path, SHA)
    assert (found.value, found.error) == (None, None)


def test_a_killed_process_loses_its_last_line_alone(tmp_path: Path) -> None:
    append(tmp_path, [measure(0.5), measure(0.7, rho=0.1)])
    file = tmp_path / MEASURES_FILE
    file.write_text(file.read_text()[:-20])
    assert read(tmp_path, SHA) == (measure(0.5),)
    append(tmp_path, [measure(0.9, rho=0.2)])  # the next process goes on
    assert read(tmp_path, SHA) == (measure(0.5), measure(0.9, rho=0.2))
    file.write_text(file.read_text()[:10])  # killed in its first line
    append(tmp_path, [measure(0.5)])
    assert read(tmp_path, SHA) == (measure(0.5),)


def test_other_lines_are_refused_and_named(tmp_path: Path) -> None:
    append(tmp_path, [measure()])
    file = tmp_path / MEASURES_FILE
    file.write_text('{"value": 3}\n' + file.read_text())
    with pytest.raises(DataError, match=r"measures\.jsonl, line 1 is not a measure of lowland"):
        read(tmp_path, SHA)


@pytest.mark.parametrize(
    "fields",
    [
        {"value": "0.5"},
        {"value": float("nan")},
        {"value": True},
        {"value": [1]},
        {"error": "0.1"},
        {"scale": None},
        {"settings": [1]},
        {"title": 3},
    ],
)
def test_edited_values_are_refused_and_named(tmp_path: Path, fields: dict[str, object]) -> None:
    """The mean of true and 0.5 would be 0.75."""
    append(tmp_path, [measure(), measure()])
    file = tmp_path / MEASURES_FILE
    first, second = file.read_text().splitlines()
    file.write_text(f"{json.dumps(json.loads(first) | fields)}\n{second}\n")
    with pytest.raises(DataError, match=r"measures\.jsonl, line 1 is not a measure of lowland: .*Measure\."):
        read(tmp_path, SHA)


def test_a_run_has_its_measures(write_run: WriteRun) -> None:
    folder = write_run()
    append(folder, [measure(0.5), measure(0.9, weights="f" * 64, rho=0.2)])
    assert read_run(folder).measures == (measure(0.5),)
    unfinished = write_run(seed=1, finished=False)
    append(unfinished, [measure(0.5)])
    assert read_run(unfinished).measures == ()
