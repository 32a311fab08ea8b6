"""Every example runs, at a small size, and shows what it says it shows."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from lowland.methods import METHODS

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(name: str) -> Any:
        monkeypatch.setattr(sys, "argv", [name])
        return runpy.run_path(str(FOLDER / f"{name}.py"))

    return run


def test_all_examples_are_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    tested |= {"sampa_mesh", "ddp", "fsdp2"}  # in test_parallel_examples.py
    assert {p.stem for p in SCRIPTS} <= tested


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_examples_fit_on_a_screen(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80


def test_quickstart(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    assert example("quickstart")["main"](epochs=5) > 0.9
    assert "2.00 gradients per step" in capsys.readouterr().out


def test_amp(example: Any) -> None:
    losses = example("amp")["main"](steps=25, width=64)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_passes(example: Any) -> None:
    module = example("passes")
    for loop in (module["main"], module["closures"]):
        losses = loop(steps=25)
        assert losses[-1] < 0.5 * losses[0]


def test_own_method(example: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "two-radii", object)  # so that the registry is put back afterwards
    losses = example("own_method")["main"](steps=60)
    assert losses[-1] < losses[0]
    assert "3 gradients per step, 2 one after the other" in capsys.readouterr().out


def test_own_method_with_ratio_one_is_sam(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "two-radii", object)
    main = example("own_method")["main"]
    assert main(steps=5, text="two-radii:ratio=1") == main(steps=5, text="sam")


def test_resume(example: Any) -> None:
    assert example("resume")["main"](steps=20)
