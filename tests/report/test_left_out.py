"""Runs that are not compared: undefined metrics, and runs that were trained otherwise than the latest one."""

from __future__ import annotations

from typing import Any

import pytest
from made_runs import WriteRun, changed, forget, lose

from lowland.report import markdown, notes, read, summarize, verdict


def test_a_metric_without_a_value_is_said_and_not_left_out(write_run: WriteRun) -> None:
    """A mean over the other seeds would leave out the worst one."""
    runs = [write_run(m, s, accuracy=0.9 + 0.01 * s) for m in ("plain", "sam", "sampa") for s in (0, 1, 2)]
    forget(runs[4])
    rows = {row.contestant: row for row in summarize([read(run) for run in runs])}
    sam = rows["sam"]
    assert (sam.undefined, sam.score, sam.difference, sam.scores, sam.seeds) == ((1,), None, None, {}, (0, 1, 2))
    assert rows["sampa"].difference is not None
    told = verdict(list(rows.values()))
    assert told.startswith("The accuracy is undefined, such as 0 divided by 0, for sam in seed 1. ")
    assert "undefined in 1 of 3" in markdown(list(rows.values()))
    forget(runs[0])
    forget(runs[2])
    rows = {row.contestant: row for row in summarize([read(run) for run in runs])}
    assert all(row.difference is None for row in rows.values())
    told = verdict(list(rows.values()))
    assert "for plain in seed 0 and 2 and sam in seed 1. Nothing can be said of the others without a base" in told
    assert verdict([rows["plain"], rows["sam"]]).endswith("sam in seed 1. Nothing can be compared.")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"recipe": {"lr": 0.01}}, "lr"),
        ({"validation": 0.2}, "validation"),
        ({"sources": {"task": "another"}}, "code"),
    ],
)
def test_runs_that_were_trained_otherwise_are_not_averaged(
    write_run: WriteRun, fields: dict[str, Any], told: str
) -> None:
    runs = [write_run(m, s, accuracy=0.9) for m in ("plain", "sam") for s in (0, 1, 2)]
    for run in runs:
        changed(run, time="2026-01-01T00:00:00+00:00", sources={"task": "one"})
    later = [write_run(m, 0, folder=f"later-{m}", accuracy=0.5) for m in ("plain", "sam")]
    for run in later:
        changed(changed(run, sources={"task": "one"}), time="2026-02-01T00:00:00+00:00", **fields)
    records = [read(run) for run in [*runs, *later]]
    rows = {row.contestant: row for row in summarize(records)}
    assert {name: row.scores for name, row in rows.items()} == {"plain": {0: 0.5}, "sam": {0: 0.5}}
    (note,) = [text for text in notes(records) if "left out" in text]
    assert note.startswith("6 of 8 runs are left out, because the latest run of their method was trained otherwise")
    assert f"({told})" in note
    assert {row.scores[1] for row in summarize(records[:6])} == {0.9}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"validation": 0.2}, "sam with another validation part."),
        ({"sources": {"task": "two"}}, "sam with another code of the task or the model."),
        ({"validation": 0.2, "sources": {"model": "two"}}, "sam with another validation part and code of the task or"),
    ],
)
def test_contestants_with_other_data_or_code_are_not_compared(
    write_run: WriteRun, fields: dict[str, Any], told: str
) -> None:
    """The gain of a run on more examples, or of a changed task, is not the method's."""
    runs = [write_run(m, s, accuracy=0.9 + 0.01 * (m == "sam") * (s + 5)) for m in ("plain", "sam") for s in (0, 1, 2)]
    for run in runs:
        changed(run, sources={"task": "one", "model": "one"})
    assert verdict(summarize([read(run) for run in runs])).startswith("Take sam: ")
    for run in runs[3:]:
        changed(run, **fields)
    plain, sam = summarize([read(run) for run in runs])
    assert (plain.unlike, sam.difference, sam.p, sam.effect) == ((), None, None, None)
    assert sam.score is not None
    assert verdict([plain, sam]).startswith(f"Not compared with plain, because trained otherwise: {told}")


def test_the_code_of_methods_may_differ(write_run: WriteRun) -> None:
    runs = [write_run(m, s, accuracy=0.9) for m in ("plain", "sam") for s in (0, 1)]
    for run in runs[2:]:
        changed(run, sources={"method": "own"})
    changed(changed(runs[0], sources={"method": "other"}), sources={"task": "one"})
    assert summarize([read(run) for run in runs])[1].difference is not None


def test_an_unfinished_run_does_not_leave_out_the_finished_ones(write_run: WriteRun) -> None:
    """A comparison with another recipe, interrupted in its first run."""
    runs = [write_run("plain", s, accuracy=0.9) for s in (0, 1)]
    begun = write_run("plain", 2, accuracy=0.5)
    changed(begun, time="2030-01-01T00:00:00+00:00", recipe={"lr": 0.9})
    lines = begun.read_text() if begun.is_file() else (begun / "run.jsonl").read_text()
    kept = [line for line in lines.splitlines() if '"kind": "end"' not in line]
    (begun if begun.is_file() else begun / "run.jsonl").write_text("\n".join(kept) + "\n")
    (row,) = summarize([read(run) for run in [*runs, begun]])
    assert (row.seeds, row.scores) == ((0, 1), {0: 0.9, 1: 0.9})


def test_a_field_of_the_recipe_that_an_earlier_version_did_not_have(write_run: WriteRun) -> None:
    runs = [write_run("plain", s, accuracy=0.9) for s in (0, 1)]
    changed(runs[1], recipe={"new": 3})
    assert [row.seeds for row in summarize([read(run) for run in runs])] == [(0, 1)]


def test_diverged_and_undefined(write_run: WriteRun) -> None:
    runs = [write_run(m, s, accuracy=0.9) for m in ("plain", "sam") for s in (0, 1)]
    lose(runs[0])
    forget(runs[0])
    forget(runs[3])
    rows = summarize([read(run) for run in runs])
    assert [(row.diverged, row.undefined) for row in rows] == [((0,), ()), ((), (1,))]
    assert verdict(rows) == (
        "plain diverged in 1 of 2 seeds. The accuracy is undefined, such as 0 divided by 0, for sam in seed 1. "
        "Nothing can be compared."
    )
