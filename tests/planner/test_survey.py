"""Surveys of real ranks: what is predicted to be sent is what was sent, and surveys survive JSON."""

from __future__ import annotations

import json
import warnings
import weakref
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn

from lowland.core.batch import Batches
from lowland.planner import record
from lowland.planner import survey as surveys
from lowland.planner.costs import STEPS
from lowland.planner.layout import Layout, layouts
from lowland.planner.planning import named, predictions
from lowland.planner.subject import Subject
from lowland.planner.survey import Survey, survey

METHODS = ["plain", "sam", "sampa", "looksam", "micro-sam:m=4", "esam", "sl-sam"]
EXAMPLES = 16


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def subject() -> Subject:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    batch = torch.randn(EXAMPLES, 6), torch.randint(3, (EXAMPLES,))
    return Subject(model, [torch.optim.SGD(model.parameters(), lr=0.1)], losses, batch, Batches())


def surveyed(methods: list[str], rounds: int) -> dict[str, Any]:
    warnings.simplefilter("ignore")  # a mesh warns of methods that leave groups idle
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    chosen = layouts(ranks, EXAMPLES)
    sizes = {each: [EXAMPLES // each.data // cut for cut in (1, 2)] for each in chosen}
    found = survey(subject(), dict(map(named, methods)), chosen, sizes, rounds=rounds, checked=True)
    return record.to_json(found)


def check_bytes(found: Survey, methods: list[str]) -> set[tuple[str, str]]:
    predicted = {(p.method, p.layout): p for p in predictions(found, dict(map(named, methods)))}
    for one in found.measured:
        assert predicted[one.method, one.layout].bytes == pytest.approx(one.bytes, rel=1e-12), (
            f"{one.method} on {one.layout}"
        )
        assert one.seconds > 0
    return {(one.method, str(one.layout)) for one in found.measured}


@pytest.mark.slow
def test_what_two_ranks_send_is_predicted_exactly() -> None:
    # five rounds, because LookSAM computes its second gradient every fifth step
    first, second = on_ranks(2, surveyed, METHODS, 5)
    assert first["ranks"] == 2
    assert first["rates"] == second["rates"]
    assert first["own"] == second["own"]
    found = record.from_json(first)
    assert [str(rates.layout) for rates in found.rates] == ["data=2", "probe=2"]
    assert set(found.rates[0].lines) == {"again", "displaced", "forward", "unsynced", "unsynced displaced"}
    assert set(found.rates[1].lines) == {"again", "displaced", "forward", "together", "rounds"}
    measured = check_bytes(found, METHODS)
    assert {(name, "data=2") for name in METHODS} <= measured
    assert {("sampa", "probe=2"), ("micro-sam:m=4", "probe=2")} <= measured
    assert found.parameters == 4 * (6 * 32 + 32 + 32 * 32 + 32 + 32 * 3 + 3)


@pytest.mark.slow
def test_rounds_that_four_ranks_do_not_average_are_timed_apart() -> None:
    methods = ["sampa", "micro-sam:m=4"]
    found = record.from_json(on_ranks(4, surveyed, methods, 2)[0])
    (both,) = [rates for rates in found.rates if str(rates.layout) == "probe=2,data=2"]
    apart = {"unsynced together", "unsynced rounds"}
    assert set(both.lines) == {
        "again",
        "displaced",
        "forward",
        "together",
        "rounds",
        "unsynced",
        "unsynced displaced",
        *apart,
    }
    assert not any(apart & set(rates.lines) for rates in found.rates if rates is not both)
    assert {(name, "probe=2,data=2") for name in methods} <= check_bytes(found, methods)


@pytest.mark.slow
def test_one_rank_sends_nothing_and_its_survey_survives_json() -> None:
    found = record.from_json(json.loads(json.dumps(surveyed(METHODS, 2))))
    assert found.ranks == 1
    assert found.quiet == found.busy == found.rates[0]
    assert check_bytes(found, METHODS) == {(name, "one device") for name in METHODS}
    assert {one.bytes for one in found.measured} == {0}
    assert {own.method for own in found.own} == set(METHODS)
    assert found.own_of("sam", 1) is not None
    assert found.own_of("sam", 2) is None
    assert record.from_json(json.loads(json.dumps(record.to_json(found)))) == found
    assert found.rates[0].layout == Layout()


def test_a_large_model_is_copied_for_some_methods_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    engines: list[weakref.ref[Any]] = []
    made = Subject.engine

    def watched(self: Subject, *args: Any, **options: Any) -> Any:
        engine, optimizers = made(self, *args, **options)
        if options.get("executor") is not None:  # one that does a method's own work
            engines.append(weakref.ref(engine))
            alive.append(sum(each() is not None for each in engines))
        return engine, optimizers

    monkeypatch.setattr(Subject, "engine", watched)
    one, methods, layout = subject(), dict(map(named, METHODS)), Layout()
    ticks: list[float] = []

    def survey_with(free: int | None) -> Survey:
        monkeypatch.setattr(surveys, "room", lambda device: free)
        for each in (alive, engines, ticks):
            each.clear()
        return survey(one, methods, [layout], {layout: [8, 16]}, rounds=3, seconds=None, tick=ticks.append)

    together = survey_with(None)
    assert max(alive) >= len(METHODS)
    survey_with(2 * surveys.COPIES * one.parameters * len(METHODS))
    assert max(alive) >= len(METHODS)
    apart = survey_with(2 * surveys.COPIES * one.parameters * 2 + 100)  # for two methods
    assert max(alive) <= 4  # besides what has recorded the passes, and what calibrates
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1.0
    assert [(own.method, own.steps[-1]) for own in apart.own] == [(own.method, own.steps[-1]) for own in together.own]
    assert {len(own.seconds) for own in apart.own} == {3, STEPS}  # of LookSAM all steps of a training
    survey_with(0)
    assert max(alive) <= 3
