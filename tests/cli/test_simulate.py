from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from lowland.bench.simulation import study as studies
from lowland.bench.simulation.study import Choice
from lowland.cli.main import main
from lowland.cli.simulate import Simulate
from lowland.report.planner.record import Scaling

SMALL = [
    "simulate", "--devices", "16", "--methods", "sam", "sampa", "--steps", "10", "--examples", "1e6",
    "--global-batch", "512",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "GRID", 5)


def test_options_have_the_defaults_of_the_study() -> None:
    assert all(getattr(Simulate(), field.name) == getattr(Choice(), field.name) for field in fields(Choice))


@pytest.mark.slow
def test_it_prints_tables_and_writes_page_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, again = tmp_path / "page.html", tmp_path / "again.html"
    assert main([*SMALL, "--out", str(page), "--export", str(tmp_path / "figures")]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] in (["sam"], ["sampa"])]
    # With 64 examples on each of 16 devices, SAMPa's two passes of 10 + 64 ms run at the same time.
    found = {tuple(row[:3]): float(row[3]) for row in rows[: len(rows) // 2]}
    assert found["sam", "16", "1×16"] == pytest.approx(2 * 74, rel=0.01)
    assert found["sampa", "16", "2×8"] == pytest.approx(74, rel=0.02)
    assert "On two devices SAMPa is faster than data-parallel SAM" in shown
    assert "…" not in shown  # every column fits
    study = Scaling.read(tmp_path / "page.json")
    assert study.methods == ["sam", "sampa"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"simulation-pair.svg", "simulation-costs.svg"}
    # From the record: the same words and the same page, but for the command at its end.
    assert main(["simulate", "--record", str(tmp_path / "page.json"), "--out", str(again)]) == 0
    assert capsys.readouterr().out.split("written:")[0] == shown.split("written:")[0]
    first, second = (path.read_text(encoding="utf-8").split("How to reproduce")[0] for path in (page, again))
    assert first == second
    assert not (tmp_path / "again.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "12"], "host must be a power of two that divides the devices, but is 8"),
        (["--within", "nvlink9"], "unknown link 'nvlink9'"),
        (["--methods", "sam", "sampo"], "unknown method 'sampo'"),
        (["--overlap", "2"], "overlap must be in [0, 1], but is 2.0"),
        (["--mtbf", "0.00001"], "mtbf must be long enough to reach the next checkpoint"),
        (["--out", "page.json"], "out must be a page, but is page.json"),
        (["--record", "missing.json"], "record must be given without devices, methods, global_batch, examples, steps"),
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
    assert main([*SMALL, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--record", str(tmp_path / "missing.json")]) == 2
    assert "record must be a JSON file of lowland simulate" in " ".join(capsys.readouterr().err.split())
