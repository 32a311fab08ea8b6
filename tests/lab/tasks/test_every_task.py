"""Every task on two ranks: by a method of each kind, killed in the middle and resumed, and on one page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import on_ranks
from short_runs import METHODS, config, trained

from lowland.cli.main import main
from lowland.lab import names
from lowland.lab.config import RunConfig
from lowland.lab.data import files

TASKS = {
    "chars": "chars:context=16", "cifar10": "cifar10", "cifar100": "cifar100", "cola": "cola", "diabetes": "diabetes",
    "digits": "digits", "fashion-mnist": "fashion-mnist", "keypoints": "keypoints:examples=64,side=24", "mrpc": "mrpc",
    "qat": "qat:bits=4", "rte": "rte", "sst2": "sst2",
    "tabular": "tabular:file={folder}/table.csv,target=y,kind=regression",
    "transfer": "transfer:source=digits,side=scratch", "trec": "trec", "vit-large-batch": "vit-large-batch",
}  # fmt: skip
SMALL = {"keypoints": "heatmaps-small", "cifar10": "resnet20-w4", "cifar100": "resnet20-w4"}
CARRY = ("sampa", "looksam:k=2")  # the kinds whose state a checkpoint between two of their steps must carry


def made_of(task: str, method: str, folder: Path) -> RunConfig:
    """A run of four steps of eight examples; a batch that is accumulated has two parts."""
    made = config(names.make(TASKS[task].format(folder=folder)), method, data=folder, mesh="data=2", checkpoint_every=1)
    recipe = made.recipe.replace(accumulate=min(made.recipe.accumulate, 2))
    return replace(made, model=SMALL.get(task, made.model), recipe=recipe)


def trained_here(folder: Path, task: str, method: str, md5: dict[str, str]) -> list[Any]:
    """Train, and the kinds that carry state once more, killed after the first step and resumed."""
    made = made_of(task, method, folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in md5.items():
            patch.setitem(files.MD5, name, value)
        whole = trained(folder / "runs" / method, made)
        if method not in CARRY:
            return [whole]
        assert trained(folder / "killed" / method, made, deadly=1) is None
        return [whole, trained(folder / "killed" / method, made, resume=True)]


def test_none_is_forgotten() -> None:
    assert set(TASKS) == set(names.tasks())


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_ranks_train_resume_and_report(
    task: str,
    tmp_path: Path,
    cifar10_files: Path,
    cifar100_files: Path,
    fashion_files: Path,
    text_files: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = "".join(f"{i},{i % 7},{3 * (i % 7) + i % 2}\n" for i in range(60))
    (tmp_path / "table.csv").write_text(f"a,b,y\n{rows}", encoding="utf-8")
    for method in METHODS:
        first, second = on_ranks(2, trained_here, tmp_path, task, method, dict(files.MD5))
        for end, other in zip(first, second, strict=True):
            assert end["weights_sha256"] == other["weights_sha256"] == first[0]["weights_sha256"]
            assert end["test"] == first[0]["test"]
            assert all(math.isfinite(value) for value in end["test"].values())
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if row[1:2] == ["1"] and row[0] in METHODS] == list(METHODS)  # lines of the table
