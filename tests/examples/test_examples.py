"""Every example runs, at a small size, and shows what it says it shows."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

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
    tested |= {"own_task", "own_method", "flat_lora"}  # in test_own.py, test_flat_lora.py
    tested |= {p.stem for p in SCRIPTS if p.stem.startswith("with_")}  # in tests/integrations
    tested |= {"federated"}  # in tests/flower
    assert {p.stem for p in SCRIPTS} <= tested


STUDIES = {"federated"}  # which print a table over methods and seeds


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.stem not in STUDIES], ids=lambda p: p.stem)
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


def test_resume(example: Any) -> None:
    assert example("resume")["main"](steps=20)
