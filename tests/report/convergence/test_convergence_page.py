"""The record, the words and the page, from studies that are made by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lowland.core.errors import ArgumentError, StateError
from lowland.report.convergence.page import export, render, write_page
from lowland.report.convergence.record import FloorRecord, ProblemRecord, RateRecord, Study, TraceRecord
from lowland.report.convergence.words import cells, setting, verdict

PROBLEM = ProblemRecord(name="square", formula="||x||²", dimension=10, smoothness=2.0, lr=0.25, limit=0.5, noisy=False)
TRACE = TraceRecord(
    problem="square",
    method="sampa:lam=0",
    runs=1,
    diverged=False,
    distance=0.0316,
    mean_square=0.0089,
    slope=-0.78,
    bound=0.066,
    broken=0,
    rises=0.5,
    reason="",
    steps=[1, 10, 100],
    distances=[0.7, 0.03, 0.04],
    gaps=[0.5, 0.001, 0.002],
)
NAIVE = replace(TRACE, method="OptSAM", bound=None, broken=None, reason="no theorem")
LOST = replace(
    NAIVE, method="sam", diverged=True, distance=None, mean_square=None, slope=None, rises=None,
    reason="conditions do not hold: the step 3 must be below 0.5", steps=[], distances=[], gaps=[],
)  # fmt: skip


def made(**changes: object) -> Study:
    study = Study(
        steps=500,
        rho=0.1,
        lr=None,
        seeds=3,
        problems=[PROBLEM],
        traces=[TRACE, NAIVE],
        floors=[FloorRecord(method="OptSAM", lr=lr, distance=0.09, formula=0.1) for lr in (0.2, 0.1)],
        floor_slopes={"OptSAM": -1e-9, "plain": None},
        rates=[
            RateRecord(problem="square", method="sampa:lam=0", steps=t, lr=0.2, mean_square=1 / t, bound=2 / t)
            for t in (10, 100)
        ],
        rate_slopes={"square": {"sampa:lam=0": -1.0}},
        versions={"lowland": "0.0", "torch": "2.0"},
    )
    return replace(study, **changes)  # type: ignore[arg-type]


def test_a_record_is_read_back(tmp_path: Path) -> None:
    study = made(traces=[TRACE, NAIVE, LOST])
    path = tmp_path / "convergence.json"
    path.write_text(study.text(), encoding="utf-8")
    assert Study.read(path) == study
    assert render(Study.read(path)) == render(study)


def test_wrong_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "convergence.json"
    with pytest.raises(ArgumentError, match="record must be a JSON file"):
        Study.read(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ArgumentError, match="cannot be read"):
        Study.read(path)
    for text in ("[]", "{}", json.dumps({**json.loads(made().text()), "version": 2})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(StateError, match="must be of version 1"):
            Study.read(path)
    whole = json.loads(made().text())
    broken = [{**whole, "rho": "much"}, {**whole, "more": 1}, {k: v for k, v in whole.items() if k != "floors"}]
    broken.append({**whole, "traces": [{**whole["traces"][0], "bound": "low"}]})
    for record in broken:
        path.write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(StateError, match="is damaged"):
            Study.read(path)


def test_whether_a_bound_holds() -> None:
    assert TRACE.holds is True
    assert NAIVE.holds is None
    assert replace(TRACE, mean_square=0.0661).holds is False
    assert replace(TRACE, broken=1).holds is False
    assert replace(TRACE, mean_square=0.066 * (1 + 1e-15)).holds is True  # rounding


def test_cells() -> None:
    assert cells(TRACE) == ["sampa:lam=0", "0.0316", "0.0089", "−0.78", "0.066", "yes", "50 %"]
    assert cells(NAIVE)[4:6] == ["–", "no theorem"]
    assert cells(replace(TRACE, broken=2))[5] == "NO, 2 steps too high"
    assert cells(replace(TRACE, mean_square=1.0))[5] == "NO, the mean is too high"
    assert cells(LOST) == ["sam", "diverged", "–", "–", "–", "conditions do not hold", "–"]


def test_the_verdict() -> None:
    said = verdict(made())
    assert said.startswith("The bound holds, and no step breaks the inequality of its theorem.")
    assert "OptSAM at 0.9 rho (as lr^0.00)" in said
    assert "plain" not in said
    failed = verdict(made(traces=[replace(TRACE, broken=3), NAIVE]))
    assert failed.startswith("The bound does NOT hold for sampa:lam=0 on square.")
    nothing = verdict(made(traces=[NAIVE, LOST], problems=[replace(PROBLEM, lr=3.0)], floors=[], floor_slopes={}))
    assert nothing == (
        "No bound can be checked, because the conditions hold nowhere. On square the conditions do not hold. "
        "sam on square diverged."
    )


def test_the_sentence_about_the_conditions() -> None:
    assert setting(PROBLEM) == "L = 2, step 0.25. SAMPa's theorem holds for steps below 0.5."
    late = setting(replace(PROBLEM, lr=0.5))
    assert late == "L = 2, step 0.5. The conditions do not hold: SAMPa's theorem needs a step below 0.5."
    assert "say nothing about mini-batches" in setting(replace(PROBLEM, noisy=True))


def test_the_page(tmp_path: Path) -> None:
    path = write_page(made(), tmp_path / "deep" / "page.html", command="lowland convergence --rho 0.1")
    text = path.read_text(encoding="utf-8")
    assert text.count("<svg") == 4
    assert "lowland convergence --rho 0.1" in text
    assert "0.0316" in text
    assert "The conditions do not hold" not in text
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=\"http", text)
    assert len(set(re.findall(r' id="([^"]+)"', text))) == len(re.findall(r' id="([^"]+)"', text))


def test_the_page_says_where_the_conditions_do_not_hold() -> None:
    late = made(problems=[replace(PROBLEM, lr=3.0)], traces=[NAIVE, LOST], lr=3.0, rates=[], rate_slopes={})
    text = render(late)
    assert "The conditions do not hold: SAMPa&#39;s theorem needs a step below 0.5." in text
    assert "diverged" in text
    assert 'title="conditions do not hold: the step 3 must be below 0.5"' in text


def test_a_page_without_a_figure() -> None:
    text = render(made(traces=[LOST], floors=[], floor_slopes={}, rates=[], rate_slopes={}))
    assert "<svg" not in text


def test_figures_are_exported(tmp_path: Path) -> None:
    files = export(made(), tmp_path / "figures")
    assert [file.name for file in files] == [
        "convergence-floors.svg",
        "convergence-square-distance.svg",
        "convergence-square-lyapunov.svg",
        "convergence-square-rate.svg",
    ]
    assert "var(" not in files[0].read_text(encoding="utf-8")
