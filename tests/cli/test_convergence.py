from __future__ import annotations

from pathlib import Path

import pytest

from lowland.bench.convergence import study as studies
from lowland.bench.convergence.problems import PROBLEMS
from lowland.cli.main import main
from lowland.report.convergence.record import Study

SMALL = ["convergence", "--steps", "100", "--seeds", "1"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("valley", "logistic", "noisy"):
        monkeypatch.delitem(PROBLEMS, name)
    monkeypatch.setattr(studies, "HALVINGS", 2)
    monkeypatch.setattr(studies, "LENGTHS", 2)


@pytest.mark.slow
def test_it_prints_a_table_and_writes_page_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, again = tmp_path / "page.html", tmp_path / "again.html"
    assert main([*SMALL, "--out", str(page), "--export", str(tmp_path / "figures")]) == 0
    shown = capsys.readouterr().out
    rows = {words[0]: words[1:] for words in map(str.split, shown.splitlines()) if words}
    assert rows["sam"][0] == "0.0333"  # rho lr / (1 - lr)
    assert rows["sam"][4] == rows["sampa:lam=0"][4] == "yes"
    assert rows["OptSAM"][3:6] == ["–", "no", "theorem"]
    assert "All 3 bounds hold" in shown
    study = Study.read(tmp_path / "page.json")
    assert [trace.method for trace in study.traces][:2] == ["plain", "sam"]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"convergence-floors.svg", "convergence-square-distance.svg"} <= names
    # From the record: the same words and the same page, but for the command at its end.
    assert main(["convergence", "--record", str(tmp_path / "page.json"), "--out", str(again)]) == 0
    assert capsys.readouterr().out.split("written:")[0] == shown.split("written:")[0]
    first, second = (path.read_text(encoding="utf-8").split("How to reproduce")[0] for path in (page, again))
    assert first == second
    assert not (tmp_path / "again.json").exists()


@pytest.mark.slow
def test_a_large_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main([*SMALL, "--lr", "0.6", "--out", str(page)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "The conditions do not hold: SAMPa's theorem needs a step below 0.5." in shown
    assert "On square the conditions do not hold." in shown
    assert "The conditions do not hold" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "5"], "steps must be an integer >= 100, but is 5"),
        (["--rho", "0"], "rho must be > 0, but is 0.0"),
        (["--out", "page.json"], "out must be a page, but is page.json"),
        (["--record", "missing.json"], "record must be a JSON file of lowland convergence, but missing.json"),
    ],
)
def test_refusals(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convergence", *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert "out must be a file that can be written to" in capsys.readouterr().err
