from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import lines_of, modern, write_lines

from lowland.core.errors import DataError
from lowland.report import MetricRecord, read, read_all
from lowland.runs.record import ACCURACY

WriteRun = Callable[..., Path]


def append(folder: Path, *lines: dict[str, Any]) -> None:
    with (folder / "run.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def epoch(number: int, step: int, accuracy: float, seconds: float = 1.0) -> dict[str, Any]:
    return {"kind": "epoch", "epoch": number, "step": step, "test_accuracy": accuracy, "seconds": seconds}


def test_read_folder_and_file(write_run: WriteRun) -> None:
    folder = write_run("sampa:rho=0.1", 3, accuracy=0.9, epochs=3)
    record = read(folder)
    assert record == read(folder / "run.jsonl")
    assert (record.task, record.model, record.seed) == ("digits", "mlp", 3)
    assert (record.method.key, record.method.text, record.method.fields) == ("sampa", "sampa:rho=0.1", {"rho": 0.05})
    assert [e.epoch for e in record.epochs] == [1, 2, 3]
    assert record.end is not None
    assert record.end.test == {"accuracy": 0.9, "loss": 0.2}
    assert record.finished
    assert record.command is None


@pytest.mark.parametrize(("command", "text"), [("lowland demo", "lowland demo"), (["a", "b c"], "a 'b c'")])
def test_command(write_run: WriteRun, command: object, text: str) -> None:
    assert read(write_run(command=command, epochs=3)).command == text


def test_an_older_file_is_judged_by_accuracy(write_run: WriteRun) -> None:
    record = read(write_run("sam", accuracy=0.9))
    assert record.metrics == (ACCURACY,) == (MetricRecord(name="accuracy", unit="%", scale=100.0, higher=True),)
    assert (record.contestant, record.select, record.metric.bounds) == ("sam", "last", (0.0, 100.0))
    assert record.end is not None
    assert record.end.best is None  # what was chosen on the test set is not read
    assert record.score == record.last == 0.9
    assert record.epochs[-1].test == {"loss": pytest.approx(0.2), "accuracy": 0.9}
    assert record.epochs[-1].train == {"accuracy": None}
    assert record.epochs[-1].validation == {}


@pytest.mark.parametrize(("select", "score"), [("last", 20.0), ("best", 19.99)])
def test_a_file_with_metrics_of_its_own(tmp_path: Path, select: str, score: float) -> None:
    perplexity = {"name": "perplexity", "unit": "", "scale": 1, "higher": False}
    lines = lines_of("plain@epochs=16", accuracy=20.0, epochs=3)
    hits = {"name": "top5", "unit": "%", "scale": 100}
    record = read(write_lines(tmp_path / "run", modern(lines, perplexity, hits, select=select)))
    assert record.metrics == (
        MetricRecord(name="perplexity", higher=False),
        MetricRecord(name="top5", unit="%", scale=100.0),
    )
    assert (record.contestant, record.method.text, record.noise) == ("plain@epochs=16", "plain", {})
    assert record.end is not None
    assert record.end.best is not None
    assert record.end.best.epoch == 2
    assert record.end.best.validation == record.end.test
    assert (record.last, record.score) == (20.0, pytest.approx(score))
    assert record.epochs[-1].test == record.epochs[-1].validation == record.end.test
    assert record.metric.bounds == (float("-inf"), float("inf"))


def test_without_a_best_epoch_there_is_no_best_score(tmp_path: Path) -> None:
    lines = modern(lines_of(), {"name": "accuracy", "unit": "%", "scale": 100}, select="best")
    del lines[-1]["best"]
    record = read(write_lines(tmp_path / "run", lines))
    assert (record.score, record.last) == (None, 0.95)


def test_an_unknown_selection_is_refused(write_run: WriteRun) -> None:
    with pytest.raises(DataError, match="select must be best or last, but is 'first'"):
        read(write_run(select="first"))


def test_torn_last_line_is_ignored(write_run: WriteRun) -> None:
    record = read(write_run(finished=False, tail='{"kind": "epoch", "epo', epochs=3))
    assert len(record.epochs) == 3
    assert record.warnings == ()
    assert not record.finished


def test_torn_inside_a_character(write_run: WriteRun) -> None:
    folder = write_run(finished=False, epochs=3)
    with (folder / "run.jsonl").open("ab") as file:
        file.write(b'{"kind": "warning", "message": "\xe2\x82')
    assert len(read(folder).epochs) == 3


def test_resumed_run_replaces_what_is_repeated(write_run: WriteRun) -> None:
    folder = write_run(finished=False, tail='{"kind": "epo\n', epochs=3)  # 3 epochs of 22 steps, then killed
    append(folder, {"kind": "resumed", "step": 30, "time": ""}, epoch(2, 44, 0.5, seconds=9.0))
    record = read(folder)
    assert [(e.epoch, e.step) for e in record.epochs] == [(1, 22), (2, 44)]
    assert record.epochs[1].test["accuracy"] == 0.5
    assert record.epochs[1].seconds == 9.0
    assert record.resumed == 1
    assert record.warnings == ("line 5 of the run file is damaged and was left out",)


def test_later_line_of_an_epoch_wins(write_run: WriteRun) -> None:
    folder = write_run(epochs=3)
    append(folder, epoch(3, 66, 0.25))
    assert [e.test["accuracy"] for e in read(folder).epochs][2:] == [0.25]


def test_resumed_after_the_end_is_unfinished(write_run: WriteRun) -> None:
    folder = write_run(epochs=3)
    append(folder, {"kind": "resumed", "step": 66}, {"kind": "warning", "message": "longer budget"})
    record = read(folder)
    assert not record.finished
    assert record.warnings == ("longer budget",)


def test_null_and_not_finite_numbers_are_none(write_run: WriteRun) -> None:
    folder = write_run(epochs=3)
    append(folder, epoch(4, 88, 0.5) | {"train_loss": None, "test_loss": float("nan")})
    last = read(folder).epochs[-1]
    assert last.train_loss is None
    assert last.test["loss"] is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "config"),
        ("hello\nworld\n", "config"),
        ('{"a": 1}\n', "config"),
        ("[1, 2]\n", "config"),
        ('{"kind": "config", "task": "digits"}\n', "'method' is missing"),
        ('{"kind": "config", "method": "sam", "task": "digits", "model": "m", "seed": 0}\n', "indices"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"other.jsonl is not a run file.*{reason}"):
        read(file)


def test_broken_epoch_is_refused(write_run: WriteRun) -> None:
    folder = write_run(epochs=3)
    append(folder, {"kind": "epoch", "epoch": 4})
    with pytest.raises(DataError, match="'step' is missing"):
        read(folder)


@pytest.mark.parametrize(
    ("number", "fields", "reason"),
    [
        (0, {"metrics": [{"name": "accuracy", "higher": "false"}]}, "higher and diverged must be true or false"),
        (1, {"test": {"accuracy": True}}, "a measured value must be a number, but one is True"),
        (-1, {"test_accuracy": "0.9"}, "a measured value must be a number, but one is '0.9'"),
        (-1, {"diverged": "false"}, "higher and diverged must be true or false, but one is 'false'"),
        (-1, {"peak_memory": [1]}, "a measured value must be a number"),
    ],
)
def test_edited_values_are_refused(tmp_path: Path, number: int, fields: dict[str, Any], reason: str) -> None:
    """The text "false" counted as true, which turned a metric around, and true counted as 100 %."""
    lines = lines_of(epochs=2)
    lines[number] |= fields
    with pytest.raises(DataError, match=f"is not a run file of lowland: {reason}"):
        read(write_lines(tmp_path / "edited", lines))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run file at"):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"no run\.jsonl below"):
        read_all([tmp_path])


def test_read_all_searches_in_order_of_start_and_once(write_run: WriteRun, tmp_path: Path) -> None:
    late = write_run("looksam", 0, folder="a/b", time="2026-11-20T19:00:00+00:00", epochs=3)
    early = write_run("sam", 0, folder="z", time="2026-11-20T18:00:00+00:00", epochs=3)
    (tmp_path / "runs" / "killed-at-once").mkdir()
    (tmp_path / "runs" / "killed-at-once" / "run.jsonl").touch()
    assert [r.path.parent for r in read_all([tmp_path / "runs"])] == [early, late]
    again = read_all([late, late / "run.jsonl", tmp_path / "runs"])
    assert [r.method.text for r in again] == ["looksam", "sam"]
