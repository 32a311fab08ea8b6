"""``lowland sharpness``: measures, prints the table, writes the page, and goes on where it was stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lowland.cli.main import main
from lowland.lab.studies.gauges import Gauges

TINY = ["--task", "digits", "--epochs", "1", "--limit", "3", "--threads", "1"]
FEW = ["--examples", "64", "--m", "32", "--steps", "2", "--directions", "1", "--points", "3", "--plane-points", "3"]


@pytest.fixture
def runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "runs"
    assert main(["compare", *TINY, "--methods", "plain", "sam", "--seeds", "1", "--out", str(out)]) == 0
    capsys.readouterr()
    return out


def sharpness(*arguments: str) -> int:
    return main(["sharpness", *arguments, *FEW, "--device", "cpu"])


def test_table_page_and_what_is_kept(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    wanted = ["--measures", "worst", "average", "critical", "slices", "between", "--out", str(page)]
    assert sharpness(str(runs), *wanted) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\[1/2\] digits-mlp-plain-seed0-\w+: worst case \d\.\d+ ± \d", shown)
    assert "[2/2]" in shown
    assert "sharpness of the final weights" in shown
    assert re.search(r"^ plain .* \d\.\d+", shown, re.MULTILINE)
    assert f"page: {page}" in shown
    html = page.read_text()
    for text in ("Sharpness of the final weights", "Loss along a random direction", "Contours of the loss",
                 "Loss on the line from the final weights of the baseline", "Measured with rho 0.05, m"):  # fmt: skip
        assert text in html
    assert sharpness(str(runs), *wanted) == 0
    again = capsys.readouterr().out
    assert again.count("(kept)") == 11
    assert main(["report", str(runs), "--out", str(tmp_path / "again.html")]) == 0
    assert "worst" in capsys.readouterr().out
    assert "Contours of the loss" in (tmp_path / "again.html").read_text()


@pytest.mark.slow
def test_the_curvature_of_one_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = runs.glob("digits-mlp-sam-*")
    wanted = ["--measures", "eigenvalues", "trace", "density", "--samples", "2", "--depth", "5", "--eigenvalues", "2"]
    assert sharpness(str(folder), *wanted, "--out", str(tmp_path / "page.html")) == 0
    shown = capsys.readouterr().out
    assert re.search(r"\[1/1\] digits-mlp-sam-seed0-\w+: λ1 \S+, λ2 \S+\n", shown)
    assert "λmin" in shown
    assert re.search(r"trace \S+ ± \S+", shown)
    assert "Spectral density of the Hessian" in (tmp_path / "page.html").read_text()


def test_it_goes_on_after_an_interruption(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Gauges) -> None:
        raise KeyboardInterrupt

    wanted = [str(runs), "--measures", "average", "critical", "--out", str(tmp_path / "page.html")]
    with monkeypatch.context() as patch:
        patch.setattr(Gauges, "_critical", stopped)
        assert sharpness(*wanted) == 130
    error = capsys.readouterr().err
    assert f"stopped by SIGINT; to go on: lowland sharpness {runs} --measures average critical" in error
    assert not (tmp_path / "page.html").exists()
    assert sharpness(*wanted) == 0
    assert capsys.readouterr().out.count("(kept)") == 1


def test_compare_measures_after_the_trainings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", *TINY, "--methods", "plain", "--seeds", "1", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--sharpness", "hessian"]) == 2
    assert "measures must be one of" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # before any training
    assert main([*arguments, "--sharpness", "critical"]) == 0
    shown = capsys.readouterr().out
    assert "sharpness of the final weights" in shown
    assert re.search(r"seed0-\w+: critical \d", shown)
    (page,) = tmp_path.glob("*.html")
    assert "Sharpness of the final weights" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs must name at least one folder, but is empty"),
        (["nowhere"], "no run file at nowhere"),
        (["RUNS", "--measures", "flat"], "measures must be one of 'worst'"),
        (["RUNS", "--measures", "average", "--rho", "-1"], "rho must be a number >= 0, but is -1"),
        (["RUNS", "--measures", "average", "--part", "dev"], "part must be one of"),
    ],
)
def test_errors_are_one_line(
    runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(runs) if text == "RUNS" else text for text in arguments]
    assert main(["sharpness", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_runs_without_weights_are_an_error(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in runs.glob("digits-*/"):
        lines = (folder / "run.jsonl").read_text().splitlines()
        (folder / "run.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert sharpness(str(runs), "--measures", "critical") == 2
    output = capsys.readouterr()
    assert output.out.count("left out, it has not finished") == 2
    assert "all are left out" in output.err
