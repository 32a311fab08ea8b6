from __future__ import annotations

import pytest

from lowland.methods import METHODS, make
from lowland.planner.asks import Pass, read
from lowland.planner.costs import REQUIRED, STEPS, measure, specimen

HERE = Pass(examples=1.0, tensors=1.0, displaced=False, synced=True)
THERE = Pass(examples=1.0, tensors=1.0, displaced=True, synced=True)


def test_the_steps_of_plain_sam_and_sampa() -> None:
    assert set(read(make("plain"))) == {((HERE,),)}
    assert set(read(make("sam"))) == {((HERE,), (THERE,))}
    first, *later = read(make("sampa"))
    assert first == ((HERE, HERE),)  # a cold start, with nothing to displace by
    assert set(later) == {((THERE, THERE),)}  # at the next weights, and at the perturbed ones


def test_a_cycle_of_looksam_has_one_refresh() -> None:
    steps = read(make("looksam:k=5"))
    assert [len(step) for step in steps] == [2, 1, 1, 1, 1] * (STEPS // 5)


def test_mean_micro_batches_ask_for_as_many_as_the_executor_answers_at_once() -> None:
    quarter = Pass(examples=0.25, tensors=1.0, displaced=False, synced=True)
    one = read(make("micro-sam:m=4"))[0]
    two = read(make("micro-sam:m=4"), width=4)[0]
    assert {p.examples for ask in one for p in ask} == {quarter.examples} == {p.examples for ask in two for p in ask}
    assert max(map(len, one)) == 1
    assert max(map(len, two)) == 4


@pytest.mark.parametrize("key", METHODS)
def test_the_asks_add_up_to_the_counted_costs(key: str) -> None:
    steps, costs = read(make(key, fill=lambda k: REQUIRED.get(k, {}))), measure(specimen(key))
    passes = [p for step in steps for ask in step for p in ask]
    assert sum(p.examples for p in passes if p.tensors) / STEPS == pytest.approx(costs.gradients)
    assert sum(p.examples for p in passes if not p.tensors) / STEPS == pytest.approx(costs.forwards, abs=1e-9)
    assert sum(p.examples * p.tensors for p in passes) / STEPS == pytest.approx(costs.weights)
    sequential = sum(max((p.examples for p in ask if p.tensors), default=0.0) for step in steps for ask in step)
    assert sequential / STEPS == pytest.approx(costs.sequential)
