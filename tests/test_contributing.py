"""CONTRIBUTING.md adds a method: its code runs, and what it adds is a method like any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from problems import batch, loss_fn, net, same, sgd

import lowland
from lowland.lab.training.costs import measure
from lowland.methods import METHODS, make

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


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
