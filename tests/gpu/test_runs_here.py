"""`make gpu` on this machine: what needs a GPU is skipped with a reason, the rest runs, and a failure is seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import lowland
from gpu import __main__ as command
from gpu import amp, bits, memory, numbers, processes, report, sections
from gpu.checks import NO_GPU, Check
from gpu.sections import SECTIONS, Section, run

ON_A_GPU = [name for name, section in SECTIONS.items() if section.only_on_a_gpu]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections run in this process, because a process of their own takes seconds to start."""
    monkeypatch.setattr(command, "run_apart", run)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the sections would run")
@pytest.mark.parametrize("name", ON_A_GPU)
def test_what_needs_a_gpu_is_skipped_aloud(name: str) -> None:
    results = list(run(SECTIONS[name], 60))
    assert results
    assert all((r.outcome, r.reason, r.figure) == ("skipped", NO_GPU, None) for r in results)
    assert len({r.name for r in results}) == len(results)
    said = report.verdicts({name: results})
    assert all(v.confirmed is None and str(v).startswith("NOT CHECKED") for v in said)
    assert said or name == "timing"  # of times nothing is expected


@pytest.mark.usefixtures("in_process")
def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert command.main(["executors", "ahead", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["sections"]) == ["executors", "ahead"]
    checks = {c["name"]: c for c in found["sections"]["executors"]["checks"]}
    assert checks["sampa"]["outcome"] == "ok"
    assert 0 <= checks["sampa"]["figure"] <= 1e-8
    assert checks["micro-sam:m=4, forward passes"]["figure"] == 2
    confirmed = {e["expectation"]: e["confirmed"] for e in found["expectations"] if e["section"] == "executors"}
    assert len(confirmed) == 2
    assert set(confirmed.values()) == {True}
    assert found["machine"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "executors: at most 40 s" in printed
    assert "ahead: at most 60 s" in printed  # 30 s, and as many of those that executors has left
    assert "CONFIRMED: executors, Batched gives the weights of Local" in printed
    if not torch.cuda.is_available():
        assert NO_GPU in printed
        assert "NOT CHECKED: ahead, backward returns" in printed


def cases() -> list[Check]:
    def break_down() -> float:
        raise RuntimeError("the device is gone")

    return [
        Check("small", lambda: 1.0, "it is small", 2),
        Check("large", lambda: 3.0, "it is small", 2),
        Check("undefined", lambda: float("nan"), "it is small", 2),
        Check("missing", lambda: None, "it is small", 2),
        Check("broken", break_down, "it works"),
        Check("a time", lambda: {"GPU ms": 1.5}),
        Check("elsewhere", break_down, "it works", missing="no such device"),
    ]


def test_every_outcome() -> None:
    results = [check() for check in cases()]
    outcomes = ["ok", "failed", "failed", "failed", "failed", "measured", "skipped"]
    assert [r.outcome for r in results] == outcomes
    assert "at most 2" in results[1].reason
    assert results[4].reason.startswith("RuntimeError: the device is gone (tests/gpu/test_runs_here.py:")
    small, works = report.verdicts({"s": results})
    assert (small.confirmed, small.ok, small.failed) == (False, 1, ["large", "undefined", "missing"])
    in_part = report.verdicts({"s": [cases()[0](), cases()[0].skip("late")]})
    assert str(in_part[0]).startswith("CONFIRMED IN PART: s, it is small (1 ok, 0 failed, 1 skipped")
    assert str(works).startswith("NOT CONFIRMED: s, it works (0 ok, 1 failed, 1 skipped")
    console = Console(width=100, record=True)
    report.show({"s": results}, console)
    text = console.export_text()
    assert "GPU ms 1.5" in text
    assert "skipped s: elsewhere: no such device" in text


@pytest.mark.usefixtures("in_process")
def test_a_failure_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Section, "checks", lambda self: iter(cases()[1:2]))
    assert command.main(["bits", "--out", str(tmp_path / "gpu.json")]) == 1


def test_a_section_that_breaks_down_does_not_stop_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def checks(self: Section):
        yield cases()[0]
        raise OSError("no disk")

    monkeypatch.setattr(Section, "checks", checks)
    first, last = run(SECTIONS["bits"], 60)
    assert (first.outcome, last.outcome) == ("ok", "failed")
    assert "no disk" in last.reason


def test_what_a_section_has_no_time_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 11.0])
    monkeypatch.setattr(sections, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(Section, "checks", lambda self: iter(cases()[:2]))
    first, second = run(SECTIONS["bits"], 10)
    assert (first.outcome, second.outcome) == ("ok", "skipped")
    assert (second.name, second.reason) == ("large", "the section's 10 s were over")


def test_a_process_that_ends_early_or_never_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\nif [ "$3" = bits ]; then exit 3; fi\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(program))
    monkeypatch.setattr(processes, "GRACE", 0.2)
    (ended,) = processes.run_apart(replace(SECTIONS["bits"]), 5)
    (hung,) = processes.run_apart(replace(SECTIONS["amp"]), 0)
    assert (ended.outcome, ended.reason) == ("failed", "its process ended with 3")
    assert (hung.outcome, hung.reason) == ("failed", "it did not end within 0 s and was killed")


def test_bits_notices_a_weight_that_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bits._changed("sam") == 0
    real = lowland.Engine.backward

    def moving(engine: lowland.Engine, batch: object) -> torch.Tensor:
        loss = real(engine, batch)
        with torch.no_grad():
            engine.params[1].add_(1e-3)
        return loss

    monkeypatch.setattr(lowland.Engine, "backward", moving)
    assert bits._changed("sam") == bits.STEPS


def test_bits_notices_a_state_that_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bits._resumed("sampa") == 0
    monkeypatch.setattr(lowland.Engine, "load_state_dict", lambda engine, state_dict: None)
    assert bits._resumed("sampa") > 1e-4


def test_numbers_notices_another_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers._difference("sampa", "sgd") <= numbers.MOST
    monkeypatch.setitem(numbers.PLAIN, "sgd", "sgd-nesterov")
    assert numbers._difference("sampa", "sgd") > 1e-4


def test_memory_notices_one_more_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = memory.documented("sam") + memory.ROOM
    assert memory._beyond("sam", "sgd") <= limit < memory._beyond("gsam", "sgd")


@pytest.mark.parametrize(
    ("key", "multiple"), [("plain", 0), ("sam", 1), ("esam", 2), ("friendly-sam", 4), ("arsam", 3)]
)
def test_memory_reads_the_figures_of_docstrings(key: str, multiple: int) -> None:
    assert memory.documented(key) == multiple


def test_amp_notices_a_step_that_should_have_been_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    amp._overflow("sam")
    monkeypatch.setattr(amp, "SCALE", 1024.0)
    with pytest.raises(AssertionError, match="0 of 6 steps overflowed"):
        amp._overflow("sam")


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same_results() -> None:
    section = SECTIONS["executors"]
    apart = [replace(r, seconds=0.0) for r in processes.run_apart(section, 60)]
    assert apart == [replace(r, seconds=0.0) for r in run(section, 60)]


def test_the_sections_take_ten_minutes_together() -> None:
    assert command.MINUTES == 10


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["nothing"])
    assert "a section must be one of numbers, syncs" in capsys.readouterr().err
