from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lowland.bench import overhead
from lowland.cli.main import main


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.randn(4, 16), torch.randint(10, (4,))
    monkeypatch.setitem(overhead.CASES, "tiny", lambda: overhead.Case(lambda: overhead.ManySmall(depth=2), batch))


def test_overhead_prints_ratios_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "overhead", "--cases", "tiny", "--rounds", "5", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "lowland sam / two gradients" in shown
    assert str(out) in shown.replace("\n", "")
    found = json.loads(out.read_text())
    assert found["machine"]["threads"] == 1
    assert found["cases"][0]["case"] == "tiny"
    assert found["cases"][0]["ratios"]["lowland sam / two gradients"] > 0
    assert "SAM extra / parameters" in found["cases"][0]["memory"]


def test_an_unwritable_file_is_refused_before_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bench", "overhead", "--cases", "tiny", "--out", str(tmp_path / "file" / "x.json")]) == 2
    assert "out must be a file that can be written to" in capsys.readouterr().err


def test_an_unknown_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "overhead", "--cases", "tini", "--out", str(tmp_path / "x.json")]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err
