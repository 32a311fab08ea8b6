from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from lowland.core.errors import ArgumentError, LowlandError
from lowland.lab.planning import plan_task
from lowland.lab.planning.plan_task import Training, cores, expanded, prepared, processes
from lowland.lab.training.prepare import loader_of
from lowland.planner.planning import catalog

CPU = torch.device("cpu")


def test_the_numbers_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes((4, 1, 4), CPU) == [1, 4]
    for count, expected in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4]), (8, [1, 2, 4, 8])):
        monkeypatch.setattr(plan_task, "cores", lambda count=count: count)
        assert processes(None, CPU) == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert processes(None, torch.device("cuda")) == [1, 2]
    for wrong in ((), (0,), (1, -2), (1.5,), (True,)):
        with pytest.raises(ArgumentError, match=r"processes must be numbers >= 1, but are .*; write --processes 1 2"):
            processes(wrong, CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("methods", "batch", "kept"),
    [
        (("plain",), 64, [1, 2, 4]),
        (("plain",), 30, [1, 2]),
        (("plain",), 63, [1]),
        (("plain", "sampa"), 63, [1, 2]),  # two groups of one rank
    ],
)
def test_processes_that_can_divide_nothing_are_left_out_unless_they_are_asked_for(
    methods: tuple[str, ...], batch: int, kept: list[int]
) -> None:
    training = Training(task="digits", model="mlp", recipe={"batch_size": batch}, device="cpu")
    ready = prepared(training.config(), methods)
    assert plan_task.dividing([1, 2, 4], ready.subject, ready.methods) == kept
    for number in {1, 2, 4} - {*kept}:
        with pytest.raises(ArgumentError, match=rf"{number} ranks divide neither the {batch} examples"):
            plan_task.dividing([1, number], ready.subject, ready.methods, all_of_them=True)


def test_there_is_a_core() -> None:
    assert cores() >= 1


def test_all_is_the_catalog_and_every_method_counts_once() -> None:
    assert expanded(["sam", "all", "sam"]) == ["sam", *(name for name in catalog() if name != "sam")]
    assert expanded(["sam:rho=0.1", "plain"]) == ["sam:rho=0.1", "plain"]


def test_a_training_is_the_same_on_the_other_side() -> None:
    training = Training(task="digits", recipe={"batch_size": 16, "momentum": 0.0, "nesterov": False}, device="cpu")
    there = Training(**json.loads(json.dumps(asdict(training))))
    assert there == training
    config = there.config()
    assert (config.model, config.recipe.batch_size, config.recipe.momentum) == (config.task.models[0], 16, 0.0)


def test_what_is_planned_is_what_is_trained() -> None:
    training = Training(task="digits", model="mlp", recipe={"batch_size": 16}, device="cpu")
    ready = prepared(training.config(), ["plain", "ausam", "sam:rho=0.1"])
    assert list(ready.methods) == ["plain", "ausam", "sam:rho=0.1"]  # the task knows AUSAM's number of examples
    assert ready.subject.size == 16
    assert ready.subject.parameters == 4 * sum(p.numel() for p in ready.subject.model.parameters())
    assert ready.left_out == {}


def test_a_method_that_was_named_must_be_possible() -> None:
    config = Training(task="digits", model="mlp", device="cpu").config()
    with pytest.raises(LowlandError, match="unknown method 'nope'"):
        prepared(config, ["plain", "nope"])
    with pytest.raises(LowlandError, match="must be"):
        prepared(config, ["sam:rho=-1"])


def test_the_training_has_the_steps_of_its_epochs() -> None:
    config = Training(task="digits", recipe={"epochs": 3}).config()
    assert prepared(config, ["plain"]).subject.total == 3 * len(loader_of(config))
