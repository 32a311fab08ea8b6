from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edited_records import edited
from made_sweeps import contestant, gridded, scattered, sweep, trial

from lowland.core.errors import ArgumentError, DataError
from lowland.runs.sweep import read, write


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = sweep(gridded(), scattered())
    write(made, tmp_path / "new" / "sweep.json")
    assert read(tmp_path / "new" / "sweep.json") == made
    assert os.listdir(tmp_path / "new") == ["sweep.json"]


def test_the_best_trial_is_the_first_of_equal_ones_and_needs_a_score() -> None:
    trials = [trial(0, None, "diverged"), trial(1, 0.8), trial(2, 0.9), trial(3, 0.9), trial(4, 0.99, "pruned")]
    made = contestant(*trials)
    assert made.best(higher=True) == trials[2]
    assert made.best(higher=False) == trials[1]
    assert contestant(trials[0]).best(higher=True) is None
    assert sweep(contestant(trials[1]), made, contestant(trials[0])).winners()[0][1] == trials[2]
    assert len(sweep(contestant(trials[1]), made, contestant(trials[0])).winners()) == 2


def test_of_equal_trials_the_loss_decides() -> None:
    trials = [trial(0, 0.9), trial(1, 0.9), trial(2, 0.9), trial(3, 0.8), trial(4, 0.9)]
    losses = [None, 0.5, 0.3, 0.1, 0.3]  # an older record has none
    made = contestant(*(replace(t, loss=loss) for t, loss in zip(trials, losses, strict=True)))
    assert made.best(higher=True) == made.trials[2]
    assert made.best(higher=False) == made.trials[3]


def test_complete_sweeps_have_all_trials_and_none_that_runs() -> None:
    made = contestant(trial(0), trial(1))
    assert sweep(made).complete()
    assert not sweep(replace(made, total=3)).complete()
    assert not sweep(contestant(trial(0), trial(1, None, "running"))).complete()


def test_a_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(sweep(gridded()), tmp_path / "sweep.json")
    before = (tmp_path / "sweep.json").read_bytes()

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArgumentError, match="No space left on device"):
        write(sweep(scattered()), tmp_path / "sweep.json")
    assert (tmp_path / "sweep.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["sweep.json"]


@pytest.mark.parametrize("damage", [
    lambda loaded: loaded.update(kind="run"), lambda loaded: loaded.update(format=99),
    lambda loaded: loaded.pop("metric"), lambda loaded: loaded["contestants"][0]["trials"][0].update(outcome="good"),
    lambda loaded: loaded.update(extra=1),
])  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "sweep.json"
    write(sweep(gridded()), path)
    loaded = json.loads(path.read_text())
    damage(loaded)  # type: ignore[operator]
    path.write_text(json.dumps(loaded))
    with pytest.raises(DataError, match="is no record of a sweep"):
        read(path)


TRIAL = ("contestants", 0, "trials", 0)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((*TRIAL, "score"), "0.9"),
        ((*TRIAL, "score"), math.nan),
        ((*TRIAL, "score"), True),
        ((*TRIAL, "scores"), ["0.9"]),
        ((*TRIAL, "loss"), []),
        ((*TRIAL, "number"), 0.5),
        ((*TRIAL, "values"), {"rho": 0.1}),
        ((*TRIAL, "values"), None),
        ((*TRIAL, "epochs"), [[1, "0.5"]]),
        ((*TRIAL, "epochs"), [[1, 0.5, 2]]),
        ((*TRIAL, "runs"), [3]),
        (("contestants", 0, "total"), "4"),
        (("contestants", 0, "importance"), {"rho": "much"}),
        (("contestants", 0, "parameters", 0, "low"), "0.1"),
        (("contestants", 0, "parameters", 0, "log"), "false"),
        (("metric", "higher"), "false"),
        (("metric", "scale"), "100"),
        (("seeds",), ["0"]),
        (("validation",), "0.1"),
        (("budget",), []),
    ],
)
def test_edited_values_are_refused_and_named(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    """The text "false" would count as true, and turn the order of the trials around."""
    path = tmp_path / "sweep.json"
    write(sweep(gridded()), path)
    edited(path, json.loads(path.read_text()), place, value)
    name = next(key for key in reversed(place) if isinstance(key, str))
    with pytest.raises(DataError, match=rf"is no record of a sweep: .*{name}"):
        read(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record of a sweep at"):
        read(tmp_path / "sweep.json")
    (tmp_path / "sweep.json").write_text('{"kind": "sw')
    with pytest.raises(DataError, match="is no record of a sweep"):
        read(tmp_path / "sweep.json")
