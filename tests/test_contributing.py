"""CONTRIBUTING.md adds a method and a task: its code runs, and what it adds is like any other."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from problems import batch, loss_fn, net, same, sgd

import lowland
import lowland.lab.tasks
from lowland.cli.main import main
from lowland.lab import names as lab_names
from lowland.methods import METHODS, make
from lowland.planner.costs import measure
from lowland.testing import check_task

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
*BLOCKS, TASK = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's code defines, run from top to bottom; its entry in the registry goes again."""
    for key, kind in METHODS.items():
        monkeypatch.setitem(METHODS, key, kind)
    monkeypatch.setitem(METHODS, "usam", lowland.SAM)  # so that what the page enters is taken out again
    found: dict[str, Any] = {"__name__": "contributing"}
    for block in BLOCKS:
        exec(compile(block, "CONTRIBUTING.md", "exec"), found)
    return found


def test_the_page_adds_a_method_in_about_fifteen_lines(names: dict[str, Any]) -> None:
    file, entry, _ = BLOCKS
    assert len([line for line in (file + entry).splitlines() if line.strip()]) <= 15
    assert METHODS["usam"] is names["USAM"]
    assert make("usam:rho=0.1") == names["USAM"](rho=0.1)
    costs = measure(make("usam"))
    assert (costs.gradients, costs.sequential) == (2, 2)


def test_what_it_adds_keeps_the_promises_of_a_method(names: dict[str, Any]) -> None:
    model = net(norm=True, odd=True)
    engine = lowland.Engine(make("usam:rho=0.1"), model, sgd(model), loss_fn)
    before = [p.detach().clone() for p in model.parameters()]
    engine.backward(batch())
    assert same(list(model.parameters()), before)
    assert model.norm.num_batches_tracked.item() == 1


def test_the_twin_would_notice_another_formula(names: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        names["assert_follows"](lowland.SAM(rho=0.1), names["USAMTwin"], {"rho": 0.1}, "momentum")


@pytest.fixture
def with_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that counts as a part of lowland/lab/tasks, with the page's file in it and nothing else."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sum_of_two.py").write_text(TASK, encoding="utf-8")
    monkeypatch.setattr(lowland.lab.tasks, "__path__", [*lowland.lab.tasks.__path__, str(folder)])
    lab_names.tasks.cache_clear()
    yield tmp_path
    sys.modules.pop("lowland.lab.tasks.sum_of_two", None)
    vars(lowland.lab.tasks).pop("sum_of_two", None)
    lab_names.tasks.cache_clear()


def test_a_task_is_one_file_and_no_other_diff(with_task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "lowland/lab/tasks/sum_of_two.py" in PAGE
    assert main(["tasks"]) == 0
    assert "sum-of-two: The sum of two numbers." in capsys.readouterr().out
    assert main(["tasks", "sum-of-two:scale=2.0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "scale=2.0 Standard deviation of the numbers.",
        "200 for train, 100 for test",
        "batch_size=40",
        "lowland's own",
    ):
        assert text in shown
    out = str(with_task / "runs")
    assert main(["compare", "--task", "sum-of-two", "--methods", "plain", "sam", "--seeds", "1", "--out", out]) == 0
    result = lowland.lab.compare("sum-of-two", ["plain", "sam"], seeds=1, out=out, page=False)
    assert len(list(Path(out).glob("*/run.jsonl"))) == 2  # the call has kept what the command had trained
    assert all(record.score < 0.1 for record in result.records)  # the variance of the targets is 2


def test_it_keeps_the_promises_of_a_task(with_task: Path) -> None:
    assert check_task(lowland.lab.load("sum-of-two:scale=0.5")) == []


def test_without_the_file_there_is_no_such_task() -> None:
    assert "sum-of-two" not in lab_names.tasks()
