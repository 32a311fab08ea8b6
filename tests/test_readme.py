"""The README does what it says: its Python runs from top to bottom, its table agrees with the plans."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lowland
from lowland.methods import METHODS
from lowland.planner.costs import measure, specimen

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w-]+)` \| `(\w+)` \| ([^|]+) \| ([^|]+) \|", re.MULTILINE)
ROWS = {row[0]: row[1:] for row in ROW.findall(README)}
VARYING = [key for key, row in ROWS.items() if "s" in row[1]]  # s is the share of steps with a second gradient


def python_of(text: str) -> str:
    """The Python blocks of a page; every other line is left blank, so that errors name the page's own lines."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" if fence else inside
    return "\n".join(lines)


def measured(key: str) -> tuple[float, float]:
    """Gradients per step of a method, in total and one after the other, counted while it runs."""
    costs = measure(specimen(key))
    return costs.gradients, costs.sequential


def test_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    code = python_of(README)
    assert code.count("lowland.Engine(") >= 5
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, str(ROOT / "README.md"), "exec"), names)
    # `print(…)  # output` is a promise, too.
    promised = re.findall(r"^print\(.*\)  # (.+)$", code, flags=re.MULTILINE)
    assert promised
    assert capsys.readouterr().out.split("\n")[:-1] == promised


def test_the_guide_s_python_runs_too() -> None:
    code = python_of(GUIDE)
    assert code.count("lowland.Switch(") == 2
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)

    def loss_fn(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    names = {
        "torch": torch,
        "lowland": lowland,
        "dataset": torch.utils.data.TensorDataset(torch.randn(96, 4), torch.randint(3, (96,))),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": loss_fn,
    }
    exec(compile(code, "methods.md", "exec"), names)
    for batch in names["loader"]:  # type: ignore[attr-defined]
        names["engine"].backward(batch)  # type: ignore[attr-defined]
    assert names["engine"].memory["counts"].sum() == 32 + 16  # type: ignore[attr-defined]


def test_the_method_table_is_complete() -> None:
    assert {key: row[0] for key, row in ROWS.items()} == {key: kind.__name__ for key, kind in METHODS.items()}


@pytest.mark.parametrize("key", [k for k in METHODS if k not in VARYING])
def test_the_method_table_tells_the_cost_that_is_measured(key: str) -> None:
    formulas = ROWS[key][1:]
    told = tuple(eval(formula, {"k": 5}) for formula in formulas)
    assert measured(key) == pytest.approx(told)


@pytest.mark.parametrize("key", VARYING)
def test_methods_that_choose_their_steps_cost_between_one_and_two_gradients(key: str) -> None:
    total, sequential = measured(key)
    assert 1 < total < 2
    assert sequential == total


@pytest.mark.parametrize("key", METHODS)
def test_the_guide_has_every_method(key: str) -> None:
    assert f"`{key}`" in GUIDE


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "RELEASING.md", "CHANGELOG.md"])
def test_links_into_the_repository_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
