"""Accelerate with a method: every argument, loss and set-up that it refuses, each with its remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

import lowland
from integrations.loops import fresh, losses, net
from integrations.trajectories import sgd
from lowland.core.errors import ArgumentError, UsageError
from lowland.integrations import refusals
from lowland.integrations.accelerate import Sharpness


def made(**given: Any) -> Sharpness:
    accelerator, model = fresh(), net()
    model, optimizer = accelerator.prepare(model, sgd(model))
    default = {"accelerator": accelerator, "method": lowland.SAM(), "model": model, "optimizer": optimizer}
    return Sharpness(**{**default, "loss_fn": losses, **given})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"accelerator": None}, ArgumentError, "pass the object that prepares model and optimizer"),
        ({"method": lowland.SAM}, ArgumentError, "but is the class"),
        ({"model": net()}, UsageError, "model must be what accelerator.prepare returned"),
        ({"optimizer": sgd(net())}, UsageError, "would step with every micro-batch; write: model, optimizer"),
        ({"loss_fn": None}, ArgumentError, "Sharpness runs the model by itself"),
        ({"scaler": None}, ArgumentError, r"write Accelerator\(mixed_precision=…\)"),
        ({"resume": "warm"}, ArgumentError, "resume must be"),
    ],
)
def test_arguments_that_break_their_rule(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(**given)


def test_a_closure_optimizer_is_refused() -> None:
    """S2: with accumulation the closures of all micro-batches but the last were never called."""
    accelerator, model = fresh(2), net()
    closing = lowland.ClosureOptimizer(lowland.Engine(lowland.SAM(), model, sgd(model)))
    model, optimizer = accelerator.prepare(model, closing)
    with pytest.raises(UsageError, match="pass the SGD inside it"):
        Sharpness(accelerator, lowland.SAM(), model, optimizer, losses)
    with pytest.raises(UsageError, match="would train without the method"):
        optimizer.step()


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM", "XLA"])
def test_set_ups_whose_gradients_are_elsewhere(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    accelerator, model = fresh(), net()
    model, optimizer = accelerator.prepare(model, sgd(model))
    monkeypatch.setattr(type(accelerator), "distributed_type", SimpleNamespace(name=kind))
    with pytest.raises(UsageError, match=f"but {kind} keeps them elsewhere; train with DistributedDataParallel"):
        Sharpness(accelerator, lowland.SAM(), model, optimizer, losses)


def test_an_engine_of_one_s_own_inside_accumulate_is_refused() -> None:
    """S3: the gradient of k micro-batches was k times too long."""
    accelerator, model = fresh(2), net()
    model, optimizer = accelerator.prepare(model, sgd(model))
    with pytest.raises(UsageError, match=r"after 2 micro-batches.*use lowland\.integrations\.accelerate\.Sharpness"):
        lowland.Engine(lowland.SAM(), model, optimizer, losses)
    assert Sharpness(accelerator, lowland.SAM(), model, optimizer, losses).engine.optimizer is optimizer.optimizer


def test_processes_that_the_accelerator_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU and without cpu=True, accelerate trains two models apart under torchrun, without a word."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"all 2 processes, but knows one.*write Accelerator\(cpu=True\)"):
        made()


def test_fsdp_must_be_of_version_2() -> None:
    for version, right in ((1, False), (2, True)):
        plugin = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version))
        accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name="FSDP"), state=plugin)
        if right:
            refusals.check_accelerator(accelerator)
            continue
        with pytest.raises(UsageError, match="set fsdp_version: 2"):
            refusals.check_accelerator(accelerator)
