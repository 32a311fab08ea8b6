"""Clients as processes: killed in the middle of a round, raising, too slow; and what the others do meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message

from flower.federation import EXAMPLES, app, context, first_arrays, message, same
from lowland.core.errors import ArgumentError, UsageError
from lowland.integrations.flower import FedAvg, Processes

PATIENCE = 60.0  # seconds
ROUNDS = 3


@pytest.fixture
def started() -> Iterator[Callable[..., Processes]]:
    grids: list[Processes] = []

    def start(make: Any = app, *, count: int = len(EXAMPLES), **options: Any) -> Processes:
        run = {name: options.pop(name) for name in ("method", "memory", "fails", "folder") if name in options}
        grids.append(Processes(make, count, run_config=run, **options))
        return grids[-1]

    yield start
    for grid in grids:
        grid.close()


def federated(grid: Processes, rounds: int = ROUNDS) -> tuple[FedAvg, list[ArrayRecord]]:
    """The strategy after some rounds, and the weights before the first and after each."""
    seen: list[ArrayRecord] = []
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.start(grid, first_arrays(), rounds, evaluate_fn=lambda number, arrays: seen.append(arrays), timeout=60)
    return strategy, seen


def replayed(places: list[Any], seen: list[ArrayRecord], without: dict[int, int]) -> list[ArrayRecord]:
    """The same rounds in this process, round r without client ``without[r]``."""
    results = []
    for number, arrays in enumerate(seen[:-1], 1):
        clients = [c for c in range(len(places)) if without.get(number) != c]
        replies = [app()(message(arrays, number, c), places[c]) for c in clients]
        strategy = FedAvg(fraction_evaluate=0.0)
        strategy._sent = {c + 1: arrays for c in range(len(places))}
        results.append(strategy.aggregate_train(number, replies)[0])
    return results


def test_processes_compute_what_this_process_computes(started: Any) -> None:
    strategy, seen = federated(started(memory="kept"))
    expected = replayed([context(c, memory="kept") for c in range(3)], seen, {})
    assert all(same(a, b) for a, b in zip(seen[1:], expected, strict=True))
    assert [r.averaged for r in strategy.rounds] == [(1, 2, 3)] * ROUNDS


def test_a_client_killed_from_outside_in_the_middle_of_a_round_is_survived(started: Any, tmp_path: Path) -> None:
    grid = started(fails="wait@1@2", folder=str(tmp_path), memory="kept")
    killed = threading.Thread(target=_kill_when_it_waits, args=(tmp_path / "waits",))
    killed.start()
    strategy, seen = federated(grid)
    killed.join()
    assert [r.averaged for r in strategy.rounds] == [(1, 2, 3), (1, 3), (1, 3)]
    assert strategy.rounds[1].failed == {2: "its process died in the middle of the round (SIGKILL)"}
    assert strategy.rounds[2].failed == {2: "its process is dead (SIGKILL)"}
    assert grid.pid(2) is None
    expected = replayed([context(c, memory="kept") for c in range(3)], seen, {2: 1, 3: 1})
    assert all(same(a, b) for a, b in zip(seen[1:], expected, strict=True))


def _kill_when_it_waits(path: Path) -> None:
    end = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if path.exists() and path.read_text():
            os.kill(int(path.read_text()), signal.SIGKILL)
            return
        end.wait(0.02)


def test_a_restarted_client_goes_on_from_its_last_round_bit_for_bit(started: Any) -> None:
    strategy, seen = federated(started(fails="kill@0@2", memory="kept", restart=True))
    assert [r.averaged for r in strategy.rounds] == [(1, 2, 3), (2, 3), (1, 2, 3)]
    expected = replayed([context(c, memory="kept") for c in range(3)], seen, {2: 0})
    assert all(same(a, b) for a, b in zip(seen[1:], expected, strict=True))


def test_an_exception_is_said_and_the_client_lives_on(started: Any) -> None:
    grid = started(fails="raise@2@1")
    before = grid.pid(3)
    strategy, _ = federated(grid, rounds=2)
    assert strategy.rounds[0].failed == {3: "ValueError: no more data"}
    assert strategy.rounds[1].averaged == (1, 2, 3)
    assert grid.pid(3) == before


def test_nan_of_one_client_is_survived(started: Any) -> None:
    strategy, seen = federated(started(fails="nan@0@1"), rounds=2)
    assert [r.averaged for r in strategy.rounds] == [(2, 3), (1, 2, 3)]
    assert list(strategy.rounds[0].refused) == [1]
    assert same(seen[1], replayed([context(c) for c in range(3)], seen, {1: 0})[0])


def test_a_client_that_is_too_slow_is_killed(started: Any, tmp_path: Path) -> None:
    grid = started(fails="wait@0@1", folder=str(tmp_path), at_once=1)
    grid.send_and_receive([_train(1, 2)])  # what is imported only once
    found = grid.send_and_receive([_train(0, 1), _train(1, 1)], timeout=1.0)
    assert [m.error.reason for m in found] == ["no reply in 1 s, and was killed", "no reply in 1 s"]
    assert grid.pid(1) is None
    assert grid.send_and_receive([_train(1, 1)])[0].has_content()


def _train(client: int, number: int) -> Message:
    return message(first_arrays(), number, client)


def test_reset_begins_anew(started: Any) -> None:
    grid = started(fails="kill@0@2", memory="kept")
    first = federated(grid)
    assert grid.pid(1) is None
    grid.reset()
    assert grid.pid(1) is not None
    again = federated(grid)
    assert all(same(a, b) for a, b in zip(first[1], again[1], strict=True))


def test_few_clients_work_at_the_same_time(started: Any, tmp_path: Path) -> None:
    grid = started(partial(_exclusive, str(tmp_path / "busy")), at_once=1)
    found = grid.send_and_receive([_train(c, 1) for c in range(3)])
    assert all(m.has_content() for m in found)


def _exclusive(path: str) -> Any:
    """A client that fails if another one works."""
    made = app()

    def call(message: Any, context: Any) -> Any:
        Path(path).touch(exist_ok=False)
        answer = made(message, context)
        Path(path).unlink()
        return answer

    return call


def test_the_grid_is_flower_s(started: Any) -> None:
    grid = started(count=1)
    made = grid.create_message(_train(0, 1).content, "train", 1, "round 1")
    (name,) = grid.push_messages([made])
    found: list[Message] = []
    while not found:
        found = grid.pull_messages([name])
    assert (found[0].metadata.reply_to_message_id, found[0].metadata.group_id) == (name, "round 1")
    assert grid.pull_messages([name]) == []
    with pytest.raises(UsageError, match=r"grid\.run must be set"):
        _ = grid.run
    grid.set_run("the run")
    assert grid.run == "the run"
    with pytest.raises(ArgumentError, match="messages must go to clients 1 to 1, but one goes to 3"):
        grid.push_messages([_train(2, 1)])


def test_processes_end_with_the_grid(started: Any) -> None:
    with started(count=2) as grid:
        processes = [grid.pid(1), grid.pid(2)]
    assert (grid.pid(1), grid.pid(2)) == (None, None)
    for pid in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"count": 0}, "count must be an integer >= 1"),
        ({"count": 1, "threads": 0}, "threads must be an integer >= 1"),
        ({"count": 1, "at_once": 0}, "at_once must be an integer >= 1"),
        ({"count": 1, "app": app()}, "app must be a function that makes a ClientApp, but is a ClientApp"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        Processes(**({"app": app} | options))
