from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from lowland.bench.planning import held, simulated
from lowland.bench.planning.cases import CASES, sizes
from lowland.bench.planning.held import Row
from lowland.cli.bench.plan import Plan
from lowland.core.errors import UnknownNameError
from lowland.planner.asks import Pass
from lowland.planner.layout import Layout
from lowland.planner.line import Line
from lowland.planner.measure import Own, Rates
from lowland.planner.survey import Measured, Survey

HERE = Pass(examples=1.0, tensors=1.0, displaced=False, synced=True)
THERE = Pass(examples=1.0, tensors=1.0, displaced=True, synced=True)
LINES = {"again": Line(1.0, 0.5), "displaced": Line(3.0, 0.5), "forward": Line(0.5, 0.125)}
BUSY = Rates(layout=Layout(), lines=LINES, once=0.0, part=1.0, alone=True)
DATA = Rates(
    layout=Layout(data=2),
    lines={**LINES, "again": Line(2.0, 0.5), "displaced": Line(4.0, 0.5), "unsynced": Line(9.0, 0.5)},
    once=0.25,
    part=1.0,
)
SAM = Own(method="sam", steps=(((HERE,), (THERE,)),), seconds=(0.5,))
SURVEY = Survey(
    ranks=2,
    examples=8,
    parameters=1000,
    quiet=BUSY,
    busy=BUSY,
    rates=[DATA],
    own=[SAM],
    measured=[Measured(method="sam", layout=Layout(data=2), seconds=10.0, bytes=2000.0)],
)


def row(**changes: object) -> Row:
    given = {
        "method": "sam",
        "layout": "one device",
        "ranks": 1,
        "predicted": 1.0,
        "simulated": 1.0,
        "measured": 1.0,
        "sent": 0.0,
        "counted": 0.0,
    }
    return Row(**{**given, **changes})  # type: ignore[arg-type]


def test_a_predicted_and_a_simulated_step_by_hand() -> None:
    (found,) = held.rows_of(SURVEY, ["sam"])
    # own 0.5, once 0.25, a gradient over 4 examples 2 + 2, a displaced one 4 + 2
    assert found.predicted == pytest.approx(0.5 + 0.25 + 4.0 + 6.0)
    assert found.error == pytest.approx(0.075)
    assert (found.sent, found.counted) == (2000.0, 2000.0)
    # the simulator has one line for both passes, 2 + 0.5 n, and adds the second that an average takes to each
    assert found.simulated == pytest.approx(0.75 + 2 * (4.0 + 1.0))


def test_the_simulator_shares_gradients_in_a_probe_mesh() -> None:
    layout = Layout(probe=2)
    rates = Rates(
        layout=layout, lines={**LINES, "together": Line(6.0, 0.5), "rounds": Line(5.0, 0.5)}, once=0.0, part=1.0
    )
    sampa = Own(method="sampa", steps=(((THERE, THERE),),), seconds=(0.5,), width=2)
    # 2 + 0.5 * 8 for a pass, 5 - 3 seconds for the exchange, and 6 - 5 more for the first
    assert simulated.seconds(SURVEY, rates, sampa) == pytest.approx(0.5 + 6.0 + 2.0 + 1.0)


def test_the_simulator_averages_some_gradients_at_the_end() -> None:
    here, up = (Pass(examples=0.5, tensors=1.0, displaced=displaced, synced=False) for displaced in (False, True))
    own = Own(method="micro-sam:m=2", steps=(((here,), (up,), (here,), (up,)),), seconds=(0.5,))
    rates = replace(DATA, lines={**DATA.lines, "unsynced displaced": Line(5.0, 0.5)})
    # of 2 examples: between 5 - 2 + 1 and 5 + 1, and at the end 9 + 1 without the pass in it, 3 + 1
    assert simulated.seconds(SURVEY, rates, own) == pytest.approx(0.75 + 4 * 5.0 + 10.0 - 4.0)


def test_the_simulator_averages_after_rounds_at_the_end() -> None:
    here, up = (Pass(examples=0.5, tensors=1.0, displaced=displaced, synced=False) for displaced in (False, True))
    own = Own(method="micro-sam:m=2", steps=(((here, here), (up, up)),), seconds=(0.5,), width=2)
    more = {"together": Line(20.0, 0.5), "rounds": Line(19.0, 0.5), "unsynced displaced": Line(8.0, 0.5)}
    more |= {"unsynced together": Line(14.0, 0.5), "unsynced rounds": Line(5.0, 0.5)}
    rates = replace(DATA, layout=Layout(probe=2, data=2), lines={**DATA.lines, **more})
    # two rounds of 2 examples, each a pass, between 1 + 1 and 3 + 1, and an exchange, 5 - 3; and the average, 14 - 5
    assert simulated.seconds(SURVEY, rates, own) == pytest.approx(0.75 + 2 * (3.0 + 2.0) + 9.0)


def test_a_summary_by_hand() -> None:
    rows = [
        row(predicted=1.1, simulated=1.2, layout="one device"),
        row(predicted=0.9, measured=0.5, layout="data=2", sent=4.0, counted=4.0),
        row(method="plain", predicted=2.0, measured=2.0),
    ]
    found = held.summary(rows, {"sam": (110.0, 100), "plain": (95.0, 100)})
    assert found["median"] == pytest.approx(0.1)
    assert found["simulated"] == pytest.approx(0.5)  # 0.2, 1.0 and 0.5
    assert found["within"] == pytest.approx(2 / 3)
    assert found["exact"]
    assert found["memory_error"] == pytest.approx(0.1)
    assert found["chosen"] == pytest.approx({"sam": 1.0, "plain": 1.0})
    worse = held.summary([*rows, row(predicted=0.8, measured=1.5, sent=1.0)], {"sam": (1.0, 1)})
    assert worse["chosen"]["sam"] == pytest.approx(3.0)  # the predicted choice took 1.5 s, the fastest 0.5
    assert not worse["exact"]


@pytest.mark.parametrize("name", CASES)
def test_no_pass_is_timed_on_as_many_examples_as_a_method_has(name: str) -> None:
    for batch in CASES[name].batches:
        for layout in (Layout(), Layout(data=2), Layout(data=4), Layout(probe=2, data=2)):
            part = batch // layout.data
            found = sizes(batch, layout)
            assert len(found) >= 2
            assert not {part, part // 2, part // 4} & {*found}
            assert max(found) <= batch


def test_an_unknown_case() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'convnet-32'"):
        held.hold("convnet-31", rounds=1)


@pytest.mark.slow
def test_real_ranks_send_what_was_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    ticks: list[int] = []
    methods = ("sam", "sampa", "looksam", "esam")
    found = held.hold("perceptron-64", rounds=5, methods=methods, processes=(1, 2), tick=lambda: ticks.append(1))
    assert len(ticks) == 2 * held.STEPS
    rows = [Row(**each) for each in found["rows"]]
    assert {(r.method, r.layout) for r in rows} == {
        *((m, "one device") for m in methods),
        *((m, "data=2") for m in methods),
        ("sampa", "probe=2"),
    }
    assert found["exact"]
    assert any(r.counted > 0 for r in rows)
    assert found["memory_error"] < 0.1
    assert all(r.predicted > 0 < r.measured for r in rows)
    for shown in Plan().tables(found):
        Console(width=200).print(shown)
    out = capsys.readouterr().out
    assert "bytes are exact" in out
    assert "of 4 methods" in out
