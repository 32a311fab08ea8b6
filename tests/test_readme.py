"""The README does what it says: its Python runs from top to bottom, its table agrees with the plans."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import lowland
from lowland.methods import METHODS, make

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w-]+)` \| `(\w+)` \| ([^|]+) \| ([^|]+) \|", re.MULTILINE)
ROWS = {row[0]: row[1:] for row in ROW.findall(README)}


def python_of(text: str) -> str:
    """The Python blocks of a page; every other line is left blank, so that errors name the page's own lines."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" if fence else inside
    return "\n".join(lines)


def measured(text: str, steps: int) -> tuple[float, float]:
    """Gradients per step of a method, in total and one after the other, counted while it runs."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    engine = lowland.Engine(
        make(text),
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda module, batch: module(batch).square().mean(),
    )
    for _ in range(steps):
        engine.backward(torch.randn(8, 3))
    return engine.cost.gradients / steps, engine.cost.sequential / steps


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


def test_the_method_table_is_complete() -> None:
    assert {key: row[0] for key, row in ROWS.items()} == {key: kind.__name__ for key, kind in METHODS.items()}


@pytest.mark.parametrize("key", [k for k in METHODS if "s/K" not in ROWS[k][1]])
def test_the_method_table_tells_the_cost_that_is_measured(key: str) -> None:
    formulas = ROWS[key][1:]
    told = tuple(eval(formula, {"k": 5}) for formula in formulas)
    assert measured(key, steps=20) == pytest.approx(told)


@pytest.mark.parametrize("key", [k for k in METHODS if "s/K" in ROWS[k][1]])
def test_adaptive_methods_cost_between_one_and_two_gradients(key: str) -> None:
    total, sequential = measured(f"{key}:window=10", steps=50)
    assert 1 + 1 / 10 <= total <= 1 + 8 / 10
    assert sequential == total


@pytest.mark.parametrize("key", METHODS)
def test_the_guide_has_every_method(key: str) -> None:
    assert f"`{key}`" in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_into_the_repository_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
