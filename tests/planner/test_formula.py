from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowland.methods import METHODS, make
from lowland.planner.asks import Pass, read
from lowland.planner.costs import specimen
from lowland.planner.formula import formula

PAGE = Path(__file__).parents[2] / "docs" / "planner.md"


def one(examples: float = 1.0, tensors: float = 1.0, *, displaced: bool = False) -> Pass:
    return Pass(examples=examples, tensors=tensors, displaced=displaced, synced=True)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([((one(),),)], "o + t(B)"),
        ([((one(),), (one(displaced=True),)), ((one(),),)], "o + t(B) + 0.5 u(B)"),
        ([((one(0.25), one(0.25)), (one(tensors=0.0),))], "o + 2 t(0.25 B) + f(B)"),
        ([((one(tensors=0.2),),), ((one(tensors=0.6),),)], "o + c(0.4) t(B)"),
        ([((one(tensors=0.5),), (one(),))], "o + t(B) + c(0.5) t(B)"),
    ],
)
def test_terms_are_counted_a_step(steps: list[tuple[tuple[Pass, ...], ...]], text: str) -> None:
    assert formula(steps) == text


def test_looksam_refreshes_every_fifth_step() -> None:
    assert formula(read(make("looksam:k=5"))) == "o + t(B) + 0.2 u(B)"


def test_the_page_has_the_formula_of_every_method() -> None:
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (o .*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert rows == {key: formula(read(specimen(key))) for key in METHODS if key in rows}
    assert set(rows) >= {key for key in METHODS if METHODS[key].__module__.startswith("lowland.")}
