"""The measuring against times that are made up: a clock that only the steps move."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from lowland.core.errors import ArgumentError
from lowland.planner import turns
from lowland.planner.asks import Pass
from lowland.planner.calibration import Kind
from lowland.planner.canned import Canned
from lowland.planner.layout import Layout
from lowland.planner.measure import own, rates
from lowland.planner.turns import FEWEST, MOST, WARMUP, Turn, take

CPU = torch.device("cpu")


class Clock:
    """A clock that steps move."""

    def __init__(self) -> None:
        self.now, self.said = 0.0, []  # type: ignore[var-annotated]

    def step(self, name: str, seconds: float, prepare: float = 0.0) -> Turn:
        def taken() -> None:
            self.said.append(name)
            self.now += seconds

        def prepared() -> None:
            self.now += prepare

        return Turn(taken, prepared)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(turns.time, "perf_counter", lambda: found.now)
    return found


def test_every_step_is_taken_once_in_every_round(clock: Clock) -> None:
    turns = {name: clock.step(name, seconds, prepare=7.0) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    ticks: list[float] = []
    assert take(turns, CPU, rounds=3, warmup=1, tick=ticks.append) == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [3.0] * 3}
    rounds = ["".join(clock.said[start : start + 3]) for start in range(0, 12, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert ticks == [0.25, 0.5, 0.75, 1.0]


def test_every_step_follows_every_other_one_and_all_ranks_agree(clock: Clock) -> None:
    turns = {name: clock.step(name, 1.0) for name in "abcd"}
    take(turns, CPU, rounds=MOST, warmup=0)
    rounds = [clock.said[start : start + 4] for start in range(0, len(clock.said), 4)]
    before = Counter(pair for each in rounds for pair in pairwise(each))
    assert len(before) == 4 * 3
    assert max(before.values()) < MOST / 2  # of 15 that are expected
    again = Clock()
    take({name: again.step(name, 1.0) for name in "abcd"}, CPU, rounds=MOST, warmup=0)  # as another rank
    assert again.said == clock.said


@pytest.mark.parametrize(
    ("limit", "rounds"),
    # a round takes 0.5 s, and the warm-up 2.5 s of the limit
    [(10.0, 15), (0.001, FEWEST), (1000.0, MOST)],
)
def test_the_time_limits_the_rounds(clock: Clock, limit: float, rounds: int) -> None:
    ticks: list[float] = []
    laps = take({"a": clock.step("a", 0.5)}, CPU, limit=limit, tick=ticks.append)
    assert laps == {"a": [0.5] * rounds}
    assert len(clock.said) == WARMUP + rounds
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1.0


BASES = {"again": 2.0, "displaced": 3.0, "forward": 1.0, "together": 7.0, "rounds": 6.0, "unsynced": 4.0}
SLOPES = {"again": 0.5, "displaced": 0.6, "forward": 0.2, "together": 0.9, "rounds": 0.8, "unsynced": 0.7}
BASES |= {"unsynced displaced": 2.5, "unsynced together": 5.0, "unsynced rounds": 3.5}
SLOPES |= {"unsynced displaced": 0.55, "unsynced together": 0.75, "unsynced rounds": 0.65}
OWN, ONCE, PART = 0.25, 1.5, 0.6
SIZES = (4, 8, 16)


def laps(kinds: tuple[Kind, ...]) -> dict[tuple[Kind, int], list[float]]:
    """Times of calibrating steps that are made of known passes; one step of each kind is an outlier."""
    found = {}
    for n in SIZES:
        line = {kind: BASES[kind] + SLOPES[kind] * n for kind in BASES}
        first = OWN + ONCE + line["again"]
        times = {
            "pass": first,
            **{kind: first + line[kind] for kind in ("again", "displaced", "forward")},
            "part": first + PART * line["again"],
            **{kind: OWN + ONCE + line[kind] for kind in ("together", "unsynced", "unsynced together")},
            "rounds": OWN + ONCE + line["together"] + line["rounds"],
            "unsynced displaced": OWN + ONCE + line["unsynced"] + line["unsynced displaced"],
            "unsynced rounds": OWN + ONCE + line["unsynced together"] + line["unsynced rounds"],
        }
        found |= {(kind, n): [times[kind], times[kind] + 50, times[kind], times[kind]] for kind in ("pass", *kinds)}
    return found  # type: ignore[return-value]


def test_rates_are_the_passes_that_the_steps_are_made_of() -> None:
    layout = Layout(probe=2, data=2)
    rounds: tuple[Kind, ...] = ("together", "rounds", "unsynced together", "unsynced rounds")
    passes: tuple[Kind, ...] = ("again", "displaced", "forward", "part", "unsynced", "unsynced displaced")
    found = rates(layout, laps((*passes, *rounds)), OWN)
    assert set(found.lines) == set(BASES)
    for kind, line in found.lines.items():
        assert (line.base, line.slope) == pytest.approx((BASES[kind], SLOPES[kind])), kind
        assert line.error == pytest.approx(0, abs=1e-9)
    assert (found.once, found.part, found.layout, found.alone) == (
        pytest.approx(ONCE),
        pytest.approx(PART),
        layout,
        False,
    )


def test_a_pass_is_a_difference_of_medians_because_medians_are_predicted() -> None:
    """The median of the differences within rounds is 2."""
    late: dict[tuple[Kind, int], list[float]] = {
        key: [4.0, 3.0, 9.0, 5.0, 5.0] for key in laps(("again", "displaced", "forward", "part"))
    }
    late |= {("pass", n): [2.0, 2.0, 2.0, 4.0, 1.5] for n in SIZES}
    found = rates(Layout(), late, 0.0)
    assert [found.lines[kind](8) for kind in ("again", "displaced", "forward")] == pytest.approx([3.0] * 3)


def test_a_step_that_is_faster_than_its_parts_has_nothing_once() -> None:
    found = rates(Layout(), laps(("again", "displaced", "forward", "part")), OWN + ONCE + 1, alone=True)
    assert (found.once, found.alone) == (0.0, True)
    assert set(found.lines) == {"again", "displaced", "forward"}


def test_one_size_makes_no_line() -> None:
    one = {key: row for key, row in laps(("again", "displaced", "forward", "part")).items() if key[1] == 4}
    with pytest.raises(ArgumentError, match="sizes must have two that differ"):
        rates(Layout(), one, OWN)


def test_steps_that_ask_alike_share_their_median() -> None:
    here, up = Pass(1.0, 1.0, False, True), Pass(1.0, 1.0, True, True)
    dear, cheap = ((here,), (up,)), ((here,),)
    canned = Canned((), 2, None)  # type: ignore[arg-type]
    canned.steps = [dear, cheap, dear, cheap, cheap, dear]  # the first step is of the warm-up
    found = own("looksam", canned, [1.0, 9.0, 1.5, 2.0, 8.0])
    assert found.steps == (cheap, dear, cheap, cheap, dear)
    assert found.seconds == (1.5, 8.5, 1.5, 1.5, 8.5)
    assert (found.method, found.width) == ("looksam", 2)


def test_gradients_of_other_tensors_are_alike() -> None:
    one, other = (((Pass(1.0, p, False, True, p)),) for p in (0.25, 0.5))
    canned = Canned((), 1, None)  # type: ignore[arg-type]
    canned.steps = [(one,), (other,)]
    assert own("esam", canned, [1.0, 2.0]).seconds == (1.5, 1.5)
