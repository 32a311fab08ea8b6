from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lowland
from lowland.bench import launches, overhead
from lowland.cli.main import main
from lowland.methods import METHODS


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


def test_launches_prints_counts_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def case() -> tuple[torch.nn.Module, list[Any]]:
        chain, batches = launches._chain()
        return torch.nn.Sequential(*chain.layers[:2]), batches

    monkeypatch.setitem(launches.CASES, "tiny", case)
    monkeypatch.setattr(launches, "METHODS", {name: METHODS[name] for name in ("sam", "looksam", "sam-on")})
    out = tmp_path / "bench.json"
    assert main(["bench", "launches", "--cases", "tiny", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "tiny: 4 tensors, 2,112 parameters" in shown
    rows = {words[0]: words[1:] for words in map(str.split, shown.splitlines()) if words}
    found = json.loads(out.read_text())
    assert found["machine"] == {"torch": torch.__version__, "lowland": lowland.__version__}
    sam, looksam = found["cases"][0]["counts"]
    assert rows["sam"] == ["SGD", "2", "18", f"{sam['vectors']:.1f}", "0.1"]
    least, most, mean = looksam["least"], looksam["most"], looksam["launches"]
    assert rows["looksam"][:5] == ["SGD", "1.2", f"{mean:g}", f"({least}", "to"]
    assert rows["looksam"][5] == f"{most})"
    assert least < mean < most
    assert "sam-on is left out, because tiny has no normalization layer." in shown
    assert "Means of 5 steps." in shown
    assert str(out) in shown.replace("\n", "")


def test_a_count_has_no_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "launches", "--rounds", "5"])
    assert "nrecognized options" in capsys.readouterr().err
