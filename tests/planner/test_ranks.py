"""Processes that are started: what they return, how they fail, and that they end with who started them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lowland.planner.ranks import KEEP, RanksError, failure, memory, run

MODULE = """
import json, os, sys, time
{body}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), before])))
    return tmp_path / "measuring.py"


def written(module: Path, body: str) -> str:
    module.write_text(MODULE.format(body=body), encoding="utf-8")
    return module.stem


def test_what_rank_0_has_written_comes_back(module: Path) -> None:
    name = written(
        module,
        'print("hello"); print("lowland-done 0.5000", flush=True); print("lowland-done 1.0000")\n'
        'json.dump([sys.argv[1:-1], os.environ["OMP_NUM_THREADS"]], open(sys.argv[-1], "w"))',
    )
    ticks: list[float] = []
    assert run(name, ["a", "b c"], 1, threads=3, tick=ticks.append) == [["a", "b c"], "3"]
    assert ticks == [0.5, 1.0]


def test_a_failing_process_shows_its_traceback(module: Path) -> None:
    name = written(module, 'print("a warning", file=sys.stderr)\nraise ValueError("no such model")')
    with pytest.raises(RanksError, match=r"ended with exit code 1(?s:.*)Traceback(?s:.*)ValueError: no such model$"):
        run(name, [], 1)


def test_a_process_that_writes_no_result(module: Path) -> None:
    name = written(module, 'print("gave up", file=sys.stderr)')
    with pytest.raises(RanksError, match=r"ended with exit code 0; correct what they wrote:\ngave up$"):
        run(name, [], 1)


@pytest.mark.slow
def test_of_several_ranks_the_first_with_a_traceback_is_shown(module: Path) -> None:
    name = written(
        module,
        'rank = os.environ["RANK"]\n'
        'if rank == "0": time.sleep(60)\n'
        "raise ValueError(f\"rank {{rank}} of {{os.environ['WORLD_SIZE']}}\")".replace("{{", "{").replace("}}", "}"),
    )
    with pytest.raises(RanksError, match="2 processes") as caught:
        run(name, [], 2)
    said = str(caught.value).splitlines()
    assert said[1] == "Traceback (most recent call last):"
    assert said[-1] == "ValueError: rank 1 of 2"  # and nothing of torchrun's banner


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_a_rank_refuses_is_said_without_a_traceback(module: Path, ranks: int) -> None:
    name = written(
        module,
        "from lowland.core.errors import ArgumentError\nfrom lowland.planner import ranks\n"
        'def main():\n    raise ArgumentError("batch must have\\ntwo lines")\nsys.exit(ranks.refusing(main))',
    )
    with pytest.raises(RanksError) as caught:
        run(name, [], ranks)
    assert str(caught.value) == "batch must have\ntwo lines"


@pytest.mark.slow
def test_several_ranks_return_what_rank_0_has_written(module: Path) -> None:
    name = written(module, 'if os.environ["RANK"] == "0": json.dump(os.environ["WORLD_SIZE"], open(sys.argv[-1], "w"))')
    assert run(name, [], 2) == "2"


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupt_ends_the_processes(module: Path, tmp_path: Path, ranks: int) -> None:
    name = written(
        module,
        f'open({str(tmp_path)!r} + "/pid" + os.environ.get("RANK", "0"), "w").write(str(os.getpid()))\n'
        f'while len([n for n in os.listdir({str(tmp_path)!r}) if n.startswith("pid")]) < {ranks}: time.sleep(0.01)\n'
        'print("lowland-done 0.1000", flush=True); time.sleep(120)',
    )

    def interrupt(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(name, [], ranks, tick=interrupt)
    numbers = [int(path.read_text()) for path in tmp_path.glob("pid*")]
    assert len(numbers) == ranks
    until = time.monotonic() + 20
    while any(map(_lives, numbers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_lives, numbers))


def _lives(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_long_traceback_is_cut_in_its_middle() -> None:
    lines = ["Traceback (most recent call last):", *(f"  line {n}" for n in range(100)), "ValueError: deep"]
    said = failure(["", "\n".join(lines)]).splitlines()
    assert (said[0], said[30], said[-1], len(said)) == (lines[0], "…", lines[-1], 61)
    assert failure(["", "  "]) == "nothing"
    assert failure(["", "killed by a signal\n"]) == "killed by a signal"


def test_the_users_own_tunables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert memory() == {"GLIBC_TUNABLES": KEEP}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=1")
    assert memory() == {"GLIBC_TUNABLES": "glibc.malloc.perturb=1"}
