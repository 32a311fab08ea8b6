from __future__ import annotations

import dataclasses
import weakref
from functools import partial

import pytest
import torch

from lowland.core.errors import UsageError
from lowland.core.probe import Probe, Reading, conversation


def reading(value: float) -> Reading:
    return Reading(torch.tensor(value), [torch.tensor(value)], None)


def answer(plan, replies):
    """Drive a plan with fixed replies; return all that it asked and its result."""
    talk, asked = conversation(plan), []
    try:
        asked.append(next(talk))
        for reply in replies:
            asked.append(talk.send(reply))  # noqa: PERF401 - StopIteration may not pass a comprehension
    except StopIteration as done:
        return asked, done.value
    raise AssertionError("the plan asked for more")


@pytest.mark.parametrize(
    ("at", "stats", "expected"),
    [(None, None, True), ([torch.ones(1)], None, False), (None, False, False), ([torch.ones(1)], True, True)],
)
def test_statistics_follow_the_displacement_unless_told(at, stats, expected):
    assert Probe(None, at=at, stats=stats).stats is expected


def test_statistics_are_decided_before_the_displacement_is_spent():
    probe = Probe(None, at=[torch.ones(1)])
    probe.at.clear()
    assert probe.stats is False


def test_a_probe_owns_its_list_but_not_the_tensors():
    vector = [torch.ones(1), torch.ones(2)]
    probe = Probe(None, at=vector)
    assert probe.at[0] is vector[0]
    probe.at.clear()
    assert len(vector) == 2


def test_a_probe_is_a_constant():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Probe(None).grad = False


def test_one_probe_is_answered_by_a_reading_and_several_by_a_tuple():
    def plan():
        alone = yield Probe("a")
        first, second = yield (Probe("b"), Probe("c"))
        (single,) = yield (Probe("d"),)
        return alone.loss, [first.loss, second.loss, single.loss]

    replies = [(reading(1.0),), (reading(2.0), reading(3.0)), (reading(4.0),)]
    asked, (loss, rest) = answer(plan(), replies)
    assert [[p.batch for p in ask] for ask in asked] == [["a"], ["b", "c"], ["d"]]
    assert [float(loss), *map(float, rest)] == [1.0, 2.0, 3.0, 4.0]


def test_a_list_of_probes_counts_as_several():
    def plan():
        readings = yield [Probe("a"), Probe("b")]
        return readings[1].loss, []

    _, (loss, _) = answer(plan(), [(reading(1.0), reading(2.0))])
    assert float(loss) == 2.0


def test_readings_are_freed_before_the_next_pass():
    freed = []

    class Loud(torch.Tensor):
        def __del__(self):
            freed.append(True)

    def plan():
        here = yield Probe("a")
        loss = here.loss
        del here
        yield Probe("b")
        return loss, []

    talk = conversation(plan())
    next(talk)
    talk.send((Reading(torch.tensor(1.0), [torch.ones(1).as_subclass(Loud)], None),))
    assert freed


def test_plans_compute_without_gradients_and_passes_with_them():
    weight = torch.ones(2, requires_grad=True)

    def plan():
        reading = yield Probe("a", at=[weight * 2])
        yield Probe("b", at=[weight * reading.loss])
        return reading.loss, [weight * 3]

    talk = conversation(plan())
    for ask in (next(talk), talk.send((reading(1.0),))):
        assert not ask[0].at[0].requires_grad
        assert torch.is_grad_enabled()
    with pytest.raises(StopIteration) as done:
        talk.send((reading(2.0),))
    assert not done.value.value[1][0].requires_grad
    assert torch.is_grad_enabled()


def test_leaving_early_closes_the_plan():
    closed = []

    def plan():
        try:
            yield Probe("a")
        finally:
            closed.append(True)

    talk = conversation(plan())
    next(talk)
    talk.close()
    assert closed


def test_what_the_plan_raises_comes_through():
    def plan():
        yield Probe("a")
        raise KeyError("mine")

    talk = conversation(plan())
    next(talk)
    with pytest.raises(KeyError, match="mine"):
        talk.send((reading(1.0),))


def test_a_displacement_may_be_computed_when_it_is_needed_and_only_once():
    called = []

    def at():
        called.append(torch.is_grad_enabled())
        return (torch.ones(1), torch.ones(2))

    probe = Probe(None, at=at)
    assert (called, probe.stats) == ([], False)
    assert [len(t) for t in probe.take_at()] == [1, 2]
    assert called == [False]
    assert probe.take_at() == []
    assert len(called) == 1


def test_what_a_function_holds_is_free_once_it_has_been_called_or_dropped():
    for end in (Probe.take_at, Probe.discard_at):
        vector = torch.ones(3)
        alive = weakref.ref(vector)
        probe = Probe(None, at=partial(lambda v: [v + 1], vector))
        del vector
        assert alive() is not None
        end(probe)
        assert alive() is None
        assert probe.at == []


def test_a_sequence_is_none_though_it_could_be_called():
    probe = Probe(None, at=torch.nn.ParameterList([torch.ones(2)]))
    assert len(probe.take_at()) == 1


def test_a_function_that_returns_nothing_is_told_of():
    with pytest.raises(UsageError, match="at must be a displacement, or a function that returns one, but it returned"):
        Probe(None, at=lambda: None).take_at()


def test_a_dropped_probe_without_displacement_stays_without():
    probe = Probe(None)
    probe.discard_at()
    assert probe.at is None
