"""examples/federated.py end to end, with a killed client and one that returns NaN; its table; what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lowland.core.errors import ArgumentError

FOLDER = Path(__file__).parents[2] / "examples"
SMALL = ["--clients", "4", "--rounds", "3", "--seeds", "2", "--methods", "plain", "sampa", "--accuracy", "70"]

DIED = "its process died in the middle of the round (SIGKILL)"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module, so that clients can import it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import federated

    return federated


@pytest.mark.slow
def test_end_to_end_with_a_killed_client(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = [*SMALL, "--kill", "1@2", "--nan", "2@3", "--out", str(tmp_path / "runs.json")]
    runs = example.main(words)
    out = capsys.readouterr().out
    assert list(runs) == ["plain", "sampa"]
    for by_seed in runs.values():
        for run in by_seed.values():
            assert [(number, node) for number, node, _ in run["lost"]] == [(2, 2), (3, 2), (3, 3)]
            reasons = [reason for *_, reason in run["lost"]]
            assert reasons[:2] == [
                "its process died in the middle of the round (SIGKILL)",
                "its process is dead (SIGKILL)",
            ]
            assert reasons[2].endswith("is not finite")
            assert run["accuracy"][-1] > run["accuracy"][0] + 20
    assert f"round 2 without client 1: {DIED}" in out
    assert f"node 2 failed: {DIED}" in caplog.text
    assert [line.split(" | ")[0] for line in out.splitlines()[-2:]] == ["| plain", "| sampa"]
    saved = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert saved["sampa"]["1"]["accuracy"] == runs["sampa"][1]["accuracy"]


@pytest.mark.slow
def test_bytes_costs_and_seeds(example: Any) -> None:
    words = ["--clients", "3", "--rounds", "2", "--seeds", "1", "--methods", "plain", "sam", "momentum-sam"]
    first, again = example.main(words), example.main([*words, "--at-once", "1"])
    assert first == again  # whatever the order in which clients reply
    task = example.load("digits", 0)[0]
    sent = example.arrays_of(task.model("mlp")).count_bytes()
    for run in (by_seed[0] for by_seed in first.values()):
        assert run["bytes"] == [0, 2 * 3 * sent, 2 * 2 * 3 * sent]
    assert [by_seed[0]["gradients"] for by_seed in first.values()] == [1.0, 2.0, 1.0]
    assert len({by_seed[0]["accuracy"][0] for by_seed in first.values()}) == 1  # the same weights to begin with


def test_tasks_without_classes_are_refused(example: Any) -> None:
    with pytest.raises(ArgumentError, match=r"task must have classes.* but diabetes has not; take digits"):
        example.load("diabetes", 0)


def test_clients_have_full_batches_of_their_own_examples(example: Any) -> None:
    _, train, _, labels = example.load("digits", 3)
    parts = example.split("digits", 10, 0.3, 3, 32)
    assert len(parts) == 10
    assert min(map(len, parts)) >= 32
    found = list(example.batches(train, parts[4], 32, 3, "here", range(2)))
    assert len(found) == 2 * (len(parts[4]) // 32)
    for _, targets, index in found:
        assert len(index) == 32
        assert torch.isin(index, parts[4]).all()
        assert torch.equal(targets, labels[index])


def run(accuracies: list[float], gradients: float = 1.0) -> dict[str, Any]:
    return {"accuracy": accuracies, "bytes": [0, 2_000_000, 4_000_000], "gradients": gradients, "lost": []}


def test_the_table(example: Any) -> None:
    runs = {
        "plain": {0: run([10, 50, 80]), 1: run([10, 60, 90]), 2: run([10, 50, 70])},
        "sam": {0: run([10, 80, 82], 2.0), 1: run([10, 85, 94], 2.0), 2: run([10, 50, 75], 2.0)},
    }
    lines = example.table(runs, 80).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2][:4] == ["plain", "2 [2, >2]", "4 [4, more]", "2 of 3"]
    assert cells[3][:4] == ["sam", "1 [1, >2]", "2 [2, more]", "2 of 3"]
    assert cells[2][4:] == ["80.00 ± 24.84", "", "1.00"]  # s = 10: 4.303 · 10/√3
    assert cells[3][4:] == ["83.67 ± 23.87", "+3.67 ± 3.79 open", "2.00"]  # differences 2, 4, 5: s = 1.528
    assert len({len(row) for row in cells}) == 1
    assert "open" in example.table({"plain": runs["plain"], "same": runs["plain"]}, 80)  # no p value


def test_verdicts_are_corrected_for_their_number(example: Any) -> None:
    """The differences 4, 10, 10, 1, 5 have s² = 15.5, t = 3.408 and p = 0.027: better alone, open among four."""
    plain = {seed: run([10, 50, 80]) for seed in range(5)}
    other = {seed: run([10, 50, 80 + rise]) for seed, rise in enumerate((4, 10, 10, 1, 5))}
    assert "+6.00 ± 4.89 better" in example.table({"plain": plain, "a": other}, 80)
    four = example.table({"plain": plain, "a": other, "b": other, "c": other, "d": other}, 80)
    assert four.count("open") == 4
    assert "better" not in four
    assert example.reached(run([10, 50, 80]), 50) == 1
    assert example.reached(run([10, 50, 80]), 81) is None
