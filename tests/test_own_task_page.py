"""docs/own_task.md does what it says: its Python runs from top to bottom, its commands do what they show."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowland.cli.main import main
from lowland.lab import Recipe, names
from lowland.lab.recipe import make_optimizer
from lowland.testing import check_task

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_task.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
            for line in block.splitlines()]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    names.loaded.pop("product.py:Product", None)


def module(place: Path, blocks: list[str], name: str) -> ModuleType:
    (place / f"{name}.py").write_text("\n\n".join(blocks), encoding="utf-8")
    return importlib.import_module(name)


@pytest.mark.slow
def test_its_python_runs_in_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page: Any = module(place, BLOCKS, "page")
    shown = capsys.readouterr().out
    assert len(page.result.rows) == 3
    assert all(row.score.mean < 0.6 for row in page.result.rows)  # the variance of the targets is 1
    assert "| method | seeds | test loss |" in shown  # a task without metrics is compared by its loss
    assert "plain@ema=0.99" in shown
    assert page.result.page.is_file()


@pytest.mark.slow
def test_its_tasks_keep_their_promises(place: Path) -> None:
    page: Any = module(place, [b for b in BLOCKS if "lab.compare(" not in b], "page_tasks")
    for task in (page.Product(width=8), page.Sign(), page.JudgedSign(), page.Decayed()):
        assert check_task(task) == []
    assert check_task(page.Sign(), "large") == []
    groups = page.Decayed().param_groups(page.Product().model("default"), Recipe())
    optimizer = make_optimizer(Recipe(weight_decay=0.1), groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.slow
def test_its_metrics_are_right(place: Path) -> None:
    page: Any = module(place, [b for b in BLOCKS if "lab.compare(" not in b], "page_metrics")
    accuracy, worst = page.JudgedSign.metrics
    pairs = [(torch.tensor([1.0, -1.0, 1.0]), {"positive": torch.tensor([1.0, 1.0, 0.0])})]
    assert accuracy.over(pairs) == pytest.approx(1 / 3)
    assert worst.over(pairs) == pytest.approx(float(torch.tensor(1.0).sigmoid()))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_work(place: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "product.py").write_text(next(b for b in BLOCKS if "class Product" in b), encoding="utf-8")
    program, *arguments = shlex.split(command.replace("--seeds 5", "--seeds 1"))
    assert program == "lowland"
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert ("500 for train, 100 for test" if arguments[0] == "tasks" else "page: ") in shown
