"""The steps of a whole training, which decide what a plan predicts, and not those that happen to be timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import SAM, Engine, Method, Probe
from lowland.core.probe import Plan as Asked
from lowland.planner import measure, peak, plan
from lowland.planner.asks import Pass
from lowland.planner.calibration import record
from lowland.planner.canned import Canned
from lowland.planner.costs import STEPS, placed
from lowland.planner.fits import memory
from lowland.planner.formula import formula
from lowland.planner.layout import Layout
from lowland.planner.line import Line
from lowland.planner.measure import Own, Rates
from lowland.planner.planning import named
from lowland.planner.predict import predict
from lowland.planner.rehearsal import Rehearsal, in_turns
from lowland.planner.subject import Subject


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def subject(size: int = 8, total: int | None = None, hidden: int = 8) -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    engine = Engine(SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), losses, total_steps=total)
    return Subject.of(engine, (torch.randn(size, 6), torch.randint(3, (size,))))


@pytest.mark.parametrize(
    ("text", "total", "told"),
    [
        ("late:start=0.5", None, "o + t(B) + 0.5 u(B)"),
        ("late:start=0.9", None, "o + t(B) + 0.1 u(B)"),
        ("late:start=50", 1000, "o + t(B) + 0.95 u(B)"),
        ("late:start=0.25", 40, "o + t(B) + 0.75 u(B)"),
        ("looksam:k=20", None, "o + t(B) + 0.05 u(B)"),
        ("looksam:k=150", None, "o + t(B) + 0.01 u(B)"),
    ],
)
def test_the_steps_are_those_of_the_whole_training(text: str, total: int | None, told: str) -> None:
    training = subject(total=total)
    (made,) = measure.attempted(training, [named(text)], 1, record(training)).values()
    turn = made.turn()
    for _ in range(7):  # as many rounds as the time allowed
        turn.prepare()
        turn.step()
    found = measure.own(text, made.canned, [1.0] * 5, made.whole)
    assert formula(found.steps) == told
    assert len(found.seconds) == len(found.steps)


def test_the_kinds_of_steps_that_a_place_decides_are_timed_in_turns() -> None:
    training = subject()
    (made,) = measure.attempted(training, [named("late:start=0.9")], 1, record(training)).values()
    turn = made.turn()
    for _ in range(6):
        turn.prepare()
        turn.step()
    assert [len(step) for step in made.canned.steps[-6:]] == [1, 2, 1, 2, 1, 2]
    assert in_turns("aab") == [0, 2, 1, 2]
    assert in_turns("aab", [0, 2]) == [1, 2]


def test_a_kind_that_was_not_timed_has_the_time_of_the_most_similar_one() -> None:
    here, up = Pass(1.0, 1.0, False, True), Pass(1.0, 1.0, True, True)
    canned = Canned((), 1, None)  # type: ignore[arg-type]
    canned.steps = [((here,),), ((here,), (up,))]
    whole = [((here,),)] * 8 + [((here,), (up,))] + [((here,), (up,), (up,))]
    found = measure.own("x", canned, [1.0, 2.0], whole)
    assert found.seconds == (1.0,) * 8 + (2.0,) * 2
    assert found.untimed == pytest.approx(0.1)


def test_places_fall_in_with_no_cycle() -> None:
    assert [placed(n, STEPS) for n in range(STEPS)] == list(range(STEPS))
    for total in (1000, 12345):
        steps = [placed(n, total) for n in range(STEPS)]
        assert steps == sorted(steps)
        assert steps[-1] < total
        for cycle in (2, 3, 5):
            assert abs(sum(step % cycle == 0 for step in steps) - STEPS / cycle) <= 8


def test_the_memory_is_that_of_the_dearest_step() -> None:
    training = subject(16, hidden=64)  # so that weights outweigh the copy
    methods = dict(map(named, ["plain", "sam", "late:start=0.9"]))
    found = {text: of(Layout()) for text, of in memory(training, methods).items()}
    # The first step, which is SAM's but not late SAM's dearest, has a copy of the batch, too.
    copied = sum(t.nbytes for t in training.batch)
    assert 0.99 * (found["sam"] - copied) <= found["late:start=0.9"] <= 1.01 * found["sam"]
    assert found["late:start=0.9"] > 1.02 * found["plain"]
    assert found["sam"] == pytest.approx(peak.measured(training, methods["sam"], Layout()), rel=0.1)


RATES = Rates(
    layout=Layout(data=2), once=0.0, part=0.6,
    lines={"again": Line(1, 1), "displaced": Line(1, 1), "forward": Line(0, 1), "unsynced": Line(1, 1)},
)  # fmt: skip


def test_a_number_of_examples_is_one_of_the_ranks_part() -> None:
    training = subject(64)
    (text, method), answers = named("k-sam:k=16"), record(training)
    parts = measure.parts(training, method, 1, answers, [2, 4])
    made = Rehearsal(training, method, 1, answers)
    made.run()
    found = measure.own(text, made.canned, [1.0], parts=parts)
    assert [p.examples for ask in found.steps[0] for p in ask if p.tensors] == [0.25, 0.25]
    assert [p.examples for ask in parts[2][-1] for p in ask if p.tensors] == [0.5, 0.5]
    assert [p.examples for ask in parts[4][-1] for p in ask if p.tensors] == [1.0, 1.0]
    told = predict(found, Layout(data=2), 64, here=RATES, busy=RATES, quiet=RATES, parameters=4)
    assert told.passes == pytest.approx(2 * (1 + 16) + 32)
    kept = peak.kept(training, method, examples=32)
    assert {p.examples for p, _ in kept.passes if p.tensors} == {0.5}


def test_a_layout_whose_part_a_method_refuses_is_left_out() -> None:
    step = ((Pass(1.0, 1.0, False, True),),)
    found = Own(method="x", steps=(step,), seconds=(1.0,), parts={2: ()})
    assert (found.asked(1), found.asked(2), found.asked(4)) == ((step,), (), (step,))


@dataclass(frozen=True, kw_only=True)
class Head(Method):
    """A method of the user's own, which knows the names of the model and the entries of a batch."""

    def plan(self, engine: Engine, batch: Any) -> Asked:
        """See :meth:`lowland.methods.base.Method.plan`."""
        assert batch["x"].shape[0] > 0
        here = yield Probe(batch, wrt=[name.startswith("head") for name in engine.names])
        there = yield Probe(batch)
        return here.loss, there.grad


class Named(nn.Module):
    """A model with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        out: Tensor = self.head(self.body(x))
        return out


def test_a_method_that_knows_the_users_model_is_planned_on_it() -> None:
    model = Named()
    engine = Engine(
        Head(),
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda m, b: nn.functional.cross_entropy(m(b["x"]), b["y"], reduction="none"),
    )
    found = plan(engine, {"x": torch.randn(8, 6), "y": torch.randint(3, (8,))}, seconds=0.01)
    assert found.predictions[0].memory
    assert formula(found.surveys[0].own[0].steps) == "o + t(B) + c(0.5) t(B)"
