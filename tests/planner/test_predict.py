"""Predicted steps against sums that are written out by hand. All times are in seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lowland import SAM, LookSAM, MicroSAM, Plain, SAMPa
from lowland.methods.base import Method
from lowland.planner.asks import Pass, Step, read
from lowland.planner.layout import Layout
from lowland.planner.line import Line
from lowland.planner.measure import Own, Rates
from lowland.planner.predict import Prediction, best, partial, pieces, predict, sent, unsynced
from lowland.planner.why import why

EXAMPLES, PARAMETERS = 40, 1000
ONE, DATA, PROBE = Layout(), Layout(data=2), Layout(probe=2)
BOTH = Layout(probe=2, data=2)


def rates(layout: Layout, once: float, part: float = 1.0, **lines: tuple[float, float]) -> Rates:
    found = {kind: Line(*line) for kind, line in lines.items()}
    return Rates(layout=layout, lines=found, once=once, part=part, alone=layout == ONE)


QUIET = rates(ONE, 0.5, part=0.6, again=(1, 0.1), displaced=(2, 0.1), forward=(1, 0.05))
BUSY = rates(ONE, 0.5, part=0.6, again=(2, 0.2), displaced=(4, 0.2), forward=(2, 0.1))
HERE = {
    ONE: QUIET,
    DATA: rates(
        DATA,
        3,
        again=(5, 0.3),
        displaced=(7, 0.3),
        forward=(9, 0.3),
        unsynced=(20, 0.5),
        **{"unsynced displaced": (6, 0.4)},
    ),
    PROBE: rates(
        PROBE, 1, part=0.8, again=(6, 0.2), displaced=(8, 0.2), forward=(3, 0.1), together=(10, 0.4), rounds=(9, 0.4)
    ),
    BOTH: rates(
        BOTH,
        4,
        again=(11, 0.3),
        displaced=(12, 0.3),
        forward=(13, 0.1),
        together=(14, 0.4),
        rounds=(13, 0.3),
        unsynced=(30, 1),
        **{"unsynced displaced": (9, 0.4), "unsynced together": (16, 0.4), "unsynced rounds": (5, 0.2)},
    ),
}


def made(steps: tuple[Step, ...], layout: Layout, seconds: float = 0.25) -> Prediction:
    own = Own(method="m", steps=steps, seconds=(seconds,) * len(steps), width=layout.width)
    here = HERE[Layout(probe=layout.probe, data=layout.data)]
    busy = QUIET if layout.ranks == 1 else BUSY
    return predict(own, layout, EXAMPLES, here=here, busy=busy, quiet=QUIET, parameters=PARAMETERS)


def of(method: Method, layout: Layout) -> Prediction:
    return made(read(method, width=layout.width)[-5:], layout)


def parts(one: Prediction) -> tuple[float, float, float, float]:
    return one.passes, one.busy, one.exchange, one.own


SIXTEEN = Layout(micro_batch=16)
# own arithmetic is 0.25 everywhere; again(40) = 5 and displaced(40) = 6 on a quiet device, 10 and 12 on a busy one
TIMES = [
    (Plain(), ONE, 0.5 + 5),
    (SAM(), ONE, 0.5 + 5 + 6),
    (SAMPa(), ONE, 0.5 + 6 + 6),
    (LookSAM(k=5), ONE, 0.5 + 5 + 6 / 5),
    # SAM on four parts of the batch: each a gradient at the weights and one at displaced weights, of 10 examples
    (MicroSAM(m=4), ONE, 0.5 + 4 * ((1 + 1) + (2 + 1))),
    # three micro-batches of 16, 16 and 8: three times the base
    (Plain(), SIXTEEN, 0.5 + 3 * 1 + 4),
    (SAM(), SIXTEEN, 0.5 + 3 * 1 + 4 + 3 * 2 + 4),
    (Plain(), DATA, 3 + (5 + 6)),
    (SAM(), DATA, 3 + (5 + 6) + (7 + 6)),
    (SAMPa(), DATA, 3 + 2 * (7 + 6)),
    (LookSAM(k=5), DATA, 3 + (5 + 6) + (7 + 6) / 5),
    # 8, 8 and 4 of a rank's 20 examples: two more micro-batches, which exchange nothing
    (Plain(), Layout(data=2, micro_batch=8), 3 + (5 + 6) + 2 * 2),
    # both gradients in one round
    (SAMPa(), PROBE, 1 + (10 + 16)),
    # two more micro-batches, each with the base of a displaced pass beside others
    (SAMPa(), Layout(probe=2, micro_batch=16), 1 + (10 + 16) + 2 * 4),
    (SAMPa(), BOTH, 4 + (14 + 8)),
]


# of 5 examples on a rank, without exchange, and at the end what an average at the end takes beyond a pass of 20; a pass
# at the weights takes 4 - 2 seconds less, as on ranks that train for themselves
TIMES += [(MicroSAM(m=4), DATA, 3 + 4 * ((4 + 2) + (6 + 2)) + (20 + 10) - (4 + 8))]
# two asks at the weights and two displaced ones, each of two parts of 10 examples, or of 5; moving the weights takes
# 4 - 2 seconds of a busy device
TIMES += [
    (MicroSAM(m=4), PROBE, 1 + (10 + 4) + 3 * (9 + 4) - 2 * 2),
    # rounds that are not averaged; the first one's line has the average at the end
    (MicroSAM(m=4), BOTH, 4 + (16 + 2) + 3 * (5 + 1) - 2 * 2),
]


@pytest.mark.parametrize(("method", "layout", "expected"), TIMES, ids=str)
def test_the_time_of_a_step(method: Method, layout: Layout, expected: float) -> None:
    one = of(method, layout)
    assert one.seconds == pytest.approx(expected + 0.25)
    assert sum(parts(one)) == pytest.approx(one.seconds)
    assert one.own == 0.25
    assert one.speed == pytest.approx(EXAMPLES / one.seconds)


@pytest.mark.parametrize(
    ("method", "layout", "expected"),
    [
        (SAM(), ONE, (11.5, 0, 0)),  # what a step takes once is no exchange on one device
        # alone 1 + 2 and 2 + 2; busy 2 + 4 and 4 + 4; in the layout 3 + 11 + 13
        (SAM(), DATA, (7, 14 - 7, 27 - 14)),
        (SAMPa(), PROBE, (2 + 4, (4 + 8) - 6, (1 + 26) - 12)),  # one of the two gradients of 40
        (SAMPa(), BOTH, (2 + 2, (4 + 4) - 4, (4 + 22) - 8)),
    ],
    ids=str,
)
def test_where_the_time_goes(method: Method, layout: Layout, expected: tuple[float, ...]) -> None:
    assert parts(of(method, layout))[:3] == pytest.approx(expected)


def test_rounds_of_which_some_are_averaged_at_once() -> None:
    synced, unsynced = (Pass(examples=1.0, tensors=1.0, displaced=True, synced=sync) for sync in (True, False))
    mixed = ((synced, synced), (unsynced, unsynced))
    assert made((mixed,), BOTH).seconds == pytest.approx(4 + (14 + 8) + (13 + 6) + (30 + 20) - (7 + 8) + 0.25)


def test_a_plan_of_before_has_no_times_of_gradients_that_are_not_averaged() -> None:
    here = replace(HERE[DATA], lines={k: v for k, v in HERE[DATA].lines.items() if k != "unsynced displaced"})
    assert unsynced(here, BUSY, 1) is BUSY


def test_a_pass_that_is_not_averaged_takes_no_less_than_that_of_a_rank_alone() -> None:
    steep = replace(HERE[DATA], lines={**HERE[DATA].lines, "unsynced displaced": Line(0.0, 0.5)})
    assert unsynced(steep, BUSY, 10) is BUSY  # 5 seconds, where a rank alone takes 4 + 2
    assert unsynced(steep, BUSY, 20).lines["displaced"](20) == 10


def test_a_gradient_of_some_tensors() -> None:
    some = ((Pass(examples=1.0, tensors=0.75, displaced=True, synced=True, entries=0.3, reach=0.8),),)
    # Forward is 3 of 5 seconds, and half of the tensors take forward alone: of backward 0.75 are left.
    assert made((some,), ONE).seconds == pytest.approx(0.5 + (0.6 + 0.4 * 0.75) * 6 + 0.25)
    # not averaged within its backward: the rates of such passes with 20 examples, 6 + 8 and 4 + 8 seconds, and the
    # average at the end; forward is 4 of 12 seconds, and half of the tensors take less than it
    share = 4 / 12 + 8 / 12 * 0.75
    assert made((some,), DATA).seconds == pytest.approx(3 + share * (6 + 8) + (20 + 10) - (4 + 8) + 0.25)
    assert sent(some, DATA) == pytest.approx(0.3)


def test_backward_passes_through_all_layers_down_to_the_first_chosen_one() -> None:
    # Half of the tensors take 0.9: of backward's 0.4, half is in proportion to the layers, half to the tensors.
    here = replace(QUIET, part=0.9)
    for reach, tensors, expected in ((0.8, 0.75, 0.6 + 0.4 * (0.4 + 0.375)), (0.1, 0.1, 0.64), (1.0, 1.0, 1.0)):
        one = Pass(examples=1.0, tensors=tensors, displaced=False, synced=True, reach=reach)
        assert partial(one, here, EXAMPLES) == pytest.approx(expected)


def test_a_shorter_pass_leaves_its_neighbors_alone() -> None:
    ask = tuple(Pass(fraction, 1.0, True, True) for fraction in (0.25, 1.0))
    # busy 4 + 2 and 4 + 8, so half of the time one group has nothing to do; quiet the longer takes 6 less
    assert made(((ask,),), PROBE).seconds == pytest.approx(1 + (10 + 16) - 6 / 2 + 0.25)
    # on four ranks 4 + 1 and 4 + 4, so 3/8 of the time; the group that ends has two of the three neighbors
    one = made(((ask,),), BOTH)
    assert one.seconds == pytest.approx(4 + (14 + 8) - 4 * 3 / 8 * 2 / 3 + 0.25)
    assert sum(parts(one)) == pytest.approx(one.seconds)


def test_a_forward_pass_exchanges_nothing() -> None:
    step = ((Pass(1.0, 0.0, True, False, 0.0),), (Pass(0.5, 1.0, True, True),))
    assert made((step,), DATA).seconds == pytest.approx(3 + (2 + 2) + (7 + 3) + 0.25)
    assert sent(step, DATA) == 1


@pytest.mark.parametrize(
    ("method", "each"),
    [  # in multiples of the parameters: one device, data=2, probe=2, probe=2,data=2
        (Plain(), (0, 1, 1, 2)),
        (SAM(), (0, 2, 2, 4)),
        (SAMPa(), (0, 2, 1, 2)),  # on a probe mesh a group sends the one gradient that it has computed
        (LookSAM(k=5), (0, 1.2, 1.2, 2.4)),
        (MicroSAM(m=4), (0, 1, 4, 5)),  # averages only the result, but groups exchange every gradient
    ],
    ids=str,
)
def test_the_bytes_of_a_step(method: Method, each: tuple[float, ...]) -> None:
    found = [of(method, layout).bytes for layout in (ONE, DATA, PROBE, BOTH)]
    assert found == pytest.approx([PARAMETERS * count for count in each])


def test_the_error_is_that_of_the_lines() -> None:
    steps = read(SAM())[-1:]
    scattered = rates(ONE, 0.5, again=(1, 0.1, 0.1), displaced=(2, 0.1, 0.2), forward=(1, 0.05))  # type: ignore[arg-type]
    own = Own(method="sam", steps=steps, seconds=(0.25,))
    one = predict(own, ONE, EXAMPLES, here=scattered, busy=scattered, quiet=scattered, parameters=1)
    assert one.error == pytest.approx((0.5**2 + 1.2**2) ** 0.5 / 11.75)


def test_what_bounds_a_step() -> None:
    assert of(SAM(), ONE).bound == "passes"
    assert of(SAM(), DATA).bound == "exchange"
    assert made(read(Plain())[-1:], ONE, seconds=2.0).bound == "own"


def test_of_equal_times_the_one_without_micro_batches_comes_first() -> None:
    whole, cut = of(SAM(), ONE), replace(of(SAM(), ONE), layout=SIXTEEN)
    faster = replace(whole, seconds=cut.seconds - 1e-12, layout=SIXTEEN)
    assert best([faster, cut, whole]) == {"m": whole}


def test_pieces_are_equal_but_for_the_last() -> None:
    assert pieces(10, None) == pieces(10, 10) == [10]
    assert pieces(10, 4) == [4, 4, 2]
    assert pieces(8, 4) == [4, 4]
    assert pieces(2.5, 1) == [1, 1, 0.5]


def test_the_best_and_the_sentence() -> None:
    slow, fast = of(SAMPa(), DATA), of(SAMPa(), PROBE)
    assert best([slow, fast]) == {"m": fast}
    text = why(fast, [slow, fast])
    assert text.startswith("probe=2: 27250.00 ms = passes 6000.00 + other ranks that compute at the same time 6000.00")
    assert text.endswith(f"data=2 would take {29.25 / 27.25:.2f} times as long")


def test_the_reason_names_the_passes_also_where_they_took_no_time() -> None:
    one = replace(
        of(Plain(), ONE), passes=0.0
    )  # as on a loaded machine, where a longer step may take less than another
    assert " ms = passes 0.00 + arithmetic and update 250.00" in why(one, [one])
